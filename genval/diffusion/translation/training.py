"""The training of a translator: its losses, its loop, and the state from which a run resumes."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genval.artifacts.fingerprint import files_hash
from genval.artifacts.settings import write_settings
from genval.datasets.unlabelled import find_unlabelled
from genval.diffusion.translation.data import Frame, TranslationData, find_clear, load_data
from genval.diffusion.translation.network import (
    CONFIG,
    WEIGHTS,
    Discriminator,
    PatchHeads,
    Translator,
    patch_loss,
    save_translator,
    to_uint8,
)
from genval.diffusion.translation.settings import TranslationTrainingSettings
from genval.runtime.devices import choose_precision, launch_fabric
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, replace_file, write_csv, write_json, write_png
from genval.runtime.locks import lock_folders
from genval.runtime.paths import resolve
from genval.runtime.precision import autocast
from genval.runtime.progress import progress_bar
from genval.training.interruption import Interruption

_STATE = "training.ckpt"
_RECORD = "training.json"
_LOG = "log.csv"
_SAMPLES = "image_log"
_HEADER = ("step", "seconds", "images_per_second", "adversarial", "discriminator", "contrastive")


@dataclasses.dataclass(frozen=True)
class TranslationPlan:
    """What a run trains on, known before an image is decoded.

    Attributes:
        clear: the clear images.
        domains: the images of each domain, in the order of the settings.
        output: the folder that is written.
        record: everything that decides about the weights, as JSON values.
        is_done: whether a finished training of the same record is there.
    """

    clear: list[Frame]
    domains: list[list[Frame]]
    output: Path
    record: dict[str, Any]
    is_done: bool


def plan_training(settings: TranslationTrainingSettings) -> TranslationPlan:
    """Find the images, and compare the run with the one in the output folder.

    Raises:
        GenValError: there are no images, or the output folder is of a training with other settings.
    """
    clear = find_clear(settings)
    domains = [
        [
            Frame(path)
            for name, folder in settings.unlabelled
            if name == domain
            for path in find_unlabelled(folder, f"--unlabelled {domain}")
        ]
        for domain in settings.domains
    ]
    output, balanced = resolve(settings.output), settings.config.balance_classes
    record = {
        "domains": list(settings.domains),
        "images_hash": [files_hash(frame.image for frame in frames) for frames in (clear, *domains)],
        **({"masks_hash": files_hash(frame.mask for frame in clear if frame.mask)} if balanced else {}),
        **settings.config.record(),
    }
    if not settings.overwrite:
        _check_record(output, record)
    is_done = not settings.overwrite and (output / WEIGHTS).exists() and not (output / _STATE).exists()
    return TranslationPlan(clear, domains, output, record, is_done)


def _check_record(output: Path, record: dict[str, Any]) -> None:
    if not (output / _RECORD).exists():
        if (output / CONFIG).exists() or (output / WEIGHTS).exists():
            raise GenValError(
                f"{output} holds a model but no {_RECORD}: give another --output, or --overwrite to replace it."
            )
        return
    before = read_json(output / _RECORD, dict[str, Any])
    changed = [f"{key} {now} (was {before.get(key)})" for key, now in record.items() if before.get(key) != now]
    if changed:
        raise GenValError(
            f"{output} holds a training with other settings: {', '.join(changed)}. Give the same ones to resume, "
            "another --output, or --overwrite to start again."
        )


class Average:
    """The exponential moving average of a network's weights; shorter in the first steps."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.average: Any = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update with the weights after `step` (0 is the first)."""
        decay = min(self.decay, (step + 1) / (step + 10)) if self.decay else 0.0
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)


