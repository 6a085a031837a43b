"""From a network's own classes to the 19 of Cityscapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genval.datasets.labels import CLASSES, IGNORE, LabelSpace
from genval.runtime.errors import GenValError

NUM_CLASSES = len(CLASSES)

ABSENT = -1e4
"""The logit of a class that the network does not know: a probability of exactly 0 at every temperature below 90, and,
unlike minus infinity, a number that half precision holds and an entropy survives."""


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

    def check(self, name: str, outputs: int) -> None:
        """Raise GenValError unless the map covers each of the `outputs` classes, and gives no other id a trainId."""
        unknown = [i for i in range(outputs) if not self.space.known[i]]
        beyond = [i for i in range(outputs, 256) if self.space.table[i] != IGNORE]
        if unknown or beyond:
            fault = f"does not contain {unknown[:8]}" if unknown else f"also names {beyond[:8]}"
            raise GenValError(
                f"{name} has {outputs} classes, numbered from 0, and the class map ({self.space.name}) {fault}."
            )

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (B, C, h, w) to float32 (B, 19, h, w)."""
        logits = logits.float()
        absent = torch.full_like(logits[:, 0], ABSENT)
        merged = [logits[:, parts].logsumexp(1) if parts else absent for parts in self.parts]
        return torch.stack(merged, 1)


def check_outputs(name: str, outputs: int, class_map: ClassMap | None) -> None:
    """Raise GenValError unless a network of `outputs` classes gives the 19, itself or through the map."""
    if class_map is not None:
        class_map.check(name, outputs)
    elif outputs != NUM_CLASSES:
        raise GenValError(
            f"{name} has {outputs} classes, expected {NUM_CLASSES} (Cityscapes trainIds). "
            "Give the meaning of its classes with --class_map: a JSON file of ids, or a label space's name."
        )
