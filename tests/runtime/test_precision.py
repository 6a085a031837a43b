"""The dtypes of each precision."""

import pytest
import torch

from genval.runtime.errors import GenValError
from genval.runtime.precision import PRECISIONS, autocast, compute_dtype, weights_dtype

EXPECTED = {
    "32-true": (torch.float32, torch.float32),
    "16-true": (torch.float16, torch.float16),
    "bf16-true": (torch.bfloat16, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-mixed": (torch.float32, torch.bfloat16),
}


def test_every_precision_has_a_dtype_of_weights_and_of_arithmetic():
    assert {name: (weights_dtype(name), compute_dtype(name)) for name in PRECISIONS} == EXPECTED


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_autocast_computes_in_the_compute_dtype(precision):
    weights = torch.ones(2, 2, dtype=weights_dtype(precision))
    with autocast(torch.device("cpu"), precision):
        assert (weights @ weights).dtype == compute_dtype(precision)


def test_an_unknown_precision_is_refused():
    for function in (weights_dtype, compute_dtype, lambda name: autocast(torch.device("cpu"), name)):
        with pytest.raises(GenValError, match="Unknown precision 'half': expected one of 32-true, "):
            function("half")
