"""The fused forward pass gives the logits of the plain one, and steps aside where it cannot."""

import functools
import math
import zipfile
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import path_dicts
from genval.evaluation.more_scores import odin, pixel_features
from genval.segmenters import openmmlab
from genval.segmenters.identity import model_identity
from genval.segmenters.openmmlab import OpenMMLabSegmenter, build_network, import_mmseg, load_openmmlab

import_mmseg()
from mmcv.cnn import ConvModule  # noqa: E402
from mmpretrain.models.backbones.convnext import ConvNeXtBlock  # noqa: E402
from mmpretrain.models.utils.norm import LayerNorm2d  # noqa: E402
from mmseg.models.backbones import swin  # noqa: E402

from genval.segmenters import fused, fused_functions, fused_layers  # noqa: E402

# Models whose layers are all kinds of fused layers, with few of them.
FEW_LAYERS = {"model.backbone.num_layers": 2, "model.backbone.out_indices": (1,)}
MODELS = {
    "SegFormer-B0": {},
    "Segmenter": FEW_LAYERS,
    "DLV3+ResNet18": {},
    "GCNet-R50": {},
    "BiSeNetV2-FCN": {},
    "APCNet-R50": {},
    "MobileNetV3": {},
    "SwinLarge": {"model.backbone.depths": [1, 2, 1, 1]},
    "ConvNext-B-In1K": {
        "model.backbone.arch": {"_delete_": True, "depths": [1, 2, 1, 1], "channels": [128, 256, 512, 1024]}
    },
    "UpperNetR18": {},
    "PSPNet-R18": {},
    "SETR-PUP": {"model.backbone.num_layers": 4, "model.backbone.out_indices": (0, 1, 2, 3)},
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of Triton's kernels; the CPU interprets them
TOLERANCE = 1e-2 if DEVICE == "cuda" else 1e-5  # cuDNN computes with TF32
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def make_segmenter(
    name: str, device: str = "cpu", precision: str = "32-true", overrides: dict[str, Any] | None = None
) -> OpenMMLabSegmenter:
    entry = path_dicts.ZOO[name]
    torch.manual_seed(0)
    network = build_network(entry["config"], {**entry.get("overrides", {}), **MODELS[name], **(overrides or {})})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as trained: with the first values, folding would change nothing
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(0, 0.1)
    segmenter = OpenMMLabSegmenter(name, network.to(device), precision)
    segmenter.use_channels_last()
    return segmenter


def fuse(segmenter: OpenMMLabSegmenter) -> fused.FusedLayers:
    """Fuse on any device; `OpenMMLabSegmenter.fuse` does it on a GPU only."""
    layers = fused.FusedLayers(segmenter.network)
    segmenter.run = functools.partial(layers, segmenter.run)  # type: ignore[method-assign]
    return layers


def random_images(size: tuple[int, int] = (128, 128), device: str = "cpu", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8).to(device)


def difference(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).norm() / (expected - expected.mean()).norm())


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_plain_pass(name: str) -> None:
    segmenter, images = make_segmenter(name), random_images()
    state = {key: value.clone() for key, value in segmenter.state_dict().items()}
    with torch.inference_mode():
        expected = segmenter(images)
        plain = segmenter.run
        assert fuse(segmenter)._methods
        logits = segmenter(images)
        assert 0 < difference(logits, expected) < 1e-5
        assert torch.equal(segmenter(images), logits)
        segmenter.run = plain  # type: ignore[method-assign]
        assert torch.equal(segmenter(images), expected)
    assert all(torch.equal(value, state[key]) for key, value in segmenter.state_dict().items())


