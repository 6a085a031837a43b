"""Names, prefixes and factories."""

import shutil

import pytest
import torch

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from genval.segmenters import describe_segmenters, list_segmenters, load_segmenter, specify

CONFIG = "mini/segmenters/pspnet-r18.py"

CPU = torch.device("cpu")


def test_the_names_are_the_zoo_and_the_mini_segmenters():
    assert len(path_dicts.ZOO) == 42
    assert len(path_dicts.MINI_SEGMENTERS) >= 9
    assert list_segmenters() == [*path_dicts.ZOO, *path_dicts.MINI_SEGMENTERS]


@pytest.mark.parametrize(("wrong", "meant"), [("segformer-b5", "SegFormer-B5"), ("PSPNet-R5", "PSPNet-R50")])
def test_an_unknown_name_gets_suggestions_and_how_to_list(wrong, meant):
    with pytest.raises(GenValError, match=f"Unknown segmenter '{wrong}'") as error:
        load_segmenter(wrong, CPU)
    assert meant in str(error.value)
    assert "--list_models" in str(error.value)


def test_a_missing_zoo_file_is_named_with_its_place_and_source(tmp_path):
    with pytest.raises(GenValError) as error:
        load_segmenter("PSPNet-R18", CPU, checkpoint_root=tmp_path)
    assert str(tmp_path / path_dicts.ZOO["PSPNet-R18"]["checkpoint"]) in str(error.value)
    assert "model zoo of mmsegmentation 0.x: https://" in str(error.value)
    with pytest.raises(GenValError, match="not in mmsegmentation's model zoo"):
        load_segmenter("UpperNetR18", CPU, checkpoint_root=tmp_path)


@pytest.mark.parametrize("below", ["", "my_links"])
def test_a_zoo_file_is_found_in_place_and_one_folder_deeper(tmp_path, monkeypatch, checkpoint, images, below):
    monkeypatch.setitem(path_dicts.ZOO, "Tiny", {"config": CONFIG, "checkpoint": "PSPNet/tiny.pth"})
    place = tmp_path / "checkpoints" / below / "PSPNet"
    place.mkdir(parents=True)
    shutil.copy(checkpoint, place / "tiny.pth")
    segmenter = load_segmenter("Tiny", CPU, checkpoint_root=tmp_path / "checkpoints")
    assert segmenter.name == "Tiny"
    assert segmenter(images).shape == (2, 19, 96, 160)


def test_overrides_of_the_zoo_reach_the_network(monkeypatch, checkpoint):
    entry = {
        "config": CONFIG,
        "checkpoint": str(checkpoint),
        "overrides": {"model.test_cfg": {"_delete_": True, "mode": "slide", "crop_size": [64, 64], "stride": [32, 32]}},
    }
    monkeypatch.setitem(path_dicts.ZOO, "Tiny", entry)
    assert load_segmenter("Tiny", CPU).test_mode == "slide"


