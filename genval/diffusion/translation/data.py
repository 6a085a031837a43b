"""The images of a translation training: decoded once, kept on the device, and cropped at random there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genval.datasets.items import find_items
from genval.datasets.labels import IGNORE, find_label_space
from genval.datasets.layouts import find_root
from genval.datasets.reading import read_image, read_mask
from genval.datasets.unlabelled import find_unlabelled
from genval.diffusion.framing import check_pair, crop_box, fit_image, fit_mask
from genval.diffusion.translation.settings import TranslationConfig, TranslationTrainingSettings
from genval.runtime.errors import GenValError, without_skip_bad
from genval.runtime.paths import resolve
from genval.runtime.progress import progress_bar


@dataclasses.dataclass(frozen=True)
class Frame:
    """An image file, and its mask and the labels of the mask where it has one."""

    image: Path
    mask: Path | None = None
    label_space: str = ""


def find_clear(settings: TranslationTrainingSettings) -> list[Frame]:
    """Return the clear images: those of a Cityscapes folder with their masks, or all images below another folder.

    Raises:
        GenValError: there are none.
    """
    try:
        root = find_root("Cityscapes", settings.data_dir, flag="--data_dir")
    except GenValError:
        if settings.data_dir is None or not resolve(settings.data_dir).is_dir():
            raise
        return [Frame(path) for path in find_unlabelled(settings.data_dir, "--data_dir")]
    items = find_items("Cityscapes", split=settings.split, root=root, skipped=[] if settings.skip_bad else None)
    return [Frame(item.image, item.mask, item.label_space) for item in items]


def load_frames(
    frames: Sequence[Frame], config: TranslationConfig, workers: int, name: str, with_masks: bool, skip_bad: bool
) -> tuple[Tensor, Tensor | None]:
    """Decode images, and crop and resize them to the training's size.

    Args:
        frames: the files.
        config: has the size.
        workers: threads.
        name: of the set, for the progress bar.
        with_masks: return the masks too.
        skip_bad: skip files that cannot be read and print why.

    Returns:
        The images, uint8 (N, 3, H, W), and the trainIds of the masks, uint8 (N, 1, H, W), or None.

    Raises:
        GenValError: a file cannot be read, or none can.
    """

    def load(frame: Frame) -> tuple[np.ndarray, np.ndarray | None] | str:
        try:
            return _load(frame, config, with_masks)
        except GenValError as error:
            if not skip_bad:
                raise
            return without_skip_bad(str(error))

    images, masks = [], []
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool, progress_bar(len(frames), name) as bar:
        for frame, loaded in zip(frames, pool.map(load, frames), strict=True):
            bar.update()
            if isinstance(loaded, str):
                bar.write(f"skipped {frame.image}: {loaded}")
                continue
            images.append(torch.from_numpy(loaded[0]).permute(2, 0, 1))
            if loaded[1] is not None:
                masks.append(torch.from_numpy(loaded[1])[None])
    if not images:
        raise GenValError(f"All {len(frames)} images of {name} were skipped by --skip_bad. Check the folder.")
    return torch.stack(images), torch.stack(masks) if with_masks else None


def _load(frame: Frame, config: TranslationConfig, with_mask: bool) -> tuple[np.ndarray, np.ndarray | None]:
    image = read_image(frame.image)
    box = crop_box(image.shape[0], image.shape[1], config.height, config.width, 0.5)
    fitted = fit_image(image, box, config.height, config.width)
    if not with_mask:
        return fitted, None
    if frame.mask is None:
        raise GenValError(
            f"--balance_classes needs masks, and {frame.image} has none. Give a Cityscapes folder to --data_dir."
        )
    space = find_label_space(frame.label_space)
    mask = read_mask(frame.mask, space.table)
    check_pair(image, mask, frame.image, frame.mask)
    return fitted, space.to_train_ids(fit_mask(mask, box, config.height, config.width), str(frame.mask))


class TranslationData:
    """Random batches of crops of clear images and of the images of each domain.

    All random numbers are drawn on the CPU, so a generator's state describes the batches on every device.

    Args:
        clear: uint8 (N, 3, H, W).
        masks: trainIds of the clear images, uint8 (N, 1, H, W), or None.
        domains: uint8 (N, 3, H, W) of each domain.
        config: sizes.
        device: where the images are kept.
    """

    def __init__(
        self,
        clear: Tensor,
        masks: Tensor | None,
        domains: Sequence[Tensor],
        config: TranslationConfig,
        device: torch.device,
    ) -> None:
        self.clear = clear.to(device)
        self.masks = None if masks is None else masks.to(device)
        self.domains = [images.to(device) for images in domains]
        self.config, self.device = config, device

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the batch of a step.

        Args:
            step: decides which domain has one image more where the batch size is no multiple of their number.
            generator: on the CPU.

        Returns:
            Clear crops and crops of the domains, float32 (B, 3, H, W), -1..1; the domains of the latter, int64 (B,);
            and rows and columns of the patches, int64 (2 B, P, 2), on a grid of a quarter of the height and width.
        """
        size, count = self.config.batch_size, len(self.domains)
        order = [(step * size + number) % count for number in range(size)]
        chosen = torch.randint(len(self.clear), (size,), generator=generator)
        framing = self._framing(size, generator)
        clear = self._crop(self.clear[chosen.to(self.device)], framing, "bilinear")
        mask = None
        if self.masks is not None:
            mask = self._crop(self.masks[chosen.to(self.device)], framing, "nearest", 4).long()[:, 0]
        targets = torch.stack(
            [
                self.domains[domain][int(torch.randint(len(self.domains[domain]), (), generator=generator))]
                for domain in order
            ]
        )
        target = self._crop(targets, self._framing(size, generator), "bilinear")
        positions = torch.cat([self._positions(size, mask, generator), self._positions(size, None, generator)])
        domain = torch.tensor(order, device=self.device)
        return _scaled(clear), _scaled(target), domain, positions

    def _framing(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random affine maps (B, 2, 3) from a crop to its image, in the coordinates of `affine_grid`."""
        (height, width), config = self.config.crop, self.config
        zoom = config.zoom + (1 - config.zoom) * torch.rand(count, generator=generator)
        scale = torch.stack([zoom * width / config.width, zoom * height / config.height], 1)
        centre = (1 - scale) * (2 * torch.rand(count, 2, generator=generator) - 1)
        mirror = torch.randint(2, (count,), generator=generator) * 2 - 1
        framing = torch.zeros(count, 2, 3)
        framing[:, 0, 0], framing[:, 1, 1] = scale[:, 0] * mirror, scale[:, 1]
        framing[:, :, 2] = centre
        return framing.to(self.device)

    def _crop(self, images: Tensor, framing: Tensor, mode: str, stride: int = 1) -> Tensor:
        height, width = self.config.crop
        grid = F.affine_grid(framing, [len(images), 1, height // stride, width // stride], align_corners=False)
        return F.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False)

    def _positions(self, count: int, mask: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw patches without replacement; with a mask (B, h, w), classes with few pixels are drawn more often."""
        rows, columns = (side // 4 for side in self.config.crop)
        uniform = torch.rand(count, rows * columns, generator=generator).to(self.device)
        keys = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))  # Gumbel: the largest keys are a weighted draw
        if mask is not None:
            flat = mask.flatten(1)
            pixels = torch.zeros(count, IGNORE + 1, device=self.device).scatter_add_(
                1, flat, torch.ones_like(flat, dtype=torch.float)
            )
            keys = keys - 0.5 * torch.log(pixels.gather(1, flat))
        chosen = keys.topk(min(self.config.patches, rows * columns), dim=1).indices
        return torch.stack([chosen // columns, chosen % columns], 2)


def _scaled(images: Tensor) -> Tensor:
    return (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def load_data(
    settings: TranslationTrainingSettings,
    clear: Sequence[Frame],
    domains: Sequence[Sequence[Frame]],
    device: torch.device,
    log: Callable[[str], object] = print,
) -> TranslationData:
    """Decode all images of a training; see `load_frames`."""
    config, workers = settings.config, settings.num_workers
    images, masks = load_frames(clear, config, workers, "clear", config.balance_classes, settings.skip_bad)
    others = [
        load_frames(frames, config, workers, name, False, settings.skip_bad)[0]
        for name, frames in zip(settings.domains, domains, strict=True)
    ]
    counts = ", ".join(f"{name} {len(one)}" for name, one in zip(settings.domains, others, strict=True))
    log(f"Training on clear {len(images)}, {counts} images of {config.height}x{config.width}")
    return TranslationData(images, masks, others, config, device)
