"""Names and shapes of Segment Anything's original format against those that transformers saves.

The original's names are those of facebookresearch/segment-anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# A key that every file has.
MARK = "image_encoder.pos_embed"
# transformers ties this to `shared_image_embedding`, under which it is filled.
UNUSED = re.compile(r"^prompt_encoder\.shared_embedding\.")

_RULES: tuple[tuple[str, str], ...] = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^(vision_encoder\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^vision_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^vision_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^vision_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^vision_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (
        r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "shared_image_embedding.positional_embedding",
    ),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
)
# A small network of the mask decoder: its first and last layers have names of their own, those between are numbered.
_HEAD = re.compile(r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.(\w+)")


def translate(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """What an original's tensor is called in transformers; a name that is not known is returned as it is.

    The small networks have three layers, as the published models do.
    """
    head = _HEAD.fullmatch(key)
    if head:
        layer = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}.get(head[2], f"layers.{head[2]}")
        return {f"{head[1]}.{layer}.{head[3]}": tensor}
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    return {key: tensor}


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The entries of transformers' SamConfig that shapes tell, and the published ones that they do not.

    Raises:
        KeyError: a key is missing.
    """
    _, grid, _, hidden = shapes[MARK]
    patch = shapes["image_encoder.patch_embed.proj.weight"][2]
    channels = shapes["image_encoder.neck.0.weight"][0]
    tables: list[tuple[int, ...]] = []
    while f"image_encoder.blocks.{len(tables)}.attn.rel_pos_h" in shapes:
        tables.append(shapes[f"image_encoder.blocks.{len(tables)}.attn.rel_pos_h"])
    is_global = [rows == 2 * grid - 1 for rows, *_ in tables]
    windows = [(rows + 1) // 2 for rows, *_ in tables if rows != 2 * grid - 1]
    decoder = "mask_decoder.transformer.layers"
    return {
        "vision_config": {
            "hidden_size": hidden,
            "output_channels": channels,
            "num_hidden_layers": len(tables),
            "num_attention_heads": hidden // tables[0][1],
            "image_size": grid * patch,
            "patch_size": patch,
            "window_size": windows[0] if windows else 0,
            "global_attn_indexes": [layer for layer, whole in enumerate(is_global) if whole],
            "num_pos_feats": channels // 2,
            "mlp_dim": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0],
        },
        "prompt_encoder_config": {
            "hidden_size": channels,
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": shapes["prompt_encoder.mask_downscaling.6.weight"][1],
        },
        "mask_decoder_config": {
            "hidden_size": channels,
            "mlp_dim": shapes[f"{decoder}.0.mlp.lin1.weight"][0],
            "num_hidden_layers": sum(f"{decoder}.{layer}.norm1.weight" in shapes for layer in range(16)),
            "attention_downsample_rate": channels // shapes[f"{decoder}.0.cross_attn_token_to_image.q_proj.weight"][0],
            "num_multimask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
            "iou_head_hidden_dim": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
            # The original's decoder; transformers' default is 1e-6.
            "layer_norm_eps": 1e-5,
        },
    }
