"""The stages of mini/train.py: each trains one checkpoint and returns its scores for training.json.

Libraries are imported in the stages that need them, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genval.runtime.devices import find_device
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT
from mini.recipe.settings import STAGES, TrainSettings

if TYPE_CHECKING:
    import torch

    from mini.recipe.data import CaptionedImages
    from mini.recipe.object_crops import ObjectImages


def train_stages(settings: TrainSettings) -> None:
    """Run the stages of the settings, in order.

    Raises:
        GenValError: a stage is unknown, or fails, or the device is not there.
    """
    unknown = sorted(set(settings.stages) - set(STAGES))
    if unknown:
        raise GenValError(f"Unknown stage {unknown[0]!r}: expected some of {', '.join(STAGES)}.")
    settings = dataclasses.replace(settings, accelerator=str(find_device(settings.accelerator)))
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

    from genval.diffusion.training.autoencoder import AutoencoderRecipe, train_autoencoder

    if finished(settings, "autoencoder/config.json"):
        return {}
    recipe = AutoencoderRecipe(steps=settings.autoencoder_steps, seed=settings.seed, **sizes(settings))
    images = torch.from_numpy(
        captioned_images(settings.data, settings.height, settings.width, settings.limit, settings.num_workers).images
    ).to(settings.accelerator)
    return train_autoencoder(images, recipe, settings.folder / "autoencoder", torch.device(settings.accelerator))


def diffusion_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from genval.diffusion.training.base_model import DiffusionRecipe, train_diffusion

    if finished(settings, "stable-diffusion/model_index.json"):
        return {}
    require_stage(settings, "autoencoder/config.json", "autoencoder")
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
    # Hinges are defined only for the encoding with one channel of ids.
    hint = ["--hint_encoding", settings.hint_encoding]
    hint += ["--hint_init", "hinges"] if settings.hint_encoding == "label_id" else []
    call("ControlNet/tool_add_control.py", base, start, *hint, "--overwrite")
    batch = ["--batch_size", settings.batch_size] if settings.batch_size else []
    logs = ["--logs_dir", settings.folder / "logs"]
    logs += ["--overwrite"] if settings.overwrite else ["--run", "controlnet", "--resume", "auto"]
    call(
        "ControlNet/train.py", "--preset", "mini", "--data_dir", settings.data,
        "--base", base, "--controlnet", start, "--output", settings.folder / "controlnet",
        "--height", settings.height, "--width", settings.width,
        "--max_steps", settings.controlnet_steps, "--seed", settings.seed, "--num_workers", settings.num_workers,
        *device_flags(settings.accelerator), *batch, *logs,
    )  # fmt: skip
    return {"steps": settings.controlnet_steps}


def device_flags(accelerator: str) -> list[str]:
    """The flags of ControlNet/train.py that mean a device of torch.

    >>> device_flags("cuda:1")
    ['--accelerator', 'gpu', '--devices', '1,', '--precision', 'bf16-mixed']
    """
    kind, _, index = accelerator.partition(":")
    if kind == "cpu":
        return ["--accelerator", "cpu"]
    # With a comma it is the index of a device, without one the number of devices.
    return ["--accelerator", "gpu", "--devices", f"{index}," if index else "1", "--precision", "bf16-mixed"]


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
    scores = {}
    for name in names:
        scores[name] = train_segmenter(
            name, images, train_ids, settings.folder / "segmenters", val_images=val_images, val_train_ids=val_train_ids,
            steps=settings.segmenter_steps, device=torch.device(settings.accelerator), **sizes(settings),
        )  # fmt: skip
        record(settings.folder, "segmenters", {name: scores[name]})
    return scores


def captioner_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from genval.datasets.reading import read_image
    from genval.runtime.files import read_jsonl
    from mini.recipe.captioner import CaptionerRecipe, load_class_cells, measure_captioner, train_captioner
    from mini.recipe.contrastive import ContrastiveRecipe, measure_contrastive, train_contrastive
    from mini.recipe.data import ListedImage

    common = {"seconds": settings.captioner_seconds, "seed": settings.seed, **sizes(settings)}
    captioner = CaptionerRecipe(steps=settings.captioner_steps, **common)
    contrastive = ContrastiveRecipe(steps=settings.clip_steps, **common)
    # A folder is complete if it contains the file that is written last.
    missing = [
        name for name in ("captioner/tokenizer.json", "clip/open_clip_config.json") if not finished(settings, name)
    ]
    if not missing:
        return {}
    device = torch.device(settings.accelerator)

    def load_images(side: int) -> torch.Tensor:
        data = captioned_images(settings.data, side, side, settings.limit, settings.num_workers)
        return torch.from_numpy(data.images)[~apart]

    records = read_jsonl(settings.data / "training/diffusion.jsonl", ListedImage)[: settings.limit]
    apart = measured_part(len(records))
    measured, trained = ([records[i] for i in chosen.nonzero()[:, 0]] for chosen in (apart, ~apart))
    texts = [line["text"] for line in trained]
    frames, references = (
        [read_image(settings.data / line["image"]) for line in measured],
        [line["text"] for line in measured],
    )
    scores = {}
    if "captioner/tokenizer.json" in missing:
        folder, side = settings.folder / "captioner", captioner.image_size
        cells = side // captioner.patch_size * captioner.cells
        classes = load_class_cells(settings.data, trained, cells, settings.num_workers)
        scores["blip"] = train_captioner(load_images(side), texts, captioner, folder, device, classes)
        scores["blip"] |= measure_captioner(folder, frames, references, device)
        record(settings.folder, "captioner", {"blip": scores["blip"]})
    if "clip/open_clip_config.json" in missing:
        folder = settings.folder / "clip"
        scores["clip"] = train_contrastive(load_images(contrastive.image_size), texts, contrastive, folder, device)
        scores["clip"] |= measure_contrastive(folder, frames, references, device)
    return scores


def inpainting_stage(settings: TrainSettings) -> dict[str, Any]:
    import torch

    from mini.recipe.inpainting import InpaintingRecipe, load_object_crops, train_inpainting

    if finished(settings, "inpainting/model_index.json"):
        return {}
    require_stage(settings, "stable-diffusion/model_index.json", "diffusion")
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
    scores = train_detector(trained, recipe, folder, device)
    return scores | measure_detector(folder, measured_crops(measured), device)


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
    scores = train_outliner(trained, recipe, folder, device)
    detector = settings.folder / "grounding-dino"
    found_by = detector if (detector / "config.json").is_file() else None
    return scores | measure_outliner(folder, measured_crops(measured), device, found_by)


@functools.cache
def object_images(
    data_dir: Path, output: Path, device: str, limit: int | None, workers: int
) -> tuple[ObjectImages, ObjectImages]:
    """Read the training and held-out streets with objects; cached, because two stages use them."""
    import torch

    from mini.recipe.object_crops import load_object_images, through_autoencoder

    images = load_object_images(data_dir, limit, workers)
    apart = measured_part(len(images))
    trained, measured = images.part(~apart), images.part(apart)
    if (output / "stable-diffusion/vae").is_dir():
        through_autoencoder(trained, output / "stable-diffusion/vae", torch.device(device))
    return trained, measured


def measured_part(count: int) -> torch.Tensor:
    """Return which of `count` images the trained models are measured on, bool (count,).

    Raises:
        GenValError: there are too few images to hold one out.
    """
    from mini.recipe.views import held_out

    apart = held_out(count)
    if not apart.any():
        raise GenValError(f"Found {count} images, but at least 11 are needed to hold one out. Render or use more.")
    return apart


@functools.cache
def captioned_images(data_dir: Path, height: int, width: int, limit: int | None, workers: int) -> CaptionedImages:
    """Read the images of all domains; cached, because two stages train on them."""
    from mini.recipe.data import load_captioned_images

    return load_captioned_images(data_dir, "training/diffusion.jsonl", height, width, limit=limit, workers=workers)


def finished(settings: TrainSettings, name: str) -> bool:
    """Return whether a stage's output exists; always false with `--overwrite`."""
    done = (settings.folder / name).exists() and not settings.overwrite
    if done:
        print(f"{settings.folder / name} exists: skipped (--overwrite trains again)")
    return done


def require_stage(settings: TrainSettings, name: str, stage: str) -> None:
    """Check that the output of an earlier stage exists.

    Raises:
        GenValError: it does not.
    """
    if not (settings.folder / name).exists():
        raise GenValError(f"{settings.folder / name} is missing. Run its stage first: --stages {stage}.")


def sizes(settings: TrainSettings) -> dict[str, int]:
    return {"batch_size": settings.batch_size} if settings.batch_size else {}


def call(script: str, *flags: object) -> None:
    """Run the script of another stage and print its command."""
    command = [sys.executable, script, *map(str, flags)]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, cwd=REPO_ROOT).returncode:
        raise GenValError(f"{script} failed (see above). Fix the cause and run the same command again to resume.")


def record(output: Path, stage: str, scores: dict[str, Any]) -> None:
    """Add a stage's scores to OUTPUT/training.json."""
    from genval.runtime.files import read_json, write_json

    if scores:
        path = output / "training.json"
        known = read_json(path, dict[str, dict[str, Any]]) if path.exists() else {}
        known[stage] = {**known.get(stage, {}), **scores}
        write_json(path, known)
        print(f"{stage}: {scores}\nwrote {output}", flush=True)
