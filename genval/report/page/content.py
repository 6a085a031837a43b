"""The content of the page, gathered from the folders of the stages. Each part is optional: missing parts are listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genval.report.page.gallery import GalleryLimits, collect_gallery
from genval.report.page.objects import collect_objects
from genval.report.page.provenance import collect_provenance, command_of
from genval.report.page.reliability import collect_diagrams
from genval.runtime.commands import Command, Missing
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json

# Version of correlation.json that the page is drawn from.
FORMAT = 2


@dataclass(frozen=True)
class PageSources:
    """The folders that the page is made from."""

    report: Path  # with correlation.json
    generated: Path  # one folder a domain, of ControlNet/style_transfer.py
    evaluated: Path  # of relis/eval.py
    errors: Path  # of relis/eval_calibration.py
    scaling: Path  # of relis/eval_calibration_clustering.py
    objects: Path  # of ood_objects/
    ood: Path  # of ood_detection/main_gen_ood.py
    preset: str | None = None  # for the commands


@dataclass(frozen=True)
class PageContent:
    """The parts of the page; None or empty where there is nothing to show."""

    correlation: dict[str, Any] | None
    gallery: dict[str, Any] | None
    objects: dict[str, Any] | None
    diagrams: list[dict[str, Any]]
    provenance: dict[str, Any]
    missing: list[Missing] = field(default_factory=list)

    @property
    def verdict(self) -> list[str]:
        """The sentences of the verdict."""
        return list(self.correlation["verdict"]) if self.correlation else []


def collect(sources: PageSources, domains: Sequence[str] | None, limits: GalleryLimits) -> PageContent:
    """Read whatever there is.

    Args:
        sources: the folders.
        domains: the generated sets to show; None is all there are, in the order of correlation.json.
        limits: of the images.

    Raises:
        GenValError: a file is damaged, a domain that was asked for is not there, or there is nothing at all.
    """
    missing: list[Missing] = []

    def report(what: str, script: str, **flags: Any) -> None:
        missing.append(Missing(what, str(Command(script, {"preset": sources.preset, **flags}))))

    correlation = _read_correlation(sources.report / "correlation.json")
    if correlation is None:
        report("the comparison of synthetic and reference metrics", "report/correlate")
    else:
        missing += [Missing(one["what"], one["command"]) for one in correlation["missing"]]
    there = sorted(path.parent.name for path in sources.generated.glob("*/leftImg8bit") if any(path.iterdir()))
    if domains is None:
        order = correlation["domains"] if correlation else []
        domains = sorted(there, key=lambda name: (order.index(name) if name in order else len(order), name))
    absent = [domain for domain in domains if domain not in there]
    if absent:
        command = Command("ControlNet/style_transfer", {"preset": sources.preset, "domain": absent[0]})
        raise GenValError(
            f"No generated images of {', '.join(absent)} in {sources.generated}: found {', '.join(there) or 'none'}. "
            f"Run: {command}"
        )
    gallery = collect_gallery(sources.generated, domains, sources.evaluated, limits) if domains else None
    if gallery is None:
        report("generated images", "ControlNet/style_transfer", domain="fog", num_samples=512)
    elif not gallery["models"]:
        report(
            "predictions on the generated images",
            "relis/eval",
            segmenters="all",
            trg_dataset=f"Cityscapes_{domains[0]}",
        )
    diagrams = collect_diagrams(sources.errors, sources.scaling)
    if not any(entry["calibrated_on"] for entry in diagrams):
        report(
            "reliability before and after temperature scaling",
            "relis/eval_calibration_clustering",
            segmenters="all",
            protocol="synthetic",
            domains=list(domains) or "fog",
        )
    objects = None
    if all(any((sources.objects / stage).glob("*/*.png")) for stage in ("refined", "masks")):
        models = gallery["models"] if gallery else []
        objects = collect_objects(sources.objects, sources.ood / "generated", models, limits)
    if objects and objects["images"]:
        if not objects["models"]:
            report("OOD scores of the generated objects", "ood_detection/main_gen_ood", segmenters="all")
    else:
        objects = None
        report("images with objects and their masks", "ood_objects/get_masks")
    if not (correlation or gallery or diagrams or objects):
        raise GenValError(
            f"There is nothing to report: no correlation.json in {sources.report}, no images in {sources.generated}, "
            f"no results in {sources.errors}, {sources.scaling} and {sources.ood}. Run: {missing[0].remedy}"
        )
    provenance = collect_provenance(sources.generated, sources.evaluated, [sources.objects, sources.ood])
    if correlation:
        compared = {"script": "report/correlate", **correlation.get("settings", {})}
        provenance["runs"].append({"command": command_of(compared), "outputs": 1})
    return PageContent(correlation, gallery, objects, diagrams, provenance, missing)


def _read_correlation(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise GenValError(
            f"{path} is of format {found}, expected {FORMAT}. Run report/correlate.py again with this version."
        )
    return content
