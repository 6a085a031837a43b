"""Two machines that share a folder, as two processes of one machine: torchrun and SLURM (docs/several-machines.md)."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from diffusion_world import HEIGHT, ROOT, WIDTH, write_cityscapes
from relis_world import make_world
from script_runs import Script

from genval.diffusion.generators import generate_domain
from genval.diffusion.settings import SamplingConfig, StyleTransferSettings
from genval.runtime.settings import DeviceSettings

IMAGES = 40


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def contents(folder: Path) -> dict[str, bytes]:
    # The settings hold the number of machines.
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "settings.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_a_lost_machine_of_slurm_leaves_a_folder_that_the_next_run_completes(
    base_folder: Path, controlnet_folder: Path, tmp_path: Path
) -> None:
    city = write_cityscapes(tmp_path / "cityscapes")
    images = tmp_path / "two/fog/leftImg8bit/val/lindau"
    command = ["ControlNet/style_transfer.py", "--domain", "fog", "--num_samples", IMAGES, "--batch_size", 2]
    command += ["--base", base_folder, "--controlnet", controlnet_folder, "--data_dir", city, "--height", HEIGHT]
    command += ["--width", WIDTH, "--steps", 5, "--output_dir", tmp_path / "two", "--accelerator", "cpu"]
    job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "genval", "SLURM_JOB_ID": "1"}
    job |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0", "MASTER_PORT": str(free_port())}
    job |= {"SLURM_NNODES": "2"}
    command += ["--devices", 1, "--num_nodes", 2]
    ranks = [{"SLURM_PROCID": str(number), "SLURM_NODEID": str(number)} for number in range(2)]
    nodes = [Script(*command, environment={**job, **rank}) for rank in ranks]
    end = time.monotonic() + 120
    while len(list(images.glob("*.png"))) < 4:
        assert all(node.poll() is None for node in nodes) and time.monotonic() < end
        time.sleep(0.01)
    nodes[1].send_signal(signal.SIGKILL)
    outputs = [node.communicate(timeout=120) for node in nodes]
    made = len(list(images.glob("*.png")))
    assert nodes[0].returncode != 0 and 4 <= made < IMAGES, outputs

    def generate(folder: str) -> None:
        generate_domain(
            StyleTransferSettings(
                domain="fog",
                num_samples=IMAGES,
                base=str(base_folder),
                controlnet=str(controlnet_folder),
                data_dir=str(city),
                height=HEIGHT,
                width=WIDTH,
                batch_size=2,
                sampling=SamplingConfig(5),
                output_dir=str(tmp_path / folder),
                device=DeviceSettings(accelerator="cpu", devices="1"),
            )
        )

    generate("two")
    generate("one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
def test_two_machines_of_torchrun_evaluate_as_one(tmp_path: Path) -> None:
    root, port = make_world(tmp_path), free_port()

    def evaluate(folder: str, launcher: list[object], *flags: object) -> Script:
        command = ["relis/eval.py", "--trg_dataset", "Cityscapes", "--model_arch", "relis_world:slow_segmenter"]
        places = ["--datasets_dir", root / "datasets", "--root_exp_dir", tmp_path / folder]
        more = ["--accelerator", "cpu", "--devices", 1, "--batch_size", 1, *flags]
        paths = os.pathsep.join((str(ROOT / "tests/scripts"), str(ROOT)))
        return Script(*launcher, *command, *places, *more, environment={"PYTHONPATH": paths})

    run = ["-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1]
    run += ["--master_addr", "127.0.0.1", "--master_port", port, "--node_rank"]
    nodes = [evaluate("two", [*run, n], "--num_nodes", 2) for n in range(2)]
    for process in (*nodes, evaluate("one", [])):
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
