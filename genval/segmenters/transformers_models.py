"""Semantic segmentation models of the transformers library (SegFormer, UPerNet, BEiT, DPT, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genval.datasets.labels import CLASSES
from genval.runtime.errors import GenValError
from genval.runtime.paths import find_below, resolve
from genval.segmenters.base import NUM_CLASSES, Segmenter


class TransformersSegmenter(Segmenter):
    """A transformers semantic segmentation model on images at their native size.

    Mean, deviation and scale are its image processor's; the processor's resize is not applied.
    """

    def infer(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=pixels).logits
        return logits


def load_transformers(
    name: str,
    source: str,
    device: torch.device,
    precision: str = "32-true",
    checkpoint_root: str | Path = "checkpoints",
) -> TransformersSegmenter:
    """Load a folder in the transformers format, or a name on the Hugging Face hub, for semantic segmentation.

    Args:
        name: as the user spelled it.
        source: a folder (relative: from the repository's root, or below `checkpoint_root`), else a name on the hub.
        device: where the model goes.
        precision: see `Segmenter`.
        checkpoint_root: where a folder is looked for too.

    Raises:
        GenValError: the files are missing or damaged, hold no semantic segmentation model, the weights do not match
            the config key by key, or the model does not have 19 labels in the order of the trainIds.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
    from transformers.utils import logging

    logging.disable_progress_bar()  # a stage has one bar, and this would be another
    folder = resolve(source) if resolve(source).is_dir() else find_below(checkpoint_root, source)
    location = str(folder) if folder else source
    try:
        config = AutoConfig.from_pretrained(location)
        processor = AutoImageProcessor.from_pretrained(location)
        if config.num_labels == NUM_CLASSES:
            network, report = AutoModelForSemanticSegmentation.from_pretrained(
                location, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # OSError for what is missing, ValueError for what does not fit, and safetensors' own
        raise GenValError(
            f"Cannot load a semantic segmentation model from {location}: {str(error).partition(chr(10))[0]} "
            "Expected config.json, model.safetensors and preprocessor_config.json in a folder, or a name on the hub."
        ) from error
    if config.num_labels != NUM_CLASSES:
        raise GenValError(f"{location} has {config.num_labels} labels, expected {NUM_CLASSES} (Cityscapes trainIds).")
    _check_label_order(location, config.id2label)
    problems = [f"{kind.removesuffix('_keys')}: {_shorten(keys)}" for kind, keys in report.items() if keys]
    if problems:
        raise GenValError(f"The weights in {location} do not fit its config.json: {'; '.join(problems)}.")
    mean, std = _normalisation(processor)
    segmenter = TransformersSegmenter(name, network.to(device), mean, std, precision)
    segmenter.reads_bgr = bool(getattr(processor, "do_flip_channel_order", False))  # MobileViT
    return segmenter


def _check_label_order(location: str, id2label: dict[int, str]) -> None:
    """Refuse Cityscapes' own classes in another order; names that are not Cityscapes' say nothing about the order."""
    names = tuple(id2label[index].lower().replace("_", " ").replace("-", " ") for index in range(NUM_CLASSES))
    if names != CLASSES and sorted(names) == sorted(CLASSES):
        raise GenValError(f"{location} has the Cityscapes classes in another order than the trainIds: {names}.")


def _normalisation(processor: Any) -> tuple[list[float], list[float]]:
    """A processor's (x * rescale - mean) / std as the mean and deviation on the scale 0..255."""
    # Not every processor has every step: MobileViT's, for one, does not normalise.
    scale = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    normalises = getattr(processor, "do_normalize", False)
    mean, std = (processor.image_mean, processor.image_std) if normalises else ([0.0] * 3, [1.0] * 3)
    return [value / scale for value in mean], [value / scale for value in std]


def _shorten(keys: Any) -> str:
    names = sorted(str(key) for key in keys)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
