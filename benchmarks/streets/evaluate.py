"""Measure segmenters on clear, generated, changed and real streets: one small file per segmenter and set.

The sets are Cityscapes val, the generated and corrupted sets that exist, and the real sets of DATASETS_DIR: ACDC,
CamVid (dusk) and IDD-lite. Sets of India are measured in the 7 merged classes of IDD-lite, and Cityscapes in both.
Published networks get images of the size that they were trained for, and those of the recipe get 256x512. Unknown
objects are detected on the real sets and on the pasted one (paste_objects.py), if they exist.

The measurements are those of relis/eval.py. The study needs only the counts of each image and no predictions.
Therefore, each process decodes an image once for all of its segmenters, and nothing is written per image.

Reads:  PUBLISHED/*-{width}.pt (benchmarks/streets/export_segmenters.py), OWN/list.txt (train_segmenters.py),
        DATASETS_DIR (prepare.py), GENERATED_DIR and `corrupted` beside it
Writes: EVAL_DIR/{segmenter}/{set}_{condition}.npz (see `measure`), OOD_DIR as ood_detection/main_gen_ood.py. Run the
        same command again to resume. All segmenters are first run on the clear and real sets, then on each generator's.

    python benchmarks/streets/evaluate.py --jobs 8 --accelerator gpu --batch_size 32
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

import numpy as np
from models import find_models, short_name

import path_dicts
from genval.datasets.items import find_items
from genval.datasets.layouts import find_root, generated_set
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.fork_server import process_context
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from genval.datasets import Item
    from genval.datasets.reading import DecodedCache
    from genval.segmenters.base import Segmenter

REAL_SETS = ("ACDC", "CamVid", "IDD-lite")
MERGED = "idd-level1"
GRID_STEP = 4
"""Every fourth pixel of a real image, in both directions, takes part in the vote of the segmenters."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of benchmarks/streets/evaluate.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/evaluate"

    published: str = flag("checkpoints/streets/published", "folder of the exported networks")
    own: str = flag("checkpoints/streets/segmenters", "folder of the segmenters of the recipe")
    segmenters: tuple[str, ...] | None = flag(None, "only those of these short names", type=comma_list)
    datasets_dir: str = flag("datasets/streets", "folder of the prepared sets")
    generated_dir: str = flag("images/streets/sets", "folder of the generated sets")
    domains: tuple[str, ...] = flag(
        ("clear", "fog", "night", "rain", "snow", "india", "dusk"), "domains of the generated sets", type=comma_list
    )
    scenes: tuple[str, ...] = flag(
        ("val00", "val04", "val08", "val12", "val16"), "scenes of sets without a seed: corrupted ones", type=comma_list
    )
    no_real: bool = flag(False, "leave out Cityscapes and the real sets")
    no_objects: bool = flag(False, "leave out unknown objects")
    eval_dir: str = flag("results/streets/eval", "folder of the counts")
    ood_dir: str = flag("results/streets/ood_detection", "folder of the results on unknown objects")
    logit_pixels: int = flag(200, "pixels per image whose logits are saved, for temperatures", type=positive_int)
    batch_size: int = flag(8, "images per forward pass", type=positive_int)
    accelerator: str = flag("auto", "auto, cpu or gpu")
    jobs: int = flag(1, "processes at a time", type=positive_int)
    num_workers: int = flag(1, "threads that read images, per process", type=positive_int)
    seed: int = flag(0, "of the choice of pixels")
    preset: str | None = None


Set = tuple[str, tuple[str, ...]]
"""A data set, and its scenes that are measured; none is all."""


def main(settings: EvaluateSettings) -> None:
    models = find_models(settings.published, settings.own, settings.segmenters)
    rounds = find_sets(settings)
    objects = [] if settings.no_objects else find_objects(settings)
    print(
        f"{len(models)} segmenters on {', '.join([*(name for one in rounds for name, _ in one), *objects])}", flush=True
    )
    # The largest first, so that no process is alone at the end of a round.
    ordered = sorted(models, key=lambda model: -models[model][0])
    tasks = [(model, models[model], sets, settings) for sets in rounds for model in ordered]
    failed = 0
    with ProcessPoolExecutor(settings.jobs, process_context()) as pool:
        for model, future in [(task[0], pool.submit(measure_sets, *task)) for task in tasks]:
            try:
                print(future.result(), flush=True)
            except Exception as error:  # a full memory of the device, or a bad file: the other segmenters go on
                failed += 1
                print(f"{short_name(model)}: failed ({type(error).__name__}: {error})", flush=True)
    if objects:
        detect(models, objects, settings)
    if failed:
        raise GenValError(f"{failed} of {len(tasks)} rounds of a segmenter failed, see above. Run again to resume.")


