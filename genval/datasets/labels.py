"""Label spaces: the 19 Cityscapes classes, and the tables that turn each data set's own ids into trainIds.

A table is a uint8 array of 256 entries, so that a whole mask is translated by one look-up per pixel: `table[mask]`, or
`cv2.LUT(mask, table)`, which is about ten times faster (0.3 ms for 1024x2048).

Sources: the Cityscapes ids are those of `cityscapesscripts.helpers.labels`, which ACDC shares; the IDD ids are the
`level3Ids` of the IDD public code; CamVid is the 11-class version of SegNet; the ids of Mapillary Vistas are the
places of the classes in the `config.json` of its releases, their trainIds those of RobustNet (CVPR 2021,
`datasets/mapillary.py`); the level-1 ids of IDD and their names are those of its paper (WACV 2019), which IDD-lite
uses. Other label spaces are JSON files: see `find_label_space`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genval.runtime.errors import GenValError
from genval.runtime.files import read_bytes, read_json
from genval.runtime.paths import resolve

IGNORE = 255
"""The trainId of pixels that no metric counts."""

CLASSES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""Names of the trainIds 0..18."""

_BY_NAME = {name.replace(" ", ""): train_id for train_id, name in enumerate(CLASSES)}

# Ids from the first that is no trainId up to those that stand for no label.
_FIRST_ABOVE, _SPECIAL = 19, 251

CLASSES_19: tuple[int, ...] = tuple(range(19))
IDD_17: tuple[int, ...] = tuple(train_id for train_id in range(19) if train_id not in (9, 16))
"""The classes IDD labels: all but terrain and train."""
CAMVID_11: tuple[int, ...] = (0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13)

CLASS_SETS: dict[str, tuple[int, ...]] = {"19": CLASSES_19, "17": IDD_17, "11": CAMVID_11}
"""Class sets by the name `--classes` gives them."""

PALETTE: np.ndarray = np.zeros((256, 3), np.uint8)
"""RGB of each trainId, uint8 (256, 3): the Cityscapes colours; black for pixels without a class."""
PALETTE[:19] = [
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
]


