"""Predictions in the layout of the BRAVO challenge, and its metrics where there are labels.

    {output_dir}/{segmenter}/bravo_ACDC/fog/test/GOPR0475/..._rgb_anon_pred.png   trainIds, 8 bits
                                                          ..._rgb_anon_conf.png   confidences, 16 bits

The folder of a segmenter is what the challenge's toolkit encodes as a submission.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genval.artifacts.fingerprint import current_mark
from genval.artifacts.stage import ManifestStage, run_stage
from genval.datasets.items import IMAGE_EXTENSIONS
from genval.datasets.reading import read_image, read_mask
from genval.evaluation.loading import check_names, load_segmenters
from genval.evaluation.settings import BravoSettings
from genval.metrics.bravo import BravoCounts, bravo_index, ood_metrics, quantise, semantic_metrics
from genval.metrics.segmentation import plain
from genval.results.scenes import folder_name, model_list
from genval.runtime.devices import launch_fabric, same_outcome
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, write_json, write_png
from genval.runtime.paths import paths_below, resolve
from genval.segmenters.prediction import infer, naming_errors
from genval.segmenters.recipe import refuse_trained_images

if TYPE_CHECKING:
    from torch import nn


METRICS = "bravo.json"


@dataclass(frozen=True)
class Subset:
    """A part of the benchmark.

    Attributes:
        folder: `bravo_{folder}` holds its images.
        part: a folder in the path of its images; "" for all.
        image: end of the names of its images, before the suffix.
        labels, invalid: end of the names of its labels (trainIds) and of its masks of invalid pixels (not 0).
        semantic, ood: whether it has metrics of these kinds.
    """

    folder: str
    part: str = ""
    image: str = "_leftImg8bit"
    labels: str = "_gt_labelTrainIds.png"
    invalid: str = "_gt_invIds.png"
    semantic: bool = True
    ood: bool = False


SUBSETS: dict[str, Subset] = {
    **{f"ACDC{cond}": Subset("ACDC", cond, "_rgb_anon") for cond in ("fog", "rain", "night", "snow")},
    "synrain": Subset("synrain"),
    "SMIYC": Subset("SMIYC", "", "", "_labels_semantic_fake.png", "_labels_semantic.png", semantic=False, ood=True),
    "synobjs": Subset("synobjs", "", "", "_gt.png", "_mask.png", ood=True),
    "synflare": Subset("synflare"),
    "outofcontext": Subset("outofcontext"),
}


@dataclass(frozen=True)
class BravoImage:
    """An image of the benchmark: its subset, its file, and its path below the benchmark's folder without the suffix."""

    subset: str
    image: Path
    stem: str

    @property
    def id(self) -> str:
        """The name of the frame."""
        return Path(self.stem).name.removesuffix(SUBSETS[self.subset].image)


def find_bravo(root: Path) -> list[BravoImage]:
    """Find the images of the benchmark, sorted.

    Raises:
        GenValError: there are none, or two images have one name without the suffix.
    """
    found: dict[tuple[str, str], BravoImage] = {}
    for name, subset in SUBSETS.items():
        folder = root / f"bravo_{subset.folder}"
        for path in sorted(paths_below(folder)) if folder.is_dir() else ():
            stem = path.relative_to(root).with_suffix("").as_posix()
            is_image = path.suffix.lower() in IMAGE_EXTENSIONS and stem.endswith(subset.image)
            ends = (subset.labels, subset.invalid, "_pred.png", "_conf.png")
            is_image = is_image and not path.name.endswith(ends)
            if is_image and (not subset.part or subset.part in Path(stem).parts):
                other = found.setdefault((name, stem), BravoImage(name, path, stem))
                if other.image != path:
                    raise GenValError(f"Two files for {stem}: {other.image} and {path}. Move one of them elsewhere.")
    if not found:
        raise GenValError(
            f"No images of the BRAVO benchmark in {root}: expected bravo_ACDC/fog/test/*/*_rgb_anon.png and others. "
            "Get them from https://github.com/valeoai/bravo_challenge, or give --bravo_dir."
        )
    return list(found.values())


_Output = tuple[np.ndarray, np.ndarray]


class BravoStage(ManifestStage[BravoImage, np.ndarray, _Output]):
    """One segmenter on the benchmark: a prediction and a confidence image per image."""

    def __init__(
        self,
        folder: Path,
        segmenter: nn.Module,
        identity: str,
        model: str,
        device: torch.device,
        settings: BravoSettings,
    ) -> None:
        record = {"model": model, "identity": identity, "precision": settings.device.precision}
        super().__init__(folder, record, settings, "relis/bravo.py")
        self.segmenter, self.device, self.title = segmenter, device, f"{model} on BRAVO"

    def key(self, item: BravoImage) -> str:
        return item.stem

    def files(self, item: BravoImage) -> Mapping[str, str]:
        return {"prediction": f"{item.stem}_pred.png", "confidence": f"{item.stem}_conf.png"}

    def item_record(self, item: BravoImage) -> Mapping[str, Any]:
        return {**self.record, "image_mark": current_mark(item.image)}

    def prepare(self, missing: Sequence[BravoImage]) -> None:
        super().prepare(missing)
        if missing:
            (self.folder / METRICS).unlink(missing_ok=True)  # of other predictions

    def load(self, item: BravoImage) -> np.ndarray:
        return read_image(item.image)

    def split(self, batch: list[tuple[BravoImage, np.ndarray]]) -> Iterable[list[tuple[BravoImage, np.ndarray]]]:
        return [[pair] for pair in batch]  # images of SMIYC differ in size

    def compute(self, items: Sequence[BravoImage], loaded: Sequence[np.ndarray]) -> list[_Output]:
        results = []
        for item, image in zip(items, loaded, strict=True):
            with torch.inference_mode(), naming_errors(self.segmenter, str(item.image)):
                confidence, classes = infer(self.segmenter, image[None], self.device)[0].softmax(0).max(0)
                if not bool(confidence.isfinite().all()):
                    raise GenValError("confidences are not finite. Use --precision 32-true.")
            results.append((classes.byte().cpu().numpy(), quantise(confidence.cpu().numpy())))
        return results

    def write(self, item: BravoImage, loaded: np.ndarray, output: _Output) -> dict[str, Any]:
        files = self.files(item)
        write_png(self.folder / files["prediction"], output[0])
        write_png(self.folder / files["confidence"], output[1])
        return {"id": item.stem, **files, **self.item_record(item)}


