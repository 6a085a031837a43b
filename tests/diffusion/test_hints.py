import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genval.datasets.labels import CITYSCAPES, IGNORE, PALETTE
from genval.diffusion.models.hints import (
    CITYSCAPES_IDS,
    HINT_ENCODINGS,
    check_labels,
    encode_hint,
    init_hinges,
    make_encoding,
    read_encoding,
    record_encoding,
)
from genval.runtime.errors import GenValError

OWN = {
    "2": {"name": "road", "colour": [1, 2, 3]},
    "0": {"name": "sky", "colour": [255, 0, 51]},
    "5": {"name": "cow", "colour": [9, 9, 9]},
    "6": "car",
    "7": None,
}


def test_hint_is_the_published_formula_with_255_as_minus_one() -> None:
    masks = torch.tensor([[[0, 7, 33, 255]]], dtype=torch.uint8)
    hint = encode_hint(masks)
    assert hint.shape == (1, 1, 1, 4) and hint.dtype == torch.float32
    np.testing.assert_allclose(hint.flatten(), [1 / 34, 8 / 34, 1, 0], rtol=1e-7)


def test_every_known_id_by_every_encoding() -> None:
    ids = np.arange(256, dtype=np.uint8)
    masks = torch.from_numpy(ids)[None, None]
    train_ids = CITYSCAPES.table[ids]
    colours = encode_hint(masks, make_encoding("colour"))
    np.testing.assert_allclose(colours[0, :, 0].T, PALETTE[train_ids] / np.float32(255), rtol=1e-6)
    one_hot = encode_hint(masks, make_encoding("one_hot"))
    assert one_hot.shape == (1, 19, 1, 256)
    for i, train_id in enumerate(train_ids):
        expected = [float(channel == train_id) for channel in range(19)]
        assert one_hot[0, :, 0, i].tolist() == expected
    assert not one_hot[0, :, 0, train_ids == IGNORE].any()


@pytest.mark.parametrize("masks", [torch.zeros(1, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)])
def test_hint_wants_a_batch_of_uint8(masks: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_hint(masks)


def test_a_users_own_label_set(tmp_path: Path) -> None:
    file = tmp_path / "cows.json"
    file.write_text(json.dumps(OWN))
    masks = torch.tensor([[[0, 2, 5, 255]]], dtype=torch.uint8)
    encodings = {name: make_encoding(name, file) for name in HINT_ENCODINGS}
    assert [encodings[name].channels for name in HINT_ENCODINGS] == [1, 3, 4]
    np.testing.assert_allclose(
        encode_hint(masks, encodings["label_id"])[0, 0, 0], np.array([1, 3, 6, 0]) / 8, rtol=1e-6
    )
    np.testing.assert_allclose(encode_hint(masks, encodings["colour"])[0, :, 0, 0], [1, 0, 0.2], rtol=1e-6)
    one_hot = encode_hint(masks, encodings["one_hot"])[0, :, 0]
    assert one_hot.argmax(0).tolist() == [0, 1, 2, 0] and one_hot.sum(0).tolist() == [1, 1, 1, 0]
    labels = encodings["colour"].labels
    assert labels.name == "cows" and labels.train_ids[[0, 2, 5, 6, 7]].tolist() == [10, 0, IGNORE, 13, IGNORE]
    assert labels.colours[6].tolist() == PALETTE[13].tolist()
    labels.check(np.array([[0, 2, 7, 255]], np.uint8), "a.png")
    with pytest.raises(GenValError, match=r"a.png has ids that are not labels of cows: 1, 8"):
        labels.check(np.array([[8, 1, 0]], np.uint8), "a.png")
    check_labels(encodings["colour"], str(file), "the/net")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"a": {"name": "sky", "colour": [0, 0, 0]}},
        {"0": {"name": "sky"}},
        {"0": {"name": "sky", "colour": [0, 0, 256]}},
        {"255": {"name": "sky", "colour": [0, 0, 0]}},
        {"0": "cow"},
        {"0": None},
    ],
)
def test_what_is_no_label_set_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    with pytest.raises(GenValError, match=r"own\.json"):
        make_encoding("label_id", file)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GenValError, match="--hint_encoding"):
        make_encoding("rgb")
    with pytest.raises(GenValError, match="--hint_labels"):
        make_encoding("colour", tmp_path / "none.json")


