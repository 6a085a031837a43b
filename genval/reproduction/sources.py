"""Data sets and weights that a plan needs from outside: where they are looked for, and where to get them."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

import path_dicts
from genval.datasets import find_items
from genval.datasets.layouts import find_root
from genval.datasets.ood_sets import find_ood_items
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError
from genval.runtime.flags import canonical
from genval.runtime.paths import REPO_ROOT, find_below, resolve

# The sets' own pages.
PAGES: dict[str, str] = {
    "Cityscapes": "https://www.cityscapes-dataset.com (leftImg8bit and gtFine)",
    "ACDC": "https://acdc.vision.ee.ethz.ch (rgb_anon and gt)",
    "IDD": "https://idd.insaan.iiit.ac.in (IDD Segmentation, masks made with its level3Ids)",
    "CamVid": "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid",
    "RoadAnomaly21": "https://segmentmeifyoucan.com/datasets",
    "RoadObstacle21": "https://segmentmeifyoucan.com/datasets",
}
MODEL_ZOO = "https://github.com/open-mmlab/mmsegmentation/blob/v0.30.0/docs/en/model_zoo.md"

# The weights a script takes without a preset, by its flag, and how one comes by those that no hub has.
WEIGHTS: dict[str, dict[str, str]] = {
    "ControlNet/clip_int": {"blip": "Salesforce/blip-image-captioning-large", "clip": "ViT-L-14/openai"},
    "ControlNet/style_transfer": {
        "base": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "controlnet": "checkpoints/controlnet_cs",
    },
    "ood_objects/sd_inpaint": {"inpainting_model": "stable-diffusion-v1-5/stable-diffusion-inpainting"},
    "ood_objects/refine_gen_images": {"inpainting_model": "stable-diffusion-v1-5/stable-diffusion-inpainting"},
    "ood_objects/get_masks": {
        "detector": "IDEA-Research/grounding-dino-tiny",
        "sam": "facebook/sam-vit-huge",
        "clip": "ViT-L-14/openai",
    },
}
_SUFFIXES = ("", ".ckpt", ".safetensors")
# open_clip's names are of packages' own downloads, in no folder of ours.
_OPEN_CLIP = re.compile(r"[^/]+/(openai|laion.*|datacomp.*)")


def weights_of(script: str, preset: str | None) -> dict[str, str]:
    """The weights a script takes, by its flag."""
    return {flag: str(option(preset, script, flag, name)) for flag, name in WEIGHTS.get(script, {}).items()}


def find_weights(script: str, preset: str | None) -> tuple[tuple[Path, ...], tuple[Missing, ...]]:
    """Where a script's weights are, and those that are nowhere."""
    found: list[Path] = []
    missing: list[Missing] = []
    for flag, name in weights_of(script, preset).items():
        if name == "none" or _OPEN_CLIP.fullmatch(name):
            continue
        path = _find(name)
        if path is not None:
            found.append(path)
        elif flag != "base" or not _brings_base(script, preset):
            missing.append(Missing(f"{name} (--{flag} of {script}.py)", _remedy(name)))
    return tuple(found), tuple(missing)


def _brings_base(script: str, preset: str | None) -> bool:
    """Whether the script takes the base in its ControlNet's own file, as it does where no other is given."""
    path = _find(weights_of(script, preset)["controlnet"])
    if path is None or not path.is_file() or option(preset, script, "base", None) is not None:
        return False
    # Only here: importing torch takes seconds, and most plans do not come by.
    from genval.diffusion.models.controlnet import DEFAULT_BASE, default_base

    return default_base(path) != DEFAULT_BASE


def _find(name: str) -> Path | None:
    parts = Path(name).parts
    for suffix in _SUFFIXES:
        path = resolve(f"{name}{suffix}")
        below = (
            find_below("checkpoints", Path(*parts[1:])) if parts[:1] == ("checkpoints",) and len(parts) > 1 else None
        )
        for place in (path, below):
            if place is not None and place.exists():
                return place
    # A download of an earlier run, in the folders that huggingface_hub keeps: looked at without importing it.
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    return snapshots if len(parts) == 2 and snapshots.is_dir() else None


def _remedy(name: str) -> str:
    if name.startswith("checkpoints/mini/"):
        return "it comes with the repository (git pull), or train it: docs/mini.md"
    if name.startswith("checkpoints/"):
        return f"train it (python ControlNet/train.py), or link one: ln -s PATH {name}"
    return f"hf download {name}"


