"""Scores of generated images: agreement with the mask, agreement with the domain, and distance to other images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from genval.evaluation.settings import GateThresholds
from genval.metrics.segmentation import iou_per_class, pixel_accuracy, plain
from genval.runtime.files import replace_file

# Image hash: side of the grey thumbnail, and side of the square of its lowest frequencies.
_THUMBNAIL = 64
_FREQUENCIES = 16
HASH_BITS = _FREQUENCIES**2
# Number of images compared at a time; the distances of a block take a few megabytes.
_BLOCK = 512
# Scores that have a histogram, with the labels of its axis.
_HISTOGRAMS = {
    "miou": "mIoU with the mask",
    "relative_miou": "mIoU, fraction of the original's",
    "domain_probability": "probability of the domain's phrase",
    "drift_percent": "drift from the original, % of the height",
    "nearest_bits": f"bits to the nearest image, of {HASH_BITS}",
}


def agreement(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Measure how well a prediction agrees with the mask that an image was generated from; fit for JSON.

    Args:
        matrix: int (C, C), rows are the mask's classes.
        names: the classes' names.

    Returns:
        `miou` (a fraction) and `iou_per_class`, both over the classes in the mask, so that an image and the original of
        its mask are measured on the same classes; and `pixel_accuracy_percent`. Without a labelled pixel, `miou` and
        `pixel_accuracy_percent` are None.
    """
    labelled = np.flatnonzero(matrix.sum(1)).tolist()
    iou = iou_per_class(matrix)[labelled]
    return {
        "miou": float(iou.mean()) if len(iou) else None,
        "pixel_accuracy_percent": plain(pixel_accuracy(matrix)),
        "iou_per_class": {names[index]: value for index, value in zip(labelled, iou.tolist(), strict=True)},
    }


def relative_agreement(generated: float | None, original: float | None) -> float | None:
    """Return the mIoU of a generated image as a fraction of the original's; None if the original's is 0 or unknown."""
    return generated / original if generated is not None and original else None


def domain_probability(images: np.ndarray, phrases: np.ndarray, logit_scale: float) -> np.ndarray:
    """Compute the probability of the domain's phrase against the clear phrase: a softmax of scaled cosines.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021), 3.1.2.

    Args:
        images: CLIP's image vectors, (N, D), normalised to length 1.
        phrases: vectors of the domain's phrase and of the clear phrase, (2, D), normalised to length 1.
        logit_scale: CLIP's learned factor, at most 100.

    Returns:
        float64 (N,) in 0..1.

    >>> domain_probability(np.eye(2), np.eye(2), 2.0).round(4).tolist()
    [0.8808, 0.1192]
    """
    cosines = images.astype(np.float64) @ phrases.astype(np.float64).T
    return 1 / (1 + np.exp(logit_scale * (cosines[:, 1] - cosines[:, 0])))


def geometry_drift(image: np.ndarray, original: np.ndarray) -> float | None:
    """Measure how far the content of an image lies from where it is in the original, in percent of the image's height.

    Editors of photos move, enlarge or crop what they show, and the mask then no longer fits. In square tiles of half
    the shorter side, the shift that aligns the edges best is found (phase correlation: Kuglin and Hines, "The phase
    correlation image alignment method", 1975). The drift is the mean length of the shifts, weighted by the height of
    the correlation's peak. Logarithms of edges make it insensitive to fog and darkness.

    Args:
        image, original: RGB uint8 (H, W, 3).

    Returns:
        The drift, at least 0; None if one of the images has no edges, or is smaller than 8 pixels.
    """
    height, width = image.shape[:2]
    side = min(height, width) // 2
    edges, original_edges = _log_edges(image), _log_edges(original)
    if side < 4 or not edges.any() or not original_edges.any():
        return None
    window = cv2.createHanningWindow((side, side), cv2.CV_32F)
    shifts, weights = [], []
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            tile = np.s_[top : top + side, left : left + side]
            (right, down), peak = cv2.phaseCorrelate(original_edges[tile], edges[tile], window)
            shifts.append(math.hypot(right, down))
            weights.append(max(peak, 0.0) if math.isfinite(peak) else 0.0)
    if not sum(weights):
        return None
    return float(100 * np.average(np.nan_to_num(shifts), weights=weights) / height)


