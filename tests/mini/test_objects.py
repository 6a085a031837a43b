"""Objects on streets: the sheet, where they stand, and the sets they are written to."""

import json

import numpy as np
import pytest
from PIL import Image
from script_runs import run_script

from genval.datasets.reading import read_image, read_mask
from genval.runtime.files import read_json, read_jsonl
from genval.runtime.paths import REPO_ROOT
from mini.world import render
from mini.world.object_placement import GROUND, place_object
from mini.world.object_sets import LIST, TRACK, plan_training, square_around
from mini.world.objects import (
    DYNAMIC,
    SPRITES,
    StreetObject,
    object_names,
    scaled_sprite,
    sprite,
)

SMALL = {"height": 128, "width": 256}


def generator(seed=0):
    return np.random.default_rng(seed)


def test_every_published_name_has_a_sprite_or_is_listed_as_left_out():
    published = [name for name in (REPO_ROOT / "ood_objects/objects.txt").read_text().splitlines() if name]
    left_out = read_json(SPRITES / "index.json")["left_out"]
    assert len(left_out) == 9
    assert sorted([*object_names(), *left_out]) == sorted(published)
    assert (SPRITES / "objects.txt").read_text().splitlines() == list(object_names())


def test_sprites_are_cut_to_what_is_visible_and_do_not_overlap():
    with Image.open(SPRITES / "sheet.png") as sheet:
        taken = np.zeros((sheet.height, sheet.width), bool)
    for name, place in read_json(SPRITES / "index.json")["objects"].items():
        alpha = sprite(name)[..., 3]
        assert max(alpha.shape) == 96
        assert min(edge.max() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])) > 0
        assert 0.15 < (alpha > 100).mean() < 1
        cell = np.s_[place["top"] : place["top"] + place["height"], place["left"] : place["left"] + place["width"]]
        assert not taken[cell].any()
        taken[cell] = True
    assert (SPRITES / "sheet.png").stat().st_size < 600_000
    assert "Copyright 2022 Google Inc." in (SPRITES / "OFL.txt").read_text()


def test_a_scaled_sprite_keeps_its_colours_at_the_edge():
    book = scaled_sprite("book", 31)
    edge = (book[..., 3] > 20) & (book[..., 3] < 200)
    assert book.shape[0] == 31 and edge.any()
    full = sprite("book")
    assert book[edge][:, :3].mean() > 0.5 * full[full[..., 3] > 250][:, :3].mean()


def test_an_object_changes_only_itself_and_its_shadow():
    street = render(4, **SMALL)
    thing = place_object(street, "lion", generator())
    scene = render(4, **SMALL, added=[thing])
    shown = scene.label_ids == DYNAMIC
    assert shown.any() and not (street.label_ids == DYNAMIC).any()
    np.testing.assert_array_equal(scene.label_ids[~shown], street.label_ids[~shown])
    changed = (scene.image != street.image).any(2)
    assert changed[shown].mean() > 0.95
    # Apart from its antialiased edge it changes the ground alone, where its shadow falls.
    shadow = changed & ~shown
    assert np.isin(street.label_ids[shadow], (*GROUND, 22)).mean() > 0.5
    assert scene.image[shadow].mean() < street.image[shadow].mean()
    assert scene.depth[shown].max() == pytest.approx(scene.camera.depth_of(thing.x, thing.z), rel=1e-3)
    again = render(4, **SMALL, added=[place_object(street, "lion", generator())])
    np.testing.assert_array_equal(again.image, scene.image)


def test_objects_stand_on_road_or_sidewalk_at_the_size_their_distance_gives():
    heights, feet = [], []
    for index in range(12):
        street = render(index, **SMALL)
        thing = place_object(street, "zebra", generator(index))
        column, row = street.camera.foot(thing.x, thing.z)
        assert street.label_ids[round(row), round(column)] in GROUND
        high = thing.height * street.camera.focal / street.camera.depth_of(thing.x, thing.z)
        assert 12 <= high < 55.5
        shown = render(index, **SMALL, added=[thing]).label_ids == DYNAMIC
        rows = np.flatnonzero(shown.any(1))
        assert rows[-1] - rows[0] + 1 == pytest.approx(high, abs=0.25 * high + 1)
        heights.append(high)
        feet.append(row)
    assert np.std(heights) > 4 and np.std(feet) > 4


