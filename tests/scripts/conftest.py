from relis_world import relis, relis_files
from report_world import report, report_files

__all__ = ["relis", "relis_files", "report", "report_files"]
