"""Reads mmengine configs: Python files of trusted places only, and data files (.yaml, .json) without running code."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from genval.runtime.errors import GenValError
from genval.segmenters.trust import is_trusted, require_trust

# Packages whose modules a data file may name.
_PACKAGES = ("mmengine", "mmcv", "mmseg", "mmpretrain", "mmdet")


def load_config(path: Path, trust_code: bool) -> tuple[Any, bool]:
    """Read a config with all that it is based on.

    Every file of the chain of `_base_` is checked before it is read. Code of a data file, such as YAML's
    `!!python/object/apply`, is an error.

    Args:
        path: of the config.
        trust_code: whether Python configs outside the trusted places may run. What a data file is based on must lie in
            a trusted place in any case.

    Returns:
        The mmengine `Config`, and whether a file of the chain is a data file.

    Raises:
        GenValError: a file of the chain is not trusted.
        Exception: whatever reading a config raises.
    """
    from mmengine.config import Config

    _register_safe_yaml()
    chain: list[Path] = []
    data_files: list[Path] = []

    def check(file: str) -> None:
        real = Path(file).resolve()
        if real.suffix != ".py":
            data_files.append(real)
        elif any(outer.suffix != ".py" for outer in chain) and not is_trusted(real):
            raise GenValError(
                f"{path} is based on {real}, which is Python code from outside the project and the installed packages. "
                f'Add its folder to path_dicts.py if you trust it: TRUSTED_FOLDERS = ("{real.parent}",).'
            )
        else:
            require_trust(real, f"The config {path}", trust_code)

    def checked(read: Callable[..., Any]) -> Callable[..., Any]:
        def run(filename: str, *args: Any, **kwargs: Any) -> Any:
            check(filename)
            chain.append(Path(filename))
            try:
                return read(filename, *args, **kwargs)
            finally:
                chain.pop()

        return run

    replaced = {name: staticmethod(checked(getattr(Config, name))) for name in ("_file2dict", "_parse_lazy_import")}
    with _replaced(Config, replaced), _packages_are_found():
        content = Config.fromfile(path, import_custom_modules=False)
    if data_files:
        _check_names(content, path)
    return content, bool(data_files)


@contextlib.contextmanager
def registered_only() -> Iterator[None]:
    """Have mmengine's registries build what is registered, and nothing that is imported by its name.

    Without this, `type: os.system` in a config is a function that is called.
    """
    from mmengine.registry import registry

    def refuse(name: str) -> Any:
        raise GenValError(f"{name} is not a registered part of mmsegmentation.")

    with _replaced(registry, {"get_object_from_string": refuse}):
        yield


@contextlib.contextmanager
def _packages_are_found() -> Iterator[None]:
    """Have `_base_ = "mmseg::..."` find its package: mmengine asks pkg_resources, which setuptools 82 has no more."""
    from mmengine.config import config

    def find(package: str) -> str:
        try:
            names = (metadata.distribution(package).read_text("top_level.txt") or package).split()
        except metadata.PackageNotFoundError:
            names = [package]
        for name in names:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations:
                return str(next(iter(spec.submodule_search_locations)))
        raise ModuleNotFoundError(f"{package} is not installed", name=package)

    def is_installed(package: str) -> bool:
        with contextlib.suppress(ModuleNotFoundError):
            return bool(find(package))
        return False

    with _replaced(config, {"get_installed_path": find, "is_installed": is_installed}):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, attributes: dict[str, Any]) -> Iterator[None]:
    before = {name: vars(owner)[name] for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _register_safe_yaml() -> None:
    import yaml
    from mmengine.fileio import BaseFileHandler, register_handler

    # For `_base_ = "mmseg::..."` mmengine reads all lists of models, which takes seconds without libyaml.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    @register_handler(["yaml", "yml"])
    class SafeYaml(BaseFileHandler):
        def load_from_fileobj(self, file: Any, **_: Any) -> Any:
            return yaml.load(file, loader)  # either loader is a safe one, which makes no objects

        def dump_to_fileobj(self, obj: Any, file: Any, **_: Any) -> None:
            yaml.safe_dump(obj, file)

        def dump_to_str(self, obj: Any, **_: Any) -> str:
            return str(yaml.safe_dump(obj))


def _check_names(content: Any, path: Path) -> None:
    """Refuse names in a data file that have a module imported, other than one of OpenMMLab's packages.

    Raises:
        GenValError: there is such a name.
    """
    imports = content.get("custom_imports", {}).get("imports", [])
    modules = [imports] if isinstance(imports, str) else list(imports)
    nodes: list[Any] = [content.get("model")]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.values()
            kind, scope = node.get("type"), node.get("_scope_")
            modules += [kind] if isinstance(kind, str) and "." in kind else []
            modules += [scope] if isinstance(scope, str) else []
        elif isinstance(node, (list, tuple)):
            nodes += node
    foreign = [module for module in modules if str(module).partition(".")[0] not in _PACKAGES]
    if foreign:
        raise GenValError(
            f"The config {path} names {foreign[0]}, but a data file can only name parts of {', '.join(_PACKAGES)}. "
            "Write the config in Python (.py) if it needs another module."
        )
