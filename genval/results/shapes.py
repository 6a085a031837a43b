"""The shapes of the JSON files of results, for `genval.runtime.files.read_json` and `read_jsonl`."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from genval.runtime.paths import expected_inside


def expected_even(rows: list[list[float]]) -> str | None:
    """What was expected of a matrix whose rows have different lengths; None for others."""
    return None if len({len(row) for row in rows}) <= 1 else "rows of one length"


def expected_counts(rows: list[list[int]]) -> str | None:
    """What was expected of a matrix that is not square or has negative entries; None for others."""
    is_square = bool(rows) and all(len(row) == len(rows) for row in rows)
    return None if is_square and min(map(min, rows)) >= 0 else "a square matrix of counts"


class ImageLine(TypedDict):
    """A line of a scene's `manifest.jsonl`."""

    id: Annotated[str, expected_inside]
    model: NotRequired[str]
    identity: NotRequired[str]
    precision: NotRequired[str]
    image: NotRequired[str]
    image_mark: NotRequired[str]
    mask: NotRequired[str]
    mask_mark: NotRequired[str]
    class_groups: NotRequired[dict[str, list[str]]]


class ImageStatistics(TypedDict):
    """`statistics/{id}.json`: the confusion matrix of an image, (C, C)."""

    confusion_matrix: Annotated[list[list[int]], expected_counts]


class SavedSettings(TypedDict):
    """`settings.json`, for readers that repeat its flags."""

    settings: dict[str, Any]


class SceneSummary(TypedDict):
    """`metrics.json` of a scene, for readers that need what it covers."""

    images: NotRequired[int]
    limit: NotRequired[int | None]
    split: NotRequired[str | None]
    gate_mark: NotRequired[str | None]


class SceneModel(TypedDict):
    """`metrics.json` of a scene, for readers that need the name of its model."""

    model: str


class SceneSize(TypedDict):
    """`metrics.json` of a scene, for readers that need its number of images."""

    images: int
    skipped: list[Any]


class Temperatures(TypedDict):
    """`best_temperatures.json`: one temperature per cluster, or per cluster and class."""

    temperatures: list[float] | Annotated[list[list[float]], expected_even]


class MaxLogitSums(TypedDict):
    """`max_logits/{segmenter}.json`: sums over the pixels that are predicted as each class."""

    pixels: list[int]
    sums: list[float]
    squares: list[float]


class BlockLine(TypedDict):
    """A line of `blocks/{block}.jsonl` of an evaluation of OOD detection."""

    made_from: ImageLine
    image: NotRequired[str]
    object: NotRequired[str]
    pixels: NotRequired[dict[str, int]]
    entropy_sums: NotRequired[list[float]]
    raw_entropy: NotRequired[float | None]
    rel_entropy: NotRequired[float | None]
    figures: NotRequired[dict[str, dict[str, float | None]]]
