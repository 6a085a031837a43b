"""mmsegmentation models behave as mmsegmentation runs them."""

import copy
import functools
import gzip
import json
import subprocess
import sys

import pytest
import torch
from accelerate import init_empty_weights

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT
from genval.segmenters.openmmlab import OpenMMLabSegmenter, build_network, load_openmmlab, read_config

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

CONFIG = "mini/segmenters/pspnet-r18.py"

GOLDEN_KEYS = REPO_ROOT / "tests" / "golden" / "zoo_state_dict_keys.json.gz"
SLIDE = {"_delete_": True, "mode": "slide", "crop_size": [64, 64], "stride": [40, 40]}


def mmseg_inference(network, images):
    """Logits from mmseg's own preprocessing and inference, on the BGR images its loader gives."""
    from mmseg.structures import SegDataSample

    bgr = list(images.flip(1))
    shape = tuple(images.shape[-2:])
    samples = [SegDataSample(metainfo={"ori_shape": shape, "img_shape": shape, "pad_shape": shape}) for _ in bgr]
    data = network.data_preprocessor({"inputs": bgr, "data_samples": samples}, training=False)
    with torch.no_grad():
        results = network.predict(data["inputs"], data["data_samples"])
    return torch.stack([result.seg_logits.data for result in results])


def build(overrides=None):
    torch.manual_seed(0)
    return build_network(CONFIG, overrides)


@pytest.mark.parametrize("align_corners", [False, True])
def test_whole_mode_equals_mmseg(images, align_corners):
    network = build({"model.decode_head.align_corners": align_corners})
    segmenter = OpenMMLabSegmenter("net", network)
    assert segmenter.align_corners == align_corners
    torch.testing.assert_close(segmenter(images), mmseg_inference(network, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 160), (64, 64), (150, 105), (40, 200), (33, 47)])
@pytest.mark.parametrize("batch", [1, 3])
def test_sliding_window_equals_mmseg(size, batch):
    network = build({"model.test_cfg": SLIDE})
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
    expected = mmseg_inference(network, images)
    torch.testing.assert_close(OpenMMLabSegmenter("net", network)(images), expected, rtol=0, atol=1e-5)


def test_a_label_of_another_size_is_resized_as_mmseg_does(images):
    network = build({"model.decode_head.align_corners": True})
    from mmseg.models.utils import resize  # importable once a network was built: mmcv's compiled module has a stand-in

    expected = resize(mmseg_inference(network, images), (48, 80), mode="bilinear", align_corners=True)
    torch.testing.assert_close(OpenMMLabSegmenter("net", network)(images, (48, 80)), expected, rtol=0, atol=1e-5)


def test_models_trained_on_bgr_get_bgr(images):
    network = build({"model.data_preprocessor.bgr_to_rgb": False, "model.data_preprocessor.mean": [10.0, 20.0, 200.0]})
    torch.testing.assert_close(
        OpenMMLabSegmenter("net", network)(images), mmseg_inference(network, images), rtol=0, atol=1e-5
    )


