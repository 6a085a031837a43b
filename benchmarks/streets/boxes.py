"""Measure segmenters on photos that have boxes instead of masks: the share of each object's box predicted as such.

Classes are car, truck, bus and person (which a rider is too). A box also holds background, so that no segmenter reaches
1. Predicting a class everywhere would; the share of the pixels outside of all boxes that are predicted as one of the
classes is therefore measured too.

Reads:  DATASETS_DIR/dawn/{condition}/*.jpg and dawn/boxes.json (benchmarks/streets/prepare.py), PUBLISHED, OWN
Writes: OUTPUT_DIR/{segmenter}.json: of each photo, [class, pixels, pixels predicted as it] of each box, and pixels
        outside of boxes, and those predicted as an object. Segmenters whose file was made from the same network,
        photos and boxes are skipped.

    python benchmarks/streets/boxes.py --accelerator cuda --batch_size 16
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from evaluate import digest
from models import find_models, short_name

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    import numpy as np

PREDICTED_AS = {"car": (13,), "truck": (14,), "bus": (15,), "person": (11, 12)}
"""The trainIds that a box's class may be predicted as."""
SMALLEST = 100
"""Pixels of the smallest box that counts: 10 x 10."""


@dataclass(frozen=True, kw_only=True)
class BoxSettings:
    """Settings of benchmarks/streets/boxes.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/boxes"

    published: str = flag("checkpoints/streets/published", "folder of the exported networks")
    own: str = flag("checkpoints/streets/segmenters", "folder of the segmenters of the recipe")
    segmenters: tuple[str, ...] | None = flag(None, "only those of these short names", type=comma_list)
    datasets_dir: str = flag("datasets/streets", "folder of the prepared sets")
    output_dir: str = flag("results/streets/boxes", "folder of the counts")
    batch_size: int = flag(8, "photos per forward pass", type=positive_int)
    accelerator: str = flag("cpu", "torch device: cuda, cuda:1 or cpu")
    preset: str | None = None


def main(settings: BoxSettings) -> None:
    import numpy as np
    import torch

    from genval.artifacts.fingerprint import current_mark
    from genval.datasets.reading import read_image
    from genval.runtime.files import read_json, write_json
    from genval.segmenters import load_segmenter
    from genval.segmenters.identity import model_identity
    from genval.segmenters.prediction import predict

    folder, output = resolve(settings.datasets_dir) / "dawn", resolve(settings.output_dir)
    if not (folder / "boxes.json").is_file():
        raise GenValError(f"{folder}/boxes.json is missing. Run benchmarks/streets/prepare.py.")
    boxes: dict[str, list[Any]] = read_json(folder / "boxes.json")
    names = list(boxes)
    photos = np.stack([read_image(folder / name) for name in names])
    marks = [current_mark(folder / name) for name in names]
    device = torch.device(settings.accelerator)
    for model, size in find_models(settings.published, settings.own, settings.segmenters).items():
        target = output / f"{short_name(model)}.json"
        segmenter = load_segmenter(model, device, input_size=size)
        made_from = digest([model_identity(segmenter), boxes, *marks]).tobytes().hex()
        if target.exists() and read_json(target, dict[str, Any]).get("made_from") == made_from:
            continue
        counted: dict[str, Any] = {}
        for start in range(0, len(names), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            predictions = predict(segmenter, photos[part], names[part], device)
            for name, prediction in zip(names[part], predictions, strict=True):
                counted[name] = count(prediction, boxes[name])
        write_json(target, {"model": model, "made_from": made_from, "photos": counted})
        print(f"{short_name(model)}: mean share {100 * mean_share(counted):.1f} %", flush=True)
    print(f"wrote {settings.output_dir}/{{segmenter}}.json")


def count(prediction: np.ndarray, boxes: list[Any]) -> dict[str, Any]:
    """Count the pixels of a photo's boxes that are predicted as their class, and objects outside of all boxes.

    Args:
        prediction: trainIds, uint8 (H, W).
        boxes: [class, x0, y0, x1, y1] in pixels; classes other than those of `PREDICTED_AS` only hide their pixels.
    """
    import numpy as np

    outside = np.ones(prediction.shape, bool)
    found = []
    for name, x0, y0, x1, y1 in boxes:
        inside = prediction[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))]
        outside[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = False
        if name in PREDICTED_AS and inside.size >= SMALLEST:
            found.append([name, inside.size, int(np.isin(inside, PREDICTED_AS[name]).sum())])
    objects = [train_id for train_ids in PREDICTED_AS.values() for train_id in train_ids]
    return {
        "boxes": found,
        "outside": int(outside.sum()),
        "outside_objects": int(np.isin(prediction[outside], objects).sum()),
    }


def mean_share(photos: dict[str, Any]) -> float:
    """Return the mean, over boxes, of the share of a box that is predicted as its class; NaN without a box."""
    shares = [hits / pixels for photo in photos.values() for _, pixels, hits in photo["boxes"]]
    return sum(shares) / len(shares) if shares else float("nan")


if __name__ == "__main__":
    cli.run(main, BoxSettings, __doc__)
