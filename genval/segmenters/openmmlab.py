"""mmsegmentation models: a config, its checkpoint, and the config's own test mode.

mmsegmentation 1.2.2 with mmcv-lite 2.1.0 is used, not the maintained onedl-mmsegmentation 1.4.2 of the same import
names: the former are plain wheels, while the latter's mmcv is a source package that compiles or not depending on
whether torch is visible to its build. The price is one stand-in module (`import_mmseg`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genval.kernels.availability import can_fuse
from genval.runtime.errors import GenValError
from genval.runtime.imports import hidden, placeholders, without_garbage_collection
from genval.runtime.paths import resolve
from genval.segmenters.base import Segmenter
from genval.segmenters.checkpoints import WithoutRandomValues, load_strictly, read_state_dict
from genval.segmenters.class_map import ClassMap, check_outputs, map_by_name
from genval.segmenters.mmseg_config import load_config, registered_only
from genval.segmenters.trust import require_trusted_module

_INSTALL = (
    "Install what they need, then them: pip install -r requirements/base.txt; "
    "pip install --no-deps -r requirements/openmmlab.txt"
)
_INSTALL_MMPRETRAIN = (
    "pip install --no-deps mmpretrain==1.2.0 model-index==0.1.11 ordered-set==4.1.0 mat4py==0.6.0 einops Markdown"
)


# What mmsegmentation imports for training, and for networks that read text, which are not `EncoderDecoder`s.
_UNUSED = (
    "mmengine.runner._flexible_runner",
    "mmseg.utils.tokenizer",
    "torch.distributed.fsdp",
    "torch.distributed.fsdp.api",
    "torch.distributed.fsdp.fully_sharded_data_parallel",
    "scipy.interpolate",
    "scipy.ndimage",
    "scipy.optimize",
)

# The kernel that averages windows is compiled for the number of windows that overlap.
_MOST_OVERLAP = 32

# Modules of mmpretrain for other tasks than segmentation. They import torchvision and torch's compiler.
_UNUSED_OF_MMPRETRAIN = (
    "mmpretrain.evaluation",
    "mmpretrain.evaluation.metrics",
    "mmpretrain.models.utils.box_utils",
)

# Swin's and CCNet's attention: both add a mask that is float32 whatever the weights are.
_MIXING = ("WindowMSA", "CrissCrossAttention")


class _MissingOperations(types.ModuleType):
    """Stands in for mmcv's compiled operations: every name is a function that raises when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise GenValError(
                f"This model needs mmcv's compiled operation {name}, which mmcv-lite does not have: install mmcv 2.1.0 "
                "instead."
            )

        return missing


def import_mmseg() -> None:
    """Import mmsegmentation's models, with a stand-in for `mmcv._ext` where mmcv has no compiled operations.

    mmseg imports `mmcv.ops`, and that the compiled module; none of the zoo's 42 models calls into it.

    Raises:
        GenValError: mmsegmentation, mmcv or mmengine is not installed or does not fit.
    """
    try:
        if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
            module = _MissingOperations("mmcv._ext")
            module.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
            sys.modules["mmcv._ext"] = module
        with warnings.catch_warnings(), without_garbage_collection():
            warnings.simplefilter("ignore")
            # They import transformers, and with it peft, for training alone. `_build` imports timm where it is needed.
            with hidden("transformers", "torch.distributed.optim"):
                import mmengine.optim  # noqa: F401
            with hidden("timm"), placeholders(*_UNUSED):
                import mmseg.models  # noqa: F401
        # A warning about training sizes that mmseg repeats for each image size and layer.
        warnings.filterwarnings("ignore", message="When align_corners=True", module="mmseg")
    except ImportError as error:
        raise GenValError(f"mmsegmentation, mmcv-lite and mmengine are needed ({error}). {_INSTALL}") from error


def read_config(config: str | Path, overrides: Mapping[str, Any] | None = None, trust_code: bool = True) -> Any:
    """Read an mmsegmentation config: the user's file, else one that ships with the package.

    Args:
        config: a path (relative: from the repository's root), or a shipped config's, e.g. `pspnet/pspnet_r18-...py`.
        overrides: dotted key -> value, e.g. `{"model.backbone.patch_bias": True}`; a dict with `_delete_: True`
            replaces the whole entry.
        trust_code: whether a Python config from outside the project and the installed packages may run (see
            `genval.segmenters.trust`). A data file (.yaml, .json) never runs code.

    Returns:
        The mmengine `Config`; nothing in its model is fetched on building (`pretrained` and the like are removed),
        and synchronised batch norm becomes plain batch norm, which is equal in evaluation and runs on every device.

    Raises:
        GenValError: no such config, or it cannot be read, is not trusted, has no model, or needs a module that is not
            installed.
    """
    return _read(config, overrides, trust_code)[0]


