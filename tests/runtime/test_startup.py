"""The start of scripts that use models of transformers."""

import subprocess
import sys

import pytest

from genval.runtime import startup
from genval.runtime.settings import DeviceSettings

CODE = """
import importlib.metadata, sys
from genval.runtime.settings import DeviceSettings
from genval.runtime.startup import launch
launch(DeviceSettings(accelerator="cpu", devices="1"))
from transformers import BlipForConditionalGeneration, GroundingDinoForObjectDetection, SamModel
unused = {"scipy.optimize._optimize", "sklearn.metrics._ranking", "sympy", "torch._dynamo.convert_frame"}
print(sorted({*unused, "torch.distributed.tensor", "transformers.models.vit"} & set(sys.modules)))

# The libraries can be used as usual.
import torch
from transformers.loss import loss_for_object_detection
print(loss_for_object_detection.linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])[1].tolist())
print(sys.modules["torchvision.ops.roi_align"].is_compile_supported("meta"))
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
import sklearn
print(sklearn.__version__ == importlib.metadata.version("scikit-learn"))
from sklearn.metrics import roc_curve
print(roc_curve([0, 1], [0.2, 0.8])[1].tolist())
from transformers.models import ViTModel
from transformers import ViTModel as same
print(ViTModel is same)
"""


def test_models_need_no_compiler_and_libraries_work_as_usual():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "[1, 0]", "False", "2.0", "True", "[0.0, 1.0, 1.0]", "True"]


def test_the_processes_start_where_transformers_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("huggingface-hub<2.0 is required")

    monkeypatch.setattr(startup, "postponed", fail)
    assert startup.launch(DeviceSettings(accelerator="cpu", devices="1")).world_size == 1
