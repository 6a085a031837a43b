"""The original format without the original code: round trips, diffusers' own converters, and what is refused."""

import collections
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_world import write_base, write_xl_base
from safetensors.torch import load_file, save_file

from genval.diffusion.models.controlnet import (
    DEFAULT_BASE,
    add_control,
    default_base,
    find_controlnet,
    load_controlnet,
    save_controlnet,
)
from genval.diffusion.models.pipelines import StableDiffusion, checkpoint_hash, find_base, load_base
from genval.diffusion.original import keys as original_keys
from genval.diffusion.original.keys import Shapes
from genval.diffusion.original.reading import clip_tokenizer, part_sources
from genval.diffusion.original.writing import original_state, save_original
from genval.runtime.errors import GenValError

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part


@pytest.fixture(scope="module")
def models(base_folder: Path, controlnet_folder: Path) -> tuple[StableDiffusion, Any]:
    base = load_base(base_folder)
    return base, load_controlnet(controlnet_folder, base)


@pytest.fixture(scope="module")
def checkpoint(models: tuple[StableDiffusion, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "controlnet_cs.ckpt"
    save_original(*models, path)
    return path


def rewrite(source: Path, path: Path, **changes: torch.Tensor | None) -> Path:
    """A copy of a checkpoint with keys set, or dropped where the value is None."""
    content = torch.load(source, weights_only=True)
    content["state_dict"] = {
        key: value for key, value in {**content["state_dict"], **changes}.items() if value is not None
    }
    torch.save(content, path)
    return path


def assert_same(one: Any, other: Any) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


@pytest.mark.parametrize(
    ("world", "suffix"),
    [
        ("base", ".ckpt"),
        pytest.param("base", ".safetensors", marks=pytest.mark.slow),
        pytest.param("xl", ".ckpt", marks=pytest.mark.slow),
        ("xl", ".safetensors"),
    ],
)
def test_what_is_written_comes_back_bit_for_bit(
    models: tuple[StableDiffusion, Any], tmp_path: Path, suffix: str, world: str
) -> None:
    base, controlnet = models
    if world == "xl":
        base = load_base(write_xl_base(tmp_path / "xl"))
        controlnet = add_control(base, hint_init="hinges")
        base.zero_empty_prompts = False
    path = tmp_path / f"all{suffix}"
    save_original(base, controlnet, path)
    again = load_base(path)
    assert type(again) is type(base) and again.folder == path and default_base(path) == path
    for one, other in zip(base.models, again.models, strict=True):
        assert_same(one, other)
        assert not any(parameter.requires_grad for parameter in other.parameters())
    loaded = load_controlnet(path, again)
    assert_same(controlnet, loaded)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config["hint_encoding"] == "label_id"
    # Prediction type, tokenizer and heads are not in the published format: they are in an additional entry.
    assert again.scheduler_config == base.scheduler_config
    prompts = ["a street, cars", ""]
    assert torch.equal(again.encode_text(prompts).states, base.encode_text(prompts).states)
    noisy, step = torch.randn(2, 4, 8, 16), torch.tensor(5)
    text = base.encode_text(prompts)
    added = base.added_conditions(text, 32, 64)
    with torch.no_grad():
        ours, theirs = (
            model.unet(noisy, step, text.states, added_cond_kwargs=added, return_dict=False)[0]
            for model in (base, again)
        )
    assert torch.equal(ours, theirs)


def test_half_precision(checkpoint: Path, models: tuple[StableDiffusion, Any], tmp_path: Path) -> None:
    save_original(*models, tmp_path / "half.ckpt", "fp16")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert state["control_model.input_blocks.0.0.weight"].dtype == torch.float16
    assert state["betas"].dtype == torch.float32
    base = load_base(tmp_path / "half.ckpt")
    assert base.dtype == base.vae.dtype == torch.float32
    half = load_base(checkpoint, dtype=torch.bfloat16)
    assert half.dtype == half.text_encoder.dtype == torch.bfloat16


def test_weights_do_not_lean_on_the_file(checkpoint: Path, tmp_path: Path) -> None:
    """Files are mapped into memory: what was read must not change or fail when the file does."""
    path = tmp_path / "c.ckpt"
    shutil.copy(checkpoint, path)
    base = load_base(path)
    before = base.unet.conv_in.weight.clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(base.unet.conv_in.weight, before)


@pytest.mark.parametrize("world", ["base", "xl"])
def test_names_agree_with_the_converters_of_diffusers(
    models: tuple[StableDiffusion, Any], tmp_path: Path, world: str
) -> None:
    from diffusers.loaders.single_file_utils import (
        convert_controlnet_checkpoint,
        convert_ldm_clip_checkpoint,
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
        convert_open_clip_checkpoint,
    )

    base, controlnet = models
    if world == "xl":
        base = load_base(write_xl_base(tmp_path / "xl"))
    state = original_state(base, controlnet if world == "base" else None)

    def check(model: Any, converted: dict[str, torch.Tensor]) -> None:
        ours = {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}
        theirs = {key.removeprefix("text_model."): tensor for key, tensor in converted.items()}
        # Theirs counts on eight convolutions in the hint's embedding, which are as many as a VAE's factor of 8 makes.
        for side in (ours, theirs):
            for key in [key for key in side if key.endswith("position_ids") or "controlnet_cond_embedding" in key]:
                del side[key]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())

    check(base.unet, convert_ldm_unet_checkpoint(dict(state), dict(base.unet.config)))
    check(base.vae, convert_ldm_vae_checkpoint(dict(state), dict(base.vae.config)))
    if world == "base":
        check(controlnet, convert_controlnet_checkpoint(dict(state), dict(controlnet.config)))
        check(base.text_encoder, convert_ldm_clip_checkpoint(dict(state)))
    else:
        check(base.text_encoder, convert_ldm_clip_checkpoint(dict(state), "conditioner.embedders.0.transformer."))
        prefix = "conditioner.embedders.1.model."
        check(base.text_encoder_2, convert_open_clip_checkpoint(base.text_encoder_2, dict(state), prefix))


def test_sizes_of_the_published_xl_are_read_off_its_shapes() -> None:
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    published = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    }
    text = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    with init_empty_weights():
        unet = UNet2DConditionModel(**published)
        encoder = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=49408, projection_dim=1280, **text))
    state = original_keys.write(part_sources("unet", unet), unet.state_dict())
    state |= original_keys.write(part_sources("text_encoder_2", encoder), encoder.state_dict())
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    # The published file has 1680 tensors of the UNet, and of this encoder 390 with the logit scale.
    assert len(shapes) == 1680 + 389
    found = original_keys.unet_config(Shapes(shapes, original_keys.UNET, "file"))
    assert {key: found[key] for key in published} == published and found["layers_per_block"] == 2
    found = original_keys.open_clip_config(Shapes(shapes, original_keys.TEXT_XL_2, "file"))
    assert {key: found[key] for key in text} == text and found["projection_dim"] == 1280


