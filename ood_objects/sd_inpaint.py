"""Inpaint objects that have no class into streets: Stable Diffusion inpaints each in a square of a frame.

Reads:  --inpainting_model, Cityscapes val (--data_dir) and a list of objects (--objects_file, or --objects)
Writes: images/ood_objects/with_positions/{object}/: {i}.png, the frame with the object; {i}_gt.png, its labelIds;
        {i}_pos.json, the row, column and side of the square. manifest.jsonl, one line per image; settings.json.
        An object whose name is not safe as a folder's gets another folder name; the manifest holds the object's name.
        Run the same command again to resume.

    python ood_objects/sd_inpaint.py --objects lion,elephant --num_images 16
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.settings import ObjectSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: ObjectSettings) -> None:
    from genval.diffusion.inpainting.stages import inpaint_objects, plan_object_stage
    from genval.diffusion.startup import launch

    plan = plan_object_stage(settings)
    if settings.run.dry_run:
        objects = len({item.object for item in plan.items})
        print(
            f"Would inpaint {len(plan.items)} images of {objects} objects in {settings.output_dir}, such as: "
            f"{plan.items[0].prompt}"
        )
        return
    done = inpaint_objects(settings, plan, launch)
    if done is None:  # another process reports
        return
    for bad in done.skipped:
        print(f"skipped {bad.file}: {bad.reason}")
    notes = [f"{done.written} new"]
    notes += [f"{done.retried} inpainted again with another seed"] if done.retried else []
    notes += [f"{len(done.skipped)} bad files skipped"] if done.skipped else []
    print(f"Wrote {done.images} images ({', '.join(notes)}) and manifest.jsonl to {done.folder}")


if __name__ == "__main__":
    cli.run(main, ObjectSettings, __doc__)