@pytest.mark.parametrize("name", ["SegFormer-B0", "UpperNetR18", "PSPNet-R18"])
def test_maps_are_multiplied_before_they_are_resized(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = pytest.importorskip("genval.kernels.maps")
    segmenter, images = make_segmenter(name, DEVICE), random_images((32, 64), DEVICE)
    with torch.inference_mode():
        expected = segmenter(images)
        fuse(segmenter)
        calls = mock.Mock(wraps=maps.add_resized)
        monkeypatch.setattr(maps, "add_resized", calls)
        monkeypatch.setattr(fused_layers, "_can_add_resized", lambda joined: True)
        logits = segmenter(images)
    # UPerNet adds maps in three places of its feature pyramid, too.
    assert calls.call_count == {"SegFormer-B0": 1, "UpperNetR18": 5, "PSPNet-R18": 1}[name]
    assert 0 < difference(logits, expected) < TOLERANCE


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", [{"mode": "whole"}, {"mode": "slide", "crop_size": (7, 40), "stride": (5, 24)}])
@pytest.mark.parametrize("size", [(10, 50), (7, 33)])
def test_windows_are_resized_and_averaged_by_one_kernel(
    mode: dict[str, Any], size: tuple[int, int], align_corners: bool
) -> None:
    pytest.importorskip("triton")
    overrides = {"model.test_cfg": {"_delete_": True, **mode}, "model.decode_head.align_corners": align_corners}
    segmenter = OpenMMLabSegmenter("net", build_network("mini/segmenters/fast-scnn.py", overrides).to(DEVICE))
    images = random_images(size, DEVICE)
    with torch.inference_mode():
        expected = segmenter(images)
        segmenter._run_windows = segmenter._run_to_head
        logits = segmenter(images)
    assert logits.dtype == torch.float32 and logits.is_contiguous() and logits.shape == (2, 19, *size)
    assert difference(logits, expected) < TOLERANCE


def test_windows_that_overlap_many_times_are_added_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = pytest.importorskip("genval.kernels.maps")
    mode = {"_delete_": True, "mode": "slide", "crop_size": (12, 40), "stride": (4, 20)}
    network = build_network("mini/segmenters/fast-scnn.py", {"model.test_cfg": mode}).to(DEVICE)
    segmenter, images = OpenMMLabSegmenter("net", network), random_images((14, 60), DEVICE)[:1]
    joined = mock.Mock(wraps=maps.average_windows)
    monkeypatch.setattr(maps, "average_windows", joined)
    with torch.inference_mode():
        expected = segmenter(images)
        segmenter._run_windows = segmenter._run_to_head
        assert difference(segmenter(images), expected) < TOLERANCE
        assert joined.call_count == 1
        monkeypatch.setattr(openmmlab, "_MOST_OVERLAP", 3)
        assert difference(segmenter(images), expected) < TOLERANCE
    assert joined.call_count == 1


@pytest.mark.parametrize("mode", [{"mode": "whole"}, {"mode": "slide", "crop_size": (40, 56), "stride": (24, 40)}])
def test_scores_of_gradients_and_features_are_those_of_the_plain_pass(mode: dict[str, Any]) -> None:
    pytest.importorskip("triton")
    overrides = {"model.test_cfg": {"_delete_": True, **mode}}
    segmenter, images = make_segmenter("PSPNet-R18", overrides=overrides), random_images((64, 96))
    expected = [odin(segmenter, images, (64, 96)), pixel_features(segmenter, images)]
    fuse(segmenter)
    segmenter._run_windows = segmenter._run_to_head
    found = [odin(segmenter, images, (64, 96)), pixel_features(segmenter, images)]
    for score, plain in zip(found, expected, strict=True):
        assert score.shape == plain.shape and difference(score, plain) < 1e-4


def test_convolutions_of_other_kinds_are_not_split() -> None:
    norm = {"norm_cfg": {"type": "BN"}}
    same = {"kernel_size": 3, "padding": 1, **norm}
    split = fused_layers._JoinedConv.of
    assert split(ConvModule(6, 8, **same).eval(), [2, 4]) is not None
    assert split(ConvModule(6, 8, **same).eval().half(), [2, 4]) is None  # partial sums could be too large
    assert split(ConvModule(6, 8, **same).eval(), [2, 3]) is None
    others: list[dict[str, Any]] = [
        {"kernel_size": 3, **norm},
        {"kernel_size": 2, "padding": 1, **norm},
        {"stride": 2, **same},
        {"dilation": 2, **same, "padding": 2},
        {"kernel_size": 3, "padding": 1},
        {"act_cfg": None, **same},
    ]
    for other in others:
        assert split(ConvModule(6, 8, **other).eval(), [2, 4]) is None, other


def test_heads_that_do_more_than_resizing_are_not_joined() -> None:
    network = build_network(path_dicts.ZOO["PSPNet-R18"]["config"])
    assert openmmlab._only_resizes(network)
    network.decode_head.__class__ = type("Head", (type(network.decode_head),), {"predict": lambda *inputs: None})
    assert not openmmlab._only_resizes(network)


def test_a_fused_segmenter_has_the_identity_of_the_plain_one() -> None:
    segmenter = make_segmenter("DLV3+ResNet18")
    identity = model_identity(segmenter)
    fuse(segmenter)
    segmenter.infer_images = fused.RecordedPass(segmenter.network, segmenter.infer_images)  # type: ignore[method-assign, assignment]
    assert model_identity(segmenter) == identity


@needs_gpu
def test_a_gpu_gets_the_weights_of_the_file(tmp_path: Path) -> None:
    entry = path_dicts.ZOO["DLV3+ResNet18"]
    network = build_network(entry["config"])
    stored, legacy, deflated = (tmp_path / f"{name}.pth" for name in ("stored", "legacy", "deflated"))
    torch.save({"state_dict": network.state_dict(), "optimizer": {"state": torch.ones(2)}}, stored)
    torch.save(network.state_dict(), legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    identities = set()
    for path in (stored, legacy, deflated):
        loaded = load_openmmlab("a", entry["config"], path, torch.device("cuda"))
        assert all(value.is_cuda for value in loaded.state_dict().values())
        loaded.fuse()
        plain = load_openmmlab("a", entry["config"], path, torch.device("cpu"))
        identities |= {model_identity(loaded), model_identity(plain)}
    assert len(identities) == 1


def test_a_pass_with_hooks_or_gradients_is_plain() -> None:
    images = random_images()
    segmenter = make_segmenter("DLV3+ResNet18")
    with torch.no_grad():
        expected = segmenter(images)
        fuse(segmenter)
        seen: list[Any] = []
        block = segmenter.network.backbone.layer1[0]
        handle = block.norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert torch.equal(segmenter(images), expected)
        assert seen
        handle.remove()
        assert not torch.equal(segmenter(images), expected)
    segmenter = make_segmenter("DLV3+ResNet18")
    fuse(segmenter)
    segmenter.crop_logits(images.float()).sum().backward()
    assert segmenter.network.backbone.layer1[0].conv1.weight.grad is not None


def test_layers_of_other_kinds_stay_plain() -> None:
    class Block(nn.Sequential):
        """A subclass may do anything."""

    layers = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    overflowing = nn.BatchNorm2d(4)
    overflowing.running_mean.fill_(-300)  # type: ignore[union-attr]
    overflowing.running_var.fill_(1e-6)  # type: ignore[union-attr]
    replaced = nn.Sequential(*layers)
    replaced.forward = lambda x: x  # type: ignore[method-assign, assignment]
    network = nn.ModuleList(
        [
            Block(*layers),
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3), overflowing, nn.ReLU()).half(),
            replaced,
            nn.Sequential(*layers[:2]),
            nn.Sequential(),
        ]
    )
    assert not list(fused_layers.fused_methods(network.eval()))
    assert len(list(fused_layers.fused_methods(nn.ModuleList([nn.Sequential(*layers * 2)]).eval()))) == 1


