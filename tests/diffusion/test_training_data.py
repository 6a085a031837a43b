from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_world import HEIGHT, WIDTH, write_cityscapes

from genval.diffusion.models.pipelines import load_base
from genval.diffusion.pairs import read_pairs
from genval.diffusion.training.data import EncodedFolder, ImageBatches, IndexBatches, LatentBatches, encode_pairs
from genval.diffusion.training.pair_sampler import PairSampler
from genval.diffusion.training.settings import TrainingConfig
from genval.runtime.errors import GenValError

SMALL: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "batch_size": 6, "caption_dropout": 0.5}


def test_cache_holds_what_the_loader_gives(base_folder: Path, city_folder: Path) -> None:
    config = TrainingConfig(**SMALL)
    pairs = read_pairs(city_folder / "training/train.jsonl", city_folder)
    base = load_base(base_folder)
    cache = encode_pairs(base, pairs, config, workers=1)
    assert cache.latents.shape == (1, 2, 6, 4, 8, 16) and len(cache.texts) == 3
    samples = PairSampler(6, config).batch(0)
    (plain,) = ImageBatches([samples], pairs, config, workers=2)
    (numbers,) = IndexBatches([samples])
    latents, masks, texts = cache(numbers)
    assert torch.equal(masks, plain["mask"])
    torch.testing.assert_close(latents.float(), base.encode_images(plain["image"]), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(texts.states.float(), base.encode_text(plain["caption"]).states, atol=2e-3, rtol=2e-3)
    assert plain["caption"].count("") == sum(sample.drop_caption for sample in samples) > 0


def test_folder_gives_what_the_cache_gives(
    base_folder: Path, city_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genval.diffusion.training.data._SHARD", 4)
    monkeypatch.setattr("genval.diffusion.training.data._ENCODED_AT_ONCE", 3)
    # Square crops of a wide frame, three a frame.
    config = TrainingConfig(**{**SMALL, "width": HEIGHT, "crops": 3})
    pairs = read_pairs(city_folder / "training/train.jsonl", city_folder)
    base = load_base(base_folder)
    folder = EncodedFolder(tmp_path / "encoded", base, pairs, config)
    assert not folder.finished()
    folder.prepare()
    for rank in (0, 1):  # as two processes would, one late
        folder.write(workers=2, rank=rank, world_size=2)
    assert folder.finished()
    cache = encode_pairs(base, pairs, config, workers=1)
    assert cache.latents.shape[:3] == (3, 2, 6) and cache.masks.shape[:2] == (3, 6)
    assert len({mask.numpy().tobytes() for mask in cache.masks[:, 0]}) == 3
    batches = [PairSampler(6, config).batch(n) for n in range(4)]
    read = EncodedFolder(tmp_path / "encoded", base, pairs, config)
    on_device = read.to_device(torch.device("cpu"))
    for numbers, batch in zip(IndexBatches(batches, 3), LatentBatches(batches, read, 2), strict=True):
        for latents, masks, text in (cache(numbers), on_device(numbers)):
            torch.testing.assert_close(batch["latents"], latents, atol=1e-3, rtol=1e-3)
            assert torch.equal(batch["mask"], masks)
            torch.testing.assert_close(batch["states"], text.states, atol=1e-3, rtol=1e-3)
        assert batch["seed"] == numbers["seed"]


def test_folder_resumes_where_it_stopped(
    base_folder: Path, city_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genval.diffusion.training.data._SHARD", 2)
    config = TrainingConfig(**SMALL)
    pairs = read_pairs(city_folder / "training/train.jsonl", city_folder)
    base = load_base(base_folder)
    folder = EncodedFolder(tmp_path / "encoded", base, pairs, config)
    folder.prepare()
    folder.write(workers=1)
    files = {path.name: path.read_bytes() for path in folder.folder.iterdir()}
    assert len(files) == 5
    times = {path.name: path.stat().st_mtime_ns for path in folder.folder.glob("shard*")}
    (folder.folder / "shard_00001.safetensors").unlink()
    assert folder.missing() == [1]
    folder.write(workers=1)
    assert {path.name: path.read_bytes() for path in folder.folder.iterdir()} == files
    for name in ("shard_00000.safetensors", "shard_00002.safetensors"):
        assert (folder.folder / name).stat().st_mtime_ns == times[name]
    (folder.folder / "shard_00001.safetensors").write_bytes(files["shard_00001.safetensors"][:100])
    with pytest.raises(GenValError, match=r"shard_00001.safetensors cannot be read"):
        EncodedFolder(folder.folder, base, pairs, config).to_device(torch.device("cpu"))


def test_folder_of_another_training_set_is_refused(base_folder: Path, tmp_path: Path) -> None:
    city = write_cityscapes(tmp_path / "city")
    config = TrainingConfig(**SMALL)
    pairs = read_pairs(city / "training/train.jsonl", city)
    base = load_base(base_folder)
    folder = EncodedFolder(tmp_path / "encoded", base, pairs, config)
    folder.prepare()
    folder.write(workers=1)
    with pytest.raises(GenValError, match=r"count 6 \(now 5\)"):
        EncodedFolder(tmp_path / "encoded", base, pairs[:5], config)
    with pytest.raises(GenValError, match=r"width 64 \(now 32\), flip True \(now False\)"):
        EncodedFolder(tmp_path / "encoded", base, pairs, TrainingConfig(**{**SMALL, "width": 32, "flip": False}))
    lines = (city / "training/train.jsonl").read_text().replace("trees", "bushes")
    (city / "training/train.jsonl").write_text(lines)
    with pytest.raises(GenValError, match="encoded with pairs"):
        EncodedFolder(tmp_path / "encoded", base, read_pairs(city / "training/train.jsonl", city), config)
