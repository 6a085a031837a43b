"""The specification of a fine-tuned segmenter. Importing this module does not import torch."""

from __future__ import annotations

from pathlib import Path

import path_dicts

WEIGHTS, CONFIG = "model.pth", "config.json"


def output_specification(name: str, output: Path | str) -> str:
    """Return the specification of the segmenter that relis/finetune.py writes.

    Args:
        name: of the segmenter that is fine-tuned: of the model zoo, of the mini world, or a specification.
        output: the folder of the result.

    >>> output_specification("mini-fast-scnn", "new")
    'mmseg:mini/segmenters/fast-scnn.py,new/model.pth'
    >>> output_specification("hf:OWNER/NAME", "new"), output_specification("smp:unet,resnet18,a.pth", "new")
    ('hf:new', 'smp:unet,resnet18,new/model.pth')
    """
    weights = f"{output}/{WEIGHTS}"
    if name in path_dicts.ZOO:
        entry = path_dicts.ZOO[name]
        config = f"{output}/{CONFIG}" if entry.get("overrides") else entry["config"]
        return f"mmseg:{config},{weights}"
    prefix, _, rest = path_dicts.MINI_SEGMENTERS.get(name, name).partition(":")
    parts = [part.strip() for part in rest.split(",")]
    if prefix == "hf":
        return f"hf:{output}"
    return f"{prefix}:{','.join([*parts[: 2 if prefix == 'smp' else 1], weights])}"
