"""The paper's tables: correlation by domain and by class, calibration improvement, OOD metrics by score, mIoU by model.

Reads:  {results_dir}/correlation.json, which report/correlate.py wrote from whatever results there are
Writes: {results_dir}/tables/*.csv, *.md and *.tex

    python report/tables.py

Columns marked * are figures of the published system from a secondary source.
"""

from __future__ import annotations

import argparse

from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "report/tables")
    parser.add_argument("--results_dir", default="results/report", help="the folder of report/correlate.py's results")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.report.paper_tables import markdown, paper_tables, write_table
    from genval.report.reading import read_correlation
    from genval.runtime.paths import resolve

    folder = resolve(args.results_dir)
    tables = paper_tables(read_correlation(folder, args.preset))
    for table in tables:
        write_table(folder / "tables", table)
        print(f"{markdown(table)}\n")
    print(f"wrote {len(tables)} tables to {args.results_dir}/tables: {', '.join(table.name for table in tables)}")


if __name__ == "__main__":
    cli.run(main, parse_args)
