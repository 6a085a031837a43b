"""What the image processor of a transformers model does to an image: normalisation and resizing."""

from __future__ import annotations

import math
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
        size: the entry `size`, or None where images are not resized. Entries that change the resize belong to it too:
            `size_divisor` of MaskFormer's processors, `ensure_multiple_of` and `keep_aspect_ratio` of DPT's.
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
        divisor, multiple = size.pop("size_divisor", 1), size.pop("ensure_multiple_of", 1)
        keeps_aspect = size.pop("keep_aspect_ratio", False)
        if set(size) == {"height", "width"}:
            scales = size["height"] / height, size["width"] / width
            if keeps_aspect:  # DPT's processor scales as little as possible
                scales = (min(scales, key=lambda scale: abs(1 - scale)),) * 2
            fitted = scales[0] * height, scales[1] * width
        else:
            shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
            if shortest is None:
                raise GenValError(f"The processor's size {dict(self.size)} has an unknown form: give --input_size HxW.")
            fitted = _keep_aspect(height, width, shortest, longest)
        rounded = (round(length / multiple) * multiple for length in fitted)
        high, wide = (math.ceil(length / divisor) * divisor for length in rounded)
        return high, wide


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
        GenValError: pixels and normalisation have different scales, mean and std are not three numbers, or the
            processor has a step that is not supported.
        OSError, ValueError: the file is missing or damaged.
    """
    from transformers import AutoImageProcessor, AutoVideoProcessor, OneFormerImageProcessor

    if model_type == "oneformer":  # its processor fetches lists of classes when it is made
        values: dict[str, Any] = OneFormerImageProcessor.get_image_processor_dict(location, **options)[0]
    else:
        kind = AutoVideoProcessor if model_type == "videomt" else AutoImageProcessor
        values = kind.from_pretrained(location, **options).to_dict()
    for key in ("rescale_offset", "include_top"):  # of EfficientNet: subtract 1, and divide by std once more
        if values.get(key):
            raise GenValError(
                f'{location}: preprocessor_config.json has "{key}": true, a step that is not supported. Remove it and '
                "write the same normalisation with rescale_factor, image_mean and image_std."
            )
    # Not every processor has every step: MobileViT's, for one, does not normalise, and wants BGR.
    scale = values["rescale_factor"] if values.get("do_rescale") else 1.0
    mean, std = (values["image_mean"], values["image_std"]) if values.get("do_normalize") else ([0.0] * 3, [1.0] * 3)
    if not all(isinstance(numbers, (list, tuple)) and len(numbers) == 3 for numbers in (mean, std)):
        raise GenValError(
            f"{location}: preprocessor_config.json has image_mean {mean} and image_std {std}, expected three numbers "
            "each."
        )
    if scale == 1.0 and 0 < max(mean) <= 1 and max(std) <= 1:
        raise GenValError(
            f"{location}: preprocessor_config.json normalises pixels 0..255 with mean {mean} and std {std}, which are "
            'for pixels 0..1. Set "do_rescale": true and "rescale_factor": 0.00392156862745098.'
        )
    size = values.get("size") if values.get("do_resize") else None
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if size:
        # DPT's processor pads to size_divisor, and does not resize to it.
        changing = ("ensure_multiple_of", "keep_aspect_ratio") if "ensure_multiple_of" in values else ("size_divisor",)
        size = dict(size) | {
            key: values[key] for key in changing if values.get(key) is True or (values.get(key) or 0) > 1
        }
    return Processor(
        [value / scale for value in mean],
        [value / scale for value in std],
        bool(values.get("do_flip_channel_order")),
        size,
    )
