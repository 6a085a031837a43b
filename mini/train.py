"""Train the small checkpoints of the mini world, or of any data set in the same layout.

Stages, in order: `autoencoder` and `diffusion` (a Stable Diffusion of 10 M parameters, on captioned images of all
weathers, without masks), `controlnet` (ControlNet/tool_add_control.py and ControlNet/train.py, on clear scenes and
masks), `segmenters` (on clear scenes), `captioner` (a BLIP and a CLIP, on captioned images of all weathers),
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

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import comma_list, positive_int, seed_flag

if TYPE_CHECKING:
    from mini.recipe.data import CaptionedImages
    from mini.recipe.object_crops import ObjectImages

STAGES = ("autoencoder", "diffusion", "controlnet", "segmenters", "captioner", "inpainting", "detector", "outliner")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of mini/train.py."""

    SCRIPT: ClassVar[str] = "mini/train"

    data_dir: str = flag("datasets/mini_train", "the training set's folder")
    output: str = flag("checkpoints/mini", "folder of the checkpoints")
    stages: tuple[str, ...] = flag(STAGES, "some of the stages above", type=comma_list)
    accelerator: str = flag("cuda", "torch device: cuda, cuda:1 or cpu")
    num_workers: int = flag(os.cpu_count() or 1, "threads that decode images", type=positive_int)
    height: int = flag(128, "height of the generated images", type=positive_int, title="size and length")
    width: int = flag(256, "width of the generated images", type=positive_int)
    autoencoder_steps: int = flag(2400, "", type=positive_int)
    diffusion_steps: int = flag(5000, "", type=positive_int)
    controlnet_steps: int = flag(3000, "", type=positive_int)
    hint_encoding: str = flag("label_id", "of the ControlNet: label_id, colour or one_hot")
    segmenter_steps: int = flag(2000, "", type=positive_int)
    segmenters: tuple[str, ...] | None = flag(
        None, "recipes of mini/recipe/segmentation.py (default: all)", type=comma_list
    )
    captioner_steps: int = flag(9000, "", type=positive_int)
    clip_steps: int = flag(1500, "", type=positive_int)
    captioner_seconds: int | None = flag(None, "end both of them after this time at the latest", type=positive_int)
    inpainting_steps: int = flag(6000, "", type=positive_int)
    inpainting_seconds: int | None = flag(None, "end it after this time at the latest", type=positive_int)
    detector_steps: int = flag(4000, "", type=positive_int)
    detector_seconds: int | None = flag(None, "end it after this time at the latest", type=positive_int)
    outliner_steps: int = flag(5000, "", type=positive_int)
    outliner_seconds: int | None = flag(None, "end it after this time at the latest", type=positive_int)
    batch_size: int | None = flag(None, "in place of every stage's own (for a trial on a CPU)", type=positive_int)
    seed: int = seed_flag()
    overwrite: bool = flag(False, "compute existing outputs again instead of resuming", title="run")
    limit: int | None = flag(None, "use only this many items", type=positive_int)
    dry_run: bool = flag(False, "check the inputs, print what would be done, and stop")
    preset: str | None = None

    @property
    def data(self) -> Path:
        """The training set's folder."""
        return resolve(self.data_dir)

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        return resolve(self.output)


