"""Small networks with random weights, in the file formats that users bring."""

import pytest
import torch

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
    torch.save({"state_dict": network.state_dict(), "meta": {"CLASSES": ["road"], "epoch": 1}}, path)
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