def find_models(models: list[str]) -> tuple[dict[str, tuple[Path, ...]], dict[str, Missing]]:
    """The segmenters whose weights are here, with their files and folders, and those whose weights are not.

    What `path_dicts.py` does not name (`hf:NAME`, say) is left to relis/eval.py, which says what it misses.
    """
    found: dict[str, tuple[Path, ...]] = {}
    missing: dict[str, Missing] = {}
    for model in models:
        if model in path_dicts.ZOO:
            file = path_dicts.ZOO[model]["checkpoint"]
            path = find_below(path_dicts.CHECKPOINT_ROOT, file)
            expected = f"{path_dicts.CHECKPOINT_ROOT}/{file}"
            # As in the zoo's own names: date, time and eight digits of the hash.
            in_zoo = re.search(r"_\d{8}_\d{6}-[0-9a-f]{8}\.pth$", file)
            remedy = MODEL_ZOO if in_zoo else f"train {path_dicts.ZOO[model]['config']} with mmsegmentation"
        elif model in path_dicts.MINI_SEGMENTERS:
            expected = re.split("[:,]", path_dicts.MINI_SEGMENTERS[model])[-1]
            path = resolve(expected) if resolve(expected).exists() else find_below(path_dicts.CHECKPOINT_ROOT, expected)
            remedy = _remedy(expected)
        else:
            found[model] = _files_of(model)
            continue
        if path is None:
            missing[model] = Missing(f"{model}: {expected}", remedy)
        else:
            found[model] = (path, *_files_of(path_dicts.MINI_SEGMENTERS.get(model, "")))
    return found, missing


def _files_of(model: str) -> tuple[Path, ...]:
    """The files and folders that a segmenter's form names, and those beside a file that have its name: external data
    of an ONNX file, `FILE.json`.
    """
    found: list[Path] = []
    for part in re.split("[:,]", model):
        path = resolve(part)
        if part and path.is_dir():
            found.append(path)
        elif part and path.is_file():
            found += [path, *path.parent.glob(f"{glob.escape(path.stem)}.*")]
    return tuple(dict.fromkeys(found))


def find_data(datasets: list[str], datasets_dir: str) -> dict[str, Missing]:
    """The data sets that are not there."""
    missing: dict[str, Missing] = {}
    for dataset in datasets:
        try:
            find_root(dataset, datasets_dir=datasets_dir)
        except GenValError as error:
            page = f"{PAGES[dataset]}; " if dataset in PAGES else ""
            expected = f"{datasets_dir}/{Path(path_dicts.DATASET_ROOTS.get(dataset, dataset)).name}"
            missing[dataset] = Missing(
                f"data set {dataset} in {expected}", f"{page}ln -s PATH {expected}" if page else str(error)
            )
    return missing


def count_images(dataset: str, cond: str, datasets_dir: str) -> int | None:
    """Return the number of images of a set; None if it is missing or incomplete."""
    try:
        return len(find_items(dataset, cond, datasets_dir=datasets_dir))
    except GenValError:
        return None


def list_images(dataset: str, cond: str, datasets_dir: str, generated_dir: str) -> list[Path]:
    """The images and masks of a set; none where it is not there."""
    try:
        items = find_items(dataset, cond, datasets_dir=datasets_dir, generated_dir=generated_dir, skipped=[])
    except GenValError:
        return []
    return [path for item in items for path in (item.image, item.mask)]


def list_ood_images(dataset: str, datasets_dir: str) -> list[Path]:
    """The images and masks of a set of unknown objects; none where it is not there."""
    try:
        items = find_ood_items(dataset, datasets_dir, skipped=[]).items
    except GenValError:
        return []
    return [path for item in items for path in (item.image, item.mask)]


def count_ood_images(dataset: str, datasets_dir: str) -> int:
    try:
        return len(find_ood_items(dataset, datasets_dir).items)
    except GenValError:
        return 0


def caption_files(data_dir: Path) -> tuple[Path, ...]:
    """Where ControlNet/style_transfer.py looks for captions of Cityscapes val."""
    names = ("training/val.jsonl", "captions/captions_cityscapes.json")
    roots = (data_dir, data_dir.parent, REPO_ROOT / "ControlNet", REPO_ROOT)
    return tuple(root / name for root in roots for name in names)


def option(preset: str | None, script: str, flag: str, default: Any) -> Any:
    """Return what a script takes for a flag: the preset's value, else the script's own default."""
    given = path_dicts.PRESETS.get(preset or "", {}).get(script, {})
    return {canonical(name): value for name, value in given.items()}.get(flag, default)
