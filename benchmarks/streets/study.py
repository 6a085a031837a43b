"""Compare predictors of quality on real streets: r and regret of every generated set, corruption, transfer and clear.

A predictor is a set of labelled images: clear Cityscapes, or Cityscapes changed or generated in a domain. Across the
segmenters, its mIoU (ECE) is compared with that on the domain's real images by Pearson's r and by regret, the loss from
choosing the best segmenter on the predictor. mIoU is over the classes with labelled pixels in both sets. `within` is r
after the mean of each family and input size is subtracted from both sides, `between` is r of these means. If there are
enough real images and recordings, r and its difference from that of clear weather are also corrected for the noise of
the images, with intervals. Improvements on single generators are chosen on one half of the real images, and confirmed
on the other half.

Reads:  COLLECTED (benchmarks/streets/collect.py), DATASETS_DIR/splits.json (prepare.py)
Writes: OUTPUT_DIR/study.json and study.md

    python benchmarks/streets/study.py
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

import numpy as np
from boxes import PREDICTED_AS
from collect import MERGED, REAL
from models import OWN

import path_dicts
from genval.metrics.correlation import pearson, pearson_r
from genval.metrics.noisy_correlation import Scores
from genval.report.comparison import beats, pearson_difference, pearson_estimate, regret
from genval.report.resampling import DRAWS, draw_images
from genval.report.scores import ece, mean_iou, weigh
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import positive_int, seed_flag
from genval.runtime.tables import markdown_table

FEWEST_IMAGES, FEWEST_RECORDINGS = 20, 5
"""With fewer real images or recordings, numbers are without a verdict."""
FEWEST_MODELS = 10
"""A predictor with results of fewer segmenters is left out, so that the others are compared over more."""
FEWEST_GROUPS = 3
"""With two groups of models, r of their means is always 1 or -1."""
WEATHERS = ("fog", "rain", "snow")
"""Domains with photos that have boxes."""
OBJECTS = [train_id for train_ids in PREDICTED_AS.values() for train_id in train_ids]
IMPROVEMENTS = (
    ("controlnet", "img2img", "translate"),
    ("img2img", "translate"),
    ("translate", "histogram"),
    ("clear", "translate"),
    ("clear", "img2img", "translate", "histogram"),
)
"""Sets whose images are pooled to a predictor."""
AVERAGED = ("india", "fog", "rain", "snow")
"""References of the mean by which improvements are chosen; dusk, of one recording, is not among them."""
ALLOWED_R = 0.8
"""The least r of mIoU on generated and real clear images of a generator that passes the check."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Settings of benchmarks/streets/study.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/study"

    collected: str = flag("results/streets/collected", "folder of collect.py")
    datasets_dir: str = flag("datasets/streets", "folder of the prepared sets, of which splits.json is read")
    output_dir: str = flag("results/streets/study", "folder of the tables")
    draws: int = flag(200, "random choices of images per size", type=positive_int)
    seed: int = seed_flag()
    preset: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """Counts of segmenters on the images of a set.

    Attributes:
        images: scene/id.
        models: short names.
        counts: float64 (N, M, 3, C): hits, labelled pixels, predicted pixels.
        bins: float64 (N, M, 3, B): right pixels, pixels, sum of confidences.
    """

    images: tuple[str, ...]
    models: tuple[str, ...]
    counts: np.ndarray
    bins: np.ndarray

    def of(self, models: Sequence[str]) -> ImageSet:
        """Return the set with these models."""
        order = [self.models.index(model) for model in models]
        return replace(self, models=tuple(models), counts=self.counts[:, order], bins=self.bins[:, order])

    def part(self, keep: Callable[[str], bool]) -> ImageSet:
        """Return the images for whose name `keep` is true."""
        kept = [index for index, image in enumerate(self.images) if keep(image)]
        images = tuple(self.images[index] for index in kept)
        return replace(self, images=images, counts=self.counts[kept], bins=self.bins[kept])

    def recordings(self) -> int:
        """Return the number of scenes."""
        return len({image.partition("/")[0] for image in self.images})

    def sources(self, domain: str) -> list[str]:
        """Return the frame that each image was made from: images are named `{frame}` or `{domain}_{number}_{frame}`."""
        return [re.sub(rf"^{domain}_\d+_", "", image.rpartition("/")[2]) for image in self.images]

    def __add__(self, other: ImageSet) -> ImageSet:
        return replace(
            self,
            images=self.images + other.images,
            counts=np.concatenate([self.counts, other.of(self.models).counts]),
            bins=np.concatenate([self.bins, other.of(self.models).bins]),
        )

    def classes(self) -> set[int]:
        """Return the classes with labelled pixels."""
        return set(np.flatnonzero(self.counts[:, 0, 1].sum(0)).tolist())


