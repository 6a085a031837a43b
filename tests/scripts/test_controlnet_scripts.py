"""The scripts of ControlNet/ as a user runs them, on a random model of 0.2 million parameters."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diffusion_world import HEIGHT, ROOT, WIDTH, Refusal, run_script, write_cityscapes
from safetensors.torch import load_file, save_file

SIZE = ["--height", HEIGHT, "--width", WIDTH, "--accelerator", "cpu"]


def contents(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in leave_out)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def city(tmp_path: Path) -> Path:
    return write_cityscapes(tmp_path / "cityscapes")


def transfer_command(base: Path, controlnet: Path, city: Path, output: Path, *more: object) -> list[object]:
    flags = ["--base", base, "--controlnet", controlnet, "--data_dir", city, "--output_dir", output, *SIZE]
    return ["ControlNet/style_transfer.py", "--num_samples", 6, "--batch_size", 2, "--ddim_steps", 2, *flags, *more]


def train_command(base: Path, controlnet: Path, city: Path, folder: Path, *more: object) -> list[object]:
    flags = ["--base", base, "--controlnet", controlnet, "--data_dir", city, *SIZE, "--workers", 2]
    flags += ["--output", folder / "trained", "--logs_dir", folder / "logs", "--ddim_steps", 2]
    return ["ControlNet/train.py", "--batch_size", 2, "--accumulate", 2, "--lr", 1e-3, *flags, *more]


@pytest.mark.slow
def test_from_a_base_to_generated_fog(base_folder: Path, city: Path, tmp_path: Path, refused: Refusal) -> None:
    start = tmp_path / "start"
    result = run_script("ControlNet/tool_add_control.py", base_folder, start, "--hint_init", "hinges")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith(str(start))
    refused(["ControlNet/tool_add_control.py", base_folder, start], "exists", "--overwrite")

    train = train_command(base_folder, start, city, tmp_path, "--ema", 0.5, "--save_dtype", "fp16")
    result = run_script(*train, "--max_steps", 2, "--images_every", 2, "--num_images", 2, "--checkpoint_every", 2)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "logs/0"
    assert (run / "lightning_logs/version_0/checkpoints/step=2.ckpt").exists()
    assert cv2.imread(str(run / "image_log/step_000002.png")).shape == (2 * HEIGHT, 3 * WIDTH, 3)
    assert json.loads((run / "settings.json").read_text())["settings"]["max_steps"] == 2
    assert any(run.rglob("events.out.tfevents*"))
    assert "trained" in result.stdout.splitlines()[-1]
    assert (
        str(load_file(tmp_path / "trained/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype)
        == "torch.float16"
    )

    result = run_script(
        *transfer_command(base_folder, tmp_path / "trained", city, tmp_path / "images", "--domain", "fog")
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "images/fog"
    assert result.stdout.splitlines()[-1].endswith(f"to {folder}")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all((folder / line[kind]).exists() for line in lines for kind in ("image", "mask"))
    assert lines[0]["prompt"].endswith(", in fog") and lines[0]["run_seed"] == 0 and lines[0]["seed"] > 0


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(base_folder: Path, city: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    run_script("ControlNet/tool_add_control.py", base_folder, start)
    steps = ["--images_every", 0, "--checkpoint_every", 2, "--max_steps", 30, "--run", "r", "--resume", "auto"]
    whole = train_command(base_folder, start, city, tmp_path / "whole", *steps)
    assert run_script(*whole).returncode == 0

    halves = train_command(base_folder, start, city, tmp_path / "halves", *steps)
    process = subprocess.Popen([sys.executable, *map(str, halves)], cwd=ROOT, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "halves/logs/r/lightning_logs/version_0/checkpoints"
    wait_for(process, lambda: any(checkpoints.glob("step=*.ckpt")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "halves/trained").exists()
    result = run_script(*halves)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "whole/trained") == contents(tmp_path / "halves/trained")


def wait_for(process: subprocess.Popen[bytes], condition: object, seconds: float = 120) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_generation_goes_on_to_the_same_bytes(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "halves", "--domain", "night")
    command[command.index("--num_samples") + 1] = 30
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL)
    images = tmp_path / "halves/night/leftImg8bit/val/lindau"
    wait_for(process, lambda: images.is_dir() and len(list(images.iterdir())) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(images.iterdir())) < 30
    assert run_script(*command).returncode == 0
    command[command.index(tmp_path / "halves")] = tmp_path / "whole"
    assert run_script(*command).returncode == 0
    # The settings hold the output's path, which differs here.
    halves, whole = (contents(tmp_path / name, ("settings.json",)) for name in ("halves", "whole"))
    assert len(whole) == 3 * 30 + 1 and halves == whole


@pytest.mark.slow
def test_dry_run_limit_and_free_text(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, refused: Refusal
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "out", "--prompt", "Dense fog")
    dry = run_script(*command, "--dry_run")
    assert dry.returncode == 0 and "in Dense fog" in dry.stdout and not (tmp_path / "out").exists()
    assert run_script(*command, "--limit", 2, "--from_train").returncode == 0
    assert len(list((tmp_path / "out/dense-fog/gtFine/train/aachen").iterdir())) == 2
    refused([*command, "--from_train", "--seed", 1], "seed 0 (now 1)", "--overwrite")
    assert run_script(*command, "--limit", 1, "--from_train", "--seed", 1, "--overwrite").returncode == 0
    assert len(list((tmp_path / "out/dense-fog/gtFine/train/aachen").iterdir())) == 1


def test_bad_input_of_style_transfer(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, refused: Refusal
) -> None:
    output = tmp_path / "out"

    def attempt(*more: object, base: Path = base_folder, controlnet: Path = controlnet_folder) -> list[object]:
        return transfer_command(base, controlnet, city, output, "--domain", "fog", *more)

    refused(attempt(controlnet=tmp_path / "none"), "No model at", str(tmp_path / "none"))
    broken = tmp_path / "broken"
    shutil.copytree(controlnet_folder, broken)
    weights = load_file(broken / "diffusion_pytorch_model.safetensors")
    weights["conv_in.wight"] = weights.pop("conv_in.weight")
    save_file(weights, broken / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    refused(attempt(controlnet=broken), "missing keys: conv_in.weight", "unexpected keys: conv_in.wight")
    unknown = attempt()
    unknown[unknown.index("fog")] = "fogg"
    refused(unknown, "Unknown domain 'fogg'", "Did you mean fog?")
    refused(attempt("--height", 30), "multiples of 8")
    refused(attempt("--captions", tmp_path / "none.jsonl"), "No captions")
    refused(attempt("--guidance_scale", "nan"), "--guidance_scale: expected a finite number")
    refused(attempt("--prompt_template", "{caption.x}"), "--prompt_template")
    refused([*attempt(), "--data_dir", tmp_path / "none"], "or give --data_dir PATH")
    refused(attempt("--base", "models/v1-5-pruned.ckpt"), "original format")
    assert not output.exists()

    output.write_text("in the way")
    refused(attempt(), "Cannot write", str(output))
    output.unlink()

    for mask in (city / "gtFine/val/lindau").iterdir():
        mask.write_bytes(mask.read_bytes()[:60])
    refused(attempt(), "cannot be decoded", "gtFine_labelIds.png")
    assert not list(output.rglob("*.png")) and not list(output.rglob("manifest.jsonl"))


def test_bad_input_of_train(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, refused: Refusal
) -> None:
    command = train_command(base_folder, controlnet_folder, city, tmp_path, "--max_steps", 1, "--images_every", 0)
    refused([*command, "--devices", "many"], "--devices many", "cannot be had")
    (tmp_path / "trained").write_text("in the way")  # found before the training, not after it
    refused(command, "Cannot write", "trained")
    (tmp_path / "trained").unlink()
    assert not (tmp_path / "logs").exists()
    refused([*command, "--lr", 1e30, "--max_steps", 3], "not finite", "--precision")
    assert not list((tmp_path / "logs").rglob("*.ckpt")) and not list((tmp_path / "trained").rglob("*.safetensors"))
    (tmp_path / "other").write_text("no checkpoint")
    refused([*command, "--resume", tmp_path / "other"], "--resume", "other is not a checkpoint")
    mask = next((city / "gtFine/train/aachen").iterdir())
    cv2.imwrite(str(mask), np.zeros((8, 8), np.uint8))
    refused([*command, "--cache_latents"], "but its mask", mask.name)
    refused(command, "but its mask", mask.name)
    image = next((city / "leftImg8bit/train/aachen").iterdir())
    image.unlink()
    refused(command, image.name, "does not exist")
    refused([*command, "--jsonl", "none.jsonl"], "No captions")
    refused([*command, "--lr", 0], "--lr")
    assert not (tmp_path / "trained").exists()


@pytest.mark.slow
def test_bad_frames_are_set_aside_and_other_frames_are_not_mixed_in(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, refused: Refusal
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "out", "--domain", "fog", "--limit", 2)
    first, second = sorted((city / "leftImg8bit/val/lindau").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:60])
    mask = city / "gtFine/val/lindau" / second.name.replace("leftImg8bit", "gtFine_labelIds")
    mask.unlink()
    refused(command, "without a mask", "--skip_bad")
    done = run_script(*command, "--skip_bad")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped ") == 2 and "2 bad files set aside" in done.stdout
    assert "cannot be decoded" in done.stdout and "image without a mask" in done.stdout
    captions = city / "training/val.jsonl"
    captions.write_text(captions.read_text().replace("trees", "bushes"))
    command = [*command, "--skip_bad"]
    refused(command, "frames_hash", "--overwrite")


@pytest.mark.slow
def test_one_process_s_error_ends_two_with_one_line(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "out", "--domain", "fog")
    (tmp_path / "out").write_text("in the way")
    done = run_script(*command, "--devices", 2)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
