"""The stage that translates labelled photos: the generator `translate` of ControlNet/style_transfer.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from genval.diffusion.models.hints import CITYSCAPES_IDS
from genval.diffusion.pairs import FramedPair
from genval.diffusion.sampling.stage import default_batch_size
from genval.diffusion.settings import StyleTransferSettings
from genval.diffusion.style_transfer import (
    FrameStage,
    Transfer,
    TransferPlan,
    WeightFiles,
    frame_record,
    frames_hash,
)
from genval.diffusion.translation.network import STRIDE, Translator, find_translator, load_translator, to_uint8
from genval.runtime.devices import choose_precision
from genval.runtime.errors import GenValError
from genval.runtime.flags import flatten
from genval.runtime.paths import resolve
from genval.runtime.precision import compute_dtype

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TranslationStage(FrameStage):
    """Translates the real crops into a domain.

    Args:
        folder: of the generated set.
        record: the settings that define the images, as JSON values.
        translator: on its device.
        domain: one of the translator's.
        precision: of the arithmetic; the weights stay in float32.
        height, width: of the images, in pixels.
        batch_size: images per batch.
        settings: written to `settings.json`.

    Raises:
        GenValError: the translator was not trained on this domain.
    """

    title = "Translation"

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        translator: Translator,
        domain: str,
        *,
        precision: str,
        height: int,
        width: int,
        batch_size: int,
        settings: Any = None,
    ) -> None:
        super().__init__(
            folder,
            record,
            CITYSCAPES_IDS.labels,
            height=height,
            width=width,
            batch_size=batch_size,
            settings=settings,
        )
        if domain not in translator.domains:
            raise GenValError(
                f"--domain {domain}: the translator was trained on {', '.join(translator.domains)}. Give one of these, "
                "or train it on images of this domain (ControlNet/train_translation.py --unlabelled)."
            )
        self.translator, self.domain = translator, translator.domains.index(domain)
        self.dtype = compute_dtype(precision)

    def compute(self, items: Sequence[Transfer], loaded: Sequence[FramedPair]) -> list[tuple[np.ndarray, int, int]]:
        def translate_part(part: slice, rows: int) -> np.ndarray:
            return translate(self.translator, np.stack([one.image for one in loaded[part]]), self.domain, self.dtype)

        images = np.concatenate(self.micro_batches.compute(len(items), translate_part, lambda: None))
        return [(image, item.seed, 0) for image, item in zip(images, items, strict=True)]


@torch.no_grad()
def translate(translator: Translator, images: np.ndarray, domain: int, dtype: torch.dtype) -> np.ndarray:
    """Translate images of any size.

    Args:
        translator: on its device.
        images: RGB uint8 (B, H, W, 3).
        domain: index of a domain of the translator.
        dtype: of the arithmetic.

    Returns:
        RGB uint8 (B, H, W, 3).
    """
    device = translator.last.weight.device
    height, width = images.shape[1:3]
    inputs = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    padded = F.pad(inputs, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
    domains = torch.full((len(images),), domain, device=device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        translated, _ = translator(padded.contiguous(memory_format=torch.channels_last), domains)
    return np.ascontiguousarray(to_uint8(translated[:, :, :height, :width]).permute(0, 2, 3, 1).cpu().numpy())


@dataclasses.dataclass(frozen=True)
class TranslationModels:
    """A `translator` on its device, and the `precision` of its arithmetic."""

    translator: Translator
    precision: str


def find_translator_weights(settings: StyleTransferSettings) -> dict[str, WeightFiles | None]:
    """Return the folder of the translator by the name of its hash.

    Raises:
        GenValError: there is no translator.
    """
    return {"translator_hash": WeightFiles(find_translator(resolve(settings.translator)))}


def load_translation(settings: StyleTransferSettings, fabric: Fabric) -> TranslationModels:
    """Load the translator onto the process's device.

    Raises:
        GenValError: it cannot be loaded.
    """
    translator = load_translator(resolve(settings.translator)).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TranslationModels(translator, choose_precision(settings.device.precision, fabric.device))


def prepare_translation(
    plan: TransferPlan, models: TranslationModels, hashes: Mapping[str, str | None], device: torch.device
) -> tuple[FrameStage, list[Transfer]]:
    """Return the stage of a domain and its images, as `genval.diffusion.style_transfer.prepare_transfers` does.

    Raises:
        GenValError: the translator was not trained on the domain.
    """
    settings = plan.settings
    # No captions are read, and no frame is translated twice.
    own = {"frames_hash": frames_hash(plan.frames, {}), "without_replacement": True, "generator": settings.generator}
    record = {**frame_record(plan, hashes, models.precision), **own}
    height, width = record["height"], record["width"]
    stage = TranslationStage(
        plan.folder,
        record,
        models.translator,
        plan.domain.name,
        precision=models.precision,
        height=height,
        width=width,
        batch_size=settings.batch_size or default_batch_size(device, height, width),
        settings={**flatten(settings), **record},
    )
    return stage, plan.transfers