class TranslationTraining:
    """The networks and optimisers of a training, and its random numbers.

    Args:
        settings: of the run.
        data: the images.
        device: of the networks.
        precision: "32-true" or "bf16-mixed".
    """

    def __init__(
        self, settings: TranslationTrainingSettings, data: TranslationData, device: torch.device, precision: str
    ) -> None:
        self.config, self.data, self.device, self.precision = settings.config, data, device, precision
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            translator = Translator(settings.domains, config.channels, config.blocks, config.height, config.width)
            discriminator = Discriminator(len(settings.domains), config.channels)
            heads = PatchHeads(translator.feature_channels)
        layout = torch.channels_last
        self.translator = translator.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.discriminator = discriminator.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.heads = heads.to(device)
        self.average = Average(self.translator, config.ema)
        if settings.compile == "on":
            self.translator.compile()
            self.discriminator.compile()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimisers = [
            torch.optim.Adam(parameters, lr=config.lr, betas=(0.5, 0.999), fused=device.type == "cuda")
            for parameters in (
                [*self.translator.parameters(), *self.heads.parameters()],
                list(self.discriminator.parameters()),
            )
        ]
        self.step, self.seconds = 0, 0.0
        self.rows: list[list[float]] = []

    def progress(self) -> float:
        """Return the completed fraction of the training, 0..1: by steps, or by time if that is further advanced."""
        elapsed = self.seconds / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(self.step / self.config.max_steps, elapsed))

    def train_step(self) -> Tensor:
        """Take one step of the discriminator and one of the translator.

        Returns:
            The adversarial loss, the discriminator's loss and the contrastive loss, float32 (3,).
        """
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.config.lr * min(1.0, 2 * (1 - self.progress()))
        clear, target, domain, positions = self.data.batch(self.step, self.generator)
        inputs, domains = torch.cat([clear, target]), domain.repeat(2)
        with autocast(self.device, self.precision):
            generated, keys = self.translator(inputs, domains)
        fake = generated[: len(clear)]
        translator, discriminator = self.optimisers

        self.discriminator.requires_grad_(True)
        with autocast(self.device, self.precision):
            told = (
                _squared(self.discriminator(target, domain) - 1) + _squared(self.discriminator(fake.detach(), domain))
            ) / 2
        discriminator.zero_grad(set_to_none=True)
        told.backward()
        discriminator.step()

        self.discriminator.requires_grad_(False)
        with autocast(self.device, self.precision):
            adversarial = _squared(self.discriminator(fake, domain) - 1)
            # Translated clear images keep their content, and images of the domain stay as they are.
            _, queries = self.translator(generated, domains, only_features=True)
            contrastive = patch_loss(self.heads(queries, positions), self.heads(keys, positions))
        translator.zero_grad(set_to_none=True)
        (adversarial + self.config.nce_weight * contrastive).backward()
        translator.step()

        self.average.update(self.step)
        self.step += 1
        return torch.stack([adversarial.detach(), told.detach(), contrastive.detach()])

    def state(self) -> dict[str, Any]:
        """Return everything from which the training continues."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "noise": self.generator.get_state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            **{name: network.state_dict() for name, network in self._networks()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        for name, network in self._networks():
            network.load_state_dict(state[name])
        for optimiser, before in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(before)
        self.generator.set_state(state["noise"])
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]

    def _networks(self) -> Iterator[tuple[str, torch.nn.Module]]:
        yield "translator", self.translator
        yield "discriminator", self.discriminator
        yield "heads", self.heads
        yield "average", self.average.average

    @torch.no_grad()
    def translated(self, images: Tensor) -> np.ndarray:
        """Translate images, uint8 (N, 3, H, W), into every domain; return rows of a contact sheet, RGB uint8."""
        rows = []
        for image in images.to(self.device):
            repeated = (image.float() / 127.5 - 1).expand(len(self.translator.domains), -1, -1, -1)
            with autocast(self.device, self.precision):
                made, _ = self.average.average(repeated, torch.arange(len(repeated), device=self.device))
            rows.append(torch.cat([image[None], to_uint8(made)]).permute(2, 0, 3, 1).flatten(1, 2))
        return np.ascontiguousarray(torch.cat(rows).cpu().numpy())


def train_translation(settings: TranslationTrainingSettings, plan: TranslationPlan) -> TranslationTraining:
    """Train a translator and write it; continue a training that was interrupted.

    Raises:
        GenValError: an image is bad, the output cannot be written, or the weights are not finite.
        KeyboardInterrupt: interrupted, with the number of the signal; the state is saved.
    """
    fabric = launch_fabric(settings)
    device = fabric.device
    precision = choose_precision(settings.precision, device).replace("bf16-true", "bf16-mixed")
    with lock_folders([plan.output]):
        data = load_data(settings, plan.clear, plan.domains, device)
        training = TranslationTraining(settings, data, device, precision)
        if settings.overwrite:
            shutil.rmtree(plan.output / _SAMPLES, ignore_errors=True)
            (plan.output / _STATE).unlink(missing_ok=True)
        for name in (WEIGHTS, CONFIG):  # an interrupted run must not leave the weights of an earlier one
            (plan.output / name).unlink(missing_ok=True)
        state = _read_state(plan.output / _STATE)
        if state is not None:
            training.restore(state)
        write_settings(plan.output, settings)
        write_json(plan.output / _RECORD, plan.record)
        with torch.backends.cudnn.flags(enabled=True, benchmark=device.type == "cuda"):
            _fit(training, settings, plan.output)
        save_translator(training.average.average, plan.output, settings.save_dtype)
        (plan.output / _STATE).unlink(missing_ok=True)
    return training


def _fit(training: TranslationTraining, settings: TranslationTrainingSettings, output: Path) -> None:
    sums, since = torch.zeros(3, device=training.device), training.step
    last = started = time.perf_counter() - training.seconds
    last += training.seconds
    shown = _spread(training.data.clear, settings.num_images)
    bar = progress_bar(settings.config.max_steps, "Training", unit="step", initial=training.step)
    with bar, Interruption() as interruption:
        while training.progress() < 1:
            sums += training.train_step()
            bar.update()
            step = training.step
            training.seconds = time.perf_counter() - started
            done = training.progress() >= 1
            if step % settings.log_every == 0 or done:
                means = (sums / (step - since)).tolist()
                now = time.perf_counter()
                speed = (step - since) * settings.config.batch_size / (now - last)
                training.rows.append([step, round(now - started, 1), round(speed, 1), *(round(v, 5) for v in means)])
                write_csv(output / _LOG, _HEADER, training.rows)
                bar.set_postfix(contrastive=f"{means[2]:.3f}", adversarial=f"{means[0]:.3f}", refresh=False)
                sums, since, last = torch.zeros_like(sums), step, now
            if settings.images_every and (step % settings.images_every == 0 or done):
                write_png(output / _SAMPLES / f"step_{step:06d}.png", training.translated(shown))
            signal = interruption.number
            if signal or step % settings.checkpoint_every == 0 or done:
                _save_state(training, output / _STATE)
            if signal:
                raise KeyboardInterrupt(signal)


def _save_state(training: TranslationTraining, path: Path) -> None:
    if not all(bool(weight.isfinite().all()) for weight in training.translator.parameters()):
        raise GenValError(
            f"The weights are not finite after step {training.step}: nothing was saved of it. Give a lower --lr, or "
            "--precision 32-true, and --overwrite."
        )
    with replace_file(path) as temporary:
        torch.save(training.state(), temporary)


def _read_state(path: Path) -> dict[str, Any] | None:
    """Return the state of an interrupted training, or None; a damaged one is named on standard error."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others
        print(f"warning: {path} is damaged ({error}): the training starts again.", file=sys.stderr)
        return None


def _squared(values: Tensor) -> Tensor:
    return values.float().square().mean()


def _spread(images: Tensor, count: int) -> Tensor:
    """Return at most `count` images that are evenly spread over a set."""
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int).tolist()]


def image_counts(settings: TranslationTrainingSettings, plan: TranslationPlan) -> str:
    """Describe the images of a run in words, such as "2975 clear, 600 night"."""
    counts: Sequence[tuple[str, int]] = [
        ("clear", len(plan.clear)),
        *zip(settings.domains, map(len, plan.domains), strict=True),
    ]
    return ", ".join(f"{count} {name}" for name, count in counts)
