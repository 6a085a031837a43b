from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from genval.diffusion.models.lora import find_lora, fuse_lora
from genval.diffusion.models.pipelines import load_base
from genval.runtime.errors import GenValError

# A linear layer, a layer of a list, and a convolution.
LAYERS = (
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.resnets.0.conv1",
)
RANK = 2


@pytest.fixture
def unet(base_folder: Path) -> Any:
    return load_base(base_folder).unet


def halves(unet: Any, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    weight = unet.get_submodule(layer).weight
    torch.manual_seed(len(layer))
    down = torch.randn(RANK, *weight.shape[1:])
    return down, torch.randn(len(weight), RANK, *([1] * (weight.ndim - 2)))


def products(unet: Any, scale: float) -> dict[str, torch.Tensor]:
    found = {}
    for layer in LAYERS:
        down, up = halves(unet, layer)
        found[layer] = scale * torch.einsum("or,r...->o...", up.flatten(1), down)
    return found


def check(unet: Any, file: Path, scale: float) -> None:
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    expected = products(unet, scale)
    assert fuse_lora(unet, file) == len(LAYERS)
    for name, value in unet.state_dict().items():
        layer = name.removesuffix(".weight")
        change = expected[layer] if name.endswith(".weight") and layer in expected else torch.zeros_like(value)
        torch.testing.assert_close(value, before[name] + change)


def test_names_of_peft(unet: Any, tmp_path: Path) -> None:
    state = {}
    for layer in LAYERS:
        state[f"unet.{layer}.lora_A.weight"], state[f"unet.{layer}.lora_B.weight"] = halves(unet, layer)
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    check(unet, tmp_path, 1.0)  # a folder


def test_names_of_kohya_and_the_alpha(unet: Any, tmp_path: Path) -> None:
    """The naming of the published LCM-LoRA."""
    state = {}
    for layer in LAYERS:
        key = "lora_unet_" + layer.replace(".", "_")
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = halves(unet, layer)
        state[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(state, tmp_path / "lcm.safetensors")
    check(unet, tmp_path / "lcm.safetensors", 1.0 / RANK)


def test_what_does_not_fit_is_refused(unet: Any, tmp_path: Path) -> None:
    file = tmp_path / "l.safetensors"
    down, up = halves(unet, LAYERS[0])

    def refuse(state: dict[str, torch.Tensor], words: str) -> None:
        save_file({key: value.contiguous() for key, value in state.items()}, file)
        before = {name: value.clone() for name, value in unet.state_dict().items()}
        with pytest.raises(GenValError, match=words):
            fuse_lora(unet, file)
        assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())

    layer = f"unet.{LAYERS[0]}"
    refuse({f"{layer}.lora_A.weight": down}, "does not fit.*to_q")
    refuse({f"{layer}s.lora_A.weight": down, f"{layer}s.lora_B.weight": up}, "does not fit.*to_qs")
    refuse({f"{layer}.lora_A.weight": down[:, :-1], f"{layer}.lora_B.weight": up}, "where the base's UNet has")
    refuse({"text_encoder.a.lora_A.weight": down, "text_encoder.a.lora_B.weight": up}, "changes text_encoder")
    file.write_bytes(b"no safetensors")
    with pytest.raises(GenValError, match="cannot be read"):
        fuse_lora(unet, file)


def test_where_it_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(GenValError, match="--sampler lcm needs"):
        find_lora(None)
    for name in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(GenValError, match="no LoRA at"):
            find_lora(name)
