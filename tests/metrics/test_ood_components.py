"""sIoU, PPV and F1 of components against a plain reference written from SegmentMeIfYouCan's definition."""

import math

import numpy as np
import pytest
from scipy.ndimage import label

from genval.metrics.ood_components import (
    THRESHOLDS,
    Sizes,
    benchmark_threshold,
    best_level,
    component_metrics,
    image_bins,
    measure_components,
)
from genval.metrics.ood_scores import SCORE_LEVELS


def find_components(mask, fewest):
    numbered, count = label(mask, np.ones((3, 3)))
    parts = [numbered == number for number in range(1, count + 1)]
    return [part for part in parts if part.sum() >= fewest], [part for part in parts if part.sum() < fewest]


def slow_components(found, kinds, sizes):
    objects, small = find_components(kinds == 1, sizes.object)
    predicted = find_components(found & (kinds != 255), sizes.predicted)[0]
    region = (kinds != 255) & ~np.any([np.zeros_like(found), *small], axis=0)
    predicted = [part & region for part in predicted if (part & region).any()]
    siou = []
    for own in objects:
        touching = np.any([np.zeros_like(own), *(part for part in predicted if (part & own).any())], axis=0)
        others = np.any([np.zeros_like(own), *(part for part in objects if part is not own)], axis=0)
        siou.append((touching & own).sum() / ((touching | own) & ~(others & touching)).sum())
    everything = np.any([np.zeros_like(found), *objects], axis=0)
    return siou, [(part & everything).sum() / part.sum() for part in predicted]


def scene(seed):
    """Blobs that touch, split, merge and lie on void."""
    import cv2

    generator = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(generator.normal(size=(60, 80)), (0, 0), 2.5) for _ in range(2)]
    kinds = (fields[0] > 0.11).astype(np.uint8)
    found = fields[0] + 0.8 * fields[1] > 0.1
    kinds[:8, :30] = 255
    return found, kinds


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", [Sizes(1, 1), Sizes(40, 12)])
def test_components_are_those_of_the_definition(seed, sizes):
    found, kinds = scene(seed)
    siou, ppv = slow_components(found, kinds, sizes)
    components = measure_components(found, kinds, sizes)
    assert len(siou) > 2 and len(ppv) > 2
    assert np.sort(components.siou) == pytest.approx(np.sort(siou))
    assert np.sort(components.ppv) == pytest.approx(np.sort(ppv))


def test_one_prediction_over_two_objects_does_not_count_against_either():
    kinds, found = np.zeros((10, 20), np.uint8), np.zeros((10, 20), bool)
    kinds[2:8, 2:8] = kinds[2:8, 10:16] = 1
    found[2:8, 2:16] = True
    components = measure_components(found, kinds, Sizes(1, 1))
    assert components.siou == pytest.approx([36 / 48] * 2) and components.ppv == pytest.approx([72 / 84])


def test_f1_is_the_mean_over_the_thresholds_of_all_images_together():
    images = [measure_components(*scene(seed), Sizes(1, 1)) for seed in range(3)]
    metrics = component_metrics(sum(image.sums() for image in images))
    siou, ppv = (np.concatenate([getattr(image, name) for image in images]) for name in ("siou", "ppv"))
    f1 = []
    for threshold in THRESHOLDS:
        hits, misses, false = (siou >= threshold).sum(), (siou < threshold).sum(), (ppv < threshold).sum()
        f1.append(2 * hits / (2 * hits + misses + false))
    assert [*map(float, metrics.values())] == pytest.approx([siou.mean(), ppv.mean(), np.mean(f1)])
    assert tuple(np.linspace(0.25, 0.75, 11).round(2)) == THRESHOLDS


def test_no_predicted_component_and_no_object():
    empty, kinds = np.zeros((9, 9), bool), np.zeros((9, 9), np.uint8)
    nothing = component_metrics(measure_components(empty, kinds, Sizes(1, 1)).sums())
    assert all(math.isnan(value) for value in nothing.values())
    kinds[2:5, 2:5] = 1
    missed = component_metrics(measure_components(empty, kinds, Sizes(1, 1)).sums())
    assert missed["siou"] == 0 and missed["f1"] == 0 and math.isnan(missed["ppv"])


def test_the_threshold_is_that_of_the_best_f1_of_pixels():
    levels = np.zeros((2, SCORE_LEVELS), np.int64)
    levels[1, 100], levels[0, 200], levels[1, 300], levels[0, 400] = 10, 2, 8, 1000
    assert best_level(levels) == 300
    levels[0, 200] = 500
    assert best_level(levels) == 100


def slow_threshold(images):
    """SegmentMeIfYouCan's threshold, written from its definition pixel by pixel."""
    ends = []
    for background, objects in images:
        both = np.concatenate([background, objects])
        beyond = max(0.01 * np.ptp(both), 0.01)
        edges = {both.min() - beyond, both.max() + beyond}
        for scores in (background, objects):
            edges |= set(np.quantile(scores, np.linspace(0, 1, min(384, len(scores)))))
        ends.append(np.array(sorted(edges)))

    def f1(threshold):
        # A bin counts where its lower end reaches the threshold.
        hits = alarms = 0
        for edges, (background, objects) in zip(ends, images, strict=True):
            above = edges[:-1][edges[:-1] >= threshold]
            if len(above):
                hits += (objects >= above[0]).sum()
                alarms += (background >= above[0]).sum()
        return 2 * hits / (hits + alarms + sum(len(objects) for _, objects in images))

    candidates = sorted({end for edges in ends for end in edges[:-1]}, reverse=True)
    return candidates[int(np.argmax([f1(one) for one in candidates]))]


def test_the_benchmarks_threshold_is_the_best_of_the_quantiles_of_all_images():
    generator = np.random.default_rng(0)
    images = [(generator.normal(size=90), generator.normal(1.5, 1, 30)) for _ in range(3)]
    images.append((np.zeros(5), np.array([0.0, 1.0])))
    bins = [image_bins(*image) for image in images]
    assert sum(counts.sum() for _, counts in bins) == 3 * 120 + 7
    assert benchmark_threshold(bins) == pytest.approx(slow_threshold(images))
    with_one_kind = image_bins(np.zeros(0), np.array([1.0, 2.0]))
    assert with_one_kind[1].sum(1).tolist() == [0, 2]
