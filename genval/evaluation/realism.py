"""How far a generated set is from unlabelled images of its condition: CMMD, before anything is labelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.datasets.reading import read_image
from genval.metrics.mmd import Discrepancy, cmmd_kernel, squared_mmd
from genval.runtime.errors import GenValError
from genval.runtime.progress import progress_bar

if TYPE_CHECKING:
    from genval.captions.clip import Clip

REALISM = "realism.json"
FEWEST_IMAGES = 16
"""With fewer images on a side, the distance says little; the interval does not show this."""
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Realism:
    """CMMD of a generated set to unlabelled images of its condition; smaller is nearer.

    Attributes:
        reference: the folder of the unlabelled images.
        reference_images: their number.
        images: number of generated images.
        clip: the model that embeds the images.
        distance: of the generated images.
        clear_distance: of the clear originals, for comparison; None where the generator saved none.
    """

    reference: str
    reference_images: int
    images: int
    clip: str
    distance: Discrepancy
    clear_distance: Discrepancy | None

    def to_json(self) -> dict[str, Any]:
        """Return the content of `realism.json`."""
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """Describe the distances in one sentence."""
        text = f"CMMD to {self.reference_images} images of {self.reference}: {_text(self.distance)}"
        return text + (f"; of the clear originals: {_text(self.clear_distance)}" if self.clear_distance else "")


def measure_realism(
    images: Sequence[Path], originals: Sequence[Path], reference: Sequence[Path], name: str, clip: Clip, workers: int
) -> Realism:
    """Measure the CMMD of generated images, and of their clear originals, to unlabelled images.

    Args:
        images: the generated images.
        originals: the clear images that they were made from, or none.
        reference: the unlabelled images.
        name: of the reference, as the user gave it.
        clip: embeds the images, on its device.
        workers: threads that decode images.

    Raises:
        GenValError: there are fewer than 16 generated images, or an image cannot be read.
    """
    if len(images) < FEWEST_IMAGES:
        raise GenValError(
            f"The generated set has {len(images)} images: its distance to --reference needs at least {FEWEST_IMAGES}. "
            "Generate more, or leave out --reference."
        )
    target = embed(reference, clip, workers)
    distance = squared_mmd(embed(images, clip, workers), target, cmmd_kernel)
    clear = squared_mmd(embed(originals, clip, workers), target, cmmd_kernel) if len(originals) > 1 else None
    return Realism(name, len(reference), len(images), clip.name, distance, clear)


def embed(paths: Sequence[Path], clip: Clip, workers: int) -> np.ndarray:
    """Return the normalised CLIP embeddings of image files, float32 (N, D)."""
    vectors = []
    with ThreadPoolExecutor(max(1, workers)) as pool, progress_bar(len(paths), "embedding") as bar:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            inputs = list(pool.map(lambda path: clip.prepare(read_image(path)), batch))
            vectors.append(clip.encode_prepared(inputs).numpy())
            bar.update(len(batch))
    return np.concatenate(vectors)


def _text(distance: Discrepancy) -> str:
    return f"{distance.value:.3f} ({distance.low:.3f} to {distance.high:.3f})"
