import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusion_world import copy_of_base, write_base
from safetensors.torch import load_file, save_file

from genval.diffusion.models import pipelines
from genval.diffusion.models.controlnet import add_control, load_controlnet, save_controlnet
from genval.diffusion.models.hints import make_encoding, read_encoding
from genval.diffusion.models.pipelines import checkpoint_hash, find_file, find_model, load_base
from genval.runtime.errors import GenValError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_new_control_copies_the_encoder_and_changes_nothing(base_folder: Path) -> None:
    base = copy_of_base(base_folder)
    controlnet = add_control(base)
    assert torch.equal(controlnet.conv_in.weight, base.unet.conv_in.weight)
    # One halving for each of the VAE's: a hint of 32x64 meets latents of 8x16.
    assert tuple(controlnet.config.conditioning_embedding_out_channels) == (16, 32, 96)
    with torch.no_grad():
        down, middle = controlnet(
            torch.randn(1, 4, 8, 16), 5, torch.randn(1, 16, 32), torch.rand(1, 1, 32, 64), return_dict=False
        )
    assert all(residual.count_nonzero() == 0 for residual in (*down, middle))


def test_initialisation_is_seeded_and_leaves_the_global_generator_alone(base_folder: Path) -> None:
    base = copy_of_base(base_folder)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = add_control(base, seed=1), add_control(base, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.controlnet_cond_embedding.conv_in.weight, two.controlnet_cond_embedding.conv_in.weight)


def test_hint_encoding_survives_saving(base_folder: Path, tmp_path: Path) -> None:
    base = copy_of_base(base_folder)
    save_controlnet(add_control(base), tmp_path / "c", "fp16")
    loaded = load_controlnet(tmp_path / "c", base)
    assert loaded.config["hint_encoding"] == "label_id" and loaded.dtype == torch.float32
    assert load_file(tmp_path / "c" / WEIGHTS)["conv_in.weight"].dtype == torch.float16
    save_controlnet(loaded, tmp_path / "d")
    assert load_controlnet(tmp_path / "d", base).config["hint_encoding"] == "label_id"
    assert sorted(file.name for file in (tmp_path / "d").iterdir()) == ["config.json", WEIGHTS]


def test_other_hints_are_refused(base_folder: Path, tmp_path: Path) -> None:
    base = copy_of_base(base_folder)
    colours = make_encoding("colour")
    controlnet = add_control(base, colours)
    save_controlnet(controlnet, tmp_path / "c")
    assert read_encoding(load_controlnet(tmp_path / "c", base), "c") == colours
    controlnet.register_to_config(hint_encoding=None)
    save_controlnet(controlnet, tmp_path / "d")
    with pytest.raises(GenValError, match="found None and 3 hint channels"):
        load_controlnet(tmp_path / "d", base)
    with pytest.raises(GenValError, match="hinges"):
        add_control(base, colours, hint_init="hinges")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "truncated"])
