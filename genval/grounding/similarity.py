"""CLIP similarity of an image with the name of its object and with the names of the scene's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from genval.datasets.labels import CLASSES

_PROMPT = "a photo of a {}"


class Encoder(Protocol):
    """The interface of a CLIP model."""

    @property
    def hash(self) -> str: ...

    def encode_images(self, images: Sequence[np.ndarray]) -> Tensor: ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor: ...


class Similarity:
    """Cosine similarity of images with an object's name and with the names of the scene's classes.

    Args:
        encoder: returns normalised float32 (N, D) embeddings.
        scene_names: names of the classes in a street scene.
    """

    def __init__(self, encoder: Encoder, scene_names: Sequence[str] = CLASSES) -> None:
        self._encoder = encoder
        self._scene_names = list(scene_names)
        self._scene = encoder.encode_texts([_PROMPT.format(name) for name in self._scene_names])
        self._objects: dict[str, Tensor] = {}

    @property
    def hash(self) -> str:
        """Of the encoder's weights."""
        return self._encoder.hash

    def __call__(self, images: Sequence[np.ndarray], name: str) -> list[dict[str, Any]]:
        """Compare RGB uint8 (H, W, 3) images with the object `name` and the scene.

        Returns:
            For each image `object`, the cosine similarity with the object's name; `scene`, the highest one with a name
            of the scene; and `scene_name`, that name. A scene name that equals the object's name is left out.
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