@dataclass(frozen=True)
class ClassGroups:
    """A partition of the 19 classes into merged classes, each of which is evaluated as one class.

    A merged class is known by its place in `members`, which is in the order of the lowest trainIds.
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]  # the trainIds of each, ascending

    @property
    def table(self) -> np.ndarray:
        """The merged class of each trainId, uint8 (256,); `IGNORE` stays."""
        table = np.full(256, IGNORE, np.uint8)
        for index, members in enumerate(self.members):
            table[list(members)] = index
        return table

    def to_json(self) -> dict[str, list[str]]:
        """Return the names of the classes in each merged class, by its name."""
        return {
            name: [CLASSES[train_id] for train_id in members]
            for name, members in zip(self.names, self.members, strict=True)
        }


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """The ids in a data set's masks, and their meaning.

    With `groups`, "trainId" stands for the number of a merged class, in the table and in the classes.
    """

    name: str  # as errors call it
    table: np.ndarray  # uint8 (256,): id -> trainId, IGNORE for ids without one
    known: np.ndarray  # uint8 (256,): 1 for ids that a valid mask may contain
    classes: tuple[int, ...]  # the trainIds that can occur, ascending
    groups: ClassGroups | None = None  # the merged classes; None for the 19
    origin: LabelSpace | None = None  # the label space of the 19 that was merged; it judges which ids are right
    mark: str | None = (
        None  # 16 hex digits over the table of a file's ids, which may be edited; None for a built-in one
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes that are evaluated, by trainId or number of the merged class."""
        return self.groups.names if self.groups else CLASSES

    @property
    def train_id_table(self) -> np.ndarray | None:
        """The trainId of each id, as `table`; None where ids stand for several classes."""
        if self.origin:
            return self.origin.table
        return None if self.groups else self.table

    @property
    def class_sets(self) -> dict[str, tuple[int, ...]]:
        """The fixed class sets, `CLASS_SETS`; none of merged classes."""
        return {} if self.groups else CLASS_SETS

    def to_train_ids(self, label_ids: np.ndarray, source: str = "mask") -> np.ndarray:
        """Translate a mask of this data set's ids.

        Args:
            label_ids: uint8 (H, W).
            source: what errors call the mask, usually its path.

        Returns:
            uint8 (H, W), trainIds 0..18, or the numbers of merged classes, and `IGNORE`.

        Raises:
            GenValError: the mask holds ids that this label space does not have.

        >>> CITYSCAPES.to_train_ids(np.array([[7, 26, 0, 33]], np.uint8)).tolist()
        [[0, 13, 255, 18]]
        """
        import cv2

        if cv2.countNonZero(cv2.LUT(label_ids, self.known)) != label_ids.size:
            unknown = [int(value) for value in np.unique(label_ids) if not self.known[value]]
            allowed = _ranges(np.flatnonzero(self.known).tolist())
            raise GenValError(
                f"{source} holds ids that are not {self.name}: expected {allowed}, found {_ranges(unknown)}. "
                "Give the file with the raw ids, or use --skip_bad."
            )
        return cv2.LUT(label_ids, self.table)

    def fault(self, pixels: np.ndarray) -> str | None:
        """Return why the ids of one mask are not those of this label space; None where they may be.

        A mask of trainIds is recognised among Cityscapes' labelIds where it has 255, no id above 18, and more pixels
        without a class than with one: the trainIds of road, sidewalk and building are labelIds of no class.

        Args:
            pixels: int64 (256,), how many pixels of the mask have each id.
        """
        if self.origin:
            return self.origin.fault(pixels)
        unknown = np.flatnonzero((pixels > 0) & (self.known == 0)).tolist()
        if unknown:
            other = self is TRAIN_IDS and all(CITYSCAPES.known[unknown])
            return f"ids that are not {self.name}: {_ranges(unknown)}" + (" (but Cityscapes labelIds)" if other else "")
        low = pixels[:_FIRST_ABOVE].sum()
        without = pixels[self.table == IGNORE].sum()
        if self is CITYSCAPES and low and pixels[255] and not self._has_high(pixels) and 2 * without > pixels.sum():
            return "trainIds, not Cityscapes labelIds: 255 occurs, no id above 18 does"
        return None

    def set_fault(self, pixels: np.ndarray) -> str | None:
        """Return why the ids of all masks of a set together are not those of this label space, or count nowhere.

        Ids up to 18 can be labelIds or trainIds. A set without an id above 18 is taken for trainIds where 255 occurs
        or, with Cityscapes' labelIds, where more pixels are without a class than with one. Otherwise it is accepted: a
        small set may show roads and buildings alone.

        Args:
            pixels: int64 (256,), how many pixels of the masks have each id.
        """
        if self.origin:
            return self.origin.set_fault(pixels)
        if not pixels.any():
            return None
        without = pixels[self.table == IGNORE].sum()
        if without == pixels.sum():
            ids = _ranges(np.flatnonzero(pixels).tolist())
            return (
                f"no pixel of any mask has a class: the ids are {ids}. If these are the dummy masks of a test split, "
                f"choose another (--split); otherwise check that the masks hold {self.name}"
            )
        mostly = self is CITYSCAPES and 2 * without > pixels.sum()
        if self in (CITYSCAPES, IDD) and not self._has_high(pixels) and (pixels[255] or mostly):
            return (
                f"the masks hold trainIds, not {self.name}: no id above 18 occurs but 255. Give the masks with the raw "
                "ids, or name the labels of a set of your own: folder:IMAGES,MASKS,trainids. If they are "
                f"{self.name} all the same, describe the ids in a JSON file and give it as LABELS"
            )
        return None

    def shows_kind(self, pixels: np.ndarray) -> bool:
        """Whether the ids of some masks show that the set is one of this label space: see `set_fault`."""
        if self.origin:
            return self.origin.shows_kind(pixels)
        if not pixels[self.table != IGNORE].any():
            return False
        if self is TRAIN_IDS:
            return bool(pixels[IGNORE])
        return self not in (CITYSCAPES, IDD) or self._has_high(pixels)

    def _has_high(self, pixels: np.ndarray) -> bool:
        return bool(pixels[_FIRST_ABOVE:_SPECIAL].any())


