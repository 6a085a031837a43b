"""What made a result, and the checks of every reader: results of different models, precisions or images never mix."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from genval.artifacts.fingerprint import UNIDENTIFIED, current_mark
from genval.datasets.gate import GATE
from genval.datasets.layouts import label_space_of, root_of
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

# The names of the entries in errors.
_TERMS = {
    "identity": "model identity",
    "precision": "precision",
    "confidences_of": "measured pixels",
    "counts_version": "version of the counts",
    "limit": "--limit",
    "split": "--split",
    "gate": "gate.json",
    "class_groups": "merged classes",
    "labels_mark": "meaning of the masks' ids",
}


@dataclass(frozen=True)
class Provenance:
    """What made the results of a segmenter, the same for all images that are pooled or compared.

    Attributes:
        identity: see `genval.segmenters.identity.model_identity`.
        precision: arithmetic of the forward pass.
        confidences_of: the measured pixels of each image, as JSON.
        counts_version: `genval.metrics.statistics.COUNTS_VERSION` of the code that counted.
        limit: the number of images to which --limit cut the set; None for whole sets.
        split: of the data set.
        gate: the mark of the gate.json that dropped images; None without --gate.
        class_groups: the merged classes, as JSON; None for the 19 classes.
        labels_mark: the mark of the masks' label space, see `genval.datasets.labels.LabelSpace`; None if built in.
    """

    identity: str
    precision: str
    confidences_of: str
    counts_version: int
    limit: int | None = None
    split: str | None = None
    gate: str | None = None
    class_groups: str | None = None
    labels_mark: str | None = None

    @classmethod
    def of_record(cls, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> Provenance | None:
        """Read it from an image's record and its scene's metrics.json; None where an earlier version wrote them."""
        try:
            return cls(
                str(record["identity"]),
                str(record["precision"]),
                json.dumps(record["confidences_of"], sort_keys=True),
                int(record["counts_version"]),
                metrics.get("limit"),
                metrics.get("split"),
                metrics.get("gate_mark"),
                json.dumps(record["class_groups"]) if "class_groups" in record else None,
                record.get("labels_mark"),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def model_record(self) -> dict[str, Any]:
        """The entries that a file derived from the results holds, see `require_model` and `require_classes`."""
        groups = {} if self.class_groups is None else {"class_groups": json.loads(self.class_groups)}
        return {"identity": self.identity, "precision": self.precision, **groups}


def require_model(made: Mapping[str, Any], place: Any, record: Mapping[str, Any], other: Any, remedy: str) -> None:
    """Refuse what was made by another model, or by the same model in another precision.

    Args:
        made: the `model_record` of the results at `place`.
        place: how the error names them.
        record: holds the `model_record` of what is used with them.
        other: how the error names it.
        remedy: the sentence that says how to get a sound one.

    Raises:
        GenValError: the identities or the precisions differ; the message names both.
    """
    for key in ("identity", "precision"):
        if record.get(key) != made.get(key):
            raise GenValError(
                f"{place} and {other} are not of the same model: {_TERMS[key]} {made.get(key)} and "
                f"{record.get(key, 'not recorded')}. {remedy}"
            )


def require_different_models(identities: Mapping[str, str]) -> None:
    """Refuse to compare segmenters of which two are one model: it would count twice.

    Args:
        identities: the `genval.segmenters.identity.model_identity` of each segmenter, by name. Models without an
            identity are not compared.

    Raises:
        GenValError: two names have one identity; the message names both.
    """
    first: dict[str, str] = {}
    for model, identity in identities.items():
        other = first.setdefault(identity, model)
        if other != model and not identity.startswith(UNIDENTIFIED):
            raise GenValError(
                f"{other} and {model} are the same model (identity {identity}), which would count twice. Give "
                "--segmenters with one of them."
            )


def require_classes(made: Mapping[str, Any], place: Any, record: Mapping[str, Any], other: Any) -> None:
    """Refuse to compare results in other classes: the 19 with merged ones, or ones that were merged differently.

    Args:
        made, place, record, other: as for `require_model`.

    Raises:
        GenValError: the classes differ; the message names both.
    """
    if made.get("class_groups") != record.get("class_groups"):
        raise GenValError(
            f"{place} and {other} are not in the same classes: {describe_classes(made)}, and "
            f"{describe_classes(record)}. Evaluate both in the same classes: relis/eval.py --trg_dataset NAME@LABELS "
            "evaluates the set NAME in the merged classes of LABELS, such as Cityscapes@idd-level1."
        )


def describe_classes(record: Mapping[str, Any]) -> str:
    """Return which classes were evaluated.

    >>> describe_classes({"class_groups": {"far object": ["building", "vegetation"], "sky": ["sky"]}})
    '2 merged classes (far object: building, vegetation)'
    """
    groups = record.get("class_groups")
    if groups is None:
        return "the 19 classes"
    merged = [f"{name}: {', '.join(classes)}" for name, classes in groups.items() if len(classes) > 1]
    return f"{len(groups)} merged classes ({'; '.join(merged)})"


@dataclass(frozen=True)
class SceneRecords:
    """A scene's results: their folder, the name of the data set, the images' records, and metrics.json."""

    folder: Path
    dataset: str
    records: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any]


def common_provenance(places: Sequence[SceneRecords], remedy: Callable[[Path], str]) -> Provenance:
    """Check that all images of several folders of results can be pooled, and return what made them.

    Args:
        places: the results of at least one scene.
        remedy: the sentence that says how to get sound results of a folder.

    Raises:
        GenValError: a folder lists no image, fewer or more than its metrics.json, or one twice; an image is in two
            folders; results differ in what made them or in the folder of their data set; images are missing from the
            data set or have changed; or the gate or the file of LABELS of the set has changed.
    """
    found: dict[Provenance, Path] = {}
    images: dict[tuple[str | None, str], str] = {}
    for place in places:
        folder, records, metrics = place.folder, place.records, place.metrics
        manifest = folder / "manifest.jsonl"
        if not records or len(records) != metrics.get("images", len(records)):
            raise GenValError(
                f"{manifest} lists {len(records)} images, metrics.json {metrics.get('images')}. {remedy(folder)}"
            )
        for record in records:
            _add_image(images, record, manifest, remedy)
            of_image = Provenance.of_record(record, metrics)
            if of_image is None:
                raise GenValError(
                    f"{folder} was written by a version that did not record which model made it. {remedy(folder)}"
                )
            found.setdefault(of_image, folder)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        key = next(key for key, value in asdict(one).items() if value != getattr(other, key))
        raise GenValError(
            f"{first} and {second} cannot be pooled: {_TERMS[key]} {_shown(one, key)} and {_shown(other, key)}. "
            f"{remedy(first)} {remedy(second)}"
        )
    _check_files(places, remedy)
    made = next(iter(found))
    for place in places if made.labels_mark is not None else ():
        if label_space_of(place.dataset).mark != made.labels_mark:
            raise GenValError(
                f"{place.folder}: the file of LABELS of {place.dataset} changed after these results were computed. "
                f"{remedy(place.folder)}"
            )
    if made.gate is not None:
        _check_gate(places, made.gate, remedy)
    return made


def images_mark(records: Iterable[Mapping[str, Any]]) -> str:
    """Return 16 hex digits over the ids and the marks of images, masks and the file of LABELS, in any order."""
    marks = sorted(
        [str(record.get(key)) for key in ("id", "image_mark", "mask_mark")]
        + ([record["labels_mark"]] if "labels_mark" in record else [])
        for record in records
    )
    return hashlib.blake2b(json.dumps(marks).encode(), digest_size=8).hexdigest()


def require_images(mark: Any, place: Any, expected: str, what: str, remedy: str) -> None:
    """Refuse what was made from other images than those of the results now.

    Args:
        mark: the `images_mark` that was recorded at `place`.
        place: how the error names it.
        expected: the `images_mark` of the results.
        what: how the error names their set.
        remedy: the sentence that says how to get a sound one.

    Raises:
        GenValError: the marks differ.
    """
    if mark != expected:
        raise GenValError(f"{place} was made from other images of {what} than its results are of now. {remedy}")


def _shown(made: Provenance, key: str) -> str:
    value = getattr(made, key)
    return "none" if value is None else str(value)


def _add_image(
    images: dict[tuple[str | None, str], str],
    record: Mapping[str, Any],
    manifest: Path,
    remedy: Callable[[Path], str],
) -> None:
    mark = record.get("image_mark")
    key = (None, mark) if mark is not None else (str(manifest), str(record["id"]))
    name = f"{manifest.parent.name}/{record['id']}"
    if key in images:
        twice = f"{name} and {images[key]} are the same image, which would count twice"
        raise GenValError(f"{manifest}: {twice}. {remedy(manifest.parent)}")
    images[key] = name


@dataclass(frozen=True)
class _File:
    """An image or a mask of a result, with its recorded mark; `root` is the folder of its data set."""

    path: Path
    mark: str | None
    root: Path
    folder: Path


def _check_files(places: Sequence[SceneRecords], remedy: Callable[[Path], str]) -> None:
    """Refuse results of images that the data set no longer has, and results of two data sets under one name.

    Where the folder of the data set is not on this machine, its images cannot be compared.
    """
    files = [
        _File(resolve(record[key]), record.get(f"{key}_mark"), root, place.folder)
        for place in places
        for record in place.records
        if "image" in record
        for root in [root_of(resolve(record["image"]), place.dataset)]
        for key in ("image", "mask")
        if key in record
    ]
    files = _below_one_root(files, remedy)
    marks = [current_mark(file.path) for file in files]
    gone = [file for file, mark in zip(files, marks, strict=True) if mark is None]
    changed = [file for file, now in zip(files, marks, strict=True) if now is not None and file.mark not in (None, now)]
    for found, what in (
        (gone, "are no longer in the data set"),
        (changed, "changed after these results were computed"),
    ):
        if found and (len(found) < len(files) or found is changed or found[0].root.exists()):
            folder = found[0].folder
            raise GenValError(
                f"{folder}: {len(found)} of {len(files)} images and masks of these results {what}, such as "
                f"{found[0].path}. {remedy(folder)}"
            )


def _check_gate(places: Sequence[SceneRecords], mark: str, remedy: Callable[[Path], str]) -> None:
    """Refuse results of a gated set that was judged again since; without a gate.json nothing is compared."""
    for place in places:
        for root in {root_of(resolve(record["image"]), place.dataset) for record in place.records if "image" in record}:
            if current_mark(root / GATE) not in (None, mark):
                raise GenValError(
                    f"{place.folder}: {root / GATE} changed after these results were computed. {remedy(place.folder)}"
                )


def _below_one_root(files: Sequence[_File], remedy: Callable[[Path], str]) -> list[_File]:
    """Return the files of results as files of one folder of the data set.

    A data set that was moved or copied is the same one: a folder that holds all files of the results, with the recorded
    marks.

    Raises:
        GenValError: the results were computed from two folders, none of which holds all files.
    """
    first = {Path(os.path.realpath(file.root)): file for file in reversed(files)}
    if len(first) < 2:
        return list(files)
    for root in first:
        moved = [
            replace(file, path=root / file.path.relative_to(file.root), root=root)
            for file in files
            if file.path.is_relative_to(file.root)
        ]
        if len(moved) == len(files) and all(file.mark == current_mark(file.path) for file in moved):
            return moved
    one, other = list(first.values())[-1:-3:-1]
    raise GenValError(
        f"{one.folder} and {other.folder} cannot be pooled: they were computed from the images of two folders, "
        f"{one.root} and {other.root}, and neither holds all of these images. Evaluate all scenes from one of them. "
        f"{remedy(one.folder)} {remedy(other.folder)}"
    )


def is_reusable(record: Mapping[str, Any]) -> bool:
    """Whether results with this record may be kept: those of a model without an identity are always computed again."""
    return not str(record.get("identity", UNIDENTIFIED)).startswith(UNIDENTIFIED)
