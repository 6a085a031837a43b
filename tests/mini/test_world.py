"""The mini world: same bytes for the same arguments, true labels, and weather that does what weather does."""

import functools
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from mini.world import DOMAIN_PHRASES, DOMAINS, render
from mini.world.captions import CLASS_NAMES

WEATHERS = ("clear", "fog", "night", "rain", "snow")


@functools.cache
def scene_of(index: int, domain: str = "clear"):
    """A small scene that several tests look at."""
    return render(index, domain, 128, 256)


def digest(index: int, domain: str) -> str:
    scene = render(index, domain, 128, 256)
    payload = b"".join(array.tobytes() for array in (scene.image, scene.label_ids, scene.depth))
    return hashlib.sha256(payload + scene.caption.encode()).hexdigest()


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_arguments_give_the_same_bytes(domain):
    assert digest(3, domain) == digest(3, domain)


def test_same_bytes_in_another_process_and_order():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_world import digest; "
        "print([digest(i, d) for i, d in ((5, 'night'), (4, 'clear'))])"
    )
    folder = __file__.rpartition("/")[0]
    answer = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == str([digest(5, "night"), digest(4, "clear")])


def test_streams_and_indices_differ():
    images = [scene_of(0), scene_of(1), render(0, "clear", 128, 256, split_seed=1)]
    assert len({scene.image.tobytes() for scene in images}) == 3


@pytest.mark.parametrize("height", [128, 256, 512])
@pytest.mark.parametrize("domain", DOMAINS)
def test_sizes_and_types(domain, height):
    scene = render(1, domain, height, 2 * height)
    assert scene.image.shape == (height, 2 * height, 3) and scene.image.dtype == np.uint8
    assert scene.label_ids.shape == (height, 2 * height) and scene.label_ids.dtype == np.uint8
    assert scene.depth.shape == (height, 2 * height) and scene.depth.dtype == np.float32
    assert np.isfinite(scene.depth).all() and scene.depth.min() > 0
    assert (scene.depth[scene.label_ids == 23] == 1e4).all()


def test_layout_does_not_depend_on_the_size():
    small, large = render(6, height=128, width=256).label_ids, render(6, height=256, width=512).label_ids
    assert (small == large[::2, ::2]).mean() > 0.9


@pytest.mark.parametrize("kwargs", [{"domain": "hail"}, {"height": 128}, {"height": 16, "width": 32}])
def test_bad_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match=r"hail|twice"):
        render(0, **kwargs)


def test_every_class_appears_and_no_other_label():
    scenes = [scene_of(i) for i in range(60)]
    seen = {name for scene in scenes for name in scene.objects}
    assert seen == set(CLASS_NAMES.values())
    assert {int(i) for scene in scenes for i in np.unique(scene.label_ids)} <= set(CLASS_NAMES)


def test_india_has_no_train():
    assert not any((scene_of(i, "india").label_ids == 31).any() for i in range(30))


@pytest.mark.parametrize("index", [0, 7, 19])
def test_weather_changes_the_light_not_the_street(index):
    scenes = [scene_of(index, domain) for domain in WEATHERS]
    for scene in scenes[1:]:
        np.testing.assert_array_equal(scene.label_ids, scenes[0].label_ids)
        np.testing.assert_array_equal(scene.depth, scenes[0].depth)
        assert scene.caption == scenes[0].caption
        assert not np.array_equal(scene.image, scenes[0].image)


def test_fog_takes_contrast_away_with_distance():
    ratios = []
    for index in range(12):
        clear, fog = scene_of(index), scene_of(index, "fog")
        grey = [scene.image.mean(2) for scene in (clear, fog)]
        near, far = clear.depth < 12, (clear.depth > 80) & (clear.depth < 300)
        ratios.append([grey[1][zone].std() / grey[0][zone].std() for zone in (near, far)])
    near, far = np.mean(ratios, 0)
    assert far < 0.5 * near


def test_night_is_darker_than_day():
    for index in range(6):
        assert scene_of(index, "night").image.mean() < 0.6 * scene_of(index).image.mean()


def test_snow_whitens_what_lies_open():
    gain = []
    for index in range(8):
        clear, snow = scene_of(index), scene_of(index, "snow")
        open_ground = np.isin(clear.label_ids, (8, 22))
        gain.append(snow.image[open_ground].mean() - clear.image[open_ground].mean())
    assert np.mean(gain) > 40


def test_captions_speak_of_what_is_there_and_not_of_weather():
    vocabulary: set[str] = set()
    for index in range(40):
        for domain in ("clear", "india"):
            scene = scene_of(index, domain)
            words = scene.caption.replace(",", "").split()
            vocabulary |= set(words)
            for noun, label in (("tram", 31), ("bus", 28), ("truck", 27), ("people", 24), ("fence", 13)):
                if noun in words and "tracks" not in words:
                    assert (scene.label_ids == label).any(), (index, domain, scene.caption)
    assert len(vocabulary) < 200
    assert not vocabulary & {"fog", "foggy", "night", "rain", "rainy", "snow", "snowy", "india", "weather", "sunny"}


def test_domain_phrases():
    assert set(DOMAIN_PHRASES) == set(DOMAINS)
    for domain in DOMAINS[1:]:
        assert DOMAIN_PHRASES[domain][0] == f"in {domain}"
    assert DOMAIN_PHRASES["clear"][0] == "on a clear day"