def test_mmseg_prefix(tmp_path, checkpoint, images):
    segmenter = load_segmenter(f"mmseg:{CONFIG},{checkpoint}", CPU)
    logits = segmenter(images, (50, 70))
    assert (logits.shape, logits.dtype) == ((2, 19, 50, 70), torch.float32)
    with pytest.raises(GenValError, match="mmseg:CONFIG,CHECKPOINT"):
        load_segmenter(f"mmseg:{CONFIG}", CPU)
    with pytest.raises(GenValError, match=r"no checkpoint absent.pth"):
        load_segmenter(f"mmseg:{CONFIG},absent.pth", CPU, checkpoint_root=tmp_path)


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "my_segmenters.py").write_text(
        "import torch\n"
        "def brightness(device):\n"
        "    return lambda images: images.float().mean(1, keepdim=True).repeat(1, 19, 1, 1)[..., ::2, ::2]\n"
        "def convolution(device):\n"
        "    class Net(torch.nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.convolution = torch.nn.Conv2d(3, 19, 3, padding=1)\n"
        "        def forward(self, images):\n"
        "            return self.convolution(images.float() / 255)\n"
        "    return Net().to(device)\n"
        "def three_classes(device):\n"
        "    return lambda images: images.float()\n"
        "def nothing(device):\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_any_python_function_makes_a_segmenter(factories, images):
    logits = load_segmenter("my_segmenters:brightness", CPU, trust_code=True)(images)
    assert (logits.shape, logits.dtype) == ((2, 19, 96, 160), torch.float32)
    network = load_segmenter("my_segmenters:convolution", CPU, "bf16-true", trust_code=True)
    assert network(images).dtype == torch.float32
    assert not network.function.training
    assert not network(images).requires_grad


def test_functions_that_do_not_keep_the_protocol(factories, images):
    with pytest.raises(GenValError, match="has 3 classes, expected 19"):
        load_segmenter("my_segmenters:three_classes", CPU, trust_code=True)(images)
    with pytest.raises(GenValError, match="returned NoneType"):
        load_segmenter("my_segmenters:nothing", CPU, trust_code=True)
    with pytest.raises(GenValError, match="no attribute 'absent'"):
        load_segmenter("my_segmenters:absent", CPU, trust_code=True)
    with pytest.raises(GenValError, match="No module named 'no_such_module'"):
        load_segmenter("no_such_module:function", CPU)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8)],
    ids=["float", "no batch", "channels last"],
)
def test_images_of_another_kind_are_refused(factories, bad):
    with pytest.raises(GenValError, match="expects RGB uint8 images"):
        load_segmenter("my_segmenters:brightness", CPU, trust_code=True)(bad)


def test_an_unknown_precision_is_refused():
    with pytest.raises(GenValError, match="Unknown precision 'fp8'"):
        load_segmenter("PSPNet-R18", CPU, "fp8")


def test_a_function_that_fails_is_named():
    with pytest.raises(GenValError, match=r"os:getcwd failed on its device cpu: TypeError"):
        load_segmenter("os:getcwd", "cpu")


def test_the_list_says_what_is_on_the_disk(tmp_path, checkpoint):
    place = tmp_path / "roots" / path_dicts.ZOO["PSPNet-R18"]["checkpoint"]
    place.parent.mkdir(parents=True)
    shutil.copy(checkpoint, place)
    lines = describe_segmenters(tmp_path / "roots").splitlines()
    listed = {line[5:].split()[0]: line[:3] for line in lines[1:] if line[:3] in ("yes", " - ")}
    assert list(listed) == list_segmenters()
    assert [name for name in path_dicts.ZOO if listed[name] == "yes"] == ["PSPNet-R18"]
    assert all(listed[name] == "yes" for name in path_dicts.MINI_SEGMENTERS)
    assert "onnx:FILE" in lines[-3]


def test_a_misspelled_prefix_gets_a_suggestion():
    with pytest.raises(GenValError, match=r"Did you mean torchvision:\?"):
        load_segmenter("torchvison:fcn_resnet50,a.pth", CPU)


def test_names_the_hub_does_not_have_or_cannot_be_asked_for(monkeypatch, capfd):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    class NotFound(RepositoryNotFoundError):
        def __init__(self):  # without an answer of the hub, which is of another class in each version
            Exception.__init__(self, "404")

    def unknown(*args, **kwargs):
        raise NotFound

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    with pytest.raises(GenValError, match=r"There is no folder .*nowhere\. Expected config\.json"):
        load_segmenter("hf:./nowhere", CPU)
    with pytest.raises(GenValError, match=r"There is no folder .*checkpoints/mini/none\. Expected config\.json"):
        specify("hf:checkpoints/mini/none")  # as --dry_run does
    assert specify("hf:no/such-model").file is None
    monkeypatch.setattr(HfApi, "model_info", unknown)
    with pytest.raises(GenValError, match=r"no folder .*no/such-model, and the Hugging Face hub has no model"):
        load_segmenter("hf:no/such-model", CPU)
    monkeypatch.setattr(HfApi, "model_info", offline)
    with pytest.raises(
        GenValError, match=r"there is no such folder, the hub cannot be reached, and its cache holds no"
    ):
        load_segmenter("hf:no/such-model", CPU)
    assert "Retry" not in "".join(capfd.readouterr())


