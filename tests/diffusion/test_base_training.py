"""Training a base on one's own images: captions, folders, encoding once, weights, and exact resuming."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genval.diffusion.models.pipelines import encode_latents, load_base
from genval.diffusion.training import own_images
from genval.diffusion.training.autoencoder import read_autoencoder
from genval.diffusion.training.base_model import (
    BaseParts,
    DiffusionRecipe,
    TrainedBase,
    _CaptionTable,
    build_base,
    fit_base,
    save_base,
    velocity_weights,
)
from genval.diffusion.training.loop import Log, Optimisation
from genval.diffusion.training.own_images import (
    CaptionTemplate,
    OwnImage,
    Unlabelled,
    condition_text,
    encode_own_images,
    encoding_mark,
    find_images,
    parse_unlabelled,
    sampling_weights,
)
from genval.runtime.errors import GenValError

CPU = torch.device("cpu")
TEMPLATE = CaptionTemplate("a street[ in {place}][, {condition}]")
TINY = DiffusionRecipe(
    block_out_channels=(32, 32),
    attention=(False, True),
    attention_heads=2,
    text_width=16,
    text_layers=1,
    text_tokens=12,
    vocabulary=200,
    steps=5,
    batch_size=4,
    lr_schedule="constant",
    warmup_steps=2,
    place_dropout=0.2,
    condition_dropout=0.2,
    snr_gamma=5.0,
    snapshot_steps=2,
)


class _Scaled(torch.nn.Module):
    """An autoencoder whose latents are every fourth pixel of a channel; it counts its calls."""

    calls = 0

    def encode(self, pixels: torch.Tensor) -> object:
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput

        self.calls += 1
        return AutoencoderTinyOutput(latents=pixels[:, :, ::4, ::4])


def _write_images(folder: Path, count: int, height: int = 20, width: int = 40) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    return folder


def test_a_caption_without_a_value_has_no_such_part() -> None:
    image = OwnImage(Path("x.png"), "in fog", "New York")
    assert TEMPLATE.variants(image) == ("a street in New York, in fog", "a street, in fog", "a street in New York", "")
    assert TEMPLATE.variants(dataclasses.replace(image, place=""))[0] == "a street, in fog"
    for text in ("a street", "a street in {place}[, {condition}]", "a [{weather}]", "a street[, {condition}"):
        with pytest.raises(GenValError, match="--template"):
            CaptionTemplate(text)


def test_conditions_are_domains_or_any_text() -> None:
    assert condition_text("fog") == "in fog" and condition_text("thick smoke") == "in thick smoke"
    with pytest.raises(GenValError, match="night"):
        condition_text("nigth")


def test_unlabelled_folders_may_have_a_place(tmp_path: Path) -> None:
    assert parse_unlabelled("night=a/b") == Unlabelled("night", "a/b", "")
    assert parse_unlabelled("night=a/b@New York") == Unlabelled("night", "a/b", "New York")
    (tmp_path / "set@2").mkdir()
    assert parse_unlabelled(f"fog={tmp_path}/set@2").folder == f"{tmp_path}/set@2"
    for text in ("night", "=a", "night="):
        with pytest.raises(GenValError, match="--unlabelled"):
            parse_unlabelled(text)


def test_images_are_found_without_label_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _write_images(tmp_path / "night" / "one", 4)
    cv2.imwrite(str(folder / "0_label.png"), np.zeros((4, 4), np.uint8))
    images = find_images(Unlabelled("night", str(tmp_path / "night"), "Sweden"))
    assert [image.path.name for image in images] == ["0.png", "1.png", "2.png", "3.png"]
    assert images[0].condition == "in night" and images[0].place == "Sweden"
    assert "1 files are label images" in capsys.readouterr().out
    (folder / "3.png").unlink()
    with pytest.raises(GenValError, match="found 3 images"):
        find_images(Unlabelled("night", str(folder), ""))
    with pytest.raises(GenValError, match="is not a folder"):
        find_images(Unlabelled("night", str(tmp_path / "nowhere"), ""))


def test_groups_are_drawn_by_the_root_of_their_size() -> None:
    images = [OwnImage(Path(), "on a clear day", "")] * 9 + [OwnImage(Path(), "in fog", "")] * 4
    weights = sampling_weights(images, {"in fog": 3.0})
    assert weights.sum().item() == pytest.approx(1)
    assert weights[9:].sum().item() / weights[:9].sum().item() == pytest.approx(3 * 2 / 3)


def test_weights_of_the_loss_fall_only_above_the_limit() -> None:
    alphas = torch.tensor([0.0, 0.5, 5 / 6, 0.99])  # SNR 0, 1, 5 and 99
    assert velocity_weights(alphas, 5.0).tolist() == pytest.approx([1, 1, 1, 6 / 100], rel=1e-4)


def test_captions_are_replaced_in_their_shares() -> None:
    image = OwnImage(Path(), "in fog", "Germany")
    parts = build_base(None, [*TEMPLATE.variants(image)], torch.zeros(1, 2, 4, 8, 8), TINY)
    texts = _CaptionTable(parts.tokenizer, [TEMPLATE.variants(image)], (0.1, 0.2, 0.3), 12, CPU)

    class Ids(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> object:
            return type("Output", (), {"last_hidden_state": ids})

    places = (torch.arange(100) + 0.5) / 100
    found = parts.tokenizer.batch_decode(texts.states(Ids(), torch.zeros(100, dtype=torch.long), places), True)
    words = [text.replace("<|endoftext|>", "").replace(" ,", ",").strip() for text in found]
    counts = {text: words.count(text) for text in set(words)}
    assert counts == {
        "a street, in fog": 10,
        "a street in germany": 20,
        "": 30,
        "a street in germany, in fog": 40,
    }


def test_images_are_encoded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, vae = _write_images(tmp_path / "images", 5), _Scaled()
    (folder / "2.png").write_bytes(b"damaged")
    images = [OwnImage(path, "in fog", "") for path in sorted(folder.iterdir())]
    cache = tmp_path / "run" / "latents.safetensors"

    def encode(mark: str, skip_bad: bool = True) -> own_images.EncodedImages:
        return encode_own_images(vae, images, 8, 16, cache, mark, workers=2, device=CPU, skip_bad=skip_bad)

    with pytest.raises(GenValError, match=r"2\.png"):
        encode("a", skip_bad=False)
    first = encode("a")
    assert first.latents.shape == (4, 2, 3, 2, 4) and first.index.tolist() == [0, 1, 3, 4]
    assert "skipped" in capsys.readouterr().out
    calls = vae.calls
    again = encode("a")
    assert vae.calls == calls and torch.equal(again.latents, first.latents) and torch.equal(again.index, first.index)
    assert "4 of these 5 images" in capsys.readouterr().out
    with pytest.raises(GenValError, match=r"2\.png"):  # skipped before, when that was allowed
        encode("a", skip_bad=False)
    encode("b")
    assert vae.calls > calls
    cache.write_bytes(b"damaged")
    assert torch.equal(encode("b").latents, first.latents)


def test_the_mark_names_files_size_and_weights(tmp_path: Path) -> None:
    images = [OwnImage(path, "in fog", "") for path in _write_images(tmp_path, 2).iterdir()]
    vae, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    marks = {
        encoding_mark(images, 8, 16, vae),
        encoding_mark(images[:1], 8, 16, vae),
        encoding_mark(images, 8, 32, vae),
        encoding_mark(images, 8, 16, other),
    }
    assert len(marks) == 4 and encoding_mark(images, 8, 16, vae) in marks
    one, other_image = sorted(image.path for image in images)
    one.write_bytes(other_image.read_bytes())
    assert encoding_mark(images, 8, 16, vae) not in marks


def _train(
    folder: Path, recipe: DiffusionRecipe, seconds: float | None = None, log: Log = lambda _: None
) -> TrainedBase:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, 2, 4, 8, 8, generator=generator).half()
    places: Sequence[str] = ("Germany", "", "Sweden")
    images = [OwnImage(Path(), ("in fog", "in night")[i % 2], places[i % 3]) for i in range(6)]
    captions = [TEMPLATE.variants(image) for image in images]
    torch.manual_seed(0)
    parts = build_base(None, [text for one in captions for text in one], latents, recipe)
    shares = (recipe.place_dropout, recipe.condition_dropout, recipe.caption_dropout)
    weights = sampling_weights(images, {})
    return fit_base(
        parts, latents, captions, shares, recipe, folder / "training", CPU, weights=weights, seconds=seconds,
        log=log,
    )  # fmt: skip


def test_a_stopped_training_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", TINY)
    stopped = _train(tmp_path / "stopped", TINY, seconds=1e-9)  # at once
    stopped.snapshot.save(stopped.fit.steps)
    shorter = _train(tmp_path / "stopped", dataclasses.replace(TINY, steps=3))
    shorter.snapshot.save(shorter.fit.steps)
    resumed = _train(tmp_path / "stopped", TINY)
    assert (stopped.fit.steps, shorter.fit.steps, resumed.fit.steps, resumed.fit.new_steps) == (0, 3, 5, 2)
    expected, found = whole.models.state_dict(), resumed.models.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(GenValError, match="batch_size"):
        _train(tmp_path / "stopped", dataclasses.replace(TINY, batch_size=2))
    with pytest.raises(GenValError, match="steps"):  # a cosine depends on the number of steps
        _train(tmp_path / "stopped", dataclasses.replace(TINY, lr_schedule="cosine"))


def test_a_training_that_is_told_to_end_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(TINY, snapshot_steps=100)
    whole = _train(tmp_path / "whole", recipe)
    step, steps = Optimisation.step, []

    def told_to_end(self: Optimisation, loss: torch.Tensor) -> None:
        steps.append(loss)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Optimisation, "step", told_to_end)
        with pytest.raises(KeyboardInterrupt) as raised:
            _train(tmp_path / "stopped", recipe)
    assert raised.value.args == (signal.SIGTERM,) and len(steps) == 3
    resumed = _train(tmp_path / "stopped", recipe)
    assert resumed.fit.new_steps == 2
    expected, found = whole.models.state_dict(), resumed.models.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_signal_at_the_end_of_the_last_step_is_not_lost(tmp_path: Path) -> None:
    def told_to_end(line: str) -> None:
        if " step 4 " in line:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = dataclasses.replace(TINY, snapshot_steps=100)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, recipe, log=told_to_end)
    assert _train(tmp_path, recipe).fit.new_steps == 0


def test_tiny_autoencoders_are_read_from_both_layouts(tmp_path: Path) -> None:
    """TAESD's own files and diffusers' folder give the same latents, and a base of it encodes and decodes."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    model = AutoencoderTiny()
    halves: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for name, weight in model.state_dict().items():
        half, _, number, rest = name.split(".", 3)
        halves[half][f"{int(number) + (half == 'decoder')}.{rest}"] = weight.contiguous()
    (tmp_path / "published").mkdir()
    for half, weights in halves.items():
        save_file(weights, tmp_path / "published" / f"taesd_{half}.safetensors")
    model.save_pretrained(tmp_path / "diffusers")
    pixels = torch.rand(1, 3, 16, 32) * 2 - 1
    expected = encode_latents(model, pixels)
    for folder in ("published", "diffusers"):
        assert torch.equal(encode_latents(read_autoencoder(tmp_path / folder), pixels), expected)

    parts = build_base(model, ["a street"], torch.zeros(1, 2, 4, 2, 4), TINY)
    model.register_to_config(scaling_factor=2.0)
    save_base(
        tmp_path / "base",
        BaseParts(model, parts.tokenizer, None, None),
        {"text": parts.text_encoder, "unet": parts.unet},
    )
    base = load_base(tmp_path / "base")
    assert base.downscale == 8
    torch.testing.assert_close(base.encode_pixels(pixels), 2 * expected, atol=0.02, rtol=0.02)
    assert base.decode_latents(base.encode_pixels(pixels)).shape == pixels.shape

    (tmp_path / "published" / "taesd_decoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(GenValError, match="taesd_decoder"):
        read_autoencoder(tmp_path / "published")
    with pytest.raises(GenValError, match="No autoencoder"):
        read_autoencoder(tmp_path / "nowhere")
