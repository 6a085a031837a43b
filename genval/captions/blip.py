"""BLIP, an image captioner, through transformers (Li et al., 2022)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genval.artifacts.fingerprint import Hashed
from genval.runtime.errors import GenValError
from genval.runtime.hub import pretrained
from genval.runtime.paths import find_below, resolve
from genval.runtime.precision import autocast, weights_dtype


class Blip(Hashed):
    """A BLIP captioner with its image processor and tokenizer.

    Args:
        name: as the user gave it.
        model: transformers' BlipForConditionalGeneration.
        processor: transformers' BlipProcessor.
        precision: one of Lightning's.
    """

    def __init__(self, name: str, model: Any, processor: Any, precision: str = "32-true") -> None:
        self.name = name
        super().__init__(model)
        self.precision = precision
        self.device = torch.device("cpu")
        self._model = model.eval().requires_grad_(False).to(weights_dtype(precision))
        self._processor = processor

    @property
    def record(self) -> dict[str, Any]:
        """What defines the captions, as JSON values."""
        return {"blip_hash": self.hash}

    def to(self, device: torch.device | str) -> Blip:
        """Move the model to a device; return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> Tensor:
        """Convert an RGB uint8 (H, W, 3) image of any size to the model's input, float32 (3, h, w)."""
        inputs = self._processor.image_processor(images=image, input_data_format="channels_last", return_tensors="pt")
        pixels: Tensor = inputs["pixel_values"][0]
        return pixels

    def caption_images(self, images: Sequence[np.ndarray], max_tokens: int = 32, batch_size: int = 32) -> list[str]:
        """Caption RGB uint8 (H, W, 3) images by greedy decoding, with up to `max_tokens` tokens."""
        return self.caption_prepared([self.prepare(image) for image in images], max_tokens, batch_size)

    @torch.no_grad()
    def caption_prepared(self, inputs: Sequence[Tensor], max_tokens: int = 32, batch_size: int = 32) -> list[str]:
        """Caption the outputs of `prepare`, as `caption_images` does."""
        dtype = weights_dtype(self.precision)
        captions = []
        for start in range(0, len(inputs), batch_size):
            pixels = torch.stack(list(inputs[start : start + batch_size])).to(self.device, dtype)
            with autocast(self.device, self.precision):
                tokens = self._model.generate(pixels, max_new_tokens=max_tokens, num_beams=1, do_sample=False)
            captions += [_sentence(text) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]
        return captions


def find_blip(name: str) -> str:
    """Return the path of the folder of a BLIP captioner, or its name if that may be a hub name.

    Raises:
        GenValError: the name is that of a folder, and there is none.
    """
    folder = resolve(name) if resolve(name).is_dir() else find_below("checkpoints", name)
    # A hub name is OWNER/NAME; any other path is that of a folder.
    if folder is None and (name.startswith(("/", ".", "~", "checkpoints/")) or name.count("/") > 1):
        raise GenValError(
            f"No BLIP captioner at {resolve(name)}: expected a folder as BlipForConditionalGeneration is saved. "
            "(The mini world's is made by python mini/train.py --stages captioner.)"
        )
    return str(folder) if folder else name


def load_blip(name: str, precision: str = "32-true") -> Blip:
    """Load a BLIP captioner.

    Args:
        name: on the Hugging Face hub, e.g. `Salesforce/blip-image-captioning-large`, or a folder (relative: from the
            repository's root, or below `checkpoints/`).
        precision: one of Lightning's.

    Raises:
        GenValError: the files are missing or damaged, or weights are missing or of another shape than the config says.
            Additional weights are ignored, because BLIP checkpoints of other tasks have some.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()  # a stage shows only its own progress bar
    weights_dtype(precision)
    location, options = pretrained(find_blip(name))
    try:
        processor = BlipProcessor.from_pretrained(location, **options)
        loaded: Any = BlipForConditionalGeneration.from_pretrained(
            location, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:  # OSError, ValueError, SafetensorError and others: one message for the user
        raise GenValError(
            f"Cannot load the BLIP captioner {location}: {' '.join(str(error).split())[:500]} Expected the name of a "
            "model that can be downloaded, or a folder with config.json, model.safetensors, processor_config.json (or "
            "preprocessor_config.json) and the tokenizer's files."
        ) from error
    model, report = loaded
    fuse_attention(model)
    faults = [
        f"{kind.removesuffix('_keys')}: {', '.join(sorted(map(str, report[kind]))[:8])}"
        for kind in ("missing_keys", "mismatched_keys")
        if report.get(kind)
    ]
    if faults:
        raise GenValError(f"The weights in {location} do not fit its config.json: {'; '.join(faults)}.")
    return Blip(name, model, processor, precision)


def fuse_attention(model: Any) -> None:
    """Use PyTorch's fused attention in the vision transformer of a BLIP model.

    The result is the same up to rounding. transformers 5.23 only has the unfused attention, with which the mini world's
    captioner (1,025 tokens) takes 2.3 times as long on a CPU. The unfused attention is still used if the attention
    matrix is requested, or has dropout.

    Args:
        model: transformers' BlipForConditionalGeneration.
    """
    fused = _fused_attention()
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.__class__ = fused


@functools.cache
def _fused_attention() -> type:
    """Return a fused subclass of `BlipAttention`. It is made in a function, because the import takes seconds."""
    from transformers.models.blip.modeling_blip import BlipAttention

    class FusedBlipAttention(BlipAttention):
        def forward(  # type: ignore[override]
            self, hidden_states: Tensor, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            dropped = self.training and self.dropout.p > 0
            if dropped or kwargs.get("output_attentions", self.config.output_attentions):
                return super().forward(hidden_states, **kwargs)
            heads = (3, self.num_heads, self.head_dim)
            query, key, value = self.qkv(hidden_states).unflatten(-1, heads).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
            return self.projection(mixed.transpose(1, 2).flatten(2)), None

    return FusedBlipAttention


def _sentence(text: str) -> str:
    """Remove the spaces that the tokenizer puts around punctuation."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return re.sub(r"(?<=\w) ([-']) (?=\w)", r"\1", text)