def test_loading_draws_no_random_numbers(monkeypatch, tmp_path, checkpoint, network):
    from torchvision.models import get_model

    monkeypatch.setitem(path_dicts.ZOO, "Tiny", {"config": CONFIG, "checkpoint": str(checkpoint)})
    built = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=19)
    torch.save(built.state_dict(), tmp_path / "net.pth")
    before = torch.get_rng_state()
    tiny = load_segmenter("Tiny", CPU).network
    other = load_segmenter(f"torchvision:lraspp_mobilenet_v3_large,{tmp_path}/net.pth", CPU).network
    assert torch.equal(before, torch.get_rng_state())
    for loaded, expected in ((tiny, network), (other, built)):
        values = expected.state_dict()
        assert loaded.state_dict().keys() == values.keys()
        assert all(torch.equal(value, values[name]) for name, value in loaded.state_dict().items())
        buffers = dict(expected.named_buffers())  # also those that are not saved
        assert all(torch.equal(value, buffers[name]) for name, value in loaded.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_compiled_and_channels_last_change_nothing_but_the_rounding(monkeypatch, checkpoint, images, mode):
    test_cfg = {"_delete_": True, "mode": mode, "crop_size": [64, 64], "stride": [32, 32]}
    entry = {"config": CONFIG, "checkpoint": str(checkpoint), "overrides": {"model.test_cfg": test_cfg}}
    monkeypatch.setitem(path_dicts.ZOO, "Tiny", entry)
    expected = load_segmenter("Tiny", CPU)(images)
    segmenter = load_segmenter("Tiny", CPU, channels_last=True)
    assert segmenter.prepare(images).is_contiguous(memory_format=torch.channels_last)
    traced = []

    def backend(graph, inputs):
        traced.append(inputs)
        return graph.forward

    segmenter.compile_network(backend)
    torch.testing.assert_close(segmenter(images), expected, rtol=0, atol=1e-4)
    assert traced


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_reduced_precision_on_a_cpu_is_the_same_up_to_rounding(tmp_path, monkeypatch, images, precision):
    """oneDNN gives nonsense for this convolution in bfloat16 on some processors (torch 2.14.1)."""
    (tmp_path / "strided.py").write_text(
        "import torch\n"
        "def make(device):\n"
        "    torch.manual_seed(0)\n"
        "    spread, reduce = torch.nn.Conv2d(3, 16, 1), torch.nn.Conv2d(16, 16, 8, stride=8)\n"
        "    classify = torch.nn.Conv2d(16, 19, 1)\n"
        "    return lambda images: classify(reduce(spread(images.float() / 255)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    full = load_segmenter("strided:make", CPU, trust_code=True)(images)
    reduced = load_segmenter("strided:make", CPU, precision, trust_code=True)(images)
    assert 0 < (reduced - full).norm() < 0.02 * full.norm()


def test_a_module_from_elsewhere_needs_trust(tmp_path, monkeypatch):
    for name in ("outside/__init__.py", "outside/inner.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(device):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("outside:make", "outside.inner:make"):
        with pytest.raises(GenValError, match=rf"^{name}: \S*outside/__init__\.py is Python code.*--trust_code"):
            load_segmenter(name, CPU)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(path_dicts, "TRUSTED_FOLDERS", (str(tmp_path),))
    with pytest.raises(GenValError, match="returned NoneType"):
        load_segmenter("outside.inner:make", CPU)


def test_a_config_from_elsewhere_needs_trust(tmp_path, checkpoint):
    (tmp_path / "own.py").write_text(f"_base_ = {str(resolve(CONFIG))!r}")
    with pytest.raises(GenValError, match=r"own\.py is Python code.*--trust_code"):
        load_segmenter(f"mmseg:{tmp_path}/own.py,{checkpoint}", CPU)
    load_segmenter(f"mmseg:{tmp_path}/own.py,{checkpoint}", CPU, trust_code=True)
