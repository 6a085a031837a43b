"""Convert the small real sets of streets to the layouts that the scripts read, and split images into two halves.

Images that train a generator never measure anything. DAWN (by image) and IDD (by drive) are split by a seeded half:
the generators see `unlabelled/`, and the other half is measured. The measured half is split again: improvements are
chosen on `choose` and confirmed on `confirm`. splits.json lists all of them.

Reads:  STREETS/{cityscapes,dashcam,dawn,idd_lite,acdc,anomaly}, CAMVID/{images,labels}; sets that are absent are named
Writes: OUTPUT_DIR/cityscapes (256x256 stretched to 512x256; scenes are blocks of consecutive numbers), acdc (scenes are
        drives), idd_lite, camvid (dusk, 480x240), unlabelled/{domain}, dawn/{domain} with boxes.json,
        dataset_AnomalyTrack, dataset_ObstacleTrack and fishyscapes (unknown objects), training/{train,val}.jsonl,
        splits.json, derived.json

    python benchmarks/streets/prepare.py --streets datasets/real_streets --camvid datasets/camvid
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import num_workers_flag, seed_flag

SIZE = (512, 256)
"""Width and height of the Cityscapes frames, which were squeezed to 256x256."""
BLOCKS = {"train": 119, "val": 25}
"""Consecutive frames per scene: the city names are lost, and neighbours in number are of one city."""
WEATHERS = ("fog", "rain", "snow")
ANOMALY = {
    "RoadAnomaly21": ("dataset_AnomalyTrack/images", "dataset_AnomalyTrack/labels_masks", "_labels_semantic"),
    "RoadObstacle21": ("dataset_ObstacleTrack/images", "dataset_ObstacleTrack/labels_masks", "_labels_semantic"),
    "FishyscapesStatic": ("fishyscapes/Static/original", "fishyscapes/Static/labels", ""),
}
"""Folders of images and of masks of unknown objects, and what the names of masks end in."""
DUSK, DUSK_ROWS = "0001TP", slice(90, 330)  # as mini/prepare_camvid.py crops: 480x360 to 480x240
CAPTION = "a street in Germany, on a clear day"

Task = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Settings of benchmarks/streets/prepare.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/prepare"

    streets: str = flag("datasets/real_streets", "folder of the real sets")
    camvid: str = flag("datasets/camvid", "folder with images/ and labels/ of CamVid")
    output_dir: str = flag("datasets/streets", "folder for the prepared sets")
    num_workers: int = num_workers_flag()
    seed: int = seed_flag()
    preset: str | None = None


def main(settings: PrepareSettings) -> None:
    from genval.runtime.files import write_json
    from genval.runtime.progress import progress_bar

    streets, camvid, out = (resolve(path) for path in (settings.streets, settings.camvid, settings.output_dir))
    splits: dict[str, dict[str, list[str]]] = {}
    tasks = [
        *cityscapes(streets / "cityscapes", out),
        *acdc(streets / "acdc", out),
        *idd(streets / "idd_lite", out, splits, settings.seed),
        *dawn(streets / "dawn", out, splits, settings.seed),
        *dashcam(streets / "dashcam", out),
        *anomaly(streets / "anomaly", out),
        *dusk(camvid, out, splits),
    ]
    if not tasks:
        raise GenValError(f"No images in {streets} or {camvid}. Give their folders with --streets and --camvid.")
    write_json(out / "derived.json", {"made_by": "benchmarks/streets/prepare.py", "seed": settings.seed})
    write_json(out / "splits.json", splits)
    with progress_bar(len(tasks), "images") as bar, ThreadPoolExecutor(settings.num_workers) as pool:
        for _ in pool.map(lambda task: task(), tasks):
            bar.update()
    print(f"wrote {len(tasks)} images to {settings.output_dir}")
    for name, parts in splits.items():
        print(f"{name}: " + ", ".join(f"{part} {len(ids)}" for part, ids in parts.items()))


def cityscapes(source: Path, out: Path) -> list[Task]:
    """Frames and masks in Cityscapes' layout, and the lists that mini/train.py reads."""
    from genval.runtime.files import write_jsonl

    tasks: list[Task] = []
    for split, length in BLOCKS.items():
        records: list[dict[str, Any]] = []
        for number, image in enumerate(found(source / split, "*.jpg")):
            scene = f"{split}{number // length:02d}"
            name = f"{scene}_{image.stem}"
            paths = {
                "image": f"cityscapes/leftImg8bit/{split}/{scene}/{name}_leftImg8bit.png",
                "conditioning_image": f"cityscapes/gtFine/{split}/{scene}/{name}_gtFine_labelIds.png",
            }
            mask = image.with_name(f"{image.stem}_labelTrainIds.png")
            tasks.append(partial(write_pair, (image, mask), out, tuple(paths.values()), SIZE))
            records.append({**paths, "text": CAPTION})
        if records:
            write_jsonl(out / "training" / f"{split}.jsonl", records)
    return tasks


