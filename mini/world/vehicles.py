"""Vehicles as extruded profiles: a few flat faces with windows, lights and wheels drawn on them.

Local axes: X to the right of the heading, Y up, Z along the heading, metres; the origin is on the ground.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from .camera import NEAR
from .canvas import Canvas, inverse_depth_plane
from .layout import Thing, pick

CAR, TRUCK, BUS, TRAM = 26, 27, 28, 31
LABELS = {"car": CAR, "rickshaw": CAR, "truck": TRUCK, "bus": BUS, "tram": TRAM}
PAINT = ((238, 238, 240), (176, 180, 184), (96, 100, 106), (30, 31, 35), (34, 54, 110), (158, 24, 28), (40, 84, 60),
         (206, 196, 170), (228, 184, 30), (70, 120, 170), (120, 30, 44), (208, 208, 212), (54, 58, 64))  # fmt: skip
BUS_PAINT = ((206, 32, 36), (240, 196, 40), (236, 236, 236), (40, 110, 170), (48, 132, 84), (224, 120, 36))
TRAM_PAINT = (((232, 222, 190), (176, 30, 38)), ((240, 200, 40), (60, 60, 64)), ((238, 240, 240), (30, 130, 90)),
              ((60, 100, 160), (236, 236, 230)), ((226, 228, 230), (200, 40, 50)))  # fmt: skip
BOX_PAINT = (
    (236, 236, 232),
    (232, 232, 236),
    (196, 200, 204),
    (60, 90, 150),
    (200, 96, 40),
    (70, 120, 80),
    (170, 40, 40),
    (210, 190, 120),
)
CAB_PAINT = ((216, 40, 36), (240, 240, 240), (50, 80, 150), (236, 170, 40), (60, 110, 80), (110, 114, 120))
FAR_DETAILS = ("glass", "window", "tail", "head", "dark", "tyre")
RED, WHITE, AMBER = (255, 40, 26), (255, 246, 220), (255, 170, 50)


@dataclass
class Face:
    """A planar polygon of the mesh; details lie on their parent face and are drawn after it."""

    start: int
    stop: int
    material: str
    parent: int
    convex: bool = True


@dataclass
class Mesh:
    """Vertices (N, 3) and faces; `normals` and `centres` (F, 3) belong to the faces."""

    points: list = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)
    vertices: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    normals: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    centres: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    parents: list[int] = field(default_factory=list)
    details: dict[int, list[int]] = field(default_factory=dict)

    def add(self, points: list, material: str, parent: int = -1, convex: bool = True) -> int:
        """Append a face; returns its index."""
        self.faces.append(Face(len(self.points), len(self.points) + len(points), material, parent, convex))
        self.points.extend(points)
        return len(self.faces) - 1

    def patch(self, parent: int, s0: float, s1: float, t0: float, t1: float, material: str) -> None:
        """A rectangle on a four-cornered parent in its own coordinates: s along its first edge, t across, 0..1."""
        face = self.faces[parent]
        a, b, c, d = (np.array(p, float) for p in self.points[face.start : face.stop])
        corners = [
            (1 - s) * (1 - t) * a + s * (1 - t) * b + s * t * c + (1 - s) * t * d
            for s, t in ((s0, t0), (s1, t0), (s1, t1), (s0, t1))
        ]
        self.add([tuple(p) for p in corners], material, parent)

    def wheel(self, parent: int, x: float, z: float, radius: float) -> None:
        """A wheel in the side face."""
        angle = np.arange(12) * np.pi / 6
        for scale, material in ((1.0, "tyre"), (0.55, "hub")):
            self.add(
                [
                    (x, radius + scale * radius * s, z + scale * radius * c)
                    for s, c in zip(np.sin(angle), np.cos(angle), strict=True)
                ],
                material,
                parent,
            )

    def finish(self, middle: float) -> Mesh:
        """Compute normals, pointing away from the axis at the height `middle`."""
        self.vertices = np.array(self.points, float)
        normals, centres = [], []
        for face in self.faces:
            p = self.vertices[face.start : face.stop]
            normal = np.cross(p, np.roll(p, -1, 0)).sum(0)
            normal /= np.linalg.norm(normal) + 1e-9
            centre = p.mean(0)
            outward = centre - (0, middle, centre[2] * 0.6)
            normals.append(normal if normal @ outward > 0 else -normal)
            centres.append(centre)
        self.normals, self.centres = np.array(normals), np.array(centres)
        for i, face in enumerate(self.faces):
            if face.parent < 0:
                self.parents.append(i)
                self.details[i] = []
            else:
                self.details[face.parent].append(i)
        return self


def _ring(mesh: Mesh, profile: list[tuple[float, float, float]], materials: list[str]) -> list[int]:
    """Faces across the vehicle between successive profile points (z, y, half width)."""
    faces = []
    for (z0, y0, w0), (z1, y1, w1), material in zip(profile[:-1], profile[1:], materials, strict=True):
        faces.append(mesh.add([(-w0, y0, z0), (w0, y0, z0), (w1, y1, z1), (-w1, y1, z1)], material))
    return faces


@dataclass(frozen=True)
class _CarShape:
    """Proportions of a car: metres, and shares of the length for what lies along it (0 is the middle, front positive).

    The glasshouse stands on the belt line between the rear and the front belt points, and its roof is between the roof
    points.
    """

    length: float
    width: float
    belt: float
    roof: float
    boot: float
    rear_belt: float
    rear_roof: float
    front_roof: float
    front_belt: float
    bonnet: float
    is_van: bool = False

    @property
    def half_roof(self) -> float:
        """Half the width of the roof, metres."""
        return self.width / 2 * (0.9 if self.is_van else 0.8)


_SILL = 0.3  # metres, height of a car's lower edge
_CARS = {
    "sedan": _CarShape(4.6, 1.8, 0.94, 1.44, -0.47, -0.34, -0.2, 0.06, 0.2, 0.47),
    "hatch": _CarShape(4.0, 1.74, 0.94, 1.48, -0.495, -0.48, -0.38, 0.05, 0.2, 0.46),
    "wagon": _CarShape(4.7, 1.82, 0.94, 1.46, -0.495, -0.48, -0.4, 0.05, 0.2, 0.47),
    "suv": _CarShape(4.6, 1.9, 1.08, 1.72, -0.495, -0.485, -0.42, 0.08, 0.2, 0.47),
    "van": _CarShape(5.2, 1.98, 1.12, 2.1, -0.495, -0.49, -0.47, 0.2, 0.34, 0.47, is_van=True),
}


@cache
def car_mesh(shape: str) -> Mesh:
    """A passenger car: a lower body and a glasshouse."""
    car = _CARS[shape]
    half, w, k = car.length / 2, car.width / 2, car.half_roof
    mesh = Mesh()
    profile = [
        (-half, _SILL, w * 0.95), (-half, car.belt * 0.84, w * 0.98),
        (car.boot * car.length, car.belt * 0.97, w * 0.97), (car.rear_belt * car.length, car.belt, w * 0.96),
        (car.rear_roof * car.length, car.roof - 0.02, k), (car.front_roof * car.length, car.roof, k),
        (car.front_belt * car.length, car.belt, w * 0.96), (car.bonnet * car.length, car.belt * 0.8, w * 0.94),
        (half, car.belt * 0.66, w * 0.92), (half, _SILL, w * 0.9),
    ]  # fmt: skip
    ring = _ring(mesh, profile, ["body"] * 9)
    _add_car_details(mesh, ring, car)
    for side in (-1, 1):
        _add_car_side(mesh, car, side)
    return mesh.finish(0.7)


def _add_car_details(mesh: Mesh, ring: list[int], car: _CarShape) -> None:
    """Add glass, lights, number plates and seams to the faces across a car, `ring` from the rear to the front."""
    rear, lid, screen, roof_face, wind, nose, front = ring[0], ring[2], ring[3], ring[4], ring[5], ring[7], ring[8]
    mesh.patch(screen, 0.07, 0.93, 0.1, 0.92, "solid" if car.is_van else "glass")
    mesh.patch(wind, 0.06, 0.94, 0.06, 0.94, "glass")
    mesh.patch(rear, 0.0, 1.0, 0.0, 0.3, "dark")
    mesh.patch(rear, 0.02, 0.2, 0.55, 0.96, "tail")
    mesh.patch(rear, 0.8, 0.98, 0.55, 0.96, "tail")
    mesh.patch(rear, 0.36, 0.64, 0.42, 0.62, "plate")
    mesh.patch(lid, 0.1, 0.9, 0.45, 0.55, "seam")
    mesh.patch(roof_face, 0.06, 0.94, 0.05, 0.95, "roof")
    mesh.patch(nose, 0.0, 0.24, 0.0, 0.95, "head")
    mesh.patch(nose, 0.76, 1.0, 0.0, 0.95, "head")
    mesh.patch(front, 0.02, 0.24, 0.0, 0.3, "head")
    mesh.patch(front, 0.76, 0.98, 0.0, 0.3, "head")
    mesh.patch(front, 0.27, 0.73, 0.08, 0.42, "grille")
    mesh.patch(front, 0.36, 0.64, 0.5, 0.68, "plate")
    mesh.patch(front, 0.0, 1.0, 0.75, 1.0, "dark")


def _add_car_side(mesh: Mesh, car: _CarShape, side: int) -> None:
    """Add one side of a car (-1 left, 1 right): its lower body, windows, door seams, sill and wheels."""
    length, half, w, k, belt = car.length, car.length / 2, car.width / 2, car.half_roof, car.belt
    z_rear, z_front = car.rear_belt * length, car.front_belt * length
    outline = [(side * w * 0.98, y, z) for z, y in (
        (-half, _SILL), (-half, belt * 0.84), (car.boot * length, belt * 0.97), (z_rear, belt), (z_front, belt),
        (car.bonnet * length, belt * 0.8), (half, belt * 0.66), (half, _SILL))]  # fmt: skip
    house = mesh.add([(side * w * 0.96, belt, z_rear), (side * k, car.roof - 0.02, car.rear_roof * length),
                      (side * k, car.roof, car.front_roof * length), (side * w * 0.96, belt, z_front)],
                     "body")  # fmt: skip
    lower = mesh.add(outline, "body", convex=False)
    if car.is_van:
        mesh.patch(house, 0.1, 0.9, 0.72, 0.95, "glass")
    else:
        mesh.patch(house, 0.12, 0.88, 0.07, 0.5, "glass")
        mesh.patch(house, 0.12, 0.88, 0.54, 0.94, "glass")
    x = side * w
    for z in (-0.05 * length, 0.2 * length):
        seam = [(x, _SILL + 0.1, z), (x, belt * 0.95, z), (x, belt * 0.95, z + 0.03), (x, _SILL + 0.1, z + 0.03)]
        mesh.add(seam, "seam", lower)
    rear, front = -half * 0.9, half * 0.9
    mesh.add([(x, _SILL, rear), (x, _SILL + 0.08, rear), (x, _SILL + 0.08, front), (x, _SILL, front)], "dark", lower)
    for z in (-0.3 * length, 0.31 * length):
        mesh.wheel(lower, x, z, 0.33)


def _box(
    mesh: Mesh, z0: float, z1: float, low: float, high: float, half: float, material: str, slope: float = 0.0
) -> dict[str, int]:
    """A box from z0 to z1; the upper front edge is set back by `slope`."""
    faces = dict(
        zip(
            ("rear", "top", "front"),
            _ring(mesh, [(z0, low, half), (z0, high, half), (z1 - slope, high, half), (z1, low, half)], [material] * 3),
            strict=True,
        )
    )
    for name, s in (("left", -1), ("right", 1)):
        faces[name] = mesh.add(
            [(s * half, low, z0), (s * half, low, z1), (s * half, high, z1 - slope), (s * half, high, z0)], material
        )
    return faces


@cache
def bus_mesh() -> Mesh:
    """A city bus, 12 m long."""
    mesh = Mesh()
    f = _box(mesh, -6, 6, 0.35, 3.1, 1.25, "body", 0.15)
    mesh.patch(f["front"], 0.05, 0.95, 0.04, 0.16, "sign")
    mesh.patch(f["front"], 0.04, 0.96, 0.2, 0.66, "glass")
    mesh.patch(f["rear"], 0.12, 0.88, 0.55, 0.86, "glass")
    mesh.patch(f["rear"], 0.1, 0.9, 0.12, 0.42, "grille")
    for s0, s1 in ((0.03, 0.16), (0.84, 0.97)):
        mesh.patch(f["front"], s0, s1, 0.8, 0.9, "head")
        mesh.patch(f["rear"], s0, s1, 0.2, 0.46, "tail")
    for name, s in (("left", -1), ("right", 1)):
        mesh.patch(f[name], 0.02, 0.98, 0.42, 0.82, "dark")
        for k in range(8):
            mesh.patch(f[name], 0.03 + 0.118 * k, 0.137 + 0.118 * k, 0.44, 0.8, "window")
        mesh.patch(f[name], 0.02, 0.98, 0.03, 0.12, "stripe")
        for s0 in (0.42, 0.86):
            mesh.patch(f[name], s0, s0 + 0.09, 0.04, 0.8, "glass" if s > 0 else "body")
        for z in (-3.4, 3.3):
            mesh.wheel(f[name], s * 1.25, z, 0.48)
    return mesh.finish(1.6)


@cache
def tram_mesh() -> Mesh:
    """A two-part tram, 24 m long, on rails: low skirt, tall windows, sloped ends, pantograph."""
    mesh = Mesh()
    for z0, z1 in ((-11.6, -0.3), (0.3, 11.6)):
        f = _box(mesh, z0, z1, 0.18, 3.3, 1.2, "body")
        for name in ("left", "right"):
            mesh.patch(f[name], 0.0, 1.0, 0.0, 0.3, "stripe")
            mesh.patch(f[name], 0.0, 1.0, 0.92, 1.0, "stripe")
            mesh.patch(f[name], 0.01, 0.99, 0.42, 0.84, "dark")
            for k in range(6):
                mesh.patch(f[name], 0.02 + 0.162 * k, 0.165 + 0.162 * k, 0.44, 0.82, "window")
            mesh.patch(f[name], 0.44, 0.57, 0.06, 0.84, "glass")
            mesh.patch(f[name], 0.1, 0.25, 0.0, 0.1, "dark")
            mesh.patch(f[name], 0.75, 0.9, 0.0, 0.1, "dark")
        mesh.patch(f["top"], 0.2, 0.8, 0.2, 0.8, "grille")
    _box(mesh, -0.3, 0.3, 0.3, 3.2, 1.1, "dark")
    for end in (-1, 1):
        z = end * 11.6
        tip = z + end * 0.5
        nose = mesh.add([(-1.2, 0.18, tip), (1.2, 0.18, tip), (1.2, 1.3, tip), (-1.2, 1.3, tip)], "stripe")
        screen = mesh.add([(-1.2, 1.3, tip), (1.2, 1.3, tip), (1.15, 3.3, z), (-1.15, 3.3, z)], "body")
        mesh.patch(screen, 0.04, 0.96, 0.03, 0.74, "glass")
        mesh.patch(screen, 0.2, 0.8, 0.79, 0.94, "sign")
        mesh.patch(nose, 0.04, 0.18, 0.5, 0.72, "head" if end > 0 else "tail")
        mesh.patch(nose, 0.82, 0.96, 0.5, 0.72, "head" if end > 0 else "tail")
        mesh.patch(nose, 0.0, 1.0, 0.0, 0.16, "dark")
        for s in (-1, 1):
            mesh.add([(s * 1.2, 0.18, z), (s * 1.2, 3.3, z), (s * 1.2, 1.3, tip), (s * 1.2, 0.18, tip)], "stripe")
    return mesh.finish(1.6)


@cache
def truck_mesh(body: str) -> Mesh:
    """A truck 8.5 m long: a cab and a box, a tarpaulin, a tank or a tipper."""
    mesh = Mesh()
    chassis = _box(mesh, -4.2, 3.2, 0.55, 0.95, 1.1, "dark")
    for name, s in (("left", -1), ("right", 1)):
        for z in (-3.2, -2.2, 2.9):
            mesh.wheel(chassis[name], s * 1.2, z, 0.5)
    high = {"box": 3.5, "tarp": 3.3, "tank": 2.6, "tipper": 2.2}[body]
    cargo = _box(mesh, -4.2, 2.1, 0.95, high, 1.22, "cargo")
    if body == "tarp":
        for name in ("left", "right"):
            for k in range(7):
                mesh.patch(cargo[name], 0.02 + 0.14 * k, 0.03 + 0.14 * k, 0.0, 1.0, "seam")
    if body == "tipper":
        for name in ("left", "right", "rear"):
            for k in range(4):
                mesh.patch(cargo[name], 0.04 + 0.24 * k, 0.09 + 0.24 * k, 0.0, 1.0, "ridge")
    if body == "box":
        mesh.patch(cargo["rear"], 0.49, 0.51, 0.02, 0.98, "seam")
        mesh.patch(cargo["rear"], 0.06, 0.94, 0.04, 0.07, "seam")
        for name in ("left", "right"):
            mesh.patch(cargo[name], 0.2, 0.8, 0.35, 0.7, "stripe")
    mesh.patch(cargo["rear"], 0.0, 1.0, 0.0, 0.05, "dark")
    for s0, s1 in ((0.02, 0.17), (0.83, 0.98)):
        mesh.patch(chassis["rear"], s0, s1, 0.3, 0.8, "tail")
    mesh.patch(chassis["rear"], 0.38, 0.62, 0.2, 0.75, "plate")
    cab = _box(mesh, 2.3, 4.25, 0.6, 2.75, 1.15, "body", 0.2)
    mesh.patch(cab["front"], 0.06, 0.94, 0.1, 0.48, "glass")
    mesh.patch(cab["front"], 0.15, 0.85, 0.56, 0.76, "grille")
    mesh.patch(cab["front"], 0.0, 1.0, 0.86, 1.0, "dark")
    mesh.patch(cab["front"], 0.03, 0.2, 0.78, 0.9, "head")
    mesh.patch(cab["front"], 0.8, 0.97, 0.78, 0.9, "head")
    for name in ("left", "right"):
        mesh.patch(cab[name], 0.25, 0.8, 0.55, 0.9, "glass")
    return mesh.finish(1.3)


@cache
def rickshaw_mesh() -> Mesh:
    """An auto-rickshaw: a coloured tub, open sides, a canvas roof."""
    mesh = Mesh()
    w = 0.66
    ring = _ring(mesh, [(-1.3, 0.35, w), (-1.32, 1.0, w), (-1.1, 1.72, w * 0.9), (0.5, 1.74, w * 0.9),
                        (1.0, 1.0, w * 0.75), (1.25, 0.7, w * 0.5), (1.25, 0.35, w * 0.5)],
                 ["body", "roof", "roof", "roof", "body", "body"])  # fmt: skip
    mesh.patch(ring[0], 0.03, 0.2, 0.5, 0.85, "tail")
    mesh.patch(ring[0], 0.8, 0.97, 0.5, 0.85, "tail")
    mesh.patch(ring[0], 0.35, 0.65, 0.3, 0.6, "plate")
    mesh.patch(ring[1], 0.25, 0.75, 0.3, 0.75, "glass")
    mesh.patch(ring[3], 0.1, 0.9, 0.1, 0.88, "glass")
    mesh.patch(ring[4], 0.3, 0.7, 0.1, 0.8, "head")
    for s in (-1, 1):
        upper = mesh.add(
            [(s * w, 0.95, -1.3), (s * w * 0.9, 1.72, -1.1), (s * w * 0.9, 1.74, 0.5), (s * w * 0.75, 0.95, 1.0)],
            "roof",
        )
        mesh.patch(upper, 0.1, 0.8, 0.3, 0.62, "dark")
        mesh.patch(upper, 0.1, 0.8, 0.68, 0.94, "glass")
        lower = mesh.add(
            [(s * w, 0.3, -1.3), (s * w, 0.97, -1.32), (s * w * 0.75, 0.97, 1.02), (s * w * 0.5, 0.35, 1.25)], "body"
        )
        mesh.add(
            [(s * w, 0.45, -0.3), (s * w, 1.0, -0.3), (s * w * 0.9, 1.0, 0.4), (s * w * 0.9, 0.45, 0.4)], "dark", lower
        )
        mesh.wheel(lower, s * w, -0.85, 0.24)
        mesh.wheel(lower, s * w * 0.5, 1.1, 0.24)
    return mesh.finish(0.9)


def _mesh_and_paint(thing: Thing, rng: np.random.Generator, india: bool) -> tuple[Mesh, dict[str, tuple]]:
    body = pick(rng, PAINT)
    second = pick(rng, BOX_PAINT)
    if thing.kind == "car":
        mesh = car_mesh(
            pick(
                rng,
                ("sedan", "hatch", "wagon", "suv", "hatch", "van")
                if not india
                else ("hatch", "hatch", "sedan", "suv", "van"),
            )
        )
    elif thing.kind == "bus":
        mesh, body, second = bus_mesh(), pick(rng, BUS_PAINT), pick(rng, BUS_PAINT)
    elif thing.kind == "tram":
        mesh = tram_mesh()
        body, second = pick(rng, TRAM_PAINT)
    elif thing.kind == "truck":
        mesh = truck_mesh(
            pick(rng, ("box", "box", "tarp", "tipper") if not india else ("tipper", "tarp", "tipper", "box"))
        )
        body = pick(rng, CAB_PAINT)
    else:
        mesh, body, second = (
            rickshaw_mesh(),
            pick(rng, ((238, 190, 30), (40, 120, 60), (240, 200, 50), (30, 90, 60))),
            (30, 30, 32),
        )
    jitter = 1 + 0.12 * (rng.random(3) - 0.5)
    body = tuple(np.clip(np.array(body) * jitter, 0, 255))
    roof = (30, 30, 32) if thing.kind == "rickshaw" else body
    colors = {
        "body": body, "solid": body, "roof": roof, "cargo": second if thing.kind == "truck" else body, "stripe": second,
        "glass": (44, 54, 64), "window": (70, 86, 98), "dark": (30, 31, 34), "grille": (40, 41, 44),
        "seam": tuple(0.7 * c for c in body),
        "ridge": tuple(0.75 * c for c in second), "tail": (190, 24, 20), "head": (240, 240, 232),
        "plate": (236, 232, 216),
        "tyre": (26, 26, 28), "hub": (118, 120, 126), "sign": (250, 180, 60),
    }  # fmt: skip
    return mesh, colors


def paint_vehicle(canvas: Canvas, thing: Thing, instance: int, india: bool) -> None:
    """Draw a vehicle; faces turned away are left out, the others are drawn far to near with their details."""
    rng = np.random.Generator(np.random.PCG64(thing.seed))
    mesh, colors = _mesh_and_paint(thing, rng, india)
    driving = rng.random() < 0.8
    camera = canvas.camera
    cos, sin = np.cos(thing.heading), np.sin(thing.heading)
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    world = mesh.vertices @ turn + (thing.x, 0, thing.z)
    pixels, depth = camera.project(world)
    if depth.min() < NEAR + 0.4 or pixels[:, 0].max() < -3 or pixels[:, 0].min() > camera.width + 3:
        return
    normals = mesh.normals @ turn
    centres = mesh.centres @ turn + (thing.x, 0, thing.z)
    to_eye = camera.position - centres
    seen = ((normals * to_eye).sum(1) > 0).tolist()
    distance = (to_eye**2).sum(1).tolist()
    direct = np.maximum(normals @ canvas.sun, 0).tolist()
    upward = normals[:, 1].tolist()
    fixed = canvas.fixed(pixels)
    label = LABELS[thing.kind]
    mean = camera.depth_of(thing.x, thing.z)
    parents = sorted((i for i in mesh.parents if seen[i]), key=lambda i: -distance[i])
    scale = camera.focal / mean  # pixels per metre
    tiny = scale < 8
    for i in parents:
        face = mesh.faces[i]
        corners = slice(face.start, face.stop)
        surface = _face_surface(canvas, label, pixels[corners], depth[corners], instance)
        rgb = colors[face.material]
        if canvas.snowy and upward[i] > 0.8:
            rgb = (236, 240, 246)
        shade = 0.78 + 0.22 * upward[i]
        canvas.fill(fixed[corners], [c * shade for c in rgb], direct[i], surface, None, face.convex)
        for j in mesh.details[i]:
            part = mesh.faces[j]
            if tiny and part.material not in FAR_DETAILS:
                continue
            rgb, sun, glow = colors[part.material], direct[i], None
            if part.material in ("glass", "window"):
                rgb = [c + 70 * max(upward[i], 0) for c in rgb]
                sun *= 0.7
                if label in (BUS, TRAM) and part.material == "window":
                    glow = (190, 170, 120)
            elif part.material == "roof" and canvas.snowy:
                rgb = (236, 240, 246)
            elif driving:
                glow = {"tail": RED, "head": WHITE, "sign": AMBER}.get(part.material)
            below = surface if part.material == "tyre" else None
            canvas.fill(fixed[part.start : part.stop], rgb, sun, below, glow)


def _face_surface(canvas: Canvas, label: int, pixels: np.ndarray, depth: np.ndarray, instance: int) -> int:
    """A sloped surface where the depth of a face varies much, a constant one elsewhere."""
    near, far = float(depth.min()), float(depth.max())
    if far - near > 4 and np.ptp(pixels[:, 0]) > 6:
        return canvas.plane(label, inverse_depth_plane(pixels, depth), near, far, instance)
    return canvas.surface(label, (near + far) / 2, instance)