def test_layers_with_parts_of_other_kinds_stay_plain() -> None:
    class OtherNorm(LayerNorm2d):
        """A subclass may do anything."""

    class OtherAttention(swin.WindowMSA):
        """A subclass may do anything."""

    blocks = [ConvNeXtBlock(8, use_grn=True), ConvNeXtBlock(8, linear_pw_conv=False), ConvNeXtBlock(8)]
    blocks[2].norm = OtherNorm(8)
    layer = swin.ShiftWindowMSA(8, 2, 7, 3)
    layer.w_msa = OtherAttention(8, 2, (7, 7))
    network = nn.ModuleList([*blocks, layer]).eval()
    methods = list(fused_layers.fused_methods(network))
    assert {type(module) for module, _, _ in methods} == {LayerNorm2d}
    assert len(methods) == 2


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_block_of_convnext_is_that_of_mmpretrain(scale: float) -> None:
    block = ConvNeXtBlock(8, layer_scale_init_value=scale).eval()
    x = torch.randn(2, 8, 5, 9).contiguous(memory_format=torch.channels_last)
    _, (module, _, forward) = sorted(fused_layers.fused_methods(block), key=lambda method: method[0] is block)
    assert module is block
    with torch.inference_mode():
        torch.testing.assert_close(forward(x), block(x))


