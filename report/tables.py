"""Write the paper's tables: correlation by domain and class, calibration, OOD metrics by score, mIoU by segmenter.

Reads:  {output_dir}/correlation.json, written by report/correlate.py
Writes: {output_dir}/tables/*.csv, *.md and *.tex

    python report/tables.py

Columns marked * hold numbers of the published system from a secondary source.
"""

from __future__ import annotations

import sys

try:
    from genval.report.settings import TableSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: TableSettings) -> None:
    from genval.report.paper_tables import markdown, paper_tables, write_table
    from genval.report.schema import read_report, select_generators
    from genval.runtime.paths import resolve

    folder = resolve(settings.output_dir)
    report = read_report(folder / "correlation.json", settings.preset)
    tables = paper_tables(select_generators(report, settings.generators))
    for table in tables:
        write_table(folder / "tables", table)
        print(f"{markdown(table)}\n")
    print(f"wrote {len(tables)} tables to {settings.output_dir}/tables: {', '.join(table.name for table in tables)}")


if __name__ == "__main__":
    cli.run(main, TableSettings, __doc__)
