"""Files of the original formats, with weights drawn by the rule that tests/golden/README.md states."""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genval.runtime.paths import REPO_ROOT

GOLDEN = REPO_ROOT / "tests" / "golden"


@dataclass
class Golden:
    """A file with drawn weights, and what the original code gave with them."""

    path: Path
    state: dict[str, torch.Tensor]
    arrays: Any


def drawn_state(keys, arrays):
    """Tensors drawn from their names; a fourth field names the key that a tensor is shared with."""
    state = {}
    for key, (shape, _, kind, *shared) in keys.items():
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32((shared or [key])[0].encode())))
        if kind == "const":
            state[key] = torch.from_numpy(arrays[f"const/{key}"])
        elif kind == "w":
            state[key] = noise / math.sqrt(math.prod(shape[1:]))
        else:
            state[key] = 0.02 * noise + (kind == "n")
    return state


def golden_file(name, config, folder, wrap):
    arrays = np.load(GOLDEN / f"{name}.npz")
    state = drawn_state(json.loads((GOLDEN / f"{name}.json").read_text())["keys"], arrays)
    torch.save(wrap(state), folder / f"{name}.pth")
    # The tiny models' heads are not the published ones, and no shape tells them.
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
    return Golden(folder / f"{name}.pth", state, arrays)


@pytest.fixture(scope="session")
def golden_detector(tmp_path_factory):
    return golden_file(
        "groundingdino_tiny",
        {"text_config": {"num_attention_heads": 2}},
        tmp_path_factory.mktemp("golden"),
        lambda state: {"model": {f"module.{key}": tensor for key, tensor in state.items()}},
    )


@pytest.fixture(scope="session")
def golden_sam(tmp_path_factory):
    return golden_file(
        "sam_tiny",
        {"mask_decoder_config": {"num_attention_heads": 2}},
        tmp_path_factory.mktemp("golden"),
        lambda state: state,
    )