def _read(config: str | Path, overrides: Mapping[str, Any] | None, trust_code: bool) -> tuple[Any, bool]:
    """The config of `read_config`, and whether a file of its chain is a data file."""
    import_mmseg()
    path = _find_config(config)
    try:
        content, is_data = load_config(path, trust_code)
        content.merge_from_dict(dict(overrides or {}))
    except GenValError:
        raise
    except (Exception, SystemExit) as error:  # a config is a Python file: anything may go wrong in it
        raise GenValError(f"Cannot read the config {path}: {type(error).__name__}: {error}.") from error
    if not isinstance(content.get("model"), Mapping):
        raise GenValError(f"The config {path} has no `model = dict(...)`. Give a config of an mmsegmentation model.")
    modules = content.get("custom_imports", {}).get("imports", [])
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            require_trusted_module(module, f"The config {path}", trust_code)
            unused = _UNUSED_OF_MMPRETRAIN if module.startswith("mmpretrain.models") else ()
            with placeholders(*unused), without_garbage_collection():
                importlib.import_module(module)
        except ImportError as error:
            command = f": {_INSTALL_MMPRETRAIN}" if module.startswith("mmpretrain") else ", or add it to PYTHONPATH."
            raise GenValError(f"The config {path} needs the module {module} ({error}). Install it{command}") from error
        except (Exception, SystemExit) as error:  # likewise
            reason = f"{type(error).__name__}: {error}"
            raise GenValError(f"The config {path} imports the module {module}, which fails: {reason}.") from error
    _make_self_contained(content.model)
    return content, is_data


def build_network(config: str | Path, overrides: Mapping[str, Any] | None = None, trust_code: bool = True) -> nn.Module:
    """Build the network of a config (see `read_config`) with random weights, in evaluation mode on the CPU.

    Raises:
        GenValError: as `read_config`, or mmsegmentation cannot build the model.
    """
    content, is_data = _read(config, overrides, trust_code)
    return _build(content, is_data, config)


def _build(content: Any, is_data: bool, config: str | Path) -> nn.Module:
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    try:
        if "TIMMBackbone" in str(content.model):
            import timm
            from mmseg.models.backbones import timm_backbone

            timm_backbone.timm = timm
        restricted = registered_only() if is_data else contextlib.nullcontext()
        with DefaultScope.overwrite_default_scope("mmseg"), warnings.catch_warnings(), restricted:
            warnings.simplefilter("ignore")
            network: nn.Module = MODELS.build(content.model)
    except Exception as error:  # registries wrap whatever a constructor raises
        raise GenValError(f"Cannot build the model of {config}: {type(error).__name__}: {error}.") from error
    return network.eval()