def colourise(train_ids: np.ndarray) -> np.ndarray:
    """Paint trainIds, uint8 (H, W), in the Cityscapes colours: RGB uint8 (H, W, 3)."""
    return PALETTE[train_ids]


def _space(name: str, train_id_of: Mapping[int, int], known: Iterable[int]) -> LabelSpace:
    table = np.full(256, IGNORE, np.uint8)
    table[list(train_id_of)] = list(train_id_of.values())
    known_table = np.zeros(256, np.uint8)
    known_table[list(known)] = 1
    table.flags.writeable = known_table.flags.writeable = False
    return LabelSpace(name, table, known_table, tuple(sorted(set(train_id_of.values()) - {IGNORE})))


def _merged_space(
    name: str, classes_of: Mapping[int, Iterable[int]], known: Iterable[int], names: Mapping[int, str] | None = None
) -> LabelSpace:
    """Return a label space whose ids stand for several classes each.

    Args:
        name: as errors call it.
        classes_of: the trainIds of each id that is counted; those of two ids are the same, or have none in common.
        known: ids that a valid mask may contain.
        names: of the merged classes, by id; otherwise the names of the classes, joined.
    """
    by_members = {tuple(sorted(set(members))): label_id for label_id, members in reversed(list(classes_of.items()))}
    single = set(CLASSES_19).difference(*by_members)
    members = sorted([*by_members, *((train_id,) for train_id in single)])
    group_names = [
        names[by_members[group]] if names else "+".join(CLASSES[train_id] for train_id in group) for group in members
    ]
    groups = ClassGroups(tuple(group_names), tuple(members))
    numbers = {label_id: members.index(tuple(sorted(set(group)))) for label_id, group in classes_of.items()}
    return replace(_space(name, numbers, known), groups=groups)


