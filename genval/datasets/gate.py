"""`gate.json` of a generated set: which of its images are good enough for an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from genval.artifacts.fingerprint import file_mark
from genval.datasets.items import BadFile, Item
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, write_json

GATE = "gate.json"
# Prefix of the reason why the gate drops an image.
GATED = "gate: "


class _Kept(TypedDict):
    id: str
    image_mark: str


class _Dropped(_Kept):
    reasons: list[str]


class _Gate(TypedDict):
    kept: list[_Kept]
    dropped: list[_Dropped]


def write_gate(
    folder: Path, items: Sequence[Item], reasons: Mapping[str, Sequence[str]], metadata: Mapping[str, Any]
) -> tuple[int, int]:
    """Write which images are kept and which are dropped, with reasons. Return the number of each.

    Args:
        folder: of the generated set.
        items: the judged images.
        reasons: the reasons to drop each image, by id; an image without reasons is kept.
        metadata: the thresholds and the models that computed the scores.
    """
    kept, dropped = [], []
    for item in items:
        # The mark ties the judgement to the file: an image that is generated again has to be judged again.
        entry = {"id": item.id, "image_mark": file_mark(item.image)}
        if reasons[item.id]:
            dropped.append({**entry, "reasons": list(reasons[item.id])})
        else:
            kept.append(entry)
    write_json(folder / GATE, {**metadata, "kept": kept, "dropped": dropped})
    return len(kept), len(dropped)


def apply_gate(items: Sequence[Item], folder: Path) -> tuple[list[Item], list[BadFile]]:
    """Return the images that the set's gate keeps, and those that it drops, with the reasons.

    Raises:
        GenValError: the set has no gate, or it judged other files.
    """
    path = folder / GATE
    command = f"python ControlNet/check_generated.py --folder {folder}"
    if not path.exists():
        raise GenValError(f"--gate: no {path}. Run: {command}")
    gate = read_json(path, _Gate, f"Run: {command}")
    verdicts = {entry["id"]: entry for entry in (*gate["kept"], *gate["dropped"])}
    marks = {item_id: entry["image_mark"] for item_id, entry in verdicts.items()}
    unknown = [item for item in items if item.id not in marks]
    changed = [item for item in items if item.id in marks and marks[item.id] != file_mark(item.image)]
    if unknown or changed:
        raise GenValError(
            f"{path} does not match the current images: {len(unknown)} are not in it, {len(changed)} have "
            f"changed since (first: {(unknown + changed)[0].image}). Run: {command}"
        )
    kept = [item for item in items if "reasons" not in verdicts[item.id]]
    dropped = [
        BadFile(item.id, item.cond, item.scene, str(item.image), f"{GATED}{'; '.join(verdicts[item.id]['reasons'])}")
        for item in items
        if "reasons" in verdicts[item.id]
    ]
    return kept, dropped
