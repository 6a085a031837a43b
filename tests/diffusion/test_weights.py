from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from genval.diffusion.models.weights import assign_weights, build_empty, load_exactly

FILE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_librarys_own_loader(base_folder: Path, dtype: torch.dtype) -> None:
    folder = base_folder / "vae"
    ours = load_exactly(AutoencoderKL, folder, folder / FILE, "cpu", dtype)
    theirs = AutoencoderKL.from_pretrained(str(folder)).to(dtype)
    assert not ours.training and ours.config.keys() >= {"block_out_channels", "scaling_factor"}
    for (name, one), (other_name, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other_name and one.dtype == dtype and one.is_contiguous()
        assert torch.equal(one, other)


def test_files_that_differ_are_left_to_the_library(base_folder: Path, tmp_path: Path) -> None:
    folder, file = base_folder / "vae", tmp_path / FILE
    tensors = load_file(folder / FILE)
    assert load_exactly(AutoencoderKL, folder, file, "cpu", torch.float32) is None
    name = next(iter(tensors))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    assert load_exactly(AutoencoderKL, folder, file, "cpu", torch.float32) is None
    save_file({**tensors, name: torch.zeros(3, 3)}, file)
    assert load_exactly(AutoencoderKL, folder, file, "cpu", torch.float32) is None
    file.write_bytes(b"damaged")
    assert load_exactly(AutoencoderKL, folder, file, "cpu", torch.float32) is None


def test_whole_numbers_keep_their_dtype() -> None:
    norm = torch.nn.BatchNorm2d(2)
    norm.num_batches_tracked.fill_(1001)  # bfloat16 has no such number
    state = norm.state_dict()
    copied = assign_weights(
        build_empty(lambda: torch.nn.BatchNorm2d(2)),
        {name: partial(state.__getitem__, name) for name in state},
        "cpu",
        torch.bfloat16,
    )
    assert copied.num_batches_tracked.dtype == torch.int64 and int(copied.num_batches_tracked) == 1001
    assert copied.weight.dtype == torch.bfloat16 and not copied.training
