"""Load segmenters by name or specification."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.messages import print_once
from genval.runtime.paths import find_below, resolve
from genval.runtime.precision import check_precision
from genval.segmenters.base import Segmenter
from genval.segmenters.checkpoints import find_checkpoint, find_folder
from genval.segmenters.class_map import ClassMap, find_class_map
from genval.segmenters.identity import source_hash
from genval.segmenters.outputs import find_logits, named_failures
from genval.segmenters.recipe import find_recipe
from genval.segmenters.trust import require_trusted_module

_MODEL_ZOO = "https://github.com/open-mmlab/mmsegmentation/blob/v0.30.0/docs/en/model_zoo.md"


def list_segmenters() -> list[str]:
    """The names `load_segmenter` knows: the model zoo's 42, then the mini world's."""
    return [*path_dicts.ZOO, *path_dicts.MINI_SEGMENTERS]


def describe_segmenters(checkpoint_root: str | Path = path_dicts.CHECKPOINT_ROOT) -> str:
    """Describe each name in one line, with its checkpoint and whether that exists, and the forms of specifications."""
    rows = []
    for name in list_segmenters():
        if name in path_dicts.ZOO:
            file = path_dicts.ZOO[name]["checkpoint"]
            expected, found = f"{checkpoint_root}/{file}", find_below(checkpoint_root, file)
        else:
            expected = re.split("[:,]", path_dicts.MINI_SEGMENTERS[name])[-1]
            found = find_checkpoint(expected, checkpoint_root)
        rows.append((name, expected, found is not None))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'yes' if here else ' - '}  {name:{width}}  {file}" for name, file, here in rows]
    forms = [f"     {prefix}:{family.form}" for prefix, family in PREFIXES.items()] + ["     module:function"]
    present = sum(here for _, _, here in rows)
    return "\n".join([f"{present} of {len(rows)} checkpoints are on this disk:", *lines, "or:", *forms])


def load_segmenter(
    name: str,
    device: torch.device | str,
    precision: str = "32-true",
    checkpoint_root: str | Path = path_dicts.CHECKPOINT_ROOT,
    class_map: str | None = None,
    compiled: bool = False,
    channels_last: bool = False,
    fused: bool = False,
    trust_code: bool = False,
    input_size: tuple[int, int] | Literal["processor"] | None = None,
) -> Segmenter:
    """Load a segmenter by its name or its specification.

    Args:
        name: one of `list_segmenters()`, or
            `mmseg:CONFIG,CHECKPOINT`, an mmsegmentation config (a file, or one that ships with it) and its weights;
            `hf:NAME[@REVISION]_OR_FOLDER`, a transformers model for semantic segmentation;
            `torchvision:NAME[,CHECKPOINT]` and `smp:ARCHITECTURE,ENCODER,CHECKPOINT`, networks of those libraries;
            `onnx:FILE` and `torchscript:FILE`, exported networks;
            `module:function`, any Python function that takes the device and returns a callable (e.g. an `nn.Module`)
            from RGB uint8 images (B, 3, H, W) to logits (B, 19, h, w) of any size.
        device: where it runs.
        precision: `32-true`, `16-true`, `bf16-true`, `16-mixed` or `bf16-mixed`; logits are float32 in any case.
            The weights of a Python function's network are not cast: `true` means `mixed` there.
        checkpoint_root: the folder that the zoo's checkpoints are below (or one folder deeper).
        class_map: what the network's outputs mean, if not the 19: see `class_map.find_class_map` and `ClassMap`.
        compiled: translate the network with torch.compile (see `Segmenter.compile_network`).
        channels_last: see `Segmenter.use_channels_last`.
        fused: see `Segmenter.fuse`; only for inference, as the weights must not change later.
        trust_code: run a `.py` config or a module from outside the project, the installed packages and
            `path_dicts.TRUSTED_FOLDERS`.
        input_size: height and width to which images are resized for the network, or `processor`; see `Segmenter`.

    Returns:
        `segmenter(images, size=None)`: RGB uint8 (B, 3, H, W) to float32 logits (B, 19, *size); see `Segmenter`.

    Raises:
        GenValError: the name is unknown, a file is missing or damaged, weights and model do not match, or code is not
            trusted.
    """
    check_precision(precision)
    classes = find_class_map(class_map) if class_map is not None else None
    segmenter = _load(name, torch.device(device), precision, checkpoint_root, classes, trust_code)
    segmenter.recipe = find_recipe(specify(name, checkpoint_root).file)
    if input_size is not None:
        segmenter.set_input_size(input_size)
    elif segmenter.processor is not None and segmenter.processor.size and not segmenter.resizes:
        print_once(
            f"{name}: its image processor resizes images to {dict(segmenter.processor.size)}; they keep their native "
            "size (--input_size processor resizes them)"
        )
    if channels_last:
        segmenter.use_channels_last()
    if compiled:
        segmenter.compile_network()
    elif fused:
        segmenter.fuse()
    return segmenter


@dataclass(frozen=True)
class Specification:
    """What a segmenter's name stands for.

    Attributes:
        prefix: one of `PREFIXES`, or a Python module.
        parts: what follows the prefix, split at commas.
        file: the checkpoint, where there is one; the folder of a local transformers model.
        overrides: changes to the config of a model of the zoo.
    """

    prefix: str
    parts: tuple[str, ...]
    file: Path | None = None
    overrides: Mapping[str, Any] | None = None


def specify(name: str, checkpoint_root: str | Path = path_dicts.CHECKPOINT_ROOT) -> Specification:
    """Find what a segmenter's name or specification stands for; arguments as for `load_segmenter`.

    Raises:
        GenValError: the name is unknown, or its checkpoint is missing.
    """
    if name in path_dicts.ZOO:
        entry = path_dicts.ZOO[name]
        checkpoint = find_below(checkpoint_root, entry["checkpoint"])
        if checkpoint is None:
            raise GenValError(_missing_zoo_file(name, entry, checkpoint_root))
        return Specification("mmseg", (entry["config"], str(checkpoint)), checkpoint, entry.get("overrides"))
    prefix, colon, rest = path_dicts.MINI_SEGMENTERS.get(name, name).partition(":")
    if not colon or not rest:
        raise GenValError(_unknown(name))
    if prefix not in PREFIXES:
        return Specification(prefix, (rest,))
    parts = tuple(part.strip() for part in rest.split(","))
    form = PREFIXES[prefix].form
    if not all(parts) or len(parts) not in (form.count(",") + 1, form.split("[")[0].count(",") + 1):
        raise GenValError(f"Expected {prefix}:{form}, found {prefix}:{rest}.")
    if prefix == "hf":
        return Specification(prefix, (rest,), find_folder(rest, checkpoint_root))
    file = _existing(parts[-1], checkpoint_root) if len(parts) > 1 or form == "FILE" else None
    return Specification(prefix, parts, file)


def _load(
    name: str,
    device: torch.device,
    precision: str,
    checkpoint_root: str | Path,
    classes: ClassMap | None,
    trust_code: bool,
) -> Segmenter:
    found = specify(name, checkpoint_root)
    prefix, parts, file = found.prefix, found.parts, found.file
    if prefix not in PREFIXES:
        return _load_factory(name, prefix, parts[0], device, precision, classes, trust_code)
    request = Request(name, parts, file, found.overrides, device, precision, checkpoint_root, classes, trust_code)
    return PREFIXES[prefix].load(request)


class FactorySegmenter(Segmenter):
    """A network that a user's function returned. Its input is the uint8 images, unchanged."""

    def __init__(
        self, name: str, function: Callable[[Tensor], Tensor], precision: str, class_map: ClassMap | None = None
    ) -> None:
        mixed = precision if precision == "32-true" else precision.replace("-true", "-mixed")
        super().__init__(name, nn.Identity(), [0.0] * 3, [1.0] * 3, mixed, class_map)
        self.function = function.eval() if isinstance(function, nn.Module) else function
        self.source = ""

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def run(self, pixels: Tensor) -> Tensor:
        logits: Tensor = find_logits(self.name, self.function(pixels), self.class_map)
        return logits


