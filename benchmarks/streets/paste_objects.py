"""Paste drawn objects on the road of real streets: a set with unknown objects that needs no generative model.

The objects are the emoji of the mini world (mini/world/sprites), which are drawings. Each frame gets one, on a random
place of its road, higher the nearer it is. The set stands in for generated objects, and is called `pasted`.

Reads:  DATASETS_DIR/cityscapes, the frames of --scenes
Writes: DATASETS_DIR/pasted/{images,masks}/{frame}.png (masks: 0 street, 1 object, 255 void) and objects.json

    python benchmarks/streets/paste_objects.py
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed
from genval.runtime.settings import comma_list, seed_flag

if TYPE_CHECKING:
    import numpy as np

ROAD = 0
HORIZON = 0.45
"""The row of the horizon, as a fraction of the height: the camera of Cityscapes looks almost straight ahead."""
HEIGHTS = (0.3, 1.0)
"""Heights of objects, as fractions of the distance of their foot from the horizon, which is the camera's height above
the road there."""


@dataclass(frozen=True, kw_only=True)
class PasteSettings:
    """Settings of benchmarks/streets/paste_objects.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/paste_objects"

    datasets_dir: str = flag("datasets/streets", "folder of the prepared sets")
    scenes: tuple[str, ...] = flag(
        ("val00", "val04", "val08", "val12", "val16"), "scenes whose frames get an object", type=comma_list
    )
    seed: int = seed_flag()
    preset: str | None = None


def main(settings: PasteSettings) -> None:
    from genval.datasets import find_items
    from genval.datasets.reading import read_pair
    from genval.runtime.files import write_json, write_png
    from mini.world.objects import object_names

    root = resolve(settings.datasets_dir) / "cityscapes"
    items = [item for item in find_items("Cityscapes", root=root) if item.scene in settings.scenes]
    folder = resolve(settings.datasets_dir) / "pasted"
    names = object_names()
    pasted = {}
    for item in items:
        rng = random.Random(item_seed(settings.seed, item.id))
        image, train_ids = read_pair(item)
        name = rng.choice(names)
        result = paste(image, train_ids, name, rng)
        if result is None:
            continue
        pasted[item.id] = name
        write_png(folder / "images" / f"{item.id}.png", result[0])
        write_png(folder / "masks" / f"{item.id}.png", result[1])
    write_json(folder / "objects.json", pasted)
    print(f"wrote {len(pasted)} of {len(items)} images to {folder}")


def paste(
    image: np.ndarray, train_ids: np.ndarray, name: str, rng: random.Random
) -> tuple[np.ndarray, np.ndarray] | None:
    """Paste an object on the road.

    Args:
        image: RGB uint8 (H, W, 3).
        train_ids: its labels, uint8 (H, W).
        name: of the object.
        rng: chooses place and height.

    Returns:
        The image and the mask, uint8 (H, W); None without a road that is wide enough.
    """
    import numpy as np

    from mini.world.objects import scaled_sprite

    rows, columns = np.nonzero(train_ids == ROAD)
    horizon = HORIZON * len(image)
    near = rows > horizon + 0.08 * len(image)
    if near.sum() < 100:
        return None
    index = rng.randrange(int(near.sum()))
    foot, middle = int(rows[near][index]), int(columns[near][index])
    height = max(6, round(rng.uniform(*HEIGHTS) * (foot - horizon)))
    small = scaled_sprite(name, height)
    width = small.shape[1]
    top, left = foot - height, middle - width // 2
    # What lies outside of the frame is cut.
    y, x = slice(max(top, 0), foot), slice(max(left, 0), min(left + width, image.shape[1]))
    small = small[y.start - top :, x.start - left : x.stop - left]
    alpha = small[..., 3:] / 255
    result, mask = image.copy(), np.where(train_ids == 255, 255, 0).astype(np.uint8)
    result[y, x] = np.round(alpha * small[..., :3] + (1 - alpha) * image[y, x]).astype(np.uint8)
    mask[y, x][alpha[..., 0] >= 0.5] = 1
    return result, mask


if __name__ == "__main__":
    cli.run(main, PasteSettings, __doc__)
