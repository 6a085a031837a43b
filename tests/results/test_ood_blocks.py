"""The files of OOD detection, and exact metrics of sets that do not fit into memory."""

import csv
import json
import os
import resource

import numpy as np
import pytest
from reference_metrics import sklearn_ood_metrics

from genval.kernels.layout import level_edges
from genval.metrics.ood_pooling import COARSE, coarse_levels, poisson_weights
from genval.metrics.ood_scores import SCORE_LEVELS, ood_bounds
from genval.results.ood_blocks import (
    PUBLISHED_KEYS,
    OodResults,
    has_scores,
    pool_blocks,
    pool_scores,
    write_results,
    write_scores,
)
from genval.runtime.errors import GenValError

IDS = [f"lion/{number}" for number in range(6)]


@pytest.mark.parametrize("piece", [16, 500, 1 << 20])
def test_exact_pooled_metrics_do_not_depend_on_the_pixels_in_memory(tmp_path, piece):
    generator = np.random.default_rng(0)
    images = []
    for image in range(5):
        # Scores repeat, inside images and across them.
        background, objects = (
            generator.normal(0, 1, 400).round(2),
            generator.normal(0.2 * image, 1, 30 * image).round(2),
        )
        images.append((background.astype(np.float32), objects.astype(np.float32)))
        write_scores(tmp_path / str(image), {"entropy": [np.sort(part) for part in images[-1]]})
        assert has_scores(tmp_path / str(image), ["entropy"])
    scores = np.concatenate([part for image in images for part in image])
    objects = np.concatenate([np.full(len(part), kind, bool) for image in images for kind, part in enumerate(image)])
    found = pool_scores([tmp_path / str(image) for image in range(5)], "entropy", piece)
    assert found == pytest.approx(sklearn_ood_metrics(scores, objects), abs=1e-12)


def test_exact_pooled_metrics_need_few_open_files(tmp_path):
    folders = [tmp_path / str(image) for image in range(40)]
    for image, folder in enumerate(folders):
        write_scores(folder, {"entropy": [np.arange(4, dtype=np.float32) + kind + image for kind in range(2)]})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        found = pool_scores(folders, "entropy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert 0.5 < found["auroc"] < 0.6


def test_intervals_of_entropies_are_over_pixels(tmp_path):
    results = OodResults(tmp_path, "set", "model")
    generator = np.random.default_rng(0)
    sums, pixels = generator.random((6, 2)) * 90, generator.integers(1, 400, (6, 2))
    lines = [
        {
            "made_from": {"id": name},
            "entropy_sums": sums[index].tolist(),
            "pixels": dict(zip(("background", "object", "void"), [*pixels[index].tolist(), 0], strict=True)),
            "figures": {"entropy": dict.fromkeys(PUBLISHED_KEYS.values(), 0.5)},
        }
        for index, name in enumerate(IDS)
    ]
    coarse = np.zeros((6, 1, 2, COARSE), np.int64)
    results.write_block("0", lines, np.zeros((1, 2, SCORE_LEVELS), np.int64), coarse)
    found = pool_blocks(results, ["0"], 1, draws=60, seed=1).entropy_intervals
    weights = np.stack([poisson_weights(name, 60, 1) for name in IDS], 1)
    background, objects = ((weights @ sums) / (weights @ pixels)).T
    assert found["raw_entropy"] == pytest.approx(tuple(np.percentile(objects, [2.5, 97.5])))
    assert found["rel_entropy"] == pytest.approx(tuple(np.percentile(objects / background, [2.5, 97.5])))


def test_damaged_scores_are_refused(tmp_path):
    write_scores(tmp_path, {"entropy": [np.zeros(4, np.float32)] * 2})
    (tmp_path / "entropy_object.npy").write_bytes(b"x")
    with pytest.raises(GenValError, match=r"entropy_object\.npy is missing or damaged"):
        pool_scores([tmp_path], "entropy")


def test_the_share_of_pixels_without_an_order_is_in_the_tables(tmp_path):
    results = OodResults(tmp_path, "set", "model")
    levels = np.zeros((2, 2, SCORE_LEVELS), np.int64)
    last = len(level_edges("entropy")) - 1
    levels[0, :, [5, last]] = [[30, 2], [10, 8]]  # entropy: background and object at a level, and at the end
    levels[1, :, [40, 300]] = [[40, 0], [0, 10]]
    lines = [
        {
            "made_from": {"id": "lion/0"},
            "image": "0.png",
            "object": "lion",
            "raw_entropy": 0.1,
            "rel_entropy": 1.0,
            "entropy_sums": [1.0, 2.0],
            "pixels": {"background": 40, "object": 10, "void": 0},
            "figures": {name: dict.fromkeys(PUBLISHED_KEYS.values(), 0.5) for name in ("entropy", "logits")},
        }
    ]
    results.write_block("0", lines, levels, coarse_levels(levels)[None])
    pooled = pool_blocks(results, ["0"], 2, draws=5, seed=0)
    rows = write_results(results, pooled, ["entropy", "logits"], {})
    assert [row["saturated"] for row in rows] == [0.36, 0]
    assert rows[0]["auroc_bound"] == ood_bounds(levels[0])["auroc"] > 0 == rows[1]["auroc_bound"]
    with open(results.csv) as stream:
        assert [float(row["saturated"]) for row in csv.DictReader(stream)] == [0.36, 0]
    assert json.loads(results.json.read_text())["pooled"]["entropy"]["saturated"] == 0.36
