"""The training data of detector and outliner: square crops around objects on streets, as in ood_objects/."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genval.datasets.reading import read_image, read_mask
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl
from genval.runtime.progress import progress_bar

# The normalisation of GroundingDINO and Segment Anything, on the scale 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Longer side of an object as a fraction of its crop, and minimum side of a crop as a fraction of the image.
_SMALLEST, _LARGEST = 0.3, 1.0
_LEAST = 0.18
_CUT = 0.06  # fraction of the object's side that may be outside the crop
_GAIN, _SHIFT = 0.2, 0.1  # maximum change of contrast and brightness; half of it for each colour
_NOISE = 0.03  # maximum standard deviation of the pixel noise


class ListedObject(TypedDict):
    """A line of `training/objects.jsonl`."""

    image: NotRequired[str]
    clean: NotRequired[str]
    mask: NotRequired[str]
    object: NotRequired[str]


@dataclass(frozen=True)
class ObjectImages:
    """Square images of streets with one object each, as high as the frames.

    Attributes:
        images: (N, 3, S, S) uint8 RGB.
        clean: the same images without the object.
        masks: (N, 1, S, S) uint8, 255 on visible pixels of the object.
        boxes: (N, 4) float32, left, top, right and bottom of the object.
        names: N names of objects.
    """

    images: Tensor
    clean: Tensor
    masks: Tensor
    boxes: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def part(self, chosen: Tensor) -> ObjectImages:
        """Select images by a bool tensor (N,)."""
        names = [name for name, keep in zip(self.names, chosen.tolist(), strict=True) if keep]
        return ObjectImages(self.images[chosen], self.clean[chosen], self.masks[chosen], self.boxes[chosen], names)

    def to(self, device: torch.device) -> ObjectImages:
        moved = (tensor.to(device) for tensor in (self.images, self.clean, self.masks, self.boxes))
        return ObjectImages(*moved, self.names)


def load_object_images(data_dir: Path, limit: int | None = None, workers: int = 8) -> ObjectImages:
    """Read what `data_dir/training/objects.jsonl` lists; lines without an object are skipped.

    Each line is `{"image", "clean", "mask", "object"}`: a street with an object, the same street without it, the
    object's mask (0 and 255) and its name. Paths start at `data_dir`.

    Raises:
        GenValError: the list is missing or names no object, a field is missing in a line, a file cannot be read, sizes
            differ, or a mask is empty.
    """
    list_file = data_dir / "training/objects.jsonl"
    lines = read_jsonl(list_file, ListedObject) if list_file.is_file() else []
    records = [line for line in lines if line.get("object")][:limit]
    if not records:
        raise GenValError(
            f"{list_file} is missing or lists no object. Render the data first: python mini/render.py --help"
        )
    missing = [f"{field!r}: {line}" for line in records for field in ("image", "clean", "mask") if not line.get(field)]
    if missing:
        raise GenValError(f"{list_file}: a line has no field {missing[0][:300]}")
    height, width = read_image(data_dir / records[0]["image"]).shape[:2]
    side = min(height, width)
    images, clean = (np.empty((len(records), 3, side, side), np.uint8) for _ in range(2))
    masks = np.empty((len(records), 1, side, side), np.uint8)
    boxes = np.empty((len(records), 4), np.float32)

    def load(index: int) -> None:
        record = records[index]
        mask = read_mask(data_dir / record["mask"])
        frames = [read_image(data_dir / record[field]) for field in ("image", "clean")]
        for found in (mask, *frames):
            if found.shape[:2] != (height, width):
                raise GenValError(
                    f"{data_dir / record['image']}: it, its mask and the street without the object are not of one "
                    f"size; expected {width}x{height} pixels, found {found.shape[1]}x{found.shape[0]}."
                )
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            raise GenValError(f"{data_dir / record['mask']} is empty: the image shows no {record['object']}.")
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        left = int(np.clip((box[0] + box[2] - side) / 2, 0, width - side))
        top = int(np.clip((box[1] + box[3] - side) / 2, 0, height - side))
        for stack, frame in zip((images, clean), frames, strict=True):
            stack[index] = frame[top : top + side, left : left + side].transpose(2, 0, 1)
        masks[index, 0] = mask[top : top + side, left : left + side]
        boxes[index] = (box - (left, top, left, top)).clip(0, side)

    with ThreadPoolExecutor(workers) as pool, progress_bar(len(records), f"read {list_file.name}") as bar:
        for _ in pool.map(load, range(len(records))):
            bar.update()
    names = [str(record["object"]) for record in records]
    return ObjectImages(*map(torch.from_numpy, (images, clean, masks, boxes)), names)


@torch.no_grad()
def through_autoencoder(images: ObjectImages, folder: Path, device: torch.device, batch_size: int = 16) -> None:
    """Replace every second image, with and without its object, by its reconstruction by the autoencoder in `folder`.

    The models are mostly used on generated images, which are outputs of this autoencoder.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
    for stack in (images.images, images.clean):
        for start in range(0, len(stack), 2 * batch_size):
            chosen = slice(start, start + 2 * batch_size, 2)
            pixels = stack[chosen].to(device).float() / 127.5 - 1
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
            stack[chosen] = ((again.float() + 1) * 127.5).round().clamp(0, 255).to(stack.device, torch.uint8)


