"""BLIP through transformers: a caption from an image (Li et al., 2022)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genval.artifacts.fingerprint import weights_hash
from genval.runtime.errors import GenValError
from genval.runtime.hub import pretrained
from genval.runtime.paths import find_below, resolve
from genval.runtime.precision import autocast, weights_dtype


class Blip:
    """A BLIP captioner with its image processor and tokenizer.

    Args:
        name: as the user spelled it.
        model: transformers' BlipForConditionalGeneration.
        processor: transformers' BlipProcessor.
        precision: one of Lightning's.

    Attributes:
        hash: of the weights, as they were loaded.
    """

    def __init__(self, name: str, model: Any, processor: Any, precision: str = "32-true") -> None:
        self.name = name
        self.hash = weights_hash(model)
        self.precision = precision
        self.device = torch.device("cpu")
        self._model = model.eval().requires_grad_(False).to(weights_dtype(precision))
        self._processor = processor

    def to(self, device: torch.device | str) -> Blip:
        """Move the model to a device; returns itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> Tensor:
        """RGB uint8 (H, W, 3) of any size to the model's input, float32 (3, h, w)."""
        inputs = self._processor.image_processor(images=image, input_data_format="channels_last", return_tensors="pt")
        pixels: Tensor = inputs["pixel_values"][0]
        return pixels

    def caption_images(self, images: Sequence[np.ndarray], max_tokens: int = 32, batch_size: int = 32) -> list[str]:
        """Captions of RGB uint8 (H, W, 3) images: the likeliest word each time, up to `max_tokens` tokens."""
        return self.caption_prepared([self.prepare(image) for image in images], max_tokens, batch_size)

    @torch.no_grad()
    def caption_prepared(self, inputs: Sequence[Tensor], max_tokens: int = 32, batch_size: int = 32) -> list[str]:
        """As `caption_images`, of what `prepare` gave."""
        dtype = weights_dtype(self.precision)
        captions = []
        for start in range(0, len(inputs), batch_size):
            pixels = torch.stack(list(inputs[start : start + batch_size])).to(self.device, dtype)
            with autocast(self.device, self.precision):
                tokens = self._model.generate(pixels, max_new_tokens=max_tokens, num_beams=1, do_sample=False)
            captions += [_sentence(text) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]
        return captions


def load_blip(name: str, precision: str = "32-true") -> Blip:
    """Load a BLIP captioner.

    Args:
        name: on the Hugging Face hub, e.g. `Salesforce/blip-image-captioning-large`, or a folder (relative: from the
            repository's root, or below `checkpoints/`).
        precision: one of Lightning's.

    Raises:
        GenValError: the files are missing or damaged, or weights are missing or of another shape than the config says.
            (Weights beside those of the captioner are passed over: BLIP checkpoints of other tasks hold some.)
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()  # a stage has one bar, and this would be another
    weights_dtype(precision)
    folder = resolve(name) if resolve(name).is_dir() else find_below("checkpoints", name)
    # A name on the hub is OWNER/NAME: any other path is a folder's.
    if folder is None and (name.startswith(("/", ".", "~", "checkpoints/")) or name.count("/") > 1):
        raise GenValError(
            f"No BLIP captioner at {resolve(name)}: expected a folder as BlipForConditionalGeneration is saved. "
            "(The mini world's is made by python mini/train.py --stages captioner.)"
        )
    location, options = pretrained(str(folder) if folder else name)
    try:
        processor = BlipProcessor.from_pretrained(location, **options)
        loaded: Any = BlipForConditionalGeneration.from_pretrained(
            location, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:  # OSError for what is missing, ValueError for what does not fit, and safetensors' own
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
    """Let the vision transformer of a BLIP model attend without the matrix of all pairs of tokens in memory.

    The same up to rounding. transformers (5.23) has only the plain product, with which the vision transformer of the
    mini world's captioner, 1,025 tokens, takes 2.3 times as long on a CPU. Where the matrix is asked for, or
    dropped out, it is made.

    Args:
        model: transformers' BlipForConditionalGeneration.
    """
    fused = _fused_attention()
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.__class__ = fused


@functools.cache
def _fused_attention() -> type:
    """`BlipAttention`, fused; transformers' module takes seconds to import."""
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
    """Words and punctuation as people write them; the tokenizer's vocabulary has a token for each, apart."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return re.sub(r"(?<=\w) ([-']) (?=\w)", r"\1", text)
