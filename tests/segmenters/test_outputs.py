"""What networks may give instead of logits, in Python functions and TorchScript files: refused by name."""

import collections

import numpy as np
import pytest
import torch

from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter
from genval.segmenters.outputs import check_values
from genval.segmenters.registry import FactorySegmenter


def logits_of(images):
    """Plausible logits (B, 19, H, W)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(19, 3, generator=generator)
    return torch.einsum("bchw,nc->bnhw", images.float() / 40 - 3, weights)


def segment(images, function):
    return FactorySegmenter("my:net", function, "32-true")(images)


ACCEPTED = {
    "logits": lambda x: x,
    "float64": lambda x: x.double(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "scaled": lambda x: x / 100,
    "shifted": lambda x: x + 100,
    "tuple": lambda x: (x, x.argmax(1)),
    "list after a prediction": lambda x: [x.argmax(1, keepdim=True), x],
    "dictionary": lambda x: {"aux": x[..., ::2, ::2], "out": x},
    "logits by name": lambda x: {"classes": x.argmax(1), "logits": x},
    "named tuple": lambda x: collections.namedtuple("Output", ["aux", "logits"])(x[..., ::2, ::2], x),
    "nested": lambda x: {"out": (x, x[:, :2])},
    "with boundaries": lambda x: (x[:, :1], x),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_logits_in_other_dtypes_and_containers(images, kind):
    given = segment(images, lambda pixels: ACCEPTED[kind](logits_of(pixels)))
    expected = ACCEPTED["scaled" if kind == "scaled" else "shifted" if kind == "shifted" else "logits"](
        logits_of(images)
    )
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, expected, rtol=1e-2, atol=0.1)


def test_log_probabilities_are_logits(images):
    given = segment(images, lambda pixels: logits_of(pixels).log_softmax(1))
    torch.testing.assert_close(given.softmax(1), logits_of(images).softmax(1))


REFUSED = {
    "softmax": (lambda x: x.softmax(1), "gives probabilities, not logits"),
    "softmax in half precision": (lambda x: x.softmax(1).half(), "gives probabilities"),
    "softmax in bfloat16": (lambda x: x.softmax(1).bfloat16(), "gives probabilities"),
    "percent": (lambda x: 100 * x.softmax(1), "gives probabilities"),
    "8-bit probabilities": (lambda x: (255 * (x / 9).softmax(1)).round(), "gives probabilities"),
    "clamped softmax": (lambda x: x.softmax(1).clamp(1e-4, 1 - 1e-4), "gives probabilities"),
    "bicubic softmax": (
        lambda x: torch.nn.functional.interpolate(x.softmax(1)[..., ::4, ::4], scale_factor=4.0, mode="bicubic"),
        "gives probabilities",
    ),
    "sigmoid": (lambda x: x.sigmoid(), "as after a sigmoid"),
    "tuple of probabilities and logits": (lambda x: (x.softmax(1), x), "gives probabilities"),
    "one-hot": (lambda x: one_hot_of(x).float(), "one-hot"),
    "one-hot 255": (lambda x: one_hot_of(x) * 255.0, "one-hot"),
    "one-hot 10": (lambda x: one_hot_of(x) * 20.0 - 10, "one-hot"),
    "one-hot integers": (lambda x: one_hot_of(x), "int64, which are predicted classes"),
    "constant": (torch.zeros_like, "the value 0 for every class"),
    "argmax": (lambda x: x.argmax(1), "predicted classes: return the logits"),
    "argmax with channel": (lambda x: x.argmax(1, keepdim=True), "predicted classes: return the logits"),
    "float argmax": (lambda x: x.argmax(1).float(), "looks like predicted classes"),
    "float argmax with channel": (lambda x: x.argmax(1, keepdim=True).float(), "looks like predicted classes"),
    "uint8": (lambda x: x.byte(), "uint8, which are predicted classes"),
    "bool": (lambda x: x > 0, "bool, which are predicted classes"),
    "complex": (lambda x: torch.complex(x, x), "complex64: return real numbers"),
    "sparse": (lambda x: x.to_sparse(), "to_dense"),
    "two sizes": (lambda x: (x[..., ::2, ::2], x), "several outputs that could be the logits: 0 .*1 "),
    "two sizes by name": (lambda x: {"a": x, "b": x[..., :5]}, "several outputs.*: a .*b "),
    "none": (lambda x: None, "gives None, expected logits"),
    "numpy": (lambda x: x.numpy(), "gives numpy.ndarray, expected logits"),
    "text": (lambda x: "road", "gives builtins.str, expected logits"),
    "empty list": (lambda x: [], "gives builtins.list, expected logits"),
    "empty": (lambda x: x[..., :0], "which is empty"),
    "no classes": (lambda x: x[:, :0], "which is empty"),
    "one image of two": (lambda x: x[:1], r"gives \(1, 19, 96, 160\), expected \(2, 19, h, w\)"),
    "three images": (lambda x: x[[0, 0, 1]], r"gives \(3, 19"),
    "no batch": (lambda x: x[0], r"gives \(19, 96, 160\)"),
    "classes last": (lambda x: x.permute(0, 2, 3, 1), r"classes last: permute\(0, 3, 1, 2\)"),
    "transposed": (lambda x: x.transpose(2, 3), "height and width exchanged"),
    "18 classes": (lambda x: x[:, :18], "has 18 classes, expected 19"),
    "20 classes": (lambda x: x[:, [*range(19), 0]], "has 20 classes.*--class_map cityscapes-20"),
    "another device": (lambda x: x.to("meta"), "gives logits on meta, expected cpu: return logits.to"),
    "raises": (lambda x: x[:, 99], "my:net fails on images .*IndexError"),
    "exits": (lambda x: exit(0), "my:net fails on images .*SystemExit"),
}  # fmt: skip


def one_hot_of(logits):
    return torch.nn.functional.one_hot(logits.argmax(1), 19).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_logits_is_refused(images, kind):
    wrong, message = REFUSED[kind]
    with pytest.raises(GenValError, match=message) as error:
        segment(images, lambda pixels: wrong(logits_of(pixels)))
    assert "my:net" in str(error.value)


def test_probabilities_of_other_classes_are_refused_before_they_are_merged(images):
    from genval.segmenters.class_map import find_class_map

    def softmax(pixels):
        logits = logits_of(pixels)
        return logits[:, [*range(19), 0]].softmax(1)

    with pytest.raises(GenValError, match="gives probabilities"):
        FactorySegmenter("my:net", softmax, "32-true", find_class_map("cityscapes-20"))(images)


def test_full_memory_is_no_failure_of_the_network(images):
    def full(pixels):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        segment(images, full)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_left_to_the_caller(wrong):
    check_values("net", torch.full((1, 19, 2, 2), wrong))


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [("softmax", lambda x: x.softmax(1)), ("sigmoid", lambda x: x.sigmoid()), ("several", lambda x: (x, x[..., ::2]))],
)
def test_torchscript_files_are_checked_too(tmp_path, images, kind, wrap):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.convolution = torch.nn.Conv2d(3, 19, 3, padding=1)

        def forward(self, pixels):
            return wrap(self.convolution(pixels))

    torch.jit.save(torch.jit.trace(Wrapped(), torch.zeros(1, 3, 8, 8)), tmp_path / "net.pt")
    with pytest.raises(GenValError, match=r"net\.pt gives (probabilities|values between|several outputs)"):
        load_segmenter(f"torchscript:{tmp_path}/net.pt", "cpu")(images)


FACTORIES = {
    "none": ("return None", "returned NoneType, expected a callable"),
    "numpy": ("import numpy; return numpy.zeros(3)", "returned ndarray, expected a callable"),
    "empty": ("return torch.zeros(0)", "returned Tensor, expected a callable"),
    "class": ("return torch.nn.Conv2d", "returned the class Conv2d"),
    "raises": ("raise KeyError('weights')", "failed on its device cpu: KeyError: 'weights'"),
    "exits": ("import sys; sys.exit('no weights')", "failed on its device cpu: SystemExit: no weights"),
    "exits well": ("import sys; sys.exit(0)", "failed on its device cpu: SystemExit: 0"),
    "meta": ("return torch.nn.Conv2d(3, 19, 1, device='meta')", "failed on its device cpu: NotImplementedError"),
}


@pytest.mark.parametrize("kind", FACTORIES)
def test_factories_that_give_no_network(tmp_path, monkeypatch, kind):
    body, message = FACTORIES[kind]
    name = f"wrong_factory_{kind.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(f"import torch\ndef make(device):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(GenValError, match=f"{name}:make {message}"):
        load_segmenter(f"{name}:make", "cpu", trust_code=True)


@pytest.mark.parametrize("line", ["import sys; sys.exit(1)", "raise ValueError('x')", "def", "1 / 0"])
def test_modules_that_fail_on_import(tmp_path, monkeypatch, line):
    name = f"failing_module_{len(line)}"
    (tmp_path / f"{name}.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(GenValError, match=f"importing {name} failed"):
        load_segmenter(f"{name}:make", "cpu", trust_code=True)


def test_images_are_resized_to_the_input_size(images):
    seen = []

    def record(pixels):
        seen.append(pixels)
        return logits_of(pixels)

    segmenter = FactorySegmenter("my:net", record, "32-true")
    assert segmenter.input_size is None
    segmenter.set_input_size((48, 100))
    assert segmenter(images).shape == (2, 19, 96, 160)
    assert segmenter(images, (30, 40)).shape == (2, 19, 30, 40)
    assert (seen[0].shape, seen[0].dtype) == ((2, 3, 48, 100), torch.uint8)
    from PIL import Image

    for mine, image in zip(seen[0], images, strict=True):
        by_pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((100, 48), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(by_pillow).astype(int) - mine.permute(1, 2, 0).numpy().astype(int)).max() <= 1
    segmenter.set_input_size((96, 160))
    torch.testing.assert_close(segmenter(images), logits_of(images))