@dataclass(frozen=True)
class Crops:
    """A batch of square crops.

    Attributes:
        pixels: (B, 3, s, s) float32 RGB, normalised.
        masks: (B, 1, s, s) float32, 1 on the object and 0 elsewhere.
        boxes: (B, 4) float32, left, top, right, bottom of the object in the crop, 0..1; 0 without an object.
    """

    pixels: Tensor
    masks: Tensor
    boxes: Tensor


class CropSampler:
    """Samples random crops of object images, with augmented colour and sharpness.

    Args:
        images: on the device of the crops.
        size: of the crops, in pixels.
        seed: of the random generator.
    """

    def __init__(self, images: ObjectImages, size: int, seed: int) -> None:
        self._images, self._size = images, size
        self._device = images.images.device
        self.generator = torch.Generator(self._device).manual_seed(seed)
        self._scale = [torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (MEAN, STD)]

    def indices(self, count: int) -> Tensor:
        """Sample the numbers of images, int64 (count,)."""
        return torch.randint(len(self._images), (count,), generator=self.generator, device=self._device)

    def sample(self, index: Tensor, empty: Tensor) -> Crops:
        """Return a crop of each image, with the object or, where `empty` (B,) is true, of the street without it."""
        images, side = self._images, self._images.images.shape[-1]
        squares = sample_squares(images.boxes[index], side, self.generator)
        flips = torch.where(self._uniform(len(index)) < 0.5, 1.0, -1.0)
        streets = torch.where(empty.view(-1, 1, 1, 1), images.clean[index], images.images[index])
        pixels = cut(streets.float() / 255, squares, self._size, flips)
        masks = (cut(images.masks[index].float() / 255, squares, self._size, flips) > 0.5).float()
        masks = masks * (~empty).view(-1, 1, 1, 1)
        mean, std = self._scale
        return Crops((self._changed(pixels) - mean) / std, masks, mask_boxes(masks))

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self._device)

    def _changed(self, pixels: Tensor) -> Tensor:
        """Augment images 0..1 with random contrast, brightness, colour, blur and noise."""
        count, size = len(pixels), self._size
        coarse = F.interpolate(pixels, (size // 2, size // 2), mode="area")
        coarse = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
        pixels = pixels.lerp(coarse, (1.5 * self._uniform(count, 1, 1, 1) - 0.5).clamp(min=0))
        gain = 1 + _GAIN * (2 * self._uniform(count, 1, 1, 1) - 1) + _GAIN / 2 * (2 * self._uniform(count, 3, 1, 1) - 1)
        level = pixels.mean((1, 2, 3), keepdim=True)
        pixels = (pixels - level) * gain + level + _SHIFT * (2 * self._uniform(count, 1, 1, 1) - 1)
        noise = torch.randn(pixels.shape, generator=self.generator, device=self._device)
        return (pixels + _NOISE * self._uniform(count, 1, 1, 1) * noise).clamp(0, 1)


def sample_squares(boxes: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return a square around each object, which fills 30 to 100 % of its side; up to 6 % of the object may be outside.

    The squares have a minimum size, because ood_objects/ uses squares of at least a quarter of the frame.

    Args:
        boxes: (B, 4) left, top, right, bottom in pixels.
        side: of the image; squares lie inside it.
        generator: random generator.

    Returns:
        (B, 3) float32: left, top, side.
    """
    random_values = torch.rand(len(boxes), 3, generator=generator, device=boxes.device)
    extent = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    squares = (extent / (_SMALLEST + (_LARGEST - _SMALLEST) * random_values[:, 0])).clamp(_LEAST * side, side)
    slack = _CUT * extent
    starts = []
    for axis in (0, 1):
        low, high = boxes[:, axis + 2] - squares - slack, boxes[:, axis] + slack
        starts.append((low + (high - low) * random_values[:, axis + 1]).clamp(min=0).minimum(side - squares))
    return torch.stack([*starts, squares], 1)


def cut(maps: Tensor, squares: Tensor, size: int, flips: Tensor) -> Tensor:
    """Crop squares of float images (B, C, S, S) and resize them to `size` bilinearly.

    Args:
        maps: images or masks.
        squares: (B, 3) left, top, side in pixels.
        size: side of the result in pixels.
        flips: (B,) 1, or -1 to mirror an image.
    """
    side = maps.shape[-1]
    left, top, extent = squares.unbind(1)
    warp = torch.zeros(len(maps), 2, 3, device=maps.device)
    warp[:, 0, 0], warp[:, 1, 1] = flips * extent / side, extent / side
    warp[:, 0, 2], warp[:, 1, 2] = (2 * left + extent) / side - 1, (2 * top + extent) / side - 1
    grid = F.affine_grid(warp, [len(maps), maps.shape[1], size, size], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes (B, 4; left, top, right, bottom, 0..1) of masks (B, 1, s, s) of 0 and 1; 0 for empty masks."""
    size = masks.shape[-1]
    sides = []
    for axis in (2, 3):  # of the columns, of the rows
        line = masks[:, 0].amax(axis - 1)
        first, last = line.argmax(1), size - line.flip(1).argmax(1)
        sides.append((first, last))
    (left, right), (top, bottom) = sides
    boxes = torch.stack([left, top, right, bottom], 1) / size
    return boxes * masks.amax((1, 2, 3)).unsqueeze(1)


@dataclass(frozen=True)
class MeasuredCrop:
    """A crop for measuring, as in ood_objects/get_masks.py.

    Attributes:
        image: RGB uint8 (s, s, 3), the street with the object.
        empty: the same crop without the object.
        mask: bool (s, s), true on the object.
        name: of the object.
    """

    image: np.ndarray
    empty: np.ndarray
    mask: np.ndarray
    name: str

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the object in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def measured_crops(images: ObjectImages, seed: int = 0) -> list[MeasuredCrop]:
    """Return a crop of each image for measuring, without resizing or augmentation."""
    generator = torch.Generator().manual_seed(seed)
    squares = sample_squares(images.boxes.cpu(), images.images.shape[-1], generator).round().int().tolist()
    crops = []
    for index, (left, top, side) in enumerate(squares):
        rows, columns = slice(top, top + side), slice(left, left + side)
        image, empty = (
            stack[index, :, rows, columns].cpu().numpy().transpose(1, 2, 0) for stack in (images.images, images.clean)
        )
        mask = images.masks[index, 0, rows, columns].cpu().numpy() > 127
        crops.append(MeasuredCrop(np.ascontiguousarray(image), np.ascontiguousarray(empty), mask, images.names[index]))
    return crops
