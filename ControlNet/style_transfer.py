"""Generate labelled Cityscapes streets in another domain: fog, night, rain, snow, India, or any text.

Reads:  --base and --controlnet, Cityscapes val (--data_dir) and captions of its images (--captions).
Writes: images/style_transfer/{domain}/{leftImg8bit,gtFine,original}/val/{city}/: the generated image, its mask and the
        original; manifest.jsonl, one line per image; settings.json. Run the same command again to resume.

    python ControlNet/style_transfer.py --domain fog --num_samples 512
    python ControlNet/style_transfer.py --domain fog,night,rain,snow,india    # one process loads the models once
    python ControlNet/style_transfer.py --domain fog --domain_strength 0,0.25,0.5,0.75,1    # sets fog-0.0 to fog
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.settings import StyleTransferSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: StyleTransferSettings) -> None:
    from genval.artifacts.manifest import Manifest
    from genval.diffusion.generators import generate_domains, plan_domains, uses_published
    from genval.diffusion.startup import launch
    from genval.runtime.devices import launch_fabric

    plans = plan_domains(settings)
    if settings.run.dry_run:
        for plan in plans:
            manifest = Manifest(plan.folder)
            finished = 0 if settings.run.overwrite else sum(one.id in manifest for one in plan.transfers)
            print(
                f"Would generate {len(plan.transfers) - finished} images from {len(plan.frames)} frames in "
                f"{plan.folder}, such as: {plan.transfers[0].prompt} ({finished} are finished)"
            )
        return
    for bad in plans[0].skipped:
        print(f"skipped {bad.file}: {bad.reason}")
    # Published pipelines need packages that `launch` hides.
    for done in generate_domains(plans, launch_fabric if uses_published(settings) else launch):
        notes = [f"{done.written} new"]
        notes += [f"{done.retried} generated again with another seed"] if done.retried else []
        notes += [f"{len(done.skipped)} bad files skipped"] if done.skipped else []
        notes += [f"{done.truncated} captions truncated to the text encoder's limit"] if done.truncated else []
        print(f"Wrote {done.images} images ({', '.join(notes)}) and manifest.jsonl to {done.folder}", flush=True)


if __name__ == "__main__":
    cli.run(main, StyleTransferSettings, __doc__)
