"""Sources of outliers: where the outlier is, and what is known around it."""

import shutil

import numpy as np
import pytest
from finetuning_world import SIZE, street

from genval.datasets.labels import CITYSCAPES, IGNORE
from genval.finetuning.outliers import Labelled, find_outliers, paste
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


def a_street(seed=0):
    image, label_ids = street(seed)
    return Labelled(image, CITYSCAPES.to_train_ids(label_ids), np.zeros(SIZE, bool))


def test_generated_objects_keep_the_labels_outside_the_box(world):
    source = find_outliers(str(world / "objects"), None, None)
    assert source.count == 2 and source.frames == ["aachen_000000_000019", "aachen_000001_000019"]
    found = source.load(1, None, np.random.default_rng(0))
    expected = CITYSCAPES.to_train_ids(street(1)[1])
    expected[30:50, 48:68] = IGNORE
    assert (found.train_ids == expected).all()
    assert found.outliers.sum() == 160 and found.outliers[34:44, 50:66].all()


def test_noise_and_pasted_objects_are_on_the_ground_and_leave_the_street_unchanged(world, tmp_path):
    cut = np.zeros(SIZE, np.uint8)
    cut[5:25, 40:50] = 1
    write_png(tmp_path / "images/a.png", np.full((*SIZE, 3), 200, np.uint8))
    write_png(tmp_path / "masks/a.png", cut)
    for name in ("noise", f"paste:{tmp_path}/images,{tmp_path}/masks"):
        source = find_outliers(name, None, None)
        below = a_street()
        before = below.image.copy()
        found = source.load(0, below, np.random.default_rng(1))
        assert (below.image == before).all() and not below.outliers.any()
        assert found.outliers.any() and (found.train_ids[found.outliers] == IGNORE).all()
        assert (found.image[found.outliers] != before[found.outliers]).any()
        away = found.train_ids != IGNORE
        assert (found.image[away] == before[away]).all()
        rows = np.flatnonzero(found.outliers.any(1))
        assert (below.train_ids[rows[-1]] == 0).any()


def test_paste_keeps_the_aspect_ratio():
    shape = np.ones((40, 10), bool)
    found = paste(a_street(), np.full((40, 10, 3), 9, np.uint8), shape, np.random.default_rng(0))
    height, width = (np.ptp(np.flatnonzero(found.outliers.any(axis))) + 1 for axis in (1, 0))
    assert height / width == pytest.approx(4, rel=0.3)


def test_bad_files_are_skipped_before_the_training(world, tmp_path):
    """One in the middle of a training would end it."""
    cut = np.zeros(SIZE, np.uint8)
    for name in ("cut", "damaged", "empty"):
        write_png(tmp_path / f"images/{name}.png", np.full((*SIZE, 3), 200, np.uint8))
        write_png(tmp_path / f"masks/{name}.png", cut + (name != "empty"))
    damaged = tmp_path / "images/damaged.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    shutil.copytree(world / "objects", tmp_path / "objects")
    (tmp_path / "objects/masks/lion/0_mask.png").write_bytes(damaged.read_bytes())
    for name, kept, bad in (
        (f"paste:{tmp_path}/images,{tmp_path}/masks", ["cut"], ["damaged", "empty"]),
        (f"pair:{tmp_path}/images,{tmp_path}/masks", ["cut", "empty"], ["damaged"]),
        (str(tmp_path / "objects"), ["lion/1"], ["lion/0"]),
    ):
        skipped = []
        source = find_outliers(name, None, skipped)
        assert source.count == len(kept) and [item.id for item in source.items] == kept
        assert [one.id for one in skipped] == bad
    for name in ("cut", "empty"):
        (tmp_path / f"images/{name}.png").write_bytes(b"")
    with pytest.raises(GenValError, match=r"none of 3 images of pair:.* can be used"):
        find_outliers(f"pair:{tmp_path}/images,{tmp_path}/masks", None, [])


def test_an_unknown_source_is_refused_with_the_forms(tmp_path):
    with pytest.raises(GenValError, match=r"there is no folder .*missing.*paste:IMAGES,MASKS, or noise"):
        find_outliers(str(tmp_path / "missing"), None, None)
