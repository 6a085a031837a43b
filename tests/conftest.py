"""Fixtures that tests of several packages share."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Triton interprets its kernels where no GPU is, if it is told so before it is imported.
    os.environ["TRITON_INTERPRET"] = "1"

# Searches for garbage take a tenth of the time of the tests, most of it in the libraries' objects, which stay.
gc.disable()

# What tests and their subprocesses cache is not the user's.
os.environ["GENVAL_CACHE"] = tempfile.mkdtemp(prefix="genval-tests-")
atexit.register(shutil.rmtree, os.environ["GENVAL_CACHE"], ignore_errors=True)

pytest_plugins = ("diffusion_world", "captions_world", "grounding_world", "inpainting_world")

# A busy machine makes an example slow, which says nothing about what is tested.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_finish():
    """Leave out what the tests have imported from the searches for garbage, which begin here."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """fsync guards against a loss of power, which no test has: what a killed process wrote is there without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
