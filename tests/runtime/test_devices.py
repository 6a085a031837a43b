"""What the machine offers."""

import io
import json
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from genval.runtime import devices
from genval.runtime.errors import GenValError
from genval.runtime.files import write_bytes
from genval.runtime.settings import DeviceSettings

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")


def test_lightning_does_not_advise_another_precision(monkeypatch):
    devices.launch_fabric(DeviceSettings(accelerator="cpu", devices="1"))
    from lightning_fabric.accelerators import cuda
    from lightning_utilities.core import rank_zero

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    monkeypatch.setattr(rank_zero.log, "handlers", [handler])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(cuda, "_is_ampere_or_later", lambda device: True)
    cuda._check_cuda_matmul_precision(torch.device("cuda"))
    rank_zero.rank_zero_info("another message")
    assert messages == ["another message"] and torch.get_float32_matmul_precision() == "highest"


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    assert devices.find_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.find_device("auto").type == "cpu"
    for name in ("cuda:99", "no_device", "meta"):
        with pytest.raises(GenValError, match=f"^--accelerator {name} is not available: .* Use cpu, or auto"):
            devices.find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.tensor(0.0))
    assert devices.find_device("auto").type == devices.find_device("gpu").type == "cuda"


def test_memory_that_is_left_in_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "Path", lambda place: tmp_path / place.lstrip("/"))
    assert devices.available_memory() == 0  # the system does not tell
    write_bytes(tmp_path / "proc/meminfo", b"MemTotal: 90 kB\nMemAvailable: 50 kB\n")
    assert devices.available_memory() == 50 * 1024
    group = {"max": b"max\n", "current": b"30000\n", "stat": b"anon 5000\nactive_file 6000\ninactive_file 14000\n"}
    for name, content in group.items():
        write_bytes(tmp_path / f"sys/fs/cgroup/memory.{name}", content)
    assert devices.available_memory() == 50 * 1024
    # Kept contents of files do not count.
    write_bytes(tmp_path / "sys/fs/cgroup/memory.max", b"40000\n")
    assert devices.available_memory() == 40000 - 10000


@pytest.mark.parametrize(
    "variables, imported",
    [({}, False), ({"OMPI_COMM_WORLD_SIZE": "1"}, True), ({"OMPI_MCA_btl": "self", "MPI_HOME": "/usr"}, False)],
)
def test_mpi_is_started_only_under_its_launcher(tmp_path, variables, imported):
    # A package as Lightning asks for it: installed, and with one process.
    write_bytes(tmp_path / "mpi4py/__init__.py", b"")
    world = b"class COMM_WORLD:\n    Get_size = staticmethod(lambda: 1)\n"
    write_bytes(tmp_path / "mpi4py/MPI.py", world)
    write_bytes(tmp_path / "mpi4py-4.0.0.dist-info/METADATA", b"Metadata-Version: 2.1\nName: mpi4py\nVersion: 4.0.0\n")
    code = (
        "import json, sys\n"
        "from types import SimpleNamespace\n"
        "from genval.runtime.devices import launch_fabric\n"
        "fabric = launch_fabric(SimpleNamespace(accelerator='cpu', devices='1', num_nodes=1))\n"
        "started = 'mpi4py.MPI' in sys.modules\n"
        "import mpi4py.MPI\n"  # other code can still use it
        "print(json.dumps([started, fabric.world_size]))"
    )
    plain = {name: value for name, value in os.environ.items() if name not in devices._OF_MPI}
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = plain | variables | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [imported, 1]


def test_a_process_waits_for_the_first_one_at_the_latest_when_it_is_launched(monkeypatch):
    monkeypatch.setenv("GENVAL_WAITS_FOR_FIRST", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert devices.is_before_first()
    devices.launch_fabric(DeviceSettings(accelerator="cpu", devices="1"))
    assert not devices.is_before_first() and not sys.stdin.read()


def test_another_number_of_processes_than_that_of_slurm_is_refused(monkeypatch):
    job = {"JOB_NAME": "genval", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(GenValError, match=r"^--devices 2 --num_nodes 1: .*ntasks-per-node=1. does not match"):
        devices.launch_fabric(DeviceSettings(accelerator="cpu", devices="2"))


class _OneProcess:
    is_global_zero = True

    def broadcast(self, value):
        return value


@pytest.mark.parametrize("launcher", [{}, {"SLURM_PROCID": "0"}, {"RANK": "1"}, {"LOCAL_RANK": "1", "NODE_RANK": "0"}])
def test_the_first_process_computes_ahead(launcher, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    begun = threading.Event()

    def compute():
        begun.set()
        return threading.current_thread().name

    with devices.computed_ahead(compute) as result:
        is_first = "1" not in launcher.values()
        assert begun.wait(10 if is_first else 0.1) == is_first
        # A process whose variables are wrong computes when the result is needed.
        assert (result(_OneProcess()) == threading.main_thread().name) != is_first


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_copies_wait_for_the_work_before_them_and_are_complete(device):
    slow = torch.ones(2048, 2048, device=device)
    copies = []
    for number in range(12):
        values = devices.to_device(np.full((4, 256, 256), number, np.int32), torch.device(device))
        if device == "cuda":
            slow = slow @ slow / 2048  # so that copies would overtake it
        doubled = 2 * values + slow[0, 0].int()
        copies.append(devices.to_host(values, doubled))
        del values, doubled  # their memory is used again
    for number, wait in enumerate(copies):
        values, doubled = wait()
        assert isinstance(values, np.ndarray) and values.shape == (4, 256, 256)
        assert (values == number).all() and (doubled == 2 * number + 1).all()
