"""Small copies of Cityscapes: pairs of pix2pix and squeezed images, as rendered stand-ins and as real files."""

import io

import numpy as np
import pytest
from PIL import Image
from script_runs import run_script

from genval.datasets import find_items, read_pair
from genval.datasets.labels import CITYSCAPES, PALETTE
from genval.datasets.reading import read_mask
from genval.datasets.small_cityscapes import nearest_train_ids, read_small
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT

REAL = REPO_ROOT.parent / "shared/realdata/streets/cityscapes/val"


def street(seed, size=64):
    """Rectangles of classes, uint8 (size, size), and a photo."""
    generator = np.random.default_rng(seed)
    train_ids = np.full((size, size), 0, np.uint8)
    for train_id in (*generator.permutation(19), 255):
        top, left = generator.integers(0, size - 12, 2)
        train_ids[top : top + 16, left : left + 16] = train_id
    return generator.integers(0, 256, (size, size, 3)).astype(np.uint8), train_ids


def jpeg(array, quality=75):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def write_side_by_side(path, image, train_ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(np.concatenate([image, PALETTE[train_ids]], 1)))


def inner(train_ids):
    """Pixels whose 5x5 surroundings have one class."""
    same = np.ones_like(train_ids, bool)
    for rows in range(-2, 3):
        for columns in range(-2, 3):
            same &= np.roll(train_ids, (rows, columns), (0, 1)) == train_ids
    return same


def test_the_nearest_colour_is_the_class_by_plain_numpy():
    _, train_ids = street(1)
    colours = PALETTE[train_ids].astype(int) + np.random.default_rng(0).integers(-6, 7, (*train_ids.shape, 3))
    colours = np.clip(colours, 0, 255).astype(np.uint8)
    distances = ((colours[..., None, :].astype(int) - PALETTE[:19].astype(int)) ** 2).sum(-1)
    expected = np.where(distances.min(-1) < 30**2, distances.argmin(-1), 255)
    expected[train_ids == 255] = 255  # black is the colour of a class without a trainId
    assert (nearest_train_ids(colours) == expected).all()


def prepare(*flags):
    return run_script("relis/prepare_cityscapes.py", *flags)


def test_pairs_and_squeezed_images_become_cityscapes(tmp_path):
    image, train_ids = street(2)
    write_side_by_side(tmp_path / "small/val/1.jpg", image, train_ids)
    write_png(tmp_path / "small/val/2.png", image)
    write_png(tmp_path / "small/val/2_labelTrainIds.png", train_ids)
    out = tmp_path / "out"
    done = prepare("--data_dir", tmp_path / "small", "--output_dir", out, "--splits", "val", "--stretch")
    assert done.returncode == 0, done.stderr
    assert "val: wrote 2 images, " in done.stdout
    first, second = find_items("Cityscapes", datasets_dir=out)
    found, ids = read_pair(first)
    assert found.shape == (64, 128, 3) and np.abs(found[:, ::2].astype(int) - image).mean() < 60
    kept = (ids[:, ::2] != 255) & inner(train_ids)
    assert (ids[:, ::2] == train_ids)[kept].mean() > 0.99 and kept.mean() > 0.2
    assert (read_pair(second)[1] == np.repeat(train_ids, 2, 1)).all()
    assert (out / "derived.json").exists()


def test_conversions_are_not_mixed_and_names_are_unique(tmp_path):
    data, output = tmp_path / "data", tmp_path / "out"
    for name in ("1", "2"):
        write_side_by_side(data / f"val/{name}.jpg", *street(int(name)))
    (data / "val/._1.jpg").write_bytes(b"\0\5\26\7 Mac OS X")
    call = ("relis/prepare_cityscapes.py", "--data_dir", data, "--output_dir", output, "--splits", "val")
    assert run_script(*call).returncode == run_script(*call).returncode == 0
    (data / "val/1.jpg").rename(data / "val/3.jpg")
    done = run_script(*call)
    assert done.returncode == 2 and f"{output} also holds 1 other images of val, such as 1." in done.stderr
    assert len(list((output / "cityscapes/leftImg8bit").rglob("*.png"))) == 2
    write_png(data / "val/3.png", street(3)[0])
    done = run_script(*call)
    assert done.returncode == 2 and "Two files for 3: " in done.stderr and "3.png" in done.stderr


def test_other_files_are_refused(tmp_path):
    (tmp_path / "val").mkdir()
    done = prepare("--data_dir", tmp_path, "--splits", "val", "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and f"No images in {tmp_path / 'val'}" in done.stderr
    path = tmp_path / "val/1.png"
    write_png(path, np.full((8, 16, 3), 255, np.uint8))
    with pytest.raises(GenValError, match=r"1\.png is not a pair"):
        read_small(path)
    write_png(tmp_path / "val/1_labelTrainIds.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(GenValError, match="differ in size"):
        read_small(path)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real Cityscapes in ../shared/realdata/streets/cityscapes")
def test_real_masks_survive_their_colours_and_jpeg(tmp_path):
    """The masks of real streets, painted, compressed and recovered."""
    wrong = kept = labelled = 0
    for mask in sorted(REAL.glob("*_labelTrainIds.png"))[:20]:
        train_ids = read_mask(mask)
        image = np.asarray(Image.open(mask.with_name(mask.name.replace("_labelTrainIds.png", ".jpg"))).convert("RGB"))
        path = tmp_path / mask.name.replace("_labelTrainIds.png", ".jpg")
        write_side_by_side(path, image, train_ids)
        found = CITYSCAPES.table[read_small(path)[1]]
        counted = (train_ids != 255) & (found != 255)
        labelled, kept = labelled + (train_ids != 255).sum(), kept + counted.sum()
        wrong += (found != train_ids)[counted].sum()
    assert wrong / kept < 0.01 and kept / labelled > 0.8
    dataset = f"folder:{REAL},{REAL}/*_labelTrainIds,trainids"
    assert len(find_items(dataset)) == 500
