"""FILE.json: its scale is found, what cannot be is refused, and what is used is printed."""

import json

import pytest

from genval.runtime.errors import GenValError
from genval.runtime.messages import print_once
from genval.segmenters.base import IMAGENET_MEAN, IMAGENET_STD
from genval.segmenters.normalisation import read_normalisation


@pytest.fixture
def file(tmp_path):
    print_once.cache_clear()
    return tmp_path / "net.onnx"


def read(file, content, name="net.onnx.json", **options):
    (file.parent / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_normalisation(file, **options)


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def test_without_a_file_it_is_imagenets(file, capsys):
    normalisation = read_normalisation(file)
    assert (normalisation.mean, normalisation.std) == (IMAGENET_MEAN, IMAGENET_STD)
    read_normalisation(file)
    printed = capsys.readouterr().out
    assert printed == (
        "net.onnx: RGB pixels 0..255 with mean 123.675 116.28 103.53, std 58.395 57.12 57.375 (ImageNet's: "
        "net.onnx.json would give others)\n"
    )


@pytest.mark.parametrize("name", ["net.onnx.json", "net.json"])
def test_the_scale_is_found(file, capsys, name):
    normalisation = read(file, IMAGENET | {"channels": "BGR"}, name)
    assert normalisation.mean == pytest.approx([255 * value for value in IMAGENET["mean"]])
    assert normalisation.std == pytest.approx([255 * value for value in IMAGENET["std"]])
    assert normalisation.channels == "bgr"
    assert f"BGR pixels 0..255 with mean 123.675 116.28 103.53, std 58.395 57.12 57.375 ({file.parent}/{name}, given " \
           "on the scale 0..1)" in capsys.readouterr().out  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "std", "scale", "expected"),
    [
        ([0.5] * 3, [0.5] * 3, None, (127.5, 127.5)),
        ([127.5] * 3, [127.5] * 3, None, (127.5, 127.5)),
        ([0] * 3, [255] * 3, None, (0, 255)),
        ([0] * 3, [1] * 3, 1, (0, 255)),
        ([0] * 3, [1] * 3, 255, (0, 1)),
        ([104] * 3, [1] * 3, None, (104, 1)),
    ],
)
def test_both_scales(file, mean, std, scale, expected):
    normalisation = read(file, {"mean": mean, "std": std} | ({} if scale is None else {"scale": scale}))
    assert (normalisation.mean[0], normalisation.std[0]) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGENET | {"scale": 255}, "not on the scale 0..255"),
        ({"mean": IMAGENET["mean"], "std": [58.4, 57.1, 57.4]}, "not on the scale 0..255"),
        ({"mean": [123.7, 116.3, 103.5], "std": IMAGENET["std"]}, "not on the scale 0..255"),
        ({"mean": [123.7, 116.3, 103.5], "std": [0.017] * 3}, "not on the scale 0..255"),
        ({"mean": [123.7] * 3, "std": [58] * 3, "scale": 1}, "not on the scale 0..1"),
        ({"mean": [0] * 3, "std": [1] * 3}, 'Add "scale": 1 or "scale": 255'),
        ({"mean": [0.5] * 3}, "both mean and std"),
        ({"std": [1] * 3}, "both mean and std"),
        ({"scale": 1}, "both mean and std"),
        ({"mean": [0.5] * 3, "std": [0] * 3}, "std must be above 0"),
        ({"mean": [0.5] * 3, "std": [-0.5] * 3}, "std must be above 0"),
        ('{"mean": [0.5, 0.5, 0.5], "std": [NaN, 1, 1]}', "NaN is not a JSON number"),
        ('{"mean": [Infinity, 0.5, 0.5], "std": [0.5, 1, 1]}', "Infinity is not a JSON number"),
        ({"mean": [-104] * 3, "std": [1] * 3}, r"mean must be 0\.\.255"),
        ({"mean": [10**400] * 3, "std": [1] * 3}, r"mean must be 0\.\.255"),
        ({"mean": [32768] * 3, "std": [65535] * 3}, r"mean must be 0\.\.255"),
        ({"mean": [0] * 3, "std": [65535] * 3}, "at most 512"),
        ({"mean": 0.5, "std": 0.5}, "three numbers"),
        ({"mean": [0.5], "std": [0.5]}, "three numbers"),
        ({"mean": [True] * 3, "std": [0.5] * 3}, "three numbers"),
        ({"mean": ["0.5"] * 3, "std": [0.5] * 3}, "three numbers"),
        (IMAGENET | {"scale": 128}, "scale must be 1"),
        (IMAGENET | {"scale": "255"}, "scale must be 1"),
        (IMAGENET | {"channels": "gbr"}, "channels must be"),
        (IMAGENET | {"channels": ["r", "g", "b"]}, "channels must be"),
        (IMAGENET | {"classes": 19}, "classes must be a list of names"),
        ({"means": IMAGENET["mean"]}, "found means. It is read because it lies beside"),
        ([1, 2], "found list"),
        ("null", "found NoneType"),
    ],
)
@pytest.mark.parametrize("name", ["net.onnx.json", "net.json"])
def test_what_cannot_be_is_refused(file, content, message, name):
    with pytest.raises(GenValError, match=message) as error:
        read(file, content, name)
    assert name in str(error.value)


def test_the_longer_name_has_priority_and_says_so(file, capsys):
    (file.parent / "net.json").write_text("{}")
    assert read(file, {"channels": "bgr"}).channels == "bgr"
    assert "net.json is not read" in capsys.readouterr().out


def test_metadata_inside_the_file(file):
    embedded = {
        "mean": "[0.5, 0.5, 0.5]",
        "std": "[0.5, 0.5, 0.5]",
        "channels": "bgr",
        "names": "{0: 'road'}",
        "x": "1",
    }
    normalisation = read_normalisation(file, embedded)
    assert (normalisation.mean[0], normalisation.channels, normalisation.classes) == (127.5, "bgr", ("road",))
    with pytest.raises(GenValError, match=r"the metadata of .*net\.onnx: mean must be three numbers"):
        read_normalisation(file, {"mean": "0.5 0.5 0.5", "std": "1"})


def test_networks_of_bytes_are_not_normalised(file, capsys):
    assert read(file, {"channels": "bgr"}, takes_bytes=True).channels == "bgr"
    assert "BGR pixels 0..255 (uint8 input)" in capsys.readouterr().out
    with pytest.raises(GenValError, match="takes uint8 pixels"):
        read(file, IMAGENET, takes_bytes=True)
