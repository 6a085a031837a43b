"""A correlation.json of invented scores, as genval.report.schema describes it, and folders of small images."""

import numpy as np

from genval.artifacts.settings import write_settings
from genval.datasets import find_items, read_pair
from genval.metrics.confusion import confusion_matrix
from genval.metrics.segmentation import mean_iou, pixel_accuracy
from genval.report.page import PageSources
from genval.report.predictors import Generator, list_predictors
from genval.report.schema import FORMAT
from genval.results.scenes import SceneResults, folder_name, image_record
from genval.runtime.files import write_csv, write_json, write_jsonl, write_png

SIDES = ("synthetic", "clear", "corrupted")


def interval(value, half, low=-1.0, high=1.0):
    return [max(low, value - half), min(high, value + half)]


def estimate(value, half):
    spans = {"over_models": half, "over_images": half / 2, "over_both": 1.1 * half}
    return {"value": value} | {key: interval(value, width) for key, width in spans.items()}


def pearson(value, half):
    low, high = interval(value + 0.01, half)
    return {"value": value, "corrected": min(1.0, value + 0.01), "low": low, "high": high, "refused": None}


def coefficients(value, half):
    return {"pearson": pearson(value, half)} | {name: estimate(value, half) for name in ("spearman", "kendall")}


def plain_coefficients(value, half):
    return {"pearson": pearson(value, half)} | {name: plain_estimate(value, half) for name in ("spearman", "kendall")}


def plain_estimate(value, half):
    low, high = interval(value, half)
    return {"value": value, "low": low, "high": high}


def comparison(generator, models, domain, figure="miou", corrupted=True, per_class=False):
    """Reference scores of every model, and predictors that are more and less close to them."""
    true = generator.uniform(20, 70, len(models))
    noise = {"true": 0, "synthetic": 4, "clear": 14, "corrupted": 9}
    sides = {side: np.clip(true + generator.normal(0, spread, len(models)), 1, 99) for side, spread in noise.items()}
    if not corrupted:
        sides["corrupted"] = None
    rows = []
    for index, model in enumerate(models):
        row = {"model": model}
        for side, values in sides.items():
            value = None if values is None else float(values[index])
            row[side] = None if value is None else {"value": value, "low": value - 2.5, "high": value + 2.5}
        rows.append(row)
    r = {s: None if sides[s] is None else float(np.corrcoef(sides[s], true)[0, 1]) for s in SIDES}
    best = models[int(true.argmax())]
    value = {
        "figure": figure,
        "unit": "percent",
        "better": "higher" if figure != "ece" else "lower",
        "sets": {
            side: None if sides[side] is None else {"dataset": f"{side}_{domain}", "cond": domain, "images": 8}
            for side in (*SIDES, "true")
        },
        "models": rows,
        "correlation": {
            side: None if r[side] is None else {"models": len(models)} | coefficients(r[side], 0.2) for side in SIDES
        },
        "difference": {
            base: None
            if r[base] is None
            else {"models": len(models), "share_above": 0.97} | coefficients(r["synthetic"] - r[base], 0.25)
            for base in ("clear", "corrupted")
        },
        "beats": {"clear": "yes", "corrupted": "undecided" if corrupted else None},
        "ranking": {
            side: None
            if r[side] is None
            else {
                "chosen": models[0],
                "best": best,
                "top_1": models[0] == best,
                "top_5": 0.8,
                "regret": {"value": 1.2, "low": 0.0, "high": 3.4},
            }
            for side in SIDES
        },
        "bias": {"value": -1.3, "low": -2.0, "high": -0.4},
    }
    if per_class:
        value |= {"classes": ["road", "sky"], "classes_flag": None}
        value["per_class"] = {
            name: {
                "synthetic": plain_coefficients(0.9 - 0.1 * place, 0.1),
                "clear": plain_coefficients(0.5, 0.2),
                "difference": pearson(0.4 - 0.1 * place, 0.2),
            }
            for place, name in enumerate(("road", "car", "sky"))
        }
    return value


def scaling(generator, models):
    before = generator.uniform(5, 25, len(models))
    improved = {"models": len(models), "share": 0.89, "low": 0.57, "high": 0.98, "before": float(before.mean())}
    rows = [
        {"model": m, "before": float(b), "synthetic": float(b * 0.4), "clear": float(b * 0.9), "corrupted": None}
        | {"synthetic, hardest half": float(b * 0.3), "synthetic, hardest 25 %": None}
        for m, b in zip(models, before, strict=True)
    ]
    return {
        "method": "vanilla_ece",
        "models": rows,
        "improved": {
            "synthetic": improved,
            "synthetic, hardest half": improved | {"share": 0.93, "low": 0.66, "high": 0.99},
            "synthetic, hardest 25 %": {"models": 0, "share": None, "low": None, "high": None, "before": None},
            "clear": improved | {"share": 0.57, "low": 0.3, "high": 0.8, "before": 9.4},
            "reference": improved | {"share": 1.0},
        },
        "mean": {name: {"value": 10.0, "low": 8.0, "high": 12.0} for name in ("before", "synthetic", "clear")}
        | {
            "reference": {"value": 2.5, "low": 2.0, "high": 3.0},
            "synthetic, hardest half": {"value": 7.3, "low": 5.0, "high": 9.0},
            "synthetic, hardest 25 %": None,
        },
        "after": None,
        "less_than_clear": {"value": -4.0, "low": -6.0, "high": -2.0},
    }


