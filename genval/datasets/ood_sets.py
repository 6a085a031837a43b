"""Images with unknown objects and their masks: the generated set, and the public sets in the layouts they come in.

find_ood_items("RoadAnomaly21")        # sorted, paired by name
image, kinds = read_ood_pair(items[0])  # RGB uint8 (H, W, 3), uint8 (H, W): 0 background, 1 object, 255 void

Sources of the layouts: the pages and tools of SegmentMeIfYouCan, Fishyscapes, RoadAnomaly (Lis et al., ICCV 2019) and
StreetHazards (Hendrycks et al., ICML 2022), and for Fishyscapes also the folders that the release of SynBoost uses.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import path_dicts
from genval.artifacts.fingerprint import file_mark
from genval.artifacts.manifest import Manifest
from genval.datasets.items import IMAGE_EXTENSIONS, BadFile, Item, openable
from genval.datasets.labels import CITYSCAPES, IGNORE
from genval.datasets.layouts import DERIVED, how_to_get, suggestion
from genval.datasets.ood_objects import absence_path, find_object_images, mask_path, natural, read_curated
from genval.datasets.reading import read_image, read_mask
from genval.runtime.errors import GenValError
from genval.runtime.paths import paths_below, resolve, subfolders, why_unopened

GENERATED = "generated"
GENERATED_IN = "generated-"
"""Prefix of the sets of objects that were generated into other streets than clear ones: `generated-fog`."""
PAIR_PREFIX = "pair:"
_PAIR_FORM = "pair:IMAGES,MASKS"
# Number of images that are measured together; an interrupted run repeats at most one block.
BLOCK = 32
_IMAGE = r"\.(?:png|jpe?g|webp|tiff?)"

# As collections of several sets hold them: images and masks in one folder, named as the set.
_ONE_FOLDER = (rf"([^/]+){_IMAGE}", r"([^/]+)_mask\.png")

# What mask ids mean: 0 background, 1 object, 255 void.
_TRACK = {0: 0, 1: 1, 255: 255}
_BINARY = {0: 0, 255: 1}
_UNKNOWN = 254


@dataclass(frozen=True)
class OodItem(Item):
    """An image and the mask of its object."""

    kinds: tuple[tuple[int, int], ...] = tuple(_TRACK.items())  # the mask's id -> 0 background, 1 object, 255 void
    frame: Path | None = None  # labelIds of the image's street, if available
    void: tuple[int, ...] = ()  # ids of `frame`, or else of the mask, that are not counted outside the object
    source: str = ""  # id of the frame into which the object was inpainted, if known
    block: str = ""  # name of the block of images that are measured together

    @property
    def files(self) -> tuple[Path, ...]:
        return (*super().files, self.frame) if self.frame else super().files


@dataclass(frozen=True)
class OodLayout:
    """How a public set's files are laid out: regular expressions of paths below its root.

    A file's id is what the groups match, joined; an image and a mask of one id belong together. Images without a mask
    are those of a test split whose masks are not public.
    """

    forms: tuple[tuple[str, str], ...]  # of images and of masks, in the releases there are
    kinds: Mapping[int, int]


def _obstacle_track(scenes: Iterable[str]) -> OodLayout:
    """The images of some scenes of RoadObstacle21, whose names begin with their scene's."""
    name = rf"((?:{'|'.join(scenes)})_[^/]+)"
    forms = (rf"images/{name}{_IMAGE}", rf"labels_masks/{name}_labels_semantic\.png")
    return OodLayout((forms, (rf"{name}{_IMAGE}", rf"{name}_mask\.png")), _TRACK)


def _lost_and_found(name: str) -> OodLayout:
    """The test set of Lost & Found; 0 has no label, 1 is free space, and every other id is an object."""
    images = rf"(?:.*/)?leftImg8bit/test/[^/]+/({name})_leftImg8bit{_IMAGE}"
    masks = rf"(?:.*/)?gtCoarse/test/[^/]+/({name})_gtCoarse_labelIds\.png"
    kinds = {0: 255, 1: 0, **dict.fromkeys(range(2, 201), 1), **dict.fromkeys(range(201, 256), 255)}
    return OodLayout(((images, masks),), kinds)


