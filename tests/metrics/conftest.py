"""The published numbers, for the tests of metrics."""

import json

import numpy as np
import pytest
from reference_metrics import GOLDEN


@pytest.fixture(scope="session")
def golden():
    """Logits and labels by name, and the published metrics of them."""
    with np.load(GOLDEN / "metrics.npz") as arrays:
        return dict(arrays), json.loads((GOLDEN / "metrics.json").read_text())
