"""Segmenters are checked, and loaded in their order, the next one while one is used."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genval.evaluation import loading
from genval.evaluation.loading import load_segmenters
from genval.evaluation.settings import SegmenterSettings
from genval.runtime.errors import GenValError
from genval.segmenters.identity import model_identity

FABRIC = SimpleNamespace(world_size=1, global_rank=0, device=torch.device("cpu"))


class Loads:
    """Stands for the loading of segmenters "a" to "d", of which "d" is bad."""

    def __init__(self):
        self.names: list[str] = []
        self.ended = {name: threading.Semaphore(0) for name in "abcd"}

    def __call__(self, settings, name, device, precision):
        self.names.append(name)
        self.ended[name].release()
        if name == "d":
            raise GenValError("d is bad.")
        segmenter = nn.Linear(2, 2)
        segmenter.definition = name
        return segmenter


@pytest.fixture
def loads(monkeypatch):
    monkeypatch.setattr(loading, "_load", loads := Loads())
    return loads


def load(names, fabric=FABRIC, **flags):
    """Load segmenters; yield their names after a check of their identities."""
    settings = SegmenterSettings(segmenters=",".join(names), **flags)
    for segmenter, identity in load_segmenters(settings, names, fabric, "32-true", []):
        assert identity == model_identity(segmenter)
        yield segmenter.definition


def test_checked_segmenters_are_kept(loads):
    assert list(load(["a", "b", "c"])) == ["a", "b", "c"]
    assert loads.names == ["b", "c", "a"]


def test_the_next_segmenter_is_loaded_while_one_is_used(loads, monkeypatch):
    monkeypatch.setattr(loading, "_KEPT", 0)
    models = load(["a", "b", "c"])
    assert next(models) == "a"
    assert loads.ended["b"].acquire(timeout=10)  # in the check
    assert loads.ended["b"].acquire(timeout=10)
    assert loads.names[:2] == ["b", "c"]
    assert list(models) == ["b", "c"]
    assert loads.names[2:] == ["a", "b", "c"]


def test_a_bad_segmenter_is_an_error_before_the_first(loads):
    with pytest.raises(GenValError, match="d is bad"):
        next(load(["a", "b", "d", "c"]))
    assert loads.names == ["b", "d"]


def test_compiled_segmenters_are_checked_without_compilation(loads, monkeypatch):
    compiled = []

    def load_one(settings, name, device, precision):
        compiled.append(settings.compile)
        return loads(settings, name, device, precision)

    monkeypatch.setattr(loading, "_load", load_one)
    assert list(load(["a", "b"], compile="on")) == ["a", "b"]
    assert compiled == ["off", "on", "on"]


class First:
    """The first of two processes. In the check, the second one has the message `of_second`."""

    world_size, global_rank, is_global_zero, device = 2, 0, True, torch.device("cpu")

    def __init__(self, of_second=None):
        self.of_second = of_second

    def broadcast(self, message, rank):
        return message if rank == 0 else self.of_second


class Second(First):
    """The second of two processes."""

    global_rank, is_global_zero = 1, False


def test_processes_share_the_check(loads):
    assert list(load(["a", "b", "c"], First())) == ["a", "b", "c"]
    assert loads.names == ["b", "a", "c"]
    loads.names.clear()
    assert list(load(["a", "b", "c"], Second())) == ["a", "b", "c"]
    assert loads.names == ["c", "a", "b"]


def test_a_bad_segmenter_of_another_process_is_an_error(loads):
    with pytest.raises(GenValError, match="d is bad"):
        next(load(["a", "b", "d"], First("d is bad.")))
    assert loads.names == ["b"]
