"""Scores of generated images, compared with plain references, and the decisions of the gate."""

import cv2
import numpy as np
import pytest

from genval.evaluation.image_scores import (
    HASH_BITS,
    add_neighbours,
    agreement,
    close_pairs,
    domain_probability,
    geometry_drift,
    image_hash,
    judge,
    nearest,
    relative_agreement,
    summary,
    write_histograms,
)
from genval.evaluation.settings import GateThresholds
from genval.runtime.errors import GenValError

NAMES = ("road", "car", "sky")


def scored(bits=None, **values):
    """Return the scores of an image; `bits` are the bits of its hash that are set."""
    row = np.zeros(HASH_BITS, np.uint8)
    row[list(bits or [])] = 1
    return {"miou": 0.5, "relative_miou": 0.9, "hash": np.packbits(row).tobytes().hex(), **values}


def street(seed):
    """Return an image with large and small shapes."""
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.random((16, 32, 3), np.float32), (256, 128), interpolation=cv2.INTER_CUBIC)
    return np.clip(40 + 160 * noise, 0, 255).astype(np.uint8)


def test_agreement_is_over_the_classes_of_the_mask():
    mask, prediction = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 2, 1, 0])
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (mask, prediction), 1)
    values = agreement(matrix, NAMES)
    expected = {}
    for index in np.unique(mask):
        both = ((mask == index) & (prediction == index)).sum()
        expected[NAMES[index]] = both / ((mask == index) | (prediction == index)).sum()
    # "sky" is predicted but not in the mask: it does not count in the mean, but "road" loses a pixel.
    assert values["iou_per_class"] == pytest.approx(expected) and set(expected) == {"road", "car"}
    assert values["miou"] == pytest.approx(np.mean(list(expected.values())))
    assert values["pixel_accuracy_percent"] == pytest.approx(100 * (mask == prediction).mean())


def test_a_mask_without_a_labelled_pixel_has_no_agreement():
    assert agreement(np.zeros((3, 3), np.int64), NAMES) == {
        "miou": None,
        "pixel_accuracy_percent": None,
        "iou_per_class": {},
    }
    assert relative_agreement(None, 0.5) is None
    assert relative_agreement(0.2, 0.0) is None and relative_agreement(0.2, None) is None
    assert relative_agreement(0.2, 0.4) == 0.5


def test_the_domain_s_probability_is_a_softmax():
    rng = np.random.default_rng(0)
    images, phrases = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(n, 8)) for n in (5, 2)))
    logits = 20.0 * images @ phrases.T
    expected = np.exp(logits[:, 0]) / np.exp(logits).sum(1)
    assert domain_probability(images.astype(np.float32), phrases.astype(np.float32), 20.0) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("change", ["none", "fog", "night"])
def test_the_drift_is_that_of_the_geometry_and_not_of_the_appearance(change):
    original = street(1)
    height, width = original.shape[:2]

    def edited(zoom=1.0, right=0.0):
        matrix = np.array([[zoom, 0, (1 - zoom) * width / 2 + right], [0, zoom, (1 - zoom) * height / 2]])
        image = cv2.warpAffine(original, matrix, (width, height), borderMode=cv2.BORDER_REFLECT).astype(np.float32)
        if change == "fog":
            image = 0.4 * image + 0.6 * 220
        elif change == "night":
            image = 255 * 0.4 * (image / 255) ** 2
        return image.astype(np.uint8)

    assert geometry_drift(edited(), original) < 0.2
    # 5 pixels of 128
    assert geometry_drift(edited(right=5), original) == pytest.approx(100 * 5 / height, abs=0.3)
    # The centres of the eight tiles are at 0.25 heights above or below the centre, and 0.25 or 0.75 beside it.
    expected = 100 * 0.05 * np.mean([np.hypot(0.25, 0.25), np.hypot(0.25, 0.75)])
    assert geometry_drift(edited(zoom=1.05), original) == pytest.approx(expected, rel=0.25)


def test_images_without_edges_have_no_drift():
    assert geometry_drift(np.zeros((64, 64, 3), np.uint8), street(1)[:64, :64]) is None
    assert geometry_drift(street(1)[:6, :6], street(1)[:6, :6]) is None


def test_drift_is_judged_only_if_asked_for():
    scores = {"still": scored(range(0, 50), drift_percent=0.4), "moved": scored(range(50, 100), drift_percent=3.0)}
    scores |= {"unknown": scored(range(100, 150))}
    assert not any(judge(scores, GateThresholds()).values())
    reasons = judge(scores, GateThresholds(max_drift=1.0))
    assert not reasons["still"] and reasons["moved"] == ["drift 3.0 %, above 1.0"]
    assert "drift unknown" in reasons["unknown"][0]


def test_the_hash_changes_little_under_small_changes_and_much_between_images():
    image = street(0)
    plain = np.unpackbits(image_hash(image))
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    changed = {
        "jpeg": jpeg,
        "darker": (image * 0.8).astype(np.uint8),
        "half size": cv2.resize(image, (128, 64), interpolation=cv2.INTER_AREA),
    }
    for name, other in changed.items():
        assert (plain != np.unpackbits(image_hash(other))).sum() < GateThresholds().min_bits, name
    distances = [(plain != np.unpackbits(image_hash(street(seed)))).sum() for seed in range(1, 9)]
    assert min(distances) > 4 * GateThresholds().min_bits


