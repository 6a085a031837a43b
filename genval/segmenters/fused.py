"""Fused passes: forward passes of mmsegmentation networks in fewer and faster kernels, for inference on a GPU.

The plain pass is the network's own code. Both passes use the same weights, and their logits differ by rounding. A fused
pass computes the following faster:

- A convolution, the batch normalisation that follows, a residual sum and ReLU are one kernel of cuDNN. The factors of
  the normalisation are multiplied into a copy of the weights.
- Attention is one kernel, which does not write the attention weights. mmcv asks PyTorch for them and drops them.
- The layers of SegFormer, ConvNeXt and Swin keep their tokens in one memory layout.
- Bilinear resizing, depthwise convolution, adaptive pooling and layer normalisation have faster kernels than PyTorch's.
- The kernels of a pass are recorded as a CUDA graph, which the CPU starts with one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genval.kernels.availability import can_fuse
from genval.segmenters.fused_functions import FusedFunctions
from genval.segmenters.fused_layers import fused_methods

_MOST_RECORDS = 4


class FusedPass:
    """Runs a network's forward pass with the layers of `fused_layers` and the functions of `fused_functions`.

    Passes that need gradients, or hooks of the network's modules, are plain.

    Args:
        network: an mmsegmentation network in evaluation mode, channels-last, whose weights have one dtype. Weights that
            change later have no effect.
        run: the plain forward pass, from pixels (B, 3, H, W) to logits.
    """

    def __init__(self, network: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        self._run = run
        self._modules = list(network.modules())
        self._methods = list(fused_methods(network))
        self._functions = FusedFunctions()
        self._graph: _Graph | None = None
        self._records = 0
        self._last: Any = None

    def __call__(self, pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() or any(one._forward_hooks or one._forward_pre_hooks for one in self._modules):
            return self._run(pixels)
        key = (pixels.shape, pixels.stride(), pixels.dtype)
        if key != self._last:
            self._graph = None
        if self._graph is not None:
            return self._graph(pixels)
        logits = self._pass(pixels)
        # Recording takes the time of a few passes, which pays where many inputs of one size follow each other.
        if key == self._last and self._records < _MOST_RECORDS and can_fuse(pixels.device):
            self._graph = _Graph.record(self._pass, pixels, logits)
            self._records += 1
        self._last = key
        return logits

    def _pass(self, pixels: Tensor) -> Tensor:
        with contextlib.ExitStack() as stack:
            if can_fuse(pixels.device):
                stack.enter_context(self._functions)
            for layer, name, method in self._methods:
                previous = layer.__dict__.get(name)
                setattr(layer, name, method)
                stack.callback(*((delattr, layer, name) if previous is None else (setattr, layer, name, previous)))
            return self._run(pixels)


class _Graph:
    """A recorded pass for inputs of one shape."""

    def __init__(self, run: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
        with torch.inference_mode(False):  # a tensor of inference mode could not be overwritten outside of it
            self._input = torch.zeros_like(pixels)
        stream = torch.cuda.Stream(pixels.device)
        stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.cuda.stream(stream):
            run(self._input)
        torch.cuda.current_stream(pixels.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may load the next network meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = run(self._input)

    @classmethod
    def record(cls, run: Callable[[Tensor], Tensor], pixels: Tensor, logits: Tensor) -> _Graph | None:
        """Record a pass.

        Returns:
            None if the network waits for the GPU, if the graph does not give the same logits, or if less than a
            quarter of the memory would be free, because nothing else can use the memory of a graph.
        """
        try:
            with torch.cuda.device(pixels.device):
                graph = cls(run, pixels)
            free, total = torch.cuda.mem_get_info(pixels.device)
            if free >= total // 4 and torch.equal(graph(pixels), logits):
                return graph
        except RuntimeError:  # the network waits for the GPU, or the GPU's memory is full
            torch.cuda.synchronize(pixels.device)
        return None

    def __call__(self, pixels: Tensor) -> Tensor:
        self._input.copy_(pixels)
        self._graph.replay()
        return self._output.clone()  # the next pass overwrites it
