"""Convert a small copy of Cityscapes to the layout of Cityscapes, which every other script reads.

Reads:  {data_dir}/{split}/*.jpg: pairs of pix2pix, a photo and its colour mask side by side in one file; or images
        with a mask of trainIds, {id}_labelTrainIds.png
Writes: {output_dir}/cityscapes/{leftImg8bit,gtFine}/{split}/{split}/ and {output_dir}/derived.json

    python relis/prepare_cityscapes.py --data_dir datasets/pix2pix/cityscapes --output_dir datasets/cityscapes_small

Pixels whose colour is not that of a class are unlabelled, class edges among them. These copies do not name the cities.
Evaluate with relis/eval.py --trg_dataset Cityscapes --datasets_dir {output_dir}.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

try:
    from genval.datasets.settings import SmallCityscapesSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


def main(settings: SmallCityscapesSettings) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial

    from genval.datasets.small_cityscapes import find_files
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve
    from genval.runtime.progress import progress_bar

    data_dir, output_dir = resolve(settings.data_dir), resolve(settings.output_dir)
    by_split = {split: find_files(data_dir / split) for split in settings.splits}
    for split, paths in by_split.items():
        refuse_others(output_dir, split, paths)
    write_json(output_dir / "derived.json", {"made_by": SmallCityscapesSettings.SCRIPT})
    for split, paths in by_split.items():
        convert_one = partial(convert, output_dir=output_dir, split=split, stretch=settings.stretch)
        with progress_bar(len(paths), split) as bar, ThreadPoolExecutor(settings.num_workers) as pool:
            labelled = 0.0
            for share in pool.map(convert_one, paths):
                labelled += share
                bar.update()
        print(f"{split}: wrote {len(paths)} images, {100 * labelled / len(paths):.1f} % of the pixels have a class")


def refuse_others(output_dir: Path, split: str, paths: list[Path]) -> None:
    """Refuse to mix the images with those of another conversion."""
    from genval.runtime.errors import GenValError

    suffix = "_leftImg8bit.png"
    written = (output_dir / f"cityscapes/leftImg8bit/{split}/{split}").glob(f"[!.]*{suffix}")
    others = sorted({path.name.removesuffix(suffix) for path in written} - {path.stem for path in paths})
    if others:
        raise GenValError(
            f"{output_dir} also holds {len(others)} other images of {split}, such as {others[0]}. Delete the folder, "
            "or give another --output_dir."
        )


def convert(path: Path, output_dir: Path, split: str, stretch: bool) -> float:
    """Write one image and its mask; return the share of its pixels that have a class."""
    import numpy as np

    from genval.datasets.labels import CITYSCAPES, IGNORE
    from genval.datasets.small_cityscapes import read_small
    from genval.runtime.files import write_png

    image, label_ids = read_small(path)
    if stretch:
        image, label_ids = stretched(image), np.repeat(label_ids, 2, 1)
    name = f"{split}/{split}/{path.stem}"
    write_png(output_dir / f"cityscapes/gtFine/{name}_gtFine_labelIds.png", label_ids)
    write_png(output_dir / f"cityscapes/leftImg8bit/{name}_leftImg8bit.png", image)
    return float(np.mean(CITYSCAPES.table[label_ids] != IGNORE))


def stretched(image: np.ndarray) -> np.ndarray:
    """Double the width of an image, RGB uint8 (H, W, 3), by bilinear interpolation."""
    import cv2

    return cv2.resize(image, (2 * image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)


if __name__ == "__main__":
    cli.run(main, SmallCityscapesSettings, __doc__)