# Sequences of Lost & Found's test set with children or bicycles, which are no unknown objects. Source: the sets that
# the benchmark SegmentMeIfYouCan evaluates.
_KNOWN_OBJECTS = (
    *("15_Rechbergstr_Deckenpfronn", "01_Hanns_Klemm_Str_45_000006", "01_Hanns_Klemm_Str_45_000007"),
    "10_Schlossberg_9_000004",
)

OOD_LAYOUTS: dict[str, OodLayout] = {
    "RoadAnomaly21": OodLayout(
        (
            (rf"images/([^/]+){_IMAGE}", r"labels_masks/([^/]+)_labels_semantic\.png"),
            _ONE_FOLDER,
        ),
        _TRACK,
    ),
    "RoadObstacle21": OodLayout(
        (
            (rf"images/([^/]+){_IMAGE}", r"labels_masks/([^/]+)_labels_semantic\.png"),
            _ONE_FOLDER,
        ),
        _TRACK,
    ),
    # The benchmark's tracks: without night and snow, at night, in snow, and the public images.
    "RoadObstacle21-test": _obstacle_track(
        ("curvy-street", "one-way-street", "gravel", "greyasphalt", "motorway", "paving", "darkasphalt", "darkasphalt2")
    ),
    "RoadObstacle21-night": _obstacle_track(("driveway",)),
    "RoadObstacle21-snow": _obstacle_track(("snowstorm1", "snowstorm2")),
    "RoadObstacle21-validation": _obstacle_track(("validation",)),
    "LostAndFound": _lost_and_found("[^/]+"),
    "LostAndFoundNoKnown": _lost_and_found(rf"(?!{'|'.join(_KNOWN_OBJECTS)})[^/]+"),
    # Masks come from Fishyscapes with a number before the name that the image has in Lost & Found.
    "FishyscapesLostAndFound": OodLayout(
        (
            (
                r"(?:.*/)?leftImg8bit/(?:train|test)/[^/]+/([^/]+)_leftImg8bit\.png",
                r"fishyscapes_lostandfound/\d{4}_([^/]+)_labels\.png",
            ),
            (r"laf_images/([^/]+)_leftImg8bit\.png", r"fishyscapes_lostandfound/\d{4}_([^/]+)_labels\.png"),
            (rf"LostAndFound/original/([^/]+){_IMAGE}", r"LostAndFound/labels/([^/]+)\.png"),
            _ONE_FOLDER,
        ),
        _TRACK,
    ),
    "FishyscapesStatic": OodLayout(
        (
            (r"fs_static_images_v\d/([^/]+)_rgb\.png", r"fs_val_v\d/([^/]+)_labels\.png"),
            (rf"Static/original/([^/]+){_IMAGE}", r"Static/labels/([^/]+)\.png"),
            _ONE_FOLDER,
        ),
        _TRACK,
    ),
    "RoadAnomaly": OodLayout(
        ((rf"(?:.*/)?frames/([^/]+){_IMAGE}", r"(?:.*/)?frames/([^/]+?)(?:\.labels)?/labels_semantic\.png"),),
        {0: 0, 1: 0, 2: 1, 255: 255},  # 1 is the road
    ),
    "StreetHazards": OodLayout(
        ((rf"(?:test/)?images/test/([^/]+)/([^/]+){_IMAGE}", r"(?:test/)?annotations/test/([^/]+)/([^/]+)\.png"),),
        {0: 255, **dict.fromkeys(range(1, 14), 0), 14: 1},
    ),
}


@dataclass(frozen=True)
class GeneratedFolders:
    """The folders that the scripts of ood_objects/ wrote."""

    images: str = "images/ood_objects/refined"
    masks: str = "images/ood_objects/masks"
    positions: str = "images/ood_objects/with_positions"