def curve(number):
    images = [size for size in (8, 16, 32, 64, 128, 256, 512) if size <= number]
    widths = [1.2 / np.sqrt(size / 2) for size in images]
    return {
        "images": images,
        "pearson": [
            {"value": 0.9, "low": 0.9 - w / 2, "high": min(1.0, 0.9 + w / 2), "width": float(w)} for w in widths
        ],
        "tau": [{"value": 1 - w / 4, "low": float(1 - w / 2)} for w in widths],
        "regret": [{"value": w, "high": float(4 * w)} for w in widths],
        "settles_ranking": 64 if number >= 64 else None,
        "settles_choice": None,
        "settled_tau": 0.9,
        "settled_regret": 1.0,
        "total": number,
    }


def severity(models):
    return {
        "strengths": [0.0, 0.5, 1.0],
        "images": 16,
        "classes": ["road", "car"],
        "min_miou": None,
        "miou": {
            model: [{"value": value - index, "low": value - 2, "high": value + 2} for value in (70.0, 65.0, 40.0)]
            for index, model in enumerate(models)
        },
        "falls_at": {
            model: {"value": 0.6, "low": 0.4, "high": None} if index else {"value": None, "low": None, "high": None}
            for index, model in enumerate(models)
        },
    }


def example_correlation(models, domains, images=512, seed=0, objects=True):
    generator = np.random.default_rng(seed)
    robust = {
        domain: comparison(generator, models, domain, corrupted=domain != "india", per_class=True) for domain in domains
    }
    return {
        "format": FORMAT,
        "settings": {"preset": "mini", "script": "report/correlate"},
        "models": list(models),
        "short_names": {},
        "families": {model: ("transformer", "convolutional")[index % 2] for index, model in enumerate(models)},
        "made_by": {},
        "domains": list(domains),
        "checks": [],
        "predictors": [one.to_json() for one in list_predictors([Generator("controlnet", None)])],
        "verdict": [
            f"Can the synthetic verdict be trusted? Yes for {domains[0]} (r 0.90, clear -0.28). Not shown for others.",
            f"Which model to trust? {models[0]}, the best on reference images too.",
            "How many generated images? 64 settle the ranking.",
        ],
        "answers": {
            "trust": dict.fromkeys(domains, "better"),
            "model": {
                domain: {"chosen": models[0], "best": models[0], "regret": 0.0, "regret_high": 1.0}
                for domain in domains
            },
            "images": {},
        },
        "robustness": robust,
        "calibration": {
            domain: {
                "ece": comparison(generator, models, domain, "ece"),
                "scaling": scaling(generator, models) if domain != domains[-1] else None,
            }
            for domain in domains
        },
        "ood_detection": {
            "RoadAnomaly21": {
                score: {
                    metric: comparison(generator, models, "objects", metric, False) for metric in ("auroc", "fpr95")
                }
                for score in ("entropy", "max_logit")
            }
        }
        if objects
        else {},
        "sample_size": {domain: curve(images) for domain in domains},
        "realism": {domains[0]: {"synthetic": {"value": 0.8, "low": 0.4, "high": 1.3}}},
        "severity": {domains[0]: severity(models)},
        "ood_figures": {},
        "published": {
            "source": "secondary",
            "models": 40,
            "pearson": {"SD 1.5": {"fog": 0.77}},
            "ece_improved_percent": {},
            "ood_pearson": "about 0.8",
            "detectors": [],
        },
        "missing": [{"what": "reference rain", "command": "python relis/eval.py --trg_dataset ACDC --cond rain"}],
    }


