"""A fine-tuned segmenter on disk: weights in the format of its library, what it needs to be loaded, and its recipe."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genval.finetuning.paths import CONFIG, WEIGHTS, output_specification
from genval.runtime.errors import GenValError
from genval.runtime.files import replace_file, write_json
from genval.runtime.paths import REPO_ROOT
from genval.segmenters.checkpoints import read_state_dict
from genval.segmenters.normalisation import find_sidecar
from genval.segmenters.recipe import RECIPE
from genval.segmenters.registry import Specification, load_segmenter, specify

TRAINABLE = ("mmseg", "hf", "torchvision", "smp")


def check_trainable(name: str) -> Specification:
    """Return what a segmenter's name stands for, if it can be fine-tuned and saved.

    Raises:
        GenValError: it is an exported network or a Python function, or it is missing.
    """
    found = specify(name)
    if found.prefix not in TRAINABLE:
        raise GenValError(
            f"--segmenter {name}: {found.prefix}: cannot be fine-tuned, since its network cannot be changed and saved. "
            f"Give a name of the model zoo, or one of {', '.join(f'{prefix}:' for prefix in TRAINABLE)}."
        )
    return found


def save_segmenter(name: str, network: nn.Module, output: Path, dtype: str, recipe: Mapping[str, Any]) -> str:
    """Write the weights, the files that loading needs, and the recipe; return the segmenter's specification.

    Args:
        name: of the segmenter that was fine-tuned.
        network: with the new weights.
        output: the folder.
        dtype: of the weights, "fp32" or "fp16".
        recipe: the content of `recipe.json`, which is written last.
    """
    found = check_trainable(name)
    (output / RECIPE).unlink(missing_ok=True)
    state = {
        key: (value.half() if dtype == "fp16" and value.is_floating_point() else value).cpu().contiguous()
        for key, value in network.state_dict().items()
    }
    place = output.relative_to(REPO_ROOT) if output.is_relative_to(REPO_ROOT) else output
    if found.prefix == "hf":
        _save_transformers(found, network, output, state)
    else:
        meta = {}
        if found.file is not None and (names := read_state_dict(found.file).classes):
            meta = {"meta": {"dataset_meta": {"classes": list(names)}}}
        # Given a path, torch.save writes its name, which has the number of the process, into the file.
        with replace_file(output / WEIGHTS) as temporary, open(temporary, "wb") as stream:
            torch.save({"state_dict": state, **meta}, stream)
        sidecar = find_sidecar(found.file) if found.file is not None and found.prefix != "mmseg" else None
        if sidecar is not None:
            shutil.copy(sidecar, output / f"{WEIGHTS}.json")
        if found.overrides:
            _save_config(found, output / CONFIG)
    specification = output_specification(name, place)
    write_json(output / RECIPE, {**recipe, "segmenter": specification})
    return specification


def _save_config(found: Specification, path: Path) -> None:
    """Write the resolved config of a model of the zoo, with the zoo's changes."""
    from genval.segmenters.openmmlab import read_config

    content = read_config(found.parts[0], found.overrides)
    imports = content.get("custom_imports")
    write_json(path, {"model": content.model.to_dict(), **({"custom_imports": dict(imports)} if imports else {})})


def _save_transformers(found: Specification, network: Any, output: Path, state: dict[str, torch.Tensor]) -> None:
    """Write a folder in the transformers format: config and weights, and the processor's files."""
    from transformers.utils import cached_file

    output.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(output, state_dict=state)
    source = str(found.file or found.parts[0])
    # OneFormer's tokens are made by a tokenizer; its classes are in a file of their own.
    for name in (
        *("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
        *("tokenizer.json", "special_tokens_map.json"),
    ):
        file = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if file is not None:
            shutil.copy(file, output / name)


def check_saved(specification: str, class_map: str | None, trust_code: bool) -> None:
    """Load a saved segmenter, as every stage does.

    Raises:
        GenValError: it cannot be loaded.
    """
    load_segmenter(specification, "cpu", class_map=class_map, trust_code=trust_code)
