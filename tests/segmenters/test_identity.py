"""What identifies a model: everything that may change its predictions, and nothing else."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from genval.artifacts.fingerprint import UNIDENTIFIED
from genval.runtime.paths import REPO_ROOT
from genval.segmenters import load_segmenter
from genval.segmenters.identity import model_identity, onnx_files


def identity(name, **keywords):
    return model_identity(load_segmenter(name, "cpu", trust_code=True, **keywords))


def save_onnx(path, seed, bias=0.0):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(seed).normal(size=(19, 3, 1, 1)).astype("f"), "w")
    shift = numpy_helper.from_array(np.full(1, bias, "f"), "b")
    tensor = {
        n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, "h", "w"]) for n, c in (("x", 3), ("y", 19))
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "b"], ["y"])]
    graph = helper.make_graph(nodes, "g", [tensor["x"]], [tensor["y"]], [weight, shift])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=True, location=data.name, size_threshold=0)


def test_external_data_of_an_onnx_file(tmp_path):
    path = tmp_path / "net.onnx"
    save_onnx(path, 0)
    before, content = identity(f"onnx:{path}"), path.read_bytes()
    assert identity(f"onnx:{path}") == before
    assert onnx_files(path) == [path, tmp_path / "net.data"]
    save_onnx(path, 1)
    assert path.read_bytes() == content  # only the external data differ
    assert identity(f"onnx:{path}") != before


@pytest.mark.parametrize(
    "values", [{"channels": "bgr"}, {"mean": [9, 9, 9], "std": [50, 50, 50]}, {"mean": [9, 9, 9], "std": [60, 60, 60]}]
)
def test_normalisation_of_an_exported_file(tmp_path, values):
    path = tmp_path / "net.onnx"
    save_onnx(path, 0)
    before = identity(f"onnx:{path}")
    (tmp_path / "net.onnx.json").write_text(json.dumps(values))
    assert identity(f"onnx:{path}") != before


def test_a_frozen_torchscript_file(tmp_path):
    path = tmp_path / "net.pt"
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.jit.freeze(torch.jit.script(nn.Conv2d(3, 19, 1).eval())).save(path)
        found += [identity(f"torchscript:{path}"), identity(f"torchscript:{path}")]
    assert found[0] == found[1] != found[2] == found[3]


def test_a_changed_graph_of_the_same_weights(tmp_path):
    path = tmp_path / "net.pt"
    torch.manual_seed(0)
    net = nn.Conv2d(3, 19, 1).eval()
    torch.jit.trace(net, torch.zeros(1, 3, 8, 8)).save(path)
    before = identity(f"torchscript:{path}")

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = net.weight, net.bias

        def forward(self, x):
            return 2 * nn.functional.conv2d(x, self.weight, self.bias)

    torch.jit.trace(Doubled(), torch.zeros(1, 3, 8, 8)).save(path)
    assert identity(f"torchscript:{path}") != before


@pytest.mark.parametrize(
    "edit",
    [
        "data_preprocessor=dict(bgr_to_rgb=False)",
        'test_cfg=dict(mode="slide", crop_size=(64, 64), stride=(32, 32))',
        "decode_head=dict(align_corners=True)",
    ],
)
def test_an_edited_mmseg_config(tmp_path, edit):
    config = tmp_path / "net.py"
    base = REPO_ROOT / "mini/segmenters/fast-scnn.py"
    name = f"mmseg:{config},checkpoints/mini/segmenters/fast-scnn.pth"
    config.write_text(f'_base_ = ["{base}"]\n')
    before = identity(name)
    assert before == identity(f"mmseg:{base},checkpoints/mini/segmenters/fast-scnn.pth")
    config.write_text(f'_base_ = ["{base}"]\nmodel = dict({edit})\n')
    assert identity(name) != before


def test_a_class_map_is_part_of_it(tmp_path):
    path = tmp_path / "net.onnx"
    save_onnx(path, 0)
    assert identity(f"onnx:{path}") != identity(f"onnx:{path}", class_map="trainids")


@pytest.fixture
def factory(monkeypatch):
    def define(make):
        monkeypatch.setattr(sys.modules[__name__], "make_network", lambda device: make(), raising=False)
        return identity(f"{__name__}:make_network")

    return define


class Scaled(nn.Module):
    def __init__(self, seed, scale):
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.scale = nn.Conv2d(3, 19, 1), scale

    def forward(self, x):
        return self.scale * self.net(x.float())


def test_weights_and_attributes_of_a_functions_network(factory):
    before = factory(lambda: Scaled(0, 1))
    assert factory(lambda: Scaled(0, 1)) == before
    assert factory(lambda: Scaled(1, 1)) != before
    assert factory(lambda: Scaled(0, 2)) != before


def test_constants_of_a_frozen_network_that_a_function_returns(factory):
    def frozen(seed):
        torch.manual_seed(seed)
        return torch.jit.freeze(torch.jit.script(nn.Conv2d(3, 19, 1).eval()))

    assert factory(lambda: frozen(0)) == factory(lambda: frozen(0)) != factory(lambda: frozen(1))


def test_source_of_a_functions_network(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from torch import nn\nclass Net(nn.Conv2d):\n    def forward(self, x):\n        return {} * x\n"
    text += "def make(device):\n    import torch\n    torch.manual_seed(0)\n    return Net(3, 19, 1)\n"
    found = []
    for module, factor in (("identity_first", 1), ("identity_second", 2)):
        (tmp_path / f"{module}.py").write_text(text.format(factor))
        found.append(identity(f"{module}:make"))
    assert found[0] != found[1]


def test_source_that_a_functions_network_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "identity_package").mkdir()
    helper = tmp_path / "identity_package/scale.py"
    (tmp_path / "identity_importer.py").write_text(
        "from torch import nn\nimport identity_package.scale\nclass Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        return super().forward(identity_package.scale.scaled(x))\n"
        "def make(device):\n    import torch\n    torch.manual_seed(0)\n    return Net(3, 19, 1)\n"
    )
    found = []
    for factor in (1, 2):
        helper.write_text(f"def scaled(x):\n    return {factor} * x\n")
        found += [identity("identity_importer:make"), identity("identity_importer:make")]
    assert found[0] == found[1] != found[2] == found[3]


def test_source_of_classes_that_a_config_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config, module = tmp_path / "net.py", tmp_path / "identity_registered.py"
    base = REPO_ROOT / "mini/segmenters/fast-scnn.py"
    config.write_text(
        f'_base_ = ["{base}"]\ncustom_imports = dict(imports=["identity_registered"])\n'
        'model = dict(backbone=dict(type="IdentityNet"))\n'
    )
    text = "from mmseg.models.backbones import FastSCNN\nfrom mmseg.registry import MODELS\n"
    text += "@MODELS.register_module(force=True)\nclass IdentityNet(FastSCNN):\n    factor = {}\n"
    found = []
    for factor in (1, 2):
        module.write_text(text.format(factor))
        found.append(identity(f"mmseg:{config},checkpoints/mini/segmenters/fast-scnn.pth"))
    assert found[0] != found[1]


def test_a_plain_function_has_none(factory):
    assert factory(lambda: lambda x: x).startswith(UNIDENTIFIED)
    assert factory(lambda: nn.ReLU()).startswith(UNIDENTIFIED)
    assert not factory(lambda: Scaled(0, 1)).startswith(UNIDENTIFIED)


def test_it_does_not_depend_on_what_does_not_decide(tmp_path):
    path = tmp_path / "net.onnx"
    save_onnx(path, 0)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(path, other)
    shutil.copy(tmp_path / "net.data", other)
    assert identity(f"onnx:{path}") == identity(f"onnx:{other / 'net.onnx'}")
    name = "mini-fast-scnn"
    assert identity(name) == identity(name, channels_last=True)
