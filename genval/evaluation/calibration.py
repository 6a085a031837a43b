"""Temperatures found on one set of images and tried on another, from saved logits and features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.artifacts.tensors import PackedTensors
from genval.datasets import CLASS_SETS, CLASSES, classes_of
from genval.evaluation.diagrams import reliability_bins, write_reliability_diagram
from genval.evaluation.settings import ALL, CalibrationMethod, CalibrationSets, TemperatureTestSettings
from genval.metrics.calibration import top1_metrics
from genval.metrics.clusters import ClusterModel, fit_clusters
from genval.metrics.statistics import measure
from genval.metrics.temperature import Pixels, scale_logits, search, search_per_class
from genval.results.clusters import load_clusters, save_clusters
from genval.results.scenes import SceneResults, Summary, folder_name, list_scenes, pair, summarise
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, write_json
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

CLUSTER_FILE = "cluster_model.npz"
TEMPERATURE_FILE = "best_temperatures.json"


@dataclass(frozen=True)
class ImageSet:
    """The saved scenes of a data set that a calibration is made or tried on."""

    dataset: str
    conds: tuple[str, ...] = ("all",)
    scenes: tuple[str, ...] = ("all",)
    hardest: float = 1.0  # share of the images that it is made on, see `hardest_images`

    @property
    def name(self) -> str:
        """A folder's name for it.

        >>> ImageSet("ACDC", ("fog", "night")).name, ImageSet("Cityscapes_fog", hardest=0.5).name
        ('ACDC_fog+night', 'Cityscapes_fog_all_hardest50')
        """
        parts = ["+".join(self.conds), *(["+".join(self.scenes)] if self.scenes != ("all",) else [])]
        parts += [f"hardest{100 * self.hardest:g}"] if self.hardest < 1 else []
        return "_".join([folder_name(self.dataset), *parts])

    def find(self, eval_dir: str | Path, model: str, preset: str | None = None) -> list[SceneResults]:
        """Return its scenes, each with a finished evaluation, in the folder of evaluation results.

        Raises:
            GenValError: a scene was not evaluated; the message gives the command, with `preset`.
        """
        return list_scenes(resolve(eval_dir), model, self.dataset, pair(self.conds, self.scenes), preset)


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
        """Share of its labelled pixels that are predicted right, 0 to 1; NaN where it has none.

        Raises:
            GenValError: a logit of a labelled pixel is not finite.
        """
        counted = self.labels != 255
        if not counted.any():
            return math.nan
        logits = self.logits[counted]
        if not np.isfinite(logits).all():
            raise GenValError(f"Logits must be finite, found NaN or infinity in {self.id}.")
        return float((logits.argmax(1) == self.labels[counted]).mean())


def read_images(scenes: Sequence[SceneResults]) -> Iterator[SavedImage]:
    """The saved logits of a set, an image at a time, in the order of scenes and ids.

    Raises:
        GenValError: a scene has none.
    """
    for results in scenes:
        tensors = _packed(results, "logits")
        for item_id in tensors.ids:
            logits, labels = tensors.read(item_id, "logits", "labels")
            yield SavedImage(results, item_id, logits.astype(np.float32), labels)


def hardest_images(images: Sequence[SavedImage], share: float) -> np.ndarray:
    """The images with the lowest shares of right pixels among the labelled ones that were saved.

    Temperatures of easy pictures are too low for hard ones: where the pictures that calibrate are easier than those of
    the set tested, the hardest of them come closer. Which these are differs by model.

    Args:
        images: at least one.
        share: above 0, at most 1.

    Returns:
        Their indices, int64 (M,), ascending: the share of the N images with a labelled pixel, rounded up; of equally
        hard images those that come first. Images without a labelled pixel are never among them.

    Raises:
        GenValError: no image has a labelled pixel, or a logit is not finite.
    """
    accuracies = np.array([image.accuracy() for image in images])
    labelled = np.flatnonzero(~np.isnan(accuracies))
    if not len(labelled):
        raise GenValError("No pixel has a label: there is nothing to calibrate on. Give other scenes or conditions.")
    # As written: 0.1 of 30 images are 3, and in binary a little more.
    count = math.ceil(Fraction(str(share)) * len(labelled))
    return np.sort(labelled[np.argsort(accuracies[labelled], kind="stable")[:count]])


def read_features(scenes: Sequence[SceneResults]) -> tuple[list[tuple[SceneResults, str]], np.ndarray]:
    """The saved features of a set: whose they are, and float64 (N, D).

    Raises:
        GenValError: a scene has none, or they are not of one length.
    """
    keys: list[tuple[SceneResults, str]] = []
    rows: list[np.ndarray] = []
    for results in scenes:
        tensors = _packed(results, "features")
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
    temperatures: np.ndarray  # float64 (K,), or (K, C): one for each predicted class

    def of_images(self, features: np.ndarray | None, images: int, soft: bool) -> np.ndarray:
        """Each image's temperature, float64 (N,) or (N, C); `features` may be None with one cluster.

        Soft: the clusters' temperatures averaged by the image's shares in them.
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
    """Cluster a set's images and find each cluster's temperature.

    Args:
        images: those of the set, from `read_images`.
        method: number of clusters (1 needs no features), clustering method, metric, and whether each predicted class
            has a temperature of its own.
        subsamples: number of images chosen at random; None for all.
        seed: of the choice and of the clustering.
        hardest: fraction of these images that `hardest_images` chooses; 1 is all.

    Returns:
        The calibration; the number of images, and the images and pixels of each cluster, fit for JSON. With `hardest`
        below 1 also the share, of how many images it was taken, and the accuracy of the easiest image chosen.

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
    clusters = method.n_clusters
    if clusters == 1:
        model = fit_clusters(np.zeros((len(chosen), 1)), 1, method.cluster_method, seed)
        assigned = np.zeros(len(chosen), np.int64)
    else:
        keys, features = read_features(list(dict.fromkeys(image.scene for image in images)))
        if keys != [(image.scene, image.id) for image in images]:
            raise GenValError(
                f"Logits and features of {images[0].scene.model} are of different images. Run relis/eval.py --save "
                "predictions,logits,features with the same --scene, --split and --limit."
            )
        model = fit_clusters(features[chosen], clusters, method.cluster_method, seed)
        assigned = model.assign(features[chosen])
    metric = method.calib_metric
    temperatures: list[Any] = []
    parts: list[dict[str, Any]] = []
    for index in range(clusters):
        members = [images[i] for i, cluster in zip(chosen.tolist(), assigned, strict=True) if cluster == index]
        if not members:
            raise GenValError(
                f"Cluster {index} of {clusters} has no image. Give fewer --n_clusters or another --seeds."
            )
        logits, labels = (np.concatenate([getattr(m, name) for m in members]) for name in ("logits", "labels"))
        pixels = Pixels.from_logits(logits, labels)
        temperatures.append(
            search_per_class(pixels, metric) if method.per_class_temperature else search(pixels, metric).temperature
        )
        parts.append({"images": len(members), "pixels": len(pixels)})
    return Calibration(model, np.array(temperatures)), {"images": len(chosen), "clusters": parts, **metadata}


def try_on(
    scenes: Sequence[SceneResults], calibration: Calibration | None = None, soft: bool = False
) -> tuple[Summary, dict[str, float]]:
    """Every figure of a set after scaling, from saved logits; without a calibration as they are.

    Returns:
        The summary with its intervals; `ece`, `adaptive_ece` and `ks` of the single pixels, exactly.
    """
    temperatures: dict[tuple[SceneResults, str], np.ndarray] | None = None
    if calibration is not None and len(calibration.temperatures) > 1:
        keys, features = read_features(scenes)
        temperatures = dict(zip(keys, calibration.of_images(features, len(keys), soft), strict=True))
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
            counted = image.labels != 255
            confidences.append(tensor.softmax(0).amax(0).numpy()[counted])
            hits.append((predictions.numpy() == image.labels)[counted])
            yield image.id, statistics

    summary = summarise(each(), CLASSES, classes_of(scenes[0].dataset), CLASS_SETS)
    return summary, top1_metrics(np.concatenate(confidences), np.concatenate(hits))


def calibration_folder(
    sets: CalibrationSets, method: CalibrationMethod, model: str, image_set: ImageSet, seed: int
) -> Path:
    """Return the folder of a calibration."""
    clusters = "vanilla" if method.n_clusters == 1 else f"{method.cluster_method}{method.n_clusters}"
    parts = [clusters, method.calib_metric, *(["per_class"] if method.per_class_temperature else [])]
    parts += [f"{sets.subsamples}images"] if sets.subsamples else []
    return resolve(sets.calibration_dir) / folder_name(model) / image_set.name / "_".join(parts) / f"seed{seed}"


def save_calibration(folder: Path, calibration: Calibration, about: dict[str, Any]) -> None:
    """Write `cluster_model.npz`, then `best_temperatures.json`, which says that both are whole."""
    (folder / TEMPERATURE_FILE).unlink(missing_ok=True)  # those of an earlier run are of other clusters
    save_clusters(folder / CLUSTER_FILE, calibration.clusters)
    write_json(folder / TEMPERATURE_FILE, {**about, "temperatures": calibration.temperatures.tolist()})


def load_calibration(folder: Path) -> tuple[Calibration, dict[str, Any]]:
    """Read what `save_calibration` wrote.

    Raises:
        GenValError: a file is missing or damaged, or the two do not belong together.
    """
    if not (folder / TEMPERATURE_FILE).exists():
        raise GenValError(
            f"No temperatures in {folder}. Run: python relis/compute_clusters_temp_scaling.py with the same flags."
        )
    about = read_json(folder / TEMPERATURE_FILE)
    clusters = load_clusters(folder / CLUSTER_FILE)
    temperatures = np.array(about.get("temperatures"), dtype=np.float64)
    if temperatures.ndim not in (1, 2) or len(temperatures) != len(clusters.centres) or not (temperatures > 0).all():
        raise GenValError(f"{folder / TEMPERATURE_FILE} does not fit {CLUSTER_FILE} beside it. Make both again.")
    return Calibration(clusters, temperatures), about


def _packed(results: SceneResults, kind: str) -> PackedTensors:
    path = results.packed(kind)
    if not path.exists():
        script = "extract_logits" if kind == "logits" else "extract_features"
        command = results.command().with_script(f"relis/{script}")
        raise GenValError(f"No {kind} in {path}. Run: {command}")
    return PackedTensors(path)


ERRORS = ("ece", "adaptive_ece", "ks")


def try_temperatures(
    settings: TemperatureTestSettings, model: str, calibrating: ImageSet, tested: ImageSet
) -> list[list[Any]]:
    """Test temperatures of one set on another, for one segmenter: write the files, one pair per fraction of the images.

    Returns:
        A row of the table per fraction in `hardest`: segmenter, tested set, calibrating set, ECE before and after in
        percent, its standard deviation over seeds, adaptive ECE before and after, KS before and after.

    Raises:
        GenValError: temperatures, logits or features are missing.
    """
    scenes = tested.find(settings.eval_dir, model, settings.preset)
    before = try_on(scenes)
    sets = [replace(calibrating, hardest=fraction) for fraction in settings.method.hardest]
    return [_try_fraction(settings, model, chosen, tested, scenes, before) for chosen in sets]


def _try_fraction(
    settings: TemperatureTestSettings,
    model: str,
    calibrating: ImageSet,
    tested: ImageSet,
    scenes: Sequence[SceneResults],
    unscaled: tuple[Summary, dict[str, float]],
) -> list[Any]:
    before, exact_before = unscaled
    folders = [
        calibration_folder(settings.sets, settings.method, model, calibrating, seed) for seed in settings.sets.seeds
    ]
    runs = [try_on(scenes, load_calibration(folder)[0], settings.soft) for folder in folders]
    exact_after = {name: float(np.mean([exact[name] for _, exact in runs])) for name in ERRORS}
    spread = {name: float(np.std([exact[name] for _, exact in runs])) for name in ERRORS}
    place = resolve(settings.output_dir) / folder_name(model) / tested.name / f"from_{calibrating.name}"
    stem = place / f"{folders[0].parent.name}{'_soft' if settings.soft else ''}"
    values = {
        "model": model,
        "tested_on": tested.name,
        "calibrated_on": calibrating.name,
        **({"hardest": calibrating.hardest} if calibrating.hardest < 1 else {}),
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
