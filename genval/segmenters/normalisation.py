"""The normalisation of a network's input, for file formats that do not contain it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genval.runtime.errors import GenValError
from genval.runtime.files import parse_json, read_json
from genval.segmenters.base import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Normalisation:
    """(pixel - mean) / std of each channel."""

    mean: tuple[float, ...] = IMAGENET_MEAN  # on the scale 0..255, in the order of the network's channels
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "rgb"  # or bgr


def read_normalisation(file: Path, embedded: Mapping[str, str] | None = None) -> Normalisation:
    """The normalisation in `{file}.json`, else the one embedded in the file, else ImageNet's.

    The keys are those of `Normalisation`, all of which are optional.

    Args:
        file: the network's file, e.g. `model.onnx`: `model.onnx.json` is looked for.
        embedded: the same keys with values as JSON text, from the file's own metadata; other keys are ignored.

    Raises:
        GenValError: the JSON has other keys or values than expected.
    """
    sidecar = file.with_name(f"{file.name}.json")
    if sidecar.is_file():
        values, source = read_json(sidecar), str(sidecar)
    else:
        found = {key: text for key, text in (embedded or {}).items() if key in Normalisation.__dataclass_fields__}
        values, source = {key: _parse(text) for key, text in found.items()}, f"the metadata of {file}"
    if not isinstance(values, dict) or not values.keys() <= Normalisation.__dataclass_fields__.keys():
        raise GenValError(
            f'{source}: expected {{"mean": [r, g, b], "std": [r, g, b], "channels": "rgb"}} or some of it.'
        )
    for key in ("mean", "std"):
        if key in values:
            numbers = values[key]
            if not (isinstance(numbers, list) and len(numbers) == 3 and all(map(_is_number, numbers))):
                raise GenValError(f"{source}: {key} must be three numbers on the scale 0..255, found {numbers!r}.")
            values[key] = tuple(map(float, numbers))
    if 0.0 in values.get("std", ()) or values.get("channels", "rgb") not in ("rgb", "bgr"):
        raise GenValError(f'{source}: std must not be 0, and channels must be "rgb" or "bgr"; found {values}.')
    return Normalisation(**values)


def _parse(text: str) -> Any:
    try:
        return parse_json(text, "metadata")
    except GenValError:  # a bare word
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
