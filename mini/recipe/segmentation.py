"""The small segmenters: different architectures and augmentations, so that their robustness differs.

Architectures are files in `mini/segmenters`: mmsegmentation configs (`NAME.py`) and transformers configs
(`NAME/config.json`). Trained segmenters are saved in fp16 in the format of their library and loaded by
`genval.segmenters`, like a user's models.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.datasets.labels import CLASSES, IGNORE
from genval.diffusion.training.loop import Log, Optimisation, fit
from genval.metrics.confusion import confusion_matrix
from genval.metrics.segmentation import iou_per_class, mean_iou, pixel_accuracy
from genval.runtime.errors import GenValError
from genval.runtime.files import replace_file
from genval.runtime.paths import REPO_ROOT, resolve
from genval.segmenters import Segmenter, load_segmenter

ARCHITECTURES = REPO_ROOT / "mini" / "segmenters"
NUM_CLASSES = len(CLASSES)


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the augmentation; 0 disables a transform. Colours are on the scale 0..255."""

    flip: bool = False  # half of the images, left to right
    brightness: float = 0.0  # added, up to +-
    contrast: float = 0.0  # factor 1 +- this, around the image's mean
    saturation: float = 0.0  # factor 1 +- this
    hue: float = 0.0  # rotation in degrees, up to +-
    blur: float = 0.0  # Gaussian, deviation in pixels up to this
    noise: float = 0.0  # Gaussian, deviation up to this


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "flip": Augmentation(flip=True),
    # the strengths of mmsegmentation's PhotoMetricDistortion
    "photometric": Augmentation(flip=True, brightness=32, contrast=0.5, saturation=0.5, hue=18),
    "strong": Augmentation(flip=True, brightness=80, contrast=0.7, saturation=1.0, hue=36, blur=2.0, noise=25),
}


@dataclass(frozen=True)
class SegmenterRecipe:
    """Architecture and training of one small segmenter."""

    architecture: str  # below mini/segmenters: NAME.py is an mmsegmentation config, NAME a transformers folder
    augmentation: str  # of AUGMENTATIONS
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0


SEGMENTER_RECIPES: dict[str, SegmenterRecipe] = {
    "mini-fast-scnn": SegmenterRecipe("fast-scnn.py", "none"),
    "mini-bisenetv2-fcn": SegmenterRecipe("bisenetv2-fcn.py", "flip"),
    "mini-pspnet-r18": SegmenterRecipe("pspnet-r18.py", "none"),
    "mini-deeplabv3plus": SegmenterRecipe("deeplabv3plus.py", "photometric"),
    "mini-semfpn-r18": SegmenterRecipe("semfpn-r18.py", "flip"),
    "mini-fcn-hrnet": SegmenterRecipe("fcn-hrnet.py", "photometric"),
    "mini-upernet-swin": SegmenterRecipe("upernet-swin.py", "photometric", learning_rate=1e-3),
    "mini-segformer-mit": SegmenterRecipe("segformer-mit.py", "flip", learning_rate=1e-3),
    "mini-segformer-hf": SegmenterRecipe("segformer-hf", "strong", learning_rate=1e-3),
    "mini-bisenetv2-fcn-strong": SegmenterRecipe("bisenetv2-fcn.py", "strong", seed=1),
    "mini-semfpn-r18-strong": SegmenterRecipe("semfpn-r18.py", "strong", seed=1),
    "mini-upernet-convnext-hf": SegmenterRecipe("upernet-convnext-hf", "strong", learning_rate=1e-3),
}

_WARM_UP = 0.05  # fraction of the schedule
_HALF_SCALE = 0.4  # fraction of the batches at half size, because generated images are half as large as rendered ones
_ZOOM = (0.75, 1.25)
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_LUMA = (0.299, 0.587, 0.114)


