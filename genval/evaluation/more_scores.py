"""Anomaly scores that need more than a pixel's logits: RbA, distances of features to known pixels, and ODIN.

Features are the last map of the backbone (`genval.segmenters.features`). They are compared at their own resolution, and
distances are resized to the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.artifacts.tensors import read_about, write_part
from genval.datasets import Item, read_pair
from genval.datasets.labels import CLASSES, IGNORE
from genval.metrics.ood_features import (
    NEIGHBOURS,
    ODIN_STEP,
    ODIN_TEMPERATURE,
    FeatureSums,
    mahalanobis,
    neighbour_distance,
    odin_score,
    spread,
)
from genval.metrics.ood_scores import rejected_by_all
from genval.runtime.errors import GenValError
from genval.segmenters.base import Segmenter
from genval.segmenters.features import find_layer, last_map

if TYPE_CHECKING:
    from collections.abc import Mapping

FEATURE_SCORES = ("mahalanobis", "knn")
_PIXELS_PER_IMAGE = 256  # of the bank of neighbours


class MoreScores:
    """Computes further scores of a batch after its forward pass.

    Args:
        names: some of `genval.kernels.layout.MORE_SCORES`.
        segmenter: on its device.
        known: from `fit_known`; needed for `FEATURE_SCORES`.

    Raises:
        GenValError: the segmenter gives logits only.
    """

    def __init__(self, names: Sequence[str], segmenter: nn.Module, known: Mapping[str, Tensor] | None) -> None:
        self.names, self.segmenter, self.known = tuple(names), segmenter, known
        check_scores(names, segmenter)

    @property
    def record(self) -> dict[str, Any]:
        """Everything that decides about the scores besides segmenter and image, as JSON values."""
        values: dict[str, Any] = {"scores": list(self.names)}
        if "odin" in self.names:
            values["odin"] = [ODIN_TEMPERATURE, ODIN_STEP]
        if self.known is not None:
            digest = hashlib.blake2b(digest_size=8)
            for name in sorted(self.known):
                digest.update(self.known[name].cpu().numpy().tobytes())
            values["known"] = digest.hexdigest()
        return values

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """Compute the scores.

        Args:
            images: uint8 (B, 3, H, W), RGB.
            logits: (B, C, h, w) at the size of the labels.

        Returns:
            float32 (B, scores, h, w).
        """
        size = logits.shape[-2:]
        features = pixel_features(self.segmenter, images) if set(self.names) & set(FEATURE_SCORES) else None
        found = []
        for name in self.names:
            if name == "rba":
                scores = rejected_by_all(logits.float().transpose(0, 1), getattr(self.segmenter, "of_queries", False))
            elif name == "odin":
                scores = odin(self.segmenter, images, size)
            else:
                assert features is not None
                scores = self._distances(name, features, size)
            found.append(scores)
        return torch.stack(found, 1)

    def _distances(self, name: str, features: Tensor, size: tuple[int, ...]) -> Tensor:
        assert self.known is not None
        flat = features.transpose(0, 1).flatten(1)
        if name == "mahalanobis":
            distances = mahalanobis(flat, self.known["means"], self.known["whitening"])
        else:
            distances = neighbour_distance(flat, self.known["bank"])
        maps = distances.view(len(features), 1, *features.shape[-2:])
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]


def check_scores(names: Sequence[str], segmenter: nn.Module) -> None:
    """Check that scores can be computed from a segmenter.

    Raises:
        GenValError: it gives logits only, and a score needs its features or gradients.
    """
    needing = [name for name in names if name != "rba"]
    if needing and not isinstance(segmenter, Segmenter):
        raise GenValError(f"--scores {needing[0]}: {getattr(segmenter, 'name', 'the segmenter')} gives logits only.")
    if set(names) & set(FEATURE_SCORES):
        find_layer(segmenter)
    if "odin" in names and (segmenter.definition is None or not any(True for _ in segmenter.parameters())):
        raise GenValError(
            f"--scores odin: {segmenter.name} gives no gradients of its input. Give the network itself: mmseg:, "
            "hf:, torchvision: or smp:."
        )


@contextmanager
def _last_output(segmenter: nn.Module) -> Iterator[list[Tensor]]:
    """The last map of the backbone in each forward pass of the block, in a list."""
    maps: list[Tensor] = []
    handle = find_layer(segmenter).register_forward_hook(lambda module, inputs, output: maps.append(last_map(output)))
    try:
        yield maps
    finally:
        handle.remove()


def pixel_features(segmenter: nn.Module, images: Tensor) -> Tensor:
    """Return the backbone's features of images, in one pass over each.

    Args:
        segmenter: a `Segmenter`.
        images: uint8 (B, 3, H, W).

    Returns:
        float32 (B, D, h, w), of the images without padding.

    Raises:
        GenValError: the backbone gives no feature maps.
    """
    assert isinstance(segmenter, Segmenter)
    with torch.no_grad(), _last_output(segmenter) as maps:
        resized = segmenter.resize(images)
        segmenter.crop_logits(resized)
    if not maps or maps[-1].ndim != 4 or len(maps[-1]) != len(images):
        raise GenValError(f"{segmenter.name} has no feature maps (B, channels, h, w): leave out {FEATURE_SCORES}.")
    features = maps[-1].float()
    # The padding is at the bottom and the right.
    padded = segmenter.pad(resized[:1, :1].float()).shape[-2:]
    height, width = (
        max(1, round(length * inside / whole))
        for length, inside, whole in zip(features.shape[-2:], resized.shape[-2:], padded, strict=True)
    )
    return features[..., :height, :width]


def odin(segmenter: nn.Module, images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Compute the score `odin` of images, float32 (B, *size): two forward passes and a backward pass."""
    assert isinstance(segmenter, Segmenter)
    with torch.inference_mode(False), torch.enable_grad():
        pixels = segmenter.prepare(segmenter.resize(images.clone())).detach().requires_grad_(True)
        logits = _mapped(segmenter, pixels)
        confidence = (logits / ODIN_TEMPERATURE).log_softmax(1).amax(1).sum()
        (gradient,) = torch.autograd.grad(confidence, pixels)
        changed = pixels + ODIN_STEP * gradient.sign()
    with torch.no_grad():
        scores = odin_score(_mapped(segmenter, changed.detach()))[:, None]
    return F.interpolate(scores, size, mode="bilinear", align_corners=segmenter.align_corners)[:, 0]