@dataclass(frozen=True)
class OodSet:
    """The images found of a set."""

    items: tuple[OodItem, ...]
    left_out: dict[str, int]  # images that are not measured, by reason
    limit: int | None = None  # to how many images --limit cut the set


def find_ood_items(
    dataset: str,
    datasets_dir: str | Path = "datasets",
    root: str | Path | None = None,
    generated: GeneratedFolders = GeneratedFolders(),
    objects: Sequence[str] | None = None,
    curated: bool = True,
    void: Iterable[int] = (),
    skipped: list[BadFile] | None = None,
) -> OodSet:
    """All images of a set that have a mask.

    Args:
        dataset: `GENERATED` or `generated-NAME`, both in the folders of `generated`, a name of `OOD_LAYOUTS`, or
            `pair:IMAGES,MASKS`: two folders (relative: from the repository's root) with files of one name, masks of 0,
            1 and 255.
        datasets_dir: the folder of the data sets.
        root: the set's own folder, if it is not below `datasets_dir`.
        generated: the folders of the generated set.
        objects: of the generated set only these, by name or folder.
        curated: skip images that `curated.json` sets to false.
        void: ids that are not counted outside the object: labelIds of the street in the generated set
            (`{i}_gt.png`), the mask's own ids elsewhere.
        skipped: unpaired files and those that cannot be opened are added to this list instead of raising an error.

    Raises:
        GenValError: the set is unknown or missing; a file is unpaired or cannot be opened, or two files have one id; or
            no mask of pairs has an object.
    """
    ids = tuple(sorted(set(void)))
    if has_generated_objects(dataset):
        return _find_generated(generated, objects, curated, ids, skipped)
    if objects is not None:
        raise GenValError(f"--objects is for the generated set, found --trg_dataset {dataset}.")
    if dataset.startswith(PAIR_PREFIX):
        folders = [part.strip() for part in dataset.removeprefix(PAIR_PREFIX).split(",")]
        if len(folders) != 2 or not all(folders):
            raise GenValError(f"Expected {_PAIR_FORM} without commas inside, found {dataset!r}.")
        places = [resolve(folder) for folder in folders]
        for place in places:
            if not place.is_dir():
                raise GenValError(f"{dataset}: there is no folder {place}. Correct the path.")
        images_found, masks_found = _match(places[0], rf"(.+){_IMAGE}"), _match(places[1], r"(.+)\.png")
        found = _pair(dataset, images_found, masks_found, _TRACK, ids, skipped, f"{places[0]} and {places[1]}")
        _require_object(found.items)
        return found
    if dataset not in OOD_LAYOUTS:
        known = [GENERATED, *OOD_LAYOUTS]
        raise GenValError(
            f"Unknown set {dataset!r}.{suggestion(dataset, known)} Known: {', '.join(known)}, {_PAIR_FORM}."
        )
    layout, places = OOD_LAYOUTS[dataset], _places(dataset, Path(datasets_dir), root)
    for place, (images, masks) in itertools.product(places, layout.forms):
        masks_found = _match(place, masks)
        # Test images have no public mask: only a mask without an image is an error.
        images_found = {key: path for key, path in _match(place, images).items() if key in masks_found}
        if images_found:
            return _pair(dataset, images_found, masks_found, layout.kinds, ids, skipped, str(place))
    expected = ", or ".join(f"{images} and {masks}" for images, masks in layout.forms)
    raise GenValError(
        f"No images with masks of {dataset} in {places[0]}: expected {expected}. {how_to_get(places[0], '--trg_root')}."
    )


def has_generated_objects(dataset: str) -> bool:
    """Whether the name of a set is one of generated objects.

    >>> [has_generated_objects(name) for name in ("generated", "generated-fog", "RoadAnomaly21")]
    [True, True, False]
    """
    return dataset == GENERATED or dataset.startswith(GENERATED_IN)


