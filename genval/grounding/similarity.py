"""Whether an image shows what it should, by CLIP: nearer to the object's name than to the names of the scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from genval.datasets.labels import CLASSES

_PROMPT = "a photo of a {}"


class Encoder(Protocol):
    """What is asked of a CLIP model."""

    @property
    def hash(self) -> str: ...

    def encode_images(self, images: Sequence[np.ndarray]) -> Tensor: ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor: ...


class Similarity:
    """Cosines of images with an object's name and with the names of the scene's classes.

    Args:
        encoder: gives float32 (N, D) vectors of length 1.
        scene_names: what a street shows without the object.
    """

    def __init__(self, encoder: Encoder, scene_names: Sequence[str] = CLASSES) -> None:
        self.hash = encoder.hash
        self._encoder = encoder
        self._scene_names = list(scene_names)
        self._scene = encoder.encode_texts([_PROMPT.format(name) for name in self._scene_names])
        self._objects: dict[str, Tensor] = {}

    def __call__(self, images: Sequence[np.ndarray], name: str) -> list[dict[str, Any]]:
        """Of each RGB uint8 (H, W, 3) image: `object` and `scene`, the cosines with the object's name and with the
        nearest of the scene's names, and `scene_name`.

        A scene name that is the object's own is left out.
        """
        if not images:
            return []
        if name not in self._objects:
            self._objects[name] = self._encoder.encode_texts([_PROMPT.format(name)])
        vectors = self._encoder.encode_images(images)
        others = [index for index, scene in enumerate(self._scene_names) if scene != name.lower()]
        to_object = (vectors @ self._objects[name].T)[:, 0]
        to_scene, nearest = (vectors @ self._scene[others].T).max(dim=1)
        return [
            {"object": float(mine), "scene": float(theirs), "scene_name": self._scene_names[others[int(index)]]}
            for mine, theirs, index in zip(to_object, to_scene, nearest, strict=True)
        ]
