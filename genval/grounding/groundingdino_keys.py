"""Names and shapes of GroundingDINO's original format against those that transformers saves.

The original's names are those of IDEA-Research/GroundingDINO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# A key that every file has.
MARK = "transformer.level_embed"
# What transformers has and never uses.
UNUSED = re.compile(r"conv_encoder\.model\.(swin\.)?layernorm\.")
# What the original has and never uses, or what follows from the sizes.
_DROPPED = re.compile(r"label_enc\.weight|bert\.pooler\..*|bert\.embeddings\.position_ids|.*\.relative_position_index")

_SWIN = "model.backbone.conv_encoder.model"
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DEFORMABLE = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "linear1": "fc1", "linear2": "fc2"}
_TEXT = {"norm1": "layer_norm_before", "norm2": "layer_norm_after", "linear1": "fc1", "linear2": "fc2"}
_FUSION = {
    "gamma_v": "vision_param",
    "gamma_l": "text_param",
    "layer_norm_v": "layer_norm_vision",
    "layer_norm_l": "layer_norm_text",
    "attn.v_proj": "attn.vision_proj",
    "attn.l_proj": "attn.text_proj",
    "attn.values_v_proj": "attn.values_vision_proj",
    "attn.values_l_proj": "attn.values_text_proj",
    "attn.out_v_proj": "attn.out_vision_proj",
    "attn.out_l_proj": "attn.out_text_proj",
}
_DECODER = {
    "cross_attn": "encoder_attn",
    "ca_text": "encoder_attn_text",
    "norm1": "encoder_attn_layer_norm",
    "catext_norm": "encoder_attn_text_layer_norm",
    "norm2": "self_attn_layer_norm",
    "norm3": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}
# Where a part's names begin, here and there, and what changes behind it; the first that fits counts.
_PARTS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (r"backbone\.0\.(layers\.\d+\.blocks\.\d+\.)", rf"{_SWIN}.encoder.\1", _BLOCK),
    (r"backbone\.0\.(layers\.\d+\.downsample\.)", rf"{_SWIN}.encoder.\1", {}),
    (r"backbone\.0\.patch_embed\.proj\.", rf"{_SWIN}.embeddings.patch_embeddings.projection.", {}),
    (r"backbone\.0\.patch_embed\.norm\.", rf"{_SWIN}.embeddings.norm.", {}),
    (r"bert\.", "model.text_backbone.", {}),
    (r"feat_map\.", "model.text_projection.", {}),
    (r"input_proj\.", "model.input_proj_vision.", {}),
    (r"transformer\.level_embed$", "model.level_embed", {}),
    (r"transformer\.tgt_embed\.", "model.query_position_embeddings.", {}),
    (r"transformer\.(enc_output(_norm)?\.)", r"model.\1", {}),
    (r"transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed.", {}),
    (r"transformer\.encoder\.layers\.(\d+)\.", r"model.encoder.layers.\1.deformable_layer.", _DEFORMABLE),
    (r"transformer\.encoder\.text_layers\.(\d+)\.", r"model.encoder.layers.\1.text_enhancer_layer.", _TEXT),
    (r"transformer\.encoder\.fusion_layers\.(\d+)\.", r"model.encoder.layers.\1.fusion_layer.", _FUSION),
    (r"transformer\.decoder\.(layers\.\d+\.)", r"model.decoder.\1", _DECODER),
    (r"transformer\.decoder\.norm\.", "model.decoder.layer_norm.", {}),
    (r"transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head.", {}),
    (r"transformer\.decoder\.(bbox_embed\.)", r"model.decoder.\1", {}),
)
# Three matrices stacked along the first axis, and what transformers calls each.
_STACKED: tuple[tuple[str, tuple[str, str, str]], ...] = (
    (r"attn\.qkv\.(weight|bias)$", ("attention.self.query.", "attention.self.key.", "attention.self.value.")),
    (r"in_proj_(weight|bias)$", ("query.", "key.", "value.")),
)


def translate(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """What an original's tensor is called in transformers: no name, one, or three for a stacked one.

    A name that is not known is returned as it is.
    """
    if _DROPPED.fullmatch(key):
        return {}
    stage = re.fullmatch(r"backbone\.0\.norm(\d+)\.(weight|bias)", key)
    if stage:
        return {f"{_SWIN}.hidden_states_norms.stage{int(stage[1]) + 1}.{stage[2]}": tensor}
    name = _renamed(key)
    for pattern, parts in _STACKED:
        found = re.search(pattern, name)
        if found and len(tensor) % 3 == 0:
            start = name[: found.start()]
            return {f"{start}{part}{found[1]}": third for part, third in zip(parts, tensor.chunk(3), strict=True)}
    return {name: tensor}


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The entries of transformers' GroundingDinoConfig that shapes tell, and the published ones that they do not.

    Raises:
        KeyError: a key is missing.
    """
    depths = [
        _count(shapes, rf"backbone\.0\.layers\.{stage}\.blocks\.(\d+)\.")
        for stage in range(_count(shapes, r"backbone\.0\.layers\.(\d+)\."))
    ]
    tables = [
        shapes[f"backbone.0.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(len(depths))
    ]
    words, hidden = shapes["bert.embeddings.word_embeddings.weight"]
    return {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": shapes["backbone.0.patch_embed.proj.weight"][0],
            "patch_size": shapes["backbone.0.patch_embed.proj.weight"][2],
            "depths": depths,
            "num_heads": [table[1] for table in tables],
            "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
            "out_features": [
                f"stage{stage}" for stage in range(1, 5) if f"backbone.0.norm{stage - 1}.weight" in shapes
            ],
        },
        "text_config": {
            "model_type": "bert",
            "vocab_size": words,
            "hidden_size": hidden,
            "num_hidden_layers": _count(shapes, r"bert\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": max(1, hidden // 64),
            "intermediate_size": shapes["bert.encoder.layer.0.intermediate.dense.weight"][0],
            "max_position_embeddings": shapes["bert.embeddings.position_embeddings.weight"][0],
        },
        "d_model": shapes[MARK][1],
        "num_feature_levels": shapes[MARK][0],
        "num_queries": shapes["transformer.tgt_embed.weight"][0],
        "encoder_layers": _count(shapes, r"transformer\.encoder\.layers\.(\d+)\."),
        "decoder_layers": _count(shapes, r"transformer\.decoder\.layers\.(\d+)\."),
        "encoder_ffn_dim": shapes["transformer.encoder.layers.0.linear1.weight"][0],
        "decoder_ffn_dim": shapes["transformer.decoder.layers.0.linear1.weight"][0],
    }


def _renamed(key: str) -> str:
    for pattern, start, behind in _PARTS:
        found = re.match(pattern, key)
        if found:
            rest = key[found.end() :]
            # The longest name first: "norm1" is also the end of others, and so is compared from the start only.
            for theirs in sorted(behind, key=len, reverse=True):
                if rest == theirs or rest.startswith(f"{theirs}."):
                    rest = behind[theirs] + rest[len(theirs) :]
                    break
            return found.expand(start) + rest
    return key


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    """One more than the largest number that `pattern` finds."""
    numbers = [int(found[1]) for found in (re.match(pattern, key) for key in shapes) if found]
    if not numbers:
        raise KeyError(pattern)
    return max(numbers) + 1
