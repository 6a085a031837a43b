"""Settings of ood_objects/get_masks.py. Importing this module does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag, group
from genval.runtime.settings import DeviceSettings, RunSettings, comma_list, num_workers_flag, positive_int


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Settings of ood_objects/get_masks.py; the thresholds' defaults are the published ones."""

    SCRIPT: ClassVar[str] = "ood_objects/get_masks"

    images_dir: str = flag("images/ood_objects/refined", "images, {object}/{i}.png", title="input and output")
    positions_dir: str = flag("images/ood_objects/with_positions", "boxes of the objects")
    output_dir: str = flag("images/ood_objects/masks", "folder of the masks")
    objects: tuple[str, ...] | None = flag(
        None, "only these objects, by name or folder (default: all in the folder)", type=comma_list
    )
    curate: bool = flag(False, "write contact sheets and curated.json")
    detector: str = flag(
        "IDEA-Research/grounding-dino-tiny",
        "GroundingDINO, MM-GroundingDINO or OWLv2",
        title="models: a hub name, a folder, or a .pth file of GroundingDINO's or SAM's original format",
    )
    tokenizer: str = flag("bert-base-uncased", "tokenizer of BERT, which a .pth file does not contain")
    sam: str = flag("facebook/sam-vit-huge", "Segment Anything 1, 2, 2.1 or 3, or SAM-HQ")
    text_masks: bool = flag(False, "segment objects by their names, with SAM 3 as --sam and without a detector")
    clip: str = flag("ViT-L-14/openai", "CLIP model that judges the objects (see ControlNet/clip_int.py), or none")
    box_threshold: float = flag(0.25, "minimum score of a detection, 0 to 1", title="thresholds")
    text_threshold: float = flag(0.25, "minimum probability of a token of the object's name, 0 to 1")
    nms_threshold: float = flag(0.8, "maximum overlap of two detections of one object, 0 to 1")
    margin: float = flag(0.0, "context around the box that the models see, as a fraction of the box's side")
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device", precision="32-true")
    batch_size: int = flag(8, "images per forward pass", type=positive_int, title="speed")
    num_workers: int = num_workers_flag()
    preset: str | None = None

    def __post_init__(self) -> None:
        for name in ("box_threshold", "text_threshold", "nms_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise GenValError(f"--{name}: expected a number from 0 to 1, found {value}.")
        if not 0 <= self.margin < math.inf:
            raise GenValError(f"--margin: expected a fraction of the box's side, 0 or more; found {self.margin}.")
