"""The module that all trainings share."""

from unittest import mock

import pytest
import torch
from torch import nn

from genval.training.module import OptimisedModule
from genval.training.settings import OptimisationConfig


class Module(OptimisedModule):
    NETWORK = "layer"


@pytest.mark.parametrize(("device", "threads"), [("cuda", 1), ("cpu", 2)])
def test_on_a_gpu_the_cpu_computes_on_one_thread(device: str, threads: int) -> None:
    before = torch.get_num_threads()
    module = Module(nn.Linear(2, 2), OptimisationConfig())
    try:
        torch.set_num_threads(2)
        with mock.patch.object(Module, "device", torch.device(device)):
            module.on_train_start()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
