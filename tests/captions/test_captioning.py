"""Captions of many images: resumed to the same lines, damaged images skipped, files of captions filtered."""

import json

import cv2
import numpy as np
import pytest

from genval.artifacts.stage import run_stage
from genval.captions.captioning import CaptionStage, gather, refilter, write_training_list
from genval.captions.filter import CaptionFilter
from genval.captions.interrogator import Description
from genval.captions.sources import Source, match_sources
from genval.runtime.errors import GenValError

RECORD = {"mode": "fast", "blip_hash": "00"}


class BrightnessInterrogator:
    """Tells how bright an image is, and in how large a company it was described."""

    def __init__(self, fail_after=None):
        self.batches = []
        self.fail_after = fail_after

    def prepare(self, image):
        return int(image.mean())

    def describe(self, images):
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            raise KeyboardInterrupt
        self.batches.append(list(images))
        return [Description("a street", f"{value} of {len(images)}, in the rain", 0.25) for value in images]


def caption(folder, interrogator, sources, record=RECORD, **options):
    """Caption in batches of three; returns the engine's report."""
    return run_stage(CaptionStage(folder, interrogator, record), sources, batch_size=3, num_workers=2, **options)


@pytest.fixture
def sources(tmp_path):
    made = []
    for i in range(7):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 6, 3), 10 * i, np.uint8))
        made.append(Source(f"images/{i}.png", path, f"masks/{i}.png" if i else None))
    return made


def test_a_stopped_run_resumes_to_the_same_lines(sources, tmp_path):
    def lines(folder, interrogator, **options):
        return caption(tmp_path / folder, interrogator, sources, **options).written

    assert lines("whole", BrightnessInterrogator()) == 7
    with pytest.raises(KeyboardInterrupt):
        lines("halves", BrightnessInterrogator(fail_after=1))
    second = BrightnessInterrogator()
    assert lines("halves", second) == 4 and second.batches == [[30, 40, 50], [60]]
    third = BrightnessInterrogator()
    assert lines("halves", third) == 0 and not third.batches
    for name in ("whole", "halves"):
        gather(tmp_path / name, sources, RECORD, CaptionFilter([]))
    whole, halves = ((tmp_path / name / "manifest.jsonl").read_bytes() for name in ("whole", "halves"))
    assert whole == halves and len(whole.splitlines()) == 7
    again = BrightnessInterrogator()
    assert lines("halves", again, overwrite=True) == 7


def test_texts_are_filtered_in_the_order_of_the_images(sources, tmp_path):
    caption(tmp_path, BrightnessInterrogator(), sources)
    captions, report = gather(tmp_path, sources, RECORD, CaptionFilter(["rain"]))
    assert list(captions) == [source.key for source in sources] and captions["images/6.png"] == "60 of 1"
    assert report == {"changed": 7, "emptied": [], "dropped": {"rain": 7}}


def test_lines_of_other_settings_are_made_again(sources, tmp_path):
    caption(tmp_path / "out", BrightnessInterrogator(), sources)
    other = {**RECORD, "mode": "best"}
    assert caption(tmp_path / "out", BrightnessInterrogator(), sources[:3], other).written == 3
    captions, _ = gather(tmp_path / "out", sources, other, CaptionFilter([]))
    assert len(captions) == 3  # a line of the other mode is no caption of this run


def test_an_image_that_changed_is_captioned_again(sources, tmp_path):
    caption(tmp_path / "out", BrightnessInterrogator(), sources)
    cv2.imwrite(str(sources[2].image), np.full((4, 6, 3), 99, np.uint8))
    second = BrightnessInterrogator()
    # Its batch is computed as a whole.
    assert caption(tmp_path / "out", second, sources).written == 1 and second.batches == [[0, 10, 99]]
    captions, _ = gather(tmp_path / "out", sources, RECORD, CaptionFilter([]))
    assert captions["images/2.png"] == "99 of 3, in the rain"


def test_damaged_images(sources, tmp_path):
    sources[4].image.write_bytes(sources[4].image.read_bytes()[:40])
    with pytest.raises(GenValError, match="cannot be decoded"):
        caption(tmp_path / "out", BrightnessInterrogator(), sources)
    report = caption(tmp_path / "out", BrightnessInterrogator(), sources, skip_bad=True)
    captions, _ = gather(tmp_path / "out", sources, RECORD, CaptionFilter([]))
    assert [one.item.key for one in report.skipped] == ["images/4.png"] and len(captions) == 6


def test_training_lines(sources, tmp_path):
    captions = {source.key: "a street" for source in sources[:2]}
    write_training_list(tmp_path / "train.jsonl", sources, captions)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert lines == [
        {"image": "images/0.png", "text": "a street"},
        {"image": "images/1.png", "conditioning_image": "masks/1.png", "text": "a street"},
    ]


def test_existing_files_are_filtered_in_their_own_form(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"x": {"1.png": "cars in the rain"}, "y": {"2.png": "cars"}}))
    _, report = refilter(tmp_path / "a.json", CaptionFilter(["rain"]), tmp_path / "out/a.json")
    assert report == {"changed": 1, "emptied": [], "dropped": {"rain": 1}}
    assert json.loads((tmp_path / "out/a.json").read_text()) == {"x": {"1.png": "cars"}, "y": {"2.png": "cars"}}
    line = {"image": "1.png", "conditioning_image": "m.png", "text": "rain", "own": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    _, report = refilter(tmp_path / "a.jsonl", CaptionFilter(["rain"]), tmp_path / "out/a.jsonl")
    assert report["emptied"] == ["1.png"]
    assert json.loads((tmp_path / "out/a.jsonl").read_text()) == {**line, "text": ""}


def test_patterns(sources, tmp_path):
    (tmp_path / "images" / "notes.txt").write_text("none")
    found = match_sources(str(tmp_path / "**" / "*"))
    assert [source.image for source in found] == [source.image for source in sources]
    assert found[0].key == str(sources[0].image) and found[0].mask is None
    with pytest.raises(GenValError, match=r"matches no image .* it matches 1 files"):
        match_sources(str(tmp_path / "**" / "*.txt"))
    with pytest.raises(GenValError, match=rf"matches no image .*: {tmp_path}/fog does not exist"):
        match_sources(str(tmp_path / "fog" / "train" / "*"))
