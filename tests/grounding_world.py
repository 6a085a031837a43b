"""GroundingDINO and Segment Anything with a few thousand random weights, and objects on frames for them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

WORDS = ("lion", "table", "polar", "bear", "a", "photo")
# transformers knows these tokens by their numbers.
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
VOCABULARY = 1119


@dataclass(frozen=True)
class GroundingModels:
    """Where the models are, in transformers' layout; the detector's folder has the tokenizer."""

    detector: Path
    sam: Path
    sam2: Path

    @property
    def flags(self) -> list[object]:
        """Of the script that runs them."""
        models = ["--detector", self.detector, "--sam", self.sam, "--clip", "none"]
        return [*models, "--accelerator", "cpu", "--num_workers", 2]


@pytest.fixture(scope="session")
def grounding_models(tmp_path_factory: pytest.TempPathFactory) -> GroundingModels:
    import torch
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        Sam2Config,
        Sam2Model,
        SamConfig,
        SamModel,
    )

    folder = tmp_path_factory.mktemp("grounding")
    torch.manual_seed(0)
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 3}
    bert = {"model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1}
    detector = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=swin | {"out_features": ["stage2", "stage3", "stage4"]},
            text_config=bert | {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64},
            num_queries=20,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    )
    detector.save_pretrained(folder / "detector")
    tokenizer().save_pretrained(folder / "detector")
    preprocessing = {"size": {"shortest_edge": 64, "longest_edge": 96}}
    (folder / "detector" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    sam = SamModel(
        SamConfig(
            vision_config={
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
            prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8},
            mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        )
    )
    sam.save_pretrained(folder / "sam")
    hiera = {
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
    sam2 = Sam2Model(
        Sam2Config(
            vision_config={
                "backbone_config": hiera,
                "backbone_channel_list": [64, 32, 16, 8],
                "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
                "fpn_hidden_size": 16,
            },
            prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16},
            mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        )
    )
    sam2.save_pretrained(folder / "sam2")
    return GroundingModels(folder / "detector", folder / "sam", folder / "sam2")


def tokenizer():
    """BERT's, with a handful of words."""
    from transformers import BertTokenizer

    taken = {number: token for token, number in SPECIAL.items()}
    taken |= {1040 + index: word for index, word in enumerate(WORDS)}
    vocabulary = {taken.get(number, f"[unused{number}]"): number for number in range(VOCABULARY)}
    return BertTokenizer(vocab=vocabulary)


def write_object_images(root: Path, objects: tuple[str, ...] = ("lion", "polar bear"), count: int = 3) -> None:
    """Frames of 80x160 pixels with a bright disc in a box, as ood_objects/sd_inpaint.py lays them out."""
    from genval.runtime.files import write_json, write_png

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:80, :160]
    for name in objects:
        for number in range(count):
            frame = rng.integers(60, 90, (80, 160, 3), dtype=np.uint8)
            side = 40 + 4 * number
            top, left = 80 - side - number, 10 * number
            disc = (rows - top - side / 2) ** 2 + (columns - left - side / 2) ** 2 < (side / 3) ** 2
            frame[disc] = (230, 180, 40)
            write_png(root / "refined" / name / f"{number}.png", frame)
            place = {f"{number}.png": {"pos_mask": [top, left], "size_mask": side}}
            write_json(root / "with_positions" / name / f"{number}_pos.json", place)


@pytest.fixture
def object_images(tmp_path: Path) -> Path:
    """Two objects of three images each."""
    write_object_images(tmp_path / "ood_objects")
    return tmp_path / "ood_objects"
