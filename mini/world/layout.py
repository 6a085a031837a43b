"""What stands where: a street and its things in world metres, sampled with one random generator.

The layout does not depend on the weather or the image size. The car drives along +Z with X = 0 the middle of its
lane. India is another country: traffic keeps left, and other things stand along the street.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

T = TypeVar("T")
END = 115.0  # metres, where rows of buildings stop
PARKING = 2.2  # metres, width of a parking strip
STYLES = ("city", "residential", "avenue", "suburb", "works")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly."""
    return options[int(rng.random() * len(options))]


def span(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * rng.random()


@dataclass(frozen=True)
class Thing:
    """Something on the ground at (x, z), metres; heading 0 looks along +Z, pi / 2 along +X; seed varies its look."""

    kind: str
    x: float
    z: float
    heading: float = 0.0
    size: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Segment:
    """A stretch z0..z1 of one side (-1 left, 1 right) of the street: a building, wall, fence, hedge or nothing."""

    kind: str
    side: int
    x: float
    z0: float
    z1: float
    floors: int
    seed: int


@dataclass
class Layout:
    """A street. Kerbs at X = left, right; beyond them a verge, a sidewalk and gardens of the given widths, metres."""

    style: str
    india: bool
    left: float
    right: float
    lane: float
    lanes: list[tuple[float, int]]
    parking: tuple[bool, bool]
    verge: float
    walk: float
    garden: float
    crossing: tuple[float, float] | None
    zebras: list[float]
    tram: float | None
    seed: int
    eye: float
    camera_x: float
    yaw: float
    horizon: float
    focal: float
    sun_azimuth: float
    segments: list[Segment] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)

    def facade(self, side: int) -> float:
        """X of the building line of a side."""
        return (self.right if side > 0 else self.left) + side * (self.verge + self.walk + self.garden)


def sample(rng: np.random.Generator, india: bool) -> Layout:
    """Sample a street."""
    style = pick(rng, ("city", "works", "suburb", "residential", "city")) if india else pick(rng, STYLES)
    lane = span(rng, 3.0, 3.6)
    same = 2 if rng.random() < (0.55 if style in ("avenue", "works") else 0.25) else 1
    opposite = 0 if rng.random() < 0.12 else (2 if style == "avenue" and rng.random() < 0.4 else 1)
    side = -1 if india else 1  # the kerb of our own direction
    tram = None
    lanes = (
        [(k * lane * side * -1, 1) for k in range(same)]
        if rng.random() < 0.6
        else [(k * lane * side, 1) for k in range(same)]
    )
    inner = min(x * side for x, _ in lanes) - lane / 2
    if not india and style != "works" and rng.random() < 0.4:
        tram = (inner - 1.6) * side
        inner -= 3.2
    for _ in range(opposite):
        lanes.append(((inner - lane / 2) * side, -1))
        inner -= lane
    outer = max(x * side for x, d in lanes if d > 0) + lane / 2
    parked = [rng.random() < (0.75 if style in ("city", "residential") else 0.45) for _ in range(2)]
    near, far = (outer + PARKING * parked[1]) * side, (inner - PARKING * parked[0]) * side
    left, right = min(near, far), max(near, far)
    if india:
        parked.reverse()
    start = span(rng, 22, 55)
    crossing = (start, start + span(rng, 8, 13)) if rng.random() < 0.45 else None
    zebras = [crossing[0] - 3.5] if crossing else []
    if rng.random() < 0.35:
        zebras.append(span(rng, 9, 20))
    verge = span(rng, 1.2, 3) if style in ("avenue", "suburb") or rng.random() < 0.15 else 0.0
    walk = span(rng, 2.2, 4.6)
    garden = {
        "city": 0.0,
        "residential": span(rng, 3, 6),
        "avenue": pick(rng, (0.0, 2.0)),
        "suburb": span(rng, 3, 8),
        "works": span(rng, 0, 4),
    }[style]
    if india:
        verge, garden = span(rng, 1.2, 3.5), pick(rng, (0.0, 0.0, 2.0))
        walk = span(rng, 1.4, 2.2)
    layout = Layout(
        style, india, left, right, lane, lanes, (parked[0], parked[1]), verge, walk, garden, crossing, zebras, tram,
        int(rng.integers(1 << 31)), eye=span(rng, 1.25, 1.8), camera_x=span(rng, -0.4, 0.4), yaw=span(rng, -0.1, 0.1),
        horizon=span(rng, 0.42, 0.53), focal=span(rng, 0.72, 1.0), sun_azimuth=span(rng, -np.pi, np.pi),
    )  # fmt: skip
    for s in (-1, 1):
        _line_side(rng, layout, s)
        _plant_side(rng, layout, s)
    _fill_lanes(rng, layout)
    _fill_sidewalks(rng, layout)
    return layout


