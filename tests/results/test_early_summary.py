"""Summaries while images are computed are those of a summary afterwards."""

import time

import numpy as np
import pytest
import torch

from genval.metrics.statistics import PixelStatistics, measure
from genval.results import early_summary
from genval.results.early_summary import EarlySummaries
from genval.results.scenes import SceneResults, image_record, save_image, summarise

NAMES = [str(number) for number in range(19)]


@pytest.fixture
def scenes(tmp_path):
    for name in ("image", "mask"):
        (tmp_path / name).write_bytes(b"1234")
    return [SceneResults(tmp_path / "results", "model", "Cityscapes", "clean", city) for city in "ab"]


def records_of(scene):
    files = (scene.root.parent / "image", scene.root.parent / "mask")
    return [image_record(f"{scene.scene}{number}", *files, scene.model, "w", "32-true") for number in range(3)]


def statistics(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(19, 6, 8, generator=generator)
    return measure(logits, torch.randint(0, 19, (6, 8), generator=generator, dtype=torch.uint8))[1]


def write(scene, record, seed):
    save_image(scene, record, np.zeros((6, 8), np.uint8), statistics(seed), overwrite=True)


def summary(images, number):
    return summarise(images, NAMES, range(19), {"2": [0, 1]}, number=number)


def begin(scenes, missing):
    return EarlySummaries({scene: records_of(scene) for scene in scenes}, missing, summary)


def read(scene):
    return [(record["id"], scene.read_image(record)) for record in records_of(scene)]


def missing_of(scenes):
    return [(scene, record["id"]) for scene in scenes for record in records_of(scene)]


@pytest.mark.parametrize(("added", "most"), [(False, 32), (True, 32), (True, 1)])
def test_images_in_any_order_are_summarised_in_their_own(scenes, monkeypatch, added, most):
    monkeypatch.setattr(early_summary, "_MAX_WAITING", most)
    jobs = [(scene, record, seed) for scene in scenes for seed, record in enumerate(records_of(scene))]
    early = begin(scenes, missing_of(scenes))
    for scene, record, seed in jobs[::-1]:
        if added:
            early.add(scene, record["id"], statistics(seed))
        write(scene, record, seed)
        time.sleep(0.02)
    found = early.take()
    assert list(found) == scenes
    for scene in scenes:
        expected = summary(iter(read(scene)), 3)
        assert found[scene].metrics == expected.metrics and found[scene].table == expected.table


def test_results_of_an_earlier_run_wait_for_this_one(scenes):
    (scene, _) = scenes
    records = records_of(scene)
    for seed, record in enumerate(records):
        write(scene, record, seed)
    early = begin([scene], missing_of([scene])[:2])
    time.sleep(0.2)
    assert early._thread.is_alive()
    for seed, record in enumerate(records[:2]):
        write(scene, record, 10 + seed)
    expected = PixelStatistics.empty()
    for seed in (10, 11, 2):
        expected = expected + statistics(seed)
    assert (early.take()[scene].total.confusion == expected.confusion).all()


def test_added_statistics_are_not_read(scenes, monkeypatch):
    scene = scenes[0]
    early = begin([scene], missing_of([scene]))
    monkeypatch.setattr(SceneResults, "read_image", lambda *arguments: pytest.fail("an image was read"))
    for seed, record in enumerate(records_of(scene)):
        early.add(scene, record["id"], statistics(seed))
        write(scene, record, seed)
    assert early.take()[scene].total.confusion.sum() == 3 * 48


def test_statistics_that_this_run_does_not_write_are_read(scenes):
    scene = scenes[0]
    for seed, record in enumerate(records_of(scene)):
        write(scene, record, seed)
    early = begin([scene], missing_of([scene])[2:])
    early.add(scene, records_of(scene)[0]["id"], statistics(7))
    write(scene, records_of(scene)[2], 2)
    assert early.take()[scene].metrics == summary(iter(read(scene)), 3).metrics


def test_a_scene_with_an_image_that_is_never_written_has_no_summary(scenes):
    early = begin(scenes, missing_of(scenes))
    write(scenes[0], records_of(scenes[0])[0], 0)
    assert early.take() == {}


def test_cancelling_ends_the_thread_without_a_summary(scenes):
    for seed, record in enumerate(records_of(scenes[0])):
        write(scenes[0], record, seed)
    early = begin(scenes, missing_of(scenes))
    early.cancel()
    assert not early._thread.is_alive() and early.take() == {}