def acdc(source: Path, out: Path) -> list[Task]:
    """Frames and masks in ACDC's layout. Chapters of one recording of the camera (`GOPR0476`, `GP010476`) are one."""
    tasks: list[Task] = []
    for mask in found(source, "*/*_labelTrainIds.png"):
        name = mask.name.removesuffix("_labelTrainIds.png")
        folder = f"{mask.parent.name}/val/GOPR{name.split('_')[0][-4:]}"
        to = (f"acdc/rgb_anon/{folder}/{name}_rgb_anon.png", f"acdc/gt/{folder}/{name}_gt_labelIds.png")
        tasks.append(partial(write_pair, (mask.with_name(f"{name}.png"), mask), out, to))
    return tasks


def idd(source: Path, out: Path, splits: dict[str, dict[str, list[str]]], seed: int) -> list[Task]:
    """The measured half of the labelled frames in IDD-lite's layout; the other half and the unlabelled frames."""
    frames = found(source / "train", "*.jpg")
    drives = sorted({frame.stem.split("_")[0] for frame in frames}, key=int)
    parts = halves(drives, seed)
    tasks: list[Task] = []
    for frame in frames:
        drive, number = frame.stem.split("_")
        if drive in parts["generators"]:
            tasks.append(copy(frame, out / "unlabelled/india" / frame.name))
            continue
        tasks.append(copy(frame, out / f"idd20k_lite/leftImg8bit/val/{drive}/{number}_image.jpg"))
        label = frame.with_name(f"{frame.stem}_label.png")
        tasks.append(copy(label, out / f"idd20k_lite/gtFine/val/{drive}/{number}_label.png"))
    others = found(source / "unlabelled", "*.jpg")
    tasks += [copy(frame, out / "unlabelled/india" / frame.name) for frame in others]
    if frames:
        splits["idd_drives"] = parts
    return tasks


def dawn(source: Path, out: Path, splits: dict[str, dict[str, list[str]]], seed: int) -> list[Task]:
    """One half of each weather's photos for generators; the other with the boxes of its objects."""
    from genval.runtime.files import read_json, write_json

    tasks: list[Task] = []
    boxes = read_json(source / "boxes.json") if (source / "boxes.json").is_file() else {}
    measured = {}
    for weather in WEATHERS:
        photos = found(source / weather, "*.jpg")
        if not photos:
            continue
        parts = splits[f"dawn_{weather}"] = halves([photo.name for photo in photos], seed)
        for photo in photos:
            if photo.name in parts["generators"]:
                tasks.append(copy(photo, out / "unlabelled" / weather / photo.name))
                continue
            tasks.append(copy(photo, out / "dawn" / weather / photo.name))
            measured[f"{weather}/{photo.name}"] = boxes.get(f"{weather}/{photo.name}", [])
    if measured:
        write_json(out / "dawn/boxes.json", measured)
    return tasks