def _ranges(values: list[int]) -> str:
    """`[0, 1, 2, 255]` to `0..2, 255`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


# fmt: off
CITYSCAPES = _space(
    "Cityscapes labelIds",
    {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
     28: 15, 31: 16, 32: 17, 33: 18},
    [*range(34), 255],  # 255 is how -1, the licence plate, looks in a uint8 file
)
IDD = _space(
    "IDD level3Ids",
    {0: 0, 2: 1, 22: 2, 14: 3, 15: 4, 20: 5, 19: 6, 18: 7, 24: 8, 25: 10, 4: 11, 5: 12, 9: 13, 10: 14, 11: 15, 6: 17,
     7: 18},
    [*range(40), *range(251, 256)],  # the conversion tools write 251..255 for kinds of unlabelled and out of region
)
# Classes of level3Ids without a trainId. An animal is a person there, and a train is among the other vehicles.
IDD_UNKNOWN: dict[str, int] = {
    "drivable fallback": 1, "non-drivable fallback": 3, "autorickshaw": 8, "vehicle fallback": 12, "curb": 13,
    "guard rail": 16, "billboard": 17, "obstacle fallback": 21, "bridge": 23,
}
CAMVID = _space(
    "CamVid class ids",
    {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 12, 11: IGNORE},
    range(12),
)
TRAIN_IDS = _space("Cityscapes trainIds", {i: i for i in range(19)}, [*range(19), IGNORE])
MAPILLARY_V1 = _space(
    "Mapillary Vistas v1.2 ids",
    {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9, 27: 10, 19: 11,
     20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18},
    range(66),
)
# The parts of a class that v2.0 divides inherit its trainId: marks on the lane (35..44, 46..55, 57, 58), lights
# (90..95), signs seen from the front (99..101, 103). Crossings (45, 56) have none in either version.
MAPILLARY_V2 = _space(
    "Mapillary Vistas v2.0 ids",
    {21: 0, **dict.fromkeys([*range(35, 45), *range(46, 56), 57, 58], 0), 74: 0, 4: 1, 24: 1, 27: 2, 12: 3, 5: 4, 85: 5,
     88: 5, **dict.fromkeys(range(90, 96), 6), 99: 7, 100: 7, 101: 7, 103: 7, 64: 8, 63: 9, 61: 10, 30: 11, 32: 12,
     33: 12, 34: 12, 108: 13, 114: 14, 107: 15, 111: 16, 110: 17, 105: 18},
    range(124),
)
# fmt: on
LABEL_SPACES: dict[str, LabelSpace] = {
    "cityscapes": CITYSCAPES,
    "idd": IDD,
    "camvid": CAMVID,
    "trainids": TRAIN_IDS,
    "mapillary-v1.2": MAPILLARY_V1,
    "mapillary-v2.0": MAPILLARY_V2,
}
"""Label spaces of the 19 classes, by the name in `Item.label_space`."""

MERGED_SPACES: dict[str, LabelSpace] = {
    "idd-level1": _merged_space(
        "IDD level-1 ids",
        {0: [0], 1: [1, 9], 2: [11, 12], 3: [13, 14, 15, 16, 17, 18], 4: [3, 4, 5, 6, 7], 5: [2, 8], 6: [10]},
        [*range(7), *range(251, 256)],
        {
            0: "drivable",
            1: "non-drivable",
            2: "living thing",
            3: "vehicle",
            4: "roadside object",
            5: "far object",
            6: "sky",
        },
    ),
}
"""Label spaces of merged classes, by the name in `Item.label_space`."""

GROUPS_MARK = "@"
"""Between the name of a label space or data set and that of the label space whose merged classes it is evaluated in."""


def find_label_space(name: str) -> LabelSpace:
    """A label space by its name, or from a JSON file of ids: `{"0": "road", "7": 13, "34": null, "other": null}`.

    Args:
        name: a key of `LABEL_SPACES` or `MERGED_SPACES` in any case, or a file (relative: from the repository's root).
            Its keys are ids 0..255, its values a class's name in any case or trainId, or null (or 255) for pixels that
            are not counted. A list of several classes, `{"5": ["building", "vegetation"]}`, is one merged class. Ids
            that the file does not name are errors where they occur, unless it has the key "other", whose value must be
            null. `NAME@MERGED` is the label space NAME of the 19 classes, evaluated in the merged classes of MERGED.

    Raises:
        GenValError: no such label space or file, the content of the file is invalid, or MERGED merges no classes.
    """
    files = [resolve(part) for part in dict.fromkeys([name, *name.split(GROUPS_MARK)])]
    # A file that was edited is read again.
    return _find_label_space(name, tuple(read_bytes(file) for file in files if file.is_file()))


@functools.cache
def _find_label_space(name: str, _: tuple[bytes, ...]) -> LabelSpace:
    if name.lower() in LABEL_SPACES or name.lower() in MERGED_SPACES:
        return (LABEL_SPACES | MERGED_SPACES)[name.lower()]
    path = resolve(name)
    base, mark, merged = name.rpartition(GROUPS_MARK)
    if mark and not path.exists():
        return _merge(find_label_space(base), name, find_label_space(merged))
    if not path.is_file():
        what = f"Labels: {path} is a folder" if path.is_dir() else f"Labels: there is no file {path}"
        if "/" not in name and not path.suffix:
            what = f"Unknown labels {name!r}"
        known_names = ", ".join([*LABEL_SPACES, *MERGED_SPACES])
        raise GenValError(f"{what}: expected one of {known_names}, or a JSON file of ids.")
    content = read_json(path, dict[str, list[str | int] | str | int | None], 'Expected {"id": "class", ...}.')
    known = range(256) if "other" in content else [_id(key, path) for key in content]
    if content.pop("other", None) is not None:
        raise GenValError(f'{path}: "other" can only be null (not counted): name the ids of a class one by one.')
    title = f"the ids of {path.name}"
    if any(isinstance(value, list) for value in content.values()):
        return _with_mark(_merged_space(title, _classes_by_id(content, path), known))
    train_ids = {_id(key, path): _train_id(value, key, path) for key, value in content.items()}
    space = _space(title, train_ids, known)
    if not space.classes:
        raise GenValError(f"{path} names none of the 19 classes: {', '.join(CLASSES)}.")
    return _with_mark(space)


def _with_mark(space: LabelSpace) -> LabelSpace:
    return replace(space, mark=hashlib.blake2b(space.table.tobytes(), digest_size=8).hexdigest())


def _merge(space: LabelSpace, name: str, merged: LabelSpace) -> LabelSpace:
    """Return a label space of the 19 classes with the merged classes of another."""
    if merged.groups is None or space.groups is not None:
        fault = f"{merged.name} merges no classes" if space.groups is None else f"{space.name} are merged classes"
        raise GenValError(
            f"{name}: {fault}. Expected NAME@MERGED, where MERGED is {' or '.join(MERGED_SPACES)} or a JSON file in "
            'which an id has several classes, as {"5": ["building", "vegetation"]}.'
        )
    table = merged.groups.table[space.table]
    classes = tuple(sorted(set(table.tolist()) - {IGNORE}))
    return LabelSpace(space.name, table, space.known, classes, merged.groups, space, space.mark)


def _classes_by_id(content: Mapping[str, Any], path: Path) -> dict[int, list[int]]:
    """Return the trainIds of each counted id of a file with merged classes, after checking them."""
    found: dict[int, list[int]] = {}
    for key, value in content.items():
        values = value if isinstance(value, list) else [value]
        train_ids = [_train_id(one, key, path) for one in values]
        if isinstance(value, list) and (not value or IGNORE in train_ids):
            raise GenValError(f"{path}: id {key} is {value!r}, expected the names of one or more classes, or null.")
        if train_ids == [IGNORE]:
            continue
        label_id = _id(key, path)
        for other, others in found.items():
            common = set(train_ids) & set(others)
            if common and set(train_ids) != set(others):
                raise GenValError(
                    f"{path}: ids {other} and {key} share the class {CLASSES[min(common)]}, but are not the same "
                    "merged class. Give each class to one merged class."
                )
        found[label_id] = train_ids
    return found


def find_unknown_ids(dataset: str, names: Sequence[str]) -> dict[str, int]:
    """Classes without a counterpart among the 19, by name, with the ids that masks hold.

    Args:
        dataset: `--trg_dataset`.
        names: of `IDD_UNKNOWN`, or "all".

    Raises:
        GenValError: the data set is not IDD, whose unknown classes are known by name, or a name is not among them.
    """
    if dataset != "IDD":
        raise GenValError(f"Only IDD has names for unknown classes, found --trg_dataset {dataset}. Give IDD.")
    unknown = [name for name in names if name not in IDD_UNKNOWN and name != "all"]
    if unknown:
        raise GenValError(f"Unknown class {unknown[0]!r}: expected all, or some of {', '.join(IDD_UNKNOWN)}.")
    return {name: value for name, value in IDD_UNKNOWN.items() if name in names or "all" in names}


def _id(key: str, path: Path) -> int:
    if key not in map(str, range(256)):
        raise GenValError(f'{path}: expected ids 0..255 (or "other") as keys, found {key!r}.')
    return int(key)


def _train_id(value: Any, key: str, path: Path) -> int:
    if value is None or value == IGNORE:
        return IGNORE
    if isinstance(value, str) and (plain := re.sub(r"[\s_-]", "", value.lower())) in _BY_NAME:
        return _BY_NAME[plain]
    if type(value) is int and 0 <= value < len(CLASSES):
        return value
    raise GenValError(
        f"{path}: id {key} is {value!r}, expected a trainId 0..18, null, or one of: {', '.join(CLASSES)}."
    )