def _seed(rng: np.random.Generator) -> int:
    return int(rng.random() * (1 << 31))


def _line_side(rng: np.random.Generator, layout: Layout, side: int) -> None:
    """Buildings, walls, fences and hedges along one side, with a gap for the side street."""
    shares = {
        "city": (0.84, 0.06, 0.05, 0.05),
        "residential": (0.62, 0.14, 0.14, 0.1),
        "avenue": (0.62, 0.12, 0.12, 0.14),
        "suburb": (0.34, 0.22, 0.26, 0.18),
        "works": (0.42, 0.28, 0.24, 0.06),
    }[layout.style]
    edges = np.cumsum(shares)
    tall = {"city": (3, 7), "residential": (1, 3), "avenue": (3, 6), "suburb": (1, 3), "works": (2, 4)}[layout.style]
    x = layout.facade(side)
    front = x - side * layout.garden
    base = span(rng, *tall)
    z = span(rng, -36, -26)  # rows behind the camera still cast shadows
    while z < END:
        sample = rng.random()
        kind = ("building", "wall", "fence", "hedge")[int(np.searchsorted(edges, sample))]
        length = span(rng, 8, 20)
        end = z + length
        if layout.crossing and z < layout.crossing[1] + 2.5 and end > layout.crossing[0] - 2.5:
            if z < layout.crossing[0] - 8:
                end = layout.crossing[0] - 2.5
            else:
                z = layout.crossing[1] + 2.5
                continue
        floors = int(np.clip(round(base + rng.standard_normal()), tall[0], tall[1]))
        layout.segments.append(Segment(kind, side, x if kind == "building" else front, z, end, floors, _seed(rng)))
        if kind == "building" and layout.garden > 1.5 and rng.random() < 0.6:
            border = pick(rng, ("fence", "hedge", "fence", "wall"))
            layout.segments.append(Segment("low " + border, side, front, z, end, 0, _seed(rng)))
        if kind in ("wall", "fence", "hedge"):
            back = span(rng, 5, 12)
            for _ in range(int(1 + length / 6)):
                kind_behind = pick(rng, ("tree", "tree", "tree", "conifer", "bush"))
                layout.things.append(
                    Thing(
                        kind_behind,
                        front + side * span(rng, 2, back),
                        span(rng, z, end),
                        size=span(rng, 0.7, 1.3),
                        seed=_seed(rng),
                    )
                )
        z = end
        if layout.style in ("residential", "suburb", "works"):
            z += span(rng, 0, 5)