def _log_edges(image: np.ndarray) -> np.ndarray:
    """Return the logarithm of an image's gradient magnitude, float32 (H, W)."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
    return np.log1p(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)))


def image_hash(image: np.ndarray) -> np.ndarray:
    """Compute a perceptual hash.

    It hardly changes under encoding, resizing and small changes of brightness, and differs between images of one mask.
    Each bit says whether one of the lowest frequencies of a grey thumbnail is above their median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), 3.2.1, with 16x16
    frequencies in place of 8x8.

    Args:
        image: RGB uint8 (H, W, 3).

    Returns:
        uint8 (32,), 256 bits.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(thumbnail)[:_FREQUENCIES, :_FREQUENCIES].ravel()
    # The first frequency is the mean brightness, which is far above all others.
    return np.packbits(low > np.median(low[1:]))


def close_pairs(hashes: np.ndarray, others: np.ndarray, below: int) -> Iterator[tuple[int, int, int]]:
    """Yield all pairs of images whose hashes differ in fewer than `below` bits, as (row, row of others, bits).

    Images are compared in blocks, so that memory does not grow with the number of pairs.

    Args:
        hashes, others: uint8 (N, 32) and (M, 32).
        below: 0..257.
    """
    for i, j, bits in _distances(hashes, others):
        for row, column in np.argwhere(bits < below).tolist():
            yield i + row, j + column, int(bits[row, column])


