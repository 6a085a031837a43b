"""Compare the synthetic verdict with the reference: correlations across segmenters with intervals, and baselines.

Reads:  what relis/eval.py wrote in --eval_dir for Cityscapes, Cityscapes_{domain}, Cityscapes_corrupt_{domain}
        and the reference sets; relis/eval_calibration_clustering.py in --scaling_dir; ood_detection/main_gen_ood.py
        in --ood_dir. Not all of these need to exist
Writes: {output_dir}/correlation.json (described in genval/report/schema.py), correlation.csv, correlation.md

    python report/correlate.py --domains fog,night

Missing results are listed with the command that computes them, and the others are compared. The last three lines are
the verdict. If results of a domain in an existing correlation.json are missing now, this file is kept, with an error.
"""

from __future__ import annotations

import sys

try:
    from genval.report.settings import CorrelationSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: CorrelationSettings) -> None:
    from genval.report.schema import require_no_loss
    from genval.report.study import correlate
    from genval.report.summary import csv_table, markdown_summary
    from genval.runtime.files import write_bytes, write_csv, write_json
    from genval.runtime.paths import resolve

    report = correlate(settings)
    folder = resolve(settings.output_dir)
    require_no_loss(folder / "correlation.json", report)
    text = markdown_summary(report)
    write_json(folder / "correlation.json", report.to_json())
    write_csv(folder / "correlation.csv", *csv_table(report))
    write_bytes(folder / "correlation.md", (text + "\n").encode())
    print(text)
    for check in report.checks:
        if not check.passed:
            print(f"warning: {check.said}", file=sys.stderr)
    print(f"\nwrote {settings.output_dir}/correlation.json, correlation.csv, correlation.md\n")
    print("\n".join(report.verdict))


if __name__ == "__main__":
    cli.run(main, CorrelationSettings, __doc__)