def test_windows_are_kept_for_each_network() -> None:
    layers = [swin.ShiftWindowMSA(8, 2, 7, 3).eval() for _ in range(2)]
    made = fused_layers.Windows.of
    with mock.patch.object(fused_layers.Windows, "of", wraps=made) as make, torch.inference_mode():
        (_, _, first), (_, _, second) = (next(fused_layers.fused_methods(nn.ModuleList([layer]))) for layer in layers)
        first(torch.randn(1, 36, 8), (6, 6))
        for width in range(1, 40):  # a recorded pass of the first network reads the tensors of its windows
            second(torch.randn(1, width, 8), (1, width))
        number = make.call_count
        first(torch.randn(1, 36, 8), (6, 6))
        assert make.call_count == number


@pytest.mark.parametrize("size", [(14, 21), (7, 7), (15, 9), (5, 4), (8, 28)])
@pytest.mark.parametrize("shift", [0, 3])
def test_attention_within_windows_is_that_of_mmsegmentation(size: tuple[int, int], shift: int) -> None:
    torch.manual_seed(0)
    layer = swin.ShiftWindowMSA(16, 2, 7, shift).eval()
    nn.init.normal_(layer.w_msa.relative_position_bias_table)
    tokens = torch.randn(3, size[0] * size[1], 16)
    with torch.inference_mode():
        result = fused_layers.shifted_windows(layer, fused_layers.Windows.of, tokens, size)
        torch.testing.assert_close(result, layer(tokens, size), rtol=1e-5, atol=1e-6)


def test_many_windows_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tokens = swin.ShiftWindowMSA(16, 2, 7, 3).eval(), torch.randn(3, 15 * 22, 16)
    with torch.inference_mode():
        expected = fused_layers.shifted_windows(layer, fused_layers.Windows.of, tokens, (15, 22))
        monkeypatch.setattr(fused_layers, "_MOST_WINDOWS", 4)
        torch.testing.assert_close(
            fused_layers.shifted_windows(layer, fused_layers.Windows.of, tokens, (15, 22)), expected
        )


def test_few_classes_are_computed_as_if_they_were_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_functions, "fits", lambda x: isinstance(x, Tensor))
    x = torch.randn(2, 16, 5, 7, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    for layer in (nn.Conv2d(16, 19, 1), nn.Conv2d(16, 3, 3, stride=2, padding=1, bias=False)):
        layer = layer.bfloat16()
        with torch.inference_mode():
            expected = layer(x)
            with mock.patch.object(F, "pad", wraps=F.pad) as pad, fused_functions.FusedFunctions():
                logits = layer(x)
        assert pad.call_count == 1 + (layer.bias is not None)
        assert logits.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("kernel", "channels", "dilation"), [(3, 5, 2), (5, 70, 1)])
