"""Caption images by CLIP-interrogator's method, and remove words of weather, time of day and noise.

Reads:  the images of a data set (--dataset) or of a pattern (--images); or existing captions (--from_captions).
Writes: captions/captions_{dataset}.json, {dataset: {path: caption}}; with --jsonl the lines that ControlNet/train.py
        reads, by default in captions_{dataset}.jsonl; captions/{dataset}/manifest.jsonl, one line per image with the
        unfiltered text; settings.json, with what the filter removed. Run the same command again to resume.

    python ControlNet/clip_int.py --dataset cityscapes
    python ControlNet/clip_int.py --dataset cityscapes --split train --jsonl ControlNet/training/train.jsonl
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

try:
    from genval.captions.settings import CaptionSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from genval.captions.captioning import Captioned


def main(settings: CaptionSettings) -> None:
    from genval.captions.captioning import caption_images, check_models, filter_captions, find_images
    from genval.runtime.devices import launch_fabric
    from genval.runtime.startup import launch

    if settings.from_captions:
        done = filter_captions(settings)
        print_report(done)
        print(f"Wrote the filtered captions to {done.output}")
        return
    if settings.run.dry_run:
        sources = find_images(settings, [] if settings.skip_bad else None)
        check_models(settings)
        mode = settings.interrogator.mode
        print(f"Would caption {len(sources)} images, such as {sources[0].key}, in mode {mode}")
        return
    # A model that the user names may need what `launch` leaves out.
    captioned = caption_images(settings, launch_fabric if settings.captioner else launch)
    if captioned is None:  # another process reports
        return
    print_report(captioned)
    print(f"Wrote {captioned.captions} captions ({captioned.written} new) to {captioned.output}")


def print_report(done: Captioned) -> None:
    """Print what was skipped, and what the filter removed."""
    for file, reason in done.skipped.items():
        print(f"skipped {file}: {reason}")
    report = done.filter_report
    if report["dropped"]:
        counts = ", ".join(f"{phrase} {count}" for phrase, count in report["dropped"].items())
        print(f"Removed from {report['changed']} captions: {counts}")
    if report["emptied"]:
        print(f"{len(report['emptied'])} captions are empty after filtering, such as that of {report['emptied'][0]}")


if __name__ == "__main__":
    cli.run(main, CaptionSettings, __doc__)
