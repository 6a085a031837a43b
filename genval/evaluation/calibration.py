"""Temperature scaling: temperatures are found on one set of images and tested on another, from saved logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.datasets import IGNORE, label_space_of
from genval.evaluation.diagrams import reliability_bins, write_reliability_diagram
from genval.evaluation.settings import (
    ALL,
    CalibrationMethod,
    CalibrationSets,
    TemperatureSettings,
    TemperatureTestSettings,
)
from genval.metrics.calibration import top1_metrics
from genval.metrics.clusters import ClusterModel, fit_clusters
from genval.metrics.statistics import measure
from genval.metrics.temperature import GRID, Pixels, scale_logits, search, search_per_class
from genval.results.clusters import load_clusters, save_clusters
from genval.results.finding import NoResultsError, list_scenes, mark_of, open_tensors, provenance
from genval.results.provenance import Provenance, require_classes, require_images, require_model
from genval.results.scenes import SceneResults, Summary, folder_name, pair, summarise
from genval.results.shapes import Temperatures
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, write_json
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

CLUSTER_FILE = "cluster_model.npz"
TEMPERATURE_FILE = "best_temperatures.json"
MEMORY = 4 << 30
"""Bytes for the logits of one set: 500 images with 20,000 pixels have 0.8 GB, of which there are a few copies."""


@dataclass(frozen=True)
class ImageSet:
    """The saved scenes of a data set on which a calibration is found or tested."""

    dataset: str
    conds: tuple[str, ...] = ("all",)
    scenes: tuple[str, ...] = ("all",)
    hardest: float = 1.0  # fraction of the images that calibrate, see `hardest_images`

    @property
    def name(self) -> str:
        """The name of the set, usable as a folder name.

        >>> ImageSet("ACDC", ("fog", "night")).name, ImageSet("Cityscapes_fog", hardest=0.5).name
        ('ACDC_fog+night', 'Cityscapes_fog_all_hardest50')
        """
        parts = ["+".join(self.conds), *(["+".join(self.scenes)] if self.scenes != ("all",) else [])]
        parts += [f"hardest{100 * self.hardest:g}"] if self.hardest < 1 else []
        return "_".join([folder_name(self.dataset), *parts])

    def find(self, eval_dir: str | Path, model: str, preset: str | None = None, **flags: Any) -> list[SceneResults]:
        """Return the scenes of the set from the folder of evaluation results; each has a finished evaluation.

        Raises:
            GenValError: a scene was not evaluated; the message gives the command, with `preset` and `flags`.
        """
        return list_scenes(resolve(eval_dir), model, self.dataset, pair(self.conds, self.scenes), preset, **flags)

    def require_same(
        self, mark: Any, place: Any, eval_dir: str | Path, model: str, preset: str | None, remedy: str
    ) -> None:
        """Refuse what was made from other images than those of the set's results now, if there are results.

        Args:
            mark: the `images_mark` that was recorded at `place`.
            place: how the error names it.
            eval_dir: folder of the evaluation results.
            model: as given to relis/eval.py.
            preset: for the commands.
            remedy: the sentence that says how to get a sound one.

        Raises:
            GenValError: the images differ, or the results cannot be pooled.
        """
        if (now := self.mark(eval_dir, model, preset)) is not None:
            require_images(mark, place, now, self.name, remedy)

    def mark(self, eval_dir: str | Path, model: str, preset: str | None) -> str | None:
        """Return the `images_mark` of the set's results; None without results: they may be on another machine.

        Raises:
            GenValError: the results cannot be pooled.
        """
        try:
            return mark_of(self.find(eval_dir, model, preset))
        except NoResultsError:
            return None


CITYSCAPES_CALIBRATION = ImageSet("Cityscapes", ("clean",), ("lindau", "munster"))
CITYSCAPES_TEST = ImageSet("Cityscapes", ("clean",), ("frankfurt",))


def protocol_sets(
    settings: CalibrationSets,
    trg_dataset: str | None = None,
    cond: Sequence[str] = ALL,
    scene: Sequence[str] = ALL,
) -> list[tuple[ImageSet, ImageSet]]:
    """Return pairs of the set that calibrates and the set that tests, by the protocol.

    `cityscapes`: lindau and munster calibrate, frankfurt tests. `synthetic`: each generated domain calibrates, the real
    one tests (IDD for India). `none`: the sets that the settings name.

    Args:
        settings: protocol, domains and the set that calibrates.
        trg_dataset, cond, scene: the set that tests, without a protocol; by default the set that calibrates.
    """
    if settings.protocol == "cityscapes":
        return [(CITYSCAPES_CALIBRATION, CITYSCAPES_TEST)]
    if settings.protocol == "synthetic":
        return [
            (ImageSet(f"Cityscapes_{domain}"), ImageSet("IDD") if domain == "india" else ImageSet("ACDC", (domain,)))
            for domain in settings.domains
        ]
    test = ImageSet(trg_dataset or settings.calib_dataset, tuple(cond), tuple(scene))
    return [(ImageSet(settings.calib_dataset, settings.calib_cond, settings.calib_scene), test)]


@dataclass(frozen=True)
class SavedImage:
    """One image of a set."""

    scene: SceneResults
    id: str
    logits: np.ndarray  # float32 (pixels, C)
    labels: np.ndarray  # uint8 (pixels,)

    def accuracy(self) -> float:
        """Return the fraction of labelled pixels that are predicted right, 0 to 1; NaN without a labelled pixel.

        Raises:
            GenValError: a logit of a labelled pixel is not finite.
        """
        counted = self.labels != IGNORE
        if not counted.any():
            return math.nan
        logits = self.logits[counted]
        if not np.isfinite(logits).all():
            raise GenValError(f"Logits must be finite, found NaN or infinity in {self.id}.")
        return float((logits.argmax(1) == self.labels[counted]).mean())


def read_images(scenes: Sequence[SceneResults]) -> Iterator[SavedImage]:
    """Yield the saved logits of a set, one image at a time, in the order of scenes and ids.

    Raises:
        GenValError: a scene has no saved logits.
    """
    for results in scenes:
        tensors = open_tensors(results, "logits")
        for item_id in tensors.ids:
            logits, labels = tensors.read(item_id, "logits", "labels")
            yield SavedImage(results, item_id, logits.astype(np.float32), labels)


def hardest_images(images: Sequence[SavedImage], share: float) -> np.ndarray:
    """Choose the images with the lowest pixel accuracy, over the labelled pixels that were saved.

    Temperatures found on easy images are too low for hard images. If the calibrating images are easier than the tested
    ones, their hardest images are closer to the tested ones. The choice differs between segmenters.

    Args:
        images: at least one.
        share: fraction of the images with a labelled pixel that is chosen, above 0 and at most 1; rounded up.

    Returns:
        The indices of the chosen images, int64 (M,), ascending. Of equally hard images the first ones are chosen.
        Images without a labelled pixel are never chosen.

    Raises:
        GenValError: no image has a labelled pixel, or a logit is not finite.
    """
    accuracies = np.array([image.accuracy() for image in images])
    labelled = np.flatnonzero(~np.isnan(accuracies))
    if not len(labelled):
        raise GenValError("No pixel has a label: there is nothing to calibrate on. Give other scenes or conditions.")
    # A fraction of the decimal text: 0.1 of 30 images are 3, but the binary 0.1 is slightly larger.
    count = math.ceil(Fraction(str(share)) * len(labelled))
    return np.sort(labelled[np.argsort(accuracies[labelled], kind="stable")[:count]])


def read_features(scenes: Sequence[SceneResults]) -> tuple[list[tuple[SceneResults, str]], np.ndarray]:
    """Read the saved features of a set.

    Returns:
        The scene and the id of each image, and the features, float64 (N, D).

    Raises:
        GenValError: a scene has no saved features, or the features differ in length.
    """
    keys: list[tuple[SceneResults, str]] = []
    rows: list[np.ndarray] = []
    for results in scenes:
        tensors = open_tensors(results, "features")
        for item_id in tensors.ids:
            keys.append((results, item_id))
            rows.append(tensors.read(item_id, "features")[0].astype(np.float64))
    if len({row.shape for row in rows}) != 1:
        raise GenValError(f"Features of {scenes[0].model} differ in length. Run relis/extract_features.py --overwrite.")
    return keys, np.stack(rows)


@dataclass(frozen=True)
class Calibration:
    """Clusters and their temperatures."""

    clusters: ClusterModel
    temperatures: np.ndarray  # float64 (K,), or (K, C) with one temperature per predicted class

    def image_temperatures(self, features: np.ndarray | None, images: int, soft: bool) -> np.ndarray:
        """Return the temperature of each image, float64 (N,) or (N, C).

        Args:
            features: of the images, (N, D); None is allowed with one cluster.
            images: the number N of images.
            soft: average the temperatures of all clusters, weighted by the image's membership in each.
        """
        if len(self.temperatures) == 1:
            return np.repeat(self.temperatures, images, 0)
        assert features is not None
        return (
            self.clusters.weights(features) @ self.temperatures
            if soft
            else self.temperatures[self.clusters.assign(features)]
        )


def calibrate(
    images: Sequence[SavedImage],
    method: CalibrationMethod,
    subsamples: int | None = None,
    seed: int = 0,
    hardest: float = 1.0,
) -> tuple[Calibration, dict[str, Any]]:
    """Cluster a set's images and find the temperature of each cluster.

    Args:
        images: the images of the set, from `read_images`.
        method: number of clusters (1 needs no features), clustering method, metric, and whether each predicted class
            has a temperature of its own.
        subsamples: number of images chosen at random; None for all.
        seed: seed of the choice and of the clustering.
        hardest: fraction of these images that `hardest_images` chooses; 1 means all.

    Returns:
        The calibration; and the number of images, with the images and pixels of each cluster, fit for JSON. The
        clusters with a temperature at an end of the searched range are in `at_grid_end`, if there are any. With
        `hardest` below 1 also the fraction, the number of images from which it was chosen, and the accuracy of the
        easiest chosen image.

    Raises:
        GenValError: logits or features are missing, or a cluster has no labelled pixel.
    """
    chosen = np.arange(len(images))
    if subsamples is not None and subsamples < len(images):
        generator = np.random.default_rng(item_seed(seed, "subsamples"))
        chosen = np.sort(generator.choice(len(images), subsamples, replace=False))
    metadata: dict[str, Any] = {}
    if hardest < 1:
        metadata["hardest"] = {"share": hardest, "of_images": len(chosen)}
        chosen = chosen[hardest_images([images[i] for i in chosen.tolist()], hardest)]
        metadata["hardest"]["highest_accuracy"] = max(images[i].accuracy() for i in chosen.tolist())
    model, clusters = _cluster(images, chosen, method, seed)
    temperatures: list[Any] = []
    parts: list[dict[str, Any]] = []
    for index in range(method.n_clusters):
        members = [images[i] for i, cluster in zip(chosen.tolist(), clusters, strict=True) if cluster == index]
        if not members:
            raise GenValError(
                f"Cluster {index} of {method.n_clusters} has no image. Give fewer --n_clusters or another --seeds."
            )
        logits, labels = (np.concatenate([getattr(m, name) for m in members]) for name in ("logits", "labels"))
        pixels = Pixels.from_logits(logits, labels)
        metric = method.calib_metric
        temperatures.append(
            search_per_class(pixels, metric) if method.per_class_temperature else search(pixels, metric).temperature
        )
        parts.append({"images": len(members), "pixels": len(pixels)})
    ends = [index for index, temperature in enumerate(temperatures) if _at_grid_end(temperature)]
    metadata |= {"at_grid_end": ends} if ends else {}
    return Calibration(model, np.array(temperatures)), {"images": len(chosen), "clusters": parts, **metadata}


def _at_grid_end(temperature: Any) -> bool:
    """Whether a temperature, or that of a class, is at an end of the searched range: a better one may lie beyond."""
    return bool(np.isclose(np.atleast_1d(temperature)[:, None], [GRID[0], GRID[-1]], atol=1e-6).any())


def _cluster(
    images: Sequence[SavedImage], chosen: np.ndarray, method: CalibrationMethod, seed: int
) -> tuple[ClusterModel, np.ndarray]:
    """Cluster the chosen images by their features: return the model, and the cluster of each chosen image."""
    if method.n_clusters == 1:
        model = fit_clusters(np.zeros((len(chosen), 1)), 1, method.cluster_method, seed)
        return model, np.zeros(len(chosen), np.int64)
    keys, features = read_features(list(dict.fromkeys(image.scene for image in images)))
    if keys != [(image.scene, image.id) for image in images]:
        raise GenValError(
            f"Logits and features of {images[0].scene.model} are of different images. Run relis/eval.py --save "
            "predictions,logits,features with the same --scene, --split and --limit."
        )
    model = fit_clusters(features[chosen], method.n_clusters, method.cluster_method, seed)
    return model, model.assign(features[chosen])


def evaluate_calibration(
    scenes: Sequence[SceneResults], calibration: Calibration | None = None, soft: bool = False
) -> tuple[Summary, dict[str, float]]:
    """Compute every metric of a set from its saved logits, after scaling with a calibration if one is given.

    Args:
        scenes: the scenes of the set, with saved logits (and features, if the calibration has several clusters).
        calibration: the temperatures; None leaves the logits unscaled.
        soft: weigh the temperatures of all clusters instead of taking the nearest cluster's.

    Returns:
        The summary with its intervals; and the exact `ece`, `adaptive_ece` and `ks` over single pixels.
    """
    temperatures: dict[tuple[SceneResults, str], np.ndarray] | None = None
    if calibration is not None and len(calibration.temperatures) > 1:
        keys, features = read_features(scenes)
        temperatures = dict(zip(keys, calibration.image_temperatures(features, len(keys), soft), strict=True))
    confidences: list[np.ndarray] = []
    hits: list[np.ndarray] = []

    def each() -> Iterator[tuple[str, Any]]:
        for image in read_images(scenes):
            logits = image.logits
            if temperatures is not None:
                logits = scale_logits(logits, temperatures[image.scene, image.id])
            elif calibration is not None:
                logits = scale_logits(logits, calibration.temperatures[0])
            tensor = torch.from_numpy(np.ascontiguousarray(logits.T))
            predictions, statistics = measure(tensor, torch.from_numpy(image.labels))
            counted = image.labels != IGNORE
            confidences.append(tensor.softmax(0).amax(0).numpy()[counted])
            hits.append((predictions.numpy() == image.labels)[counted])
            yield image.id, statistics

    space = label_space_of(scenes[0].dataset)
    summary = summarise(each(), space.names, space.classes, space.class_sets)
    return summary, top1_metrics(np.concatenate(confidences), np.concatenate(hits))


def calibration_folder(
    sets: CalibrationSets, method: CalibrationMethod, model: str, image_set: ImageSet, seed: int
) -> Path:
    """Return the folder of a calibration."""
    clusters = "vanilla" if method.n_clusters == 1 else f"{method.cluster_method}{method.n_clusters}"
    parts = [clusters, method.calib_metric, *(["per_class"] if method.per_class_temperature else [])]
    parts += [f"{sets.subsamples}images"] if sets.subsamples else []
    return resolve(sets.calibration_dir) / folder_name(model) / image_set.name / "_".join(parts) / f"seed{seed}"


def save_calibration(folder: Path, calibration: Calibration, metadata: dict[str, Any]) -> None:
    """Write `cluster_model.npz`, then `best_temperatures.json`; if the latter exists, both files are complete."""
    (folder / TEMPERATURE_FILE).unlink(missing_ok=True)  # an earlier run's temperatures belong to other clusters
    save_clusters(folder / CLUSTER_FILE, calibration.clusters)
    write_json(folder / TEMPERATURE_FILE, {**metadata, "temperatures": calibration.temperatures.tolist()})


def load_calibration(folder: Path) -> tuple[Calibration, dict[str, Any]]:
    """Read what `save_calibration` wrote.

    Raises:
        GenValError: a file is missing or damaged, or the two files do not fit each other.
    """
    if not (folder / TEMPERATURE_FILE).exists():
        raise GenValError(
            f"No temperatures in {folder}. Run: python relis/compute_clusters_temp_scaling.py with the same flags."
        )
    metadata = read_json(folder / TEMPERATURE_FILE, Temperatures)
    clusters = load_clusters(folder / CLUSTER_FILE)
    temperatures = np.array(metadata.get("temperatures"), dtype=np.float64)
    if temperatures.ndim not in (1, 2) or len(temperatures) != len(clusters.centres) or not (temperatures > 0).all():
        raise GenValError(
            f"{folder / TEMPERATURE_FILE} does not fit {CLUSTER_FILE} in the same folder. Run: python "
            "relis/compute_clusters_temp_scaling.py with the same flags."
        )
    return Calibration(clusters, temperatures), metadata


ERRORS = ("ece", "adaptive_ece", "ks")


def find_temperatures(settings: TemperatureSettings, model: str) -> list[list[Any]]:
    """Find the temperatures of a segmenter on each set: write the files of each fraction and seed.

    Returns:
        One row of the table per set, fraction and seed: segmenter, set, number of images, seed, lowest, mean and
        highest temperature.

    Raises:
        GenValError: logits or features are missing.
    """
    rows: list[list[Any]] = []
    for image_set, _ in protocol_sets(settings.sets):
        scenes = image_set.find(settings.eval_dir, model, settings.preset, save="logits")
        made, images = provenance(scenes), list(read_images(scenes))
        for fraction in settings.method.hardest:
            chosen = replace(image_set, hardest=fraction)
            for seed in settings.sets.seeds:
                calibration, metadata = calibrate(
                    images, settings.method, subsamples=settings.sets.subsamples, seed=seed, hardest=fraction
                )
                metadata |= {"model": model, "set": chosen.name, "metric": settings.method.calib_metric, "seed": seed}
                metadata |= {**made.model_record, "images_mark": mark_of(scenes)}
                folder = calibration_folder(settings.sets, settings.method, model, chosen, seed)
                save_calibration(folder, calibration, metadata)
                temperatures = calibration.temperatures
                if "at_grid_end" in metadata:
                    print(
                        f"{model} on {chosen.name}, seed {seed}: a temperature is at an end of the searched range, "
                        f"{GRID[0]:g} to {GRID[-1]:.2f}. A better one may lie beyond."
                    )
                ends = [float(temperatures.min()), float(temperatures.mean()), float(temperatures.max())]
                rows.append([model, chosen.name, metadata["images"], seed, *ends])
    return rows


def score_temperatures(settings: TemperatureTestSettings, model: str) -> list[tuple[float, list[Any]]]:
    """Test the temperatures of a segmenter on each set; return fractions of the images and rows of the table."""
    return [
        (fraction, row)
        for calibrating, tested in protocol_sets(settings.sets, settings.trg_dataset, settings.cond, settings.scene)
        for fraction, row in zip(
            settings.method.hardest, evaluate_temperatures(settings, model, calibrating, tested), strict=True
        )
    ]


def evaluate_temperatures(
    settings: TemperatureTestSettings, model: str, calibrating: ImageSet, tested: ImageSet
) -> list[list[Any]]:
    """Test temperatures of one set on another, for one segmenter: write two files per fraction of the images.

    Returns:
        One row of the table per fraction in `hardest`: segmenter, tested set, calibrating set, ECE before and after in
        percent, its standard deviation over seeds, adaptive ECE before and after, KS before and after.

    Raises:
        GenValError: temperatures, logits or features are missing.
    """
    scenes = tested.find(settings.eval_dir, model, settings.preset, save="logits")
    made = provenance(scenes)
    unscaled = evaluate_calibration(scenes)
    sets = [replace(calibrating, hardest=fraction) for fraction in settings.method.hardest]
    return [_evaluate_fraction(settings, model, chosen, tested, scenes, made, unscaled) for chosen in sets]


def _evaluate_fraction(
    settings: TemperatureTestSettings,
    model: str,
    calibrating: ImageSet,
    tested: ImageSet,
    scenes: Sequence[SceneResults],
    made: Provenance,
    unscaled: tuple[Summary, dict[str, float]],
) -> list[Any]:
    before, exact_before = unscaled
    folders = [
        calibration_folder(settings.sets, settings.method, model, calibrating, seed) for seed in settings.sets.seeds
    ]
    calibrations = []
    for folder in folders:
        calibration, metadata = load_calibration(folder)
        remedy = "Run: python relis/compute_clusters_temp_scaling.py with the same flags."
        require_model(made.model_record, scenes[0].folder, metadata, folder / TEMPERATURE_FILE, remedy)
        require_classes(made.model_record, scenes[0].folder, metadata, folder / TEMPERATURE_FILE)
        calibrating.require_same(
            metadata.get("images_mark"), folder / TEMPERATURE_FILE, settings.eval_dir, model, settings.preset, remedy
        )
        calibrated_on = metadata.get("images_mark")
        calibrations.append(calibration)
    runs = [evaluate_calibration(scenes, calibration, settings.soft) for calibration in calibrations]
    exact_after = {name: float(np.mean([exact[name] for _, exact in runs])) for name in ERRORS}
    spread = {name: float(np.std([exact[name] for _, exact in runs])) for name in ERRORS}
    place = resolve(settings.output_dir) / folder_name(model) / tested.name / f"from_{calibrating.name}"
    stem = place / f"{folders[0].parent.name}{'_soft' if settings.soft else ''}"
    values = {
        "model": model,
        "tested_on": tested.name,
        "calibrated_on": calibrating.name,
        **({"hardest": calibrating.hardest} if calibrating.hardest < 1 else {}),
        **made.model_record,
        "tested_images_mark": mark_of(scenes),
        "calibrated_images_mark": calibrated_on,
        "seeds": list(settings.sets.seeds),
        "before": before.metrics | exact_before,
        "after": [summary.metrics | exact for summary, exact in runs],
        "after_mean": exact_after,
        "after_std_over_seeds": spread,
    }
    panels = {"before": before.total, "after scaling": runs[0][0].total}
    values["reliability_bins"] = {title: reliability_bins(total) for title, total in panels.items()}
    write_json(stem.with_name(f"{stem.name}.json"), values)
    write_reliability_diagram(stem.with_name(f"{stem.name}_reliability.png"), panels)
    pairs = [100 * value for name in ERRORS for value in (exact_before[name], exact_after[name])]
    return [model, tested.name, calibrating.name, *pairs[:2], 100 * spread["ece"], *pairs[2:]]