def export_all(settings: BravoSettings) -> list[dict[str, Any]]:
    """Write the predictions of every segmenter, and with labels the metrics; return one row per segmenter and subset.

    Raises:
        GenValError: there are no images, a checkpoint is missing, or a file is bad.
    """
    names = model_list(settings.model.segmenters, settings.preset)
    found = find_bravo(resolve(settings.bravo_dir))
    items = found[: settings.run.limit]
    limit = settings.run.limit if len(items) < len(found) else None
    if settings.run.dry_run:
        check_names(names)
        print(f"{len(items)} images for each of {len(names)} segmenters")
        return []
    fabric = launch_fabric(settings.device)
    precision = settings.device.precision
    images = ((item.image, lambda item=item: read_image(item.image)) for item in items)
    models = load_segmenters(settings.model, names, fabric, precision, images)
    rows: list[dict[str, Any]] = []
    for name, (segmenter, identity) in zip(names, models, strict=True):
        with same_outcome(fabric):
            refuse_trained_images(segmenter, items)
        folder = resolve(settings.output_dir) / folder_name(name)
        if limit is not None and settings.labels_dir is not None:
            _keep_whole(folder / METRICS)
        stage = BravoStage(folder, segmenter, identity, name, fabric.device, settings)
        run_stage(
            stage, items, fabric=fabric, batch_size=1, num_workers=settings.model.num_workers,
            overwrite=settings.run.overwrite,
        )  # fmt: skip
        if settings.labels_dir is not None and fabric.is_global_zero:
            made = {"identity": identity, "precision": precision, "limit": limit}
            rows += measure_bravo(folder, items, resolve(settings.labels_dir), name, made)
    return rows


def _keep_whole(path: Path) -> None:
    """Refuse to replace the metrics of all images by those of a part."""
    if path.exists() and read_json(path, dict[str, Any]).get("limit") is None:
        raise GenValError(
            f"{path} holds the metrics of all images: --limit would replace them by those of a part. Give another "
            "--output_dir, or no --limit."
        )


def measure_bravo(
    folder: Path, items: Sequence[BravoImage], labels: Path, model: str, made: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Compute the metrics of exported predictions, write `bravo.json`, and return one row per subset and one of all.

    Args:
        folder: of the predictions.
        items: the images.
        labels: the folder with the labels, in the benchmark's layout.
        model: the segmenter's name.
        made: how the predictions were made: `identity`, `precision` and `limit`, which are written too.

    Raises:
        GenValError: a label is missing, a file is bad, or sizes differ.
    """
    totals: dict[str, BravoCounts] = {}
    for item in items:
        counts = _measure(folder, item, labels)
        totals[item.subset] = totals[item.subset] + counts if item.subset in totals else counts
    semantic = {name: semantic_metrics(one) for name, one in totals.items() if SUBSETS[name].semantic}
    ood = {name: ood_metrics(one) for name, one in totals.items() if SUBSETS[name].ood}
    index = bravo_index(semantic.values(), ood.values())
    content = {
        "semantic": semantic,
        "ood": ood,
        **index,
        "subsets": list(totals),
        "images": len(items),
        "model": model,
        **made,
    }
    write_json(folder / METRICS, _plain(content))
    rows = [
        {
            "model": model,
            "subset": name,
            **semantic.get(name, {}),
            **{f"ood_{k}": v for k, v in ood.get(name, {}).items()},
        }
        for name in totals
    ]
    measured = "all" if len(totals) == len(SUBSETS) else f"{len(totals)} of {len(SUBSETS)} subsets"
    return [*rows, {"model": model, "subset": measured, **index}]


def _measure(folder: Path, item: BravoImage, labels: Path) -> BravoCounts:
    import cv2

    subset = SUBSETS[item.subset]
    base = labels / item.stem.removesuffix(subset.image)
    files = [Path(f"{base}{end}") for end in (subset.labels, subset.invalid)]
    train_ids, invalid = (read_mask(file) for file in files)
    prediction = read_mask(folder / f"{item.stem}_pred.png")
    confidence = cv2.imread(str(folder / f"{item.stem}_conf.png"), cv2.IMREAD_UNCHANGED)
    if confidence is None or confidence.dtype != np.uint16:
        raise GenValError(f"{folder / item.stem}_conf.png is missing or not a 16-bit PNG. Delete it and run again.")
    if not train_ids.shape == invalid.shape == prediction.shape == confidence.shape:
        raise GenValError(
            f"{files[0]} {train_ids.shape}, {files[1]} {invalid.shape} and the prediction {prediction.shape} differ in "
            "size. Labels and images must be of one release of the benchmark."
        )
    try:
        return BravoCounts.measure(prediction, confidence, train_ids, invalid != 0)
    except GenValError as error:
        raise GenValError(f"{files[0]}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return plain(value) if isinstance(value, float) else value
