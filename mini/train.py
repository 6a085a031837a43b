"""Train the small checkpoints of the embedded world, or of any data set in the same layout.

Stages, in order: `autoencoder` and `diffusion` (a Stable Diffusion of 10 M parameters, on captioned pictures of all
weathers, without masks), `controlnet` (ControlNet/tool_add_control.py and ControlNet/train.py, on clear scenes and
masks), `segmenters` (on clear scenes), `captioner` (a BLIP and a CLIP, on captioned pictures of all weathers),
`inpainting` (the Stable Diffusion again, on streets with objects), `detector` and `outliner` (a GroundingDINO and a
Segment Anything, on the same). A stage whose output exists is passed over, so that a stopped run goes on.

Reads:  DATA_DIR/training/diffusion.jsonl  {"image", "text"}, all weathers; masks in it help the captioner
        DATA_DIR/training/train.jsonl      {"image", "conditioning_image", "text"}, clear; val.jsonl the same
        DATA_DIR/training/objects.jsonl    {"image", "mask", "object", "box", "text", "clean"}
Writes: OUTPUT/autoencoder (an intermediate), OUTPUT/stable-diffusion, OUTPUT/controlnet, OUTPUT/segmenters,
        OUTPUT/captioner, OUTPUT/clip, OUTPUT/inpainting, OUTPUT/grounding-dino, OUTPUT/sam, OUTPUT/training.json
        (figures of every stage)

    python mini/render.py --num_train 16000 --num_val 400 --out datasets/mini_train
    python mini/train.py --data_dir datasets/mini_train --output checkpoints/mini
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genval.runtime.cli import add_run_arguments, comma_list, parse, positive_int, run, script_parser
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT, resolve

if TYPE_CHECKING:
    from mini.recipe.data import CaptionedImages
    from mini.recipe.object_crops import ObjectPictures

STAGES = ("autoencoder", "diffusion", "controlnet", "segmenters", "captioner", "inpainting", "detector", "outliner")


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "mini/train")
    parser.add_argument("--data_dir", type=Path, default=Path("datasets/mini_train"), help="the training set's folder")
    parser.add_argument("--output", type=Path, default=Path("checkpoints/mini"), help="folder of the checkpoints")
    parser.add_argument("--stages", type=comma_list, default=list(STAGES), help=f"some of {','.join(STAGES)}")
    parser.add_argument("--device", default="cuda", help="torch device: cuda, cuda:1 or cpu")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count() or 1, help="threads that decode images")
    size = parser.add_argument_group("size and length")
    size.add_argument("--height", type=positive_int, default=128, help="height of the generated pictures")
    size.add_argument("--width", type=positive_int, default=256, help="width of the generated pictures")
    size.add_argument("--autoencoder_steps", type=positive_int, default=2400)
    size.add_argument("--diffusion_steps", type=positive_int, default=5000)
    size.add_argument("--controlnet_steps", type=positive_int, default=3000)
    size.add_argument("--hint_encoding", default="label_id", help="of the ControlNet: label_id, colour or one_hot")
    size.add_argument("--segmenter_steps", type=positive_int, default=2000)
    size.add_argument("--segmenters", type=comma_list, help="recipes of mini/recipe/segmentation.py (default: all)")
    size.add_argument("--captioner_steps", type=positive_int, default=9000)
    size.add_argument("--clip_steps", type=positive_int, default=1500)
    size.add_argument("--captioner_seconds", type=positive_int, help="end both of them after this time at the latest")
    size.add_argument("--inpainting_steps", type=positive_int, default=6000)
    size.add_argument("--inpainting_seconds", type=positive_int, help="end it after this time at the latest")
    size.add_argument("--detector_steps", type=positive_int, default=4000)
    size.add_argument("--detector_seconds", type=positive_int, help="end it after this time at the latest")
    size.add_argument("--outliner_steps", type=positive_int, default=5000)
    size.add_argument("--outliner_seconds", type=positive_int, help="end it after this time at the latest")
    size.add_argument("--batch_size", type=positive_int, help="in place of every stage's own (for a trial on a CPU)")
    add_run_arguments(parser)
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    unknown = sorted(set(args.stages) - set(STAGES))
    if unknown:
        raise GenValError(f"Unknown stage {unknown[0]!r}: expected some of {', '.join(STAGES)}.")
    args.data_dir, args.output = resolve(args.data_dir), resolve(args.output)
    stages: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "autoencoder": autoencoder_stage,
        "diffusion": diffusion_stage,
        "controlnet": controlnet_stage,
        "segmenters": segmenters_stage,
        "captioner": captioner_stage,
        "detector": detector_stage,
        "outliner": outliner_stage,
        "inpainting": inpainting_stage,
    }
    for name in STAGES:
        if name in args.stages and not args.dry_run:
            record(args.output, name, stages[name](args))
        elif name in args.stages:
            print(f"{name}: would write {args.output}")


def autoencoder_stage(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mini.recipe.autoencoder import AutoencoderRecipe, train_autoencoder

    if finished(args, "autoencoder/config.json"):
        return {}
    recipe = AutoencoderRecipe(steps=args.autoencoder_steps, seed=args.seed, **sizes(args))
    images = torch.from_numpy(
        captioned_images(args.data_dir, args.height, args.width, args.limit, args.workers).images
    ).to(args.device)
    return train_autoencoder(images, recipe, args.output / "autoencoder", torch.device(args.device))


def diffusion_stage(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mini.recipe.diffusion import DiffusionRecipe, train_diffusion

    if finished(args, "stable-diffusion/model_index.json"):
        return {}
    data = captioned_images(args.data_dir, args.height, args.width, args.limit, args.workers)
    recipe = DiffusionRecipe(steps=args.diffusion_steps, seed=args.seed, **sizes(args))
    images = torch.from_numpy(data.images).to(args.device)
    return train_diffusion(
        images,
        data.texts,
        args.output / "autoencoder",
        recipe,
        args.output / "stable-diffusion",
        torch.device(args.device),
    )


def controlnet_stage(args: argparse.Namespace) -> dict[str, Any]:
    if finished(args, "controlnet/config.json"):
        return {}
    start = args.output / "controlnet-start"
    base = args.output / "stable-diffusion"
    # Steps between the class ids make sense where one channel holds them all.
    hint = ["--hint_encoding", args.hint_encoding]
    hint += ["--hint_init", "hinges"] if args.hint_encoding == "label_id" else []
    call("ControlNet/tool_add_control.py", base, start, *hint, "--overwrite")
    device = ["--accelerator", "cpu"]
    if args.device != "cpu":
        device = ["--accelerator", "gpu", "--devices", "1", "--precision", "bf16-mixed"]
    batch = ["--batch_size", args.batch_size] if args.batch_size else []
    logs = ["--logs_dir", args.output / "logs"]
    logs += ["--overwrite"] if args.overwrite else ["--run", "controlnet", "--resume", "auto"]
    call(
        "ControlNet/train.py", "--preset", "mini", "--data_dir", args.data_dir,
        "--base", base, "--controlnet", start, "--output", args.output / "controlnet",
        "--height", args.height, "--width", args.width,
        "--max_steps", args.controlnet_steps, "--seed", args.seed, "--workers", args.workers, *device, *batch, *logs,
    )  # fmt: skip
    return {"steps": args.controlnet_steps}


def segmenters_stage(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from genval.datasets.labels import CITYSCAPES
    from mini.recipe.data import load_captioned_images
    from mini.recipe.segmentation import SEGMENTER_RECIPES, train_segmenter

    def labelled(jsonl: str) -> tuple[Any, Any]:
        data = load_captioned_images(args.data_dir, jsonl, 256, 512, masks=True, limit=args.limit, workers=args.workers)
        assert data.label_ids is not None
        return (
            torch.from_numpy(data.images).to(args.device),
            torch.from_numpy(CITYSCAPES.table[data.label_ids]).to(args.device),
        )

    names = args.segmenters or list(SEGMENTER_RECIPES)
    images, train_ids = labelled("training/train.jsonl")
    val_images, val_train_ids = labelled("training/val.jsonl")
    figures = {}
    for name in names:
        figures[name] = train_segmenter(
            name, images, train_ids, args.output / "segmenters", val_images=val_images, val_train_ids=val_train_ids,
            steps=args.segmenter_steps, device=torch.device(args.device), **sizes(args),
        )  # fmt: skip
        record(args.output, "segmenters", {name: figures[name]})
    return figures


def captioner_stage(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from genval.runtime.files import read_image, read_jsonl
    from mini.recipe.captioner import CaptionerRecipe, load_class_cells, measure_captioner, train_captioner
    from mini.recipe.contrastive import ContrastiveRecipe, measure_contrastive, train_contrastive
    from mini.recipe.views import held_out

    common = {"seconds": args.captioner_seconds, "seed": args.seed, **sizes(args)}
    captioner = CaptionerRecipe(steps=args.captioner_steps, **common)
    contrastive = ContrastiveRecipe(steps=args.clip_steps, **common)
    # What is written last stands for the whole.
    left = [name for name in ("captioner/tokenizer.json", "clip/open_clip_config.json") if not finished(args, name)]
    if not left:
        return {}
    device = torch.device(args.device)

    def pictures(side: int) -> torch.Tensor:
        data = captioned_images(args.data_dir, side, side, args.limit, args.workers)
        return torch.from_numpy(data.images)[~apart]

    records = read_jsonl(args.data_dir / "training/diffusion.jsonl")[: args.limit]
    apart = held_out(len(records))
    measured, trained = ([records[i] for i in chosen.nonzero()[:, 0]] for chosen in (apart, ~apart))
    texts = [line["text"] for line in trained]
    frames, truth = (
        [read_image(args.data_dir / line["image"]) for line in measured],
        [line["text"] for line in measured],
    )
    figures = {}
    if "captioner/tokenizer.json" in left:
        folder, side = args.output / "captioner", captioner.image_size
        cells = side // captioner.patch_size * captioner.cells
        classes = load_class_cells(args.data_dir, trained, cells, args.workers)
        figures["blip"] = train_captioner(pictures(side), texts, captioner, folder, device, classes)
        figures["blip"] |= measure_captioner(folder, frames, truth, device)
        record(args.output, "captioner", {"blip": figures["blip"]})
    if "clip/open_clip_config.json" in left:
        folder = args.output / "clip"
        figures["clip"] = train_contrastive(pictures(contrastive.image_size), texts, contrastive, folder, device)
        figures["clip"] |= measure_contrastive(folder, frames, truth, device)
    return figures


def inpainting_stage(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mini.recipe.inpainting import InpaintingRecipe, load_object_crops, train_inpainting

    if finished(args, "inpainting/model_index.json"):
        return {}
    recipe = InpaintingRecipe(
        steps=args.inpainting_steps, seconds=args.inpainting_seconds, seed=args.seed, **sizes(args)
    )
    crops = load_object_crops(args.data_dir, recipe, args.limit, args.workers)
    base, output = args.output / "stable-diffusion", args.output / "inpainting"
    return train_inpainting(crops, base, recipe, output, torch.device(args.device))


def detector_stage(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mini.recipe.detector import DetectorRecipe, measure_detector, train_detector
    from mini.recipe.object_crops import measured_crops

    if finished(args, "grounding-dino/preprocessor_config.json"):
        return {}
    recipe = DetectorRecipe(steps=args.detector_steps, seconds=args.detector_seconds, seed=args.seed, **sizes(args))
    trained, measured = object_pictures(args.data_dir, args.output, args.device, args.limit, args.workers)
    folder, device = args.output / "grounding-dino", torch.device(args.device)
    figures = train_detector(trained, recipe, folder, device)
    return figures | measure_detector(folder, measured_crops(measured), device)


def outliner_stage(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mini.recipe.object_crops import measured_crops
    from mini.recipe.outliner import OutlinerRecipe, measure_outliner, train_outliner

    if finished(args, "sam/preprocessor_config.json"):
        return {}
    recipe = OutlinerRecipe(steps=args.outliner_steps, seconds=args.outliner_seconds, seed=args.seed, **sizes(args))
    trained, measured = object_pictures(args.data_dir, args.output, args.device, args.limit, args.workers)
    folder, device = args.output / "sam", torch.device(args.device)
    figures = train_outliner(trained, recipe, folder, device)
    detector = args.output / "grounding-dino"
    found_by = detector if (detector / "config.json").is_file() else None
    return figures | measure_outliner(folder, measured_crops(measured), device, found_by)


@functools.cache
def object_pictures(
    data_dir: Path, output: Path, device: str, limit: int | None, workers: int
) -> tuple[ObjectPictures, ObjectPictures]:
    """The streets with objects to train on and to measure on, read once for the two stages that need them."""
    import torch

    from mini.recipe.object_crops import load_object_pictures, through_autoencoder
    from mini.recipe.views import held_out

    pictures = load_object_pictures(data_dir, limit, workers)
    apart = held_out(len(pictures))
    trained, measured = pictures.part(~apart), pictures.part(apart)
    if (output / "stable-diffusion/vae").is_dir():
        through_autoencoder(trained, output / "stable-diffusion/vae", torch.device(device))
    return trained, measured


@functools.cache
def captioned_images(data_dir: Path, height: int, width: int, limit: int | None, workers: int) -> CaptionedImages:
    """The pictures of all weathers, read once for the two stages that train on them."""
    from mini.recipe.data import load_captioned_images

    return load_captioned_images(data_dir, "training/diffusion.jsonl", height, width, limit=limit, workers=workers)


def finished(args: argparse.Namespace, name: str) -> bool:
    """Whether a stage's output is there already; `--overwrite` makes it again."""
    done = (args.output / name).exists() and not args.overwrite
    if done:
        print(f"{args.output / name} exists: passed over (--overwrite trains it again)")
    return done


def sizes(args: argparse.Namespace) -> dict[str, int]:
    return {"batch_size": args.batch_size} if args.batch_size else {}


def call(script: str, *flags: object) -> None:
    """Run another stage's script, showing its command."""
    command = [sys.executable, script, *map(str, flags)]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, cwd=REPO_ROOT).returncode:
        raise GenValError(
            f"{script} failed (see above). Mend the cause and run this command again: it goes on from there."
        )


def record(output: Path, stage: str, figures: dict[str, Any]) -> None:
    """Add a stage's figures to OUTPUT/training.json."""
    from genval.runtime.files import read_json, write_json

    if figures:
        path = output / "training.json"
        known = read_json(path) if path.exists() else {}
        known[stage] = {**known.get(stage, {}), **figures}
        write_json(path, known)
        print(f"{stage}: {figures}\nwrote {output}", flush=True)


if __name__ == "__main__":
    run(main, parse_args)