def test_weights_are_loaded_strictly(base_folder: Path, controlnet_folder: Path, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "c"
    shutil.copytree(controlnet_folder, folder)
    weights = load_file(folder / WEIGHTS)
    if change == "missing":
        del weights["conv_in.weight"]
    elif change == "unexpected":
        weights["conv_in.scale"] = torch.ones(1)
    elif change == "shape":
        weights["conv_in.weight"] = torch.ones(1, 2)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    if change == "truncated":
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    names = {
        "missing": "missing keys: conv_in.weight;",
        "unexpected": "unexpected keys: conv_in.scale;",
        "shape": "conv_in.weight",
        "truncated": "cannot be loaded",
    }
    with pytest.raises(GenValError) as error:
        load_controlnet(folder, copy_of_base(base_folder))
    assert names[change] in str(error.value) and "\n" not in str(error.value)


def test_another_bases_control_is_refused(controlnet_folder: Path, tmp_path: Path) -> None:
    other = load_base(write_base(tmp_path / "other", cross_attention_dim=16))
    with pytest.raises(GenValError, match="cross_attention_dim 32 instead of 16"):
        load_controlnet(controlnet_folder, other)


def test_base_with_a_missing_file_or_key_is_refused(base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    for part, file in (("text_encoder", "model.safetensors"), ("unet", WEIGHTS)):
        weights = load_file(folder / part / file)
        dropped = sorted(weights)[0]
        del weights[dropped]
        save_file(weights, folder / part / file, metadata={"format": "pt"})
        with pytest.raises(GenValError, match="missing keys"):
            load_base(folder)
        shutil.copy(base_folder / part / file, folder / part / file)
    (folder / "vae" / WEIGHTS).unlink()
    with pytest.raises(GenValError, match=r"has no vae/diffusion_pytorch_model\.safetensors"):
        load_base(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("owner/none", "hf download owner/none"),
        ("checkpoints/none", "ControlNet/tool_add_control.py makes"),
        ("/nowhere/at/all", "No model at"),
    ],
)
def test_missing_model_says_what_to_do(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GenValError, match=words):
        find_model(name, ["config.json"])


def test_hash_names_the_weights_that_are_loaded(base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    before = checkpoint_hash(folder)
    assert len(before) == 12 and before == checkpoint_hash(base_folder)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/model.safetensors").write_bytes(b"x")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x")
    assert checkpoint_hash(folder) == before
    (folder / "unet" / WEIGHTS).write_bytes(b"x")
    assert checkpoint_hash(folder) != before


def test_a_hash_is_kept_for_a_file_that_is_not_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENVAL_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.ckpt"
    file.write_bytes(b"one")

    def fresh() -> str:  # as in another process
        pipelines._hash_of_states.cache_clear()
        return checkpoint_hash(file)

    one = fresh()
    assert not (tmp_path / "cache").exists()  # changed just now: it could change again within the same tick
    monkeypatch.setattr(pipelines, "_SETTLED", -1.0)
    assert fresh() == one
    (kept,) = (tmp_path / "cache/hashes").iterdir()
    kept.write_text("0123456789ab")
    assert fresh() == "0123456789ab"
    kept.write_text("damaged")
    assert fresh() == one
    # Another content of the same size and the same time of change of content.
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    kept.write_text("0123456789ab")
    assert fresh() not in (one, "0123456789ab")


def test_parts_are_locked_and_sizes_checked(base_folder: Path) -> None:
    base = copy_of_base(base_folder)
    assert not any(p.requires_grad for part in (base.vae, base.unet, base.text_encoder) for p in part.parameters())
    assert base.downscale == 4
    base.check_size(32, 64)
    with pytest.raises(GenValError, match="multiples of 8, found 36x64"):
        base.check_size(36, 64)


def test_old_files_position_ids_are_not_a_wrong_key(base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    file = folder / "text_encoder/model.safetensors"
    weights = load_file(file)
    prefix = next(key for key in weights if key.endswith("position_embedding.weight")).removesuffix(
        "position_embedding.weight"
    )
    weights[prefix + "position_ids"] = torch.arange(16)[None]
    save_file(weights, file, metadata={"format": "pt"})
    load_base(folder)
    assert json.loads((folder / "model_index.json").read_text())


def test_published_places_are_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published commands run in ControlNet/; `ln -s FOLDER checkpoints` makes a link inside checkpoints/."""
    for module in ("genval.runtime.paths", "genval.diffusion.models.pipelines"):
        monkeypatch.setattr(f"{module}.REPO_ROOT", tmp_path)
    for name in ("ControlNet/models/v1-5-pruned.ckpt", "checkpoints/mine/controlnet_cs.ckpt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert find_file("models/v1-5-pruned.ckpt") == tmp_path / "ControlNet/models/v1-5-pruned.ckpt"
    assert find_file("checkpoints/controlnet_cs.ckpt") == tmp_path / "checkpoints/mine/controlnet_cs.ckpt"
    assert find_file("checkpoints/controlnet_cs") == tmp_path / "checkpoints/mine/controlnet_cs.ckpt"
    assert find_file("owner/model") is None
