"""A captioner and a CLIP of a few thousand random weights, in the folders that the full-size ones come in."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

TEXTS = [
    "a narrow street with two cars and a person, trees, in fog",
    "a wide street with many cars, houses, at night",
] * 4


@dataclass(frozen=True)
class CaptionModels:
    """Where the two models are."""

    blip: Path
    clip: Path

    @property
    def flags(self) -> list[object]:
        """Of the script that runs them."""
        return ["--blip", self.blip, "--clip", self.clip, "--accelerator", "cpu", "--num_workers", 2]


@pytest.fixture(scope="session")
def caption_models(tmp_path_factory: pytest.TempPathFactory) -> CaptionModels:
    """One step of the recipe's training: the models know the words of `TEXTS` and little else."""
    import torch

    from mini.recipe.captioner import CaptionerRecipe, train_captioner
    from mini.recipe.contrastive import ContrastiveRecipe, train_contrastive

    folder, cpu = tmp_path_factory.mktemp("captions"), torch.device("cpu")
    images = torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    small = {"image_size": 32, "text_width": 32, "text_layers": 1, "steps": 1, "batch_size": 4}
    captioner = CaptionerRecipe(vision_width=32, vision_layers=1, **small)
    contrastive = ContrastiveRecipe(vision_width=4, embedding=16, **small)
    train_captioner(images, TEXTS, captioner, folder / "captioner", cpu, log=lambda _: None)
    train_contrastive(images, TEXTS, contrastive, folder / "clip", cpu, log=lambda _: None)
    return CaptionModels(folder / "captioner", folder / "clip")


@pytest.fixture
def street_images() -> list[np.ndarray]:
    """Five RGB images of two sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(24 + 8 * (i % 2), 48, 3), dtype=np.uint8) for i in range(5)]
