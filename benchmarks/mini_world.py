"""Quality of the mini world's generator: agreement with the masks in clear weather, and recognition of the weather.

Reads:  checkpoints/mini
Writes: --output_dir: world/ (rendered streets), generated/ (ControlNet/style_transfer.py --preset mini),
        mini_world.json; prints two tables in Markdown. Run the same command again to resume.

    python benchmarks/mini_world.py --accelerator gpu --num_samples 200

Masks: mIoU of a mini segmenter on rendered clear streets at the generator's size, on their reconstruction by the
generator's VAE, which is the upper limit for generated images, and on the generated streets of the same masks.
Weather: a logistic regression on colours and edges of image bands, fitted to rendered streets and their
reconstructions, so that the VAE's blur is not a cue; tested on held-out renders and on generated streets.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import positive_int

if TYPE_CHECKING:
    import numpy as np

    from genval.datasets import Item
    from genval.diffusion.models.pipelines import StableDiffusion

BASE = "checkpoints/mini/stable-diffusion"
DOMAINS = ("clear", "fog", "night", "rain", "snow", "india")
# Horizontal bands of an image, from sky to road, whose statistics are the features of the weather classifier.
BANDS = 4
# Settings of style_transfer.py that differ from the preset.
GENERATION = ("controlnet", "sampler", "steps", "guidance_scale", "control_scale", "batch_size", "precision")


@dataclass(frozen=True, kw_only=True)
class MiniWorldSettings:
    """Settings of benchmarks/mini_world.py."""

    SCRIPT: ClassVar[str] = "benchmarks/mini_world"

    num_samples: int = flag(64, "held-out masks; images per domain", type=positive_int)
    num_train: int = flag(100, "rendered images per domain that the weather classifier is fitted to", type=positive_int)
    segmenter: str = flag("mini-segformer-mit", "the best of checkpoints/mini/training.json")
    output_dir: str = flag("results/mini/mini_world", "where everything is written")
    accelerator: str = flag("auto", "auto, cpu, gpu")
    controlnet: str | None = flag(
        None, "see ControlNet/style_transfer.py", title="generation, by default as --preset mini"
    )
    sampler: str | None = flag(None, "see ControlNet/style_transfer.py")
    steps: str | None = flag(None, "see ControlNet/style_transfer.py")
    guidance_scale: str | None = flag(None, "see ControlNet/style_transfer.py")
    control_scale: str | None = flag(None, "see ControlNet/style_transfer.py")
    batch_size: str | None = flag(None, "see ControlNet/style_transfer.py")
    precision: str | None = flag(None, "see ControlNet/style_transfer.py")
    preset: str | None = None


def main(settings: MiniWorldSettings) -> None:
    folder = resolve(settings.output_dir)
    world, generated = folder / "world", folder / "generated"
    script("mini/render.py", out=world, num_train=settings.num_train, num_val=settings.num_samples)
    generation = {flag: getattr(settings, flag) for flag in GENERATION if getattr(settings, flag) is not None}
    for domain in DOMAINS:
        flags = {"preset": "mini", "domain": domain, "num_samples": settings.num_samples, "without_replacement": True}
        places = {"data_dir": world / "cityscapes", "output_dir": generated, "accelerator": settings.accelerator}
        script("ControlNet/style_transfer.py", **flags, **places, devices=1, **generation)

    import numpy as np
    import torch

    from genval.datasets import find_items
    from genval.datasets.items import find_original
    from genval.datasets.reading import read_image
    from genval.diffusion.models.pipelines import load_base
    from genval.runtime.files import read_json, write_json
    from genval.segmenters import load_segmenter

    gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    base = load_base(BASE, "cuda" if gpu else "cpu")
    segmenter = load_segmenter(settings.segmenter, base.device)
    items = {domain: find_items(f"Cityscapes_{domain}", root=generated / domain) for domain in DOMAINS}
    outputs = {domain: np.stack([read_image(item.image) for item in items[domain]]) for domain in DOMAINS}
    originals = np.stack([read_image(find_original(item) or item.image) for item in items["clear"]])
    sets = {
        "rendered": originals,
        "reconstructed": reconstruct(base, originals),
        "generated": outputs["clear"],
    }
    masks = {name: mask_scores(segmenter, images, items["clear"]) for name, images in sets.items()}
    for values in masks.values():
        values["share_of_ceiling"] = values["miou"] / masks["reconstructed"]["miou"]

    height, width = originals.shape[1:3]
    classifier = fit_weather(base, {domain: rendered(world, domain, "train", height, width) for domain in DOMAINS})
    weather = {}
    for domain in DOMAINS:
        held_out = rendered(world, domain, "val", height, width)
        cases = {
            "rendered": held_out,
            "reconstructed": reconstruct(base, held_out),
            "generated": outputs[domain],
        }
        said = {name: classifier.predict(band_statistics(images)) for name, images in cases.items()}
        weather[domain] = {f"{name}_not_clear": float((names != "clear").mean()) for name, names in said.items()}
        weather[domain] |= {f"{name}_right": float((names == domain).mean()) for name, names in said.items()}
    recorded = read_json(generated / "clear/settings.json")["settings"]
    metadata = {key: recorded[key] for key in (*GENERATION, "base_hash", "controlnet_hash", "num_samples")}
    metadata |= {"segmenter": settings.segmenter, "num_train": settings.num_train, "size": [height, width]}
    write_json(folder / "mini_world.json", {"settings": metadata, "masks": masks, "weather": weather})
    print_tables(masks, weather, len(originals))
    print(f"wrote {folder / 'mini_world.json'}")


def print_tables(masks: dict[str, dict[str, float]], weather: dict[str, dict[str, float]], images: int) -> None:
    """Print the agreement with the masks and the weather of each domain as Markdown tables."""
    from genval.runtime.tables import markdown_table

    header = ["clear streets", "images", "mIoU %", "pixel accuracy %", "% of the ceiling"]
    rows = [
        [name, images, 100 * v["miou"], v["pixel_accuracy_percent"], 100 * v["share_of_ceiling"]]
        for name, v in masks.items()
    ]
    print(markdown_table(header, rows), end="\n\n")
    header = [
        "domain",
        "generated: not clear %",
        "generated: this domain %",
        "rendered: not clear %",
        "rendered: right %",
    ]
    keys = ("generated_not_clear", "generated_right", "rendered_not_clear", "rendered_right")
    print(markdown_table(header, [[domain, *(100 * weather[domain][key] for key in keys)] for domain in DOMAINS]))


def script(name: str, **flags: Any) -> None:
    """Run a script of this repository, which resumes if it was interrupted."""
    words = [
        str(word) for key, value in flags.items() for word in ([f"--{key}"] if value is True else [f"--{key}", value])
    ]
    if subprocess.run([sys.executable, name, *words], cwd=REPO_ROOT).returncode:
        raise GenValError(f"{name} failed, see above.")


def rendered(world: Path, domain: str, split: str, height: int, width: int) -> np.ndarray:
    """Return rendered streets at the generator's size, RGB uint8 (N, H, W, 3)."""
    import numpy as np

    from genval.datasets import find_items
    from genval.datasets.boxes import Box
    from genval.datasets.reading import read_image
    from genval.diffusion.framing import fit_image

    name, cond = {"clear": ("Cityscapes", "all"), "india": ("IDD", "all")}.get(domain, ("ACDC", domain))
    images = [read_image(item.image) for item in find_items(name, cond, split=split, datasets_dir=world)]
    return np.stack([fit_image(image, Box(0, 0, *image.shape[:2]), height, width) for image in images])


