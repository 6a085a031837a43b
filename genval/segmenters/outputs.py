"""Checks of what a network gives: one logit for each class and pixel, not probabilities and not predicted classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from genval.runtime.errors import GenValError
from genval.runtime.messages import first_words, print_once
from genval.segmenters.class_map import NUM_CLASSES, ClassMap, check_outputs

_KEYS = ("out", "logits")
_TOLERANCE = 0.1
"""Relative difference between the sums of probabilities of two pixels."""
_REMEDY = (
    "a segmenter needs one logit for each of the 19 Cityscapes classes, in the order of the trainIds, or a --class_map"
)


@contextmanager
def named_failures(task: str) -> Iterator[None]:
    """Turn whatever foreign code raises, sys.exit included, into an error that starts with `task`.

    Errors of full memory are raised as they are.
    """
    try:
        yield
    except GenValError:
        raise
    except (Exception, SystemExit) as error:
        if "OutOfMemory" in type(error).__name__:
            raise
        raise GenValError(f"{task}: {type(error).__name__}: {first_words(error, 400)}") from error


def find_logits(name: str, output: Any, class_map: ClassMap | None) -> Any:
    """Find the logits in what a network gives: a tensor, or a sequence, mapping or record of several.

    Of a mapping or record it is `out`, else `logits`. Else it is the one output (B, C, h, w) whose number of classes
    fits; of several of one size the first, which is printed.

    Returns:
        The logits; where there are none, the first output, which `check_logits` refuses.

    Raises:
        GenValError: outputs of several sizes could be the logits.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        named = {str(key): value for key, value in output.items()}
    elif isinstance(output, (list, tuple)):
        fields = getattr(output, "_fields", range(len(output)))
        named = {str(key): value for key, value in zip(fields, output, strict=True)}
    else:
        named = {key: value for key in _KEYS if (value := getattr(output, key, None)) is not None}
    for key in _KEYS:
        if key in named:
            return find_logits(name, named[key], class_map)
    fitting = {key: value for key, value in named.items() if _could_be_logits(value, class_map)}
    if len({value.shape[-2:] for value in fitting.values()}) > 1:
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in fitting.items())
        raise GenValError(
            f"{name} gives several outputs that could be the logits: {found}. Export it with one output, or call one "
            "of them logits."
        )
    if len(fitting) > 1:
        print_once(f"{name}: the logits are its output {next(iter(fitting))}, the first of {', '.join(fitting)}")
    if fitting:
        return next(iter(fitting.values()))
    return next(iter(named.values()), None) if named else output


def _could_be_logits(value: Any, class_map: ClassMap | None) -> bool:
    if not (isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()):
        return False
    outputs = value.shape[1]
    return outputs == NUM_CLASSES if class_map is None else class_map.fault(outputs) is None


def check_logits(name: str, logits: Any, images: Tensor, class_map: ClassMap | None) -> None:
    """Check type, shape, dtype and device of logits.

    Args:
        name: the segmenter's.
        logits: expected are floating-point numbers (B, C, h, w) on the device of `images`.
        images: (B, 3, H, W).
        class_map: the segmenter's, for other classes than the 19.

    Raises:
        GenValError: the logits are something else.
    """
    expected = f"({len(images)}, {NUM_CLASSES if class_map is None else 'C'}, h, w)"
    if not isinstance(logits, Tensor):
        found = "None" if logits is None else f"{type(logits).__module__}.{type(logits).__name__}"
        raise GenValError(f"{name} gives {found}, expected logits: a torch tensor {expected}.")
    shape = tuple(logits.shape)
    height_width = tuple(images.shape[-2:])
    reason = ""
    if logits.layout != torch.strided or logits.is_quantized:
        reason = f"{logits.layout} {logits.dtype}: return logits.to_dense() or logits.dequantize()"
    elif logits.dtype == torch.bool or not (logits.is_floating_point() or logits.is_complex()):
        reason = f"{logits.dtype}, which are predicted classes: return the logits before argmax"
    elif logits.is_complex():
        reason = f"{logits.dtype}: return real numbers"
    elif logits.ndim == 3 or (logits.ndim == 4 and shape[1] == 1):
        reason = "which looks like predicted classes: return the logits before argmax"
    elif logits.ndim == 4 and 0 in shape:
        reason = "which is empty"
    elif logits.ndim == 4 and len(logits) == len(images) and shape[1] != NUM_CLASSES == shape[-1]:
        reason = "with the classes last: permute(0, 3, 1, 2)"
    elif logits.ndim == 4 and shape[-2:] == height_width[::-1] != height_width:
        reason = f"with height and width exchanged: the images are {height_width[0]}x{height_width[1]}"
    if reason or logits.ndim != 4 or len(logits) != len(images):
        raise GenValError(f"{name} gives {shape}, expected {expected}{f' ({reason})' if reason else ''}: {_REMEDY}.")
    if logits.device != images.device:
        raise GenValError(
            f"{name} gives logits on {logits.device}, expected {images.device}: return logits.to(device)."
        )
    check_outputs(name, logits.shape[1], class_map)


def check_values(name: str, logits: Tensor) -> None:
    """Refuse values that are no logits: probabilities of any scale, one-hot predictions, or one constant.

    Values that are not finite are left to the caller.

    Args:
        name: the segmenter's.
        logits: (B, C, h, w).

    Raises:
        GenValError: every value is within 0..1, or the classes of every pixel add up to one number, which some value
            comes near and none is far beyond, or there are only two values, or one.
    """
    values = logits.detach().float()
    low, high = (float(bound) for bound in values.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        return
    remedy = "Metrics of confidence need logits: export the network without its last activation (docs/own-models.md)"
    if low == high:
        raise GenValError(f"{name} gives the value {low:g} for every class and pixel: these are not logits.")
    highest = values == high
    if bool((highest.sum(1) == 1).all()) and bool((highest | (values == low)).all()):
        raise GenValError(f"{name} gives one-hot predictions ({low:g} and {high:g}), not logits. {remedy}.")
    sums = values.sum(1)
    least, most = (float(bound) for bound in sums.aminmax())
    is_constant = most - least <= _TOLERANCE * most  # rounding to 8 bits changes the sum
    is_within = low >= -most / 2 and high <= 1.5 * most  # bicubic resizing goes beyond 0..1
    is_usual = any(abs(most / scale - 1) <= _TOLERANCE for scale in (1, 100, 255))
    if is_constant and is_within and (is_usual or high >= most / 2):
        raise GenValError(
            f"{name} gives probabilities, not logits: the classes of each pixel add up to {most:.3g}, as after a "
            f"softmax. {remedy}."
        )
    if low >= 0 and high <= 1:
        raise GenValError(
            f"{name} gives values between {low:.3g} and {high:.3g}, as after a sigmoid, not logits. {remedy}."
        )
