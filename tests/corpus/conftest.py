"""The corpus builds its inputs with the helpers of other folders of tests."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("datasets", "scripts", "runtime")]

from relis_world import relis, relis_files

__all__ = ["relis", "relis_files"]
