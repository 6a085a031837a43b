"""`gate.json` beside a generated set: which of its pictures are good enough to be measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genval.artifacts.fingerprint import file_mark
from genval.datasets.items import BadFile, Item
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, write_json

GATE = "gate.json"
# What the reason of a picture that a gate dropped begins with.
GATED = "gate: "


def write_gate(
    folder: Path, items: Sequence[Item], reasons: Mapping[str, Sequence[str]], about: Mapping[str, Any]
) -> tuple[int, int]:
    """Write which pictures are kept and which dropped, and why; returns how many of each.

    Args:
        folder: of the generated set.
        items: the pictures that were judged.
        reasons: why each is dropped, by id; none keeps it.
        about: the thresholds and what the scores were made with.
    """
    kept, dropped = [], []
    for item in items:
        # The mark ties the judgement to the file: a picture made again has to be judged again.
        entry = {"id": item.id, "image_mark": file_mark(item.image)}
        if reasons[item.id]:
            dropped.append({**entry, "reasons": list(reasons[item.id])})
        else:
            kept.append(entry)
    write_json(folder / GATE, {**about, "kept": kept, "dropped": dropped})
    return len(kept), len(dropped)


def apply_gate(items: Sequence[Item], folder: Path) -> tuple[list[Item], list[BadFile]]:
    """The pictures that the set's gate keeps, and those it drops, with the reasons.

    Raises:
        GenValError: the set has no gate, or one that does not judge these very files.
    """
    path = folder / GATE
    command = f"python ControlNet/check_generated.py --folder {folder}"
    if not path.exists():
        raise GenValError(f"--gate: no {path}. Run: {command}")
    gate = read_json(path)
    try:
        verdicts = {entry["id"]: entry for entry in (*gate["kept"], *gate["dropped"])}
        marks = {item_id: entry["image_mark"] for item_id, entry in verdicts.items()}
    except (KeyError, TypeError) as error:
        raise GenValError(f"{path} is not a gate: expected lists kept and dropped. Run: {command}") from error
    unknown = [item for item in items if item.id not in marks]
    changed = [item for item in items if item.id in marks and marks[item.id] != file_mark(item.image)]
    if unknown or changed:
        raise GenValError(
            f"{path} does not judge the pictures as they are: {len(unknown)} are not in it, {len(changed)} have "
            f"changed since (first: {(unknown + changed)[0].image}). Run: {command}"
        )
    kept = [item for item in items if "reasons" not in verdicts[item.id]]
    dropped = [
        BadFile(item.id, item.cond, item.scene, str(item.image), f"{GATED}{'; '.join(verdicts[item.id]['reasons'])}")
        for item in items
        if "reasons" in verdicts[item.id]
    ]
    return kept, dropped
