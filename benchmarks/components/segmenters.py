"""Segmenters of `hf:` with random weights, at the size of a test and at the size of published models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 4,
    "image_size": 64,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
VIT = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64, "num_hidden_layers": 4}
QUERIES = {
    "backbone_config": SWIN,
    "num_queries": 5,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 16,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 16,
}
DETR = {
    "num_queries": 5,
    "d_model": 128,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}
EOMT = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "num_blocks": 2,
    "image_size": 64,
    "patch_size": 16,
    "num_queries": 5,
}
SPLIT = {"size": {"shortest_edge": 64, "longest_edge": None}, "do_split_image": True}

# Type: entries of the config that make it small, and those of the image processor that differ from its defaults.
TINY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beit": ({**VIT, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False}, {}),
    "data2vec-vision": (
        {**VIT, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False},
        {"size": {"height": 64, "width": 64}},
    ),
    "dpt": (
        {
            **VIT,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "use_auxiliary_head": False,
        },
        {},
    ),
    "mobilenet_v2": ({"depth_multiplier": 0.25}, {}),
    "mobilevit": ({"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]}, {}),
    "mobilevitv2": ({"width_multiplier": 0.5, "base_attn_unit_dims": [16, 16, 16], "aspp_out_channels": 16}, {}),
    "sapiens2": (
        {
            **VIT,
            "num_key_value_attention_heads": 1,
            "num_first_full_attention_layers": 1,
            "num_last_full_attention_layers": 1,
            "num_register_tokens": 2,
            "head_config": {"upsample_out_channels": [16, 16], "conv_out_channels": [16]},
        },
        {},
    ),
    "segformer": ({"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}, {}),
    "tipsv2_dpt": (
        {
            "backbone_config": {
                "model_type": "tipsv2_vision_model",
                "hidden_size": 32,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "image_size": 56,
                "out_indices": [1, 2, 3, 4],
                "apply_layernorm": True,
                "reshape_hidden_states": False,
            },
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
        },
        {},
    ),
    "upernet": ({"backbone_config": SWIN, "hidden_size": 16, "use_auxiliary_head": False}, {}),
    "detr": (DETR, {}),
    "eomt": (EOMT, SPLIT),
    "eomt_dinov3": ({**EOMT, "intermediate_size": 32}, SPLIT),
    "mask2former": ({**QUERIES, "feature_size": 32, "mask_feature_size": 32}, {}),
    "maskformer": (
        {
            "backbone_config": SWIN,
            "decoder_config": {**DETR, "model_type": "detr", "backbone_config": {"model_type": "resnet"}},
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
        },
        {},
    ),
    "oneformer": (
        {
            **QUERIES,
            "conv_dim": 32,
            "mask_dim": 32,
            "text_encoder_width": 32,
            "text_encoder_num_layers": 1,
            "text_encoder_vocab_size": 64,
            "task_seq_len": 77,
            "max_seq_len": 77,
        },
        {},
    ),
    "videomt": (EOMT, {"size": {"height": 64, "width": 64}}),
}

# Entries of the config in which published models differ from the library's defaults, and where they are published.
FULL: dict[str, tuple[dict[str, Any], str]] = {
    "beit": ({"image_size": 640, "use_relative_position_bias": True, "out_indices": [3, 5, 7, 11]}, "beit-base-640"),
    "data2vec-vision": ({"use_relative_position_bias": True}, "library's defaults (base)"),
    "dpt": ({}, "library's defaults (base)"),
    "mobilenet_v2": ({"output_stride": 8}, "deeplabv3_mobilenet_v2_1.0_513"),
    "mobilevit": ({"output_stride": 16}, "deeplabv3-mobilevit-small"),
    "mobilevitv2": ({"output_stride": 16}, "mobilevitv2-1.0-voc-deeplabv3"),
    "sapiens2": (
        {"head_config": {"upsample_out_channels": [512, 256, 128, 64], "conv_out_channels": [64, 64]}},
        "library's defaults (0.4b)",
    ),
    "segformer": (
        {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
        "segformer-b5-finetuned-cityscapes-1024-1024",
    ),
    "tipsv2_dpt": ({}, "library's defaults (b14)"),
    "upernet": (
        {
            "backbone_config": {
                "model_type": "swin",
                "embed_dim": 192,
                "depths": [2, 2, 18, 2],
                "num_heads": [6, 12, 24, 48],
                "window_size": 12,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "auxiliary_in_channels": 768,
        },
        "upernet-swin-large",
    ),
    "detr": ({}, "library's defaults (ResNet-50)"),
    "eomt": ({"image_size": 1024}, "cityscapes_semantic_eomt_large_1024"),
    "eomt_dinov3": ({"image_size": 1024}, "EoMT-DINOv3 large at 1024"),
    "mask2former": (
        {
            "backbone_config": {
                "model_type": "swin",
                "embed_dim": 192,
                "depths": [2, 2, 18, 2],
                "num_heads": [6, 12, 24, 48],
                "window_size": 12,
                "image_size": 384,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        },
        "mask2former-swin-large-cityscapes-semantic",
    ),
    "maskformer": ({}, "library's defaults (Swin-B)"),
    "oneformer": ({}, "library's defaults (Swin-T)"),
    "videomt": ({"image_size": 640}, "library's defaults (large)"),
}


def known_types() -> list[str]:
    """The model types of transformers' mappings for semantic and universal segmentation, sorted."""
    from transformers.models.auto import modeling_auto

    names = {
        **modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    }
    return sorted(names)


def find_class(model_type: str) -> Any:
    """The class of a model type."""
    import transformers
    from transformers.models.auto import modeling_auto

    names = {
        **modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    }
    return getattr(transformers, names[model_type])


def make_config(model_type: str, entries: dict[str, Any], num_labels: int = 19) -> Any:
    """A config of a model type with some entries and placeholders as labels."""
    from transformers import AutoConfig

    # Some configs take entries out of the dictionaries that they are given.
    return AutoConfig.for_model(model_type, num_labels=num_labels, **copy.deepcopy(entries))


def write_tiny(model_type: str, folder: Path, num_labels: int = 19) -> Any:
    """Write a small model with random weights as transformers saves it; return it in evaluation mode."""
    import torch

    entries, changes = TINY[model_type]
    torch.manual_seed(0)
    model = find_class(model_type)(make_config(model_type, entries, num_labels)).eval()
    # The libraries' small weights would give the same prediction for all pixels after a few layers.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
    model.save_pretrained(folder)
    write_processor(model_type, folder, changes)
    return model


def write_processor(model_type: str, folder: Path, changes: dict[str, Any]) -> None:
    """Write the files of a model type's image processor, with its defaults and some changes."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    if model_type == "videomt":
        transformers.VideomtVideoProcessor(**changes).save_pretrained(folder)
        return
    if model_type != "oneformer":
        getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[model_type]["torchvision"])(**changes).save_pretrained(
            folder
        )
        return
    # OneFormer's processor would fetch a list of classes: the entries that matter and a tokenizer of letters.
    steps = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    steps |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "OneFormerImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(steps))
    letters = sorted(set("thetaskissemantic"))
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)


def random_task(device: Any) -> Any:
    """Tokens of OneFormer's task, int64 (1, 77)."""
    import torch

    return torch.arange(77, device=device)[None]
