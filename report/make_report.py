"""Write the report page: the verdict, its evidence and images, in a single HTML file that needs no network.

Reads:  {output_dir}/correlation.json (report/correlate.py), images of ControlNet/style_transfer.py, predictions of
        relis/eval.py, results of relis/eval_calibration.py, relis/eval_calibration_clustering.py and
        ood_detection/main_gen_ood.py; the page shows what exists, and names the commands for the rest
Writes: {output_dir}/index.html

    python report/make_report.py
"""

from __future__ import annotations

import sys

try:
    from genval.report.settings import PageSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: PageSettings) -> None:
    from genval.report.page import PageSources, collect, write_page
    from genval.report.page.gallery import GalleryLimits
    from genval.runtime.paths import resolve

    sources = PageSources(
        report=resolve(settings.output_dir),
        generated=resolve(settings.generated_dir),
        evaluated=resolve(settings.eval_dir),
        errors=resolve(settings.errors_dir),
        scaling=resolve(settings.scaling_dir),
        objects=resolve(settings.objects_dir),
        ood=resolve(settings.ood_dir),
        preset=settings.preset,
    )
    limits = GalleryLimits(images=settings.max_gallery, models=settings.gallery_models, width=settings.image_width)
    domains = None if settings.domains == ("all",) else list(settings.domains)
    content = collect(sources, domains, limits, settings.generators)
    path = write_page(sources.report / "index.html", content)
    for missing in content.missing:
        print(f"missing: {missing.what}. Run: {missing.remedy}")
    for warning in content.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for line in content.verdict:
        print(line)
    print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, PageSettings, __doc__)
