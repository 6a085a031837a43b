"""What detectors give, and what the masking stage needs of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Detection:
    """A detected box and its score.

    Attributes:
        box: left, top, right, bottom in pixels of the image.
        score: the largest probability of the phrase's tokens, 0..1.
        phrase: the tokens with a probability above the text threshold; may be empty.
        mask: of the object, bool (H, W) of the image, from models that detect and segment at once.
    """

    box: tuple[float, float, float, float]
    score: float
    phrase: str
    mask: np.ndarray | None = None


class ObjectDetector(Protocol):
    """Detects objects by name.

    Attributes:
        hash: of the weights, as they were loaded.
    """

    @property
    def hash(self) -> str: ...

    def to(self, device: torch.device | str) -> ObjectDetector:
        """Move the model to a device; return itself."""
        ...

    def prepare(self, image: np.ndarray) -> Any:
        """Convert an RGB uint8 (H, W, 3) image to an input of `detect`; called by several threads."""
        ...

    def detect(
        self,
        inputs: Sequence[Any],
        sizes: Sequence[tuple[int, int]],
        text: str,
        box_threshold: float,
        text_threshold: float,
        nms_threshold: float,
    ) -> list[list[Detection]]:
        """Detect the objects that `text` names in each image; return them by descending score.

        Args:
            inputs: of `prepare`.
            sizes: height and width of each image before `prepare`, in pixels.
            text: one or more names, separated by " . "; case is ignored.
            box_threshold: minimum score of a box.
            text_threshold: minimum probability of the text in a box's phrase.
            nms_threshold: if two boxes overlap by more than this (IoU), only the one with the higher score is kept.
        """
        ...


def split_names(text: str) -> list[str]:
    """The names in a text, in lower case.

    >>> split_names("Lion . polar bear.")
    ['lion', 'polar bear']
    """
    return [name.strip() for name in text.lower().split(".") if name.strip()]


def select_boxes(
    scores: Tensor,
    boxes: Tensor,
    labels: Sequence[str],
    size: tuple[int, int],
    box_threshold: float,
    text_threshold: float,
    nms_threshold: float,
) -> tuple[list[int], list[Detection]]:
    """Return the detections of one image by descending score, and their numbers among the queries.

    Args:
        scores: (Q,), 0..1.
        boxes: (Q, 4), left, top, right, bottom in pixels.
        labels: of each query, its name.
        size: height and width of the image.
        box_threshold, text_threshold, nms_threshold: as of `ObjectDetector.detect`; a score is that of the text, too.
    """
    from torchvision.ops import clip_boxes_to_image, nms

    kept = (scores > box_threshold).nonzero()[:, 0]
    corners = clip_boxes_to_image(boxes[kept], size)
    numbers = kept[nms(corners, scores[kept], nms_threshold)].tolist()
    clipped = clip_boxes_to_image(boxes, size)
    detections = []
    for number in numbers:
        left, top, right, bottom = clipped[number].tolist()
        score = float(scores[number])
        detections.append(
            Detection((left, top, right, bottom), score, labels[number] if score > text_threshold else "")
        )
    return numbers, detections
