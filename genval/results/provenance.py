"""What made a result, and the checks of every reader: results of different models, precisions or images never mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genval.artifacts.fingerprint import UNIDENTIFIED, current_mark
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
    """

    identity: str
    precision: str
    confidences_of: str
    counts_version: int
    limit: int | None = None
    split: str | None = None
    gate: str | None = None
    class_groups: str | None = None

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


def common_provenance(
    places: Sequence[tuple[Path, Sequence[Mapping[str, Any]], Mapping[str, Any]]], remedy: Callable[[Path], str]
) -> Provenance:
    """Check that all images of several folders of results can be pooled, and return what made them.

    Args:
        places: at least one folder, with the records of its images and its metrics.json.
        remedy: the sentence that says how to get sound results of a folder.

    Raises:
        GenValError: a folder lists no image, fewer or more than its metrics.json, or one twice; an image is in two
            folders; results differ in what made them; or some images are missing from the data set or have changed.
    """
    found: dict[Provenance, Path] = {}
    images: dict[tuple[Any, Any], str] = {}
    for folder, records, metrics in places:
        manifest = folder / "manifest.jsonl"
        if not records or len(records) != metrics.get("images", len(records)):
            raise GenValError(
                f"{manifest} lists {len(records)} images, metrics.json {metrics.get('images')}. {remedy(folder)}"
            )
        for record in records:
            _add_image(images, record, manifest, remedy(folder))
            made = Provenance.of_record(record, metrics)
            if made is None:
                raise GenValError(
                    f"{folder} was written by a version that did not record which model made it. {remedy(folder)}"
                )
            found.setdefault(made, folder)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        key = next(key for key, value in asdict(one).items() if value != getattr(other, key))
        raise GenValError(
            f"{first} and {second} cannot be pooled: {_TERMS[key]} {_shown(one, key)} and {_shown(other, key)}. "
            f"{remedy(first)} {remedy(second)}"
        )
    _check_files((record for _, records, _ in places for record in records), places[0][0], remedy)
    return next(iter(found))


def images_mark(records: Iterable[Mapping[str, Any]]) -> str:
    """Return 16 hex digits over the ids and the marks of images and masks, in any order."""
    marks = sorted([str(record.get(key)) for key in ("id", "image_mark", "mask_mark")] for record in records)
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


def _add_image(images: dict[tuple[Any, Any], str], record: Mapping[str, Any], manifest: Path, remedy: str) -> None:
    marks = (record.get("image_mark"), record.get("mask_mark"))
    key = marks if None not in marks else (str(manifest), str(record["id"]))
    name = f"{manifest.parent.name}/{record['id']}"
    if key in images:
        raise GenValError(f"{manifest}: {name} and {images[key]} are the same image, which would count twice. {remedy}")
    images[key] = name


def _check_files(records: Iterable[Mapping[str, Any]], folder: Path, remedy: Callable[[Path], str]) -> None:
    """Refuse results of images that the data set no longer has, where the data set is on this machine."""
    files = [
        (resolve(record[key]), record.get(f"{key}_mark"))
        for record in records
        for key in ("image", "mask")
        if key in record
    ]
    marks = [current_mark(path) for path, _ in files]
    gone = [path for (path, _), mark in zip(files, marks, strict=True) if mark is None]
    changed = [
        path for (path, mark), now in zip(files, marks, strict=True) if now is not None and mark not in (None, now)
    ]
    if gone and len(gone) < len(files):
        raise GenValError(
            f"{folder}: {len(gone)} of {len(files)} images and masks of these results are no longer in the data set, "
            f"such as {gone[0]}. {remedy(folder)}"
        )
    if changed:
        raise GenValError(
            f"{folder}: {len(changed)} of {len(files)} images and masks changed after these results were computed, "
            f"such as {changed[0]}. {remedy(folder)}"
        )


def is_reusable(record: Mapping[str, Any]) -> bool:
    """Whether results with this record may be kept: those of a model without an identity are always computed again."""
    return not str(record.get("identity", UNIDENTIFIED)).startswith(UNIDENTIFIED)