def test_size_divisor_at_test_time_pads_and_crops(images):
    overrides = {"model.data_preprocessor.test_cfg": {"size_divisor": 64}}
    network = build(overrides)
    torch.testing.assert_close(
        OpenMMLabSegmenter("net", network)(images), mmseg_inference(network, images), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("mode", [{"_delete_": True, "mode": "whole"}, SLIDE])
def test_reduced_precision_stays_close_and_gives_float32(images, precision, mode):
    full = OpenMMLabSegmenter("net", build({"model.test_cfg": mode}))(images)
    reduced = OpenMMLabSegmenter("net", build({"model.test_cfg": mode}), precision)(images)
    assert reduced.dtype == torch.float32
    assert 0 < (reduced - full).abs().max() < 0.1 * full.abs().max()


@functools.cache
def build_with_attention(config):
    torch.manual_seed(0)
    network = build_network(config, {"model.test_cfg": {"_delete_": True, "mode": "whole"}})
    for module in network.modules():
        if type(module).__name__ == "CrissCrossAttention":
            torch.nn.init.ones_(module.gamma.scale)  # 0 at first: the attention would not count
    return network


@pytest.mark.parametrize("precision", ["16-true", pytest.param("bf16-true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", ["mini/segmenters/upernet-swin.py", path_dicts.ZOO["CCNet-R50"]["config"]])
def test_attention_with_masks_in_float32_takes_half_precision(images, config, precision):
    network, images = copy.deepcopy(build_with_attention(config)), images[:1, :, :64, :96]
    full = OpenMMLabSegmenter("net", network)(images)
    reduced = OpenMMLabSegmenter("net", network, precision)(images)
    assert reduced.dtype == torch.float32
    assert 0 < (reduced - full).abs().max() < 0.1 * full.abs().max()


def test_building_fetches_nothing_and_replaces_synchronised_batch_norm():
    config = read_config("pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-769x769.py").model
    assert "pretrained" not in config
    assert "SyncBN" not in str(config)
    swin = read_config(path_dicts.ZOO["SwinLarge"]["config"]).model
    assert "Pretrained" not in str(swin)


def test_an_evaluation_starts_without_what_training_needs():
    code = (
        "import sys\n"
        "from genval.runtime.devices import launch_fabric\n"
        "from genval.runtime.settings import DeviceSettings\n"
        "from genval.segmenters.openmmlab import build_network\n"
        "import genval.evaluation.segmentation\n"
        "launch_fabric(DeviceSettings(accelerator='cpu', devices='1'))\n"
        f"build_network({CONFIG!r})\n"
        "heavy = {'timm', 'torch._dynamo', 'torchmetrics', 'torchvision', 'transformers', 'mmengine._strategy'}\n"
        "heavy |= {'mmseg.utils.tokenizer', 'ftfy'}\n"
        "print(*sorted(heavy & sys.modules.keys()))\n"
        "import scipy.interpolate, scipy.optimize, torch.distributed.fsdp, torch._dynamo, mmseg.utils.tokenizer\n"
        "assert mmseg.utils.tokenizer.tokenize('road').shape == (1, 77)\n"
        "print(scipy.optimize.minimize.__module__, torch.distributed.fsdp.FullyShardedDataParallel.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    absent, present = done.stdout.splitlines()[-2:]
    assert absent == ""
    assert present == "scipy.optimize._minimize torch.distributed.fsdp.fully_sharded_data_parallel"


def test_timm_is_imported_where_a_backbone_needs_it():
    backbone = {"_delete_": True, "type": "TIMMBackbone", "model_name": "no_such_network"}
    with pytest.raises(GenValError, match="Unknown model"):  # timm says so
        build({"model.backbone": backbone})


def test_bad_configs(tmp_path):
    with pytest.raises(GenValError, match=r"no config .*/absent.py, nor does mmsegmentation ship one"):
        read_config("absent.py")
    for text, message in (
        ("model = dict(", "Cannot read the config"),
        ("x = 1", "no `model = dict"),
        ("custom_imports = dict(imports=['no_such_package'])\nmodel = dict(type='EncoderDecoder')", "no_such_package"),
    ):
        path = tmp_path / "config.py"
        path.write_text(text)
        with pytest.raises(GenValError, match=message):
            read_config(path)
    (tmp_path / "config.py").write_text("model = dict(type='NoSuchModel')")
    with pytest.raises(GenValError, match=r"Cannot build the model .*NoSuchModel"):
        build_network(tmp_path / "config.py")


def test_models_that_do_not_fit_the_protocol():
    with pytest.raises(GenValError, match="150 classes, expected 19"):
        OpenMMLabSegmenter("net", build({"model.decode_head.num_classes": 150}))
    with pytest.raises(GenValError, match="test mode 'whole' or 'slide' expected, found 'tile'"):
        OpenMMLabSegmenter("net", build({"model.test_cfg": {"_delete_": True, "mode": "tile"}}))


def test_a_checkpoint_of_another_model_is_refused(tmp_path, checkpoint, network):
    state = dict(network.state_dict())
    state["decode_head.conv_seg.weights"] = state.pop("decode_head.conv_seg.weight")
    torch.save({"state_dict": state}, tmp_path / "renamed.pth")
    with pytest.raises(GenValError, match=r"1 missing: decode_head.conv_seg.weight; 1 not in the model: .*weights"):
        load_openmmlab("net", CONFIG, tmp_path / "renamed.pth", torch.device("cpu"))
    with pytest.raises(GenValError, match=r"does not fit the config mini/segmenters/semfpn-r18.py"):
        load_openmmlab("net", "mini/segmenters/semfpn-r18.py", checkpoint, torch.device("cpu"))


@pytest.mark.slow
def test_lraspp_takes_small_images():
    """Its pooling window of 49 needs 392 pixels at stride 8: smaller images are padded, larger ones are not."""
    network = build_network(path_dicts.ZOO["MobileNetV3"]["config"])
    segmenter = OpenMMLabSegmenter("MobileNetV3", network)
    assert segmenter.minimum_size == 392
    assert segmenter(torch.zeros(1, 3, 100, 200, dtype=torch.uint8)).shape == (1, 19, 100, 200)
    images = torch.randint(0, 256, (1, 3, 400, 408), dtype=torch.uint8)
    torch.testing.assert_close(segmenter(images), mmseg_inference(network, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["PSPNet-R18", "SegFormer-B0", pytest.param("BiSeNetV2-FCN", marks=pytest.mark.slow)])
def test_zoo_models_load_and_run(tmp_path, name):
    """The whole way of a zoo file, with random weights; sizes that no stride divides."""
    from genval.segmenters import load_segmenter

    entry = path_dicts.ZOO[name]
    network = build_network(entry["config"], entry.get("overrides"))
    path = tmp_path / entry["checkpoint"]
    path.parent.mkdir()
    torch.save({"state_dict": network.state_dict(), "meta": {}}, path)
    segmenter = load_segmenter(name, torch.device("cpu"), checkpoint_root=tmp_path)
    images = torch.randint(0, 256, (1, 3, 67, 131), dtype=torch.uint8)
    assert segmenter(images).shape == (1, 19, 67, 131)
    torch.testing.assert_close(segmenter(images), mmseg_inference(network, images), rtol=0, atol=1e-4)


@pytest.mark.slow
# The key list has no comparable ConvNeXt rows; another test compares their numbers of parameters.
@pytest.mark.parametrize("name", [name for name in path_dicts.ZOO if not name.startswith("ConvNext")])
def test_zoo_models_have_the_keys_of_their_published_files(name):
    with gzip.open(GOLDEN_KEYS) as stream:
        expected = json.load(stream)[name]["sd"]
    with init_empty_weights():  # shapes alone: filling and freeing the weights takes most of the time
        network = build_network(path_dicts.ZOO[name]["config"], path_dicts.ZOO[name].get("overrides"))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in path_dicts.ZOO if name.startswith("ConvNext")])
def test_convnext_models_have_torchvisions_backbone_and_run(name):
    """What stands in for a comparison of keys, since no list of the published files' keys is at hand."""
    from torchvision.models import convnext_base, convnext_large

    network = build_network(path_dicts.ZOO[name]["config"], path_dicts.ZOO[name].get("overrides")).eval()
    with torch.device("meta"):
        reference = (convnext_large if name == "ConvNext" else convnext_base)().features
    shapes = sorted(tuple(p.squeeze().shape) for p in reference.parameters())
    # mmpretrain gives each of the four stages an output norm, which torchvision has once, outside of the features.
    backbone = [p for key, p in network.backbone.named_parameters() if not key.startswith("norm")]
    assert sorted(tuple(p.squeeze().shape) for p in backbone) == shapes
    assert network.test_cfg["crop_size"] == [769, 769]
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 128)).shape == (1, 19, 16, 32)


SHIPPED = "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py"


def test_a_config_may_be_based_on_a_shipped_one(tmp_path):
    (tmp_path / "own.py").write_text(f'_base_ = "{SHIPPED}"\n')
    assert read_config(tmp_path / "own.py").model.backbone.type == "MixVisionTransformer"
    (tmp_path / "own.yaml").write_text(f"_base_: {SHIPPED}\nmodel: {{backbone: {{embed_dims: 8}}}}\n")
    assert read_config(tmp_path / "own.yaml").model.backbone.embed_dims == 8


def mark(tmp_path):
    return f'open({str(tmp_path / "ran")!r}, "w")'


def test_a_python_config_from_elsewhere_needs_trust(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(f'_base_ = "{SHIPPED}"\n{mark(tmp_path)}\n')
    message = rf'own\.py is Python code.*--trust_code.*TRUSTED_FOLDERS = \("{tmp_path}",\)'
    with pytest.raises(GenValError, match=message):
        read_config(tmp_path / "own.py", trust_code=False)
    assert not (tmp_path / "ran").exists()
    read_config(tmp_path / "own.py", trust_code=True)
    monkeypatch.setattr(path_dicts, "TRUSTED_FOLDERS", (str(tmp_path),))
    read_config(tmp_path / "own.py", trust_code=False)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_base_outside_the_trusted_folder_needs_trust(tmp_path, monkeypatch, lazy):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.setattr(path_dicts, "TRUSTED_FOLDERS", (str(inside),))
    (tmp_path / "outside.py").write_text(f"model = dict(type='EncoderDecoder')\n{mark(tmp_path)}\n")
    text = "from mmengine.config import read_base\nwith read_base():\n    from ..outside import *\n"
    (inside / "own.py").write_text(text if lazy else '_base_ = "../outside.py"\n')
    (inside / "link.py").symlink_to(tmp_path / "outside.py")
    for name in ("own.py", "link.py"):
        with pytest.raises(GenValError, match=r"outside\.py is Python code"):
            read_config(inside / name, trust_code=False)
    assert not (tmp_path / "ran").exists()
    assert read_config(inside / "own.py", trust_code=True).model.type == "EncoderDecoder"


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
@pytest.mark.parametrize(
    "content",
    [
        "model: !!python/object/apply:os.system ['touch RAN']",
        "model: !!python/object/apply:builtins.open [RAN, w]",
        "model: {type: EncoderDecoder}\nx: '{{ $NONE:'' }}'\ny: !!python/object/apply:os.system ['touch RAN']",
        "model: {type: EncoderDecoder}\nx: {{ $NONE:!!python/object/apply:os.system ['touch RAN'] }}",
        '{"model": {"type": "os.system", "command": "touch RAN"}}',
        '{"model": {"type": "mmengine.mkdir_or_exist", "dir_name": "RAN"}}',
        '{"model": {"type": "EncoderDecoder", "backbone": {"type": "builtins.open", "file": "RAN", "mode": "w"}}}',
        '{"model": {"type": "EncoderDecoder", "backbone": {"type": "X", "_scope_": "evil"}}}',
        '{"model": {"type": "evil.X"}}',
        '{"model": {"type": "EncoderDecoder"}, "custom_imports": {"imports": ["evil"]}}',
        '{"model": {"type": "EncoderDecoder"}, "_base_": "base.py"}',
        '{"model": {"type": "EncoderDecoder"}, "_base_": "base.yaml"}',
    ],
)
def test_a_data_file_never_runs_code(tmp_path, monkeypatch, content, suffix):
    ran = tmp_path / "ran"
    for name in ("base.py", "evil/__init__.py", "evil/registry.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(mark(tmp_path))
    (tmp_path / "base.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {ran}']")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"own.{suffix}").write_text(content.replace("RAN", str(ran)))
    with pytest.raises(GenValError, match="own"):
        build_network(tmp_path / f"own.{suffix}")
    assert not ran.exists()


def test_a_config_cannot_ask_for_code_of_a_hub(tmp_path):
    (tmp_path / "own.py").write_text("model = dict(type='EncoderDecoder', backbone=dict(trust_remote_code=True))")
    with pytest.raises(GenValError, match="trust_remote_code"):
        read_config(tmp_path / "own.py")