def test_camvid_ids_have_names_and_colours() -> None:
    encoding = make_encoding("one_hot", "camvid")
    assert encoding.channels == 11 and encoding.labels.last_id == 11
    assert {one.name for one in encoding.labels.classes} >= {"sky", "road", "car", "person"}


def test_hinges_tell_neighbouring_classes_apart_better_than_the_default() -> None:
    evaluated = np.flatnonzero(CITYSCAPES.table != IGNORE)
    hints = torch.from_numpy((evaluated + 1) / 34).float().reshape(-1, 1, 1, 1)

    def smallest_singular_values(conv: torch.nn.Conv2d) -> np.ndarray:
        features = torch.nn.functional.silu(conv(hints)).flatten(1)
        return torch.linalg.svdvals(features - features.mean(0)).detach().numpy()

    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 16, 3, padding=1)
    default = smallest_singular_values(conv)
    init_hinges(conv)
    hinges = smallest_singular_values(conv)
    # How many directions of the 16 features carry more than a thousandth of the strongest.
    assert (default > default[0] / 1000).sum() <= 3
    assert (hinges > hinges[0] / 1000).sum() >= 14


def test_hinges_rise_one_after_the_other() -> None:
    for encoding in (CITYSCAPES_IDS, make_encoding("label_id", "camvid")):
        conv = torch.nn.Conv2d(1, 16, 3, padding=1)
        init_hinges(conv, encoding)
        thresholds = -(conv.bias / conv.weight[:, 0, 1, 1]).detach().numpy()
        assert (np.diff(thresholds) > 0).all() and thresholds[0] > 0 and thresholds[-1] < 1
        assert conv.weight.count_nonzero() == 16


class _Stub:
    def __init__(self, **config: object) -> None:
        self.config = _Config(config)

    def register_to_config(self, **entries: object) -> None:
        # As a file gives it back.
        self.config.update(json.loads(json.dumps(entries)))


class _Config(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("name", HINT_ENCODINGS)
def test_what_is_recorded_is_read_back(tmp_path: Path, name: str) -> None:
    file = tmp_path / "cows.json"
    file.write_text(json.dumps(OWN))
    for labels in ("cityscapes", "camvid", file):
        encoding = make_encoding(name, labels)
        stub = _Stub(conditioning_channels=encoding.channels)
        record_encoding(stub, encoding)
        assert read_encoding(stub, "x") == encoding


def test_a_config_without_labels_means_cityscapes() -> None:
    assert read_encoding(_Stub(conditioning_channels=1, hint_encoding="label_id"), "x") == CITYSCAPES_IDS


@pytest.mark.parametrize(
    "config",
    [
        {"conditioning_channels": 3, "hint_encoding": "label_id"},
        {"conditioning_channels": 1, "hint_encoding": "one_hot"},
        {"conditioning_channels": 1, "hint_encoding": "depth"},
        {"conditioning_channels": 3, "hint_encoding": "colour", "hint_labels": "ade20k"},
        {"conditioning_channels": 3, "hint_encoding": "colour", "hint_labels": {"name": "x", "classes": 4}},
        {"conditioning_channels": 1},
    ],
)
def test_other_encodings_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(GenValError, match=r"the/net.*(hint_encoding|label set|hint_labels)"):
        read_encoding(_Stub(**config), "the/net")


def test_masks_of_another_label_set_are_refused() -> None:
    check_labels(CITYSCAPES_IDS, "cityscapes", "the/net")
    with pytest.raises(GenValError, match="the/net reads masks of camvid"):
        check_labels(make_encoding("colour", "camvid"), "cityscapes", "the/net")
