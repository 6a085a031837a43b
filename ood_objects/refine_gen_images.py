"""Refine inpainted objects so that they blend in: each object's square is inpainted again, starting from its content.

Reads:  --inpainting_model, images/ood_objects/with_positions/{object}/{i}.png and {i}_pos.json
Writes: images/ood_objects/refined/{object}/{i}.png; manifest.jsonl, one line per image; settings.json. A square with
        some context is inpainted and pasted with a soft seam; all other pixels do not change. --whole_frame inpaints
        the whole frame, as published: its background then changes too. Run the same command again to resume.

    python ood_objects/refine_gen_images.py --objects lion,elephant
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.settings import RefinementSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: RefinementSettings) -> None:
    from genval.diffusion.inpainting.stages import plan_refinement_stage, refine_objects
    from genval.diffusion.startup import launch

    items = plan_refinement_stage(settings)
    if settings.run.dry_run:
        print(
            f"Would refine {len(items)} images of {settings.images_dir} in {settings.output_dir}, such as: "
            f"{items[0].prompt}"
        )
        return
    done = refine_objects(settings, items, launch)
    if done is None:  # another process reports
        return
    notes = [f"{done.written} new"]
    notes += [f"{done.retried} inpainted again with another seed"] if done.retried else []
    print(f"Wrote {done.images} images ({', '.join(notes)}) and manifest.jsonl to {done.folder}")


if __name__ == "__main__":
    cli.run(main, RefinementSettings, __doc__)
