"""The start of a script that uses models of transformers: the processes, and imports without what it does not use.

Only scripts call this, not the library: what is left out stays left out in the process.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from genval.runtime.devices import DeviceFlags, launch_fabric
from genval.runtime.imports import placeholders, postponed, replaced, without_garbage_collection

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# What libraries use of torch's compiler without compiling. `disable` returns another function, so its mark gets lost.
# diffusers disables only caches between steps and models that move to the CPU and back, which are not used here,
# transformers disables its server of many requests, and torch disables functions that compute shapes, in which nothing
# is compiled anyway.
_COMPILER_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
# A kind of attention that no model uses unless it is asked for. Its import takes a second, for symbolic arithmetic.
_FLEX_ATTENTION = "torch.nn.attention.flex_attention"


@contextlib.contextmanager
def few_imports() -> Iterator[None]:
    """Import transformers or diffusers without their large optional parts, after `launch_fabric`."""
    import torch

    with (
        without_garbage_collection(),
        # Without distributed tensors, whose import takes seconds, and which transformers uses only for models that are
        # split over several devices.
        replaced(torch.distributed, "is_available", lambda: False),
        placeholders(_FLEX_ATTENTION),
        # Both libraries read the metadata of all installed packages.
        replaced(
            importlib.metadata, "packages_distributions", functools.cache(importlib.metadata.packages_distributions)
        ),
        postponed("torch._dynamo", decorators=_COMPILER_MARKS),
        # torchvision calls this function if results must be the same in each run.
        postponed("torch._dynamo.utils", functions=["is_compile_supported"]),
        # transformers calls these functions in losses, and to generate text with two models.
        postponed("scipy.optimize", functions=["linear_sum_assignment"]),
        postponed("sklearn", "sklearn.metrics", functions=["roc_curve"]),
        # The list of all models, for which each file is read. It is not needed to import one by its name.
        postponed("transformers.models", whole=False),
    ):
        yield
        gc.freeze()  # later searches for garbage leave out the libraries' objects, which takes tenths of a second each


def launch(settings: DeviceFlags) -> Fabric:
    """Start the processes as `launch_fabric` does, and import what all models of transformers need.

    Raises:
        GenValError: as `launch_fabric`.
    """
    fabric = launch_fabric(settings)
    # Where a version of transformers cannot be imported in this way, the code that uses a model imports it.
    with contextlib.suppress(ImportError, RuntimeError), few_imports():
        import transformers.masking_utils
        import transformers.modeling_utils  # noqa: F401
        from transformers.generation import GenerationMixin  # noqa: F401
    return fabric
