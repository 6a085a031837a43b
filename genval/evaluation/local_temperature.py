"""Local temperature scaling: a network is trained on the saved logits of one set and tested on those of another."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.tensors import PackedTensors, read_about, write_part
from genval.datasets import CLASSES, IGNORE, label_space_of
from genval.datasets.reading import read_image
from genval.evaluation.calibration import ImageSet
from genval.evaluation.diagrams import write_reliability_diagram
from genval.evaluation.inference import sample_pixels
from genval.evaluation.settings import CalibrationSets, LocalTestSettings
from genval.metrics.local_temperature import LocalTemperature, scaled_nll
from genval.metrics.statistics import measure
from genval.metrics.temperature import Pixels, search_ece, search_nll
from genval.results.finding import open_tensors, provenance
from genval.results.provenance import images_mark, require_classes, require_model
from genval.results.scenes import SceneResults, Summary, folder_name, summarise
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.files import remove_leftovers, write_json
from genval.runtime.locks import lock_folders
from genval.runtime.paths import resolve
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed

NETWORK_FILE = "local_temperature.safetensors"
STATE_FILE = "training_state.safetensors"
# Of the epoch before, for the case that the last one is damaged.
STATE_BEFORE = "training_state_before.safetensors"
# Number of pixels, over all images, on which the single temperatures are searched.
_SEARCHED = 1_000_000


@dataclass(frozen=True)
class LocalTraining:
    """How the network is trained."""

    epochs: int  # passes over the images
    crop_size: int  # side of the training crops in pixels
    batch_size: int  # crops per step
    lr: float  # initial learning rate of Adam; it decays to zero along a cosine
    seed: int  # seed of the order, the crops and the initial weights


@dataclass(frozen=True)
class WholeImage:
    """One image with the logits of all of its pixels, on the CPU."""

    logits: Tensor  # float32 (1, C, H, W)
    image: Tensor  # RGB uint8 (1, 3, H, W)
    labels: Tensor  # uint8 (1, H, W)

    def crop(self, size: int, seed: int) -> WholeImage:
        """Return a random square; a side that is not longer than `size` stays whole."""
        generator = np.random.default_rng(seed)
        top, left = (int(generator.integers(max(0, side - size) + 1)) for side in self.labels.shape[1:])
        place = (..., slice(top, top + size), slice(left, left + size))
        return WholeImage(self.logits[place], self.image[place], self.labels[place])

    def to(self, device: torch.device) -> WholeImage:
        """Return a copy on a device."""
        return WholeImage(self.logits.to(device), self.image.to(device), self.labels.to(device))


@dataclass(frozen=True)
class SavedLogits:
    """The place of an image's logits and pixels."""

    scene: SceneResults
    record: dict[str, Any]  # from the scene's manifest
    tensors: PackedTensors

    @property
    def id(self) -> str:
        """The image's id."""
        return str(self.record["id"])

    def read(self) -> WholeImage:
        """Read the image and its logits.

        Raises:
            GenValError: a file is missing or has changed, or not all pixels' logits were saved.
        """
        path = resolve(self.record["image"])
        if file_mark(path) != self.record["image_mark"]:
            raise GenValError(f"{path} has changed since its logits were saved. Run: {_command(self.scene)}")
        image = read_image(path)
        height, width = image.shape[:2]
        logits, labels, indices = self.tensors.read(self.id, "logits", "labels", "indices")
        if not np.array_equal(indices, np.arange(height * width)):
            raise GenValError(
                f"{self.tensors.path} holds {len(indices)} of the {height * width} pixels of {self.id}: a temperature "
                f"that depends on a pixel's surroundings needs all. Run: {_command(self.scene)}"
            )
        logits_map = torch.from_numpy(logits.astype(np.float32).T.reshape(1, -1, height, width))
        labels_map = torch.from_numpy(labels.reshape(1, height, width))
        return WholeImage(logits_map, torch.from_numpy(image).permute(2, 0, 1)[None], labels_map)


def list_saved(scenes: Sequence[SceneResults], subsamples: int | None = None, seed: int = 0) -> list[SavedLogits]:
    """List the images of a set with saved logits, in the order of scenes and ids.

    Args:
        scenes: the scenes of the set.
        subsamples: number of images chosen at random; None for all.
        seed: seed of the choice.

    Raises:
        GenValError: a scene has no saved logits.
    """
    found: list[SavedLogits] = []
    for results in scenes:
        tensors = open_tensors(results, "logits", logit_pixels=-1)
        records = {record["id"]: record for record in results.records()}
        found += [SavedLogits(results, records[item_id], tensors) for item_id in tensors.ids]
    if subsamples is not None and subsamples < len(found):
        generator = np.random.default_rng(item_seed(seed, "subsamples"))
        found = [found[row] for row in np.sort(generator.choice(len(found), subsamples, replace=False))]
    return found


