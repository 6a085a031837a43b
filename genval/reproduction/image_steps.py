"""The steps that make images: rendered, generated and corrupted streets, and streets with objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import path_dicts
from genval.datasets.layouts import CORRUPTED_FOLDER
from genval.datasets.ood_objects import read_objects
from genval.reproduction.outputs import of_manifest
from genval.reproduction.protocol import CLEAR, CLEAR_COND, Protocol
from genval.reproduction.sources import caption_files, count_images, count_ood_images, find_weights, option
from genval.reproduction.steps import Outputs, Step
from genval.runtime.commands import Missing
from genval.runtime.paths import resolve

# The stages of objects: script, the flag of ood_detection/main_gen_ood.py for its folder, and that folder.
_OBJECT_STAGES = {
    "inpaint": ("ood_objects/sd_inpaint", "positions_dir", "images/ood_objects/with_positions"),
    "refine": ("ood_objects/refine_gen_images", "images_dir", "images/ood_objects/refined"),
    "outline": ("ood_objects/get_masks", "masks_dir", "images/ood_objects/masks"),
}
# Rendered clear streets on which segmenters are fine-tuned.
TRAINED = 400


def image_steps_of(protocol: Protocol, missing_data: dict[str, Missing]) -> list[Step]:
    """Streets in every domain; `missing_data` has the data sets that are not there."""
    steps = []
    rendered: tuple[str, ...] = ()
    if protocol.render:
        rendered = ("render",)
        domains = ",".join(["clear", *protocol.domains, "objects"])
        numbers = ("--num_train", "0", "--num_val", str(protocol.num_samples))
        command = ("mini/render.py", *numbers, "--domains", domains, *protocol.again())
        commands: tuple[tuple[str, ...], ...] = (command,)
        if protocol.finetune:
            commands += (("mini/render.py", "--num_train", str(TRAINED), *numbers[2:], "--domains", "clear"),)
        size = protocol.num_samples * (len(protocol.domains) + 2)
        made = partial(_rendered, protocol)
        steps.append(Step("render", "render", commands, size, made))
    frames = (missing_data[CLEAR],) if CLEAR in missing_data else ()
    captioned: tuple[str, ...] = ()
    data_dir = resolve(protocol.datasets_dir) / Path(path_dicts.DATASET_ROOTS[CLEAR]).name
    captions = caption_files(data_dir)
    clear = protocol.images_in((CLEAR, CLEAR_COND))
    if not protocol.render and not any(file.is_file() for file in captions):
        captioned = ("caption",)
        inputs, missing = find_weights("ControlNet/clip_int", protocol.preset)
        command = protocol.command("ControlNet/clip_int", "--dataset", "cityscapes", "--split", "val", device=True)
        made = partial(of_manifest, resolve("captions/cityscapes"))
        frames_there = protocol.images_of(CLEAR, CLEAR_COND)
        steps.append(
            Step(
                "caption",
                "caption",
                (command,),
                frames_there,
                made,
                inputs=inputs,
                data=clear,
                missing=missing + frames,
            )
        )
    inputs, missing = find_weights("ControlNet/style_transfer", protocol.preset)
    folder = resolve(protocol.option("ControlNet/style_transfer", "output_dir", path_dicts.GENERATED_ROOT))
    for domain in protocol.domains:
        flags = ("--domain", domain, "--num_samples", str(protocol.num_samples))
        steps.append(
            Step(
                f"generate {domain}",
                "generate",
                (protocol.command("ControlNet/style_transfer", *flags, device=True),),
                protocol.num_samples,
                partial(of_manifest, folder / domain),
                needs=rendered + captioned,
                inputs=inputs + captions,
                data=clear,
                missing=missing + frames,
            )
        )
    generated = protocol.option("relis/corrupt", "generated_dir", path_dicts.GENERATED_ROOT)
    folder = resolve(generated).parent / CORRUPTED_FOLDER
    for domain in protocol.corruptible:
        steps.append(
            Step(
                f"corrupt {domain}",
                "corrupt",
                (protocol.command("relis/corrupt", "--domains", domain, *protocol.again()),),
                protocol.images_of(CLEAR, CLEAR_COND),
                partial(of_manifest, folder / domain),
                needs=rendered,
                data=clear,
                missing=frames,
            )
        )
    return steps


def object_steps(protocol: Protocol, missing_data: dict[str, Missing], domain: str = "") -> list[Step]:
    """Images with objects, and the objects' outlines: on clear streets, or on the generated ones of a domain."""
    names = option(protocol.preset, "ood_objects/sd_inpaint", "objects", None)
    file = resolve(protocol.option("ood_objects/sd_inpaint", "objects_file", "ood_objects/objects.txt"))
    number = protocol.num_object_images or int(protocol.option("ood_objects/sd_inpaint", "num_images", "512"))
    size = number * len(names.split(",") if names else read_objects(file))
    folders = object_folders(protocol, domain)
    positions, images, masks = (folders[flag] for flag in ("positions_dir", "images_dir", "masks_dir"))
    places: dict[str, tuple[str, ...]] = {}
    needs: tuple[str, ...] = ("render",) if protocol.render else ()
    frames = (missing_data[CLEAR],) if CLEAR in missing_data else ()
    data = protocol.images_in((CLEAR, CLEAR_COND))
    if domain:
        streets = Path(protocol.option("ControlNet/style_transfer", "output_dir", path_dicts.GENERATED_ROOT)) / domain
        places = {
            "inpaint": ("--data_dir", str(streets), "--output_dir", positions),
            "refine": ("--images_dir", positions, "--output_dir", images),
            "outline": ("--images_dir", images, "--positions_dir", positions, "--output_dir", masks),
        }
        needs, data = (f"generate {domain}",), {}
    more = {
        "inpaint": ("--num_images", str(number)),
        "outline": ("--curate",) if objects_are_judged(protocol) else (),
    }
    files: tuple[Path, ...] = (file,)
    steps = []
    for (stage, (script, _, _)), folder in zip(_OBJECT_STAGES.items(), (positions, images, masks), strict=True):
        inputs, missing = find_weights(script, protocol.preset)
        command = protocol.command(script, *more.get(stage, ()), *places.get(stage, ()), device=True)
        made = partial(of_manifest, resolve(folder))
        inputs, missing = inputs + files, missing + frames
        name = f"{stage} in {domain}" if domain else stage
        steps.append(Step(name, stage, (command,), size, made, needs, inputs=inputs, data=data, missing=missing))
        needs, frames, data, files = (name,), (), {}, ()
    return steps


def object_folders(protocol: Protocol, domain: str = "") -> dict[str, str]:
    """The folders of images with objects, by the flag of ood_detection/main_gen_ood.py; a domain has its own."""
    folders = {}
    for script, flag, default in _OBJECT_STAGES.values():
        folder = Path(protocol.option(script, "output_dir", default))
        own = folder.parent.with_name(f"{folder.parent.name}-{domain}") / folder.name
        folders[flag] = str(own if domain else folder)
    return folders


def objects_are_judged(protocol: Protocol) -> bool:
    """Whether CLIP judges the masks, so that the curated objects are a part of all."""
    return protocol.option("ood_objects/get_masks", "clip", "") != "none"


def _rendered(protocol: Protocol) -> Outputs:
    made = 0
    for dataset, conds in protocol.real_sets().items():
        made += sum(min(count_images(dataset, c, protocol.datasets_dir) or 0, protocol.num_samples) for c in conds)
    objects = count_ood_images("RoadAnomaly21", protocol.datasets_dir)
    # Without files: the steps that read the rendered sets mark them as data.
    return Outputs(made + min(objects, protocol.num_samples))
