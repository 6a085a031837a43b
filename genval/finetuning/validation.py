"""Validation of a fine-tuning: mIoU on clear streets and OOD detection, which weights are kept, and the early stop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from genval.datasets import Item, read_pair
from genval.datasets.ood_sets import OodItem, read_ood_pair
from genval.datasets.reading import DecodedCache
from genval.finetuning.module import FinetuneModule
from genval.kernels.layout import SCORES
from genval.metrics.confusion import confusion_matrix
from genval.metrics.ood_scores import OodCounts, count_scores, level_metrics, measure_ood, rejected_by_all
from genval.metrics.segmentation import labelled_classes, mean_iou
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, replace_file, write_json
from genval.segmenters import Segmenter
from genval.segmenters.prediction import infer, naming_errors, predict
from genval.training.batches import read_ahead

RECORD = "validation.json"
WEIGHTS = "kept.pt"
# A GPU segments small images faster in batches: of as many pixels as one full-size image, of at most so many images.
_PIXELS, _IMAGES = 1 << 21, 16

_Item = TypeVar("_Item", bound=Item)
_Pair = tuple[np.ndarray, np.ndarray]


class Validated(TypedDict):
    """The metrics of one validation, fractions in 0..1; those of OOD detection are None without a set."""

    step: int
    miou: float
    auroc: float | None
    fpr95: float | None
    aupr_object: float | None


def logged(row: Validated) -> Iterator[tuple[str, float]]:
    """The metrics of a validation that are known, by the names under which they are logged."""
    for name in ("miou", "auroc", "fpr95", "aupr_object"):
        value: float | None = row[name]
        if value is not None:
            yield f"val_{name}", value


@dataclass(frozen=True)
class ValidationSet:
    """What a fine-tuning is validated on.

    Attributes:
        streets: clear labelled streets.
        objects: images with objects; may be empty.
        score: the score of OOD detection.
        cache: keeps decoded images for the next validation.
        workers: number of threads that decode.
    """

    streets: Sequence[Item]
    objects: Sequence[OodItem]
    score: str
    cache: DecodedCache
    workers: int

    def measure(self, segmenter: Segmenter, device: torch.device, step: int) -> Validated:
        """Measure a segmenter.

        Raises:
            GenValError: an image is bad, or logits are not finite.
        """
        matrix = np.zeros((19, 19), np.int64)
        for streets, images, labels in self._batches(self.streets, read_pair):
            classes = predict(segmenter, images, [str(item.image) for item in streets], device)
            matrix += sum(map(confusion_matrix, labels, classes))
        result = Validated(
            step=step, miou=float(mean_iou(matrix, labelled_classes([matrix]))), auroc=None, fpr95=None,
            aupr_object=None,
        )  # fmt: skip
        if self.objects:
            total = OodCounts.empty(1).levels[0]
            for objects, images, kinds in self._batches(self.objects, read_ood_pair):
                with torch.inference_mode():
                    logits = infer(segmenter, images, device)
                    for item, one, kind in zip(objects, logits, kinds, strict=True):
                        with naming_errors(segmenter, str(item.image)):
                            total += self._count(one, torch.from_numpy(kind).to(device), segmenter.of_queries)
            metrics = level_metrics(total)
            result.update({name: metrics[name] for name in ("auroc", "fpr95", "aupr_object")})  # type: ignore[typeddict-item]
        return result

    def _batches(
        self, items: Sequence[_Item], decode: Callable[[_Item], _Pair]
    ) -> Iterator[tuple[list[_Item], np.ndarray, list[np.ndarray]]]:
        """Yield items with their images, uint8 (B, H, W, 3), and their masks, in batches of one size."""

        def size(pair: tuple[_Item, _Pair]) -> tuple[int, ...]:
            return pair[1][0].shape

        chunks = (list(items[start : start + _IMAGES]) for start in range(0, len(items), _IMAGES))
        for chunk, loaded in read_ahead(chunks, lambda item: self.cache.read(item, decode), self.workers):
            for shape, group in itertools.groupby(zip(chunk, loaded, strict=True), size):
                pairs, step = list(group), max(1, _PIXELS // (shape[0] * shape[1]))
                for start in range(0, len(pairs), step):
                    part = pairs[start : start + step]
                    images = np.stack([image for _, (image, _) in part])
                    yield [item for item, _ in part], images, [mask for _, (_, mask) in part]

    def _count(self, logits: Tensor, kinds: Tensor, of_queries: bool) -> np.ndarray:
        """Count the pixels of an image by level of the score, int64 (2, SCORE_LEVELS)."""
        if self.score == "rba":
            return count_scores(rejected_by_all(logits, of_queries).flatten()[None], kinds.flatten(), ["rba"])[0]
        return np.asarray(measure_ood(logits, kinds)[0].levels[SCORES.index(self.score)])


class Validation(Callback):
    """Validates every `every` optimiser steps and at the last, and stops when clear mIoU has dropped too far.

    The weights that are kept are those with the highest AUPR of objects among the validations within `max_drop`;
    without a set of objects, those of the last one within it. Averaged weights are validated where there are any.

    Args:
        folder: of the run; gets `validation.json` and `kept.pt`.
        data: what is validated on.
        every: optimiser steps.
        max_drop: of mIoU, a fraction. A resumed run may have another one.

    Attributes:
        rows: all validations.
        kept: the validation of the weights in `kept.pt`, or None if no weights are within the drop.
    """

    def __init__(self, folder: Path, data: ValidationSet, every: int, max_drop: float) -> None:
        self.folder, self.data, self.every, self.max_drop = folder, data, every, max_drop
        self.rows: list[Validated] = []
        self.kept: Validated | None = None
        self._last = -1

    @property
    def stopped(self) -> bool:
        """Whether clear mIoU has dropped too far."""
        return bool(self.rows) and not self._is_within(self.rows[-1])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module)
        if trainer.strategy.broadcast(self.stopped):
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last < 0:  # all steps had been trained before: Lightning started no training, and left the device
            assert isinstance(pl_module, FinetuneModule)
            pl_module.segmenter.to(trainer.strategy.root_device)
            self._begin(trainer, pl_module.to(trainer.strategy.root_device))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last or not self._is_due(trainer):
            return
        self._last = trainer.global_step
        if trainer.is_global_zero:
            self._validate(trainer, pl_module)
        if trainer.strategy.broadcast(self.stopped):
            trainer.should_stop = True

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the mIoU before the training, or read the validations of the run so far."""
        step = self._last = trainer.global_step
        path = self.folder / RECORD
        if step:
            rows = read_json(path, list[Validated]) if path.exists() else []
            # A run may have been validated after its last checkpoint.
            self.rows = [row for row in rows if row["step"] <= step]
            if not self.rows:
                raise GenValError(f"{path} is missing or empty: the mIoU before the training is unknown. Start again.")
            if trainer.is_global_zero:
                self._resume(trainer, module)
        elif trainer.is_global_zero:
            self.rows = [self._measure(module, 0)]
            self._write()

    def _resume(self, trainer: Trainer, module: LightningModule) -> None:
        """Find which weights are kept, and do what is left of the validation at this step."""
        path, last, step = self.folder / WEIGHTS, self.rows[-1], trainer.global_step
        if path.exists():
            of_kept = torch.load(path, map_location="cpu", weights_only=True)["step"]
            within = [row for row in self.rows[1:] if row["step"] == of_kept and self._is_within(row)]
            self.kept = within[0] if within else None
        # A checkpoint is written before the validation of its step, in which the run may have been killed.
        if last["step"] < step and self._is_due(trainer):
            self._validate(trainer, module)
        elif last["step"] == step and self.kept is not last:
            self._keep_if_best(last, module)  # the drop that is allowed may be larger than before

    def _is_due(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps

    def _validate(self, trainer: Trainer, module: LightningModule) -> None:
        row = self._measure(module, trainer.global_step)
        self.rows.append(row)
        self._keep_if_best(row, module)
        self._write()
        for logger in trainer.loggers:
            logger.log_metrics(dict(logged(row)), row["step"])

    def _keep_if_best(self, row: Validated, module: LightningModule) -> None:
        assert isinstance(module, FinetuneModule)
        if self._is_within(row) and (
            self.kept is None or not self.data.objects or (row["aupr_object"] or 0) >= (self.kept["aupr_object"] or 0)
        ):
            with replace_file(self.folder / WEIGHTS) as temporary:
                torch.save({"step": row["step"], "state_dict": module.trained.state_dict()}, temporary)
            self.kept = row

    def _is_within(self, row: Validated) -> bool:
        return row["miou"] >= self.rows[0]["miou"] - self.max_drop

    def _measure(self, module: LightningModule, step: int) -> Validated:
        assert isinstance(module, FinetuneModule)
        segmenter, network = module.segmenter, module.network
        segmenter.network = module.trained
        segmenter.eval()
        try:
            return self.data.measure(segmenter, module.device, step)
        finally:
            segmenter.network = network
            module.train()

    def _write(self) -> None:
        write_json(self.folder / RECORD, self.rows)
