"""Small networks with random weights, in the file formats that users bring."""

import pytest
import torch

from genval.datasets.labels import CLASSES
from genval.runtime.paths import REPO_ROOT

CONFIG = "mini/segmenters/pspnet-r18.py"


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 96, 160), generator=generator, dtype=torch.uint8)


@pytest.fixture
def network():
    from genval.segmenters.openmmlab import build_network

    torch.manual_seed(0)
    return build_network(CONFIG)


@pytest.fixture
def checkpoint(tmp_path, network):
    """A file in the model zoo's format that fits CONFIG."""
    path = tmp_path / "pspnet.pth"
    torch.save({"state_dict": network.state_dict(), "meta": {"CLASSES": list(CLASSES), "epoch": 1}}, path)
    return path


@pytest.fixture
def hf_folder(tmp_path):
    """A SegFormer with random weights as transformers saves it."""
    import shutil

    from transformers import AutoConfig, AutoModelForSemanticSegmentation

    source = REPO_ROOT / "mini" / "segmenters" / "segformer-hf"
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(AutoConfig.from_pretrained(source))
    folder = tmp_path / "segformer"
    model.save_pretrained(folder)
    shutil.copy(source / "preprocessor_config.json", folder)
    return folder


@pytest.fixture(scope="session")
def query_folder(tmp_path_factory):
    """A function from a model type to a folder with such a model of random weights, as transformers saves it."""
    import json

    import transformers

    swin = {
        "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4,
        "image_size": 64, "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }  # fmt: skip
    shared = {"backbone_config": swin, "num_labels": 19, "num_queries": 5}
    small = {
        "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 2,
        "num_attention_heads": 2, "dim_feedforward": 16, "encoder_feedforward_dim": 16,
    }  # fmt: skip
    detr = {
        "model_type": "detr", "num_queries": 5, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "backbone_config": {"model_type": "resnet"},
    }  # fmt: skip

    def make(kind):
        torch.manual_seed(0)
        if kind == "mask2former":
            config = transformers.Mask2FormerConfig(**shared, **small)
            model = transformers.Mask2FormerForUniversalSegmentation(config)
            processor = transformers.Mask2FormerImageProcessor()
        elif kind == "maskformer":
            config = transformers.MaskFormerConfig(
                backbone_config=swin, decoder_config=detr, num_labels=19, fpn_feature_size=32, mask_feature_size=32
            )
            model = transformers.MaskFormerForInstanceSegmentation(config)
            processor = transformers.MaskFormerImageProcessor()
        else:
            config = transformers.OneFormerConfig(
                **shared, conv_dim=32, mask_dim=32, hidden_dim=32, encoder_layers=1, encoder_feedforward_dim=16,
                decoder_layers=2, num_attention_heads=2, dim_feedforward=16, text_encoder_width=32,
                text_encoder_num_layers=1, text_encoder_vocab_size=64, task_seq_len=77, max_seq_len=77,
            )  # fmt: skip
            model = transformers.OneFormerForUniversalSegmentation(config)
            processor = None
        folder = tmp_path_factory.mktemp(kind)
        model.eval().save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
            return folder
        # OneFormer's processor would fetch a list of classes: the two files of it that matter are written here.
        (folder / "preprocessor_config.json").write_text(
            json.dumps(
                {
                    "image_processor_type": "OneFormerImageProcessor",
                    "do_rescale": True,
                    "rescale_factor": 1 / 255,
                    "do_normalize": True,
                    "image_mean": [0.5, 0.5, 0.5],
                    "image_std": [0.25, 0.25, 0.25],
                }
            )
        )
        letters = sorted(set("thetaskissemantic"))
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
        return folder

    return make