def train_segmenter(
    name: str,
    images: Tensor,
    train_ids: Tensor,
    output: Path,
    *,
    val_images: Tensor,
    val_train_ids: Tensor,
    device: torch.device,
    steps: int = 3000,
    seconds: float | None = None,
    batch_size: int = 32,
    num_classes: int = NUM_CLASSES,
    log: Log = print,
) -> dict[str, Any]:
    """Train one small segmenter, save it in fp16, load it and measure it.

    Batches are sampled, augmented and normalised on the device. They have only two shapes, the size of the images and
    half of it, so that cuDNN benchmarks few shapes. On a GPU, results of two runs differ by rounding.

    Args:
        name: a key of `SEGMENTER_RECIPES`.
        images: (N, 3, H, W) uint8 RGB on `device`; H and W divisible by 64.
        train_ids: (N, H, W) uint8 on `device`, 0..num_classes-1 and 255 for ignored pixels.
        output: folder (relative: from the repository's root); gets a `.pth` file (mmsegmentation) or a folder
            (transformers), see `specification`.
        val_images: as `images`, not trained on.
        val_train_ids: as `train_ids`.
        device: where to train.
        steps: of the optimiser.
        seconds: time limit; the decay of the learning rate is shortened accordingly.
        batch_size: images per step.
        num_classes: number of classes in the labels; the head always has 19 logits.
        log: called with each line of text.

    Returns:
        Scores of the file that was saved: `val_miou` (over the classes that are labelled, 0..1),
        `val_pixel_accuracy_percent`, `val_miou_half_scale`, `parameters`, `bytes`, `seconds`, `steps`, and `val_iou`
        by class (None where it is not labelled).

    Raises:
        GenValError: the name is unknown, or the tensors have other shapes, dtypes or values.
    """
    if name not in SEGMENTER_RECIPES:
        raise GenValError(f"Unknown recipe {name!r}: expected one of {', '.join(SEGMENTER_RECIPES)}.")
    _check(images, train_ids, num_classes)
    _check(val_images, val_train_ids, num_classes)
    recipe = SEGMENTER_RECIPES[name]
    output = resolve(output)
    start = time.perf_counter()
    torch.manual_seed(recipe.seed)
    network = _build(recipe, device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        done = _fit(name, network, images, train_ids, steps, seconds, batch_size, num_classes, log)
    _save(network.cpu().eval(), name, output)
    elapsed = time.perf_counter() - start

    scores = _measure(name, output, val_images, val_train_ids, device) | {"seconds": round(elapsed, 1), "steps": done}
    log(f"{name}: mIoU {scores['val_miou']:.3f}, at half scale {scores['val_miou_half_scale']:.3f}, {elapsed:.0f} s")
    return scores


def _measure(
    name: str, output: Path, val_images: Tensor, val_train_ids: Tensor, device: torch.device
) -> dict[str, Any]:
    """Return the metrics of the saved segmenter `name` at full and half size, and its number of weights."""
    segmenter = load_segmenter(specification(name, output), device)
    full = _evaluate(segmenter, val_images, val_train_ids)
    half = _evaluate(segmenter, _halve(val_images.float()).round_().byte(), val_train_ids[:, ::2, ::2])
    return {
        "val_miou": full["miou"],
        "val_pixel_accuracy_percent": full["pixel_accuracy_percent"],
        "val_miou_half_scale": half["miou"],
        "parameters": sum(parameter.numel() for parameter in segmenter.parameters()),
        "bytes": weights_file(name, output).stat().st_size,
        "val_iou": full["iou"],
    }


def specification(name: str, folder: Path) -> str:
    """Return the specification, for `load_segmenter`, of the segmenter `name` saved in `folder`."""
    architecture = SEGMENTER_RECIPES[name].architecture
    if architecture.endswith(".py"):
        return f"mmseg:{ARCHITECTURES / architecture},{weights_file(name, folder)}"
    return f"hf:{weights_file(name, folder).parent}"


def weights_file(name: str, folder: Path) -> Path:
    """Return the path of the weights of `name` in `folder`."""
    stem = name.removeprefix("mini-")
    if SEGMENTER_RECIPES[name].architecture.endswith(".py"):
        return folder / f"{stem}.pth"
    return resolve(folder) / stem / "model.safetensors"


def augment(
    images: Tensor, train_ids: Tensor, augmentation: Augmentation, half: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augment a training batch: colours, zoom, shift and flip, with random values for each image.

    Args:
        images: (B, 3, H, W) uint8 RGB.
        train_ids: (B, H, W) uint8.
        augmentation: strengths.
        half: first halve height and width.
        generator: on the images' device.

    Returns:
        Normalised float32 pixels (B, 3, h, w), 0 outside the image; int64 trainIds (B, h, w), 255 outside the image.
    """
    pixels = images.float()
    if half:
        pixels, train_ids = _halve(pixels), train_ids[:, ::2, ::2]
    pixels = _change_colours(pixels, augmentation, generator)
    if augmentation.blur:
        pixels = _blur(pixels, augmentation.blur * _sometimes(len(pixels), generator).abs())
    if augmentation.noise:
        deviation = augmentation.noise * _sometimes(len(pixels), generator).abs().view(-1, 1, 1, 1)
        pixels = pixels + deviation * torch.randn(pixels.shape, generator=generator, device=pixels.device)
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    pixels = (pixels.clamp(0, 255) - mean) / std

    count = len(pixels)
    zoom = _ZOOM[0] + (_ZOOM[1] - _ZOOM[0]) * _uniform(count, generator)
    mirror = torch.ones_like(zoom)
    if augmentation.flip:
        mirror = torch.where(_uniform(count, generator) < 0.5, -mirror, mirror)
    # In coordinates of -1..1, a zoom z shows 2/z of it: the shift keeps the view inside the image or vice versa.
    slack = (1 - 1 / zoom).abs()
    theta = torch.zeros(count, 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 1, 1] = mirror / zoom, 1 / zoom
    theta[:, 0, 2] = slack * (2 * _uniform(count, generator) - 1)
    theta[:, 1, 2] = slack * (2 * _uniform(count, generator) - 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", align_corners=False)
    # grid_sample returns 0 outside the image; ids are shifted so that 0 means IGNORE.
    shifted = train_ids.float().sub_(IGNORE).unsqueeze(1)
    labels = F.grid_sample(shifted, grid, mode="nearest", align_corners=False).add_(IGNORE).squeeze(1)
    return pixels, labels.round_().long()


def _build(recipe: SegmenterRecipe, device: torch.device) -> nn.Module:
    """Build a network with random weights on a device."""
    # On the CPU, the channels-last backward pass of some of these networks crashes torch 2.14 (seen with the HRNet).
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return _build_on_cpu(recipe).to(device, memory_format=layout)  # type: ignore[call-overload]


def _build_on_cpu(recipe: SegmenterRecipe) -> nn.Module:
    path = ARCHITECTURES / recipe.architecture
    if path.suffix == ".py":
        from genval.segmenters.openmmlab import build_network

        network: Any = build_network(path)
        from mmengine.logging import MMLogger

        MMLogger.get_current_instance().setLevel("WARNING")  # init_weights reports each parameter
        network.init_weights()
        return network
    from transformers import AutoConfig, AutoModelForSemanticSegmentation

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return AutoModelForSemanticSegmentation.from_config(config, trust_remote_code=False)


def _logits(network: Any, pixels: Tensor) -> Tensor:
    """Return the logits, at the network's output size, of an mmsegmentation or transformers model."""
    output = network(pixels)
    return getattr(output, "logits", output)


def _fit(
    name: str,
    network: nn.Module,
    images: Tensor,
    train_ids: Tensor,
    steps: int,
    seconds: float | None,
    batch_size: int,
    num_classes: int,
    log: Log,
) -> int:
    """Train the network in place; return the number of steps."""
    device, recipe = images.device, SEGMENTER_RECIPES[name]
    augmentation = AUGMENTATIONS[recipe.augmentation]
    weights = _class_weights(train_ids, num_classes)
    optimiser = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
    )
    generator = torch.Generator(device).manual_seed(recipe.seed)
    sizes = random.Random(recipe.seed)
    network.train()

    def losses(_: int) -> tuple[Tensor, list[Tensor]]:
        index = torch.randint(len(images), (batch_size,), generator=generator, device=device)
        half = sizes.random() < _HALF_SCALE
        pixels, labels = augment(images[index], train_ids[index], augmentation, half, generator)
        if device.type == "cuda":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = _logits(network, pixels)
        logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE)
        return loss, [loss]

    optimisation = Optimisation(
        parameters=list(network.parameters()),
        optimisers=[(optimiser, recipe.learning_rate)],
        schedule=lambda rate, progress: rate * _schedule(progress),
    )
    return fit(name, losses, optimisation, labels=["loss"], steps=steps, seconds=seconds, log=log).steps


