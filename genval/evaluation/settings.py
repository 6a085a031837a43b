"""Settings of the scripts that evaluate segmenters. Importing this module does not import torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import ClassVar, Literal

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag, group
from genval.runtime.settings import (
    Compile,
    DeviceSettings,
    RunSettings,
    comma_list,
    dataset_list,
    height_width,
    num_workers_flag,
    positive_int,
    seed_flag,
    seed_number,
    skip_bad_flag,
    trust_code_flag,
)

SAVED = ("predictions", "logits", "features")
MORE_SCORES = ("rba", "mahalanobis", "knn", "odin")
OOD_SCORES = ("entropy", "confidence", "logits", "energy", "standardised", *MORE_SCORES)
FEATURE_SCORES = ("mahalanobis", "knn")
ALL = ("all",)


def list_segmenters() -> str:
    """Return what `--list_models` prints: each name, and whether its checkpoint is on the disk."""
    from genval.segmenters import describe_segmenters  # imports torch, which --help must not

    return describe_segmenters()


LIST_MODELS = {"list_models": (list_segmenters, "list the names of the segmenters and exit")}


def pixel_number(text: str) -> int:
    """Parse a number of pixels above zero, or -1 for all."""
    return -1 if text == "-1" else positive_int(text)


def saved_kinds(text: str) -> list[str]:
    """Parse which of `SAVED` to save, separated by commas, or none."""
    kinds = [] if text == "none" else comma_list(text)
    unknown = [kind for kind in kinds if kind not in SAVED]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected none or some of {','.join(SAVED)}, found {unknown[0]!r}")
    return kinds


def fraction_list(text: str) -> list[float]:
    """Parse `1,0.5` into `[1.0, 0.5]`: each above 0 and at most 1, of at most six digits in percent."""
    try:
        fractions = [float(part) for part in comma_list(text)]
    except ValueError:
        fractions = [0.0]
    if not all(0 < part <= 1 and abs(float(f"{100 * part:g}") / 100 - part) < 1e-12 for part in fractions):
        raise argparse.ArgumentTypeError(f"expected fractions above 0 and at most 1, of six digits, found {text!r}")
    return list(dict.fromkeys(fractions))


def seed_list(text: str) -> list[int]:
    """Parse `0,1,2` into `[0, 1, 2]`."""
    return [seed_number(part) for part in comma_list(text)]


def id_list(text: str) -> list[int]:
    """Parse ids 0 to 255, separated by commas."""
    parts = comma_list(text)
    if not all(part.isdecimal() and int(part) < 256 for part in parts):
        raise argparse.ArgumentTypeError(f"expected ids 0..255 separated by commas, found {text!r}")
    return [int(part) for part in parts]


def score_list(text: str) -> list[str]:
    """Parse names of `OOD_SCORES`, separated by commas, or none."""
    names = [] if text == "none" else comma_list(text)
    unknown = [name for name in names if name not in OOD_SCORES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected none or some of {','.join(OOD_SCORES)}, found {unknown[0]!r}")
    return names


def input_size(text: str) -> tuple[int, int] | Literal["processor"]:
    """Parse height and width in pixels, as `height_width` does, or `processor`."""
    return "processor" if text == "processor" else height_width(text)


def more_scores(text: str) -> list[str]:
    """Parse names of `MORE_SCORES`, separated by commas, or none or all."""
    names = list(MORE_SCORES) if text == "all" else [] if text == "none" else comma_list(text)
    unknown = [name for name in names if name not in MORE_SCORES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected none, all or some of {','.join(MORE_SCORES)}, found {unknown[0]!r}")
    return list(dict.fromkeys(names))


def size_pair(text: str) -> tuple[int, int]:
    """Parse two numbers of pixels, e.g. `500,100`."""
    parts = [positive_int(part) for part in comma_list(text)]
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"expected two numbers of pixels, as 500,100, found {text!r}")
    return parts[0], parts[1]


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """Which segmenters are run, and how."""

    segmenters: str = flag(help="names from path_dicts.py or specifications, separated by commas, or all")
    src_dataset: str = flag("Cityscapes", "training set of the segmenters; it is only recorded")
    class_map: str | None = flag(
        None, "classes of the segmenters' outputs, if not the 19: a JSON file of ids, or a name"
    )
    input_size: tuple[int, int] | Literal["processor"] | None = flag(
        None,
        "HxW: resize images to this size for the segmenter, and its logits back to the size of the label; processor: "
        "resize images as the image processor of an hf: model does",
        type=input_size,
    )
    batch_size: int = flag(1, "images per forward pass", type=positive_int)
    compile: Compile = flag("off", "compile the segmenter, which takes minutes on a GPU (auto: off)", bare="on")
    channels_last: Literal["on", "off"] = flag("on", "memory layout that suits convolutions", bare="on")
    trust_code: bool = trust_code_flag()
    num_workers: int = num_workers_flag()


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of relis/eval.py, relis/extract_logits.py and relis/extract_features.py."""

    SCRIPT: ClassVar[str] = "relis/eval"

    model: SegmenterSettings = group(SegmenterSettings, "segmenters")
    trg_dataset: tuple[str, ...] = flag(
        help="data sets to evaluate on: Cityscapes, ACDC, Cityscapes_fog, ...", type=dataset_list, title="data"
    )
    cond: tuple[str, ...] = flag(ALL, "conditions, e.g. fog,night", type=comma_list)
    scene: tuple[str, ...] = flag(ALL, "cities, recordings or folders", type=comma_list)
    split: str | None = flag(None, "folder of a split, or all (default: the data set's usual split)")
    gate: bool = flag(
        False,
        "use only the images of a generated set that check_generated.py kept; results go to {trg_dataset}-gated",
    )
    datasets_dir: str = flag("datasets", "folder of the data sets")
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets")
    trg_root: str | None = flag(None, "folder of the data set, if it is not in --datasets_dir")
    eval_dir: str = flag("results/eval", "folder of the evaluation results", title="output")
    logit_pixels: int = flag(
        20000, "pixels per image whose logits are saved, chosen at random; -1 for all", type=pixel_number
    )
    fp16: bool = flag(False, "save logits and features as float16, not float32")
    layer: str | None = flag(None, "module whose output gives the features (default: the segmenter's backbone)")
    save: tuple[str, ...] = ("predictions",)
    sample: int = -1
    skip_bad: bool = skip_bad_flag()
    seed: int = seed_flag()
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device", precision="32-true")
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvalScriptSettings(EvaluationSettings):
    """Settings of relis/eval.py."""

    save: tuple[str, ...] = flag(("predictions",), "predictions,logits,features, or none", type=saved_kinds)
    sample: int = flag(
        -1, "random pixels per image whose confidences are measured (published: 20000); -1 for all", type=pixel_number
    )