def test_a_depthwise_convolution_is_one_kernel(
    monkeypatch: pytest.MonkeyPatch, kernel: int, channels: int, dilation: int
) -> None:
    maps = pytest.importorskip("genval.kernels.maps")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    norm = {"type": "BN"}
    layer = ConvModule(
        channels, channels, kernel, padding=kernel // 2, dilation=dilation, groups=channels, norm_cfg=norm
    ).to(device)
    layer.eval()
    nn.init.normal_(layer.norm.running_mean)
    ((_, _, forward),) = fused_layers.fused_methods(layer)
    x = torch.randn(2, channels, 9, 12, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = layer(x)
        torch.testing.assert_close(forward(x), expected, rtol=1e-5, atol=1e-5)
        for name in ("fits", "can_fuse"):
            monkeypatch.setattr(fused_layers, name, lambda x: True)
        with mock.patch.object(maps, "depthwise", wraps=maps.depthwise) as fused:
            torch.testing.assert_close(forward(x), expected, rtol=1e-5, atol=1e-5)
    assert fused.call_count == 1


@pytest.mark.parametrize("few", [1, 32])
def test_functions_are_replaced_where_they_give_the_same(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    maps = pytest.importorskip("genval.kernels.maps")
    monkeypatch.setattr(fused_functions, "fits", lambda x: isinstance(x, Tensor) and x.ndim > 2)
    monkeypatch.setattr(fused_functions, "_FEW_CHANNELS", few)
    monkeypatch.setattr(fused_functions, "_MANY_GROUPS", 1)
    x = torch.randn(2, 6, 9, 12, device=DEVICE).contiguous(memory_format=torch.channels_last)
    weight, bias, tokens = (torch.randn(shape, device=DEVICE) for shape in ((6, 1, 3, 3), (6,), (2, 40, 6)))
    full = torch.randn(6, 3, 3, 3, device=DEVICE)
    calls = [
        lambda: F.interpolate(x, (20, 24), mode="bilinear", align_corners=True),
        lambda: F.interpolate(x, 7, mode="bilinear"),
        lambda: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        lambda: F.interpolate(x, (4, 5), mode="bilinear", antialias=True),
        lambda: F.interpolate(x, (18, 24)),
        lambda: F.interpolate(x, (18, 24), mode="bicubic"),
        lambda: F.adaptive_avg_pool2d(x, 1),
        lambda: F.adaptive_avg_pool2d(x, (3, None)),
        lambda: F.adaptive_avg_pool2d(x, (2, 3)),
        lambda: nn.AdaptiveAvgPool2d(5)(x),
        lambda: F.conv2d(x, weight, bias, padding=2, dilation=2, groups=6),
        lambda: F.conv2d(x, weight, padding="same", dilation=2, groups=6),
        lambda: F.conv2d(x, weight, stride=2, groups=6),
        lambda: F.conv2d(x, full, dilation=2, groups=2),
        lambda: F.conv2d(x, weight, bias, padding=1, groups=6),
        lambda: F.conv2d(x[0], weight, bias, dilation=2, groups=6),
        lambda: F.interpolate(x, torch.Size((5, 9)), mode="bilinear"),
        lambda: F.interpolate(input=x, size=[5, 9], mode="bilinear"),
        lambda: F.interpolate(x[0], 5, mode="linear"),
        lambda: F.adaptive_avg_pool2d(x[0], (2, 3)),
        lambda: F.layer_norm(tokens, (6,), bias, bias),
        lambda: F.layer_norm(tokens, (6,), bias, bias, 0.1),
        lambda: F.layer_norm(tokens, (6,)),
        lambda: F.layer_norm(tokens, (40, 6)),
        lambda: nn.functional.layer_norm(x, (12,)),
        lambda: nn.MaxPool2d(3, 2, 1)(x),
        lambda: nn.MaxPool2d(2)(torch.where(x > 2, math.nan, x)),
        lambda: F.max_pool2d(x - 9, (3, 5), (2, 1), (1, 2)),
        lambda: F.max_pool2d(x, 2, ceil_mode=True),
        lambda: F.max_pool2d(x, 3, dilation=2),
        lambda: F.max_pool2d(x[0], 3),
        lambda: F.conv2d(x, full.repeat(1, 2, 1, 1), bias, stride=3),
        lambda: F.conv2d(x, full.repeat(1, 2, 1, 1)[:, :, :, :2], stride=(3, 2)),
        lambda: F.conv2d(x, full.repeat(1, 2, 1, 1)[:, :, :2, :2], stride=2),
        lambda: F.conv2d(x, full.repeat(1, 2, 1, 1), stride=3, padding=1),
        lambda: F.conv2d(x, full, stride=3, groups=2),
        lambda: torch.cat([x.contiguous(), x], 1),
        lambda: torch.cat([x[0], x[1]], dim=0),
    ]
    largest, patches = mock.Mock(wraps=maps.max_pool), mock.Mock(wraps=fused_functions._of_patches)
    monkeypatch.setattr(maps, "max_pool", largest)
    monkeypatch.setattr(fused_functions, "_of_patches", patches)
    for number, call in enumerate(calls):
        expected = call()
        with fused_functions.FusedFunctions():
            result = call()
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5, equal_nan=True, msg=f"call {number}")
    assert (largest.call_count, patches.call_count) == (3, 2)


def test_joined_maps_are_channels_last_if_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_functions, "fits", lambda x: x.is_contiguous(memory_format=torch.channels_last))
    x = torch.randn(2, 6, 9, 12)
    with fused_functions.FusedFunctions():
        assert torch.cat([x, x], 1).is_contiguous()
        joined = torch.cat([x, x.contiguous(memory_format=torch.channels_last)], 1)
    assert joined.is_contiguous(memory_format=torch.channels_last) and torch.equal(joined, torch.cat([x, x], 1))