def _mapped(segmenter: Segmenter, pixels: Tensor) -> Tensor:
    logits = Segmenter.infer(segmenter, pixels)
    return segmenter.class_map(logits) if segmenter.class_map is not None else logits.float()


def fit_known(
    segmenter: nn.Module, items: Sequence[Item], device: torch.device, path: Path, record: Mapping[str, Any]
) -> None:
    """Fit class means, a covariance and a bank of neighbours to labelled images, and write them.

    Args:
        segmenter: on `device`.
        items: labelled images of known classes.
        device: of the segmenter.
        path: the file; nothing is done where it has this record.
        record: everything that decides about the content.

    Raises:
        GenValError: an image is bad, or the backbone gives no feature maps.
    """
    if path.exists() and read_about(path) == dict(record):
        return
    total: FeatureSums | None = None
    bank = []
    for item in items:
        image, train_ids = read_pair(item)
        tensor = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
        features = pixel_features(segmenter, tensor)[0]
        labels = torch.from_numpy(train_ids).to(device)[None, None].float()
        labels = F.interpolate(labels, features.shape[-2:], mode="nearest")[0, 0].long().flatten()
        known = labels != IGNORE
        flat = features.flatten(1)[:, known]
        measured = FeatureSums.measure(flat, labels[known], len(CLASSES))
        total = measured if total is None else total + measured
        bank.append(F.normalize(flat.T)[spread(flat.shape[1], _PIXELS_PER_IMAGE)])
    if total is None:
        raise GenValError("--known: there are no images to fit features to.")
    means, whitening = total.gaussians()
    arrays = {"means": means, "whitening": whitening, "bank": torch.cat(bank)}
    write_part(path, {name: value.cpu().numpy() for name, value in arrays.items()}, record)


def read_known(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read what `fit_known` wrote, onto a device."""
    from safetensors.torch import load_file

    return {name: value.to(device) for name, value in load_file(path).items()}


def known_record() -> dict[str, Any]:
    """The settings of `fit_known` that decide about its result."""
    return {"pixels_per_image": _PIXELS_PER_IMAGE, "neighbours": NEIGHBOURS}