@dataclass(frozen=True)
class Request:
    """What the loader of a prefix gets.

    Attributes:
        name: the whole specification.
        parts: what follows the prefix, by comma.
        file: the last part as an existing file; None where the form has no file or it is left out.
        overrides: changes to the config of a model of the zoo.
        device, precision, checkpoint_root, trust_code: as of `load_segmenter`.
        class_map: that of the user; None if there is none.
    """

    name: str
    parts: tuple[str, ...]
    file: Path | None
    overrides: Mapping[str, Any] | None
    device: torch.device
    precision: str
    checkpoint_root: str | Path
    class_map: ClassMap | None
    trust_code: bool

    @property
    def common(self) -> tuple[torch.device, str, ClassMap | None]:
        """The last arguments of most loaders."""
        return self.device, self.precision, self.class_map


def _load_mmseg(request: Request) -> Segmenter:
    from genval.segmenters.openmmlab import load_openmmlab

    assert request.file is not None
    device, precision, class_map = request.common
    arguments = (device, precision, request.overrides, class_map, request.trust_code)
    return load_openmmlab(request.name, request.parts[0], request.file, *arguments)


def _load_hf(request: Request) -> Segmenter:
    from genval.segmenters.transformers_models import load_transformers

    device, precision, class_map = request.common
    return load_transformers(request.name, request.parts[0], device, precision, request.checkpoint_root, class_map)


