"""One page to look at: the verdict, its evidence and the pictures, in a single HTML file that needs no network.

Reads:  {results_dir}/correlation.json (report/correlate.py), pictures of ControlNet/style_transfer.py, predictions of
        relis/eval.py, what relis/eval_calibration.py, relis/eval_calibration_clustering.py and
        ood_detection/main_gen_ood.py wrote; whatever there is, is shown, and the page names the commands for the rest
Writes: {results_dir}/index.html

    python report/make_report.py
"""

from __future__ import annotations

import argparse

import path_dicts
from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "report/make_report")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--domains", type=cli.comma_list, default="all", help="generated sets; all is those on the disk")
    shown.add_argument("--max_gallery", type=cli.positive_int, default=24, help="pictures a domain, and an object")
    shown.add_argument("--gallery_models", type=cli.positive_int, default=8, help="models whose predictions are shown")
    shown.add_argument("--picture_width", type=cli.positive_int, default=360, help="pixels")
    where = parser.add_argument_group("where things are")
    where.add_argument("--generated_dir", default=path_dicts.GENERATED_ROOT, help="the folder of the generated sets")
    where.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")
    where.add_argument("--errors_dir", default="results/calibration_errors", help="of relis/eval_calibration.py")
    where.add_argument(
        "--scaling_dir", default="results/temperature_scaling", help="of relis/eval_calibration_clustering.py"
    )
    where.add_argument("--objects_dir", default="images/ood_objects", help="pictures with objects, and their masks")
    where.add_argument(
        "--ood_dir", default="results/ood_detection", help="the results of ood_detection/main_gen_ood.py"
    )
    where.add_argument("--results_dir", default="results/report", help="where correlation.json is and the page goes")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.report.page import PageSources, collect, write_page
    from genval.report.page.gallery import GalleryLimits
    from genval.runtime.paths import resolve

    sources = PageSources(
        report=resolve(args.results_dir),
        generated=resolve(args.generated_dir),
        evaluated=resolve(args.root_exp_dir),
        errors=resolve(args.errors_dir),
        scaling=resolve(args.scaling_dir),
        objects=resolve(args.objects_dir),
        ood=resolve(args.ood_dir),
        preset=args.preset,
    )
    limits = GalleryLimits(pictures=args.max_gallery, models=args.gallery_models, width=args.picture_width)
    content = collect(sources, None if args.domains == ["all"] else args.domains, limits)
    path = write_page(sources.report / "index.html", content)
    for lack in content.missing:
        print(f"missing: {lack.what}. Run: {lack.command}")
    for line in content.verdict:
        print(line)
    print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, parse_args)
