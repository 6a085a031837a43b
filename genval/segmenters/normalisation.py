"""What `FILE.json` says about a network's file: the normalisation of its input, and the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genval.runtime.errors import GenValError
from genval.runtime.files import parse_json, read_json
from genval.runtime.messages import print_once
from genval.segmenters.base import IMAGENET_MEAN, IMAGENET_STD
from genval.segmenters.class_names import as_names, find_names

_FORM = '{"mean": [r, g, b], "std": [r, g, b], "scale": 255, "channels": "rgb", "classes": ["road", ...]}'
_KEYS = ("mean", "std", "scale", "channels", "classes")
_LARGEST_STD = 512


@dataclass(frozen=True)
class Normalisation:
    """(pixel - mean) / std of each channel."""

    mean: tuple[float, ...] = IMAGENET_MEAN  # on the scale 0..255, in the order of the network's channels
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "rgb"  # or bgr
    classes: tuple[str, ...] | None = None  # names in the order of the outputs; None: not stated


def read_normalisation(
    file: Path, embedded: Mapping[str, str] | None = None, takes_bytes: bool = False
) -> Normalisation:
    """Read `{file}.json`, else the values embedded in the file; else the normalisation is ImageNet's.

    The keys, all of which are optional, are `mean` and `std` (both or neither), `scale` (1 or 255: the scale of the
    pixels that mean and std are for; without it, numbers of at most 1 are on the scale 0..1), `channels` and `classes`.
    What follows is printed once.

    Args:
        file: the network's file, e.g. `model.onnx`: `model.onnx.json` is looked for, and then `model.json`.
        embedded: the same keys with values as JSON text, from the file's own metadata; other keys are ignored.
        takes_bytes: the network takes uint8 pixels, which are not normalised.

    Raises:
        GenValError: the JSON has other keys or values than expected.
    """
    sidecar = find_sidecar(file)
    if sidecar is not None:
        values, source = read_json(sidecar), str(sidecar)
        if not isinstance(values, dict):
            unknown = type(values).__name__
        else:
            unknown = ", ".join(sorted(values.keys() - set(_KEYS)))
        if unknown:
            raise GenValError(
                f"{source}: expected {_FORM} or some of it, found {unknown}. It is read because it lies beside "
                f"{file.name}: rename it if it does not belong to the network."
            )
        names = as_names(values.get("classes"))
        if names is None and "classes" in values:
            raise GenValError(f"{source}: classes must be a list of names, found {values['classes']!r}.")
    else:
        given = embedded or {}
        values, source = {key: _parse(given[key]) for key in _KEYS[:-1] if key in given}, f"the metadata of {file}"
        names = find_names(given)
    channels = values.get("channels", "rgb")
    if not isinstance(channels, str) or channels.lower() not in ("rgb", "bgr"):
        raise GenValError(f'{source}: channels must be "rgb" or "bgr", found {channels!r}.')
    channels = channels.lower()
    if takes_bytes:
        if "mean" in values or "std" in values:
            raise GenValError(f"{source}: {file.name} takes uint8 pixels, which are not normalised. Remove mean, std.")
        print_once(f"{file.name}: {channels.upper()} pixels 0..255 (uint8 input)")
        return Normalisation((0.0,) * 3, (1.0,) * 3, channels, names)
    if not values.keys() & {"mean", "std", "scale"}:
        normalisation = Normalisation(channels=channels, classes=names)
        origin = f"ImageNet's: {file.name}.json would give others"
    else:
        mean, std, scale = _on_bytes(values, source)
        normalisation = Normalisation(mean, std, channels, names)
        origin = f"{source}, given on the scale 0..{scale}"
    shown = ", ".join(
        f"{key} {' '.join(f'{value:g}' for value in getattr(normalisation, key))}" for key in ("mean", "std")
    )
    print_once(f"{file.name}: {channels.upper()} pixels 0..255 with {shown} ({origin})")
    return normalisation


def find_sidecar(file: Path) -> Path | None:
    """Return `{file}.json`, else `{stem}.json` beside the file, if it is one of a network's own."""
    whole, short = file.with_name(f"{file.name}.json"), file.with_suffix(".json")
    if whole.is_file():
        if short.is_file():
            print_once(f"{short} is not read: {whole} is")
        return whole
    return short if short.is_file() else None


def _on_bytes(values: Mapping[str, Any], source: str) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return mean and deviation on the scale 0..255, and the scale on which they were given."""
    if not {"mean", "std"} <= values.keys():
        raise GenValError(f"{source}: expected both mean and std, found {', '.join(values)}.")
    given: dict[str, list[float]] = {}
    for key, largest in (("mean", 255), ("std", _LARGEST_STD)):
        numbers = values[key]
        if not (isinstance(numbers, list) and len(numbers) == 3 and all(map(_is_number, numbers))):
            raise GenValError(f"{source}: {key} must be three numbers, found {numbers!r}.")
        # Also false for NaN.
        if not all(0 <= number <= largest for number in numbers) or (key == "std" and min(numbers) <= 0):
            wanted = "0..255" if key == "mean" else f"above 0 and at most {_LARGEST_STD}"
            raise GenValError(f"{source}: {key} must be {wanted}, found {numbers}.")
        given[key] = [float(number) for number in numbers]
    mean, std = given["mean"], given["std"]
    scale = values.get("scale")
    if scale is not None and (isinstance(scale, bool) or scale not in (1, 255)):
        raise GenValError(f"{source}: scale must be 1 (pixels 0..1) or 255 (pixels 0..255), found {scale!r}.")
    if scale is None:
        if not any(mean) and max(std) == min(std) == 1:
            raise GenValError(
                f'{source}: mean 0 and std 1 fit pixels 0..1 and pixels 0..255. Add "scale": 1 or "scale": 255.'
            )
        scale = 1 if max(*mean, *std) <= 1 else 255
    found = f"mean {mean} and std {std} are not on the scale 0..{scale}"
    if scale == 1 and max(*mean, *std) > 1:
        raise GenValError(f"{source}: {found}.")
    if scale == 255 and (min(std) < 1 or any(0 < value < 1 for value in mean)):
        raise GenValError(
            f"{source}: {found}: give both for pixels 0..1, such as mean 0.485 and std 0.229, or both for 0..255, such "
            "as 123.675 and 58.395."
        )
    factor = 255 // scale
    return tuple(factor * value for value in mean), tuple(factor * value for value in std), int(scale)


def _parse(text: str) -> Any:
    try:
        return parse_json(text, "metadata")
    except GenValError:  # a bare word
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