def single_temperatures(images: Sequence[SavedLogits], seed: int) -> dict[str, float]:
    """Return the single temperatures of a set with the lowest NLL and (on the published grid) the lowest ECE.

    They are searched on random pixels, the same number from each image.
    """
    number = max(1, _SEARCHED // len(images))
    logits, labels = [], []
    for image in images:
        whole = image.read()
        flat, flat_labels = whole.logits[0].flatten(1), whole.labels.flatten()
        chosen = torch.from_numpy(sample_pixels(len(flat_labels), number, seed, image.id))
        logits.append(flat[:, chosen].T.numpy())
        labels.append(flat_labels[chosen].numpy())
    pixels = Pixels.from_logits(np.concatenate(logits), np.concatenate(labels))
    return {"nll": search_nll(pixels).temperature, "ece": search_ece(pixels).temperature}


def train(
    images: Sequence[SavedLogits], training: LocalTraining, folder: Path, device: torch.device, overwrite: bool = False
) -> dict[str, Any]:
    """Train a network; resume an interrupted run, and keep a network that was trained with the same inputs.

    A damaged file is named on standard error; the training then resumes after the epoch before, or starts again.

    Args:
        images: the calibration set.
        training: how the network is trained.
        folder: the folder of the network and of the training state.
        device: where the network is trained.
        overwrite: train from the start.

    Returns:
        The metadata of the network's file: settings, `temperatures` from `single_temperatures`, and the mean `nll`
        of the set's labelled pixels without scaling, with the single temperature and with the network.

    Raises:
        GenValError: another run is training this network, or logits cannot be read.
    """
    with lock_folders([folder]):
        return _train(images, training, folder, device, overwrite)


def _train(
    images: Sequence[SavedLogits], training: LocalTraining, folder: Path, device: torch.device, overwrite: bool
) -> dict[str, Any]:
    remove_leftovers(folder)
    first = images[0].record
    model_record: dict[str, Any] = {
        key: first[key] for key in ("identity", "precision", "class_groups") if key in first
    }
    record = {"settings": asdict(training), "images": len(images), "logits": _digest(images), **model_record}
    record["images_mark"] = images_mark(image.record for image in images)
    network = LocalTemperature(_number_of_classes(first)).to(device)
    if not overwrite and (finished := _read_state(folder / NETWORK_FILE, record, network)) is not None:
        return finished
    optimizer = torch.optim.Adam(network.parameters(), training.lr)
    states = [] if overwrite else [folder / STATE_FILE, folder / STATE_BEFORE]
    state = next((read for path in states if (read := _read_state(path, record, network, optimizer))), None)
    if state is None:
        state = {**record, "epoch": 0, "temperatures": single_temperatures(images, training.seed)}
        generator = torch.Generator().manual_seed(item_seed(training.seed, "initial weights"))
        network = LocalTemperature(_number_of_classes(first), state["temperatures"]["nll"], generator).to(device)
        optimizer = torch.optim.Adam(network.parameters(), training.lr)
    steps = math.ceil(len(images) / training.batch_size)
    bar = progress_bar(
        training.epochs * len(images), f"training on {len(images)} images", initial=state["epoch"] * len(images)
    )
    with bar:
        for epoch in range(state["epoch"], training.epochs):
            order = np.random.default_rng(item_seed(training.seed, f"epoch {epoch}")).permutation(len(images))
            for step in range(steps):
                share = (epoch * steps + step) / (training.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = training.lr * (1 + math.cos(math.pi * share)) / 2
                chosen = order[step * training.batch_size : (step + 1) * training.batch_size]
                _step(network, optimizer, [images[row] for row in chosen], training, epoch, device)
                bar.update(len(chosen))
            if (folder / STATE_FILE).exists():
                os.replace(folder / STATE_FILE, folder / STATE_BEFORE)
            _save_state(folder / STATE_FILE, network, optimizer, {**state, "epoch": epoch + 1})
    finished = {**record, "temperatures": state["temperatures"], "nll": _mean_nll(images, network, device)}
    write_part(folder / NETWORK_FILE, _arrays(network), finished)
    for name in (STATE_FILE, STATE_BEFORE):
        (folder / name).unlink(missing_ok=True)
    return finished


def _read_state(
    path: Path, record: dict[str, Any], network: LocalTemperature, optimizer: torch.optim.Adam | None = None
) -> dict[str, Any] | None:
    """Load a network, and the optimizer's state, from a file with this record; return its metadata.

    Returns:
        None where there is no file, where it is damaged, or where it has another record; the last two are named on
        standard error.
    """
    try:
        about = read_about(path)
        if about is None:
            return None
        before = about.get("settings", {})
        changed = [
            f"--{key} {now} (was {before.get(key)})"
            for key, now in record["settings"].items()
            if before.get(key) != now
        ]
        if about.get("logits") != record["logits"] or about.get("images") != record["images"]:
            changed.append("other images or logits")
        if changed:
            print(f"{path} was trained with other settings: {', '.join(changed)}. Not used.", file=sys.stderr)
            return None
        if optimizer is None:
            _load(path, network)
        else:
            _restore(path, network, optimizer)
        return about
    except (GenValError, ValueError, KeyError) as error:
        print(f"warning: {path} is damaged ({error}): it is not used.", file=sys.stderr)
        return None


def _number_of_classes(record: Mapping[str, Any]) -> int:
    """Return how many classes a record's logits have: the 19, or its merged classes."""
    return len(record.get("class_groups", CLASSES))


def load_network(folder: Path, device: torch.device) -> tuple[LocalTemperature, dict[str, Any]]:
    """Read what `train` wrote.

    Raises:
        GenValError: the file is missing or does not hold a network of local temperatures.
    """
    metadata = read_about(folder / NETWORK_FILE)
    if metadata is None:
        raise GenValError(f"No network in {folder}. Run: python relis/train_lts_network.py with the same flags.")
    network = LocalTemperature(_number_of_classes(metadata))
    _load(folder / NETWORK_FILE, network)
    return network.to(device).eval(), metadata


def measure_scaled(
    images: Sequence[SavedLogits], scale: Callable[[WholeImage], Tensor], device: torch.device
) -> Summary:
    """Compute every metric of a set over all pixels, with logits divided by temperatures.

    Args:
        images: the images of the set.
        scale: maps an image on the device to temperatures, float32 (1, H, W) or a shape that broadcasts to it.
        device: where the metrics are computed.
    """

    def each() -> Iterator[tuple[str, Any]]:
        for image in images:
            whole = image.read().to(device)
            with torch.inference_mode():
                scaled = whole.logits / scale(whole)[:, None]
                yield image.id, measure(scaled[0], whole.labels[0], IGNORE)[1]

    space = label_space_of(images[0].scene.dataset)
    return summarise(each(), space.names, space.classes, space.class_sets, number=len(images))


def local_folder(sets: CalibrationSets, model: str, image_set: ImageSet, seed: int) -> Path:
    """Return the folder of a network."""
    method = "local" if sets.subsamples is None else f"local_{sets.subsamples}images"
    return resolve(sets.calibration_dir) / folder_name(model) / image_set.name / method / f"seed{seed}"


ERRORS = ("ece", "nll", "brier", "adaptive_ece", "ks", "classwise_ece")


def evaluate_networks(
    settings: LocalTestSettings, model: str, calibrating: ImageSet, tested: ImageSet, device: torch.device
) -> list[Any]:
    """Test the networks of one segmenter that were trained on one set on another set: write the files.

    Returns:
        A row of the table: segmenter, tested set, calibrating set, ECE in percent (unscaled, single temperature of
        lowest ECE, of lowest NLL, local), its standard deviation over seeds, NLL (unscaled, single, local).

    Raises:
        GenValError: a network or logits are missing.
    """
    loaded = [
        load_network(local_folder(settings.sets, model, calibrating, seed), device) for seed in settings.sets.seeds
    ]
    scenes = tested.find(settings.eval_dir, model, settings.preset, save="logits", logit_pixels=-1)
    made, images = provenance(scenes), list_saved(scenes)
    for _, metadata in loaded:
        remedy = "Run: python relis/train_lts_network.py with the same flags."
        network = f"the network trained on {calibrating.name}"
        require_model(made.model_record, scenes[0].folder, metadata, network, remedy)
        require_classes(made.model_record, scenes[0].folder, metadata, network)
        if settings.sets.subsamples is None:
            mark = metadata.get("images_mark")
            calibrating.require_same(mark, network, settings.eval_dir, model, settings.preset, remedy)
    single = {name: torch.full((1, 1, 1), value, device=device) for name, value in loaded[0][1]["temperatures"].items()}
    one = torch.ones(1, 1, 1, device=device)

    def constant(value: Tensor) -> Callable[[WholeImage], Tensor]:
        return lambda _: value

    def predicted_by(network: LocalTemperature) -> Callable[[WholeImage], Tensor]:
        return lambda image: network(image.logits, image.image)

    unscaled = measure_scaled(images, constant(one), device)
    singles = {name: measure_scaled(images, constant(value), device) for name, value in single.items()}
    local = [measure_scaled(images, predicted_by(network), device) for network, _ in loaded]
    mean = {name: float(np.mean([summary.metrics[name] for summary in local])) for name in ERRORS}
    spread = {name: float(np.std([summary.metrics[name] for summary in local])) for name in ERRORS}
    values = {
        "model": model,
        "tested_on": tested.name,
        "calibrated_on": calibrating.name,
        "images": len(images),
        **made.model_record,
        "seeds": list(settings.sets.seeds),
        "temperatures": loaded[0][1]["temperatures"],
        "unscaled": unscaled.metrics,
        "single": {name: summary.metrics for name, summary in singles.items()},
        "local": [summary.metrics for summary in local],
        "local_mean": mean,
        "local_std_over_seeds": spread,
    }
    place = resolve(settings.output_dir) / folder_name(model) / tested.name / f"from_{calibrating.name}"
    stem = local_folder(settings.sets, model, calibrating, settings.sets.seeds[0]).parent.name
    write_json(place / f"{stem}.json", values)
    panels = {"unscaled": unscaled.total, "single temperature": singles["nll"].total, "local": local[0].total}
    write_reliability_diagram(place / f"{stem}_reliability.png", panels)
    errors = [
        100 * metrics["ece"] for metrics in (unscaled.metrics, *(singles[n].metrics for n in ("ece", "nll")), mean)
    ]
    likelihoods = [unscaled.metrics["nll"], singles["nll"].metrics["nll"], mean["nll"]]
    return [model, tested.name, calibrating.name, *errors, 100 * spread["ece"], *likelihoods]


def _step(
    network: LocalTemperature,
    optimizer: torch.optim.Adam,
    images: Sequence[SavedLogits],
    training: LocalTraining,
    epoch: int,
    device: torch.device,
) -> None:
    """Train one step on one crop per image; the crops are computed one by one, because they may differ in size."""
    # The crop of an image depends on its id and the epoch, not on the order or the batch size.
    crops = [
        image.read().crop(
            training.crop_size, item_seed(training.seed, f"{epoch}/{image.scene.cond}/{image.scene.scene}/{image.id}")
        )
        for image in images
    ]
    pixels = sum(int((crop.labels != IGNORE).sum()) for crop in crops)
    if not pixels:
        return
    optimizer.zero_grad()
    for crop in crops:
        on_device = crop.to(device)
        temperatures = network(on_device.logits, on_device.image)
        loss = scaled_nll(on_device.logits, temperatures, on_device.labels) / pixels
        loss.backward()
    optimizer.step()


def _mean_nll(images: Sequence[SavedLogits], network: LocalTemperature, device: torch.device) -> dict[str, float]:
    totals, pixels = np.zeros(3), 0
    for image in images:
        whole = image.read().to(device)
        with torch.inference_mode():
            one = torch.ones(whole.labels.shape, device=device)
            scales = (one, one * network.start, network(whole.logits, whole.image))
            totals += [float(scaled_nll(whole.logits, scale, whole.labels)) for scale in scales]
        pixels += int((whole.labels != IGNORE).sum())
    mean = (totals / pixels).tolist()
    if not np.isfinite(mean).all():
        raise GenValError("The training diverged: the likelihood is not finite. Give a smaller --lr.")
    return dict(zip(("unscaled", "single", "local"), mean, strict=True))


def _digest(images: Sequence[SavedLogits]) -> str:
    """Return a hash of the logits, labels and pixels."""
    files = {str(image.tensors.path): file_mark(image.tensors.path) for image in images}
    marks = [(image.id, *(image.record[key] for key in ("identity", "image_mark", "mask_mark"))) for image in images]
    text = json.dumps([sorted(files.values()), marks])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _arrays(network: LocalTemperature) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


def _save_state(path: Path, network: LocalTemperature, optimizer: torch.optim.Adam, metadata: dict[str, Any]) -> None:
    moments = {
        f"adam.{row}.{name}": value.detach().cpu().numpy()
        for row, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    write_part(path, _arrays(network) | moments, metadata)


def _restore(path: Path, network: LocalTemperature, optimizer: torch.optim.Adam) -> None:
    moments = _load(path, network)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        _, row, name = key.split(".")
        state.setdefault(int(row), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _load(path: Path, network: LocalTemperature) -> dict[str, Tensor]:
    """Load a network's weights from a file; return the other tensors of the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        network.load_state_dict({name: tensors.pop(name) for name in network.state_dict()})
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise GenValError(
            f"{path} does not hold a network of local temperatures. Delete it and run relis/train_lts_network.py again."
        ) from error
    return tensors


def _command(results: SceneResults) -> Command:
    return results.command().with_script("relis/extract_logits").with_flags(logit_pixels=-1)
