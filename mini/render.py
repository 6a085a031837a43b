"""Render the mini world's data sets: streets with labels and captions, laid out like the real sets.

Reads:  nothing.
Writes: --output_dir, with cityscapes/ (clear), acdc/ (fog, night, rain, snow), IDD_Segmentation/ (india), a caption
        of every image in captions/captions_{set}.json, the captioned clear pairs in training/{train,val}.jsonl, and the
        training images of every domain in training/diffusion.jsonl, where the caption names the weather too.
        The domain "objects" (rendered only if named) is dataset_AnomalyTrack/, in the layout of SegmentMeIfYouCan's
        RoadAnomaly21: --num_val clear streets with objects. --training_objects writes more of these, with what is
        needed to learn from them, to training/objects/, listed in training/objects.jsonl.
        Run the same command again to resume.

    python mini/render.py --num_train 2000 --num_val 200
"""

from __future__ import annotations

import sys

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from genval.runtime.paths import resolve
from mini.world.dataset import (
    OBJECTS,
    SPLITS,
    Target,
    check_size,
    plan,
    read_captions,
    render_all,
    write_captions,
    write_training_lists,
)
from mini.world.object_sets import render_test_set, render_training_set
from mini.world.settings import RenderSettings


def main(settings: RenderSettings) -> None:
    from genval.runtime.locks import lock_folders

    target = Target(resolve(settings.output_dir), settings.height, settings.width, settings.overwrite)
    check_size(target)
    with lock_folders([target.out]):
        written, asked = render(settings, target)
    print(f"Rendered {written} images, kept {asked - written}, in {target.out}: {', '.join(settings.domains)}")


def render(settings: RenderSettings, target: Target) -> tuple[int, int]:
    """Render what is missing; return the numbers of new images and of all that were asked for."""
    from genval.runtime.files import remove_leftovers, write_json

    remove_leftovers(target.out)
    counts = {"train": settings.num_train, "val": settings.num_val}
    domains = [domain for domain in settings.domains if domain != OBJECTS]
    jobs = [job for domain in domains for split in SPLITS for job in plan(domain, split, counts[split])]
    # The size is written first: a killed run leaves images of one size, and the next one must know which.
    write_json(
        target.out / "derived.json", {"made_by": "mini/render.py", "height": settings.height, "width": settings.width}
    )

    captions = read_captions(target.out, domains)
    missing = [
        job
        for job in jobs
        if settings.overwrite
        or job.image not in captions
        or not all((target.out / path).exists() for path in (job.image, job.mask))
    ]
    new, written = render_all(missing, target, settings.num_workers)
    captions |= new
    write_captions(target.out, domains, captions)
    write_training_lists(target.out)
    asked = len(jobs) + settings.training_objects
    if OBJECTS in settings.domains:
        asked += settings.num_val
        written += render_test_set(settings.num_val, target, settings.num_workers, settings.objects)
    if settings.training_objects:
        written += render_training_set(settings.training_objects, target, settings.num_workers)
    return written, asked


if __name__ == "__main__":
    cli.run(main, RenderSettings, __doc__)