def read_ood_pair(item: OodItem) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and the kinds of its pixels.

    Returns:
        The image, RGB uint8 (H, W, 3); uint8 (H, W), 0 background, 1 object, 255 void.

    Raises:
        GenValError: a file is missing, damaged or of the wrong kind, sizes differ, or the mask holds an unknown id.
    """
    image, kinds = read_image(item.image), read_kinds(item)
    if image.shape[:2] != kinds.shape:
        raise _sizes_differ(item.image, image, item.mask, kinds)
    return image, kinds


def read_kinds(item: OodItem) -> np.ndarray:
    """Return the kinds of an image's pixels: as `read_ood_pair`, without the image."""
    mask = read_mask(item.mask)
    table = np.full(256, _UNKNOWN, np.uint8)
    table[[key for key, _ in item.kinds]] = [kind for _, kind in item.kinds]
    kinds: np.ndarray = table[mask]
    if (kinds == _UNKNOWN).any():
        unknown = sorted({int(value) for value in np.unique(mask)} - {key for key, _ in item.kinds})
        known = ", ".join(str(key) for key, _ in item.kinds)
        raise GenValError(
            f"{item.mask} is not a mask of {item.cond}: expected the values {known}, found {unknown[:8]}."
        )
    if item.void:
        labels = mask if item.frame is None else read_mask(item.frame, CITYSCAPES.table)
        if item.frame is not None and labels.shape != mask.shape:
            raise _sizes_differ(item.frame, labels, item.mask, mask)
        kinds[np.isin(labels, item.void) & (kinds != 1)] = IGNORE
    return kinds


def blocks_of(items: Sequence[OodItem]) -> dict[str, list[OodItem]]:
    """Group items by the block in which they are measured, in order."""
    blocks: dict[str, list[OodItem]] = {}
    for item in items:
        blocks.setdefault(item.block, []).append(item)
    return blocks


def _find_generated(
    folders: GeneratedFolders,
    objects: Sequence[str] | None,
    curated: bool,
    void: tuple[int, ...],
    skipped: list[BadFile] | None,
) -> OodSet:
    images, masks, positions = (resolve(path) for path in (folders.images, folders.masks, folders.positions))
    chosen = read_curated(masks) if curated else {}
    mask_records, made = Manifest(masks).records, Manifest(positions).records
    left_out = {"no object found": 0, "not chosen in curated.json": 0}
    items: list[OodItem] = []
    place: dict[str, int] = {}
    for image in find_object_images(images, positions, objects):
        # Blocks do not move when a person changes curated.json: only blocks that lose or gain an image change.
        number = place[image.folder] = place.get(image.folder, -1) + 1
        mask, absence = mask_path(masks, image.id), absence_path(masks, image.id)
        line, reason = mask_records.get(image.id, {}), None
        if unopened := why_unopened(image.image):
            reason = f"{image.image} {unopened}"
        elif not (mask.exists() or absence.exists()):
            reason = f"{image.image} has neither {mask} nor a {absence.name}"
        elif "source" in line and line["source"] != file_mark(image.image):
            reason = f"{image.image} was made again after its mask"
        if reason is not None:
            if skipped is None:
                raise GenValError(f"{reason}. Run: python ood_objects/get_masks.py")
            skipped.append(BadFile(image.id, GENERATED, image.folder, str(image.image), reason))
        elif not mask.exists():
            left_out["no object found"] += 1
        elif not chosen.get(image.id, True):
            left_out["not chosen in curated.json"] += 1
        else:
            frame = positions / image.folder / f"{image.number}_gt.png"
            if void and not frame.exists():
                raise GenValError(f"--void needs the street's labels: {frame} does not exist.")
            item = OodItem(
                id=image.id,
                image=image.image,
                mask=mask,
                cond=GENERATED,
                scene=image.object,
                kinds=tuple(_BINARY.items()),
                frame=frame if void else None,
                void=void,
                source=made.get(image.id, {}).get("source", ""),
                block=f"{image.folder}-{number // BLOCK:05d}",
            )
            items.append(item)
    if not items:
        raise GenValError(f"No image in {images} has a mask in {masks}. Run: python ood_objects/get_masks.py")
    return OodSet(tuple(openable(items, skipped)), {reason: number for reason, number in left_out.items() if number})


