"""The run of relis/finetune.py: its segmenter, its data, and what it writes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.artifacts.fingerprint import current_mark
from genval.artifacts.manifest import Manifest
from genval.datasets import BadFile, Item, find_items
from genval.datasets.items import ALL
from genval.datasets.layouts import generated_set
from genval.datasets.ood_sets import OodItem, find_ood_items, read_ood_pair
from genval.datasets.reading import DecodedCache, check_ids, memory_for_images, readable
from genval.finetuning.data import FinetuneBatches, FinetuneData, FinetuneSampler, FinetuneSet
from genval.finetuning.module import FinetuneModule
from genval.finetuning.outliers import NOISE, find_outliers
from genval.finetuning.saving import check_saved, check_trainable, save_segmenter
from genval.finetuning.settings import LOSS_SCORES, FinetuneSettings
from genval.finetuning.validation import WEIGHTS, Validation, ValidationSet
from genval.runtime.errors import GenValError
from genval.runtime.flags import flatten
from genval.runtime.messages import print_once
from genval.runtime.paths import resolve
from genval.segmenters import load_segmenter
from genval.segmenters.identity import model_identity
from genval.segmenters.recipe import MADE_BY, RECIPE, Recipe, frame_ids, was_trained_on
from genval.training.runs import TrainingRun, check_output, choose_run, trainer_of, training_precision


def prepare_finetuning(settings: FinetuneSettings) -> TrainingRun:
    """Check the settings, load the segmenter and find the data.

    Raises:
        GenValError: an input is missing or bad, the output exists, or the segmenter cannot be fine-tuned.
    """
    precision = training_precision(settings.precision, settings.accelerator)
    check_trainable(settings.segmenter)
    output = resolve(settings.output)
    check_output(output, settings.resume, settings.overwrite, "fine-tuned segmenter", RECIPE)
    folder, checkpoint = choose_run(resolve(settings.logs_dir), settings.run, settings.resume)
    skipped: list[BadFile] = []
    data = find_data(settings, skipped)
    seen = trained_on(data)
    validation = find_validation(settings, skipped, seen)
    for one in skipped:
        print_once(f"skipped {one.file}: {one.reason}")
    segmenter = load_segmenter(settings.segmenter, "cpu", class_map=settings.class_map, trust_code=settings.trust_code)
    if precision.startswith("bf16") and segmenter.avoids_onednn and not torch.cuda.is_available():
        raise GenValError(
            f"--precision {precision}: bfloat16 on a CPU is wrong for some convolutions of {segmenter.name}. "
            "Use 32-true."
        )
    source = {"name": settings.segmenter, "identity": model_identity(segmenter)}
    if segmenter.recipe is not None:  # fine-tuned before: what it saw stays seen
        source["recipe"] = segmenter.recipe.mark
        seen = {key: sorted({*seen[key], *getattr(segmenter.recipe, key)}) for key in seen}
    first = next(iter(FinetuneBatches(FinetuneSampler(data, settings), data, settings.crop_size, settings.num_workers)))
    module = FinetuneModule(segmenter, settings.config, settings.outlier_loss, first)
    module.trained_on = seen
    module.fixed = {"--segmenter": f"{settings.segmenter} {source['identity']}", "--loss": settings.outlier_loss}
    callbacks = []
    if validation is not None:
        names = ("score", "src_dataset", "val_split", "val_images", "val_ood")
        module.fixed |= {f"--{name}": _plain(getattr(settings, name)) for name in names}
        callbacks.append(Validation(folder, validation, int(settings.val_every), settings.max_miou_drop / 100))
    # The layers of batch norm are meant to be.
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    trainer = trainer_of(settings, folder, precision, len(data.streets), callbacks)
    recipe = {
        "made_by": MADE_BY,
        "from": source,
        "loss": settings.outlier_loss if settings.outliers else None,
        "scores": list(LOSS_SCORES[settings.outlier_loss]) if settings.outliers else [],
        "outliers": data.outliers.name if data.outliers else None,
        "generated": list(settings.generated),
        "precision": precision,
        "settings": {key: _plain(value) for key, value in flatten(settings).items()},
    }
    save = functools.partial(_save, settings, module, folder, output, recipe, callbacks)
    counts = {"clear streets": len(data.streets), "generated images": len(data.generated)}
    if data.outliers is not None and data.outliers.name != NOISE:
        counts["outliers"] = data.outliers.count
    size = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    size += f" and {NOISE}" if data.outliers is not None and data.outliers.name == NOISE else ""
    return TrainingRun(
        settings, settings.segmenter, folder, output, checkpoint, precision, size, module, FinetuneData(data, settings),
        trainer, save, functools.partial(_why_stopped, callbacks),
    )  # fmt: skip


def find_data(settings: FinetuneSettings, skipped: list[BadFile]) -> FinetuneSet:
    """Find what is trained on; with `skip_bad`, bad files are added to `skipped`.

    Raises:
        GenValError: there are no images, or a file is bad.
    """
    bad = skipped if settings.skip_bad else None
    streets = find_items(settings.src_dataset, split=settings.split, datasets_dir=settings.datasets_dir, skipped=bad)
    streets = _spread(streets, settings.limit) if settings.limit else streets
    generated: list[Item] = []
    for domain in settings.generated:
        generated += find_items(
            generated_set(domain), split=settings.generated_split or ALL, datasets_dir=settings.datasets_dir,
            generated_dir=settings.generated_dir, skipped=bad,
        )  # fmt: skip
    check_ids(streets)
    if generated:
        check_ids(generated)
    if bad is not None:  # a bad file in the middle of a training would end it
        streets, generated = (readable(items, bad, settings.num_workers) for items in (streets, generated))
        if not streets:
            raise GenValError(f"None of the streets of {settings.src_dataset} can be read, such as {bad[0].file}.")
    cache = DecodedCache(_memory(settings))
    outliers = find_outliers(settings.outliers, settings.objects, bad, cache) if settings.outliers else None
    return FinetuneSet(streets, generated, outliers, cache)


def trained_on(data: FinetuneSet) -> dict[str, list[str]]:
    """Return the ids of the frames and the marks of the files of a training, for its recipe."""
    files = [path for item in (*data.streets, *data.generated) for path in item.files]
    frames = {item.id for item in data.streets} | _frames(data.generated)
    if data.outliers is not None:
        files += data.outliers.files
        frames |= set(data.outliers.frames)
    marks = {mark for path in files if (mark := current_mark(path)) is not None}
    # An id without a city or a recording does not name a frame.
    return {"frames": sorted(frame for frame in frames if "_" in frame), "marks": sorted(marks)}


def _frames(generated: Sequence[Item]) -> set[str]:
    """The ids of the images, and of the frames that they show: as the manifests say, or as the ids say."""
    lines = {folder: Manifest(folder).records for folder in {item.image.parents[3] for item in generated}}
    sources = {lines[item.image.parents[3]].get(item.id, {}).get("source", item.id) for item in generated}
    return {frame for name in sources | {item.id for item in generated} for frame in frame_ids(name)}


def find_validation(
    settings: FinetuneSettings, skipped: list[BadFile], seen: dict[str, list[str]]
) -> ValidationSet | None:
    """Find what is validated on; None without validation.

    Raises:
        GenValError: there are no images, or all of them are trained on.
    """
    if not settings.val_every:
        return None
    bad = skipped if settings.skip_bad else None
    recipe = Recipe(Path(), {}, frozenset(seen["frames"]), frozenset(seen["marks"]))
    found = find_items(settings.src_dataset, split=settings.val_split, datasets_dir=settings.datasets_dir, skipped=bad)
    streets = [item for item in found if not was_trained_on(recipe, item)]
    if not streets:
        raise GenValError(
            f"All {len(found)} validation images of {settings.src_dataset} ({settings.val_split}) are of frames that "
            "are trained on. Generate the objects in frames of the training set (sd_inpaint.py --from_train), give "
            "another --val_split, or --val_every 0."
        )
    if len(streets) < len(found):
        print_once(
            f"{len(found) - len(streets)} of {len(found)} validation images are of frames that are trained on: skipped"
        )
    objects: list[OodItem] = []
    for dataset in settings.val_ood:
        objects += find_ood_items(dataset, settings.datasets_dir, skipped=bad).items
    used = [item for item in objects if was_trained_on(recipe, item)]
    if used:
        raise GenValError(
            f"--val_ood: {len(used)} of {len(objects)} images are also trained on, such as {used[0].image}. "
            "Give another set."
        )
    if bad is not None:
        streets, objects = readable(streets, bad), readable(objects, bad, read=read_ood_pair)
        if not streets or (settings.val_ood and not objects):
            raise GenValError(f"None of the images of a validation set can be read, such as {bad[-1].file}.")
    cache = DecodedCache(_memory(settings))
    return ValidationSet(_spread(streets, settings.val_images), objects, settings.score, cache, settings.num_workers)


def _save(
    settings: FinetuneSettings, module: FinetuneModule, folder: Path, output: Path, recipe: dict[str, Any],
    validations: Sequence[Validation],
) -> list[Path]:  # fmt: skip
    network, step = module.trained, module.trainer.global_step
    rows: list[Any] = []
    for validation in validations:
        rows = list(validation.rows)
        if validation.kept is None:
            raise GenValError(
                f"No validation kept clear mIoU within {settings.max_miou_drop} points of {100 * rows[0]['miou']:.1f}; "
                f"it was {100 * rows[-1]['miou']:.1f} at step {rows[-1]['step']}. Nothing is written. "
                "Give a lower --lr or --outlier_weight, validate more often (--val_every), or allow more "
                "(--max_miou_drop)."
            )
        content = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        network.load_state_dict(content["state_dict"])
        step = content["step"]
    entries = {
        "trained_on": module.trained_on,
        "steps": step,
        "margins": module.margins.tolist() if module.loss_name != "uniform" else None,
    }
    specification = save_segmenter(
        settings.segmenter, network, output, settings.save_dtype, {**recipe, **entries, "validation": rows}
    )
    check_saved(specification, settings.class_map, settings.trust_code)
    print(f"The fine-tuned segmenter is --segmenters {specification}")
    return [output]


def _why_stopped(validations: Sequence[Validation]) -> str | None:
    for validation in validations:
        if validation.stopped:
            first, last = validation.rows[0], validation.rows[-1]
            return (
                f"Stopped at step {last['step']}, since clear mIoU fell from {100 * first['miou']:.1f} to "
                f"{100 * last['miou']:.1f}"
            )
    return None


def _memory(settings: FinetuneSettings) -> int:
    """How many bytes of decoded images a process keeps."""
    devices = int(settings.devices) if settings.devices.isdecimal() else torch.cuda.device_count()
    return memory_for_images(devices)


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` items that are evenly spread over a set."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
