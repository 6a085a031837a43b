import numpy as np
import pytest
import torch

from genval.datasets.labels import CITYSCAPES, IGNORE
from genval.diffusion.hints import check_encoding, encode_hint, init_hinges
from genval.runtime.errors import GenValError


def test_hint_is_the_published_formula_with_255_as_minus_one() -> None:
    masks = torch.tensor([[[0, 7, 33, 255]]], dtype=torch.uint8)
    hint = encode_hint(masks)
    assert hint.shape == (1, 1, 1, 4) and hint.dtype == torch.float32
    np.testing.assert_allclose(hint.flatten(), [1 / 34, 8 / 34, 1, 0], rtol=1e-6)


@pytest.mark.parametrize("masks", [torch.zeros(1, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)])
def test_hint_wants_a_batch_of_uint8(masks: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_hint(masks)


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
    conv = torch.nn.Conv2d(1, 16, 3, padding=1)
    init_hinges(conv)
    thresholds = -(conv.bias / conv.weight[:, 0, 1, 1]).detach().numpy()
    assert (np.diff(thresholds) > 0).all() and thresholds[0] > 0 and thresholds[-1] < 1
    assert conv.weight.count_nonzero() == 16


class _Stub:
    def __init__(self, **config: object) -> None:
        self.config = _Config(config)


class _Config(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__


@pytest.mark.parametrize(
    "config",
    [
        {"conditioning_channels": 3, "hint_encoding": "label_id"},
        {"conditioning_channels": 1, "hint_encoding": "one_hot"},
        {"conditioning_channels": 1},
    ],
)
def test_other_encodings_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(GenValError, match="hint_encoding"):
        check_encoding(_Stub(**config), "x")