@dataclass(frozen=True, kw_only=True)
class LogitSettings(EvaluationSettings):
    """Settings of relis/extract_logits.py."""

    SCRIPT: ClassVar[str] = "relis/extract_logits"
    save: tuple[str, ...] = ("logits",)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(EvaluationSettings):
    """Settings of relis/extract_features.py."""

    SCRIPT: ClassVar[str] = "relis/extract_features"
    save: tuple[str, ...] = ("features",)


@dataclass(frozen=True, kw_only=True)
class OodDetectionSettings:
    """Settings of ood_detection/main_gen_ood.py."""

    SCRIPT: ClassVar[str] = "ood_detection/main_gen_ood"

    model: SegmenterSettings = group(SegmenterSettings, "segmenters")
    trg_dataset: tuple[str, ...] = flag(
        ("generated",),
        "generated or generated-NAME (in the folders below), RoadAnomaly21, RoadObstacle21 (also -test, -night, -snow, "
        "-validation), FishyscapesLostAndFound, FishyscapesStatic, LostAndFound, LostAndFoundNoKnown, RoadAnomaly, "
        "StreetHazards, or pair:IMAGES,MASKS: two folders with files of the same names (masks: 0 background, 1 object, "
        "255 void)",
        type=dataset_list,
        title="data",
    )
    objects: tuple[str, ...] | None = flag(None, "of the generated set, only these objects", type=comma_list)
    uncurated: bool = flag(False, "include images for which curated.json says false")
    void: tuple[int, ...] | None = flag(
        None,
        "ids outside the object that are not counted: labelIds of the street (generated), or the mask's own ids",
        type=id_list,
    )
    images_dir: str = flag("images/ood_objects/refined", "generated images")
    masks_dir: str = flag("images/ood_objects/masks", "masks of the generated images")
    positions_dir: str = flag("images/ood_objects/with_positions", "boxes and labels of the generated images")
    datasets_dir: str = flag("datasets", "folder of the public sets")
    trg_root: str | None = flag(None, "folder of the public set, if it is not in --datasets_dir")
    output_dir: str = flag("results/ood_detection", "folder of the results", title="output")
    exact: bool = flag(
        False, "compute metrics from single pixels; needs 8 MB of disk per image and score", title="metrics"
    )
    components: tuple[str, ...] = flag(
        (), "scores for component metrics (sIoU, PPV, F1): entropy,confidence,logits,energy, or none", type=score_list
    )
    component_sizes: tuple[int, int] = flag(
        (500, 100), "minimum pixels of a predicted component and of an object (RoadObstacle21: 50,10)", type=size_pair
    )
    scores: tuple[str, ...] = flag(
        (), "further scores: rba, mahalanobis, knn, odin, or all; those of features need --known", type=more_scores
    )
    component_threshold: Literal["level", "benchmark"] = flag(
        "level",
        "threshold of component metrics: the level with the best F1 of pixels, or the one that SegmentMeIfYouCan's "
        "evaluation finds, which needs 8 MB of disk per image and score",
    )
    known: str | None = flag(
        None, "a set of known classes, such as the training set, for the standardised max logit and scores of features"
    )
    known_split: str | None = flag(None, "folder of a split of --known (default: all)")
    known_images: int = flag(100, "number of images of --known, evenly spaced", type=positive_int)
    bootstrap_draws: int = flag(1000, "bootstrap draws per interval", type=positive_int)
    skip_bad: bool = skip_bad_flag()
    seed: int = seed_flag()
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device", precision="32-true")
    preset: str | None = None

    def __post_init__(self) -> None:
        needing = [name for name in ("standardised", *FEATURE_SCORES) if name in (*self.components, *self.scores)]
        if needing and self.known is None:
            raise GenValError(
                f"The score {needing[0]} needs a set of known classes: give --known Cityscapes, for example."
            )
        absent = [name for name in self.components if name in MORE_SCORES and name not in self.scores]
        if absent:
            raise GenValError(f"--components {absent[0]}: give --scores {absent[0]} as well.")


