"""GroundingDINO and Segment Anything with a few thousand random weights, and objects on frames for them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.components.masks import write_tiny


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
    folder = tmp_path_factory.mktemp("grounding")
    names = {"detector": "GroundingDinoForObjectDetection", "sam": "SamModel", "sam2": "Sam2Model"}
    for part, name in names.items():
        write_tiny(name, folder / part)
    return GroundingModels(folder / "detector", folder / "sam", folder / "sam2")


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
