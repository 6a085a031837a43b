"""Rendering of one labelled scene."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import captions
from .buildings import paint_segment
from .camera import Camera
from .canvas import Canvas
from .figures import paint_figure
from .furniture import paint_furniture
from .ground import paint_ground, paint_shadows
from .layout import Layout, Thing, sample
from .objects import StreetObject, paint_object
from .plants import paint_plant
from .sky import paint_backdrop, paint_sky
from .vehicles import LABELS, paint_vehicle
from .weather import develop, sample_light

DOMAINS = ("clear", "fog", "night", "rain", "snow", "india")
PLANTS = ("tree", "conifer", "palm", "bush")
FURNITURE = ("lamp", "signal", "sign", "board", "bollard", "pylon")


@dataclass(frozen=True)
class Render:
    """A labelled image.

    image: (H, W, 3) uint8 RGB. label_ids: (H, W) uint8 Cityscapes label ids. depth: (H, W) float32 metres, the sky is
    1e4. caption: the content in words, without the weather. objects: names of the classes present. camera: what saw it.
    """

    image: np.ndarray
    label_ids: np.ndarray
    depth: np.ndarray
    caption: str
    objects: tuple[str, ...]
    camera: Camera


def render(
    index: int,
    domain: str = "clear",
    height: int = 256,
    width: int = 512,
    split_seed: int = 0,
    added: Sequence[StreetObject] = (),
    visibility: float | None = None,
) -> Render:
    """Render scene `index` of the stream `split_seed`; the same arguments give the same bytes.

    The layout depends on (index, split_seed) alone, so that one index shows the same street in each weather. India has
    streets of its own. `added` objects are placed on the street, with the label id 5, dynamic. `visibility` is the
    meteorological range in metres, instead of one that is drawn.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain {domain!r} is none of {', '.join(DOMAINS)}")
    if width != 2 * height or height < 32:
        raise ValueError(f"expected an image twice as wide as high and at least 32 high, found {height} x {width}")
    india = domain == "india"
    layout = sample(_generator(split_seed, index, 1 if india else 0), india)
    weather_rng = _generator(split_seed, index, 100 + DOMAINS.index(domain))
    paint_rng = _generator(split_seed, index, 50)
    light = sample_light(domain, layout.sun_azimuth, weather_rng)
    if visibility is not None:
        light = dataclasses.replace(light, visibility=visibility)
    camera = Camera(
        height=height,
        width=width,
        focal=layout.focal * width,
        u0=(width - 1) / 2,
        v0=layout.horizon * height,
        x=layout.camera_x,
        eye=layout.eye,
        yaw=layout.yaw,
    )
    canvas = Canvas(camera, light.sun, lights_on=domain == "night", snowy=domain == "snow")
    full = light.full()
    paint_sky(canvas, light.zenith / full, light.horizon / full, light.clouds, layout.seed)
    paint_backdrop(canvas, layout, _generator(split_seed, index, 51))
    paint_ground(canvas, layout, paint_rng)
    paint_shadows(canvas, layout, added)
    instances = _paint_things(canvas, layout, added)
    image, labels, depth = develop(canvas, layout, light, domain, weather_rng)
    zebra = not india and any(zebra < 30 for zebra in layout.zebras)
    by_label, by_instance = canvas.visible()
    text = captions.caption(layout, by_label, by_instance, instances, zebra)
    return Render(image, labels, depth, text, captions.class_names(by_label), camera)


def _generator(split_seed: int, index: int, stage: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([split_seed, index, stage])))


def _paint_things(canvas: Canvas, layout: Layout, added: Sequence[StreetObject]) -> list[tuple[str, int]]:
    """Paint everything that stands up, far to near; returns (kind, instance number) of what can be counted.

    The street is a convex corridor with the camera in it: nothing behind the building line hides what stands in
    front of it, so the layers can be painted one after the other.
    """
    mirrored = np.sin(layout.sun_azimuth) > 0  # sprites are lit from the left
    season = 0.7 if layout.seed % 7 == 0 else 0.04
    behind, street = _split(layout)
    tall = [s for s in layout.segments if s.kind == "building"]
    barriers = [s for s in layout.segments if s.kind != "building"]
    for segment in sorted(tall, key=lambda s: -s.z0):
        paint_segment(canvas, segment, layout.india)
    for thing in sorted(behind, key=lambda t: -t.z):
        paint_plant(canvas, thing, season, mirrored)
    for segment in sorted(barriers, key=lambda s: -s.z0):
        paint_segment(canvas, segment, layout.india)
    instances: list[tuple[str, int]] = []
    number = 1
    for thing in sorted([*street, *added], key=lambda t: -(t.z**2 + t.x**2)):
        if isinstance(thing, StreetObject):
            paint_object(canvas, thing)
        elif thing.kind in PLANTS:
            paint_plant(canvas, thing, season, mirrored)
        elif thing.kind in FURNITURE:
            paint_furniture(canvas, thing)
        elif thing.kind in LABELS:
            paint_vehicle(canvas, thing, number, layout.india)
            instances.append((thing.kind, number))
            number += 1
        else:
            paint_figure(canvas, thing, number)
            instances.append((thing.kind, number))
            number += 2
    return instances


def _split(layout: Layout) -> tuple[list[Thing], list[Thing]]:
    """Plants behind the sidewalk, and everything else."""
    reach = layout.verge + layout.walk
    behind = [t for t in layout.things if t.kind in PLANTS and max(layout.left - t.x, t.x - layout.right) > reach]
    hidden = set(map(id, behind))
    return behind, [t for t in layout.things if id(t) not in hidden]
