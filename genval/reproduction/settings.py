"""Settings of reproduce.py. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genval.runtime.flags import flag
from genval.runtime.settings import comma_list, positive_int, trust_code_flag


@dataclass(frozen=True, kw_only=True)
class ReproductionSettings:
    """Settings of reproduce.py."""

    SCRIPT: ClassVar[str] = "reproduce"

    domains: tuple[str, ...] = flag(
        ("fog", "night", "rain", "snow", "india"),
        "domains: some of fog,night,rain,snow,india",
        type=comma_list,
        title="what is reproduced",
    )
    segmenters: str = flag("all", "segmenters as given to relis/eval.py")
    finetune: tuple[str, ...] = flag(
        (),
        "segmenters to fine-tune on the generated objects; both versions are compared on the other sets of objects",
        type=comma_list,
    )
    trust_code: bool = trust_code_flag()
    num_samples: int = flag(512, "generated images per domain", type=positive_int)
    num_object_images: int | None = flag(None, "images per object (default: that of sd_inpaint.py)", type=positive_int)
    object_domains: tuple[str, ...] = flag(
        (), "domains into whose generated images objects are inpainted too, such as fog,night", type=comma_list
    )
    logit_pixels: int = flag(20000, "pixels per image whose logits are saved for calibration", type=positive_int)
    render: bool = flag(False, "render the mini world's data sets first")
    stages: tuple[str, ...] = flag(
        ("all",), "only these stages: render, generate, evaluate, ... as printed", type=comma_list
    )
    dry_run: bool = flag(False, "print the plan with every command, and stop", title="run")
    overwrite: bool = flag(False, "let every step compute its files again")
    jobs: int = flag(1, "number of steps that run at the same time, each with a log file", type=positive_int)
    accelerator: str = flag("auto", "auto, cpu or gpu")
    devices: str | None = flag(None, "number of devices of a step (default: all; with several jobs, one)")
    batch_size: int | None = flag(
        None, "batch size of every stage that has this flag (default: the stage's own)", type=positive_int
    )
    output_dir: str = flag("results/reproduce", "folder of steps.json and the logs")
    preset: str | None = None
