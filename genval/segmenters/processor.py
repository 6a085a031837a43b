"""What the image processor of a transformers model does to an image: normalisation and resizing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genval.runtime.errors import GenValError


@dataclass(frozen=True)
class Processor:
    """The steps of an image processor that decide about predictions.

    Attributes:
        mean, std: of the three channels, on the scale 0..255.
        reads_bgr: whether the channels are reversed.
        size: the entry `size`, or None where images are not resized.
    """

    mean: list[float]
    std: list[float]
    reads_bgr: bool
    size: Mapping[str, int] | None

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of an image after the processor's resize.

        Raises:
            GenValError: `size` has an unknown form.
        """
        if self.size is None:
            return height, width
        size = {key: value for key, value in self.size.items() if value}
        if set(size) == {"height", "width"}:
            return size["height"], size["width"]
        shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
        if shortest is None:
            raise GenValError(f"The processor's size {dict(self.size)} has an unknown form: give --input_size HxW.")
        return _keep_aspect(height, width, shortest, longest)


def _keep_aspect(height: int, width: int, shortest: int, longest: int | None) -> tuple[int, int]:
    """Resize the shorter side to `shortest`, or less where the longer one would exceed `longest`."""
    short, long = sorted((height, width))
    if longest is not None and long * shortest > longest * short:
        short, long = max(1, round(longest * short / long)), longest
    else:
        short, long = shortest, int(shortest * long / short)
    return (short, long) if height <= width else (long, short)


def read_processor(location: str, model_type: str, options: Mapping[str, Any]) -> Processor:
    """Read the processor of a folder or hub name.

    Raises:
        GenValError: pixels and normalisation have different scales.
        OSError, ValueError: the file is missing or damaged.
    """
    from transformers import AutoImageProcessor, AutoVideoProcessor, OneFormerImageProcessor

    if model_type == "oneformer":  # its processor fetches lists of classes when it is made
        values: dict[str, Any] = OneFormerImageProcessor.get_image_processor_dict(location, **options)[0]
    else:
        kind = AutoVideoProcessor if model_type == "videomt" else AutoImageProcessor
        values = kind.from_pretrained(location, **options).to_dict()
    # Not every processor has every step: MobileViT's, for one, does not normalise, and wants BGR.
    scale = values["rescale_factor"] if values.get("do_rescale") else 1.0
    mean, std = (values["image_mean"], values["image_std"]) if values.get("do_normalize") else ([0.0] * 3, [1.0] * 3)
    if scale == 1.0 and 0 < max(mean) <= 1 and max(std) <= 1:
        raise GenValError(
            f"{location}: preprocessor_config.json normalises pixels 0..255 with mean {mean} and std {std}, which are "
            'for pixels 0..1. Set "do_rescale": true and "rescale_factor": 0.00392156862745098.'
        )
    size = values.get("size") if values.get("do_resize") else None
    return Processor(
        [value / scale for value in mean],
        [value / scale for value in std],
        bool(values.get("do_flip_channel_order")),
        {"shortest_edge": size} if isinstance(size, int) else size,
    )