@dataclass(frozen=True, kw_only=True)
class BravoSettings:
    """Settings of relis/bravo.py."""

    SCRIPT: ClassVar[str] = "relis/bravo"

    model: SegmenterSettings = group(SegmenterSettings, "segmenters")
    bravo_dir: str = flag("datasets/bravo", "folder of the benchmark, with bravo_ACDC and others", title="data")
    labels_dir: str | None = flag(None, "folder of the labels, in the same layout; with it, the metrics are computed")
    output_dir: str = flag("results/bravo", "folder of the predictions", title="output")
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device", precision="32-true")
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class EstimateSettings:
    """Settings of relis/estimate.py."""

    SCRIPT: ClassVar[str] = "relis/estimate"

    model: SegmenterSettings = group(SegmenterSettings, "segmenters")
    images: tuple[str, ...] = flag(
        help="folders of unlabelled images of a condition: FOLDER or NAME=FOLDER", type=comma_list, title="data"
    )
    clear_dataset: str = flag("Cityscapes", "the labelled clear-weather set, for the difference of confidences")
    clear_cond: str = flag("clean", "condition of the clear-weather set")
    eval_dir: str = flag("results/eval", "results of relis/eval.py on the clear-weather set")
    output_dir: str = flag("results/estimates", "folder of the predictions and the table", title="output")
    bootstrap_draws: int = flag(1000, "bootstrap draws per interval", type=positive_int)
    seed: int = seed_flag()
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device", precision="32-true")
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class CorruptionSettings:
    """Settings of relis/corrupt.py."""

    SCRIPT: ClassVar[str] = "relis/corrupt"

    domains: tuple[str, ...] = flag(
        ("fog", "rain", "snow", "night"), "corruptions to apply, or domains of the reference images", type=comma_list
    )
    method: Literal["corruption", "histogram", "fourier"] = flag(
        "corruption",
        "histogram and fourier transfer the appearance of --reference images: histogram matching, or the amplitudes of "
        "low frequencies",
    )
    severity: int = flag(3, "1 to 5, as in ImageNet-C")
    reference: tuple[str, ...] = flag(
        (),
        "unlabelled images of the domain: a folder or file; of several domains: fog=PATH,night=PATH",
        type=comma_list,
    )
    beta: float = flag(0.02, "with fourier: the frequencies that are replaced, as a fraction of the shorter side")
    src_dataset: str = flag("Cityscapes", "the clear set; its masks must hold labelIds")
    split: str | None = flag(None, "folder of a split, or all (default: the data set's usual split)")
    datasets_dir: str = flag("datasets", "folder of the data sets")
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets")
    output_dir: str | None = flag(
        None,
        "folder of the new sets (default: corrupted, next to --generated_dir; of the other methods: "
        "GENERATED_DIR/METHOD)",
    )
    skip_bad: bool = skip_bad_flag()
    num_workers: int = num_workers_flag()
    seed: int = seed_flag()
    run: RunSettings = group(RunSettings, "run")
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.method == "corruption" and self.reference:
            raise GenValError("--reference needs --method histogram or fourier: corruptions have no reference images.")
        if self.method != "corruption" and not self.reference:
            raise GenValError(
                f"--method {self.method} needs unlabelled images of the domain. Give --domains fog --reference PATH, "
                "for example."
            )
        if not 0 <= self.beta < 0.5:
            raise GenValError(f"--beta: expected a number from 0 to below 0.5, found {self.beta}.")