def _schedule(progress: float) -> float:
    """Return the factor on the learning rate: linear warm-up, then half a cosine down to 0.01."""
    if progress < _WARM_UP:
        return 0.01 + progress / _WARM_UP * 0.99
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2


def _class_weights(train_ids: Tensor, num_classes: int) -> Tensor:
    """Return class weights: square root of the median frequency over the class's, 0.5..4; 1 for missing classes."""
    counts = torch.zeros(256, dtype=torch.long, device=train_ids.device)
    for part in train_ids.split(64):
        counts += torch.bincount(part.flatten(), minlength=256)
    counts = counts[:num_classes].float()
    seen = counts > 0
    weights = torch.ones(NUM_CLASSES, device=train_ids.device)
    weights[:num_classes][seen] = (counts[seen].median() / counts[seen]).sqrt().clamp(0.5, 4)
    return weights


def _save(network: Any, name: str, output: Path) -> None:
    architecture = SEGMENTER_RECIPES[name].architecture
    if architecture.endswith(".py"):
        # The copies are contiguous, because channels-last strides would be saved with the tensors.
        state = {
            key: (value.half() if value.is_floating_point() else value).contiguous()
            for key, value in network.state_dict().items()
        }
        with replace_file(weights_file(name, output)) as temporary:
            torch.save({"state_dict": state, "meta": {"name": name, **asdict(SEGMENTER_RECIPES[name])}}, temporary)
        return
    folder = weights_file(name, output).parent
    network.half().to(memory_format=torch.contiguous_format).save_pretrained(folder)
    shutil.copy(ARCHITECTURES / architecture / "preprocessor_config.json", folder)


