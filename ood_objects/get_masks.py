"""Mask inpainted objects: GroundingDINO detects the object by its name, Segment Anything segments it.

Reads:  images/ood_objects/refined/{object}/{i}.png and images/ood_objects/with_positions/{object}/{i}_pos.json
Writes: images/ood_objects/masks/{object}/{i}_mask.png (0 and 255, the whole frame), or {i}_mask.txt with the reason
        where nothing was detected; manifest.jsonl, one line per image: all detections, the chosen one, and how good the
        mask is; settings.json. With --curate: {object}/sheet.png and curated.json, for a person to choose.
        The mask is that of the highest-scoring detection that names the object. Run the same command again to resume.

    python ood_objects/get_masks.py --detector groundingdino_swint_ogc.pth --sam sam_vit_h_4b8939.pth
"""

from __future__ import annotations

import sys

try:
    from genval.grounding.settings import MaskSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: MaskSettings) -> None:
    from genval.grounding.masks import check_models, find_images, mask_objects
    from genval.runtime.startup import launch

    if settings.run.dry_run:
        images = find_images(settings)
        check_models(settings)
        print(f"Would mask {len(images)} objects: {', '.join(dict.fromkeys(image.object for image in images))}")
        return
    done = mask_objects(settings, start=launch)
    if done is None:  # another process reports
        return
    if settings.curate:
        print(f"Wrote {len(done.sheets)} contact sheets; choose true or false in {done.folder / 'curated.json'}")
    print(f"Wrote {done.masks} masks to {done.folder} ({done.written} images new); {done.absent} without an object")


if __name__ == "__main__":
    cli.run(main, MaskSettings, __doc__)