def test_wrong_inputs_are_errors_as_without_replaced_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_functions, "fits", lambda x: isinstance(x, Tensor) and x.ndim > 2)
    monkeypatch.setattr(fused_functions, "_FEW_CHANNELS", 1)
    x, tokens, ones = torch.randn(2, 6, 9, 12), torch.randn(2, 40, 6), torch.ones(3)
    calls = [
        lambda: F.layer_norm(tokens, (3,), ones, ones),
        lambda: F.conv2d(x, torch.ones(6, 2, 3, 3), dilation=2, groups=6),
        lambda: F.conv2d(x, torch.ones(6, 1, 3, 3).half(), dilation=2, groups=6),
        lambda: F.conv2d(x, torch.ones(6, 1, 3, 3), dilation=6, groups=6),
        lambda: F.conv2d(x, torch.ones(6, 1, 3, 3), dilation=(4, 6), groups=6),
        lambda: F.interpolate(x, (4, 5), scale_factor=2, mode="bilinear"),
        lambda: F.interpolate(x, (4, 5, 6), mode="bilinear"),
        lambda: F.interpolate(x, (0, 4), mode="bilinear"),
        lambda: F.conv2d(x, torch.ones(6, 5, 3, 3), stride=3),
        lambda: F.max_pool2d(x, 13),
        lambda: F.max_pool2d(x, 2, padding=2),
    ]
    for call in calls:
        with pytest.raises((RuntimeError, ValueError)), fused_functions.FusedFunctions():
            call()


class FakeGraph:
    """Stands for the CUDA graph of a pass that adds 1, and counts the attempts to record one."""

    attempts: ClassVar[list[tuple[int, ...]]] = []
    fails_for: ClassVar[tuple[int, ...] | None] = None

    @classmethod
    def record(cls, run: Any, pixels: Tensor, logits: Tensor) -> Any:
        cls.attempts.append(tuple(pixels.shape))
        assert torch.equal(run(pixels), logits)  # as the warm-up of a real graph
        return None if cls.fails_for == tuple(pixels.shape) else cls()

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels + 1


@pytest.fixture
def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    monkeypatch.setattr(fused, "_Graph", FakeGraph)
    monkeypatch.setattr(fused, "can_fuse", lambda device: True)
    monkeypatch.setattr(FakeGraph, "attempts", [])
    monkeypatch.setattr(FakeGraph, "fails_for", None)
    return FakeGraph


def test_passes_are_recorded_when_a_size_is_repeated(fake_graphs: type[FakeGraph]) -> None:
    once = fused.RecordedPass(nn.Conv2d(3, 3, 1), lambda pixels: pixels + 1)
    small, large = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)
    with torch.inference_mode():
        for pixels, recorded in ((small, False), (small, True), (small, True), (large, False), (large, True)):
            assert torch.equal(once(pixels), pixels + 1)
            assert (once._graph is not None) == recorded
    assert fake_graphs.attempts == [tuple(small.shape), tuple(large.shape)]