def nearest(hashes: np.ndarray, others: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest other image of each image.

    Args:
        hashes: uint8 (N, 32).
        others: uint8 (M, 32); None means the same images, where an image is not its own neighbour.

    Returns:
        The row of the nearest image and the number of bits in which the two differ, both int64 (N,); -1 and 257 if
        there is no other image.
    """
    rows, least = np.full(len(hashes), -1), np.full(len(hashes), HASH_BITS + 1)
    for i, j, bits in _distances(hashes, hashes if others is None else others):
        if others is None and i == j:
            np.fill_diagonal(bits, HASH_BITS + 1)
        column = bits.argmin(1)
        found = bits[np.arange(len(bits)), column]
        closer = found < least[i : i + len(bits)]
        rows[i : i + len(bits)][closer] = j + column[closer]
        least[i : i + len(bits)][closer] = found[closer]
    return rows, least


def _distances(hashes: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield blocks of the numbers of differing bits, as (start, start of others, int64 (n, m))."""
    words, other_words = (np.ascontiguousarray(array).view(np.uint64) for array in (hashes, others))
    for i in range(0, len(words), _BLOCK):
        for j in range(0, len(other_words), _BLOCK):
            differing = words[i : i + _BLOCK, None] ^ other_words[None, j : j + _BLOCK]
            yield i, j, np.bitwise_count(differing).sum(-1, dtype=np.int64)


def add_neighbours(scores: Mapping[str, dict[str, Any]]) -> None:
    """Add the nearest other image and the distance to the nearest original to the scores of each image.

    Args:
        scores: by id, in order. Each holds `hash` (hexadecimal), and `original_hash` if there is an original. `nearest`
            (an id), `nearest_bits` and `original_bits` are added.
    """
    ids = list(scores)
    hashes = _from_hex(scores[item_id]["hash"] for item_id in ids)
    rows, bits = nearest(hashes)
    for item_id, row, distance in zip(ids, rows.tolist(), bits.tolist(), strict=True):
        scores[item_id] |= {"nearest": ids[row], "nearest_bits": distance} if row >= 0 else {}
    # One frame may be the original of many images: each of its crops is compared once.
    originals = sorted({values["original_hash"] for values in scores.values() if "original_hash" in values})
    if originals:
        for item_id, distance in zip(ids, nearest(hashes, _from_hex(originals))[1].tolist(), strict=True):
            scores[item_id]["original_bits"] = distance


def agreement_floor(scores: Iterable[Mapping[str, Any]], thresholds: GateThresholds) -> tuple[str, float]:
    """Return the name of the score by which agreement is judged, and the lowest value that is kept.

    The score is `relative_miou`, or `miou` in a set without originals.
    """
    scores = list(scores)
    key = "relative_miou" if any("relative_miou" in values for values in scores) else "miou"
    values = [one[key] for one in scores if one.get(key) is not None]
    typical = float(np.median(values)) if values else 0.0
    return key, max(thresholds.min_agreement if key == "relative_miou" else 0.0, thresholds.min_of_median * typical)


def judge(scores: Mapping[str, Mapping[str, Any]], thresholds: GateThresholds) -> dict[str, list[str]]:
    """Decide which images are kept.

    Agreement is compared with the set's own median, and with `min_agreement` of the original's agreement if that is
    set. Of several near-duplicates, the first one that has no other reason against it is kept. A score that was not
    computed (no CLIP model, no originals) is not judged. A score that was computed and has no value drops the image.

    Args:
        scores: by id, in order, after `add_neighbours`.
        thresholds: what an image must reach.

    Returns:
        The reasons for dropping each image, by id, in order; an image without a reason is kept.
    """
    key, floor = agreement_floor(scores.values(), thresholds)
    reasons = {item_id: _faults(values, thresholds, key, floor) for item_id, values in scores.items()}
    ids = list(scores)
    hashes = _from_hex(scores[item_id]["hash"] for item_id in ids)
    earlier: dict[int, list[tuple[int, int]]] = {}
    for row, other, bits in close_pairs(hashes, hashes, thresholds.min_bits):
        if other < row:
            earlier.setdefault(row, []).append((other, bits))
    for row in sorted(earlier):
        kept = [(other, bits) for other, bits in earlier[row] if not reasons[ids[other]]]
        if kept:
            other, bits = min(kept, key=lambda pair: pair[::-1])
            reasons[ids[row]].append(f"near-duplicate of {ids[other]}: {bits} bits")
    return reasons


def _faults(scores: Mapping[str, Any], thresholds: GateThresholds, key: str, floor: float) -> list[str]:
    """Return the reasons against an image that do not depend on near-duplicates in the set."""
    faults = []
    agreed, domain, bits = (scores.get(name, math.inf) for name in (key, "domain_probability", "original_bits"))
    if scores["miou"] is None:
        faults.append("no labelled pixel")
    elif agreed is None:
        faults.append("agreement unknown: the segmenter finds no class of the mask in the original")
    elif agreed < floor:
        faults.append(f"{key} {agreed:.3f}, below {floor:.3f}")
    if domain < thresholds.min_domain:
        faults.append(f"domain probability {domain:.3f}, below {thresholds.min_domain}")
    if thresholds.max_drift is not None:
        drift = scores.get("drift_percent")
        if drift is None:
            faults.append("drift unknown: no original, no edges, or scored without it (--overwrite)")
        elif drift > thresholds.max_drift:
            faults.append(f"drift {drift:.1f} %, above {thresholds.max_drift}")
    if bits < thresholds.min_bits:
        faults.append(f"near-duplicate of an original: {bits} bits")
    return faults


def summary(scores: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of a table of the scores that were computed: number of images and percentiles."""
    scores = list(scores)
    rows: list[list[Any]] = []
    for key in (
        "miou",
        "original_miou",
        "relative_miou",
        "drift_percent",
        "domain_probability",
        "nearest_bits",
        "original_bits",
    ):
        values = [float(one[key]) for one in scores if one.get(key) is not None]
        if values:
            rows.append([key, len(values), *np.percentile(values, [0, 10, 50, 90]).tolist(), float(np.mean(values))])
    return ["score", "images", "minimum", "10 %", "median", "90 %", "mean"], rows


def write_histograms(path: Path, scores: Iterable[Mapping[str, Any]], thresholds: GateThresholds, title: str) -> None:
    """Write a PNG with one histogram per score that was computed, each with its threshold."""
    from matplotlib.figure import Figure

    scores = list(scores)
    values = {key: [s[key] for s in scores if s.get(key) is not None] for key in _HISTOGRAMS}
    shown = [key for key in _HISTOGRAMS if values[key]]
    # Without pyplot, matplotlib needs no display and keeps no global state.
    figure = Figure(figsize=(4 * max(1, len(shown)), 3), layout="constrained")
    figure.suptitle(title)
    judged_by, floor = agreement_floor(scores, thresholds)
    lines = {judged_by: floor, "domain_probability": thresholds.min_domain, "nearest_bits": thresholds.min_bits}
    lines |= {} if thresholds.max_drift is None else {"drift_percent": thresholds.max_drift}
    for axes, key in zip(figure.subplots(1, max(1, len(shown)), squeeze=False)[0], shown, strict=False):
        axes.hist(values[key], bins=40)
        if key in lines:
            axes.axvline(lines[key], color="tab:red", linestyle="--")
        axes.set_xlabel(_HISTOGRAMS[key])
        axes.set_ylabel("images")
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _from_hex(hashes: Iterable[str]) -> np.ndarray:
    return np.stack([np.frombuffer(bytes.fromhex(text), np.uint8) for text in hashes])
