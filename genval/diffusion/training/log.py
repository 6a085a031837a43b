"""A log of images that a generator under training makes from fixed validation masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from genval.diffusion.pairs import FramedPair, Pair, load_framed
from genval.diffusion.sampling.generation import GenerationBatch, generate
from genval.diffusion.settings import SamplingConfig
from genval.metrics.confusion import confusion_matrix
from genval.metrics.segmentation import labelled_classes, mean_iou, plain
from genval.runtime.files import read_json, write_json, write_png
from genval.runtime.seeds import item_seed
from genval.segmenters.prediction import predict


class ImageLog(Callback):
    """Writes `step_{n}.png`: one row per pair, with the mask (if it has one), the generated and the real image.

    With a segmenter it also measures mask agreement: the mIoU of the segmenter's predictions on the generated images
    against the masks they were generated from. It is logged as `mask_agreement`. The ControlNet with the highest mask
    agreement is kept in `best/`, with `best/agreement.json`.

    Args:
        folder: folder of the run; images are written to its `image_log/`.
        pairs: validation pairs, or unlabelled images; their crops and noise are the same at every step.
        every: optimiser steps between image logs.
        sampling: how to sample.
        segmenter: (B, 3, H, W) uint8 RGB to logits (B, 19, H, W).
        save_dtype: dtype of the weights in `best/`, "fp32" or "fp16".
    """

    def __init__(
        self,
        folder: Path,
        pairs: Sequence[Pair],
        every: int,
        sampling: SamplingConfig,
        segmenter: torch.nn.Module | None = None,
        save_dtype: str = "fp32",
    ) -> None:
        self.folder = folder
        self.pairs = pairs
        self.every = every
        self.sampling = sampling
        self.segmenter = segmenter
        self.save_dtype = save_dtype
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._path(trainer.global_step).exists():
            self._last = trainer.global_step
        self._write_due(trainer, pl_module)  # an interrupted run ends before the image log of its last step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write_due(trainer, pl_module)

    def _path(self, step: int) -> Path:
        return self.folder / "image_log" / f"step_{step:06d}.png"

    def _write_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step > 0 and step % self.every == 0 and step != self._last and trainer.is_global_zero:
            self._last = step
            agreement = self.write(pl_module, step)
            if agreement is not None:
                for logger in trainer.loggers:
                    logger.log_metrics({"mask_agreement": agreement}, step)

    def write(self, module: Any, step: int) -> float | None:
        """Generate images with the module's network and write the image log of `step`; return the mask agreement."""
        config = module.config
        labels = module.labels
        framed = [
            load_framed(pair, config.height, config.width, 0.5, labels, config.image_resize) for pair in self.pairs
        ]
        generated = self._generate(module, framed)
        rows = [
            np.concatenate([*([labels.colours[one.mask]] if pair.mask else []), image, one.image], axis=1)
            for pair, one, image in zip(self.pairs, framed, generated, strict=True)
        ]
        write_png(self._path(step), np.concatenate(rows))
        if self.segmenter is None:
            return None
        target = labels.train_ids[np.stack([pair.mask for pair in framed])]
        agreement = plain(mask_agreement(self.segmenter.to(module.device), generated, target))
        if agreement is not None and agreement > self._best():
            module.write(self.folder / "best", self.save_dtype)
            write_json(self.folder / "best" / "agreement.json", {"step": step, "mask_agreement": agreement})
        return agreement

    def _generate(self, module: Any, framed: Sequence[FramedPair]) -> np.ndarray:
        """Generate images for the pairs' masks, RGB uint8 (B, H, W, 3), in batches of the training's size."""
        config = module.config
        base, controlnet = module.sampling_models()
        seeds = [item_seed(config.seed, f"image log {i}") for i in range(len(framed))]
        masks, captions = np.stack([one.mask for one in framed]), [pair.caption for pair in self.pairs]
        images = []
        # These shapes are rare: benchmarking convolution algorithms for them costs more time than it saves.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            for first in range(0, len(framed), config.batch_size):
                part = slice(first, first + config.batch_size)
                batch = GenerationBatch(masks[part], captions[part], [""] * len(captions[part]), seeds[part])
                images.append(generate(base, controlnet, batch, self.sampling).images)
        return np.concatenate(images)

    def _best(self) -> float:
        """Return the highest mask agreement of this run so far, also before it was resumed."""
        record = self.folder / "best" / "agreement.json"
        return float(read_json(record, _Agreement)["mask_agreement"]) if record.exists() else -1.0


class _Agreement(TypedDict):
    mask_agreement: float


def mask_agreement(segmenter: torch.nn.Module, images: np.ndarray, target: np.ndarray) -> float:
    """Return the mIoU, 0..1, of a segmenter's predictions on images, over the classes that occur in the masks.

    Args:
        segmenter: (B, 3, H, W) uint8 RGB to logits (B, 19, H, W), on its device.
        images: (B, H, W, 3) uint8 RGB.
        target: (B, H, W) uint8 trainIds of the masks; IGNORE pixels are not counted.
    """
    device = next((parameter.device for parameter in segmenter.parameters()), torch.device("cpu"))
    names = [f"image {i}" for i in range(len(images))]
    predictions = np.concatenate(
        [predict(segmenter, images[i : i + 1], names[i : i + 1], device) for i in range(len(images))]
    )
    matrix = confusion_matrix(target, predictions)
    return mean_iou(matrix, labelled_classes([matrix]))
