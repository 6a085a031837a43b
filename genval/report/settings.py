"""Settings of the scripts in report/. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.settings import comma_list, positive_int, seed_number

DOMAINS = ("fog", "night", "rain", "snow", "india")


@dataclass(frozen=True, kw_only=True)
class CorrelationSettings:
    """Settings of report/correlate.py."""

    SCRIPT: ClassVar[str] = "report/correlate"

    segmenters: str = flag(
        "all", "segmenters as given to relis/eval.py; all: those with results", title="what is compared"
    )
    domains: tuple[str, ...] = flag(DOMAINS, "domains", type=comma_list)
    generators: tuple[str, ...] = flag(
        (path_dicts.DEFAULT_GENERATOR,),
        "generators: NAME, or NAME=EVAL_DIR with the results on its sets; the verdict is about the first",
        type=comma_list,
    )
    label_free: tuple[str, ...] = flag(
        ("vote", "confidence", "doc"),
        "label-free estimates: vote, confidence, doc, atc_clear, atc_generated; all or none",
        type=comma_list,
    )
    reference_dataset: str | None = flag(None, "reference set of every domain (default: REAL_SETS in path_dicts.py)")
    clear_dataset: str = flag("Cityscapes", "the clear-weather set")
    clear_cond: str = flag("clean", "condition of the clear-weather set")
    gate: bool = flag(False, "use the generated sets as relis/eval.py --gate evaluated them")
    class_set: Literal["auto", "19", "17"] = flag(
        "auto", "classes of both sides; auto: those labelled in both, for india of IDD's 17"
    )
    min_miou: float | None = flag(
        None,
        "mIoU in percent below which a segmenter has failed, for sets of several strengths (default: 0.9 times its "
        "mIoU at the lowest strength)",
    )
    scaling_method: str = flag("vanilla_ece", "file name of the temperatures")
    bootstrap_draws: int = flag(1000, "bootstrap draws", type=positive_int, title="method")
    seed: int = flag(0, "seed of the draws", type=seed_number)
    settled_tau: float = flag(0.9, "Kendall's tau from which a ranking is settled")
    settled_regret: float = flag(1.0, "points of mIoU within which a choice is settled")
    eval_dir: str = flag("results/eval", "results of relis/eval.py", title="input and output")
    scaling_dir: str = flag("results/temperature_scaling", "results of relis/eval_calibration_clustering.py")
    ood_dir: str = flag("results/ood_detection", "results of ood_detection/main_gen_ood.py")
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets, for their distances")
    output_dir: str = flag("results/report", "folder of the report")
    preset: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("min_miou", 0, 100), ("settled_tau", -1, 1), ("settled_regret", 0, 100)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise GenValError(f"--{name}: expected a number from {low} to {high}, found {value}.")


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """Settings of report/make_report.py."""

    SCRIPT: ClassVar[str] = "report/make_report"

    domains: tuple[str, ...] = flag(
        ("all",), "generated sets; all: those on the disk", type=comma_list, title="what is shown"
    )
    generators: tuple[str, ...] = flag(("all",), "generators of correlation.json beside the first", type=comma_list)
    max_gallery: int = flag(24, "images per domain, and per object", type=positive_int)
    gallery_models: int = flag(8, "segmenters whose predictions are shown", type=positive_int)
    image_width: int = flag(360, "width of the images in pixels", type=positive_int)
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets", title="input and output")
    eval_dir: str = flag("results/eval", "results of relis/eval.py")
    errors_dir: str = flag("results/calibration_errors", "results of relis/eval_calibration.py")
    scaling_dir: str = flag("results/temperature_scaling", "results of relis/eval_calibration_clustering.py")
    objects_dir: str = flag("images/ood_objects", "images with objects, and their masks")
    ood_dir: str = flag("results/ood_detection", "results of ood_detection/main_gen_ood.py")
    output_dir: str = flag("results/report", "folder of correlation.json and of the page")
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Settings of report/tables.py."""

    SCRIPT: ClassVar[str] = "report/tables"

    generators: tuple[str, ...] = flag(("all",), "generators of correlation.json beside the first", type=comma_list)
    output_dir: str = flag("results/report", "folder of report/correlate.py's results")
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class DomainTableSettings:
    """Settings of relis/compare_domains.py."""

    SCRIPT: ClassVar[str] = "relis/compare_domains"

    segmenters: str = flag("all", "segmenters as given to relis/eval.py; all: those with results")
    domains: tuple[str, ...] = flag(("fog", "night", "rain", "snow"), "domains to compare", type=comma_list)
    reference_dataset: str = flag("ACDC", "the reference set with these conditions, or none")
    class_set: Literal["common", "19", "17"] = flag(
        "common", "classes of the mean: those labelled in all sets, or fixed"
    )
    gate: bool = flag(False, "use the generated sets as relis/eval.py --gate evaluated them")
    eval_dir: str = flag("results/eval", "results of relis/eval.py")
    output_dir: str = flag("results/domains", "folder of the table")
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class ContactSheetSettings:
    """Settings of relis/contact_sheet.py."""

    SCRIPT: ClassVar[str] = "relis/contact_sheet"

    domains: tuple[str, ...] = flag(("fog", "night", "rain", "snow"), "generated sets to show", type=comma_list)
    columns: int = flag(3, "images per domain, spread over the set", type=positive_int)
    tile_width: int = flag(256, "width of an image in pixels", type=positive_int)
    segmenters: str | None = flag(
        None, "segmenter whose predictions are shown (default: the first that has all of them)"
    )
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets")
    eval_dir: str = flag("results/eval", "results of relis/eval.py")
    output_dir: str = flag("results/domains", "folder of the contact sheet")
    preset: str | None = None