def test_what_is_nearer_hides_an_object():
    camera = render(2, **SMALL).camera
    near, far = (StreetObject("box", *camera.on_ground(128, depth), height=1.0) for depth in (8.0, 9.0))
    alone, both = (render(2, **SMALL, added=things) for things in ([near], [near, far]))
    shown = alone.label_ids == DYNAMIC
    assert shown.any() and (both.label_ids[shown] == DYNAMIC).all()
    np.testing.assert_array_equal(both.depth[shown], alone.depth[shown])
    assert ((both.label_ids == DYNAMIC) & ~shown).any()  # what is higher up of the far one


def test_objects_are_in_the_weather_too():
    street = render(4, **SMALL)
    thing = place_object(street, "panda", generator())
    images = {domain: render(4, domain, **SMALL, added=[thing]) for domain in ("clear", "night")}
    shown = images["clear"].label_ids == DYNAMIC
    assert images["night"].image[shown].mean() < 0.6 * images["clear"].image[shown].mean()


def test_an_unknown_object_is_refused():
    with pytest.raises(KeyError):
        sprite("table")


def test_a_square_lies_in_the_frame_around_the_object():
    mask = np.zeros((64, 128), bool)
    mask[50:64, 120:128] = True
    assert square_around(mask, generator()) == [50, 114, 14]
    mask[:] = True
    assert square_around(mask, generator()) == [0, 32, 64]
    top, left, side = square_around(np.zeros((64, 128), bool), generator())
    assert 0 <= top <= 64 - side and 0 <= left <= 128 - side and side >= 6


def test_every_fifth_training_image_is_empty_and_names_come_in_turn():
    jobs = list(plan_training(40))
    assert [job.index for job in jobs if job.is_empty] == list(range(4, 40, 5))
    assert len({job.seed for job in jobs}) == 40


def render_objects(out, *flags):
    command = ["mini/render.py", "--out", out, "--num_train", 0, "--num_val", 3, "--domains", "objects"]
    command += ["--height", 64, "--width", 128, "--workers", 1, "--training_objects", 10, *flags]
    return run_script(*command)


@pytest.mark.slow
def test_the_sets_are_written_whole_and_again_the_same(tmp_path):
    done = render_objects(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Rendered 13 images, kept 0")
    images = sorted((tmp_path / TRACK / "images").iterdir())
    assert [path.name for path in images] == [f"validation000{i}.png" for i in range(3)]
    for path in images:
        mask = read_mask(tmp_path / TRACK / "labels_masks" / f"{path.stem}_labels_semantic.png")
        assert read_image(path).shape == (64, 128, 3) and set(np.unique(mask)) == {0, 1}
    lines = read_jsonl(tmp_path / LIST)
    assert [line["object"] for line in lines][:5] == ["chair", "sofa", "mirror", "lamp", ""]
    for line in lines:
        image, clean, mask = (read(tmp_path / line[key]) for read, key in
                              ((read_image, "image"), (read_image, "clean"), (read_mask, "mask")))  # fmt: skip
        top, left, side = line["box"]
        assert set(np.unique(mask)) <= {0, 255} and mask.any() == bool(line["object"])
        assert mask.sum() == mask[top : top + side, left : left + side].sum()
        assert (image != clean).any() == bool(line["object"])
        assert line["text"] == (f"a photo of a{'n' * (line['object'][:1] in tuple('aeiou'))} {line['object']}"
                                if line["object"] else "a photo of a street")  # fmt: skip
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in (images[0], tmp_path / lines[0]["clean"], tmp_path / LIST):
        path.unlink()
    done = render_objects(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "Rendered 0 images, kept 5" in render_objects(tmp_path, "--training_objects", 2).stdout
    assert len(read_jsonl(tmp_path / LIST)) == 10
    assert json.loads((tmp_path / "derived.json").read_text())["height"] == 64


def test_the_test_set_can_have_some_objects_only(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from genval.runtime.errors import GenValError
    from mini.world import object_sets
    from mini.world.dataset import Target
    from mini.world.settings import RenderSettings

    chosen = []
    monkeypatch.setattr(
        object_sets, "_with_objects", lambda job, target, names, rng: (chosen.append(set(names)), None)[1:] * 2
    )
    monkeypatch.setattr(object_sets, "_write", lambda *parts: [])
    with ThreadPoolExecutor(1) as writer:
        for job in object_sets.plan_test(8, ("lion", "zebra")):
            with pytest.raises(AttributeError):  # there is no render
                object_sets._render_test(job, Target(Path(), 128, 256, False), writer)
    assert len(chosen) == 8 and set.union(*chosen) == {"lion", "zebra"}
    with pytest.raises(GenValError, match=r"--objects: unicorn has no sprite"):
        RenderSettings(objects=("lion", "unicorn"))