Metric = Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]

METRICS: dict[str, tuple[Metric, bool]] = {
    "miou": (lambda counts, bins, classes: mean_iou(counts, classes), True),
    "accuracy": (lambda counts, bins, classes: 100 * counts[..., 0, :].sum(-1) / counts[..., 1, :].sum(-1), True),
    "ece": (lambda counts, bins, classes: ece(bins), False),
}
"""Each metric in percent, from counts (..., M, 3, C) and bins (..., M, 3, B); and whether more is better."""


def main(settings: StudySettings) -> None:
    from genval.runtime.files import read_json, write_bytes, write_json

    folder, output = resolve(settings.collected), resolve(settings.output_dir)
    sets = read_sets(folder / "sets")
    if not sets:
        raise GenValError(f"No sets in {settings.collected}/sets. Run benchmarks/streets/collect.py.")
    families: dict[str, str] = read_json(folder / "models.json")
    splits_file = resolve(settings.datasets_dir) / "splits.json"
    splits = read_json(splits_file) if splits_file.is_file() else {}
    boxes, temperatures, ood, estimates = (
        read_json(folder / f"{name}.json") for name in ("boxes", "temperatures", "ood", "estimates")
    )
    groups = {model: f"{family} {model.rpartition('-')[2]}" for model, family in families.items()}
    groups |= {model: family for model, family in families.items() if family in ("own", "espnet")}
    report: dict[str, Any] = {
        "clear_checks": clear_checks(sets, groups),
        "domains": {domain: compare_domain(sets, domain, groups, settings.seed) for domain in REAL},
        "improvements": choose_improvements(sets, boxes, splits),
        "estimates": {domain: compare_estimates(sets, estimates, domain) for domain in REAL},
        "boxes": {
            domain: compare_boxes(sets, boxes, domain, groups, settings.seed) for domain in ("fog", "rain", "snow")
        },
        "sizes": {domain: size_curves(sets, domain, settings) for domain in REAL},
        "ceilings": {domain: ceiling(sets, domain, settings) for domain in REAL},
        "temperatures": summarise_temperatures(temperatures),
        "ood": compare_ood(sets, ood),
    }
    write_json(output / "study.json", plain(report))
    text = markdown(report)
    write_bytes(output / "study.md", text.encode())
    print(text)


def read_sets(folder: Path) -> dict[tuple[str, str], ImageSet]:
    """Read the sets of collect.py, by data set and condition."""
    sets = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            sets[path.stem.rpartition("_")[0], path.stem.rpartition("_")[2]] = ImageSet(
                tuple(arrays["images"].tolist()), tuple(arrays["models"].tolist()),
                arrays["counts"].astype(np.float64), arrays["bins"].astype(np.float64),
            )  # fmt: skip
    return sets


