"""Image-to-text models with random weights, at the size of a test and at full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Words of the small tokenizer; further ones are added for the marks of each model.
WORDS = ["<unk>", "<s>", "</s>", "<pad>", "describe", "the", "street", "user", "a", "car", "road", ".", ":", ","]
QWEN_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IDEFICS_MARKS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} a{% endif %}"
)
IDEFICS_TEMPLATE = QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}

# Name of a class: source of its published dimensions and the entries in which they differ from the library's defaults.
FULL: dict[str, tuple[dict[str, Any], str]] = {
    "Qwen3VLForConditionalGeneration": (
        {
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5000000,
                    "mrope_section": [24, 20, 20],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {"out_hidden_size": 4096},
        },
        "Qwen3-VL-8B-Instruct",
    ),
    "Florence2ForConditionalGeneration": (
        {
            "vision_config": {
                "embed_dim": [256, 512, 1024, 2048],
                "num_heads": [8, 16, 32, 64],
                "num_groups": [8, 16, 32, 64],
                "projection_dim": 1024,
            },
            "text_config": {"vocab_size": 51289 + 1},
        },
        "Florence-2-large",
    ),
    "Idefics3ForConditionalGeneration": (
        {
            "text_config": {
                "model_type": "llama",
                "vocab_size": 128259,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "pad_token_id": 3,
            },
            "vision_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 364,
                "patch_size": 14,
            },
        },
        "Idefics3-8B-Llama3",
    ),
}


def word_tokenizer(marks: list[str], **named: Any) -> Any:
    """A tokenizer of a handful of words; `named` are special tokens with a name."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate([*WORDS, *marks])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", **named
    )
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def write_tiny(name: str, folder: Path) -> Any:
    """Write a small model with random weights and its processor as transformers saves them; return the model."""
    import torch

    torch.manual_seed(0)
    model, processor = MAKERS[name](False)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def _qwen3_vl(full: bool) -> tuple[Any, Any]:
    import transformers

    tokenizer = word_tokenizer(QWEN_MARKS)
    ids = dict(zip(QWEN_MARKS, tokenizer.convert_tokens_to_ids(QWEN_MARKS), strict=True))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    tiny = {
        "text_config": {**TEXT, "head_dim": 16, "vocab_size": len(tokenizer), "rope_parameters": rope},
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    }
    config = transformers.Qwen3VLConfig(
        **(FULL["Qwen3VLForConditionalGeneration"][0] if full else tiny),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    patch = config.vision_config.patch_size
    sizes = {"shortest_edge": 16 * 16, "longest_edge": 1024 * 2048 if full else 64 * 64}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(patch_size=patch, merge_size=2, size=sizes),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(patch_size=patch),
        chat_template=QWEN_TEMPLATE,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def _idefics3(full: bool) -> tuple[Any, Any]:
    """SmolVLM has the same architecture; its processor needs num2words."""
    import transformers

    tokenizer = word_tokenizer(IDEFICS_MARKS)
    tiny = {
        "text_config": {"model_type": "llama", **TEXT, "vocab_size": len(tokenizer), "pad_token_id": 3},
        "vision_config": {**TEXT, "image_size": 32, "patch_size": 8},
    }
    entries = FULL["Idefics3ForConditionalGeneration"][0] if full else tiny
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.Idefics3Config(**entries, image_token_id=image, scale_factor=2, pad_token_id=3)
    side = config.vision_config.image_size
    image_processor = transformers.Idefics3ImageProcessor(
        size={"longest_edge": side}, max_image_size={"longest_edge": side}, do_image_splitting=False
    )
    tokens = (side // config.vision_config.patch_size) ** 2 // 4
    processor = transformers.Idefics3Processor(
        image_processor, tokenizer, image_seq_len=tokens, chat_template=IDEFICS_TEMPLATE
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _florence2(full: bool) -> tuple[Any, Any]:
    import torch
    import transformers

    tokenizer = word_tokenizer(["<image>"], extra_special_tokens={"image_token": "<image>"})
    image = tokenizer.convert_tokens_to_ids("<image>")
    tokens = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 3, "decoder_start_token_id": WORDS.index("street")}
    tiny = {
        "text_config": {
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 256,
            "forced_eos_token_id": None,
            **tokens,
        },
        "vision_config": {
            "depths": [1, 1, 1, 1],
            "embed_dim": [8, 16, 16, 32],
            "num_heads": [1, 2, 2, 2],
            "num_groups": [1, 2, 2, 2],
            "window_size": 4,
            "projection_dim": 32,
        },
    }
    config = transformers.Florence2Config(
        **(FULL["Florence2ForConditionalGeneration"][0] if full else tiny), image_token_id=image
    )
    side = 768 if full else 64
    image_processor = transformers.CLIPImageProcessor(
        size={"height": side, "width": side}, do_center_crop=False, image_seq_length=577 if full else 5
    )
    processor = transformers.Florence2Processor(image_processor, tokenizer)
    model = transformers.Florence2ForConditionalGeneration(config)
    if not full:
        torch.nn.init.normal_(model.get_output_embeddings().weight)  # repeats the first word, else the answer is empty
    return model, processor


MAKERS = {
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Idefics3ForConditionalGeneration": _idefics3,
    "Florence2ForConditionalGeneration": _florence2,
}
"""Name of a class: a function that makes the model, small or of full size, and its processor."""