@dataclass(frozen=True, kw_only=True)
class GateThresholds:
    """What a generated image must reach to be kept."""

    # The segmenter also fails in bad weather on real streets: a fixed threshold would drop a whole night set.
    # An image that does not show its mask is an outlier within its own set.
    min_of_median: float = flag(0.6, "minimum agreement with the mask, as a fraction of the set's median agreement")
    # mIoU with the mask, as a fraction of the segmenter's mIoU on the original
    min_agreement: float = flag(0.0, "minimum agreement with the mask, as a fraction of the original's")
    min_domain: float = flag(0.5, "minimum probability of the domain's phrase, compared with the clear phrase")
    # Images that start from noise have other edges than the original: their drift means nothing, and is not judged.
    max_drift: float | None = flag(
        None, "maximum drift from the original in percent of the height, for --generator edit (default: not judged)"
    )
    # Measured on the mini world: images of one seed and other settings differ in up to 12 bits, images of one mask
    # and other seeds in 32 or more, images of other masks in 90 or more.
    min_bits: int = flag(16, "minimum number of bits, of 256, in which an image's hash differs from every kept image's")

    def __post_init__(self) -> None:
        for name, largest in (
            ("min_of_median", 1.0),
            ("min_agreement", float("inf")),
            ("min_domain", 1.0),
            ("min_bits", 256),
            ("max_drift", 100.0),
        ):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= largest:
                raise GenValError(f"--{name}: expected a number from 0 to {largest}, found {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """Settings of ControlNet/check_generated.py."""

    SCRIPT: ClassVar[str] = "ControlNet/check_generated"

    domain: str | None = flag(None, "a folder in --generated_dir: fog, night, ...", title="data", exclusive="folder")
    folder: str | None = flag(None, "any folder with leftImg8bit/ and gtFine/", exclusive="folder")
    generator: str = flag(
        path_dicts.DEFAULT_GENERATOR, "the generator that made --domain", choices=path_dicts.GENERATORS
    )
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets")
    eval_dir: str = flag("results/eval", "results of relis/eval.py, by which --domain clear checks the generator")
    segmenter: str = flag(
        "SegFormer-B5",
        "the segmenter that judges the images; do not evaluate it on the kept images later",
        title="models",
    )
    trust_code: bool = trust_code_flag()
    clip: str | None = flag(None, "a CLIP model, name or folder; without it the domain is not judged")
    reference: str | None = flag(
        None, "folder of unlabelled images of the domain: measure the distance of the set to them (CMMD); needs --clip"
    )
    domain_phrase: str | None = flag(None, "the domain in words (default: as the images were generated)")
    clear_phrase: str = flag(path_dicts.DOMAINS["clear"], "the phrase that it is compared with")
    clip_template: str = flag("a street {phrase}", "the text around either phrase")
    thresholds: GateThresholds = group(GateThresholds, "thresholds")
    skip_bad: bool = skip_bad_flag()
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device", precision="32-true")
    batch_size: int = flag(4, "images per batch, each with its original", type=positive_int, title="speed")
    num_workers: int = num_workers_flag()
    preset: str | None = None

    def __post_init__(self) -> None:
        if (self.domain is None) == (self.folder is None):
            raise GenValError("Expected one of --domain and --folder. Give --domain fog, for example.")
        if "{phrase}" not in self.clip_template:
            raise GenValError(f"--clip_template: expected a text with {{phrase}}, found {self.clip_template!r}.")
        if self.reference and not self.clip:
            raise GenValError("--reference needs --clip: the distance is one of CLIP's embeddings.")
        if self.generator not in path_dicts.GENERATORS:
            raise GenValError(f"--generator: expected {', '.join(path_dicts.GENERATORS)}, found {self.generator}.")


@dataclass(frozen=True, kw_only=True)
class SavedSetSettings:
    """An evaluated set on the disk."""

    segmenters: str = flag(help="segmenters as given to relis/eval.py, or all", title="evaluated sets")
    src_dataset: str = flag("Cityscapes", "training set of the segmenters; it is only recorded")
    trg_dataset: str | None = flag(None, "Cityscapes, ACDC, Cityscapes_fog, ...")
    cond: tuple[str, ...] = flag(
        ALL, "conditions; paired with --scene if both lists have the same length", type=comma_list
    )
    scene: tuple[str, ...] = flag(ALL, "cities, recordings or folders", type=comma_list)
    eval_dir: str = flag("results/eval", "results of relis/eval.py")
    preset: str | None = None


def _require_dataset(settings: SavedSetSettings) -> None:
    if settings.trg_dataset is None:
        raise GenValError("Give --trg_dataset: Cityscapes, ACDC, Cityscapes_fog, ...")


@dataclass(frozen=True, kw_only=True)
class FinalMetricsSettings:
    """Settings of relis/compute_final_metrics.py."""

    SCRIPT: ClassVar[str] = "relis/compute_final_metrics"

    segmenters: str = flag(help="segmenters as given to relis/eval.py, or all", title="evaluated sets")
    src_dataset: str = flag("Cityscapes", "training set of the segmenters; it is only recorded")
    trg_dataset: tuple[str, ...] = flag(help="Cityscapes, ACDC, Cityscapes_fog, ...", type=dataset_list)
    cond: tuple[str, ...] = flag(
        ALL, "conditions; paired with --scene if both lists have the same length", type=comma_list
    )
    scene: tuple[str, ...] = flag(ALL, "cities, recordings or folders", type=comma_list)
    class_set: Literal["present", "19", "17", "11"] = flag(
        "present", "classes of the mean: those that occur (as published), or all 19, IDD's 17 or CamVid's 11"
    )
    eval_dir: str = flag("results/eval", "results of relis/eval.py")
    output_dir: str = flag("results/final_metrics", "folder of the metrics")
    preset: str | None = None

    @property
    def file_name(self) -> str:
        """The conditions, with the scenes and the class set where they are not the default ones."""
        scenes = [] if self.scene == ALL else ["+".join(self.scene)]
        classes = [] if self.class_set == "present" else [f"{self.class_set}classes"]
        return "_".join(["+".join(self.cond), *scenes, *classes])


@dataclass(frozen=True, kw_only=True)
class CalibrationErrorSettings(SavedSetSettings):
    """Settings of relis/eval_calibration.py."""

    SCRIPT: ClassVar[str] = "relis/eval_calibration"
    source: Literal["logits", "statistics"] = flag("logits", "which results of relis/eval.py are read")
    output_dir: str = flag("results/calibration_errors", "folder of the metrics")

    def __post_init__(self) -> None:
        _require_dataset(self)


@dataclass(frozen=True, kw_only=True)
class MisclassificationSettings(SavedSetSettings):
    """Settings of relis/eval_prr.py."""

    SCRIPT: ClassVar[str] = "relis/eval_prr"
    output_dir: str = flag("results/misclassification", "folder of the metrics")

    def __post_init__(self) -> None:
        _require_dataset(self)


@dataclass(frozen=True, kw_only=True)
class ImageOodSettings(SavedSetSettings):
    """Settings of relis/eval_ood.py."""

    SCRIPT: ClassVar[str] = "relis/eval_ood"
    in_dataset: str = flag("Cityscapes", "data set of the training distribution", title="training distribution")
    in_cond: tuple[str, ...] = flag(ALL, "its conditions", type=comma_list)
    in_scene: tuple[str, ...] = flag(ALL, "its scenes", type=comma_list)
    output_dir: str = flag("results/image_ood", "folder of the metrics")

    def __post_init__(self) -> None:
        _require_dataset(self)


@dataclass(frozen=True, kw_only=True)
class UnknownClassSettings(SavedSetSettings):
    """Settings of relis/eval_local_ood.py."""

    SCRIPT: ClassVar[str] = "relis/eval_local_ood"
    trg_dataset: str | None = flag("IDD", "the data set with unknown classes")
    unknown: tuple[str, ...] = flag(ALL, "classes of IDD that count as unknown", type=comma_list)
    output_dir: str = flag("results/local_ood", "folder of the metrics")


@dataclass(frozen=True, kw_only=True)
class CalibrationSets:
    """Which images calibrate, how often, and where the result is kept."""

    protocol: Literal["none", "cityscapes", "synthetic"] = flag(
        "none",
        "the papers' splits. cityscapes: lindau and munster calibrate, frankfurt tests. synthetic: each domain of "
        "--domains calibrates on its generated set and tests on the real one. none: the sets that the flags name",
        title="calibration",
    )
    domains: tuple[str, ...] = flag(
        ("fog", "night", "rain", "snow"), "domains of --protocol synthetic", type=comma_list
    )
    calib_dataset: str = flag("Cityscapes", "data set that calibrates")
    calib_cond: tuple[str, ...] = flag(ALL, "its conditions", type=comma_list)
    calib_scene: tuple[str, ...] = flag(ALL, "its scenes, such as lindau,munster of Cityscapes", type=comma_list)
    subsamples: int | None = flag(None, "calibrate on this many images, chosen at random", type=positive_int)
    seeds: tuple[int, ...] = flag((0,), "seeds of all random choices, e.g. 0,1,2", type=seed_list)
    calibration_dir: str = flag("results/calibration", "folder of the temperatures")


@dataclass(frozen=True, kw_only=True)
class CalibrationMethod:
    """How temperatures are found."""

    n_clusters: int = flag(1, "clusters of images; 1 is plain temperature scaling", type=positive_int)
    cluster_method: Literal["kmeans", "gmm"] = flag("kmeans", "clustering method")
    calib_metric: Literal["ece", "nll"] = flag("ece", "metric that a temperature minimises")
    per_class_temperature: bool = flag(False, "one temperature per predicted class")
    hardest: tuple[float, ...] = flag(
        (1.0,),
        "calibrate on this fraction of the images, those with the lowest pixel accuracy; 1 means all images, as "
        "published; a list such as 1,0.5 computes temperatures for each fraction",
        type=fraction_list,
    )


@dataclass(frozen=True, kw_only=True)
class TemperatureSettings:
    """Settings of relis/compute_clusters_temp_scaling.py."""

    SCRIPT: ClassVar[str] = "relis/compute_clusters_temp_scaling"
    segmenters: str = flag(help="segmenters as given to relis/eval.py, or all")
    eval_dir: str = flag("results/eval", "results of relis/eval.py")
    sets: CalibrationSets = group(CalibrationSets, "calibration")
    method: CalibrationMethod = group(CalibrationMethod, "method")
    jobs: int | None = flag(
        None, "segmenters at a time, each in a process (default: as many as cores and memory allow)", type=positive_int
    )
    preset: str | None = None


def _require_tested_set(settings: TemperatureTestSettings | LocalTestSettings) -> None:
    if settings.sets.protocol == "none" and not settings.trg_dataset:
        raise GenValError("No set to test on. Give --trg_dataset (and --cond, --scene), or a --protocol.")


@dataclass(frozen=True, kw_only=True)
class TemperatureTestSettings(SavedSetSettings):
    """Settings of relis/eval_calibration_clustering.py."""

    SCRIPT: ClassVar[str] = "relis/eval_calibration_clustering"
    sets: CalibrationSets = group(CalibrationSets, "calibration")
    method: CalibrationMethod = group(CalibrationMethod, "method")
    soft: bool = flag(
        False, "for each image, use a weighted mean of the clusters' temperatures instead of the nearest cluster's"
    )
    output_dir: str = flag("results/temperature_scaling", "folder of the metrics")
    jobs: int | None = flag(
        None, "segmenters at a time, each in a process (default: as many as cores and memory allow)", type=positive_int
    )

    def __post_init__(self) -> None:
        _require_tested_set(self)


@dataclass(frozen=True, kw_only=True)
class LocalTrainingSettings:
    """Settings of relis/train_lts_network.py."""

    SCRIPT: ClassVar[str] = "relis/train_lts_network"
    segmenters: str = flag(help="segmenters as given to relis/eval.py, or all")
    eval_dir: str = flag("results/eval", "results of relis/eval.py")
    sets: CalibrationSets = group(CalibrationSets, "calibration")
    epochs: int = flag(20, "passes over the images", type=positive_int, title="training")
    crop_size: int = flag(512, "side of the training crops in pixels", type=positive_int)
    batch_size: int = flag(1, "crops per step", type=positive_int)
    lr: float = flag(3e-3, "initial learning rate; it decays to zero along a cosine")
    overwrite: bool = flag(False, "train from the start instead of resuming")
    accelerator: str = flag("auto", "auto, cpu or gpu", title="device")
    devices: str = flag("auto", "number of devices per machine, or auto")
    num_nodes: int = flag(1, "number of machines", type=positive_int)
    preset: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1:
            raise GenValError(f"--lr must be above 0 and below 1, found {self.lr}.")


@dataclass(frozen=True, kw_only=True)
class LocalTestSettings(SavedSetSettings):
    """Settings of relis/eval_calibration_lts.py."""

    SCRIPT: ClassVar[str] = "relis/eval_calibration_lts"
    sets: CalibrationSets = group(CalibrationSets, "calibration")
    accelerator: str = flag("cpu", "device of the networks: auto, cpu, gpu or cuda:1", title="device")
    output_dir: str = flag("results/local_scaling", "folder of the metrics")

    def __post_init__(self) -> None:
        _require_tested_set(self)
