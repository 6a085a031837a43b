"""The distance of a generated set to unlabelled images of its condition."""

import numpy as np
import pytest
import torch

from genval.evaluation.realism import measure_realism
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


class ColourClip:
    """Embeds an image by its mean colour."""

    name = "colour"

    def prepare(self, image):
        return torch.from_numpy(image.astype(np.float32).mean((0, 1)))

    def encode_prepared(self, inputs):
        return torch.nn.functional.normalize(torch.stack(inputs), dim=-1)


def write_images(folder, colour, number):
    generator = np.random.default_rng(number)
    paths = [folder / f"{index}.png" for index in range(number)]
    for path in paths:
        write_png(path, np.clip(np.array(colour) + generator.normal(0, 20, (4, 4, 3)), 0, 255).astype(np.uint8))
    return paths


def test_the_nearer_set_has_the_smaller_distance(tmp_path):
    fog = write_images(tmp_path / "fog", (150, 150, 150), 17)
    reference = write_images(tmp_path / "reference", (160, 160, 160), 18)
    clear = write_images(tmp_path / "clear", (40, 90, 160), 19)
    found = measure_realism(fog, clear, reference, "PATH", ColourClip(), 2)
    assert found.clear_distance is not None
    assert found.distance.high < found.clear_distance.low
    assert found.to_json()["distance"]["value"] == found.distance.value
    assert "CMMD to 18 images of PATH" in found.sentence() and "clear originals" in found.sentence()
    with pytest.raises(GenValError, match="has 3 images"):
        measure_realism(fog[:3], [], reference, "PATH", ColourClip(), 2)