def main(settings: TrainSettings) -> None:
    unknown = sorted(set(settings.stages) - set(STAGES))
    if unknown:
        raise GenValError(f"Unknown stage {unknown[0]!r}: expected some of {', '.join(STAGES)}.")
    stages: dict[str, Callable[[TrainSettings], dict[str, Any]]] = {
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
        if name in settings.stages and not settings.dry_run:
            record(settings.folder, name, stages[name](settings))
        elif name in settings.stages:
            print(f"{name}: would write {settings.folder}")


def autoencoder_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from mini.recipe.autoencoder import AutoencoderRecipe, train_autoencoder

    if finished(settings, "autoencoder/config.json"):
        return {}
    recipe = AutoencoderRecipe(steps=settings.autoencoder_steps, seed=settings.seed, **sizes(settings))
    images = torch.from_numpy(
        captioned_images(settings.data, settings.height, settings.width, settings.limit, settings.num_workers).images
    ).to(settings.accelerator)
    return train_autoencoder(images, recipe, settings.folder / "autoencoder", torch.device(settings.accelerator))


def diffusion_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from mini.recipe.diffusion import DiffusionRecipe, train_diffusion

    if finished(settings, "stable-diffusion/model_index.json"):
        return {}
    data = captioned_images(settings.data, settings.height, settings.width, settings.limit, settings.num_workers)
    recipe = DiffusionRecipe(steps=settings.diffusion_steps, seed=settings.seed, **sizes(settings))
    images = torch.from_numpy(data.images).to(settings.accelerator)
    return train_diffusion(
        images,
        data.texts,
        settings.folder / "autoencoder",
        recipe,
        settings.folder / "stable-diffusion",
        torch.device(settings.accelerator),
    )


def controlnet_stage(settings: TrainSettings) -> dict[str, Any]:
    if finished(settings, "controlnet/config.json"):
        return {}
    start = settings.folder / "controlnet-start"
    base = settings.folder / "stable-diffusion"
    # Steps between the class ids make sense where one channel holds them all.
    hint = ["--hint_encoding", settings.hint_encoding]
    hint += ["--hint_init", "hinges"] if settings.hint_encoding == "label_id" else []
    call("ControlNet/tool_add_control.py", base, start, *hint, "--overwrite")
    device = ["--accelerator", "cpu"]
    if settings.accelerator != "cpu":
        device = ["--accelerator", "gpu", "--devices", "1", "--precision", "bf16-mixed"]
    batch = ["--batch_size", settings.batch_size] if settings.batch_size else []
    logs = ["--logs_dir", settings.folder / "logs"]
    logs += ["--overwrite"] if settings.overwrite else ["--run", "controlnet", "--resume", "auto"]
    call(
        "ControlNet/train.py", "--preset", "mini", "--data_dir", settings.data,
        "--base", base, "--controlnet", start, "--output", settings.folder / "controlnet",
        "--height", settings.height, "--width", settings.width,
        "--max_steps", settings.controlnet_steps, "--seed", settings.seed, "--num_workers", settings.num_workers,
        *device, *batch, *logs,
    )  # fmt: skip
    return {"steps": settings.controlnet_steps}


def segmenters_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from genval.datasets.labels import CITYSCAPES
    from mini.recipe.data import load_captioned_images
    from mini.recipe.segmentation import SEGMENTER_RECIPES, train_segmenter

    def labelled(jsonl: str) -> tuple[Any, Any]:
        data = load_captioned_images(
            settings.data, jsonl, 256, 512, masks=True, limit=settings.limit, workers=settings.num_workers
        )
        assert data.label_ids is not None
        return (
            torch.from_numpy(data.images).to(settings.accelerator),
            torch.from_numpy(CITYSCAPES.table[data.label_ids]).to(settings.accelerator),
        )

    names = settings.segmenters or list(SEGMENTER_RECIPES)
    images, train_ids = labelled("training/train.jsonl")
    val_images, val_train_ids = labelled("training/val.jsonl")
    figures = {}
    for name in names:
        figures[name] = train_segmenter(
            name, images, train_ids, settings.folder / "segmenters", val_images=val_images, val_train_ids=val_train_ids,
            steps=settings.segmenter_steps, device=torch.device(settings.accelerator), **sizes(settings),
        )  # fmt: skip
        record(settings.folder, "segmenters", {name: figures[name]})
    return figures


def captioner_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from genval.runtime.files import read_image, read_jsonl
    from mini.recipe.captioner import CaptionerRecipe, load_class_cells, measure_captioner, train_captioner
    from mini.recipe.contrastive import ContrastiveRecipe, measure_contrastive, train_contrastive
    from mini.recipe.views import held_out

    common = {"seconds": settings.captioner_seconds, "seed": settings.seed, **sizes(settings)}
    captioner = CaptionerRecipe(steps=settings.captioner_steps, **common)
    contrastive = ContrastiveRecipe(steps=settings.clip_steps, **common)
    # What is written last stands for the whole.
    left = [name for name in ("captioner/tokenizer.json", "clip/open_clip_config.json") if not finished(settings, name)]
    if not left:
        return {}
    device = torch.device(settings.accelerator)

    def pictures(side: int) -> torch.Tensor:
        data = captioned_images(settings.data, side, side, settings.limit, settings.num_workers)
        return torch.from_numpy(data.images)[~apart]

    records = read_jsonl(settings.data / "training/diffusion.jsonl")[: settings.limit]
    apart = held_out(len(records))
    measured, trained = ([records[i] for i in chosen.nonzero()[:, 0]] for chosen in (apart, ~apart))
    texts = [line["text"] for line in trained]
    frames, truth = (
        [read_image(settings.data / line["image"]) for line in measured],
        [line["text"] for line in measured],
    )
    figures = {}
    if "captioner/tokenizer.json" in left:
        folder, side = settings.folder / "captioner", captioner.image_size
        cells = side // captioner.patch_size * captioner.cells
        classes = load_class_cells(settings.data, trained, cells, settings.num_workers)
        figures["blip"] = train_captioner(pictures(side), texts, captioner, folder, device, classes)
        figures["blip"] |= measure_captioner(folder, frames, truth, device)
        record(settings.folder, "captioner", {"blip": figures["blip"]})
    if "clip/open_clip_config.json" in left:
        folder = settings.folder / "clip"
        figures["clip"] = train_contrastive(pictures(contrastive.image_size), texts, contrastive, folder, device)
        figures["clip"] |= measure_contrastive(folder, frames, truth, device)
    return figures


def inpainting_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from mini.recipe.inpainting import InpaintingRecipe, load_object_crops, train_inpainting

    if finished(settings, "inpainting/model_index.json"):
        return {}
    recipe = InpaintingRecipe(
        steps=settings.inpainting_steps, seconds=settings.inpainting_seconds, seed=settings.seed, **sizes(settings)
    )
    crops = load_object_crops(settings.data, recipe, settings.limit, settings.num_workers)
    base, output = settings.folder / "stable-diffusion", settings.folder / "inpainting"
    return train_inpainting(crops, base, recipe, output, torch.device(settings.accelerator))


def detector_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from mini.recipe.detector import DetectorRecipe, measure_detector, train_detector
    from mini.recipe.object_crops import measured_crops

    if finished(settings, "grounding-dino/preprocessor_config.json"):
        return {}
    recipe = DetectorRecipe(
        steps=settings.detector_steps, seconds=settings.detector_seconds, seed=settings.seed, **sizes(settings)
    )
    trained, measured = object_images(
        settings.data, settings.folder, settings.accelerator, settings.limit, settings.num_workers
    )
    folder, device = settings.folder / "grounding-dino", torch.device(settings.accelerator)
    figures = train_detector(trained, recipe, folder, device)
    return figures | measure_detector(folder, measured_crops(measured), device)


def outliner_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from mini.recipe.object_crops import measured_crops
    from mini.recipe.outliner import OutlinerRecipe, measure_outliner, train_outliner

    if finished(settings, "sam/preprocessor_config.json"):
        return {}
    recipe = OutlinerRecipe(
        steps=settings.outliner_steps, seconds=settings.outliner_seconds, seed=settings.seed, **sizes(settings)
    )
    trained, measured = object_images(
        settings.data, settings.folder, settings.accelerator, settings.limit, settings.num_workers
    )
    folder, device = settings.folder / "sam", torch.device(settings.accelerator)
    figures = train_outliner(trained, recipe, folder, device)
    detector = settings.folder / "grounding-dino"
    found_by = detector if (detector / "config.json").is_file() else None
    return figures | measure_outliner(folder, measured_crops(measured), device, found_by)


@functools.cache
def object_images(
    data_dir: Path, output: Path, device: str, limit: int | None, workers: int
) -> tuple[ObjectImages, ObjectImages]:
    """The streets with objects to train on and to measure on, read once for the two stages that need them."""
    import torch

    from mini.recipe.object_crops import load_object_images, through_autoencoder
    from mini.recipe.views import held_out

    pictures = load_object_images(data_dir, limit, workers)
    apart = held_out(len(pictures))
    trained, measured = pictures.part(~apart), pictures.part(apart)
    if (output / "stable-diffusion/vae").is_dir():
        through_autoencoder(trained, output / "stable-diffusion/vae", torch.device(device))
    return trained, measured


@functools.cache
def captioned_images(data_dir: Path, height: int, width: int, limit: int | None, workers: int) -> CaptionedImages:
    """The images of all weathers, read once for the two stages that train on them."""
    from mini.recipe.data import load_captioned_images

    return load_captioned_images(data_dir, "training/diffusion.jsonl", height, width, limit=limit, workers=workers)


def finished(settings: TrainSettings, name: str) -> bool:
    """Whether a stage's output is there already; `--overwrite` makes it again."""
    done = (settings.folder / name).exists() and not settings.overwrite
    if done:
        print(f"{settings.folder / name} exists: skipped (--overwrite trains it again)")
    return done


def sizes(settings: TrainSettings) -> dict[str, int]:
    return {"batch_size": settings.batch_size} if settings.batch_size else {}


def call(script: str, *flags: object) -> None:
    """Run another stage's script, showing its command."""
    command = [sys.executable, script, *map(str, flags)]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, cwd=REPO_ROOT).returncode:
        raise GenValError(f"{script} failed (see above). Fix the cause and run the same command again to resume.")


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
    cli.run(main, TrainSettings, __doc__)
