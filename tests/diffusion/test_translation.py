"""The translation network: its losses, its data, a training that resumes, and the sets that it generates."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusion_world import HEIGHT, WIDTH, Refusal

from genval.artifacts.manifest import Manifest
from genval.datasets.items import find_items
from genval.datasets.reading import read_image, read_mask
from genval.diffusion.generators import GeneratedSet, generate_domain
from genval.diffusion.settings import StyleTransferSettings
from genval.diffusion.translation import training as training_module
from genval.diffusion.translation.data import TranslationData
from genval.diffusion.translation.network import (
    CONFIG,
    WEIGHTS,
    PatchHeads,
    Translator,
    load_translator,
    patch_loss,
    save_translator,
)
from genval.diffusion.translation.settings import TranslationConfig, TranslationTrainingSettings, domain_folders
from genval.diffusion.translation.stage import translate
from genval.diffusion.translation.training import plan_training, train_translation
from genval.runtime.errors import GenValError
from genval.runtime.settings import DeviceSettings, RunSettings

SMALL = TranslationConfig(
    height=HEIGHT, width=WIDTH, channels=4, blocks=2, batch_size=4, max_steps=8, lr=2e-3, ema=0.5, patches=32
)


def write_images(folder: Path, count: int, brightness: float) -> Path:
    rng = np.random.default_rng(int(brightness))
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = rng.integers(0, 60, (4, 8, 3)) + brightness
        image = cv2.resize(coarse.astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("unlabelled")
    return f"fog={write_images(root / 'fog', 3, 190)},night={write_images(root / 'night', 4, 5)}"


def settings_for(city: Path, folders: str, output: Path, **config: Any) -> TranslationTrainingSettings:
    return TranslationTrainingSettings(
        data_dir=str(city),
        unlabelled=domain_folders(folders),
        output=str(output),
        config=dataclasses.replace(SMALL, **config),
        checkpoint_every=3,
        log_every=2,
        images_every=4,
        num_images=2,
        save_dtype="fp32",
        accelerator="cpu",
        num_workers=2,
    )


def train(settings: TranslationTrainingSettings) -> Any:
    return train_translation(settings, plan_training(settings))


@pytest.fixture(scope="module")
def trained(city_folder: Path, folders: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "translation"
    train(settings_for(city_folder, folders, folder, balance_classes=True))
    return folder


def log_rows(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / "log.csv", delimiter=",", skiprows=1, ndmin=2)


def test_heads_read_the_patches_at_the_positions() -> None:
    features = [torch.rand(2, 3, 8, 16), torch.rand(2, 5, 4, 8), torch.rand(2, 5, 2, 4)]
    positions = torch.tensor([[[0, 0], [1, 3]], [[1, 0], [0, 2]]])
    heads = PatchHeads([3, 5, 5])
    vectors = heads(features, positions)
    for head, layer, found, factor in zip(heads.heads, features, vectors, (4, 2, 1), strict=True):
        for image in range(2):
            for number, (row, column) in enumerate(positions[image].tolist()):
                patch = layer[image, :, row * factor + factor // 2, column * factor + factor // 2]
                expected = torch.nn.functional.normalize(head(patch), dim=0)
                torch.testing.assert_close(found[image, number], expected)


def test_patch_loss_is_the_cross_entropy_of_the_same_patch() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (
        torch.nn.functional.normalize(torch.randn(2, 5, 7, generator=generator), dim=2).requires_grad_() for _ in "qk"
    )
    losses = []
    for image in range(2):
        for number in range(5):
            similar = torch.stack([query[image, number] @ key[image, other] / 0.07 for other in range(5)])
            losses.append(similar.exp().sum().log() - similar[number])
    loss = patch_loss([query], [key])
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None and key.grad is None, "the input's features are constants"
    assert patch_loss([key], [key]) < loss


def test_batches_are_crops_of_all_domains() -> None:
    config = dataclasses.replace(SMALL, zoom=0.5, batch_size=5)
    clear = torch.arange(WIDTH, dtype=torch.uint8).expand(2, 3, HEIGHT, WIDTH)
    domains = [torch.full((3, 3, HEIGHT, WIDTH), value, dtype=torch.uint8) for value in (10, 200)]
    data = TranslationData(clear, None, domains, config, torch.device("cpu"))
    first, again, second = (data.batch(step, torch.Generator().manual_seed(1)) for step in (0, 0, 1))
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    source, target, domain, positions = first
    assert source.shape == target.shape == (5, 3, HEIGHT, HEIGHT)
    assert domain.tolist() == [0, 1, 0, 1, 0] and second[2].tolist() == [1, 0, 1, 0, 1]
    np.testing.assert_allclose(((target + 1) * 127.5)[:, 0, 0, 0], [10, 200, 10, 200, 10], atol=1e-3)
    # Columns rise or, mirrored, fall by 0.5 to 1 pixel: a crop is between half and the whole of its size.
    slopes = ((source[:, 0, 0, 20] - source[:, 0, 0, 10]) * 12.75).abs()
    assert (slopes >= 0.5 - 1e-3).all() and (slopes <= 1 + 1e-3).all() and slopes.std() > 0.01
    assert positions.shape == (10, 32, 2) and positions.amax((0, 1)).tolist() <= [HEIGHT // 4 - 1] * 2
    for image in positions.tolist():
        assert len(set(map(tuple, image))) == 32


def test_small_classes_get_more_patches() -> None:
    config = dataclasses.replace(SMALL, zoom=1.0, patches=8)
    clear = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    mask[..., :4, :] = 11  # an eighth of the rows
    generator = torch.Generator().manual_seed(0)

    def share(masks: torch.Tensor | None) -> float:
        data = TranslationData(clear, masks, [clear], config, torch.device("cpu"))
        rows = torch.cat([data.batch(step, generator)[3][: SMALL.batch_size, :, 0] for step in range(20)])
        return float((rows == 0).float().mean())

    assert 0.07 < share(None) < 0.18 and share(mask) > 0.22


def test_a_training_lowers_the_losses_and_writes_its_folder(trained: Path) -> None:
    rows = log_rows(trained)
    assert rows[:, 0].tolist() == [2, 4, 6, 8]
    assert rows[-1, 5] < rows[0, 5] - 0.2, "contrastive"
    assert rows[-1, 4] < rows[0, 4], "discriminator"
    # Two clear images, each followed by its translations into two domains.
    assert cv2.imread(str(trained / "image_log/step_000008.png")).shape == (2 * HEIGHT, 3 * WIDTH, 3)
    translator = load_translator(trained)
    assert translator.domains == ("fog", "night") and (translator.height, translator.width) == (HEIGHT, WIDTH)
    assert not (trained / "training.ckpt").exists() and (trained / "settings.json").exists()


def test_an_interrupted_training_ends_with_the_same_weights(
    trained: Path, city_folder: Path, folders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(city_folder, folders, tmp_path / "translation", balance_classes=True)
    step = training_module.TranslationTraining.train_step

    def interrupted(self: Any) -> torch.Tensor:
        if self.step == 5:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training_module.TranslationTraining, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    assert not (tmp_path / "translation" / WEIGHTS).exists() and not plan_training(settings).is_done
    assert train(settings).step == 8
    for name in (WEIGHTS, CONFIG, "image_log/step_000008.png"):
        assert (tmp_path / "translation" / name).read_bytes() == (trained / name).read_bytes(), name
    assert plan_training(settings).is_done
    # The state is of step 3, between two lines of the log.
    columns = [0, 3, 4, 5]
    np.testing.assert_allclose(log_rows(tmp_path / "translation")[2:, columns], log_rows(trained)[2:, columns])


def test_a_training_that_is_told_to_end_resumes_after_its_step(
    trained: Path, city_folder: Path, folders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(city_folder, folders, tmp_path / "translation", balance_classes=True)
    step = training_module.TranslationTraining.train_step

    def told_to_end(self: Any) -> torch.Tensor:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training_module.TranslationTraining, "train_step", told_to_end)
        with pytest.raises(KeyboardInterrupt) as raised:
            train(settings)
    assert raised.value.args == (signal.SIGTERM,)
    state = torch.load(tmp_path / "translation/training.ckpt", weights_only=True)
    assert state["step"] == 5  # not of --checkpoint_every
    assert train(settings).step == 8
    assert (tmp_path / "translation" / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_other_settings_are_refused_and_overwritten_on_demand(
    trained: Path, city_folder: Path, folders: str, tmp_path: Path
) -> None:
    folder = tmp_path / "translation"
    shutil.copytree(trained, folder)
    settings = settings_for(city_folder, folders, folder, balance_classes=True, lr=1e-3)
    with pytest.raises(GenValError, match=r"other settings: lr 0\.001 \(was 0\.002\)"):
        plan_training(settings)
    short = dataclasses.replace(settings, overwrite=True, config=dataclasses.replace(settings.config, max_steps=1))
    assert train(short).step == 1 and (folder / WEIGHTS).read_bytes() != (trained / WEIGHTS).read_bytes()
    (folder / "training.json").unlink()
    with pytest.raises(GenValError, match=r"holds a model but no training\.json"):
        plan_training(settings)


def test_other_images_or_masks_are_refused(city_folder: Path, tmp_path: Path) -> None:
    """Also where the files are as large as before."""
    city, fog = tmp_path / "city", write_images(tmp_path / "fog", 3, 190)
    shutil.copytree(city_folder, city)
    cv2.imwrite(str(fog / "3.tiff"), np.zeros((HEIGHT, WIDTH, 3), np.uint8), [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    settings = settings_for(city, f"fog={fog}", tmp_path / "translation", balance_classes=True, max_steps=2)
    train(settings)
    assert plan_training(settings).is_done
    before = (fog / "3.tiff").read_bytes()
    cv2.imwrite(str(fog / "3.tiff"), np.full((HEIGHT, WIDTH, 3), 9, np.uint8), [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    assert len((fog / "3.tiff").read_bytes()) == len(before)
    with pytest.raises(GenValError, match="other settings: images_hash"):
        plan_training(settings)
    (fog / "3.tiff").write_bytes(before)
    mask = next((city / "gtFine/train").rglob("*labelIds.png"))
    cv2.imwrite(str(mask), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)[:, ::-1])
    with pytest.raises(GenValError, match="other settings: masks_hash"):
        plan_training(settings)


def test_a_link_to_nothing_is_named_or_skipped(
    city_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fog = write_images(tmp_path / "fog", 3, 190)
    (fog / "9.png").symlink_to(tmp_path / "nothing.png")
    settings = settings_for(city_folder, f"fog={fog}", tmp_path / "translation", max_steps=1)
    with pytest.raises(GenValError, match=r"9\.png is a link to a file that does not exist"):
        train(settings)
    train(dataclasses.replace(settings, skip_bad=True))
    assert f"skipped {fog}/9.png" in "".join(capsys.readouterr())


def test_a_training_of_limited_time(city_folder: Path, folders: str, tmp_path: Path) -> None:
    settings = settings_for(city_folder, folders, tmp_path, max_steps=10**6, max_minutes=1e-3)
    assert 1 <= train(settings).step < 100


def test_a_damaged_state_starts_the_training_again(
    city_folder: Path, folders: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training.ckpt").write_bytes(b"damaged")
    assert train(settings_for(city_folder, folders, tmp_path, max_steps=1)).step == 1
    assert "training.ckpt is damaged" in capsys.readouterr().err


def test_clear_images_may_have_no_masks(folders: str, tmp_path: Path) -> None:
    clear = write_images(tmp_path / "clear", 2, 100)
    assert train(settings_for(clear, folders, tmp_path / "out", max_steps=1)).step == 1
    with pytest.raises(GenValError, match=r"--balance_classes needs masks, and .*/clear/0\.png has none"):
        train(settings_for(clear, folders, tmp_path / "other", balance_classes=True))


def test_bad_images_are_named_or_skipped(folders: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clear = write_images(tmp_path / "clear", 2, 100)
    (clear / "2.png").write_bytes(b"GIF8")
    settings = settings_for(clear, folders, tmp_path / "out", max_steps=1)
    with pytest.raises(GenValError, match=r"2\.png cannot be decoded: .* found a GIF file"):
        train(settings)
    train(dataclasses.replace(settings, skip_bad=True))
    assert "Training on clear 2, fog 3, night 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--unlabelled", "fog"], ["expected DOMAIN=FOLDER", "'fog'"]),
        (["--unlabelled", "../fog=a"], ["expected DOMAIN=FOLDER"]),
        (["--unlabelled", "fog=missing"], ["--unlabelled fog", "missing is not a folder"]),
        (["--unlabelled", "fog=genval"], ["--unlabelled fog", "found 0 images"]),
        (["--unlabelled", "fog=a,night=b", "--batch_size", 1], ["--batch_size 1", "one image per domain, 2"]),
        (["--unlabelled", "fog=a", "--height", 30], ["--height", "multiple of 4"]),
        (["--unlabelled", "fog=a", "--crop_width", 600], ["--crop_width", "to 512"]),
        (["--unlabelled", "fog=a", "--zoom", 0], ["--zoom"]),
        (["--unlabelled", "fog=a", "--lr", "nan"], ["--lr"]),
        (["--unlabelled", "fog=a", "--ema", 1], ["--ema"]),
        (["--unlabelled", "fog=a", "--data_dir", "missing"], ["--data_dir"]),
        ([], ["required", "--unlabelled"]),
    ],
)
def test_wrong_flags_are_refused(flags: list[object], words: list[str], city_folder: Path, refused: Refusal) -> None:
    data = [] if "--data_dir" in flags else ["--data_dir", city_folder]
    refused(["ControlNet/train_translation.py", *data, "--dry_run", *flags], *words)


def test_images_of_any_size_are_translated() -> None:
    torch.manual_seed(0)
    translator = Translator(["fog", "night"], 4, 1, 32, 32).requires_grad_(False).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 37, 50, 3)).astype(np.uint8)
    fog, night = (translate(translator, images, domain, torch.float32) for domain in (0, 1))
    assert fog.shape == images.shape and fog.dtype == np.uint8 and not np.array_equal(fog, night)
    exact, _ = translator(torch.from_numpy(images[:, :36, :48]).permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor([0, 0]))
    expected = ((exact + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(translate(translator, images[:, :36, :48], 0, torch.float32), expected)


def test_weights_in_half_precision_give_nearly_the_same_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    translator = Translator(["fog"], 4, 1, 32, 32).requires_grad_(False).eval()
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    save_translator(translator, tmp_path, "fp16")
    one, other = (translate(model, images, 0, torch.float32) for model in (translator, load_translator(tmp_path)))
    assert np.abs(one.astype(int) - other).max() <= 2


def test_a_generated_set(trained: Path, city_folder: Path, tmp_path: Path) -> None:
    def make(**settings: Any) -> GeneratedSet:
        given = {"domain": "fog", "height": HEIGHT, "width": WIDTH, "num_samples": 3, **settings}
        done = generate_domain(
            StyleTransferSettings(
                generator="translate",
                translator=str(trained),
                data_dir=str(city_folder),
                output_dir=str(tmp_path),
                batch_size=2,
                device=DeviceSettings(accelerator="cpu"),
                **given,
            )
        )
        assert done is not None
        return done

    assert make().written == 3 and make().written == 0
    folder = tmp_path / "translate/fog"
    lines = Manifest(folder).records
    assert [item.id for item in find_items("Cityscapes_translate_fog", generated_dir=tmp_path)] == sorted(lines)
    translator = load_translator(trained)
    for line in lines.values():
        assert line["generator"] == "translate" and len(line["translator_hash"]) == 12 and line["run_seed"] == 0
        source = city_folder / f"gtFine/val/lindau/{line['source']}_gtFine_labelIds.png"
        np.testing.assert_array_equal(read_mask(folder / line["mask"]), read_mask(source))
        original = read_image(folder / line["original"])
        expected = translate(translator, original[None], 0, torch.float32)[0]
        # A batch of another size rounds differently.
        assert np.abs(read_image(folder / line["image"]).astype(int) - expected).max() <= 1
    # A missing image is made again as it was; other settings are refused.
    missing = folder / next(iter(lines.values()))["image"]
    before = missing.read_bytes()
    missing.unlink()
    assert make().written == 1 and missing.read_bytes() == before
    with pytest.raises(GenValError, match=r"width 64 \(now 32\)"):
        make(width=32)
    with pytest.raises(GenValError, match=r"--domain rain: the translator was trained on fog, night"):
        make(domain="rain")
    # Whole frames at their own size, whatever the height.
    assert make(domain="night", frame="full", height=512, run=RunSettings(limit=1)).images == 1
    (line,) = Manifest(tmp_path / "translate/night").records.values()
    assert read_image(tmp_path / "translate/night" / line["image"]).shape == (HEIGHT, WIDTH, 3)


def test_wrong_translators_are_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(GenValError, match=r"No translator in .*train_translation\.py, or give --translator"):
        load_translator(tmp_path)
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / CONFIG).write_text(
        '{"domains": ["fog"], "channels": 4, "blocks": 2, "height": 32, "width": 64}'
    )
    with pytest.raises(GenValError, match=r"translator\.safetensors is not what config\.json says"):
        load_translator(tmp_path / "copy")
    (tmp_path / "copy" / CONFIG).write_text('{"domains": ["fog"]}')
    with pytest.raises(GenValError, match=r"config\.json: "):
        load_translator(tmp_path / "copy")
