"""From a network's own classes to the 19 of Cityscapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genval.datasets.labels import CLASSES, IGNORE, LABEL_SPACES, LabelSpace
from genval.datasets.layouts import suggestion
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.messages import print_once
from genval.runtime.paths import resolve
from genval.segmenters.class_names import is_placeholder, train_id_of

NUM_CLASSES = len(CLASSES)

ABSENT = -1e4
"""The logit of a class that the network does not know: a probability of exactly 0 at every temperature below 90, and,
unlike minus infinity, a number that half precision holds and an entropy survives."""

_MOST = 256  # ids of a label space


class ClassMap(nn.Module):
    """Merges the logits of a network's classes into those of the 19.

    Probabilities add: the logit of a class is the log-sum-exp of those of its parts, taken at the network's own
    resolution. Parts without a trainId are dropped, so that the softmax over the result is the network's, given that
    the pixel is of one of the 19. The most probable class after merging may differ from the trainId of the most
    probable part.

    Args:
        space: what the network's outputs mean, in the place of a mask's ids; see `labels.find_label_space`.
    """

    table: Tensor

    def __init__(self, space: LabelSpace) -> None:
        super().__init__()
        self.space = space
        self.parts = [[int(i) for i in (space.table == train_id).nonzero()[0]] for train_id in range(NUM_CLASSES)]
        # So that a segmenter's weights hash is another with another map.
        self.register_buffer("table", torch.from_numpy(space.table.copy()))

    def fault(self, outputs: int) -> str | None:
        """Say what is wrong unless the map covers each of the `outputs` classes, and gives no other id a trainId."""
        unknown = [i for i in range(outputs) if i >= _MOST or not self.space.known[i]]
        beyond = [i for i in range(outputs, _MOST) if self.space.table[i] != IGNORE]
        if unknown or beyond:
            return f"does not contain {unknown[:8]}" if unknown else f"also names {beyond[:8]}"
        return None

    def check(self, name: str, outputs: int) -> None:
        """Raise GenValError unless the map fits a network of `outputs` classes; see `fault`."""
        fault = self.fault(outputs)
        if fault:
            raise GenValError(
                f"{name} has {outputs} classes, numbered from 0, and the class map ({self.space.name}) {fault}."
            )

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (B, C, h, w) to float32 (B, 19, h, w)."""
        return merge_logits(logits.float(), self.parts)


