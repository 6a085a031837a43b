"""Networks exported with their arithmetic in one file: ONNX and TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.runtime.errors import GenValError
from genval.segmenters.base import Segmenter
from genval.segmenters.class_map import ClassMap, map_by_name
from genval.segmenters.identity import hash_files, onnx_files
from genval.segmenters.normalisation import read_normalisation
from genval.segmenters.outputs import find_logits, named_failures

_ONNX_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxSegmenter(Segmenter):
    """An ONNX network run by onnxruntime, on the GPU where its GPU build is installed.

    Its one input is (B, 3, H, W): float pixels are normalised (see `read_normalisation`), uint8 pixels are used
    as given. Of several outputs see `outputs.find_logits`. A network exported for a fixed batch size gets
    that many images at a time. For a network exported for a fixed size, images are resized bilinearly to that size, and
    the logits back.

    Raises:
        GenValError: the file's input or output is of another kind, or onnxruntime cannot read it.
    """

    def __init__(self, name: str, file: Path, device: torch.device, class_map: ClassMap | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise GenValError(f"{name} needs onnxruntime ({error}): pip install onnxruntime") from error

        providers = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # onnxruntime has a dozen exceptions without a common base
            reason = str(error).partition("\n")[0]
            raise GenValError(f"{file} cannot be read as ONNX ({reason}).") from error
        inputs = session.get_inputs()
        shape, dtype = inputs[0].shape, _ONNX_TYPES.get(inputs[0].type)
        is_image = len(inputs) == 1 and len(shape) == 4 and (shape[1] == 3 or not isinstance(shape[1], int))
        if not is_image or dtype is None:
            found = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
            raise GenValError(f"{file}: expected one input (B, 3, H, W) of float, float16 or uint8, found {found}.")
        metadata = session.get_modelmeta().custom_metadata_map
        normalisation = read_normalisation(file, metadata, takes_bytes=dtype == np.uint8)
        class_map = map_by_name(name, normalisation.classes, class_map)
        super().__init__(name, nn.Identity(), normalisation.mean, normalisation.std, class_map=class_map)
        self.reads_bgr = normalisation.channels == "bgr"
        self.session, self.input, self.dtype = session, inputs[0].name, dtype
        self.outputs = [entry.name for entry in session.get_outputs()]
        self.batch = shape[0] if isinstance(shape[0], int) else None
        self.size = (shape[2], shape[3]) if isinstance(shape[2], int) and isinstance(shape[3], int) else None
        self.definition = hash_files(*onnx_files(file))

    def prepare(self, images: Tensor) -> Tensor:
        if self.dtype != np.uint8:
            return super().prepare(images)
        return images.flip(1) if self.reads_bgr else images

    def run(self, pixels: Tensor) -> Tensor:
        if self.size and tuple(pixels.shape[-2:]) != self.size:
            resized = F.interpolate(pixels.float(), self.size, mode="bilinear", align_corners=False, antialias=True)
            pixels = resized.round().to(pixels.dtype) if pixels.dtype == torch.uint8 else resized
        values = pixels.cpu().numpy().astype(self.dtype)
        step = self.batch or len(values)
        # An incomplete last batch is padded with its first image.
        parts = [values[start : start + step] for start in range(0, len(values), step)]
        parts = [np.concatenate([part, *[part[:1]] * (step - len(part))]) for part in parts]
        results = []
        for part in parts:
            with named_failures(f"{self.name} fails on pixels {tuple(part.shape)}"):
                found = self.session.run(None, {self.input: part})
            tensors = [_as_tensor(value) for value in found]
            named = tensors[0] if len(tensors) == 1 else dict(zip(self.outputs, tensors, strict=True))
            logits = find_logits(self.name, named, self.class_map)
            if not isinstance(logits, Tensor) or len(logits) != len(part):
                return logits  # refused by the caller
            results.append(logits)
        return torch.cat(results)[: len(values)].to(pixels.device)


class TorchScriptSegmenter(Segmenter):
    """A TorchScript network from normalised float pixels (see `read_normalisation`) to logits.

    Of several outputs see `outputs.find_logits`. TorchScript's own optimisation is off: it would compile the network
    again for new sizes of batches and images, and the first passes would round differently than later ones.
    """

    def run(self, pixels: Tensor) -> Tensor:
        try:
            with torch.jit.optimized_execution(False):
                output: Any = self.network(pixels)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            raise GenValError(f"{self.name} fails on pixels {tuple(pixels.shape)}: {reason}") from error
        return find_logits(self.name, output, self.class_map)


def load_onnx(
    name: str, file: Path, device: torch.device, precision: str = "32-true", class_map: ClassMap | None = None
) -> Segmenter:
    """Load an ONNX file (see `OnnxSegmenter`), which computes in its own precision: any but `32-true` is refused."""
    if precision != "32-true":
        raise GenValError(f"{name} runs in the precision of its file: give --precision 32-true, found {precision}.")
    return OnnxSegmenter(name, file, device, class_map).to(device)


def load_torchscript(
    name: str, file: Path, device: torch.device, precision: str = "32-true", class_map: ClassMap | None = None
) -> Segmenter:
    """Load a TorchScript file (see `TorchScriptSegmenter`).

    Its own casts would break if the weights were cast: a `true` precision means `mixed`, as for Python functions.

    Raises:
        GenValError: the file is not TorchScript.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.jit.load(file, map_location=device)
    except Exception as error:  # RuntimeError for what is no archive, others for damaged ones
        reason = str(error).partition("\n")[0]
        raise GenValError(f"{file} cannot be read as TorchScript ({reason}). Make it with torch.jit.save.") from error
    normalisation = read_normalisation(file)
    class_map = map_by_name(name, normalisation.classes, class_map)
    mixed = precision if precision == "32-true" else precision.replace("-true", "-mixed")
    segmenter = TorchScriptSegmenter(name, network, normalisation.mean, normalisation.std, mixed, class_map)
    segmenter.reads_bgr = normalisation.channels == "bgr"
    segmenter.definition = hash_files(file)
    return segmenter.to(device)


def _as_tensor(value: Any) -> Any:
    """Return an array as a tensor; other values, such as sequences and texts, as they are."""
    try:
        return torch.from_numpy(value)
    except TypeError:
        return value