def _load_torchvision(request: Request) -> Segmenter:
    from genval.segmenters.builders import load_torchvision

    return load_torchvision(request.name, request.parts[0], request.file, *request.common)


def _load_smp(request: Request) -> Segmenter:
    from genval.segmenters.builders import load_smp

    assert request.file is not None
    return load_smp(request.name, request.parts[0], request.parts[1], request.file, *request.common)


def _load_onnx(request: Request) -> Segmenter:
    from genval.segmenters.exported import load_onnx

    assert request.file is not None
    return load_onnx(request.name, request.file, *request.common)


def _load_torchscript(request: Request) -> Segmenter:
    from genval.segmenters.exported import load_torchscript

    assert request.file is not None
    return load_torchscript(request.name, request.file, *request.common)


@dataclass(frozen=True)
class Prefix:
    """A family of segmenters: the form of a specification after the prefix, and what loads one."""

    form: str
    load: Callable[[Request], Segmenter]


PREFIXES: dict[str, Prefix] = {
    "mmseg": Prefix("CONFIG,CHECKPOINT", _load_mmseg),
    "hf": Prefix("NAME[@REVISION]_OR_FOLDER", _load_hf),
    "torchvision": Prefix("NAME[,CHECKPOINT]", _load_torchvision),
    "smp": Prefix("ARCHITECTURE,ENCODER,CHECKPOINT", _load_smp),
    "onnx": Prefix("FILE", _load_onnx),
    "torchscript": Prefix("FILE", _load_torchscript),
}
"""The families by prefix; the last part of a form, if optional, is a file."""


def _existing(file: str, checkpoint_root: str | Path) -> Path:
    checkpoint = find_checkpoint(file, checkpoint_root)
    if checkpoint is None:
        below = "" if Path(file).is_absolute() else f" or {Path(checkpoint_root) / file} (or one folder deeper)"
        raise GenValError(f"There is no checkpoint {file}: expected {resolve(file)}{below}.")
    return checkpoint


def _load_factory(
    name: str,
    module: str,
    function: str,
    device: torch.device,
    precision: str,
    classes: ClassMap | None,
    trust_code: bool,
) -> Segmenter:
    try:
        require_trusted_module(module, name, trust_code)
        factory: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise GenValError(
            f"{name}: {error}. Expected module:function with a module that Python finds (add its folder to "
            f"PYTHONPATH). {_unknown(name)}"
        ) from error
    except GenValError:
        raise
    except (Exception, SystemExit) as error:  # a user's module, likewise below
        raise GenValError(f"{name}: importing {module} failed: {type(error).__name__}: {error}") from error
    with named_failures(f"{name} failed on its device {device}"):
        made = factory(device)
    if not callable(made) or isinstance(made, type):
        found = f"the class {made.__name__}" if isinstance(made, type) else type(made).__name__
        raise GenValError(f"{name} returned {found}, expected a callable from images to logits.")
    with named_failures(f"{name} failed on its device {device}"):
        segmenter = FactorySegmenter(name, made, precision, classes).to(device)
    segmenter.source = source_hash(factory)  # part of the model's identity
    return segmenter


def _missing_zoo_file(name: str, entry: dict[str, Any], checkpoint_root: str | Path) -> str:
    file = Path(entry["checkpoint"])
    expected = f"No checkpoint for {name}: expected {Path(checkpoint_root) / file} (or one folder deeper). "
    # The zoo's files end with date, time and eight digits of their hash; the others were trained elsewhere.
    if re.search(r"_\d{8}_\d{6}-[0-9a-f]{8}\.pth$", file.name):
        return f"{expected}Get {file.name} from the model zoo of mmsegmentation 0.x: {_MODEL_ZOO}"
    return (
        f"{expected}It is not in mmsegmentation's model zoo: train {entry['config']} on Cityscapes with "
        f"mmsegmentation, or give your own files as mmseg:CONFIG,CHECKPOINT. (Model zoo: {_MODEL_ZOO})"
    )


def _unknown(name: str) -> str:
    by_lower = {known.lower(): known for known in list_segmenters()}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    prefix = name.partition(":")[0]
    if ":" in name:
        close = difflib.get_close_matches(prefix.lower(), PREFIXES, n=1)
    hint = f" Did you mean {' or '.join(close)}{':' if ':' in name else ''}?" if close else ""
    forms = ", ".join(f"{prefix}:{family.form}" for prefix, family in PREFIXES.items())
    return (
        f"Unknown segmenter {name!r}.{hint} All names: python relis/eval.py --list_models. Or give {forms} or "
        "module:function."
    )
