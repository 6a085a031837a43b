"""The content of the page, gathered from the folders of the stages. Each part is optional: missing parts are listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genval.datasets.layouts import strength_of
from genval.report.page.finetuned import collect_finetuned
from genval.report.page.gallery import GalleryLimits, collect_gallery
from genval.report.page.objects import collect_objects
from genval.report.page.provenance import collect_provenance, command_of, segmenter_key
from genval.report.page.reliability import collect_diagrams
from genval.report.schema import Report, read_report, select_generators
from genval.runtime.commands import Command, Missing
from genval.runtime.errors import GenValError


@dataclass(frozen=True)
class PageSources:
    """The folders that the page is made from."""

    report: Path  # with correlation.json
    generated: Path  # one folder per domain, of ControlNet/style_transfer.py
    evaluated: Path  # of relis/eval.py
    errors: Path  # of relis/eval_calibration.py
    scaling: Path  # of relis/eval_calibration_clustering.py
    objects: Path  # of ood_objects/
    ood: Path  # of ood_detection/main_gen_ood.py
    preset: str | None = None  # for the commands


@dataclass(frozen=True)
class PageContent:
    """The parts of the page; None or empty where there is nothing to show."""

    report: Report | None
    gallery: dict[str, Any] | None
    objects: dict[str, Any] | None
    diagrams: list[dict[str, Any]]
    provenance: dict[str, Any]
    missing: list[Missing] = field(default_factory=list)
    preset: str | None = None
    finetuned: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> list[str]:
        """The sentences of the verdict."""
        return list(self.report.verdict) if self.report else []

    @property
    def warnings(self) -> list[str]:
        """Sentences on why the comparison cannot be trusted."""
        if self.report is None:
            return []
        found = [f"Do not trust {check.said}." for check in self.report.checks if check.passed is False]
        for model, made in self.report.made_by.items():
            now = self.provenance["weights"].get(segmenter_key(model), [made])
            if now != [made]:
                found.append(
                    f"{model} was evaluated again after this comparison, which is of {made}; the results are of "
                    f"{' and of '.join(now)} now. Run report/correlate.py again."
                )
        return found


class _MissingParts:
    """The list of missing parts, with the commands that make them."""

    def __init__(self, preset: str | None) -> None:
        self.preset = preset
        self.parts: list[Missing] = []

    def add(self, what: str, script: str, **flags: Any) -> None:
        """Append a part that a script makes."""
        self.parts.append(Missing(what, str(Command(script, {"preset": self.preset, **flags}))))


def collect(
    sources: PageSources, domains: Sequence[str] | None, limits: GalleryLimits, generators: Sequence[str] = ("all",)
) -> PageContent:
    """Read all parts that exist.

    Args:
        sources: the folders.
        domains: the generated sets to show; None means all that exist, in the order of correlation.json.
        limits: of the images.
        generators: those beside the first that are shown, see `schema.select_generators`.

    Raises:
        GenValError: a file is damaged, a requested domain does not exist, or there is nothing to show.
    """
    missing = _MissingParts(sources.preset)
    report = _read_report(sources, generators, missing)
    domains = _choose_domains(sources, domains, report.domains if report else [])
    gallery = _read_gallery(sources, domains, limits, missing)
    diagrams = collect_diagrams(sources.errors, sources.scaling)
    if not any(entry["calibrated_on"] for entry in diagrams):
        missing.add(
            "reliability before and after temperature scaling",
            "relis/eval_calibration_clustering",
            segmenters="all",
            protocol="synthetic",
            domains=domains or "fog",
        )
    objects = _read_objects(sources, gallery["models"] if gallery else [], limits, missing)
    finetuned = collect_finetuned(sources.ood, limits)
    if not (report or gallery or diagrams or objects or finetuned):
        raise GenValError(
            f"There is nothing to report: no correlation.json in {sources.report}, no images in {sources.generated}, "
            f"no results in {sources.errors}, {sources.scaling} and {sources.ood}. Run: {missing.parts[0].remedy}"
        )
    provenance = collect_provenance(sources.generated, sources.evaluated, [sources.objects, sources.ood])
    if report:
        command = command_of({"script": "report/correlate", **report.settings})
        provenance["runs"].append({"command": command, "outputs": 1})
    return PageContent(report, gallery, objects, diagrams, provenance, missing.parts, sources.preset, finetuned)


def _read_report(sources: PageSources, generators: Sequence[str], missing: _MissingParts) -> Report | None:
    path = sources.report / "correlation.json"
    if not path.exists():
        missing.add("the comparison of synthetic and reference metrics", "report/correlate")
        return None
    report = select_generators(read_report(path, sources.preset), generators)
    missing.parts += [Missing(part.what, part.command) for part in report.missing]
    return report


def _choose_domains(sources: PageSources, domains: Sequence[str] | None, order: Sequence[str]) -> list[str]:
    """Return the generated sets to show, and refuse those that do not exist; all leaves out weaker strengths."""
    found = sorted(path.parent.name for path in sources.generated.glob("*/leftImg8bit") if any(path.iterdir()))
    if domains is None:
        found = [name for name in found if strength_of(name)[1] == 1]
        return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    absent = [domain for domain in domains if domain not in found]
    if absent:
        command = Command("ControlNet/style_transfer", {"preset": sources.preset, "domain": absent[0]})
        raise GenValError(
            f"No generated images of {', '.join(absent)} in {sources.generated}: found {', '.join(found) or 'none'}. "
            f"Run: {command}"
        )
    return list(domains)


def _read_gallery(
    sources: PageSources, domains: Sequence[str], limits: GalleryLimits, missing: _MissingParts
) -> dict[str, Any] | None:
    if not domains:
        missing.add("generated images", "ControlNet/style_transfer", domain="fog", num_samples=512)
        return None
    gallery = collect_gallery(sources.generated, domains, sources.evaluated, limits)
    if not gallery["models"]:
        what = "predictions on the generated images"
        missing.add(what, "relis/eval", segmenters="all", trg_dataset=f"Cityscapes_{domains[0]}")
    return gallery


def _read_objects(
    sources: PageSources, models: Sequence[str], limits: GalleryLimits, missing: _MissingParts
) -> dict[str, Any] | None:
    """The images of objects; without a list of models, those with OOD scores are shown."""
    objects = None
    if all(any((sources.objects / stage).glob("*/*.png")) for stage in ("refined", "masks")):
        objects = collect_objects(sources.objects, sources.ood / "generated", models, limits)
    if objects is None or not objects["images"]:
        missing.add("images with objects and their masks", "ood_objects/get_masks")
        return None
    if not objects["models"]:
        missing.add("OOD scores of the generated objects", "ood_detection/main_gen_ood", segmenters="all")
    return objects