def test_neighbours_in_blocks_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    hashes, others = (rng.integers(256, size=(n, 32), dtype=np.uint8) for n in (700, 530))
    hashes[650] = hashes[3]  # in another block
    bits = np.unpackbits(hashes, axis=1).astype(int)
    distances = (bits[:, None] != np.unpackbits(others, axis=1)[None]).sum(-1)
    own = (bits[:, None] != bits[None]).sum(-1)
    np.fill_diagonal(own, HASH_BITS + 1)
    rows, least = nearest(hashes, others)
    assert (least == distances.min(1)).all() and (rows == distances.argmin(1)).all()
    rows, least = nearest(hashes)
    assert (least == own.min(1)).all() and (rows == own.argmin(1)).all() and least[3] == 0 and rows[3] == 650
    found = {(i, j): n for i, j, n in close_pairs(hashes, others, 100)}
    assert found == {(i, j): distances[i, j] for i, j in np.argwhere(distances < 100).tolist()}
    assert [int(x[0]) for x in nearest(hashes[:1])] == [-1, HASH_BITS + 1]


def test_the_first_near_duplicate_without_another_fault_is_kept():
    scores = {
        "bad": scored(range(4), relative_miou=0.2),
        "first": scored(range(6)),
        "copy": scored(range(10)),
        "copy of the copy": scored(range(21)),  # 15 bits from the nearest image that is kept
        "other": scored(range(100, 180)),
    }
    add_neighbours(scores)
    assert scores["bad"]["nearest"] == "first" and scores["bad"]["nearest_bits"] == 2
    reasons = judge(scores, GateThresholds())
    assert [key for key, why in reasons.items() if not why] == ["first", "other"]
    assert reasons["bad"] == ["relative_miou 0.200, below 0.540"]
    assert reasons["copy"] == ["near-duplicate of first: 4 bits"]
    assert reasons["copy of the copy"] == ["near-duplicate of first: 15 bits"]
    # An image that is near a dropped image only is kept.
    scores["copy of the copy"] = scored(range(25))
    assert judge(scores, GateThresholds())["copy of the copy"] == []


def test_a_copy_of_an_original_is_dropped():
    scores = {"a": scored([1], original_hash=scored([1, 2])["hash"]), "b": scored(range(50, 99))}
    add_neighbours(scores)
    # Every original counts, not only the original of the same mask.
    assert scores["a"]["original_bits"] == 1 and scores["b"]["original_bits"] == 51
    assert judge(scores, GateThresholds())["a"] == ["near-duplicate of an original: 1 bits"]


def test_scores_that_were_not_computed_are_not_judged_and_unknown_scores_drop_the_image():
    lone = {"a": {"miou": 0.1, "hash": scored()["hash"]}}
    add_neighbours(lone)
    assert judge(lone, GateThresholds()) == {"a": []} and "nearest" not in lone["a"]
    for values, said in (
        ({"miou": None, "relative_miou": None}, "no labelled pixel"),
        ({"relative_miou": None}, "agreement unknown"),
        ({"domain_probability": 0.4999}, "domain probability 0.500, below 0.5"),
    ):
        reasons = judge({"a": scored(**values)}, GateThresholds())["a"]
        assert len(reasons) == 1 and said in reasons[0]


@pytest.mark.parametrize(
    "values",
    [
        {"min_of_median": 1.1},
        {"min_agreement": -0.1},
        {"min_domain": 1.5},
        {"min_bits": 300},
        {"min_agreement": float("nan")},
    ],
)
def test_thresholds_out_of_range_are_refused(values):
    with pytest.raises(GenValError, match=f"--{next(iter(values))}: expected"):
        GateThresholds(**values)


def test_summary_and_histograms_show_the_scores_that_were_computed(tmp_path):
    scores = [scored(nearest_bits=bits) for bits in (10, 20, 30)]
    header, rows = summary(scores)
    assert [row[0] for row in rows] == ["miou", "relative_miou", "nearest_bits"]
    assert rows[2] == pytest.approx(["nearest_bits", 3, 10, 12, 20, 28, 20]) and len(header) == 7
    write_histograms(tmp_path / "scores.png", scores, GateThresholds(), "fog")
    wide = cv2.imread(str(tmp_path / "scores.png")).shape
    write_histograms(tmp_path / "one.png", [{"miou": 0.5}], GateThresholds(), "fog")
    assert wide[1] == 3 * cv2.imread(str(tmp_path / "one.png")).shape[1]


def test_agreement_is_compared_with_the_median_of_the_set():
    night = {f"n{i}": scored([i * 20], relative_miou=value) for i, value in enumerate([0.2, 0.21, 0.22, 0.11, 0.3])}
    assert [key for key, why in judge(night, GateThresholds(min_bits=0)).items() if why] == ["n3"]
    strict = judge(night, GateThresholds(min_agreement=0.5, min_bits=0))
    assert all(strict.values()) and strict["n0"] == ["relative_miou 0.200, below 0.500"]
    # Without originals the mIoU itself is judged, and min_agreement does not apply.
    bare = {key: {"miou": values["relative_miou"], "hash": values["hash"]} for key, values in night.items()}
    reasons = judge(bare, GateThresholds(min_agreement=0.5, min_bits=0))
    assert [key for key, why in reasons.items() if why] == ["n3"] and reasons["n3"][0].startswith("miou 0.110, below")
