"""What the interrogator needs of a captioner, and the captioners by model type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from genval.captions.blip import load_blip
from genval.captions.chat import load_chat
from genval.runtime.errors import GenValError
from genval.runtime.hub import pretrained, refuse_changed_weights
from genval.runtime.paths import find_below, resolve


class Captioner(Protocol):
    """Writes a sentence about an image.

    Attributes:
        precision: one of Lightning's.
        record: what defines the captions (hash of the weights, prompt), as JSON values.
    """

    precision: str

    @property
    def record(self) -> dict[str, Any]: ...

    def to(self, device: torch.device | str) -> Captioner:
        """Move the model to a device; return itself."""
        ...

    def prepare(self, image: np.ndarray) -> Any:
        """Convert an RGB uint8 (H, W, 3) image to an input of `caption_prepared`; called by several threads."""
        ...

    def caption_prepared(self, inputs: Sequence[Any], max_tokens: int = 32, batch_size: int = 32) -> list[str]:
        """Caption the outputs of `prepare` with up to `max_tokens` tokens each."""
        ...


def load_captioner(name: str, prompt_file: str | None = None, precision: str = "32-true") -> Captioner:
    """Load the captioner of a hub name or folder: that of its type in `CAPTIONERS`, else a `ChatCaptioner`.

    Args:
        name: on the Hugging Face hub, or a folder (relative: from the repository's root, or below `checkpoints/`).
        prompt_file: a text file with the prompt; None is the default of the captioner.
        precision: one of Lightning's.

    Raises:
        GenValError: the files are missing or damaged, the model is of another kind, quantised, or has an adapter.
    """
    location, config = find_captioner(name)
    return CAPTIONERS.get(config.model_type, load_chat)(location, prompt_file, precision)


def find_captioner(name: str) -> tuple[str, Any]:
    """Return a captioner's folder or hub name, and its config of transformers.

    Raises:
        GenValError: there is none, or it is quantised or has an adapter.
    """
    from transformers import AutoConfig

    folder = resolve(name) if resolve(name).is_dir() else find_below("checkpoints", name)
    location, options = pretrained(str(folder) if folder else name)
    try:
        config = AutoConfig.from_pretrained(location, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise GenValError(f"Cannot load the captioner {name}: {' '.join(str(error).split())[:500]}") from error
    refuse_changed_weights(location, config)
    return location, config


def _load_blip(name: str, prompt_file: str | None, precision: str) -> Captioner:
    if prompt_file is not None:
        raise GenValError(f"{name} is a BLIP captioner, which takes no prompt: leave --prompt_file out.")
    return load_blip(name, precision)


CAPTIONERS: dict[str, Callable[[str, str | None, str], Captioner]] = {"blip": _load_blip}
"""Model type of a config: the function that loads it from a place, with the file of a prompt and a precision."""