def predictors(sets: dict[tuple[str, str], ImageSet], domain: str) -> dict[str, ImageSet]:
    """Return the predictors of a domain that were evaluated, by name, all with the same models."""
    merged = f"@{MERGED}" if domain == "india" else ""
    found = {"clear": sets.get((f"Cityscapes{merged}", "clean"))}
    for (dataset, cond), images in sets.items():
        if cond == domain and dataset.startswith("Cityscapes_") and dataset.endswith(f"{domain}{merged}"):
            # Cityscapes_{domain}, Cityscapes_corrupt_{domain} or Cityscapes_{generator}_{domain}
            name = dataset.removeprefix("Cityscapes_").removesuffix(f"{domain}{merged}").rstrip("_")
            found[{"": path_dicts.DEFAULT_GENERATOR, "corrupt": "corruption"}.get(name, name)] = images
    order = ["clear", *path_dicts.GENERATORS, "corruption"]
    place = {name: order.index(name) if name in order else len(order) for name in found}
    evaluated = {name: found[name] for name in sorted(found, key=place.__getitem__) if found[name] is not None}
    fewest = min(FEWEST_MODELS, max((len(images.models) for images in evaluated.values()), default=0))
    enough = {name: images for name, images in evaluated.items() if len(images.models) >= fewest}
    shared = set[str].intersection(*(set(images.models) for images in enough.values())) if enough else set()
    return {name: images.of([m for m in images.models if m in shared]) for name, images in enough.items()}


