"""Predictions and confidences of segmenters on images without masks, on the engine for resumable work."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.artifacts.fingerprint import current_mark
from genval.artifacts.stage import ManifestStage, run_stage
from genval.datasets.reading import read_image
from genval.datasets.unlabelled import find_unlabelled
from genval.evaluation.evaluation_set import find_duplicates
from genval.evaluation.loading import check_names, load_segmenters
from genval.evaluation.settings import EstimateSettings
from genval.metrics.statistics import COUNTS_VERSION, PixelStatistics, measure
from genval.results.provenance import require_different_models
from genval.results.scenes import SceneResults, model_list, write_counts
from genval.runtime.devices import launch_fabric, same_outcome
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.paths import resolve
from genval.segmenters.prediction import infer, naming_errors
from genval.segmenters.recipe import refuse_trained_images

if TYPE_CHECKING:
    import torch
    from torch import nn

UNLABELLED = "unlabelled"
"""The condition and the scene of images without masks."""


@dataclass(frozen=True)
class UnlabelledImage:
    """An image without a mask; the id is its path in its folder, with `_` for slashes."""

    id: str
    image: Path

    @property
    def source(self) -> str:
        """The id that the image has in a labelled set."""
        return self.image.stem.removesuffix("_leftImg8bit")


def parse_folders(entries: Sequence[str]) -> dict[str, list[UnlabelledImage]]:
    """Read `--images`: each entry is a folder, or NAME=FOLDER; return the images by the set's name.

    Raises:
        GenValError: a folder is missing or empty, two sets or two images have the same name, or an image is in a
            set twice.
    """
    sets: dict[str, list[UnlabelledImage]] = {}
    for entry in entries:
        name, equals, place = entry.partition("=")
        folder = resolve(place if equals else entry)
        name = name if equals else folder.name
        if name in sets or name in ("", ".", "..") or "/" in name:
            raise GenValError(f"--images: expected folders with different names, or NAME=FOLDER, found {entry!r}.")
        found: dict[str, Path] = {}
        for path in find_unlabelled(folder, "--images"):
            item_id = path.relative_to(folder).with_suffix("").as_posix().replace("/", "_")
            if item_id in found:
                raise GenValError(f"{path} and {found[item_id]} have the same name. Rename one of them.")
            found[item_id] = path
        sets[name] = [UnlabelledImage(item_id, path) for item_id, path in found.items()]
        for image, first in find_duplicates(sets[name]).items():
            raise GenValError(
                f"{image.image}: the same image as {first.image}: it would count twice. Remove one of them."
            )
    if not sets:
        raise GenValError("--images: expected a folder of images of the condition.")
    return sets


def predict_unlabelled(settings: EstimateSettings) -> dict[str, list[UnlabelledImage]]:
    """Run every segmenter on every set; resume where an earlier run stopped.

    Returns:
        The images by set, in the first process; nothing in the others.

    Raises:
        GenValError: a folder or a checkpoint is missing, or an image cannot be read.
    """
    sets = parse_folders(settings.images)
    sets = {name: images[: settings.run.limit] for name, images in sets.items()}
    names = model_list(settings.model.segmenters, settings.preset)
    if settings.run.dry_run:
        check_names(names)
        return sets
    fabric = launch_fabric(settings.device)
    files = ((one.image, lambda path=one.image: read_image(path)) for images in sets.values() for one in images)
    models = load_segmenters(settings.model, names, fabric, settings.device.precision, files)
    identities: dict[str, str] = {}
    for model, (loaded, identity) in zip(names, models, strict=True):
        identities[model] = identity
        with same_outcome(fabric):
            require_different_models(identities)  # each segmenter is compared with the vote of the others
        for name, images in sets.items():
            with same_outcome(fabric):
                refuse_trained_images(loaded, images)
            stage = UnlabelledStage(settings, loaded, identity, fabric.device, model, name)
            run_stage(
                stage,
                images,
                fabric=fabric,
                batch_size=settings.model.batch_size,
                num_workers=settings.model.num_workers,
                overwrite=settings.run.overwrite,
            )
    return sets if fabric.is_global_zero else {}


class UnlabelledStage(ManifestStage[UnlabelledImage, np.ndarray, "tuple[np.ndarray, PixelStatistics]"]):
    """One segmenter on one set: the predicted classes, and the counts of all pixels' confidences.

    The counts have the form of those of relis/eval.py. Without labels all pixels count as right: only sums over right
    and wrong pixels mean anything.
    """

    def __init__(
        self,
        settings: EstimateSettings,
        segmenter: nn.Module,
        identity: str,
        device: torch.device,
        model: str,
        name: str,
    ) -> None:
        self.results = unlabelled_results(resolve(settings.output_dir), model, name)
        record = {
            "model": model,
            "identity": identity,
            "precision": settings.device.precision,
            "counts_version": COUNTS_VERSION,
        }
        super().__init__(self.results.folder, record, settings, "relis/estimate.py")
        self.title = f"{model} on {name}"
        self.segmenter, self.device = segmenter, device

    def files(self, item: UnlabelledImage) -> dict[str, str]:
        paths = {"prediction": self.results.prediction(item.id), "counts": self.results.counts(item.id)}
        return {kind: path.relative_to(self.folder).as_posix() for kind, path in paths.items()}

    def item_record(self, item: UnlabelledImage) -> Mapping[str, Any]:
        return {**self.record, "image_mark": current_mark(item.image)}

    def load(self, item: UnlabelledImage) -> np.ndarray:
        return read_image(item.image)

    def split(
        self, batch: list[tuple[UnlabelledImage, np.ndarray]]
    ) -> Iterable[list[tuple[UnlabelledImage, np.ndarray]]]:
        return [list(group) for _, group in itertools.groupby(batch, key=lambda pair: pair[1].shape)]

    def compute(
        self, items: Sequence[UnlabelledImage], loaded: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, PixelStatistics]]:
        import torch

        outputs = []
        with torch.inference_mode():
            for item, logits in zip(items, infer(self.segmenter, np.stack(loaded), self.device), strict=True):
                with naming_errors(self.segmenter, str(item.image)):
                    predicted, statistics = measure(logits, logits.argmax(0).byte())
                outputs.append((predicted.cpu().numpy(), statistics))
        return outputs

    def write(
        self, item: UnlabelledImage, loaded: np.ndarray, output: tuple[np.ndarray, PixelStatistics]
    ) -> dict[str, Any]:
        prediction, statistics = output
        write_png(self.results.prediction(item.id), prediction)
        write_counts(self.results.counts(item.id), statistics)
        return {"id": item.id, **self.files(item), **self.item_record(item)}


def unlabelled_results(root: Path, model: str, name: str) -> SceneResults:
    """Return the places of a segmenter's results on a set of images without masks."""
    return SceneResults(root, model, name, UNLABELLED, UNLABELLED)