def test_a_size_that_cannot_be_recorded_is_tried_once(fake_graphs: type[FakeGraph]) -> None:
    once = fused.RecordedPass(nn.Conv2d(3, 3, 1), lambda pixels: pixels + 1)
    small, large = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)
    fake_graphs.fails_for = tuple(large.shape)
    with torch.inference_mode():
        for pixels in (large, large, large, small, small, large, large):
            once(pixels)
    assert fake_graphs.attempts == [tuple(large.shape), tuple(small.shape)]


@pytest.mark.parametrize("fails", [False, True])
def test_windows_have_a_graph_while_the_images_have_none(fake_graphs: type[FakeGraph], fails: bool) -> None:
    network = nn.Conv2d(3, 3, 1)
    windows = fused.RecordedPass(network, lambda pixels: pixels + 1)
    images = fused.RecordedPass(
        network, lambda pixels: torch.cat([windows(pixels[..., :2]), windows(pixels[..., 2:])], 3), windows
    )
    pixels = torch.zeros(1, 3, 2, 4)
    fake_graphs.fails_for = tuple(pixels.shape) if fails else None
    with torch.inference_mode():
        images(pixels)
        assert windows._graph is not None and images._graph is None
        for _ in range(3):
            assert torch.equal(images(pixels), pixels + 1)
    assert (images._graph is None) == fails and (windows._graph is None) != fails
    assert fake_graphs.attempts[:2] == [(1, 3, 2, 2), tuple(pixels.shape)]


@needs_gpu
@pytest.mark.parametrize("name", MODELS)
def test_graphs_give_the_logits_of_their_pass(name: str) -> None:
    segmenter = make_segmenter(name, "cuda", "bf16-true")
    images = [random_images(device="cuda", seed=seed) for seed in range(4)]
    with torch.inference_mode():
        plain = [segmenter(one) for one in images]
        segmenter.fuse()
        recorded: Any = segmenter.infer_images
        first = [segmenter(one) for one in images]
        assert recorded._graph is not None
        assert recorded._inner is None or recorded._inner._graph is None
        assert all(torch.equal(segmenter(one), logits) for one, logits in zip(images, first, strict=True))
        assert all(difference(logits, one) < 0.1 for logits, one in zip(first, plain, strict=True))
        segmenter(random_images((segmenter.minimum_size + 160, segmenter.minimum_size + 192), "cuda"))
        assert recorded._graph is None
        assert torch.equal(segmenter(images[0]), first[0])


@needs_gpu
def test_windows_of_images_of_different_sizes_are_recorded() -> None:
    segmenter = make_segmenter("DLV3+ResNet18", "cuda", "bf16-true")
    sizes = [(800, 900 + 16 * step) for step in range(4)]
    with torch.inference_mode():
        segmenter.fuse()
        recorded: Any = segmenter.infer_images
        first = [segmenter(random_images(size, "cuda")) for size in sizes]
        assert recorded._graph is None and recorded._inner._graph is not None
        for size, logits in zip(sizes, first, strict=True):
            images = random_images(size, "cuda")
            assert torch.equal(segmenter(images), logits)


@needs_gpu
def test_a_graph_leaves_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1, 8))
    once = fused.RecordedPass(nn.Conv2d(3, 3, 1), lambda pixels: pixels + 1)
    with torch.inference_mode():
        for seed in range(3):
            once(random_images(device="cuda", seed=seed).float())
    assert once._graph is None


@needs_gpu
def test_a_network_that_waits_for_the_gpu_has_no_graph() -> None:
    def run(pixels: Tensor) -> Tensor:
        return pixels * float(pixels.mean())

    once = fused.RecordedPass(nn.Conv2d(3, 3, 1), run)
    with torch.inference_mode():
        for seed in range(4):
            pixels = random_images(device="cuda", seed=seed).float()
            assert torch.equal(once(pixels), run(pixels))
        assert once._graph is None


@needs_gpu
def test_a_network_that_changes_from_pass_to_pass_has_no_graph() -> None:
    passes: list[int] = []

    def run(pixels: Tensor) -> Tensor:
        passes.append(0)
        return pixels + len(passes)

    once = fused.RecordedPass(nn.Conv2d(3, 3, 1), run)
    with torch.inference_mode():
        for seed in range(3):
            once(random_images(device="cuda", seed=seed).float())
        assert once._graph is None
