"""The data sets of streets with objects: a test set in the layout of SegmentMeIfYouCan, and a training set.

The test set is RoadAnomaly21's validation layout: `dataset_AnomalyTrack/images/validation0000.png` and
`dataset_AnomalyTrack/labels_masks/validation0000_labels_semantic.png`, 1 on objects and 0 elsewhere (the world has
no pixel without a label, so that 255, void, does not occur).

The training set has, for each line of `training/objects.jsonl`, a street with one object on it, the object's visible
pixels, and the street without it. Every fifth line has no object and an empty name, as negatives for the detector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypedDict

from genval.runtime.seeds import item_seed

from .dataset import CONDITIONS, SPLITS, Target, render_jobs

if TYPE_CHECKING:
    import numpy as np

    from .objects import StreetObject
    from .scene import Render

TRACK = "dataset_AnomalyTrack"
LIST = "training/objects.jsonl"
WITHOUT = 5  # every fifth training image has no object
FLOATING = 0.3  # fraction of training objects at random places, not on the ground
MOST_OBJECTS = 3  # maximum in a test image
NEXT = 1_000_000  # offset of the index of the street that replaces one without room for an object


@dataclass(frozen=True)
class ObjectJob:
    """One image to render, and the paths of its files below the output folder."""

    split: str
    index: int
    image: str
    mask: str
    names: tuple[str, ...] | None = None  # of the objects to choose from; None for all

    @property
    def split_seed(self) -> int:
        """The seed of the scenes, which no domain has."""
        return 2 * len(CONDITIONS) + SPLITS.index(self.split)

    @property
    def clean(self) -> str:
        """The same street without the object; the image itself if it has none."""
        return self.image if self.is_empty else self.image.replace(".png", "_clean.png")

    @property
    def is_empty(self) -> bool:
        return self.split == "train" and self.index % WITHOUT == WITHOUT - 1

    @property
    def seed(self) -> int:
        return item_seed(self.split_seed, self.image)


def plan_test(number: int, names: tuple[str, ...] | None = None) -> Iterator[ObjectJob]:
    """Yield the jobs of the test set; `names` are the objects in it, None for all."""
    for index in range(number):
        stem = f"validation{index:04d}"
        yield ObjectJob(
            "val", index, f"{TRACK}/images/{stem}.png", f"{TRACK}/labels_masks/{stem}_labels_semantic.png", names
        )


def plan_training(number: int) -> Iterator[ObjectJob]:
    """Yield the jobs of the training set."""
    for index in range(number):
        stem = f"training/objects/{index:06d}"
        yield ObjectJob("train", index, f"{stem}.png", f"{stem}_mask.png")


class _Line(TypedDict):
    """A line of `LIST`."""

    image: str


def render_test_set(number: int, target: Target, workers: int, names: tuple[str, ...] | None = None) -> int:
    """Render the missing images of the test set, with objects of `names`; return the number of written images."""
    jobs = [job for job in plan_test(number, names) if _is_missing(target, job.image, job.mask)]
    return render_jobs(_render_test, jobs, target, workers)[1]


def render_training_set(number: int, target: Target, workers: int) -> int:
    """Render the missing images of the training set and list all of them; return the number of written images."""
    from genval.runtime.files import read_jsonl, write_jsonl

    path = target.out / LIST
    known = {line["image"]: line for line in read_jsonl(path, _Line)} if path.exists() else {}
    jobs = [
        job
        for job in plan_training(number)
        if job.image not in known or _is_missing(target, job.image, job.mask, job.clean)
    ]
    new, written = render_jobs(_render_training, jobs, target, workers)
    known |= new
    write_jsonl(path, [known[image] for image in sorted(known)])
    return written


def _is_missing(target: Target, *paths: str) -> bool:
    return target.overwrite or not all((target.out / path).exists() for path in paths)


def _render_test(job: ObjectJob, target: Target, writer: ThreadPoolExecutor) -> tuple[None, list]:
    """One to three objects on a street."""
    import numpy as np

    from .objects import DYNAMIC, object_names

    rng = np.random.default_rng(job.seed)
    known = job.names or object_names()
    names = rng.choice(known, min(len(known), int(rng.integers(1, MOST_OBJECTS + 1))), replace=False)
    _, scene = _with_objects(job, target, names.tolist(), rng)
    mask = (scene.label_ids == DYNAMIC).astype(np.uint8)
    return None, _write(target, writer, {job.image: scene.image, job.mask: mask})


def _render_training(job: ObjectJob, target: Target, writer: ThreadPoolExecutor) -> tuple[dict[str, Any], list]:
    """One object on a street, or none."""
    import numpy as np

    from .objects import DYNAMIC, object_names

    rng = np.random.default_rng(job.seed)
    if job.is_empty:
        name, text, files = "", "a photo of a street", {}
        scene = _street(job, target)
    else:
        name = object_names()[job.index % len(object_names())]
        text = f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}"
        street, scene = _with_objects(job, target, [name], rng, floating=rng.random() < FLOATING)
        files = {job.clean: street.image}
    shown = scene.label_ids == DYNAMIC
    files |= {job.image: scene.image, job.mask: 255 * shown.astype(np.uint8)}
    record = {
        "image": job.image, "mask": job.mask, "object": name, "box": square_around(shown, rng), "text": text,
        "clean": job.clean,
    }  # fmt: skip
    return record, _write(target, writer, files)


def _with_objects(
    job: ObjectJob, target: Target, names: Sequence[str], rng: np.random.Generator, floating: bool = False
) -> tuple[Render, Render]:
    """A street without and with those objects that found a place; where none is to be seen, another street is taken."""
    from .object_placement import place_object
    from .objects import DYNAMIC

    for attempt in count():
        street = _street(job, target, attempt)
        added = [thing for name in names if (thing := place_object(street, name, rng, floating))]
        # Once in thousands of streets, what is painted later hides an object that its place had left in view.
        if added and ((scene := _street(job, target, attempt, added)).label_ids == DYNAMIC).any():
            break
    return street, scene


def _street(job: ObjectJob, target: Target, attempt: int = 0, added: Sequence[StreetObject] = ()) -> Render:
    from .scene import render

    return render(job.index + NEXT * attempt, "clear", target.height, target.width, job.split_seed, added)


def square_around(shown: np.ndarray, rng: np.random.Generator) -> list[int]:
    """The smallest square in the frame around what a mask (H, W) shows; one at random where it shows nothing.

    Returns:
        [top, left, side] in pixels.
    """
    import numpy as np

    from .object_placement import MAX_HEIGHT, MIN_HEIGHT

    height, width = shown.shape
    if shown.any():
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        tall, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        side = min(max(tall, wide), height)
        top, left = int(rows[0]) - (side - tall) // 2, int(columns[0]) - (side - wide) // 2
    else:
        side = int(rng.integers(round(height * MIN_HEIGHT), round(height * MAX_HEIGHT)))
        top, left = int(rng.integers(height // 4, height - side + 1)), int(rng.integers(width - side + 1))
    return [min(max(top, 0), height - side), min(max(left, 0), width - side), side]


def _write(target: Target, writer: ThreadPoolExecutor, files: dict[str, np.ndarray]) -> list:
    from genval.runtime.files import write_png

    wanted = {target.out / path: pixels for path, pixels in files.items() if _is_missing(target, path)}
    return [writer.submit(write_png, path, pixels, noisy=True) for path, pixels in wanted.items()]
