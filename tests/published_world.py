"""Tiny random models of every published pipeline, written in diffusers' folder layout with tokenizers of letters."""

from __future__ import annotations

import functools
import json
import runpy
import string
from pathlib import Path
from typing import Any

import torch
from diffusion_world import ROOT

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@functools.cache
def benchmark() -> dict[str, Any]:
    """The functions of the benchmark, which makes tiny networks of each pipeline."""
    return runpy.run_path(str(ROOT / "benchmarks" / "published_speed.py"))


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, ",", "."]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, ",", "."]
    return T5Tokenizer(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)], extra_ids=0)


def qwen_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    # Their numbers are those that the tiny networks know as the tokens of an image.
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    special += ["<|vision_start|>", "<|vision_end|>"]
    vocabulary |= {token: 256 + number for number, token in enumerate(special)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen_processor() -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    return Qwen2VLProcessor(Qwen2VLImageProcessor(), qwen_tokenizer(), Qwen2VLVideoProcessor(), chat_template=CHAT)


TOKENIZERS = {
    "CLIPTokenizer": clip_tokenizer,
    "T5Tokenizer": t5_tokenizer,
    "Qwen2Tokenizer": qwen_tokenizer,
    "Qwen2VLProcessor": qwen_processor,
}


def write_published(published: Any, folder: Path) -> Path:
    """Write a tiny random model of a pipeline; the ControlNet, if there is one, is in `folder/controlnet`."""
    networks = benchmark()["make_networks"](published.name, "tiny", torch.device("cpu"))
    if "controlnet" in networks:  # a new ControlNet adds nothing: its last layers are zero
        generator = torch.Generator().manual_seed(1)
        for parameter in networks["controlnet"].parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    tokenizers = {part: TOKENIZERS[name]() for part, name in published.tokenizers.items()}
    pipeline = benchmark()["make_pipeline"](published.name, networks, tokenizers)
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = published.index
    index.pop("controlnet", None)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
