"""Image-to-text models of transformers that follow a prompt: Qwen3-VL, Florence-2, SmolVLM and others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.artifacts.fingerprint import Hashed
from genval.runtime.errors import GenValError
from genval.runtime.files import read_text
from genval.runtime.hub import pretrained
from genval.runtime.paths import find_below, resolve
from genval.runtime.precision import autocast, weights_dtype

PROMPT = "Describe this street scene in one sentence: the road, the buildings, the vehicles and the people."
"""The prompt of models that chat."""

# Models that know a fixed list of tasks instead of any prompt: model type, and the task that describes an image.
_TASKS = {"florence2": "<DETAILED_CAPTION>"}


class ChatCaptioner(Hashed):
    """An image-to-text model with its processor and a prompt, which decodes greedily.

    A model with a chat template gets the image and the prompt as the user's turn; another one gets the prompt as its
    text.

    Args:
        name: as the user gave it.
        model: transformers' model of a class of AutoModelForImageTextToText.
        processor: of the model.
        prompt: what is asked about each image; None is `PROMPT`, or the task of a model that knows a fixed list.
        precision: one of Lightning's.
    """

    def __init__(
        self, name: str, model: Any, processor: Any, prompt: str | None = None, precision: str = "32-true"
    ) -> None:
        self.name = name
        super().__init__(model)
        self.precision = precision
        self.device = torch.device("cpu")
        self._model = model.eval().requires_grad_(False).to(weights_dtype(precision))
        self._processor = processor
        # The answers of a batch begin at the same place.
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        prompt = prompt or _TASKS.get(model.config.model_type, PROMPT)
        self._prompt = self._text = prompt
        self._chats = bool(getattr(processor, "chat_template", None))
        if self._chats:
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
            self._text = processor.apply_chat_template([turn], add_generation_prompt=True)

    @property
    def record(self) -> dict[str, Any]:
        """What defines the captions, as JSON values."""
        return {"captioner_hash": self.hash, "prompt": self._prompt}

    def to(self, device: torch.device | str) -> ChatCaptioner:
        """Move the model to a device; return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the RGB uint8 (H, W, 3) image: the processor takes a whole batch."""
        return image

    @torch.no_grad()
    def caption_prepared(self, inputs: Sequence[np.ndarray], max_tokens: int = 32, batch_size: int = 32) -> list[str]:
        """Caption the outputs of `prepare` with up to `max_tokens` tokens each.

        Raises:
            GenValError: the processor or the model does not take an image and the prompt.
        """
        from PIL import Image

        captions = []
        for start in range(0, len(inputs), batch_size):
            images = [Image.fromarray(image) for image in inputs[start : start + batch_size]]
            try:
                batch = self._processor(
                    images=[[image] for image in images] if self._chats else images,
                    text=[self._text] * len(images),
                    padding=True,
                    return_tensors="pt",
                ).to(self.device, weights_dtype(self.precision))
                with autocast(self.device, self.precision):
                    tokens = self._model.generate(**batch, max_new_tokens=max_tokens, num_beams=1, do_sample=False)
            except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
                raise GenValError(
                    f"{self.name} cannot caption an image with the prompt {self._text!r}: "
                    f"{' '.join(str(error).split())[:400]} Give another --prompt_file, or another --captioner."
                ) from error
            if not self._model.config.is_encoder_decoder:
                tokens = tokens[:, batch["input_ids"].shape[1] :]
            captions += [
                " ".join(text.split()) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)
            ]
        return captions


def load_chat(name: str, prompt_file: str | None = None, precision: str = "32-true") -> ChatCaptioner:
    """Load an image-to-text model.

    Args:
        name: on the Hugging Face hub, or a folder (relative: from the repository's root, or below `checkpoints/`).
        prompt_file: a text file with the prompt; None is the default of `ChatCaptioner`.
        precision: one of Lightning's.

    Raises:
        GenValError: the files are missing or damaged, the model is of another kind or needs code of its own, or weights
            do not fit the config.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    transformers.utils.logging.disable_progress_bar()  # a stage shows only its own progress bar
    prompt = read_prompt(prompt_file) if prompt_file else None
    folder = resolve(name) if resolve(name).is_dir() else find_below("checkpoints", name)
    location, options = pretrained(str(folder) if folder else name)
    try:
        config = transformers.AutoConfig.from_pretrained(location, **options)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise GenValError(
                f"{name} is a model of type {config.model_type!r}, which does not turn an image and a text into text. "
                "Give --captioner a model such as Qwen/Qwen3-VL-8B-Instruct, or --blip a BLIP captioner."
            )
        processor = transformers.AutoProcessor.from_pretrained(location, **options)
        model_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        loaded: Any = model_class.from_pretrained(
            location, dtype=weights_dtype(precision), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except GenValError:
        raise
    except Exception as error:  # OSError, ValueError, ImportError, SafetensorError and others: one message for the user
        raise GenValError(f"Cannot load the captioner {location}: {' '.join(str(error).split())[:500]}") from error
    model, report = loaded
    faults = {key: sorted(map(str, keys))[:8] for key, keys in report.items() if keys and key != "unexpected_keys"}
    if faults:
        raise GenValError(f"The weights in {location} do not fit its config.json: {faults}.")
    return ChatCaptioner(name, model, processor, prompt, precision)


def read_prompt(path: str | Path) -> str:
    """Read a prompt from a text file; line ends become spaces.

    Raises:
        GenValError: the file is missing, no text, or empty.
    """
    prompt = " ".join(read_text(resolve(path)).split())
    if not prompt:
        raise GenValError(f"--prompt_file: {resolve(path)} is empty.")
    return prompt
