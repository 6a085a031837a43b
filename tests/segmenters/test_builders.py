"""Networks that torchvision and segmentation_models_pytorch build, filled strictly from a file."""

import functools
import json
import sys

import pytest
import torch

from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter
from genval.segmenters.base import IMAGENET_MEAN, IMAGENET_STD

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

MEAN = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


@functools.cache
def build_torchvision(architecture, classes, **options):
    from torchvision import models

    torch.manual_seed(0)
    return models.get_model(architecture, weights=None, weights_backbone=None, num_classes=classes, **options).eval()


def save_torchvision(path, architecture, classes=19, **options):
    network = build_torchvision(architecture, classes, **options)
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("lraspp_mobilenet_v3_large", {}), ("deeplabv3_mobilenet_v3_large", {"aux_loss": True})],
)
def test_torchvision_equals_torchvisions_way(tmp_path, images, architecture, options):
    network = save_torchvision(tmp_path / "net.pth", architecture, **options)
    segmenter = load_segmenter(f"torchvision:{architecture},{tmp_path}/net.pth", "cpu")
    with torch.no_grad():
        expected = network((images.float() - MEAN) / STD)["out"]
    torch.testing.assert_close(segmenter(images), expected, rtol=0, atol=1e-4)


def test_torchvision_names_and_weights_are_checked(tmp_path, monkeypatch):
    save_torchvision(tmp_path / "net.pth", "lraspp_mobilenet_v3_large", classes=21)
    with pytest.raises(GenValError, match=r"21 classes, expected 19"):
        load_segmenter(f"torchvision:lraspp_mobilenet_v3_large,{tmp_path}/net.pth", "cpu")
    with pytest.raises(GenValError, match=r"does not fit fcn_resnet50: \d+ missing"):
        save_torchvision(tmp_path / "net.pth", "lraspp_mobilenet_v3_large")
        load_segmenter(f"torchvision:fcn_resnet50,{tmp_path}/net.pth", "cpu")
    with pytest.raises(GenValError, match=r"no segmentation model 'fcn_resnet5'\. Did you mean fcn_resnet50\?"):
        load_segmenter(f"torchvision:fcn_resnet5,{tmp_path}/net.pth", "cpu")
    (tmp_path / "net.pth").write_bytes(b"")
    with pytest.raises(GenValError, match="is damaged"):
        load_segmenter(f"torchvision:fcn_resnet50,{tmp_path}/net.pth", "cpu")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("off")))
    with pytest.raises(GenValError, match=r"not in its cache and cannot be fetched \(off\).*NAME,CHECKPOINT"):
        load_segmenter("torchvision:fcn_resnet50", "cpu", class_map="trainids")


def test_smp_pads_what_32_does_not_divide_and_reads_the_normalisation_beside(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, classes=19, decoder_channels=(256, 128, 64, 32, 16)).eval()
    path = tmp_path / "unet.pth"
    torch.save({"state_dict": network.state_dict()}, path)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    segmenter = load_segmenter(f"smp:Unet,resnet18,{path}", "cpu")
    with torch.no_grad():
        torch.testing.assert_close(segmenter(images), network((images.float() - MEAN) / STD), rtol=0, atol=1e-4)
    assert segmenter(images[..., :50, :70]).shape == (1, 19, 50, 70)

    settings = {"mean": [10, 20, 30], "std": [100, 100, 200], "channels": "bgr"}
    (tmp_path / "unet.pth.json").write_text(json.dumps(settings))
    segmenter = load_segmenter(f"smp:unet,resnet18,{path}", "cpu")
    pixels = (images.flip(1).float() - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / torch.tensor(
        [100.0, 100, 200]
    ).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(segmenter(images), network(pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"mean": [1, 2]}, {"std": [1, 0, 1]}, {"channels": "rbg"}, {"scale": 255}, [1], {"mean": "1"}]
)
def test_a_normalisation_that_says_something_else_is_refused(tmp_path, settings):
    save_torchvision(tmp_path / "net.pth", "lraspp_mobilenet_v3_large")
    (tmp_path / "net.pth.json").write_text(json.dumps(settings))
    with pytest.raises(GenValError, match=r"net\.pth\.json"):
        load_segmenter(f"torchvision:lraspp_mobilenet_v3_large,{tmp_path}/net.pth", "cpu")


def test_smp_names_and_weights_are_checked(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    save_torchvision(path, "lraspp_mobilenet_v3_large")
    with pytest.raises(GenValError, match=r"holds no segmentation_head\.\*\.bias"):
        load_segmenter(f"smp:unet,resnet18,{path}", "cpu")
    torch.save({"segmentation_head.0.bias": torch.zeros(19)}, path)
    for specification in ("unett,resnet18", "unet,resnet19"):
        with pytest.raises(GenValError, match=r"cannot build .*Architectures: unet, "):
            load_segmenter(f"smp:{specification},{path}", "cpu")
    with pytest.raises(GenValError, match=r"Expected smp:ARCHITECTURE,ENCODER,CHECKPOINT, found"):
        load_segmenter(f"smp:unet,{path}", "cpu")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(GenValError, match="pip install segmentation-models-pytorch"):
        load_segmenter(f"smp:unet,resnet18,{path}", "cpu")
