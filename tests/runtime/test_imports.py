"""Packages that are hidden, replaced or postponed while other libraries are imported."""

import gc
import importlib
import subprocess
import sys

import pytest

from genval.runtime.imports import postponed, without_garbage_collection

INIT = """
ran = True
marked = []

def mark(function=None, reason=None):
    if function is None:
        return mark
    marked.append(function)
    return function

from . import part
from .late import here
from .part import half
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a package in a package, with the modules `part` and `late`; neither is imported."""
    inner = tmp_path / "large_library" / "models"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").touch()
    (inner / "__init__.py").write_text(INIT)
    (inner / "part.py").write_text("half = 2\n")
    (inner / "late.py").write_text("here = 'late'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "large_library.models"
    for name in [name for name in sys.modules if name.startswith("large_library")]:
        del sys.modules[name]


def has_run(package):
    return "ran" in vars(sys.modules[package])


def test_modules_of_a_postponed_package_are_imported_without_it(package):
    with postponed(package):
        from large_library.models.part import half

    assert half == 2
    assert not has_run(package) and f"{package}.late" not in sys.modules


def test_a_postponed_package_runs_when_a_name_is_used(package):
    with postponed(package):
        part = importlib.import_module(f"{package}.part")
    import large_library.models

    assert not has_run(package)
    from large_library.models import here

    assert here == "late" and large_library.models.part is part and large_library.models.ran
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = large_library.models.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from large_library.models import nothing  # noqa: F401


def test_a_postponed_package_runs_before_a_further_module(package):
    with postponed(package):
        importlib.import_module(f"{package}.part")
    importlib.import_module(f"{package}.late")
    assert has_run(package)


def test_a_decorator_of_a_postponed_package_marks_when_it_runs(package):
    with postponed(package, decorators=["mark"]):
        models = sys.modules[package]

        @models.mark
        def one(): ...

        @models.mark(reason="none")
        def two(): ...

    assert models.mark(len) is len
    assert not has_run(package)
    assert models.marked == [one, two, len]


def test_a_function_of_a_postponed_module_runs_it_and_its_package_when_called(package, tmp_path):
    module = f"{package}.functions"
    source = "from . import marked\ndef double(number):\n    return 2 * number + len(marked)\n"
    (tmp_path / "large_library" / "models" / "functions.py").write_text(source)
    with postponed(package), postponed(module, functions=["double"]):
        from large_library.models.functions import double

        assert not has_run(package)
    assert double(3) == 6 and has_run(package)
    assert sys.modules[module].double is not double and sys.modules[module].double(3) == 6


def test_a_list_of_modules_runs_only_for_its_names(package):
    with postponed(package, whole=False):
        pass
    importlib.import_module(f"{package}.part")
    assert not has_run(package)
    from large_library.models import here

    assert here == "late" and has_run(package)


def test_the_version_of_a_postponed_package(package, tmp_path):
    (tmp_path / "large_library" / "models" / "__init__.py").write_text("__version__ = '1.2'\n")
    with postponed(package):
        pass
    assert sys.modules[package].__version__ == "1.2"


def test_a_package_that_puts_another_module_in_its_place(package, tmp_path):
    replacement = "import sys, types\nsys.modules[__name__] = types.SimpleNamespace(only='here')\n"
    (tmp_path / "large_library" / "models" / "__init__.py").write_text(replacement)
    with postponed(package):
        from large_library.models import only

    import large_library

    assert only == "here" and large_library.models.only == "here"


@pytest.mark.parametrize("name", ["json", "no_such_library", "no_such_library.part", "json.no_such_part"])
def test_imported_and_missing_packages_stay_as_they_are(name):
    before = sys.modules.get(name)
    with postponed(name):
        assert sys.modules.get(name) is before
    assert sys.modules.get(name) is before


def test_generation_needs_no_compiler_and_few_models():
    code = """
import sys
from genval.diffusion.startup import launch
from genval.runtime.settings import DeviceSettings
launch(DeviceSettings(accelerator="cpu", devices="1"))
unused = {"torch._dynamo.convert_frame", "diffusers.models.transformers.transformer_flux", "transformers.models.vit"}
print(sorted(unused & set(sys.modules)))
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline
from diffusers.models.attention import BasicTransformerBlock
from transformers import ViTModel
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
print(id(BasicTransformerBlock) in torch._dynamo.trace_rules._allowed_callable_ids.function_ids)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "2.0", "True"]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_as_before_after_imports(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), without_garbage_collection():
            assert not gc.isenabled()
            importlib.import_module("no_such_library")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