def test_files_of_lightning_with_its_callback_as_a_key(
    checkpoint: Path, models: tuple[StableDiffusion, Any], tmp_path: Path
) -> None:
    from pytorch_lightning.callbacks.model_checkpoint import ModelCheckpoint

    content = torch.load(checkpoint, weights_only=True)
    content |= {"callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.0), "dirpath": "x"}}, "epoch": 7}
    content["optimizer_states"] = [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": []}]
    torch.save(content, tmp_path / "lightning.ckpt")
    assert_same(load_base(tmp_path / "lightning.ckpt").unet, models[0].unet)


def test_other_containers(checkpoint: Path, models: tuple[StableDiffusion, Any], tmp_path: Path) -> None:
    """A bare state dict, the format of torch before 1.6, and a ControlNet alone."""
    content = torch.load(checkpoint, weights_only=True)
    expected, controlnet = models
    torch.save({**content["state_dict"], "genval": content["genval"]}, tmp_path / "bare.pth")
    assert_same(load_base(tmp_path / "bare.pth").vae, expected.vae)
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert_same(load_base(tmp_path / "old.ckpt").text_encoder, expected.text_encoder)
    alone = {key: value for key, value in content["state_dict"].items() if key.startswith("control_model.")}
    save_file(alone, tmp_path / "alone.safetensors", {"genval": json.dumps({"configs": content["genval"]["configs"]})})
    assert_same(load_controlnet(tmp_path / "alone.safetensors", expected), controlnet)
    assert default_base(tmp_path / "alone.safetensors") == DEFAULT_BASE
    with pytest.raises(GenValError, match=r"a ControlNet alone: give it as --controlnet"):
        load_base(tmp_path / "alone.safetensors")


def test_documented_extras_are_passed_over(
    checkpoint: Path, models: tuple[StableDiffusion, Any], tmp_path: Path
) -> None:
    extras = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
        "model_ema.diffusion_modeltime_embed0weight": torch.ones(2, 2),
        "posterior_mean_coef1": None,
        "cond_stage_model.transformer.text_model.embeddings.position_ids": None,
    }
    base = load_base(rewrite(checkpoint, tmp_path / "ema.ckpt", **extras))
    assert_same(base.unet, models[0].unet)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_stage_model.encoder.conv_in.bias": None}, "missing keys: first_stage_model.encoder.conv_in.bias;"),
        ({"model.diffusion_model.new.weight": torch.ones(1)}, "unexpected keys: model.diffusion_model.new.weight;"),
        ({"something_else": torch.ones(1)}, "unexpected keys: something_else;"),
        ({"first_stage_model.decoder.conv_in.bias": torch.ones(3)}, "other shapes: first_stage_model.decoder.conv_in"),
        ({"model.diffusion_model.out.2.weight": None}, "has no model.diffusion_model.out.2.weight"),
        ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "noise schedule is not Stable Diffusion's"),
    ],
)
def test_keys_are_compared_strictly(
    checkpoint: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], words: str
) -> None:
    path = rewrite(checkpoint, tmp_path / "c.ckpt", **changes)
    with pytest.raises(GenValError) as error:
        load_base(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_controls_keys_are_compared_when_it_is_loaded(
    checkpoint: Path, models: tuple[StableDiffusion, Any], tmp_path: Path
) -> None:
    key = "control_model.zero_convs.1.0.bias"
    path = rewrite(checkpoint, tmp_path / "c.ckpt", **{key: None})
    with pytest.raises(GenValError, match=f"missing keys: {key}"):
        load_controlnet(path, models[0])


def test_a_base_without_control_says_so(models: tuple[StableDiffusion, Any], tmp_path: Path) -> None:
    save_original(models[0], None, tmp_path / "base.ckpt")
    with pytest.raises(GenValError, match="a base without a ControlNet: make one with"):
        load_controlnet(tmp_path / "base.ckpt", models[0])


def test_wrong_base_and_wrong_hints(checkpoint: Path, base_folder: Path, tmp_path: Path) -> None:
    other = load_base(write_base(tmp_path / "other", cross_attention_dim=16))
    with pytest.raises(GenValError, match="cross_attention_dim 32 instead of 16"):
        load_controlnet(checkpoint, other)
    xl = load_base(write_xl_base(tmp_path / "xl"))
    with pytest.raises(GenValError, match="addition_embed_type None instead of text_time"):
        load_controlnet(checkpoint, xl)
    content = torch.load(checkpoint, weights_only=True)
    del content["genval"]["configs"]["controlnet"]["hint_encoding"]
    content["genval"]["configs"]["controlnet"]["conditioning_channels"] = 3
    weights = content["state_dict"]["control_model.input_hint_block.0.weight"]
    content["state_dict"]["control_model.input_hint_block.0.weight"] = weights.repeat(1, 3, 1, 1)
    torch.save(content, tmp_path / "colour.ckpt")
    with pytest.raises(GenValError, match="found None and 3 hint channels"):
        load_controlnet(tmp_path / "colour.ckpt", load_base(base_folder))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("cut.ckpt", "half", "damaged, or only a part was fetched"),
        ("cut.safetensors", "half", "damaged, or only a part was fetched"),
        ("pointer.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("page.safetensors", b"<!doctype html><html>sign in</html>", "a web page"),
        ("empty.ckpt", b"", "damaged"),
    ],
)
def test_damaged_files(
    models: tuple[StableDiffusion, Any], tmp_path: Path, name: str, data: bytes | str, words: str
) -> None:
    path = tmp_path / name
    if data == "half":
        save_original(models[0], None, path)
        data = path.read_bytes()[: path.stat().st_size // 2]
    assert isinstance(data, bytes)
    path.write_bytes(data)
    with pytest.raises(GenValError) as error:
        load_base(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper": collections.UserDict(a=1)}, tmp_path / "c.ckpt")
    with pytest.raises(GenValError, match=r"cannot be read safely.*UserDict"):
        load_base(tmp_path / "c.ckpt")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("cond_stage_model.model.ln_final.weight", "Stable Diffusion 2"),
        ("double_blocks.0.img_attn.norm.weight", "Flux"),
        ("down_blocks.0.resnets.0.conv1.weight", "one part in diffusers' names"),
        ("decode_head.conv_seg.weight", "a segmenter"),
        ("controlnet.conv_in.weight", r"a checkpoint of ControlNet/train\.py"),
        ("strange.weight", "something else"),
    ],
)
def test_other_models_are_named(tmp_path: Path, key: str, words: str) -> None:
    save_file({key: torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(GenValError, match=words):
        load_base(tmp_path / "m.safetensors")


def test_a_missing_file_says_what_to_give() -> None:
    with pytest.raises(GenValError, match=r"No checkpoint at .*checkpoints/none\.ckpt"):
        load_base("checkpoints/none.ckpt")


def test_a_name_without_a_suffix_means_the_file_where_there_is_no_folder(
    checkpoint: Path, controlnet_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(checkpoint, tmp_path / "controlnet_cs.ckpt")
    name = tmp_path / "controlnet_cs"
    assert find_controlnet(name) == find_base(name) == default_base(name) == tmp_path / "controlnet_cs.ckpt"
    shutil.copytree(controlnet_folder, name)
    assert find_controlnet(name) == name and default_base(name) == DEFAULT_BASE


def test_hash_of_a_file(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    shutil.copy(checkpoint, path)
    assert checkpoint_hash(path) == checkpoint_hash(checkpoint) and len(checkpoint_hash(path)) == 12
    rewrite(checkpoint, path, betas=torch.zeros(3))
    assert checkpoint_hash(path) != checkpoint_hash(checkpoint)


def test_folder_next_to_the_file_takes_precedence(checkpoint: Path, base_folder: Path, tmp_path: Path) -> None:
    """Configs and tokenizer that a file does not carry."""
    content = torch.load(checkpoint, weights_only=True)
    configs = content.pop("genval")["configs"]
    torch.save(content, tmp_path / "c.ckpt")
    with pytest.raises(GenValError, match=r"no unet can be built of .*, or the configs in the folder .*/c\."):
        load_base(tmp_path / "c.ckpt")
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / "c" / part).mkdir(parents=True)
        (tmp_path / "c" / part / "config.json").write_text(json.dumps(configs[part]))
    with pytest.raises(GenValError, match=r"noise schedule.*c/scheduler/scheduler_config\.json"):
        load_base(tmp_path / "c.ckpt")
    (tmp_path / "c/scheduler").mkdir()
    (tmp_path / "c/scheduler/scheduler_config.json").write_text(json.dumps(configs["scheduler"]))
    with pytest.raises(GenValError, match="no tokenizer, and its 58 tokens are not CLIP's 49408"):
        load_base(tmp_path / "c.ckpt")
    shutil.copytree(base_folder / "tokenizer", tmp_path / "c/tokenizer")
    ours, theirs = load_base(tmp_path / "c.ckpt"), load_base(base_folder)
    assert ours.scheduler_config == theirs.scheduler_config
    assert torch.equal(ours.encode_text(["a car"]).states, theirs.encode_text(["a car"]).states)


def test_clip_tokenizer_is_clips() -> None:
    """Ids of known prompts, and open_clip's own tokenizer on more."""
    open_clip = pytest.importorskip("open_clip")
    tokenizer = clip_tokenizer()
    assert tokenizer(["a photo of a cat"]).input_ids == [[49406, 320, 1125, 539, 320, 2368, 49407]]
    texts = [
        "a street with cars parked on the side of the road, in fog",
        "Neustrasse 12 - it's a 4-lane road; traffic lights & signs (100%)!",
        "café, déjà vu, straße, 東京, 🚗",
        "  several   spaces\nand lines  ",
        "",
        "word " * 100,
    ]
    theirs = open_clip.SimpleTokenizer()(texts)
    ours = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    for row, other in zip(ours.input_ids, theirs, strict=True):
        # open_clip fills up with 0, Stable Diffusion 1 with the token for the end.
        length = int(other.argmax()) + 1
        assert row[:length].tolist() == other[:length].tolist() and (row[length:] == 49407).all()
    assert clip_tokenizer("!")([""], padding="max_length").input_ids[0][:4] == [49406, 49407, 0, 0]


def test_without_open_clip_the_advice_is_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GenValError, match=r"pip install open_clip_torch, or put .* into here"):
        clip_tokenizer(place=Path("here"))


@pytest.fixture
def half_folder(base_folder: Path, tmp_path: Path) -> Path:
    """A base of which only the half-precision variants of the weights are there."""
    folder = tmp_path / "half"
    shutil.copytree(base_folder, folder)
    for file in [*folder.rglob("*.safetensors")]:
        halves = {key: value.half() for key, value in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
    return folder


def test_folder_of_half_precision_variants(base_folder: Path, half_folder: Path) -> None:
    base = load_base(half_folder)
    assert base.dtype == torch.float32
    assert torch.equal(base.unet.conv_in.weight, load_base(base_folder).unet.conv_in.weight.half().float())
    assert checkpoint_hash(half_folder) != checkpoint_hash(base_folder)


def test_variants_are_asked_for_where_a_hub_name_has_nothing_else(
    half_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(half_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_base("owner/model").folder == half_folder
    assert len(asked) == 2 and "unet/diffusion_pytorch_model.fp16.safetensors" in asked[1]
    assert not any("fp16" in pattern for pattern in asked[0])


def test_export_without_a_folder_to_write_to(models: tuple[StableDiffusion, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GenValError, match="Cannot write"):
        save_original(*models, tmp_path / "file" / "c.ckpt")
    save_controlnet(models[1], tmp_path / "folder")
    assert_same(load_controlnet(tmp_path / "folder", models[0]), models[1])
