"""Detectors and models of the Segment Anything family with random weights, at the size of a test and full size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ("lion", "table", "polar", "bear", "a", "photo")
# transformers knows these tokens by their numbers.
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
VOCABULARY = 1119
TEXT_MASKS = ("Sam3Model", "Sam3LiteTextModel")

SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 3,
    "out_features": ["stage2", "stage3", "stage4"],
}
BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
DINO = {
    "backbone_config": SWIN,
    "text_config": BERT,
    "num_queries": 20,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
CLIP = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SAM = {
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 16,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8},
    "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
}
PROMPTED = {**SAM, "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 16}}
HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "num_attention_heads": 1,
    "image_size": [64, 64],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [4, 2, 2, 2],
    "window_positional_embedding_background_size": [2, 2],
    "global_attention_blocks": [3],
}
SAM3_VISION = {
    "backbone_config": {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    },
    "fpn_hidden_size": 16,
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}
SMALL = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

# Name of a class: entries of the config that make it small.
TINY: dict[str, dict[str, Any]] = {
    "GroundingDinoForObjectDetection": DINO,
    "MMGroundingDinoForObjectDetection": DINO,
    "Owlv2ForObjectDetection": {
        "text_config": {**CLIP, "vocab_size": 64, "max_position_embeddings": 16},
        "vision_config": {**CLIP, "image_size": 32, "patch_size": 8},
        "projection_dim": 16,
    },
    "SamModel": SAM,
    "SamHQModel": {**SAM, "mask_decoder_config": {**SAM["mask_decoder_config"], "vit_dim": 16}},
    "Sam2Model": {
        **PROMPTED,
        "vision_config": {
            "backbone_config": HIERA,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 16,
        },
    },
    "Sam3TrackerModel": {
        **PROMPTED,
        "vision_config": {"model_type": "sam3_vision_model", **SAM3_VISION},
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 56, "patch_size": 14},
    },
    "Sam3Model": {
        "vision_config": {"model_type": "sam3_vision_model", **SAM3_VISION},
        "text_config": {**CLIP, "vocab_size": 64, "max_position_embeddings": 32, "projection_dim": 16},
        "geometry_encoder_config": {**SMALL, "roi_size": 3},
        "detr_encoder_config": SMALL,
        "detr_decoder_config": {**SMALL, "num_queries": 8},
        "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2},
    },
}
TINY["Sam3LiteTextModel"] = TINY["Sam3Model"]

# Entries in which published models differ from the library's defaults, and where they are published.
FULL: dict[str, tuple[dict[str, Any], str]] = {
    "GroundingDinoForObjectDetection": ({}, "library's defaults (Swin-T)"),
    "MMGroundingDinoForObjectDetection": ({}, "library's defaults (Swin-T)"),
    "Owlv2ForObjectDetection": (
        {
            "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "image_size": 1008,
                "patch_size": 14,
            },
            "projection_dim": 768,
        },
        "owlv2-large-patch14-ensemble",
    ),
    "SamModel": (
        {
            "vision_config": {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "mlp_dim": 5120,
                "global_attn_indexes": [7, 15, 23, 31],
            }
        },
        "sam-vit-huge",
    ),
    "SamHQModel": (
        {
            "vision_config": {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "mlp_dim": 5120,
                "global_attn_indexes": [7, 15, 23, 31],
            },
            "mask_decoder_config": {"vit_dim": 1280},
        },
        "sam_hq_vit_h",
    ),
    "Sam2Model": ({}, "library's defaults (hiera-tiny)"),
    "Sam3TrackerModel": ({}, "library's defaults (sam3)"),
    "Sam3Model": ({}, "library's defaults (sam3)"),
    "Sam3LiteTextModel": ({}, "library's defaults"),
}


def make_model(name: str, entries: dict[str, Any]) -> Any:
    """A model of a class of transformers with random weights, in evaluation mode."""
    import transformers

    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**entries)).eval()


def write_tiny(name: str, folder: Path) -> Any:
    """Write a small model with random weights and its processor as transformers saves them; return the model."""
    import torch

    torch.manual_seed(0)
    model = make_model(name, TINY[name])
    model.save_pretrained(folder)
    if name == "Owlv2ForObjectDetection":
        write_owlv2_processor(folder, 32)
    elif name.endswith("GroundingDinoForObjectDetection"):
        bert_tokenizer().save_pretrained(folder)
        size = {"shortest_edge": 64, "longest_edge": 96}
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    elif name in TEXT_MASKS:
        clip_tokenizer().save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 56, "width": 56}}))
    return model


def write_owlv2_processor(folder: Path, side: int) -> None:
    """Write the image processor and a tokenizer of letters."""
    import transformers

    image_processor = transformers.Owlv2ImageProcessor(size={"height": side, "width": side})
    transformers.Owlv2Processor(image_processor, clip_tokenizer(16)).save_pretrained(folder)


def clip_tokenizer(length: int = 32) -> Any:
    """CLIP's, with the small letters as its words."""
    import string

    import transformers

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def bert_tokenizer() -> Any:
    """BERT's, with a handful of words."""
    from transformers import BertTokenizer

    taken = {number: token for token, number in SPECIAL.items()}
    taken |= {1040 + index: word for index, word in enumerate(WORDS)}
    vocabulary = {taken.get(number, f"[unused{number}]"): number for number in range(VOCABULARY)}
    return BertTokenizer(vocab=vocabulary)


def wrap(name: str, model: Any, precision: str) -> Any:
    """The library's class around a model of full size, with a tokenizer of a few words."""
    from genval.grounding.detector import Detector
    from genval.grounding.outliner import Outliner
    from genval.grounding.owlv2 import Owlv2Detector
    from genval.grounding.text_masks import TextMasker

    if name in TEXT_MASKS:
        return TextMasker(model, clip_tokenizer(), precision=precision)
    if name == "Owlv2ForObjectDetection":
        import transformers

        side = model.config.vision_config.image_size
        image_processor = transformers.Owlv2ImageProcessor(size={"height": side, "width": side})
        return Owlv2Detector(model, transformers.Owlv2Processor(image_processor, clip_tokenizer(16)), precision)
    if name.endswith("GroundingDinoForObjectDetection"):
        return Detector(model, bert_tokenizer(), precision=precision)
    return Outliner(model, precision)
