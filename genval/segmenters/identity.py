"""What identifies a model: two models that may give different predictions have different identities."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genval.artifacts.fingerprint import UNIDENTIFIED, Hashed, weights_hash
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

# Attributes that do not decide about predictions, or that the record of a result states by themselves.
_IGNORED = {
    "name",
    "precision",
    "memory_format",
    "run",
    "infer_images",
    "avoids_onednn",
    "definition",
    "revision",
    "recipe",
    "processor",
    "training",
    "session",
}
_INSTALLED = tuple({Path(sysconfig.get_paths()[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib")})
# A tensor's place in an ONNX file: the entry "location" of its external data, as the protobuf format writes it.
_ONNX_LOCATION = re.compile(rb"\x0a\x08location\x12(.)", re.DOTALL)


def model_identity(model: nn.Module, hashed: Hashed | None = None) -> str:
    """Return what identifies a model in the records of its results.

    Results are reused and pooled only if their models have the same identity. It covers the weights and buffers
    (normalisation and class map are among them), the definition of the network, channel order, input size and test
    mode. The definition is what the loader of a `genval.segmenters.Segmenter` states: a resolved config, or a hash of
    all bytes of exported files. Of other modules, and of those that a Python function returned, it is the structure
    and the attributes of the submodules. The source files of all classes outside the installed packages, and of what
    they import, belong to it in any case: a config may name classes of the user.

    Args:
        model: the model.
        hashed: the model's weights, if a thread hashes them already.

    Returns:
        16 hex digits. For a model without weights they follow `UNIDENTIFIED` and cover only the source files.
    """
    attributes = _plain(_attributes(model))
    definition = getattr(model, "definition", None)
    if definition is None:
        definition = _describe(getattr(model, "function", model))
    if definition is None:
        return UNIDENTIFIED + _hash(attributes.encode())
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    sources = sorted(set(map(source_hash, kinds)))
    weights = weights_hash(model) if hashed is None else hashed.hash
    return _hash(f"{weights} {definition} {attributes} {sources}".encode())


def hash_files(*files: Path) -> str:
    """Return 32 hex digits over all bytes of files, in their order (BLAKE2b)."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
        except OSError as error:
            raise GenValError(f"Cannot read {file}: {error.strerror or error}.") from error
    return digest.hexdigest()


def onnx_files(file: Path) -> list[Path]:
    """Return an ONNX file and the files of its external data, sorted."""
    content = file.read_bytes()
    names = set()
    for match in _ONNX_LOCATION.finditer(content):
        length, start = match[1][0], match.end()
        if length & 0x80:  # two bytes: paths are shorter than 16,384 characters
            length, start = (length & 0x7F) | content[start] << 7, start + 1
        names.add(content[start : start + length].decode(errors="replace"))
    # Bytes of weights may look like an entry: what is no file is none.
    data = {file.parent / name for name in names if name and "\0" not in name}
    return [file, *sorted(path for path in data if path.is_file())]


def _describe(function: Any) -> str | None:
    """Describe what a callable computes besides its weights; None where it has no weights to identify it by."""
    if not isinstance(function, nn.Module):
        return None
    scripts = [module for module in function.modules() if isinstance(module, torch.jit.ScriptModule)]
    if not scripts and not function.state_dict():
        return None
    parts = [_script(module) for module in scripts]
    for name, module in function.named_modules():
        if module not in scripts:
            parts.append(f"{name} {type(module).__qualname__} {_plain(_attributes(module))}")
    return "\n".join(parts)


def _script(module: torch.jit.ScriptModule) -> str:
    """Describe the code of a TorchScript module and its constants: those of a frozen module are its weights."""
    if not hasattr(module, "forward"):
        return ""
    code, constants = module.code_with_constants
    return re.sub(r"___torch_mangle_\d+", "", code) + _plain(constants.const_mapping)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and key not in _IGNORED}


def _plain(value: Any) -> str:
    """Describe a value by its content, the same in every process; of other objects only the type is known."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.Size, enum.Enum)):
        return repr(value)
    if isinstance(value, Mapping):
        return json.dumps({str(key): _plain(item) for key, item in value.items()}, sort_keys=True)
    if isinstance(value, (list, tuple)):
        return json.dumps([_plain(item) for item in value])
    if isinstance(value, (set, frozenset)):
        return json.dumps(sorted(_plain(item) for item in value))
    if isinstance(value, Tensor):
        return _hash(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, np.ndarray | np.generic):
        return _hash(value.tobytes())
    if isinstance(value, functools.partial):
        return _plain([value.func, value.args, value.keywords])
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{getattr(value, '__module__', '')}.{name} {source_hash(value)}"
    if callable(getattr(value, "to_json_string", None)):  # a config of transformers
        return str(value.to_json_string())
    return type(value).__qualname__


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def source_hash(function: Any) -> str:
    """Return the hash of the file that defines a function or a class, and of the files that this one imports.

    Installed packages and genval do not count: the hash of what they define is "".
    """
    # An instance of a class with `__call__` has its class's module.
    module = sys.modules.get(getattr(inspect.unwrap(function), "__module__", None) or "")
    files = _user_files(module) if module else {}
    return hash_files(*(file for _, file in sorted(files.items()))) if files else ""


def _user_files(module: ModuleType) -> dict[str, Path]:
    """Return the source files, by module, of a module and of the modules that it and they hold names of."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        module = waiting.pop()
        file = Path(getattr(module, "__file__", None) or "")
        installed = any(file.is_relative_to(folder) for folder in (*_INSTALLED, REPO_ROOT / "genval"))
        is_source = file.is_file()
        if module.__name__ in seen or installed or not (is_source or hasattr(module, "__path__")):
            continue
        seen.add(module.__name__)
        if is_source:
            found[module.__name__] = file
        for value in list(vars(module).values()):
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str) and name in sys.modules:
                waiting.append(sys.modules[name])
    return found