class OpenMMLabSegmenter(Segmenter):
    """An mmsegmentation `EncoderDecoder` in its config's own test mode, images at their native size.

    `whole` is one pass; `slide` is a window over the image with the logits averaged where windows overlap: the
    arithmetic of mmseg 1.2.2, `EncoderDecoder.slide_inference`, with several windows per pass. The config's test
    pipeline (a resize, mostly to the data set's own size) is not applied.

    LRASPP heads pool over a fixed window and fail on inputs that are smaller: those are padded. The same is done where
    the config's data preprocessor asks for a multiple of `size_divisor` at test time.

    Args:
        name: as given by the user.
        network: from `build_network`.
        precision: see `Segmenter`.
        class_map: see `Segmenter`.

    Raises:
        GenValError: it is not an `EncoderDecoder`, the test mode is unknown, or the head does not have 19 classes and
            there is no class map that fits.
    """

    network: Any  # an mmseg EncoderDecoder
    windows_per_pass = 8
    """Windows of the sliding window in one forward pass: 1024x2048 in windows of 769x769 gives exactly 8."""

    def __init__(self, name: str, network: Any, precision: str = "32-true", class_map: ClassMap | None = None) -> None:
        from mmseg.models.segmentors import EncoderDecoder

        if not isinstance(network, EncoderDecoder):
            raise GenValError(f"{name}: expected an mmseg EncoderDecoder, found {type(network).__name__}.")
        preprocessor = network.data_preprocessor
        mean, std = getattr(preprocessor, "mean", None), getattr(preprocessor, "std", None)
        super().__init__(
            name,
            network,
            [0.0] * 3 if mean is None else mean.flatten().tolist(),
            [1.0] * 3 if std is None else std.flatten().tolist(),
            precision,
            class_map,
        )
        self.align_corners = network.align_corners
        # OpenMMLab's loader gives BGR: a model whose preprocessor does not convert it was trained on BGR.
        self.reads_bgr = not getattr(preprocessor, "channel_conversion", False)
        self.test_mode = network.test_cfg.get("mode", "whole")
        if self.test_mode not in ("whole", "slide"):
            raise GenValError(f"{name}: test mode 'whole' or 'slide' expected, found {self.test_mode!r} in the config.")
        check_outputs(name, network.out_channels, class_map)
        self.size_divisor = (getattr(preprocessor, "test_cfg", None) or {}).get("size_divisor", 1)
        self.minimum_size = _minimum_size(network)
        self._run_windows: Callable[[Tensor], Tensor] | None = None
        dtype = next(network.parameters()).dtype
        for module in network.modules():
            if dtype != torch.float32 and type(module).__name__ in _MIXING:
                module.forward = _casting(module.forward, dtype)

    def run(self, pixels: Tensor) -> Tensor:
        shape = pixels.shape[-2:]
        meta = {"ori_shape": shape, "img_shape": shape, "pad_shape": shape}
        logits: Tensor = self.network.encode_decode(pixels, [meta] * len(pixels))
        return logits

    def _run_to_head(self, pixels: Tensor) -> Tensor:
        """As `run`, but the logits have the size that the decode head gives."""
        logits: Tensor = self.network.decode_head.forward(self.network.extract_feat(pixels))
        return logits

    def fuse(self) -> None:
        has_cudnn = torch.version.cuda is not None and torch.backends.cudnn.is_available()
        if not (self.mean.is_cuda and self.precision.endswith("-true") and has_cudnn):
            return
        from genval.segmenters.fused import FusedLayers, RecordedPass

        self.use_channels_last()
        layers = FusedLayers(self.network)
        self.run = functools.partial(layers, self.run)  # type: ignore[method-assign]
        if can_fuse(self.mean.device) and _only_resizes(self.network):
            self._run_windows = functools.partial(layers, self._run_to_head)
        inner = None
        if self.test_mode == "slide":
            # Images of different sizes have windows of the same size.
            inner = RecordedPass(self.network, self._run_windows or self.run)
            if self._run_windows is None:
                self.run = inner  # type: ignore[method-assign]
            else:
                self._run_windows = inner
        self.infer_images = RecordedPass(self.network, self.infer_images, inner)  # type: ignore[method-assign, assignment]

    def infer(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        padded = self.pad(pixels)
        windows = self._windows(padded)
        if self._run_windows is not None and not torch.is_grad_enabled() and windows.overlap() <= _MOST_OVERLAP:
            logits = self._join(padded, windows, self._run_windows)
        elif self.test_mode == "whole":
            return super().infer(pixels)
        else:
            logits = self._slide(padded, windows)
        return logits[..., :height, :width]

    def _join(self, pixels: Tensor, windows: _Windows, run: Callable[[Tensor], Tensor]) -> Tensor:
        """As `_slide`, on a GPU; the logits of windows are resized and averaged by one kernel."""
        from genval.kernels.maps import average_windows

        number, done = len(windows.corners()) * len(pixels), 0
        for _, group in windows.groups(pixels):
            found = run(group)
            if not done:
                # Float32, as a recorded pass gives it. For another dtype, the kernel could round in another way.
                shape = (number, *found.shape[1:])
                logits = torch.empty(shape, dtype=torch.float32, device=found.device, memory_format=torch.channels_last)
            logits[done : done + len(group)] = found
            done += len(group)
        height, width = pixels.shape[-2:]
        return average_windows(
            logits, (height, width), windows.size, windows.starts, windows.stride, self.align_corners
        )

    def _slide(self, pixels: Tensor, windows: _Windows) -> Tensor:
        (height, width), images = windows.size, len(pixels)
        total = pixels.new_zeros((images, self.network.out_channels, *pixels.shape[-2:]), dtype=torch.float32)
        count = pixels.new_zeros(pixels.shape[-2:], dtype=torch.float32)
        for corners, group in windows.groups(pixels):
            for (y, x), logits in zip(corners, self.run(group).split(images), strict=True):
                total[..., y : y + height, x : x + width] += logits
                count[y : y + height, x : x + width] += 1
        return total.div_(count)

    def _windows(self, pixels: Tensor) -> _Windows:
        size: tuple[int, int] = tuple(pixels.shape[-2:])  # type: ignore[assignment]
        if self.test_mode == "whole":
            return _Windows(size, ([0], [0]), size, 1)
        stride, most = self.network.test_cfg.stride, self.network.test_cfg.crop_size
        crop = (min(most[0], size[0]), min(most[1], size[1]))
        starts = (_window_starts(size[0], crop[0], stride[0]), _window_starts(size[1], crop[1], stride[1]))
        return _Windows(crop, starts, stride, max(1, self.windows_per_pass // len(pixels)))


@dataclass(frozen=True)
class _Windows:
    """The windows of images."""

    size: tuple[int, int]  # height and width
    starts: tuple[list[int], list[int]]  # the rows and the columns at which windows start
    stride: tuple[int, int]  # rows and columns from one window to the next
    most: int  # windows per pass

    def corners(self) -> list[tuple[int, int]]:
        """Return the first row and column of each window."""
        return list(itertools.product(*self.starts))

    def overlap(self) -> int:
        """Return how many windows may have a pixel in common, at most."""
        sides = zip(self.size, self.stride, self.starts, strict=True)
        return math.prod(min(len(starts), -(-size // stride) + 1) for size, stride, starts in sides)

    def groups(self, pixels: Tensor) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """Yield the corners of the windows of each pass, and their pixels: those of all images for the first window,
        then for the next one.
        """
        (height, width), every = self.size, self.corners()
        number = _group_size(len(every), self.most)
        for start in range(0, len(every), number):
            corners = every[start : start + number]
            yield corners, torch.cat([pixels[..., y : y + height, x : x + width] for y, x in corners])


def _only_resizes(network: Any) -> bool:
    """Whether the logits of a network are those of its decode head, resized."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder

    head = type(network.decode_head)
    return (
        type(network).encode_decode is EncoderDecoder.encode_decode
        and issubclass(head, BaseDecodeHead)
        and head.predict is BaseDecodeHead.predict
        and head.predict_by_feat is BaseDecodeHead.predict_by_feat
    )


def _group_size(number: int, most: int) -> int:
    """Return the size of groups of at most `most` out of `number`: groups of one size, unless they are much smaller.

    A GPU's libraries prepare kernels for each size of a batch, which takes seconds.

    >>> _group_size(6, 4), _group_size(3, 2), _group_size(7, 4), _group_size(3, 8)
    (3, 1, 4, 3)
    """
    even = max(size for size in range(1, most + 1) if number % size == 0)
    return even if 2 * even >= min(most, number) else most


def load_openmmlab(
    name: str,
    config: str | Path,
    checkpoint: Path,
    device: torch.device,
    precision: str = "32-true",
    overrides: Mapping[str, Any] | None = None,
    class_map: ClassMap | None = None,
    trust_code: bool = False,
) -> OpenMMLabSegmenter:
    """Build a config's network and fill it, strictly, from a checkpoint (formats: `read_state_dict`).

    Raises:
        GenValError: as `read_config`, `build_network`, `read_state_dict`, `load_strictly`, `OpenMMLabSegmenter`.
    """
    state = read_state_dict(checkpoint, device)
    content, is_data = _read(config, overrides, trust_code)
    with WithoutRandomValues():
        network = _build(content, is_data, config)
    load_strictly(network, state, checkpoint, f"the config {config}")
    class_map = map_by_name(str(checkpoint), state.classes, class_map, getattr(network, "out_channels", None))
    segmenter = OpenMMLabSegmenter(name, network, precision, class_map)
    segmenter.definition = json.dumps(content.model.to_dict(), sort_keys=True, default=str)
    return segmenter


def _find_config(config: str | Path) -> Path:
    own = resolve(config)
    if own.is_file():
        return own
    import mmseg

    shipped = Path(mmseg.__path__[0]) / ".mim" / "configs" / config
    if shipped.is_file():
        return shipped
    raise GenValError(f"There is no config {own}, nor does mmsegmentation ship one at {config}.")


def _make_self_contained(node: Any) -> None:
    """Remove the entries that download weights, and replace SyncBN, everywhere below `node`."""
    if isinstance(node, dict):
        for name in ("pretrained", "checkpoint_path"):
            node.pop(name, None)
        if node.get("trust_remote_code"):
            raise GenValError("The config asks for trust_remote_code, which runs code of a hub. Remove that entry.")
        if isinstance(node.get("init_cfg"), dict) and node["init_cfg"].get("type") == "Pretrained":
            del node["init_cfg"]
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        for value in node.values():
            _make_self_contained(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _make_self_contained(value)


def _window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last is moved back to end with the image."""
    steps = max(length - crop + stride - 1, 0) // stride + 1
    return [min(step * stride, length - crop) for step in range(steps)]


def _casting(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """`forward` under autocast, which casts the two sides of each product to one dtype."""

    def cast(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(pixels.device.type, dtype):
            return forward(pixels, *args, **kwargs)

    return cast


def _minimum_size(network: Any) -> int:
    """The smallest input side in pixels: for LRASPP heads the pooling window times the stride of features, else 1."""
    from mmseg.models.decode_heads import LRASPPHead

    if not isinstance(network.decode_head, LRASPPHead):
        return 1
    probe = 512
    parameter = next(network.parameters())
    with torch.no_grad():
        features = network.extract_feat(parameter.new_zeros((1, 3, probe, probe)))
    stride = probe // features[-1].shape[-1]
    window: int = network.decode_head.image_pool[0].kernel_size
    return window * stride