def _plant_side(rng: np.random.Generator, layout: Layout, side: int) -> None:
    """Place trees, garden plants, lamps, signs, signals, bollards and pylons along one side."""
    kerb = layout.right if side > 0 else layout.left
    _plant_street_trees(rng, layout, side, kerb)
    if layout.garden > 1.5:
        _plant_garden(rng, layout, side)
    if rng.random() < 0.8:
        seed, gap = _seed(rng), span(rng, 18, 30)
        for z in np.arange(span(rng, 8, 20), 90, gap):
            layout.things.append(Thing("lamp", kerb + side * 0.45, z, heading=-side, seed=seed))
    _place_signs(rng, layout, side, kerb)
    if rng.random() < 0.2:
        start = span(rng, 6, 15)
        for k in range(int(span(rng, 3, 8))):
            layout.things.append(Thing("bollard", kerb + side * 0.35, start + 1.8 * k))
    if layout.india and rng.random() < 0.8:
        for z in np.arange(span(rng, 8, 20), 80, 24.0):
            layout.things.append(Thing("pylon", kerb + side * (layout.verge + 0.5), z, seed=layout.seed))


def _plant_street_trees(rng: np.random.Generator, layout: Layout, side: int, kerb: float) -> None:
    """Plant a row of similar trees at the kerb, with a gap at the crossing."""
    chance = {"city": 0.4, "residential": 0.6, "avenue": 1.0, "suburb": 0.8, "works": 0.35}[layout.style]
    step = span(rng, 7, 13)
    gap_start, gap_end = layout.crossing or (np.inf, -np.inf)
    if rng.random() >= chance:
        return
    if layout.india and rng.random() < 0.4:
        kind = "palm"
    else:
        kind = pick(rng, ("tree", "tree", "tree", "conifer" if layout.style == "suburb" else "tree"))
    seed, size = _seed(rng), span(rng, 0.75, 1.15)
    for z in np.arange(span(rng, 7, 15), 80, step):
        if not gap_start - 2 < z < gap_end + 2 and rng.random() < 0.85:
            x = kerb + side * span(rng, 0.8, 1.2)
            tree = Thing(kind, x, z + span(rng, -1, 1), size=size * span(rng, 0.85, 1.15), seed=seed + int(z))
            layout.things.append(tree)


def _plant_garden(rng: np.random.Generator, layout: Layout, side: int) -> None:
    """Plant bushes and small trees between the sidewalk and the building line."""
    for _ in range(int(span(rng, 2, 7))):
        x = layout.facade(side) - side * span(rng, 0.6, layout.garden - 0.5)
        kind = pick(rng, ("bush", "bush", "tree", "conifer"))
        layout.things.append(Thing(kind, x, span(rng, 6, 60), size=span(rng, 0.5, 0.8), seed=_seed(rng)))


def _place_signs(rng: np.random.Generator, layout: Layout, side: int, kerb: float) -> None:
    """Place traffic signs, a board and traffic lights."""
    for _ in range(int(span(rng, 0.6, 3.4))):
        x = kerb + side * span(rng, 0.4, 0.8)
        layout.things.append(Thing("sign", x, span(rng, 8, 34), size=span(rng, 0.9, 1.4), seed=_seed(rng)))
    if rng.random() < 0.12:
        layout.things.append(Thing("board", kerb + side * 0.7, span(rng, 14, 32), heading=-side, seed=_seed(rng)))
    if layout.crossing or rng.random() < 0.3:
        x = kerb + side * 0.5
        z = layout.crossing[0] - span(rng, 1, 2) if layout.crossing else span(rng, 13, 28)
        layout.things.append(Thing("signal", x, z, heading=-side, seed=layout.seed))
        if layout.crossing and rng.random() < 0.7:
            layout.things.append(Thing("signal", x, layout.crossing[1] + 1, heading=-side, seed=layout.seed))


def _vehicle(rng: np.random.Generator, india: bool) -> str:
    """A kind of road vehicle at its everyday frequency."""
    sample = rng.random()
    if india:
        kinds, edges = ("rickshaw", "rider motorcycle", "car", "truck", "bus"), (0.28, 0.56, 0.87, 0.95, 1.0)
    else:
        kinds, edges = ("car", "truck", "bus", "rider motorcycle", "rider bicycle"), (0.86, 0.9, 0.93, 0.97, 1.0)
    return kinds[int(np.searchsorted(edges, sample))]


