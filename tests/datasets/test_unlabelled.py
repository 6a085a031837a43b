"""Folders of images without labels."""

import pytest

from genval.datasets.unlabelled import find_unlabelled
from genval.runtime.errors import GenValError


def test_images_are_found_in_all_folders_and_labels_are_left_out(tmp_path, capsys):
    for name in ("b/2.JPG", "a/1.png", "a/1_labelTrainIds.png", "a/1_mask.png", "._3.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_unlabelled(tmp_path, "--reference") == [tmp_path / "a/1.png", tmp_path / "b/2.JPG"]
    assert "2 files are label images by their names" in capsys.readouterr().out
    with pytest.raises(GenValError, match=r"--reference: found 2 images .* at least 4"):
        find_unlabelled(tmp_path, "--reference", 4)
    with pytest.raises(GenValError, match="is not a folder"):
        find_unlabelled(tmp_path / "missing", "--reference")