def find_sets(settings: EvaluateSettings) -> list[list[Set]]:
    """Return the sets that exist, in rounds: clear and real ones, each generator's, transferred and corrupted ones."""
    real = [] if settings.no_real else ["Cityscapes", f"Cityscapes@{MERGED}", *REAL_SETS]
    rounds: list[list[Set]] = [[(name, ()) for name in real if exists(name, settings)]]
    for generator in (*path_dicts.GENERATORS, "corrupt"):
        changed = generator in (*path_dicts.TRANSFER_METHODS, "corrupt")
        names = [
            f"Cityscapes_corrupt_{domain}" if generator == "corrupt" else generated_set(domain, generator)
            for domain in settings.domains
        ]
        # Transfers and corruptions change every frame.
        scenes = settings.scenes if changed else ()
        rounds.append([(f"{n}@{MERGED}" if n.endswith("india") else n, scenes) for n in names if exists(n, settings)])
    return [sets for sets in rounds if sets]


def exists(name: str, settings: EvaluateSettings) -> bool:
    """Return whether a set of labelled images exists."""
    try:
        find_root(name, datasets_dir=settings.datasets_dir, generated_dir=settings.generated_dir)
    except GenValError:
        return False
    return True


def measure_sets(model: str, size: tuple[int, int], sets: Sequence[Set], settings: EvaluateSettings) -> str:
    """Measure a segmenter on sets, except those whose file is there and made from the same; return a line about it."""
    from genval.artifacts.tensors import read_arrays, write_arrays
    from genval.segmenters.identity import model_identity

    start, measured = time.monotonic(), 0
    folder = resolve(settings.eval_dir) / short_name(model)
    segmenter = load(model, size, settings.accelerator)
    identity = digest([model_identity(segmenter), settings.logit_pixels, settings.seed])
    to_do = []
    for name, scenes in sets:
        items = find_images(name, scenes, settings.datasets_dir, settings.generated_dir)
        for cond, group in itertools.groupby(items, key=lambda item: item.cond):
            members = list(group)
            about = {"made_by": identity, "made_from": images_digest(members)}
            path = folder / f"{name}_{cond}.npz"
            try:
                saved = read_arrays(path, about, "")
            except GenValError:
                saved = {}
            if saved and all(np.array_equal(saved[key], about[key]) for key in about):
                continue
            path.unlink(missing_ok=True)  # if a measurement fails, collect.py must not take the earlier one
            to_do.append((path, about, name, members))
    for path, about, name, members in to_do:
        write_arrays(path, {**about, **measure(segmenter, name, members, name in REAL_SETS, settings)})
        measured += len(members)
    seconds = time.monotonic() - start
    return f"{short_name(model)}: {measured} images of {sets[0][0]} to {sets[-1][0]} in {seconds:.1f} s"


def measure(
    segmenter: Segmenter, dataset: str, items: Sequence[Item], vote: bool, settings: EvaluateSettings
) -> dict[str, np.ndarray]:
    """Measure a segmenter on N images.

    Returns:
        images: UTF-8 lines scene/id, uint8.
        counts: uint32 (N, 3, C): hits, labelled and predicted pixels of each class.
        bins: float32 (N, 3, B): right pixels, pixels and sum of confidences by confidence.
        levels: int64 (2, L): wrong and right pixels by level of the confidence, of all images.
        logits, labels: float16 (P, C) and uint8 (P,), of the chosen pixels of all images.
        votes: with `vote`, the predicted classes on a grid of every image, uint8, flat.
    """
    from genval.datasets import label_space_of
    from genval.evaluation.inference import launch_batch, sample_pixels
    from genval.runtime.background import one_behind
    from genval.segmenters.prediction import stack_batch

    device, groups = torch_device(settings.accelerator), label_space_of(dataset).groups
    counts, bins, logits, labels, votes = [], [], [], [], []
    levels: Any = 0

    def begun() -> Iterator[tuple[list[np.ndarray], list[np.ndarray], Any]]:
        for batch in read_batches(items, settings):
            images, masks = (list(arrays) for arrays in zip(*(pair for _, pair in batch), strict=True))
            kept = [sample_pixels(masks[0].size, settings.logit_pixels, settings.seed, item.id) for item, _ in batch]
            names = [str(item.image) for item, _ in batch]
            stacks = stack_batch(images, device), stack_batch(masks, device)
            yield masks, kept, launch_batch(segmenter, *stacks, names, device, None, kept, half=True, groups=groups)

    for masks, kept, wait in one_behind(begun()):
        for mask, pixels, one in zip(masks, kept, wait(), strict=True):
            matrix, tally = one.statistics.confusion, one.statistics.bins
            counts.append(np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)]))
            bins.append(np.stack([tally[1], tally.sum(0), one.statistics.bin_confidence]))
            levels = levels + one.statistics.levels
            logits.append(one.logits)
            labels.append(mask.reshape(-1)[pixels])
            if vote:
                votes.append(one.prediction[::GRID_STEP, ::GRID_STEP].reshape(-1))
    names = "\n".join(f"{item.scene}/{item.id}" for item in items)
    return {
        "images": np.frombuffer(names.encode(), np.uint8),
        "counts": np.stack(counts).astype(np.uint32),
        "bins": np.stack(bins).astype(np.float32),
        "levels": levels,
        "logits": np.concatenate(logits),
        "labels": np.concatenate(labels),
        **({"votes": np.concatenate(votes)} if vote else {}),
    }