def _evaluate(segmenter: Segmenter, images: Tensor, train_ids: Tensor) -> dict[str, Any]:
    """Return mIoU over the labelled classes, pixel accuracy in percent, and IoU by class (None if not labelled)."""
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for pixels, labels in zip(images.split(16), train_ids.split(16), strict=True):
        matrix += confusion_matrix(labels, segmenter(pixels).argmax(1), NUM_CLASSES, IGNORE)
    labelled = matrix.sum(1) > 0
    iou = iou_per_class(matrix).round(4).tolist()
    return {
        "miou": round(mean_iou(matrix, np.flatnonzero(labelled).tolist()), 4),
        "pixel_accuracy_percent": round(pixel_accuracy(matrix), 2),
        "iou": {name: value if seen else None for name, value, seen in zip(CLASSES, iou, labelled, strict=True)},
    }


def _check(images: Tensor, train_ids: Tensor, num_classes: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise GenValError(f"Expected uint8 images (N, 3, H, W), found {images.dtype} {tuple(images.shape)}.")
    if images.shape[-2] % 64 or images.shape[-1] % 64:
        raise GenValError(f"Height and width must be divisible by 64, found {tuple(images.shape[-2:])}: resize first.")
    if train_ids.dtype != torch.uint8 or train_ids.shape != (len(images), *images.shape[-2:]):
        raise GenValError(
            f"Expected uint8 train ids {(len(images), *images.shape[-2:])}, "
            f"found {train_ids.dtype} {tuple(train_ids.shape)}."
        )
    if not ((train_ids < num_classes) | (train_ids == IGNORE)).all():
        raise GenValError(f"Train ids must be 0..{num_classes - 1} or {IGNORE}: convert labelIds first.")


def _halve(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels, 2)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _sometimes(count: int, generator: torch.Generator) -> Tensor:
    """Sample 0 for half of the images, and a uniform value in -1..1 for the others."""
    return (2 * _uniform(count, generator) - 1) * (_uniform(count, generator) < 0.5)


def _change_colours(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Change saturation, hue, contrast and brightness by one affine map of the colours per image."""
    if not (augmentation.brightness or augmentation.contrast or augmentation.saturation or augmentation.hue):
        return pixels
    count = len(pixels)
    brightness, contrast, saturation, hue = (
        strength * _sometimes(count, generator)
        for strength in (
            augmentation.brightness,
            augmentation.contrast,
            augmentation.saturation,
            math.radians(augmentation.hue),
        )
    )
    # Saturation scales the difference from the luma; hue rotates colours about the grey axis (1, 1, 1) by Rodrigues'
    # formula. Neither changes grey.
    identity = torch.eye(3, device=pixels.device)
    luma = pixels.new_tensor(_LUMA).expand(3, 3)
    cross = pixels.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cosine, sine = hue.cos().view(-1, 1, 1), hue.sin().view(-1, 1, 1)
    turn = cosine * identity + sine * cross + (1 - cosine) / 3
    saturate = luma + (1 + saturation).view(-1, 1, 1) * (identity - luma)
    matrix = (1 + contrast).view(-1, 1, 1) * (turn @ saturate)
    mean = pixels.mean((2, 3), keepdim=True).mean(1, keepdim=True)
    offset = brightness.view(-1, 1, 1, 1) - contrast.view(-1, 1, 1, 1) * mean
    return torch.einsum("bij,bjhw->bihw", matrix, pixels) + offset


def _blur(pixels: Tensor, deviations: Tensor) -> Tensor:
    """Blur images by a separable Gaussian with one standard deviation (pixels) per image; 0 keeps an image."""
    batch, channels, height, width = pixels.shape
    offsets = torch.arange(-4, 5, device=pixels.device)
    kernels = torch.exp(-offsets.square() / (2 * deviations.clamp(min=1e-2).square().unsqueeze(1)))
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    stacked = pixels.reshape(1, batch * channels, height, width)
    for shape, padding in (((-1, 1, 9, 1), (0, 0, 4, 4)), ((-1, 1, 1, 9), (4, 4, 0, 0))):
        stacked = F.conv2d(F.pad(stacked, padding, mode="replicate"), kernels.view(shape), groups=batch * channels)
    return stacked.view(batch, channels, height, width)
