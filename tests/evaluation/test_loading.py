"""Segmenters are loaded in their order, the next one while one is used."""

import threading
from types import SimpleNamespace

import pytest
import torch

from genval.evaluation import loading
from genval.evaluation.loading import load_ahead
from genval.runtime.errors import GenValError

FABRIC = SimpleNamespace(world_size=1, device=torch.device("cpu"))


@pytest.fixture
def loaded(monkeypatch):
    """The names that were loaded, and an event per name that is set when it is."""
    events = {name: threading.Event() for name in "abcd"}

    def load(settings, name, device, precision):
        events[name].set()
        if name == "d":
            raise GenValError("d is bad.")
        return name.upper()

    monkeypatch.setattr(loading, "load", load)
    return events


def test_the_next_segmenter_is_loaded_while_one_is_used(loaded):
    models = load_ahead(None, ["a", "b", "c"], {"c": "kept"}, FABRIC, "32-true")
    assert next(models) == "A" and loaded["b"].wait(10)
    assert next(models) == "B" and next(models) == "kept"
    assert next(models, None) is None and not loaded["c"].is_set()


def test_a_segmenter_that_cannot_be_loaded_is_an_error_at_its_turn(loaded):
    models = load_ahead(None, ["a", "d", "b"], {}, FABRIC, "32-true")
    assert next(models) == "A" and loaded["d"].wait(10)
    with pytest.raises(GenValError, match="d is bad"):
        next(models)
    assert not loaded["b"].is_set()