LENGTHS = {
    "car": 4.6,
    "truck": 8.5,
    "bus": 12.0,
    "rickshaw": 2.8,
    "tram": 24.0,
    "rider motorcycle": 2.2,
    "rider bicycle": 1.9,
}


RARE_VEHICLES = (("truck", 0.3), ("bus", 0.28), ("rider motorcycle", 0.26), ("rider bicycle", 0.14))


def _fill_lanes(rng: np.random.Generator, layout: Layout) -> None:
    """Place moving traffic, parked vehicles, cyclists, a tram and crossing traffic."""
    # Each rare kind is planned with its own probability and placed at the first chance.
    planned = [kind for kind, probability in RARE_VEHICLES if rng.random() < probability]
    density = span(rng, 8, 34)
    for x, direction in layout.lanes:
        _fill_lane(rng, layout, x, direction, planned, density)
    for side, parking in zip((-1, 1), layout.parking, strict=True):
        kerb = layout.right if side > 0 else layout.left
        heading = _kerb_heading(layout, side)
        if parking:
            _fill_parking(rng, layout, side, kerb, heading, planned)
        for kind, share in (("rider bicycle", 0.38), ("rider motorcycle", 0.14)):
            if rng.random() < share:
                offset = 0.6 + (PARKING if parking else 0)
                layout.things.append(Thing(kind, kerb - side * offset, span(rng, 7, 26), heading, seed=_seed(rng)))
    if layout.tram is not None and rng.random() < 0.85:
        away = rng.random() < 0.5
        layout.things.append(Thing("tram", layout.tram, span(rng, 8, 30) + 12, 0.0 if away else np.pi, seed=_seed(rng)))
    if layout.crossing and rng.random() < 0.6:
        _cross_traffic(rng, layout, *layout.crossing)


def _fill_lane(
    rng: np.random.Generator, layout: Layout, x: float, direction: int, planned: list[str], density: float
) -> None:
    """Place the traffic of one lane, near to far; what is placed of `planned` is removed from it."""
    own = x == 0
    z = span(rng, 10, 26) if own else span(rng, 7, 20)
    queue = rng.random() < 0.2
    while z < 85:
        kind = planned.pop(int(rng.random() * len(planned))) if planned and not own else _vehicle(rng, layout.india)
        if own and planned and rng.random() < 0.5:
            kind = planned.pop()
        length = LENGTHS[kind]
        if own and kind in ("bus", "truck"):
            z += 5
        heading = 0.0 if direction > 0 else np.pi
        layout.things.append(Thing(kind, x + span(rng, -0.3, 0.3), z + length / 2, heading, seed=_seed(rng)))
        z += length + (span(rng, 2, 5) if queue else span(rng, 5, 10) + rng.exponential(density))


def _kerb_heading(layout: Layout, side: int) -> float:
    """The direction of traffic at the kerb of a side, radians."""
    heading = 0.0 if side > 0 else np.pi
    return np.pi - heading if layout.india else heading


def _fill_parking(
    rng: np.random.Generator, layout: Layout, side: int, kerb: float, heading: float, planned: list[str]
) -> None:
    """Place parked vehicles along one kerb, none on a zebra or in the crossing."""
    z, gap = span(rng, 2, 12), span(rng, 0.5, 5)
    while z < 75:
        kind = _parked_vehicle(rng, layout.india, planned)
        length = LENGTHS.get(kind, 1.2)
        middle = z + length / 2
        # `zebra - z - length / 2`, not `zebra - middle`: the same to the last bit as in rendered data sets.
        on_zebra = any(abs(zebra - z - length / 2) < 2 + length / 2 for zebra in layout.zebras)
        if not on_zebra and not _in_crossing(layout, z, length):
            turn = np.pi / 2 if kind == "motorcycle" else heading + span(rng, -0.04, 0.04)
            x = kerb - side * (1.15 if length > 2 else 0.9)
            layout.things.append(Thing(kind, x, middle, turn, seed=_seed(rng)))
        z += length + span(rng, 0.7, 1.4) + (rng.exponential(gap) if rng.random() < 0.4 else 0)