def reconstruct(base: StableDiffusion, images: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Return the generator's VAE reconstructions of images, RGB uint8 (N, H, W, 3)."""
    import numpy as np
    import torch

    from genval.diffusion.models.pipelines import to_uint8

    batches = [torch.from_numpy(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    latents = (base.encode_images(batch.permute(0, 3, 1, 2)) for batch in batches)
    return np.concatenate([to_uint8(base.decode_latents(latent)).cpu().numpy() for latent in latents])


def mask_scores(segmenter: Any, images: np.ndarray, items: list[Item], batch_size: int = 16) -> dict[str, float]:
    """Return the agreement of a segmenter's predictions on images with the masks of `items`, pooled."""
    import numpy as np

    from genval.datasets import CLASSES, read_pair
    from genval.metrics.confusion import confusion_matrix
    from genval.metrics.segmentation import mean_iou, pixel_accuracy
    from genval.segmenters.prediction import predict

    matrices = []
    for i in range(0, len(items), batch_size):
        names = [item.id for item in items[i : i + batch_size]]
        predictions = predict(segmenter, images[i : i + batch_size], names, segmenter.mean.device)
        for item, prediction in zip(items[i : i + batch_size], predictions, strict=True):
            matrices.append(confusion_matrix(read_pair(item)[1], prediction, len(CLASSES)))
    total = np.sum(matrices, axis=0)
    return {"miou": mean_iou(total), "pixel_accuracy_percent": pixel_accuracy(total)}


def fit_weather(base: StableDiffusion, renders: dict[str, np.ndarray]) -> Any:
    """Fit a classifier of the domain on `band_statistics` of rendered images and their reconstructions."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, names = [], []
    for domain, images in renders.items():
        for seen in (images, reconstruct(base, images)):
            features.append(band_statistics(seen))
            names += [domain] * len(seen)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(np.concatenate(features), names)


def band_statistics(images: np.ndarray) -> np.ndarray:
    """Return colour mean and deviation, saturation and edge strength of horizontal bands of a 32x64 thumbnail.

    Args:
        images: RGB uint8 (N, H, W, 3).

    Returns:
        float32 (N, 32).
    """
    import cv2
    import numpy as np

    small = np.stack([cv2.resize(image, (64, 32), interpolation=cv2.INTER_AREA) for image in images]) / np.float32(255)
    bands = small.reshape(len(small), BANDS, -1, 3)
    saturation = bands.max(-1) - bands.min(-1)
    edges = np.abs(np.diff(small.mean(-1), axis=2)).reshape(len(small), BANDS, -1)
    parts = [bands.mean(2), bands.std(2), saturation.mean(-1), edges.mean(-1)]
    return np.concatenate([part.reshape(len(small), -1) for part in parts], axis=1)


if __name__ == "__main__":
    cli.run(main, MiniWorldSettings, __doc__)