def dashcam(source: Path, out: Path) -> list[Task]:
    """Photos by night from behind a windscreen; all of them train generators."""
    return [copy(image, out / "unlabelled/night" / image.name) for image in found(source / "night/train", "*.jpg")]


def anomaly(source: Path, out: Path) -> list[Task]:
    """Images and masks of unknown objects, in the layouts of ood_detection/main_gen_ood.py."""
    tasks: list[Task] = []
    for name, (images, masks, end) in ANOMALY.items():
        for image in found(source / name, "*.jpg"):
            tasks.append(copy(image, out / images / image.name))
            mask = image.with_name(f"{image.stem}_mask.png")
            tasks.append(copy(mask, out / masks / f"{image.stem}{end}.png"))
    return tasks


def dusk(camvid: Path, out: Path, splits: dict[str, dict[str, list[str]]]) -> list[Task]:
    """Dusk of CamVid, cropped: the test frames in CamVid's layout, the others for generators, without masks."""
    from genval.datasets.reading import read_image, read_mask
    from genval.runtime.files import write_png

    def crop(image: Path) -> None:
        pixels = read_image(image)[DUSK_ROWS]
        if image.parent.name != "test":
            write_png(out / "unlabelled/dusk" / f"{image.stem}.png", pixels)
            return
        mask = read_mask(camvid / "labels/test" / f"{image.stem}.png")[DUSK_ROWS]
        write_png(out / "camvid/images/test" / f"{image.stem}.png", pixels)
        write_png(out / "camvid/labels/test" / f"{image.stem}.png", mask)

    images = [path for pattern in ("jpg", "png") for path in found(camvid / "images", f"*/{DUSK}_*.{pattern}")]
    if images:
        measured = [image.stem for image in images if image.parent.name == "test"]
        others = [image.stem for image in images if image.parent.name != "test"]
        # Neighbours in time are alike: the two parts are the two halves of the recording, not a random choice.
        middle = len(measured) // 2
        splits["camvid_dusk"] = {"generators": others, "choose": measured[:middle], "confirm": measured[middle:]}
    return [partial(crop, image) for image in images]


def halves(names: Iterable[str], seed: int) -> dict[str, list[str]]:
    """Split names into those of generators (a half) and those to measure, `choose` and `confirm` (a quarter each)."""
    mixed = sorted(names)
    random.Random(seed).shuffle(mixed)
    middle = len(mixed) // 2
    quarter = middle + (len(mixed) - middle) // 2
    return {
        "generators": sorted(mixed[:middle]),
        "choose": sorted(mixed[middle:quarter]),
        "confirm": sorted(mixed[quarter:]),
    }


def write_pair(pair: tuple[Path, Path], out: Path, to: tuple[str, ...], size: tuple[int, int] | None = None) -> None:
    """Write an image and its mask of trainIds as labelIds, stretched to `size` (width, height) if given."""
    import cv2
    import numpy as np

    from genval.datasets.labels import CITYSCAPES, IGNORE
    from genval.datasets.reading import read_image, read_mask
    from genval.runtime.files import write_png

    to_label = np.zeros(256, np.uint8)  # 0: unlabeled
    for label_id in reversed(range(34)):
        if CITYSCAPES.table[label_id] != IGNORE:
            to_label[CITYSCAPES.table[label_id]] = label_id
    image, mask = read_image(pair[0]), to_label[read_mask(pair[1])]
    if size is not None:
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    write_png(out / to[0], image, noisy=True)
    write_png(out / to[1], mask)


def copy(source: Path, target: Path) -> Task:
    """A task that copies a file whole or not at all."""
    from genval.runtime.files import replace_file

    if not source.is_file():
        raise GenValError(f"{source} is missing. Copy the set again.")

    def run() -> None:
        with replace_file(target) as temporary:
            shutil.copyfile(source, temporary)

    return run


def found(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder in order; none, and a line that says so, where it is absent."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        print(f"no {pattern} in {folder}: left out", file=sys.stderr)
    return paths


if __name__ == "__main__":
    cli.run(main, PrepareSettings, __doc__)
