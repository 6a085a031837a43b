"""Does the synthetic verdict predict the true one? Correlations across models with intervals, and the baselines.

Reads:  what relis/eval.py wrote below --root_exp_dir for Cityscapes, Cityscapes_{domain}, Cityscapes_corrupt_{domain}
        and the true sets; relis/eval_calibration_clustering.py below --scaling_dir; ood_detection/main_gen_ood.py
        below --ood_dir; whatever of it there is
Writes: {results_dir}/correlation.json (described in genval/report/__init__.py), correlation.csv, correlation.md

    python report/correlate.py --domains fog,night

What is missing is listed with the command that makes it; the rest is computed. The last three lines are the verdict.
"""

from __future__ import annotations

import argparse

from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "report/correlate")
    what = parser.add_argument_group("what is compared")
    what.add_argument("--models", default="all", help="models as given to relis/eval.py; all is all with results")
    what.add_argument("--domains", type=cli.comma_list, default="fog,night,rain,snow,india", help="conditions")
    what.add_argument("--true_dataset", help="the true set of every domain; by default REAL_SETS in path_dicts.py")
    what.add_argument("--clear_dataset", default="Cityscapes", help="the clear-weather set")
    what.add_argument("--clear_cond", default="clean", help="its condition")
    what.add_argument("--gate", action="store_true", help="the generated sets as relis/eval.py --gate evaluated them")
    what.add_argument(
        "--classes",
        choices=["auto", "19", "17"],
        default="auto",
        help="the one class set of both sides; auto: labelled in both, of IDD's 17 for india",
    )
    what.add_argument("--scaling_method", default="vanilla_ece", help="the temperatures' file name")
    how = parser.add_argument_group("how")
    how.add_argument("--draws", type=cli.positive_int, default=1000, help="bootstrap draws")
    how.add_argument("--seed", type=cli.seed_number, default=0, help="of the draws")
    how.add_argument("--settled_tau", type=float, default=0.9, help="Kendall's tau at which a ranking is settled")
    how.add_argument(
        "--settled_regret", type=float, default=1.0, help="points of mIoU within which a choice is settled"
    )
    where = parser.add_argument_group("where things are")
    where.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")
    where.add_argument("--scaling_dir", default="results/temperature_scaling", help="calibration before and after")
    where.add_argument("--ood_dir", default="results/ood_detection", help="the results of ood_detection/")
    where.add_argument("--results_dir", default="results/report", help="where the figures are saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.report.study import correlate
    from genval.report.summary import csv_table, markdown_summary
    from genval.runtime.files import write_bytes, write_csv, write_json
    from genval.runtime.paths import resolve

    values = correlate(args)
    folder = resolve(args.results_dir)
    text = markdown_summary(values)
    write_json(folder / "correlation.json", values)
    write_csv(folder / "correlation.csv", *csv_table(values))
    write_bytes(folder / "correlation.md", (text + "\n").encode())
    print(text)
    print(f"\nwrote {args.results_dir}/correlation.json, correlation.csv, correlation.md\n")
    print("\n".join(values["verdict"]))


if __name__ == "__main__":
    cli.run(main, parse_args)
