"""The paper's protocol: what is reproduced, and what its stages are called."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import path_dicts
from genval.datasets.corruptions import CORRUPTIONS
from genval.reproduction.sources import count_images, list_images, option
from genval.results.scenes import model_list
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

STAGES = (
    *("render", "caption", "generate", "corrupt", "evaluate", "calibrate"),
    *("inpaint", "refine", "outline", "detect", "finetune", "correlate", "tables", "report"),
)
DOMAINS = ("fog", "night", "rain", "snow", "india")
CLEAR, CLEAR_COND = "Cityscapes", "clean"
# The scenes of Cityscapes val that calibrate, as published.
CALIBRATION_SCENES = "lindau,munster"
GENERATED, CORRUPTED, REAL = "generated", "corrupted", "real"
# With fewer images than this, starting a process and loading its libraries takes longer than a model's work in it.
FEW_IMAGES = 100


@dataclass(frozen=True)
class Protocol:
    """What is reproduced.

    Attributes:
        preset: `--preset` of every stage.
        domains: some of `DOMAINS`.
        models: as given to relis/eval.py.
        num_samples: generated images per domain; with `render`, also rendered images per set.
        num_object_images: generated images per object; None is the stage's own number.
        render: the mini world's data sets are rendered first.
        jobs: steps at a time; with several, models are evaluated by processes of their own.
        logit_pixels: pixels per image that are used for calibration.
        device: flags of every stage that computes on a device.
        batch_size: of these stages; None is the stage's own.
        overwrite: every stage makes its files again.
        trust_code: segmenters may run code from anywhere.
        object_domains: those of `domains` whose generated images also get inpainted objects.
        finetune: segmenters that are fine-tuned on the generated objects.
    """

    preset: str | None
    domains: tuple[str, ...]
    models: tuple[str, ...]
    num_samples: int
    num_object_images: int | None
    render: bool
    jobs: int
    logit_pixels: int
    device: tuple[str, ...]
    batch_size: int | None = None
    overwrite: bool = False
    trust_code: bool = False
    object_domains: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [domain for domain in self.domains if domain not in DOMAINS]
        if unknown:
            raise GenValError(f"--domains: {', '.join(unknown)} is none of {', '.join(DOMAINS)}.")
        known = (*path_dicts.ZOO, *path_dicts.MINI_SEGMENTERS)
        for name in (*self.models, *self.finetune):
            if ":" not in name and name not in known:
                close = difflib.get_close_matches(name, known, n=3)
                hint = f" Did you mean {' or '.join(close)}?" if close else ""
                raise GenValError(f"Unknown segmenter {name!r}.{hint} All names: python relis/eval.py --list_models.")
        absent = [domain for domain in self.object_domains if domain not in self.domains]
        if absent:
            raise GenValError(
                f"--object_domains: {', '.join(absent)} is none of --domains, {', '.join(self.domains)}. Objects are "
                "inpainted into generated images of a domain."
            )

    def option(self, script: str, flag: str, default: str) -> str:
        """What a stage takes for a flag."""
        return str(option(self.preset, script, flag, default))

    def command(self, script: str, *flags: str, device: bool = False) -> tuple[str, ...]:
        """A stage's command, without the interpreter."""
        preset = ("--preset", self.preset) if self.preset else ()
        return (f"{script}.py", *preset, *flags, *(self.on_device() if device else ()))

    def again(self) -> tuple[str, ...]:
        """The flag of stages that keep what they find, if they shall not."""
        return ("--overwrite",) if self.overwrite else ()

    def trust(self) -> tuple[str, ...]:
        """The flag of stages that load segmenters, if these may run code from anywhere."""
        return ("--trust_code",) if self.trust_code else ()

    def on_device(self) -> tuple[str, ...]:
        """The flags of stages that compute on a device."""
        batch = ("--batch_size", str(self.batch_size)) if self.batch_size else ()
        return (*self.device, *batch, *self.again())

    @property
    def datasets_dir(self) -> str:
        return self.option("relis/eval", "datasets_dir", "datasets")

    @property
    def root(self) -> Path:
        """What relis/eval.py writes."""
        return resolve(self.option("relis/eval", "eval_dir", "results/eval"))

    @property
    def report_dir(self) -> Path:
        """What report/ writes."""
        return resolve(self.option("report/correlate", "output_dir", "results/report"))

    @property
    def corruptible(self) -> tuple[str, ...]:
        """The domains that a corruption stands for."""
        return tuple(domain for domain in self.domains if domain in CORRUPTIONS)

    def real_sets(self) -> dict[str, tuple[str, ...]]:
        """The conditions needed of each real data set."""
        sets: dict[str, tuple[str, ...]] = {CLEAR: (CLEAR_COND,)}
        for domain in self.domains:
            dataset, cond = path_dicts.REAL_SETS[domain]
            sets[dataset] = (*sets.get(dataset, ()), cond)
        return sets

    def images_in(self, *sets: tuple[str, str]) -> dict[str, Callable[[], list[Path]]]:
        """What lists the files of sets, each a data set and a condition, by name."""
        generated = self.option("relis/eval", "generated_dir", path_dicts.GENERATED_ROOT)
        return {
            f"data set {dataset}, {cond}": functools.partial(list_images, dataset, cond, self.datasets_dir, generated)
            for dataset, cond in sets
        }

    def images_of(self, dataset: str, cond: str) -> int | None:
        """How many images a real set has, or will have once it is rendered; counted once a plan."""
        found = _count_once(dataset, cond, self.datasets_dir)
        return max(found or 0, self.num_samples) if self.render else found


# Every model's steps ask, and counting lists folders of thousands of files.
_count_once = functools.cache(count_images)


def group_models(protocol: Protocol, models: Sequence[str]) -> list[tuple[str, ...]]:
    """Which models share a process: all of them where the start of one would take longer than its work."""
    together = protocol.jobs == 1 and protocol.num_samples < FEW_IMAGES
    together = together or protocol.num_samples < FEW_IMAGES // 2
    return [tuple(models)] if together and models else [(model,) for model in models]


def list_models(protocol: Protocol, models: Sequence[str]) -> str:
    """Models as a flag takes them."""
    return "all" if list(models) == model_list("all", protocol.preset) else ",".join(models)


def step_name(verb: str, kind: str, group: Sequence[str], groups: Sequence[Sequence[str]]) -> str:
    """A step's name; where models have steps of their own, with the model."""
    return f"{verb} {kind}" if len(groups) == 1 else f"{verb} {kind}: {', '.join(group)}"