def values(images: ImageSet, classes: list[int], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return each metric of the models, (M,); or (D, M) with weights (D, N) of the images."""
    if weights is None:
        counts, bins = images.counts.sum(0), images.bins.sum(0)
    else:
        counts, bins = weigh(images.counts, weights), weigh(images.bins, weights)
    return {name: function(counts, bins, classes) for name, (function, _) in METRICS.items()}


def agreement(
    predicted: np.ndarray, reference: np.ndarray, larger: bool, models: Sequence[str], groups: dict[str, str]
) -> dict[str, Any]:
    """Compare the models' values on a predictor with those on a reference."""
    sign = 1 if larger else -1
    names = [groups[model] for model in models]
    of_group = {name: [index for index, other in enumerate(names) if other == name] for name in sorted(set(names))}
    means = np.array([[side[indices].mean() for indices in of_group.values()] for side in (predicted, reference)])
    place = [list(of_group).index(name) for name in names]
    centred = np.stack([predicted, reference]) - means[:, place]
    published = np.array([name != OWN for name in names])
    return {
        "r": pearson_r(predicted, reference),
        "regret": float(regret(sign * predicted, sign * reference)),
        "chosen": models[int((sign * predicted).argmax())],
        "best": models[int((sign * reference).argmax())],
        "within": pearson_r(*centred),
        "published": pearson_r(predicted[published], reference[published]),
        "own": pearson_r(predicted[~published], reference[~published]),
        "between": pearson_r(*means) if len(of_group) >= FEWEST_GROUPS else math.nan,
        "by_group": {
            name: pearson_r(predicted[indices], reference[indices])
            for name, indices in of_group.items()
            if len(indices) >= 4
        },
    }


def common(first: ImageSet, second: ImageSet) -> tuple[ImageSet, ImageSet, list[int]]:
    """Return two sets with the models that both have, and the classes with labelled pixels in both."""
    models = [model for model in first.models if model in second.models]
    return first.of(models), second.of(models), sorted(first.classes() & second.classes())


def compare_domain(
    sets: dict[tuple[str, str], ImageSet], domain: str, groups: dict[str, str], seed: int
) -> dict[str, Any]:
    """Compare each predictor of a domain with its real images."""
    real = sets.get(REAL[domain])
    if real is None:
        return {}
    rows: dict[str, Any] = {}
    found = predictors(sets, domain)
    for name, predictor in found.items():
        left, right, classes = common(predictor, real)
        predicted, reference = values(left, classes), values(right, classes)
        rows[name] = {
            "images": len(left.images), "models": len(left.models), "classes": len(classes),
            "mean_miou": float(predicted["miou"].mean()), "real_miou": float(reference["miou"].mean()),
            **{
                metric: agreement(predicted[metric], reference[metric], larger, left.models, groups)
                for metric, (_, larger) in METRICS.items()
            },
        }  # fmt: skip
    enough = len(real.images) >= FEWEST_IMAGES and real.recordings() >= FEWEST_RECORDINGS
    for name, judged in judge(found, real, domain, seed).items() if enough else ():
        rows[name]["judged"] = judged
    return {"images": len(real.images), "recordings": real.recordings(), "verdict": enough, "predictors": rows}


def judge(found: dict[str, ImageSet], real: ImageSet, domain: str, seed: int) -> dict[str, dict[str, Any]]:
    """Correct r of each predictor, and its difference from that of clear weather, for the noise of the images.

    Real images are drawn by recording, the others by the frame that they were made from.
    """
    if "clear" not in found:
        return {}
    real = common(found["clear"], real)[1]
    classes = sorted(real.classes().intersection(*(images.classes() for images in found.values())))
    sources = {name: images.sources(domain) for name, images in found.items()}
    recordings = [image.partition("/")[0] for image in real.images]
    weights = draw_images(sources, DRAWS, seed)
    real_weights = draw_images({"real": recordings}, DRAWS, seed + 1)["real"]
    known, drawn = values(real, classes), values(real, classes, real_weights)
    judged: dict[str, dict[str, Any]] = {name: {} for name in found}
    for metric in METRICS:
        reference = Scores(known[metric], drawn[metric], len(set(recordings)))
        sides = {
            name: Scores(
                values(images, classes)[metric],
                values(images, classes, weights[name])[metric],
                len(set(sources[name])),
            )
            for name, images in found.items()
        }
        for name, one in correct(sides, reference).items():
            judged[name][metric] = one
    return judged


def correct(sides: dict[str, Scores], reference: Scores) -> dict[str, dict[str, Any]]:
    """Return r of each side with the reference, and its difference from that of clear weather, with intervals."""
    corrected: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        r = pearson_estimate(side, reference)
        corrected[name] = {"r": r.shown, "low": r.low, "high": r.high}
        if name != "clear":
            less, _ = pearson_difference(side, sides["clear"], reference)
            ends = {"less_clear": less.shown, "less_low": less.low, "less_high": less.high}
            corrected[name] |= {**ends, "better_than_clear": beats(less)}
    return corrected


def clear_checks(sets: dict[tuple[str, str], ImageSet], groups: dict[str, str]) -> dict[str, Any]:
    """Compare mIoU on a generator's clear images with that on the real frames that they were made from."""
    checks = {}
    for name, generated in predictors(sets, "clear").items():
        real = sets.get(("Cityscapes", "clean"))
        if name == "clear" or real is None:
            continue
        left, right, classes = common(generated, real)
        frames = {image.rpartition("/")[2]: index for index, image in enumerate(right.images)}
        sources = [next((frame for frame in frames if image.endswith(frame)), None) for image in left.images]
        if None in sources:
            raise GenValError(f"{name}: image {left.images[sources.index(None)]} names no frame of Cityscapes.")
        weights = np.zeros((1, len(frames)))
        for source in sources:
            weights[0, frames[source]] += 1
        predicted, reference = values(left, classes)["miou"], values(right, classes, weights)["miou"][0]
        r = pearson_r(predicted, reference)
        published = np.array([groups[model] != OWN for model in left.models])
        checks[name] = {
            "r": r,
            "published": pearson_r(predicted[published], reference[published]),
            "passed": r >= ALLOWED_R,
            "images": len(sources),
            "models": len(left.models),
            "mean_miou": float(predicted.mean()),
            "real_miou": float(reference.mean()),
        }
    return checks


def choose_improvements(
    sets: dict[tuple[str, str], ImageSet], boxes: dict[str, Any], splits: dict[str, Any]
) -> dict[str, Any]:
    """Return r and regret of predictors, and of pools of them, on the two halves of the real images of each reference.

    References are mIoU in India and at dusk, and the shares of DAWN's boxes, which are compared with the share of the
    objects' pixels that are right.
    """
    rows: dict[str, Any] = {}
    for domain in ("india", "dusk", *WEATHERS):
        found = predictors(sets, domain)
        for names in IMPROVEMENTS:
            if set(names) <= found.keys():
                pooled = found[names[0]]
                for name in names[1:]:
                    pooled = pooled + found[name]
                found["+".join(names)] = pooled
        for half in ("choose", "confirm"):
            for name, predictor in found.items():
                pair = on_half(predictor, sets, boxes, splits, domain, half)
                if pair is not None:
                    one = {"r": pearson_r(*pair), "regret": float(regret(*pair))}
                    rows.setdefault(name, {}).setdefault(half, {})[domain] = one
    for one in rows.values():
        for half in ("choose", "confirm"):
            of_half = [one[half].get(domain) for domain in AVERAGED] if half in one else [None]
            if all(of_half):
                one[f"{half}_mean"] = {
                    key: float(np.mean([value[key] for value in of_half])) for key in ("r", "regret")
                }
    return rows


def on_half(
    predictor: ImageSet,
    sets: dict[tuple[str, str], ImageSet],
    boxes: dict[str, Any],
    splits: dict[str, Any],
    domain: str,
    half: str,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the models' values on a predictor and on one half of a reference; None without the reference."""
    if domain in ("india", "dusk"):
        real, parts = sets.get(REAL[domain]), splits.get({"india": "idd_drives", "dusk": "camvid_dusk"}[domain])
        if real is None or parts is None:
            return None
        chosen = real.part(lambda image, names=frozenset(parts[half]): bool(names & set(image.split("/"))))
        if not chosen.images:
            return None
        left, right, classes = common(predictor, chosen)
        return values(left, classes)["miou"], values(right, classes)["miou"]
    chosen_photos = splits.get(f"dawn_{domain}", {}).get(half, ())
    photos = [f"{domain}/{name}" for name in chosen_photos]
    models = [model for model in predictor.models if model in boxes]
    if len(models) < 3 or not photos:
        return None
    return object_recall(predictor.of(models)), box_shares(boxes, models, photos)


def compare_boxes(
    sets: dict[tuple[str, str], ImageSet], boxes: dict[str, Any], domain: str, groups: dict[str, str], seed: int
) -> dict[str, Any]:
    """Compare the share of the objects' pixels that are right with the mean share of real boxes that is.

    Each photo is a recording of its own.
    """
    photos = [name for name in next(iter(boxes.values()), {}) if name.startswith(f"{domain}/")]
    found = predictors(sets, domain)
    models = [model for model in next(iter(found.values())).models if model in boxes] if found else []
    if len(models) < 3 or not photos:
        return {}
    found = {name: images.of(models) for name, images in found.items()}
    weights = draw_images({name: images.sources(domain) for name, images in found.items()}, DRAWS, seed)
    drawn = draw_images({"real": photos}, DRAWS, seed + 1)["real"]
    shares = box_shares(boxes, models, photos)
    reference = Scores(shares, box_shares(boxes, models, photos, drawn), len(photos))
    sides = {
        name: Scores(object_recall(images), object_recall(images, weights[name]), len(set(images.sources(domain))))
        for name, images in found.items()
    }
    judged = correct(sides, reference) if "clear" in sides else {}
    number = sum(len(boxes[models[0]][photo]["boxes"]) for photo in photos)
    return {
        name: {
            "photos": len(photos), "boxes": number, "models": len(models),
            "objects": agreement(sides[name].value, shares, True, models, groups),
            "miou": agreement(values(images, sorted(images.classes()))["miou"], shares, True, models, groups),
            "judged": {"objects": judged[name]} if judged else {},
        }
        for name, images in found.items()
    }  # fmt: skip


def object_recall(images: ImageSet, weights: np.ndarray | None = None) -> np.ndarray:
    """Return, by model, the share in percent of the pixels of cars, trucks, buses and people that are right.

    The result is (M,), or (D, M) with weights (D, N) of the images.
    """
    counts = images.counts[..., OBJECTS]
    summed = counts.sum(0) if weights is None else weigh(counts, weights)
    return np.asarray(100 * summed[..., 0, :].sum(-1) / summed[..., 1, :].sum(-1))


def box_shares(
    boxes: dict[str, Any], models: Sequence[str], photos: Sequence[str], weights: np.ndarray | None = None
) -> np.ndarray:
    """Return, by model, the mean share in percent of a box that is predicted as its class: (M,), or (D, M)."""
    sums = np.array(
        [
            [sum(hits / pixels for _, pixels, hits in boxes[model][photo]["boxes"]) for model in models]
            for photo in photos
        ]
    )
    numbers = np.array([[len(boxes[models[0]][photo]["boxes"])] for photo in photos])
    if weights is None:
        return np.asarray(100 * sums.sum(0) / numbers.sum(0))
    return np.asarray(100 * (weights @ sums) / (weights @ numbers))


def compare_estimates(
    sets: dict[tuple[str, str], ImageSet], rows: list[dict[str, Any]], domain: str
) -> dict[str, dict[str, Any]]:
    """Compare label-free estimates on the real images with mIoU and pixel accuracy there: r and regret."""
    real = sets.get(REAL[domain])
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["domain"] == domain:
            found.setdefault(row["estimate"], {})[row["model"]] = row["value"]
    compared: dict[str, dict[str, Any]] = {}
    for name, by_model in found.items() if real is not None else ():
        models = [model for model in real.models if model in by_model]
        if len(models) < 3:
            continue
        estimate = np.array([by_model[model] for model in models])
        reference = values(real.of(models), sorted(real.classes()))
        compared[name] = {"models": len(models)} | {
            metric: {
                "r": pearson_r(estimate, reference[metric]),
                "regret": float(regret(estimate, reference[metric])),
            }
            for metric in ("miou", "accuracy")
        }
    return compared


def size_curves(sets: dict[tuple[str, str], ImageSet], domain: str, settings: StudySettings) -> dict[str, Any]:
    """Return the mean r of mIoU over random choices of n images of each predictor."""
    real = sets.get(REAL[domain])
    if real is None:
        return {}
    curves: dict[str, Any] = {}
    for name, predictor in predictors(sets, domain).items():
        left, right, classes = common(predictor, real)
        reference = values(right, classes)["miou"]
        total, rng = len(left.images), np.random.default_rng(settings.seed)
        for size in [size for size in (4, 8, 16, 32, 64, 128, 256) if size < total] + [total]:
            weights = np.zeros((settings.draws if size < total else 1, total))
            for row in weights:
                row[rng.choice(total, size, replace=False)] = 1
            drawn = pearson(values(left, classes, weights)["miou"], reference)
            ends = np.nanpercentile(drawn, [5, 95]).tolist()
            curves.setdefault(name, {})[size] = [float(np.nanmean(drawn)), *ends]
    return curves


def ceiling(sets: dict[tuple[str, str], ImageSet], domain: str, settings: StudySettings) -> dict[str, Any]:
    """Return how well the real images agree with themselves: r of mIoU between random halves, and of all of them."""
    real = sets.get(REAL[domain])
    if real is None:
        return {}
    total, rng = len(real.images), np.random.default_rng(settings.seed)
    weights = np.zeros((settings.draws, total))
    for row in weights:
        row[rng.permutation(total)[: total // 2]] = 1
    classes = sorted(real.classes())
    halves = [values(real, classes, side)["miou"] for side in (weights, 1 - weights)]
    r = float(np.nanmean(pearson(*halves)))
    # Spearman and Brown: the correlation of twice as many images with another sample of that size.
    return {"half": r, "all": 2 * r / (1 + r) if r > -1 else math.nan}


def summarise_temperatures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, by domain and source, the share of segmenters whose ECE drops, and the mean ECE before and after."""
    summary: dict[str, Any] = {}
    for domain, (real, _) in REAL.items():
        of_domain = [row for row in rows if row["domain"] == domain]
        before = {row["model"]: row["ece"] for row in of_domain if row["source"] == real}
        for source in dict.fromkeys(row["source"] for row in of_domain if row["source"] != real):
            after = {row["model"]: row["ece"] for row in of_domain if row["source"] == source}
            models = [model for model in before if model in after]
            summary.setdefault(domain, {})[source] = {
                "models": len(models),
                "better": float(np.mean([after[model] < before[model] for model in models])),
                "before": 100 * float(np.mean([before[model] for model in models])),
                "after": 100 * float(np.mean([after[model] for model in models])),
            }
    return summary


def compare_ood(sets: dict[tuple[str, str], ImageSet], ood: dict[str, Any]) -> dict[str, Any]:
    """Compare detection of pasted objects, and clear mIoU, with detection of real objects: r of the AUROC."""
    clear = sets.get(("Cityscapes", "clean"))
    miou = {}
    if clear is not None:
        miou = dict(zip(clear.models, values(clear, sorted(clear.classes()))["miou"], strict=True))
    pasted = ood.get("pasted", {})
    rows: dict[str, Any] = {}
    for name, by_model in ood.items():
        if name == "pasted":
            continue
        for score in dict.fromkeys(row["score"] for row in next(iter(by_model.values()))):
            models = [model for model in by_model if model in pasted and model in miou]
            if len(models) < 3:
                continue
            real, made = (
                np.array([next(100 * float(row["auroc"]) for row in side[m] if row["score"] == score) for m in models])
                for side in (by_model, pasted)
            )
            chosen = np.array([miou[model] for model in models])
            rows.setdefault(name, {})[score] = {
                "models": len(models), "auroc": float(real.mean()), "pasted_auroc": float(made.mean()),
                "r": pearson_r(made, real), "regret": float(regret(made, real)),
                "clear_r": pearson_r(chosen, real), "clear_regret": float(regret(chosen, real)),
            }  # fmt: skip
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Return the tables of the report."""
    parts = ["## Check on generated clear images\n"]
    rows = [
        [
            name,
            one["images"],
            one["models"],
            one["r"],
            one["published"],
            one["mean_miou"],
            one["real_miou"],
            "yes" if one["passed"] else "no",
        ]
        for name, one in report["clear_checks"].items()
    ]
    header = ["generator", "images", "segmenters", "r of mIoU", "published", "mIoU %", "on the real frames %", "passes"]
    parts.append(markdown_table(header, rows, digits=2))
    for metric, title in (("miou", "mIoU"), ("accuracy", "pixel accuracy"), ("ece", "ECE")):
        parts.append(f"\n## {title}: r and regret (points)\n")
        names = list(dict.fromkeys(name for one in report["domains"].values() for name in one.get("predictors", {})))
        rows = []
        for domain, one in report["domains"].items():
            if one:
                number = f"{one['images']}, {one['recordings']}" + ("" if one["verdict"] else " (no verdict)")
                cells = [_pair(one["predictors"].get(name, {}).get(metric)) for name in names]
                rows.append([domain, number, *cells])
        parts.append(markdown_table(["domain", "real images, recordings", *names], rows))
    parts.append("\n## r corrected for the noise of images, and its difference from clear weather, 95 % intervals\n")
    rows = [
        [domain, name, metric, _ends(judged, "r", "low", "high"),
         _ends(judged, "less_clear", "less_low", "less_high"), judged.get("better_than_clear", "")]
        for domain, by_name in [
            *((domain, one.get("predictors", {})) for domain, one in report["domains"].items()),
            *((f"{domain} (boxes)", by_name) for domain, by_name in report["boxes"].items()),
        ]
        for name, one in by_name.items()
        for metric, judged in one.get("judged", {}).items()
    ]  # fmt: skip
    parts.append(markdown_table(["domain", "predictor", "metric", "r", "r less that of clear", "better"], rows))
    parts.append("\n## mIoU: r within and between families\n")
    rows = [
        [domain, name, one["images"], one["models"], one["miou"]["r"], one["miou"]["published"], one["miou"]["own"],
         one["miou"]["within"], one["miou"]["between"],
         ", ".join(f"{group} {r:.2f}" for group, r in one["miou"]["by_group"].items()), one["miou"]["chosen"],
         one["miou"]["best"]]
        for domain, by_name in report["domains"].items()
        for name, one in by_name.get("predictors", {}).items()
    ]  # fmt: skip
    header = [
        "domain",
        "predictor",
        "images",
        "segmenters",
        "r",
        "published",
        "own",
        "within",
        "between",
        "in each family",
        "chosen",
        "best",
    ]
    parts.append(markdown_table(header, rows, digits=2))
    parts.append("\n## DAWN boxes: r and regret of the share of objects' pixels, and of mIoU\n")
    rows = [
        [domain, name, f"{one['photos']}, {one['boxes']}", one["models"], _pair(one["objects"]), _pair(one["miou"])]
        for domain, by_name in report["boxes"].items()
        for name, one in by_name.items()
    ]  # fmt: skip
    header = ["domain", "predictor", "photos, boxes", "segmenters", "objects", "mIoU"]
    parts.append(markdown_table(header, rows, digits=2))
    parts.append("\n## Improvements: r and regret on the halves choose and confirm of the real images\n")
    references = list(dict.fromkeys(d for one in report["improvements"].values() for d in one.get("choose", {})))
    rows = [
        [name, half, _pair(one.get(f"{half}_mean")), *(_pair(one.get(half, {}).get(domain)) for domain in references)]
        for name, one in report["improvements"].items()
        for half in ("choose", "confirm")
    ]
    parts.append(markdown_table(["predictor", "half", "mean without dusk", *references], rows))
    parts.append("\n## Label-free estimates on the real images: r and regret\n")
    rows = [
        [domain, name, one["models"], _pair(one["miou"]), _pair(one["accuracy"])]
        for domain, by_name in report["estimates"].items()
        for name, one in by_name.items()
    ]
    parts.append(markdown_table(["domain", "estimate", "segmenters", "mIoU", "pixel accuracy"], rows))
    parts.append("\n## r of mIoU by number of images: mean (5 to 95 % of random choices)\n")
    rows = [
        [
            domain,
            name,
            "; ".join(f"{size}: {mean:.2f} ({low:.2f} to {high:.2f})" for size, (mean, low, high) in curve.items()),
        ]
        for domain, by_name in report["sizes"].items()
        for name, curve in by_name.items()
    ]
    parts.append(markdown_table(["domain", "predictor", "images: r"], rows))
    rows = [[domain, one["half"], one["all"]] for domain, one in report["ceilings"].items() if one]
    parts.append("\n## Agreement of the real images with themselves: r of mIoU\n")
    parts.append(markdown_table(["domain", "between halves", "expected for as many others"], rows, digits=2))
    parts.append("\n## Temperatures, tested on the real images\n")
    rows = [
        [domain, source, one["models"], 100 * one["better"], one["before"], one["after"]]
        for domain, by_source in report["temperatures"].items()
        for source, one in by_source.items()
    ]
    header = ["domain", "temperatures from", "segmenters", "better %", "mean ECE before %", "after %"]
    parts.append(markdown_table(header, rows, digits=1))
    parts.append("\n## Unknown objects: AUROC\n")
    rows = [
        [
            name,
            score,
            one["models"],
            one["auroc"],
            one["pasted_auroc"],
            one["r"],
            one["regret"],
            one["clear_r"],
            one["clear_regret"],
        ]
        for name, by_score in report["ood"].items()
        for score, one in by_score.items()
    ]
    header = ["real set", "score", "segmenters", "AUROC %", "pasted %", "r", "regret", "clear mIoU r", "its regret"]
    parts.append(markdown_table(header, rows, digits=2))
    return "\n".join(parts) + "\n"


def _pair(one: dict[str, Any] | None) -> str:
    return f"{one['r']:.2f}, {one['regret']:.1f}" if one else ""


def _ends(one: dict[str, Any], value: str, low: str, high: str) -> str:
    if one.get(value) is None:
        return ""
    ends = "" if one[low] is None else f" ({one[low]:.2f} to {one[high]:.2f})"
    return f"{one[value]:.2f}{ends}"


def plain(value: Any) -> Any:
    """Return a value for JSON, in which NaN becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    cli.run(main, StudySettings, __doc__)