def _parked_vehicle(rng: np.random.Generator, india: bool, planned: list[str]) -> str:
    """A kind of parked vehicle: mostly cars; riders and buses of `planned` become cars."""
    kind = planned.pop() if planned and rng.random() < 0.5 else "car" if rng.random() < 0.97 else "truck"
    if kind.startswith("rider") or kind == "bus":
        kind = "car"
    if india and rng.random() < 0.45:
        kind = pick(rng, ("rickshaw", "motorcycle"))
    return kind


def _cross_traffic(rng: np.random.Generator, layout: Layout, z0: float, z1: float) -> None:
    """Place a vehicle that drives through the crossing z0..z1 in place of the traffic there."""
    kind = pick(rng, ("car", "car", "car", "truck", "bus" if rng.random() < 0.5 else "car", "rider bicycle"))
    east = rng.random() < 0.5
    z = z0 + (z1 - z0) * (0.3 if east else 0.7)
    layout.things = [t for t in layout.things if not (t.kind in LENGTHS and z0 - 4 < t.z < z1 + 4)]
    x = span(rng, layout.left, layout.right)
    layout.things.append(Thing(kind, x, z, np.pi / 2 if east else -np.pi / 2, seed=_seed(rng)))


def _in_crossing(layout: Layout, z: float, length: float) -> bool:
    return layout.crossing is not None and z < layout.crossing[1] + 1 and z + length > layout.crossing[0] - 1


def _fill_sidewalks(rng: np.random.Generator, layout: Layout) -> None:
    """People, parked cycles and street furniture behind the kerbs."""
    busy = span(rng, 0, 5)
    for side in (-1, 1):
        kerb = layout.right if side > 0 else layout.left
        inner, outer = layout.verge + 0.5, layout.verge + layout.walk - 0.3
        for _ in range(int(rng.poisson(busy))):
            z, x = span(rng, 7, 42), span(rng, inner, outer)
            heading = pick(rng, (0.0, np.pi)) + span(rng, -0.4, 0.4)
            for k in range(2 if rng.random() < 0.3 else 1):
                layout.things.append(
                    Thing(
                        "person", kerb + side * (x + 0.65 * k), z + 0.2 * k, heading, span(rng, 0.92, 1.08), _seed(rng)
                    )
                )
        if rng.random() < 0.46:
            z = span(rng, 6, 15)
            slanted = rng.random() < 0.5
            for k in range(int(span(rng, 1, 6))):
                heading = np.pi / 2 + span(rng, -0.2, 0.2) if slanted else span(rng, -0.15, 0.15)
                step = 0.8 if slanted else 2.0
                layout.things.append(
                    Thing("bicycle", kerb + side * (layout.verge + 0.6), z + step * k, heading, seed=_seed(rng))
                )
        if rng.random() < (0.5 if layout.india else 0.28):
            z = span(rng, 6.5, 15)
            for k in range(int(span(rng, 1, 4))):
                heading = pick(rng, (np.pi / 2, 0.0)) + span(rng, -0.3, 0.3)
                layout.things.append(
                    Thing("motorcycle", kerb + side * (layout.verge + 0.5), z + 1.8 * k, heading, seed=_seed(rng))
                )
    for zebra in layout.zebras:
        if rng.random() < 0.5:
            for _ in range(int(span(rng, 1, 4))):
                heading = pick(rng, (1, -1)) * np.pi / 2
                layout.things.append(
                    Thing(
                        "person",
                        span(rng, layout.left, layout.right),
                        zebra + span(rng, 0, 1.5),
                        heading,
                        span(rng, 0.92, 1.08),
                        _seed(rng),
                    )
                )