def _pair(
    dataset: str,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    kinds: Mapping[int, int],
    void: tuple[int, ...],
    skipped: list[BadFile] | None,
    place: str,
) -> OodSet:
    unpaired = [(images[key], "mask", key) for key in images.keys() - masks.keys()]
    unpaired += [(masks[key], "image", key) for key in masks.keys() - images.keys()]
    for path, missing, key in sorted(unpaired):
        if skipped is None:
            raise GenValError(
                f"{path} has no {missing} of its name ({len(unpaired)} such files). Add it, or use --skip_bad."
            )
        skipped.append(BadFile(key, dataset, dataset, str(path), f"no {missing} of its name"))
    keys = sorted(images.keys() & masks.keys(), key=natural)
    if not keys:
        raise GenValError(f"No images with masks in {place}.")
    known = tuple(kinds.items())
    items = [
        OodItem(
            id=key,
            image=images[key],
            mask=masks[key],
            cond=dataset,
            scene=dataset,
            kinds=known,
            void=void,
            block=f"{number // BLOCK:05d}",
        )
        for number, key in enumerate(keys)
    ]
    return OodSet(tuple(openable(items, skipped)), {})


def _require_object(items: Sequence[OodItem]) -> None:
    """Refuse a set without an object. Masks are read until one has an object, which is usually the first."""
    found: set[int] = set()
    for item in items:
        try:
            if (read_kinds(item) == 1).any():
                return
            found.update(np.unique(read_mask(item.mask)).tolist())
        except GenValError:  # left to the reader of the items
            continue
    if found:
        raise GenValError(
            f"No mask of {items[0].cond} has a pixel of an object: expected the values 0 (background), 1 (object) and "
            f"255 (void), found only {', '.join(map(str, sorted(found)))}, such as in {items[0].mask}. Give objects "
            "the value 1."
        )


def _match(root: Path, pattern: str) -> dict[str, Path]:
    """Files whose path below `root` fits, by what the groups match."""
    found: dict[str, Path] = {}
    for path in sorted(paths_below(root)):  # parts of a release may be symbolic links
        match = re.fullmatch(pattern, path.relative_to(root).as_posix())
        if match is None or path.suffix.lower() not in IMAGE_EXTENSIONS:
            continue
        key = "/".join(match.groups())
        if key not in found:
            found[key] = path
        elif os.path.realpath(path) != os.path.realpath(found[key]):  # a second name of one file adds nothing
            raise GenValError(f"Two files for {key}: {found[key]} and {path}. Move one of them elsewhere.")
    return found


def _places(dataset: str, datasets_dir: Path, root: str | Path | None) -> list[Path]:
    """The folders where a set may be: its own folder or one of its name, or one folder deeper, in any capitals."""
    if root is not None:
        return [resolve(root)]
    exact = Path(path_dicts.OOD_ROOTS[dataset])
    exact = resolve(exact if datasets_dir == Path("datasets") else datasets_dir / exact.name)
    above = [exact.parent, *(entry for entry in subfolders(exact.parent) if not (entry / DERIVED).exists())]
    names = (exact.name.lower(), dataset.lower())
    return [exact, *(entry for place in above for entry in subfolders(place) if entry.name.lower() in names)]


def _sizes_differ(first: Path, image: np.ndarray, second: Path, mask: np.ndarray) -> GenValError:
    return GenValError(
        f"{first} and {second} differ in size: expected one size, found {image.shape[1]}x{image.shape[0]} and "
        f"{mask.shape[1]}x{mask.shape[0]} pixels. They are from different runs: generate them again."
    )
