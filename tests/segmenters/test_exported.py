"""ONNX and TorchScript files."""

import json
import sys

import numpy as np
import pytest
import torch

from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter
from genval.segmenters.base import IMAGENET_MEAN, IMAGENET_STD
from genval.segmenters.features import find_layer
from genval.segmenters.identity import model_identity


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 19, 3, stride=2, padding=1)

    def forward(self, pixels):
        return self.convolution(pixels)


def normalised(images, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    return (images.float() - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def expected(images, pixels):
    with torch.no_grad():
        logits = Network()(pixels)
    return torch.nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def save_onnx(path, batch="B", size=("H", "W"), metadata=None, uint8=False, output=True):
    """The same network as an ONNX graph, written by hand."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    network = Network()
    weights = [
        onnx.numpy_helper.from_array(parameter.detach().numpy(), name)
        for name, parameter in network.convolution.named_parameters()
    ]
    nodes = [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT)]
    options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes.append(helper.make_node("Conv", ["x", "weight", "bias"], ["logits"], **options))
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", kind, [batch, 3, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 19, None, None])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return f"onnx:{path}"


def test_onnx_equals_the_network(tmp_path, images):
    segmenter = load_segmenter(save_onnx(tmp_path / "net.onnx"), "cpu")
    torch.testing.assert_close(segmenter(images), expected(images, normalised(images)), rtol=0, atol=1e-4)


def test_onnx_of_a_fixed_batch_and_size(tmp_path, images):
    """Images are resized to a fixed size, and fill a fixed batch."""
    segmenter = load_segmenter(save_onnx(tmp_path / "net.onnx", batch=2, size=(48, 80)), "cpu")
    three = torch.cat([images, images[:1]])
    logits = segmenter(three)
    assert logits.shape == (3, 19, 96, 160)
    torch.testing.assert_close(logits[:1], logits[2:])
    pixels = torch.nn.functional.interpolate(
        normalised(three), (48, 80), mode="bilinear", align_corners=False, antialias=True
    )
    torch.testing.assert_close(logits, expected(three, pixels), rtol=0, atol=1e-4)


def test_onnx_gets_raw_pixels_where_its_input_is_uint8(tmp_path, images):
    segmenter = load_segmenter(save_onnx(tmp_path / "net.onnx", uint8=True), "cpu")
    torch.testing.assert_close(segmenter(images), expected(images, images.float()), rtol=0, atol=1e-2)


def test_onnx_normalises_as_its_metadata_or_the_file_beside_it_says(tmp_path, images):
    metadata = {"mean": "[1, 2, 3]", "std": json.dumps([10, 20, 30]), "channels": "bgr", "author": "me"}
    name = save_onnx(tmp_path / "net.onnx", metadata=metadata)
    pixels = normalised(images.flip(1), [1.0, 2, 3], [10.0, 20, 30])
    torch.testing.assert_close(load_segmenter(name, "cpu")(images), expected(images, pixels), rtol=0, atol=1e-4)
    (tmp_path / "net.onnx.json").write_text(json.dumps({"mean": [0, 0, 0], "std": [255, 255, 255]}))
    pixels = images.float() / 255
    torch.testing.assert_close(load_segmenter(name, "cpu")(images), expected(images, pixels), rtol=0, atol=1e-4)


def test_an_onnx_file_is_identified_by_its_bytes(tmp_path):
    first = model_identity(load_segmenter(save_onnx(tmp_path / "a.onnx"), "cpu"))
    assert first == model_identity(load_segmenter(save_onnx(tmp_path / "b.onnx"), "cpu"))
    assert first != model_identity(load_segmenter(save_onnx(tmp_path / "c.onnx", metadata={"x": "1"}), "cpu"))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["Softmax"], "gives probabilities, not logits"),
        (["Sigmoid"], "as after a sigmoid"),
        (["ArgMax"], "int64, which are predicted classes"),
        (["Slice", "Identity"], "several outputs that could be the logits: Slice .*, Identity"),
    ],
)
def test_onnx_files_that_give_something_else(tmp_path, images, kinds, message):
    with pytest.raises(GenValError, match=message):
        load_segmenter(add_outputs(tmp_path, kinds), "cpu")(images)


def test_of_several_onnx_outputs_the_one_with_the_19_classes_is_taken(tmp_path, images):
    segmenter = load_segmenter(add_outputs(tmp_path, ["ArgMax", "Identity"]), "cpu")
    torch.testing.assert_close(segmenter(images), expected(images, normalised(images)), rtol=0, atol=1e-4)


def add_outputs(folder, kinds):
    """The network as an ONNX file whose outputs are made from the logits by operations of these kinds."""
    onnx = pytest.importorskip("onnx")
    save_onnx(folder / "net.onnx")
    model = onnx.load(folder / "net.onnx")
    del model.graph.output[:]
    for kind in kinds:
        inputs, options = ["logits"], {"axis": 1} if kind in ("Softmax", "ArgMax") else {}
        if kind == "Slice":
            for name, value in (("start", [0, 0]), ("end", [24, 40]), ("axes", [2, 3])):
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
                inputs.append(name)
        number = onnx.TensorProto.INT64 if kind == "ArgMax" else onnx.TensorProto.FLOAT
        model.graph.node.append(onnx.helper.make_node(kind, inputs, [kind], **options))
        model.graph.output.append(onnx.helper.make_tensor_value_info(kind, number, None))
    onnx.save(model, folder / "net.onnx")
    return f"onnx:{folder}/net.onnx"


def test_a_fixed_size_allows_no_other_input_size(tmp_path, images):
    name = save_onnx(tmp_path / "net.onnx", size=(48, 80))
    assert load_segmenter(name, "cpu", input_size=(48, 80))(images).shape == (2, 19, 96, 160)
    with pytest.raises(GenValError, match="only takes images of 48x80"):
        load_segmenter(name, "cpu", input_size=(96, 160))


def test_bad_onnx_files(tmp_path, images, monkeypatch):
    name = save_onnx(tmp_path / "net.onnx")
    with pytest.raises(GenValError, match="runs in the precision of its file"):
        load_segmenter(name, "cpu", "bf16-true")
    (tmp_path / "damaged.onnx").write_bytes((tmp_path / "net.onnx").read_bytes()[:200])
    with pytest.raises(GenValError, match=r"damaged\.onnx cannot be read as ONNX"):
        load_segmenter(f"onnx:{tmp_path}/damaged.onnx", "cpu")
    with pytest.raises(GenValError, match=r"There is no checkpoint absent\.onnx"):
        load_segmenter("onnx:absent.onnx", "cpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GenValError, match="pip install onnxruntime"):
        load_segmenter(name, "cpu")


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, x), lambda x: {"out": x}], ids=["bare", "tuple", "dict"])
def test_torchscript_equals_the_network(tmp_path, images, wrap):
    class Wrapped(Network):
        def forward(self, pixels):
            return wrap(self.convolution(pixels))

    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.trace(Wrapped(), torch.zeros(1, 3, 8, 8), strict=False), path)
    segmenter = load_segmenter(f"torchscript:{path}", "cpu")
    torch.testing.assert_close(segmenter(images), expected(images, normalised(images)), rtol=0, atol=1e-4)
    reduced = load_segmenter(f"torchscript:{path}", "cpu", "bf16-true")(images)
    assert reduced.dtype == torch.float32
    assert 0 < (reduced - segmenter(images)).abs().max() < 0.1


def test_torchscript_gives_the_same_in_every_pass(tmp_path, images):
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(torch.nn.Sequential(Network(), torch.nn.SiLU(), torch.nn.Hardswish())), path)
    segmenter = load_segmenter(f"torchscript:{path}", "cpu")
    passes = [segmenter(images[:count]) for count in (2, 1, 2, 1, 2)]
    assert all(one.equal(passes[0][: len(one)]) for one in passes)


def test_bad_torchscript_files(tmp_path, images):
    path = tmp_path / "net.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(GenValError, match=r"net\.pt cannot be read as TorchScript"):
        load_segmenter(f"torchscript:{path}", "cpu")

    class Fixed(torch.nn.Module):
        def forward(self, pixels):
            return pixels.reshape(1, 19, 8, 8)

    torch.jit.save(torch.jit.script(Fixed()), path)
    with pytest.raises(GenValError, match=r"fails on pixels \(2, 3, 96, 160\): .*shape"):
        load_segmenter(f"torchscript:{path}", "cpu")(images)


def test_a_network_that_gives_classes_instead_of_logits_is_refused(tmp_path, images):
    class Argmax(Network):
        def forward(self, pixels):
            return self.convolution(pixels).argmax(1)

    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.trace(Argmax(), torch.zeros(1, 3, 8, 8)), path)
    with pytest.raises(GenValError, match=r"gives \(2, 48, 80\), expected \(2, 19, h, w\)"):
        load_segmenter(f"torchscript:{path}", "cpu")(images)
    assert np.isfinite(load_segmenter(f"torchscript:{path}", "cpu").mean.numpy()).all()


def test_features_of_an_exported_network_are_refused_with_advice_that_helps(tmp_path):
    save_onnx(tmp_path / "model.onnx")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 19, 1))
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 8, 8)), tmp_path / "model.pt")
    for name in (f"onnx:{tmp_path / 'model.onnx'}", f"torchscript:{tmp_path / 'model.pt'}"):
        segmenter = load_segmenter(name, torch.device("cpu"))
        for layer in (None, "0"):
            with pytest.raises(GenValError, match=r"the layers of an exported network .* Give the network itself"):
                find_layer(segmenter, layer)