def write_world(root, images=4, models=("good", "hf:some/folder/poor"), domains=("fog", "night")):
    """Write generated sets, evaluations, scalings and objects below `root`, small and quick."""
    generator = np.random.default_rng(0)
    for domain in domains:
        records = []
        for number in range(images):
            name = f"{domain}_{number}_bonn_{number:06d}_000019"
            label_ids = generator.choice(np.array([7, 8, 11, 23, 26, 0], np.uint8), (4, 8)).repeat(4, 0).repeat(4, 1)
            folder = root / "generated" / domain
            image = generator.integers(0, 256, (16, 32, 3)).astype(np.uint8)
            write_png(folder / "leftImg8bit/val/bonn" / f"{name}_leftImg8bit.png", image)
            write_png(folder / "original/val/bonn" / f"{name}_leftImg8bit.png", image)
            write_png(folder / "gtFine/val/bonn" / f"{name}_gtFine_labelIds.png", label_ids)
            records.append({"id": name, "prompt": f"a street </script> & <b>in</b> {domain}", "seed": 2**62 + number})
        write_jsonl(folder / "manifest.jsonl", records)
        settings = {"script": "ControlNet/style_transfer", "preset": "mini", "domain": domain, "controlnet_hash": "abc"}
        write_settings(folder, settings)
        items = find_items(f"Cityscapes_{domain}", generated_dir=root / "generated")
        for model, wrong in zip(models, (0.1, 0.6), strict=False):
            evaluate(root / "eval", model, items, wrong, generator)
        for model in models:
            path = root / "scaling" / folder_name(model) / f"ACDC_{domain}" / f"from_Cityscapes_{domain}_all"
            write_json(path / "vanilla_ece.json", scaled(model, domain))
            path = root / "errors" / folder_name(model) / f"Cityscapes_{domain}_all.json"
            bins = {"before": scaled(model, domain)["reliability_bins"]["before"]}
            write_json(path, {"model": model, "set": path.stem, "ece": 0.3, "reliability_bins": bins})
    for number, name in enumerate(("lion", "rubber_duck")):
        image = generator.integers(0, 256, (64, 128, 3)).astype(np.uint8)
        mask = np.zeros((64, 128), np.uint8)
        mask[20:40, 30 + 40 * number : 60 + 40 * number] = 255
        write_png(root / "objects/refined" / name / "0.png", image)
        write_png(root / "objects/masks" / name / "0_mask.png", mask)
        box = {"0.png": {"pos_mask": [10, 10], "size_mask": 40}}
        write_json(root / "objects/with_positions" / name / "0_pos.json", box)
    for model, value in zip(models, (0.9, 0.6), strict=False):
        by_image = {f"a/refined/{name}/0.png": {"entropy": {"auroc": value}} for name in ("lion", "rubber_duck")}
        by_image["a/refined/lion/0.png"]["entropy"]["auroc"] -= 0.2
        write_json(root / f"ood/generated/{folder_name(model)}.json", by_image | {"pooled": {"model": model}})
    return PageSources(
        report=root / "report",
        generated=root / "generated",
        evaluated=root / "eval",
        errors=root / "errors",
        scaling=root / "scaling",
        objects=root / "objects",
        ood=root / "ood",
        preset="mini",
    )


def evaluate(root, model, items, wrong, generator):
    """What the page reads of relis/eval.py, of a model that is wrong on a share of the pixels."""
    scene = SceneResults(root, model, f"Cityscapes_{items[0].cond}", items[0].cond, items[0].scene)
    rows, records = [], []
    for item in items:
        train_ids = read_pair(item)[1]
        prediction = np.where(generator.random(train_ids.shape) < wrong, 10, train_ids).astype(np.uint8)
        prediction[train_ids == 255] = 0
        write_png(scene.prediction(item.id), prediction)
        matrix = confusion_matrix(train_ids, prediction, 19)
        rows.append([item.id, mean_iou(matrix, range(19)), pixel_accuracy(matrix)])
        records.append(image_record(item.id, item.image, item.mask, model, f"weights-of-{model}", "32-true"))
    write_csv(scene.folder / "per_image.csv", ["id", "miou", "pixel_accuracy_percent"], rows)
    write_jsonl(scene.folder / "manifest.jsonl", records)
    write_settings(scene.folder, {"script": "relis/eval", "preset": "mini", "trg_dataset": [scene.dataset], "seed": 0})
    write_json(scene.metrics, {"model": model})


def scaled(model, domain):
    """A file of relis/eval_calibration_clustering.py: two bins with pixels, overconfident before."""

    def bins(confidence):
        values = {"pixels": [0] * 15, "right": [0] * 15, "confidence": [0.0] * 15}
        for place, right in ((8, 30), (14, 60)):
            values["pixels"][place], values["right"][place], values["confidence"][place] = 100, right, confidence[place]
        return values

    before, after = bins({8: 60.0, 14: 95.0}), bins({8: 54.0, 14: 94.0})
    return {
        "model": model,
        "tested_on": f"ACDC_{domain}",
        "calibrated_on": f"Cityscapes_{domain}_all",
        "seeds": [0],
        "before": {"ece": 0.325, "intervals": {"ece": [0.3, 0.35]}},
        "after": [{"ece": 0.29, "intervals": {"ece": [0.2, 0.3]}}],
        "after_mean": {"ece": 0.29},
        "reliability_bins": {"before": before, "after scaling": after},
    }
