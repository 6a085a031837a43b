"""Fused passes: forward passes of mmsegmentation networks in fewer and faster kernels, for inference on a GPU.

The plain pass is the network's own code. Both passes use the same weights, and their logits differ by rounding. A fused
pass computes the following faster:

- A convolution, the batch normalisation that follows, a residual sum and ReLU are one kernel of cuDNN. The factors of
  the normalisation are multiplied into a copy of the weights.
- Attention is one kernel, which does not write the attention weights. mmcv asks PyTorch for them and drops them.
- The layers of SegFormer, ConvNeXt and Swin keep their tokens in one memory layout.
- Depthwise convolutions, bilinear resizing, adaptive pooling and layer normalisation have faster kernels than PyTorch's
  and cuDNN's.
- A map that is enlarged and then convolved is multiplied with the weights before it is enlarged.
- The logits of windows are resized and averaged by one kernel.

A recorded pass is a CUDA graph, which the CPU starts with one call. It also contains the preprocessing of the images
and the windows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genval.kernels.availability import can_fuse
from genval.segmenters.fused_functions import FusedFunctions
from genval.segmenters.fused_layers import fused_methods

_MOST_RECORDS = 4

Pass = Callable[[Tensor], Tensor]


class FusedLayers:
    """Runs passes of a network with the layers of `fused_layers` and the functions of `fused_functions`.

    Passes with gradients, and passes while a module of the network has hooks, are plain.

    Args:
        network: an mmsegmentation network in evaluation mode, channels-last, whose weights have one dtype. Weights that
            change later have no effect.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = list(network.modules())
        self._methods = list(fused_methods(network))
        self._functions = FusedFunctions()

    def __call__(self, run: Pass, pixels: Tensor) -> Tensor:
        """Call `run`, a plain pass from pixels (B, 3, H, W) to logits."""
        if _is_observed(self._modules):
            return run(pixels)
        with contextlib.ExitStack() as stack:
            if can_fuse(pixels.device):
                stack.enter_context(self._functions)
            for layer, name, method in self._methods:
                previous = layer.__dict__.get(name)
                setattr(layer, name, method)
                stack.callback(*((delattr, layer, name) if previous is None else (setattr, layer, name, previous)))
            return run(pixels)


class RecordedPass:
    """Records a pass as a CUDA graph when two inputs of one size follow each other. Other passes run as they are.

    Passes with gradients, and passes while a module of the network has hooks, are not recorded. A size for which
    recording fails is not tried again.

    Args:
        network: the network that the pass runs.
        run: the pass, from images or pixels (B, 3, H, W) to logits of any float dtype. This object returns the same
            values, as float32 or in the dtype of `run`.
        inner: a recorded pass that `run` calls. It has no graph while this pass has one.
    """

    def __init__(self, network: nn.Module, run: Pass, inner: RecordedPass | None = None) -> None:
        self._run, self._inner = run, inner
        self._modules = list(network.modules())
        self._graph: _Graph | None = None
        self._records = 0
        self._last: Any = None
        self._failed: set[Any] = set()
        self._is_off = False

    def __call__(self, pixels: Tensor) -> Tensor:
        if self._is_off or _is_observed(self._modules):
            return self._run(pixels)
        key = (pixels.shape, pixels.stride(), pixels.dtype)
        if key != self._last:
            self._graph = None
        if self._graph is not None:
            return self._graph(pixels)
        logits = self._run(pixels).float()
        # Recording takes the time of a few passes, which pays where many inputs of one size follow each other.
        may_record = key == self._last and key not in self._failed and self._records < _MOST_RECORDS
        if may_record and can_fuse(pixels.device):
            # The graph of a pass cannot be started while another pass is recorded.
            with self._inner.off() if self._inner is not None else contextlib.nullcontext():
                self._graph = _Graph.record(self._run, pixels, logits)
            self._records += 1
            if self._graph is None:
                self._failed.add(key)
        self._last = key
        return logits

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Free the memory of the graph, and neither use nor record a graph in the block."""
        self._graph, self._is_off = None, True
        try:
            yield
        finally:
            self._is_off = False


def _is_observed(modules: list[nn.Module]) -> bool:
    return torch.is_grad_enabled() or any(one._forward_hooks or one._forward_pre_hooks for one in modules)


class _Graph:
    """A recorded pass for inputs of one shape."""

    def __init__(self, run: Pass, images: Tensor) -> None:
        with torch.inference_mode(False):  # a tensor of inference mode could not be overwritten outside of it
            self._input = torch.zeros_like(images)
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            run(self._input)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may load the next network meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = run(self._input)

    @classmethod
    def record(cls, run: Pass, images: Tensor, logits: Tensor) -> _Graph | None:
        """Record a pass.

        Returns:
            None if the network waits for the GPU, if the graph does not give the same logits, or if less than a
            quarter of the memory would be free, because nothing else can use the memory of a graph.
        """
        try:
            with torch.cuda.device(images.device):
                graph = cls(run, images)
            free, total = torch.cuda.mem_get_info(images.device)
            if free >= total // 4 and torch.equal(graph(images), logits):
                return graph
        except RuntimeError:  # the network waits for the GPU, or the GPU's memory is full
            torch.cuda.synchronize(images.device)
        return None

    def __call__(self, images: Tensor) -> Tensor:
        self._input.copy_(images)
        self._graph.replay()
        return self._output.to(torch.float32, copy=True)  # the next pass overwrites it