def read_batches(
    items: Sequence[Item], settings: EvaluateSettings
) -> Iterator[list[tuple[Item, tuple[np.ndarray, np.ndarray]]]]:
    """Yield batches of items of one size, each with its image and mask."""
    from genval.datasets import read_pair

    read = functools.partial(pair_cache(settings.jobs).read, decode=read_pair)
    with ThreadPoolExecutor(settings.num_workers) as pool:
        loaded = zip(items, pool.map(read, items), strict=True)
        for _, group in itertools.groupby(loaded, key=lambda one: one[1][1].shape):
            while batch := list(itertools.islice(group, settings.batch_size)):
                yield batch


def digest(values: Iterable[Any]) -> np.ndarray:
    """Return a hash of values, uint8 (16,)."""
    return np.frombuffer(hashlib.blake2b(repr(list(values)).encode(), digest_size=16).digest(), np.uint8)


def images_digest(items: Sequence[Item]) -> np.ndarray:
    """Return a hash of the names and the content of images and masks."""
    from genval.artifacts.fingerprint import current_mark

    return digest((item.scene, item.id, current_mark(item.image), current_mark(item.mask)) for item in items)


# What a process keeps for its next task.


@functools.cache
def load(model: str, size: tuple[int, int], accelerator: str) -> Segmenter:
    """Load a segmenter, once per process."""
    from genval.segmenters import load_segmenter

    return load_segmenter(model, torch_device(accelerator), input_size=size)


@functools.cache
def torch_device(accelerator: str) -> torch.device:
    """Return the device that `--accelerator` means."""
    import torch

    is_gpu = torch.cuda.is_available() if accelerator == "auto" else accelerator != "cpu"
    return torch.device("cuda" if is_gpu else "cpu")


@functools.cache
def find_images(name: str, scenes: tuple[str, ...], datasets_dir: str, generated_dir: str) -> list[Item]:
    """Return the images of a set, sorted by condition."""
    from genval.datasets.reading import check_ids

    items = find_items(name, scene=scenes or "all", datasets_dir=datasets_dir, generated_dir=generated_dir)
    check_ids(items)
    return items


@functools.cache
def pair_cache(jobs: int) -> DecodedCache:
    """Return the decoded images that are kept: those of all sets, if memory allows."""
    from genval.datasets.reading import DecodedCache
    from genval.runtime.devices import available_memory

    return DecodedCache(available_memory() // (2 * jobs))


def find_objects(settings: EvaluateSettings) -> list[str]:
    """Return the sets with unknown objects that exist."""
    from genval.datasets.ood_sets import find_ood_items

    def has(name: str) -> bool:
        try:
            find_ood_items(name, datasets_dir=settings.datasets_dir)
        except GenValError:
            return False
        return True

    pasted = f"{settings.datasets_dir}/pasted"
    pair = [f"pair:{pasted}/images,{pasted}/masks"] if resolve(pasted).is_dir() else []
    return [*filter(has, path_dicts.OOD_ROOTS), *pair]


def detect(models: dict[str, tuple[int, int]], objects: list[str], settings: EvaluateSettings) -> None:
    """Run ood_detection/main_gen_ood.py with all segmenters of an input size, on some sets at a time."""
    logs = resolve(settings.ood_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def run(name: str, size: tuple[int, int], log: Path) -> bool:
        flags = {
            "segmenters": ",".join(model for model in models if models[model] == size),
            "trg_dataset": name,
            "input_size": "x".join(map(str, size)),
            "output_dir": settings.ood_dir,
            "datasets_dir": settings.datasets_dir,
            "batch_size": settings.batch_size,
            "num_workers": settings.num_workers,
            "accelerator": settings.accelerator,
            "devices": 1,
        }
        with log.open("ab") as stream:
            command = [sys.executable, *Command("ood_detection/main_gen_ood", flags).argv]
            return not subprocess.run(command, cwd=REPO_ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode

    runs = [
        (name, size, logs / f"{'pasted' if name.startswith('pair:') else name}-{size[1]}.log")
        for name in reversed(objects)
        for size in sorted(set(models.values()), reverse=True)
    ]
    with ThreadPoolExecutor(settings.jobs) as pool:
        failed = [one for one, done in zip(runs, pool.map(lambda one: run(*one), runs), strict=True) if not done]
    if failed:
        raise GenValError(f"{len(failed)} of {len(runs)} runs on unknown objects failed, see {failed[0][2]}.")
    print(f"unknown objects: {len(objects)} sets")


if __name__ == "__main__":
    cli.run(main, EvaluateSettings, __doc__)