def merge_logits(logits: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
    """Merge classes so that their probabilities add: a merged logit is the log-sum-exp of those of its parts.

    Args:
        logits: float (B, C, H, W).
        parts: of each merged class, the classes that it consists of; the logit of one without parts is `ABSENT`.

    Returns:
        The merged logits, float (B, len(parts), H, W).

    >>> merge_logits(torch.tensor([2.0, 3.0, 5.0]).log().view(1, 3, 1, 1), [[0, 2], [1]]).exp().round().flatten()
    tensor([7., 3.])
    """
    if all(len(members) == 1 for members in parts):  # the log-sum-exp of one logit is that logit
        return logits[:, [member for members in parts for member in members]]
    absent = torch.full_like(logits[:, 0], ABSENT)
    return torch.stack([logits[:, list(members)].logsumexp(1) if members else absent for members in parts], 1)


def check_outputs(name: str, outputs: int, class_map: ClassMap | None) -> None:
    """Raise GenValError unless a network of `outputs` classes gives the 19, itself or through the map."""
    if class_map is not None:
        class_map.check(name, outputs)
    elif outputs != NUM_CLASSES:
        hint = " (19 and a background as the last: --class_map cityscapes-20)" if outputs == NUM_CLASSES + 1 else ""
        raise GenValError(
            f"{name} has {outputs} classes, expected {NUM_CLASSES} (Cityscapes trainIds). "
            f"Give the meaning of its classes with --class_map: a JSON file of ids, or a label space's name{hint}."
        )


def find_class_map(name: str) -> ClassMap:
    """Find a class map by its name, or read it from a JSON file.

    Args:
        name: a key of `CLASS_MAPS`, in any case, or a file (relative: from the repository's root). The file holds a
            list of the outputs' names, or an object from outputs 0..255 to a class's name or trainId, or null for an
            output that is not evaluated. Names are in any case, with the synonyms of `train_id_of`. With the key
            "other", whose value is null, outputs that the object does not have are not evaluated.

    Raises:
        GenValError: there is no such map or file, or the content of the file is invalid.
    """
    if name.lower() in CLASS_MAPS:
        return ClassMap(CLASS_MAPS[name.lower()])
    path = resolve(name)
    if not path.is_file():
        known = f"expected a JSON file, or one of {', '.join(CLASS_MAPS)}"
        if "/" in name or Path(name).suffix:
            raise GenValError(f"--class_map: there is no file {path}: {known}.")
        raise GenValError(f"--class_map: unknown class map {name!r}.{suggestion(name, CLASS_MAPS)} {known}.")
    content = read_json(path)
    if isinstance(content, list):
        content = {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, dict):
        raise GenValError(f'{path}: expected {{"0": "road", ...}} or ["road", ...], found {type(content).__name__}.')
    others = "other" in content
    if content.pop("other", None) is not None:
        raise GenValError(f'{path}: "other" can only be null (not evaluated): name the outputs of a class one by one.')
    train_ids = {_output(key, path): _train_id(value, key, path) for key, value in content.items()}
    if set(train_ids.values()) <= {IGNORE}:
        raise GenValError(f"{path} names none of the 19 classes: {', '.join(CLASSES)}.")
    return ClassMap(_space(f"the ids of {path.name}", train_ids, range(_MOST) if others else train_ids))


def map_by_name(
    source: str, names: Sequence[str] | None, class_map: ClassMap | None, outputs: int | None = None
) -> ClassMap | None:
    """Return the class map that follows from the names of a network's classes.

    Args:
        source: where the names are, for errors and for what is printed.
        names: in the order of the outputs; None where the network has none.
        class_map: the user's, which has priority.
        outputs: number of outputs, where it is known.

    Returns:
        None where the network has the 19 in the order of the trainIds, or where nothing is known of its classes.

    Raises:
        GenValError: there is no class map, and a name is unknown, two outputs have the same class, or there are more or
            fewer names than outputs.
    """
    if class_map is not None or names is None or is_placeholder(names):
        return class_map
    remedy = "Give the meaning of each output with --class_map (trainids: the 19 in the order of Cityscapes)"
    if outputs not in (None, len(names)):
        raise GenValError(f"{source} names {len(names)} classes and has {outputs} outputs. {remedy}.")
    found = [train_id_of(name) for name in names]
    unknown = [name for name, train_id in zip(names, found, strict=True) if train_id is None]
    if unknown or len(names) > _MOST:
        shown = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise GenValError(f"{source} names {len(names)} classes; not among Cityscapes': {shown}. {remedy}.")
    train_ids = {output: train_id for output, train_id in enumerate(found) if train_id is not None}
    for train_id in range(NUM_CLASSES):
        same = [names[output] for output, other in train_ids.items() if other == train_id]
        if len(same) > 1:
            raise GenValError(f"{source} names the class {CLASSES[train_id]} more than once: {same}. {remedy}.")
    if list(train_ids.values()) == list(range(NUM_CLASSES)):
        return None
    absent = [name for train_id, name in enumerate(CLASSES) if train_id not in found]
    if len(absent) == NUM_CLASSES:
        raise GenValError(f"{source} names none of the 19 classes of Cityscapes: {', '.join(names[:8])}. {remedy}.")
    text = f"{source}: the {len(names)} outputs are mapped to the classes of Cityscapes by name"
    print_once(text + (f"; absent: {', '.join(absent)}" if absent else ""))
    return ClassMap(_space(f"the names in {source}", train_ids, train_ids))


def _space(name: str, train_ids: Mapping[int, int], known: Sequence[int] | range | Mapping[int, int]) -> LabelSpace:
    table, known_table = np.full(_MOST, IGNORE, np.uint8), np.zeros(_MOST, np.uint8)
    table[list(train_ids)] = list(train_ids.values())
    known_table[list(known)] = 1
    return LabelSpace(name, table, known_table, tuple(sorted(set(train_ids.values()) - {IGNORE})))


CLASS_MAPS: dict[str, LabelSpace] = {
    **LABEL_SPACES,
    "cityscapes-20": _space("the 19 and a background", {i: i for i in range(NUM_CLASSES)}, range(NUM_CLASSES + 1)),
}
"""Class maps by name: the label spaces of data sets, and the 20 outputs of Cityscapes models with background last."""


def _output(key: str, path: Path) -> int:
    if key not in map(str, range(_MOST)):
        raise GenValError(f'{path}: expected outputs 0..255 (or "other") as keys, found {key!r}.')
    return int(key)


def _train_id(value: Any, key: str, path: Path) -> int:
    if value is None:
        return IGNORE
    if type(value) is int and (0 <= value < NUM_CLASSES or value == IGNORE):
        return value
    train_id = train_id_of(value) if isinstance(value, str) else None
    if train_id is None:
        raise GenValError(
            f"{path}: output {key} is {value!r}, expected a trainId 0..18, null, or one of: {', '.join(CLASSES)}."
        )
    return train_id
