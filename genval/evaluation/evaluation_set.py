"""The images of a data set that an evaluation measures: chosen by condition, scene, gate and limit, each one once."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from genval.artifacts.fingerprint import current_mark, file_mark
from genval.datasets import BadFile, Item, find_items
from genval.datasets.gate import GATE, apply_gate
from genval.datasets.items import openable
from genval.datasets.layouts import find_root, is_generated
from genval.datasets.ood_sets import OodItem
from genval.datasets.reading import check_ids
from genval.evaluation.settings import EvaluationSettings
from genval.results.scenes import GATED_SUFFIX, pair
from genval.runtime.errors import GenValError

AnyItem = TypeVar("AnyItem", Item, OodItem)


class HasImage(Protocol):
    """What has the file of an image."""

    @property
    def image(self) -> Path: ...


AnyImage = TypeVar("AnyImage", bound=HasImage)


@dataclass(frozen=True)
class EvaluationSet:
    """The images of a data set that an evaluation measures.

    Attributes:
        items: sorted by condition, scene and id.
        bad: files that were skipped.
        limit: to how many images --limit cut the set; None where it cut nothing.
        gate: the mark of the set's gate.json, with --gate.
    """

    items: list[Item]
    bad: list[BadFile]
    limit: int | None = None
    gate: str | None = None

    def openable(self) -> EvaluationSet:
        """Skip items whose files can no longer be opened."""
        bad = list(self.bad)
        return replace(self, items=openable(self.items, bad), bad=bad)


def find_images(settings: EvaluationSettings, dataset: str) -> EvaluationSet:
    """Find the images of a data set that the settings name.

    Raises:
        GenValError: as `genval.datasets.find_items`, or an image is in the set twice.
    """
    items: set[Item] = set()
    bad: list[BadFile] = []
    for cond, scene in pair(settings.cond, settings.scene):
        items.update(
            find_items(
                dataset,
                cond,
                scene,
                split=settings.split,
                root=settings.trg_root,
                datasets_dir=settings.datasets_dir,
                generated_dir=settings.generated_dir,
                skipped=bad if settings.skip_bad else None,
            )
        )
    ordered = sorted(items, key=lambda item: (item.cond, item.scene, item.id))
    gate = None
    if settings.gate and is_generated(dataset):
        root = find_root(dataset, settings.trg_root, settings.datasets_dir, settings.generated_dir)
        ordered, dropped = apply_gate(ordered, root)
        gate = file_mark(root / GATE)
        bad += dropped
    check_ids(ordered)
    limit = settings.run.limit if settings.run.limit is not None and settings.run.limit < len(ordered) else None
    ordered = ordered[:limit]
    ordered = without_duplicates(ordered, bad if settings.skip_bad else None)
    return EvaluationSet(ordered, list(dict.fromkeys(bad)), limit, gate)


def without_duplicates(items: Sequence[AnyItem], skipped: list[BadFile] | None) -> list[AnyItem]:
    """Return the items without those whose image an earlier item has, whatever their masks; `skipped` gets the others.

    Raises:
        GenValError: there are such items, and `skipped` is None.
    """
    duplicates = find_duplicates(items)
    for item, first in duplicates.items():
        reason = f"the same image as {first.image}: it would count twice. Remove one of them from the data set"
        if skipped is None:
            raise GenValError(f"{item.image}: {reason}, or give --skip_bad to skip it.")
        skipped.append(BadFile(item.id, item.cond, item.scene, str(item.image), reason))
    return [item for item in items if item not in duplicates]


def find_duplicates(items: Sequence[AnyImage]) -> dict[AnyImage, AnyImage]:
    """Return the items whose image is equal, byte for byte, to that of an earlier item, with that item."""
    first: dict[str | None, AnyImage] = {}
    found: dict[AnyImage, AnyImage] = {}
    for item in items:
        other = first.setdefault(current_mark(item.image), item)
        if other is not item and filecmp.cmp(item.image, other.image, shallow=False):
            found[item] = other
    return found


def results_name(settings: EvaluationSettings, dataset: str) -> str:
    """Return the name of a data set's results; a gated set has its own name, `Cityscapes_fog-gated`."""
    return f"{dataset}{GATED_SUFFIX}" if settings.gate and is_generated(dataset) else dataset
