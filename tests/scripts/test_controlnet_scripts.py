"""The scripts of ControlNet/ as a user runs them, on a random model of 0.2 million parameters."""

import json
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusion_world import HEIGHT, ROOT, WIDTH, Refusal, write_cityscapes
from safetensors.torch import load_file, save_file
from script_runs import Script, run_script

from genval.diffusion.training.settings import ControlNetTrainingSettings
from genval.reproduction.guard import signal_group
from genval.runtime.flags import parse_settings

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
def test_either_format_becomes_either(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, refused: Refusal
) -> None:
    """A ControlNet as one original file generates the same images as its folder, and is converted back."""
    tool, whole = "ControlNet/tool_add_control.py", tmp_path / "controlnet_cs.ckpt"
    result = run_script(tool, base_folder, whole, "--controlnet", controlnet_folder)
    assert result.returncode == 0 and "Wrote the base and the ControlNet" in result.stdout, result.stderr
    refused([tool, base_folder, whole], "exists", "--overwrite")
    result = run_script(tool, whole, tmp_path / "again", "--controlnet", whole)
    assert result.returncode == 0, result.stderr
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (controlnet_folder / name).read_bytes()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "again", controlnet_folder)]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]

    for base, controlnet, folder in ((whole, whole, "a"), (base_folder, controlnet_folder, "b")):
        command = transfer_command(base, controlnet, city, tmp_path / folder, "--domain", "fog", "--limit", 2)
        if controlnet == whole:  # its own base is the one to take
            del command[command.index("--base") : command.index("--base") + 2]
        result = run_script(*command)
        assert result.returncode == 0, result.stderr
    generated = [contents(tmp_path / folder / "fog/leftImg8bit") for folder in ("a", "b")]
    assert len(generated[0]) == 2 and generated[0] == generated[1]


@pytest.mark.slow
def test_a_new_control_as_an_original_file(base_folder: Path, tmp_path: Path) -> None:
    tool, start = "ControlNet/tool_add_control.py", tmp_path / "control_seg.safetensors"
    assert run_script(tool, base_folder, start, "--seed", 3).returncode == 0
    assert run_script(tool, start, tmp_path / "named", "--export_original", "--seed", 3).returncode == 0
    one, other = load_file(start), torch.load(tmp_path / "named.ckpt", weights_only=True)["state_dict"]
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not any(other[key].any() for key in other if "zero_convs" in key or "middle_block_out" in key)


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(base_folder: Path, city: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    run_script("ControlNet/tool_add_control.py", base_folder, start)
    steps = ["--images_every", 0, "--checkpoint_every", 2, "--max_steps", 30, "--run", "r", "--resume", "auto"]
    whole = train_command(base_folder, start, city, tmp_path / "whole", *steps)
    assert run_script(*whole).returncode == 0

    halves = train_command(base_folder, start, city, tmp_path / "halves", *steps)
    process = Script(*halves)
    checkpoints = tmp_path / "halves/logs/r/lightning_logs/version_0/checkpoints"
    wait_for(process, lambda: any(checkpoints.glob("step=*.ckpt")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "halves/trained").exists()
    result = run_script(*halves)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "whole/trained") == contents(tmp_path / "halves/trained")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_training_that_is_told_to_end_resumes_to_the_same_weights(
    base_folder: Path, city: Path, tmp_path: Path, devices: int
) -> None:
    start = tmp_path / "start"
    run_script("ControlNet/tool_add_control.py", base_folder, start)
    flags = ["--images_every", 0, "--max_steps", 30, "--run", "r", "--resume", "auto", "--devices", devices]
    whole = train_command(base_folder, start, city, tmp_path / "whole", *flags, "--log_every", 1)
    assert run_script(*whole).returncode == 0

    halves = train_command(base_folder, start, city, tmp_path / "halves", *flags, "--log_every", 1)
    process = Script(*halves)
    logs = tmp_path / "halves/logs/r/lightning_logs/version_0"
    wait_for(process, (logs / "metrics.csv").exists)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(60)
    assert process.returncode == 143 and not signal_group(process.pid, 0), err
    assert err.count("The training ends after this step") == 1 and "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted: add --resume auto --run r to resume."
    (checkpoint,) = logs.glob("checkpoints/*.ckpt")  # --checkpoint_every is 500
    assert 0 < int(checkpoint.stem.removeprefix("step=")) < 30
    result = run_script(*halves)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "whole/trained") == contents(tmp_path / "halves/trained")


@pytest.mark.slow
def test_ctrl_c_ends_a_training_with_advice(base_folder: Path, city: Path, tmp_path: Path) -> None:
    run_script("ControlNet/tool_add_control.py", base_folder, tmp_path / "start")
    flags = ["--max_steps", 5000, "--images_every", 0, "--devices", 2]
    command = train_command(base_folder, tmp_path / "start", city, tmp_path, *flags)
    # Programs that a shell runs in the background ignore Ctrl-C, and so do those that they start.
    start = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); del sys.argv[0]; "
    process = Script("-c", f"{start} runpy.run_path(sys.argv[0], run_name='__main__')", *command)
    wait_for(process, lambda: list((tmp_path / "logs/0").rglob("metrics.csv")))
    signal_group(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.count("interrupted: add --resume auto --run 0 to resume.") == 1 and "Traceback" not in err
    assert len(list((tmp_path / "logs/0").rglob("step=*.ckpt"))) == 1


def wait_for(process: Script, condition: object, seconds: float = 120) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_generation_resumes_to_the_same_bytes(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "halves", "--domain", "night")
    command[command.index("--num_samples") + 1] = 30
    process = Script(*command)
    images = tmp_path / "halves/night/leftImg8bit/val/lindau"
    wait_for(process, lambda: images.is_dir() and len(list(images.iterdir())) >= 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(images.iterdir())) < 30
    assert run_script(*command).returncode == 0
    command[command.index(tmp_path / "halves")] = tmp_path / "whole"
    assert run_script(*command).returncode == 0
    # The settings hold the output's path, which differs here.
    halves, whole = (contents(tmp_path / name, ("settings.json",)) for name in ("halves", "whole"))
    assert len(whole) == 3 * 30 + 1 and halves == whole


def test_an_error_recommends_a_command_with_the_preset(city: Path, tmp_path: Path, refused: Refusal) -> None:
    command = ["ControlNet/style_transfer.py", "--preset", "mini", "--generator", "translate", "--domain", "fog"]
    command += ["--data_dir", city, "--translator", tmp_path]
    refused(command, "Run: python ControlNet/train_translation.py --preset mini, or give --translator")


@pytest.mark.slow
def test_a_smaller_number_of_images_changes_nothing_of_a_finished_set(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "images", "--domain", "fog")
    assert run_script(*command, "--num_samples", 12).returncode == 0
    before = contents(tmp_path / "images/fog")
    for number in (2, 12):
        result = run_script(*command, "--num_samples", number)
        assert f"Wrote {number} images (0 new" in result.stdout, result.stderr
        assert contents(tmp_path / "images/fog") == before


@pytest.mark.slow
def test_strengths_of_a_domain_have_the_same_frames_and_seeds(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, refused: Refusal
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path, "--domain", "fog", "--num_samples", 2)
    result = run_script(*command, "--domain_strength", "0,0.25,1")
    assert result.returncode == 0, result.stderr
    folders = [tmp_path / name for name in ("fog-0.0", "fog-0.25", "fog")]
    lines = [[json.loads(line) for line in (f / "manifest.jsonl").read_text().splitlines()] for f in folders]
    for one in lines[:-1]:
        assert [(line["id"], line["seed"], line["box"]) for line in one] == [
            (line["id"], line["seed"], line["box"]) for line in lines[-1]
        ]
    assert [of[0].get("domain_strength") for of in lines] == [0.0, 0.25, None]
    images = [contents(folder / "leftImg8bit") for folder in folders]
    assert len({tuple(sorted(of.items())) for of in images}) == 3
    masks = [contents(folder / "gtFine") for folder in folders]
    assert masks[0] == masks[1] == masks[2]
    alone = run_script(*command, "--output_dir", tmp_path / "alone", "--domain_strength", "1")
    assert alone.returncode == 0 and contents(tmp_path / "alone/fog/leftImg8bit") == images[2]
    refused([*command, "--domain_strength", "0,1.5"], "--domain_strength: expected numbers from 0 to 1", "1.5")


@pytest.mark.slow
def test_dry_run_limit_and_free_text(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, refused: Refusal
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "out", "--domain", "Dense fog")
    dry = run_script(*command, "--dry_run")
    assert dry.returncode == 0 and "in Dense fog" in dry.stdout and not (tmp_path / "out").exists()
    done = run_script(*command, "--limit", 2, "--from_train")
    assert done.returncode == 0 and "first batch" in done.stderr
    assert len(list((tmp_path / "out/dense-fog/gtFine/train/aachen").iterdir())) == 2
    for more, numbers in ([], (4, 2)), (["--overwrite"], (6, 0)):
        dry = run_script(*command, "--from_train", "--dry_run", *more).stdout
        assert f"Would generate {numbers[0]} images from" in dry and f"({numbers[1]} are finished)" in dry
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
    refused(attempt("--prompt_template", "{caption}, in fog"), "--prompt_template", "{domain}")
    refused(attempt("--without_replacement"), "--without_replacement", "6 images need as many frames, found 3")
    refused(attempt("--prompt_file", tmp_path / "none.txt"), "--prompt_file", "none.txt")
    refused(attempt("--sampler", "lcm"), "--sampler lcm needs", "--lora")
    refused(attempt("--lora", tmp_path / "none.safetensors"), "no LoRA at", "none.safetensors")
    refused(attempt("--large", "tiled", "--tile", 20), "--tile 20", "multiples of 8")
    partial = tmp_path / "partial.jsonl"
    partial.write_text((city / "training/val.jsonl").read_text().splitlines()[0])
    refused(attempt("--captions", partial), "No caption for", "lindau_00000", "--skip_bad")
    refused([*attempt(), "--data_dir", tmp_path / "none"], "or give --data_dir PATH")
    refused(attempt("--base", "models/v1-5-pruned.ckpt"), "No checkpoint at", "models/v1-5-pruned.ckpt")
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
    refused([*command, "--devices", "many"], "--devices many", "are not available")
    (tmp_path / "trained").write_text("in the way")  # found before the training, not after it
    refused(command, "Cannot write", "trained")
    (tmp_path / "trained").unlink()
    assert not (tmp_path / "logs").exists()
    refused([*command, "--lr", 1e30, "--max_steps", 3], "not finite", "--precision")
    assert not list((tmp_path / "logs").rglob("*.ckpt")) and not list((tmp_path / "trained").rglob("*.safetensors"))
    refused([*command, "--precision", "bf16-true"], "bf16-mixed")
    refused([*command, "--optimizer", "adamw8bit"], "pip install bitsandbytes")
    refused([*command, "--val_segmenter", "none", "--images_every", 1], "none")
    shutil.copytree(controlnet_folder, tmp_path / "trained", dirs_exist_ok=True)
    refused(command, "holds a ControlNet already", "--overwrite")
    shutil.rmtree(tmp_path / "trained")
    (tmp_path / "other").write_text("no checkpoint")
    refused([*command, "--resume", tmp_path / "other"], "--resume", "other is not a checkpoint")
    mask = next((city / "gtFine/train/aachen").iterdir())
    cv2.imwrite(str(mask), np.zeros((8, 8), np.uint8))
    refused([*command, "--cache_latents"], "but its mask", mask.name)
    refused(command, "but its mask", mask.name)
    image = next((city / "leftImg8bit/train/aachen").iterdir())
    image.unlink()
    refused(command, image.name, "does not exist")
    refused([*command, "--jsonl", "none.jsonl"], "No captions", "clip_int.py --dataset cityscapes --split train")
    refused([*command, "--lr", 0], "--lr")
    assert not (tmp_path / "trained").exists()


def test_train_says_what_it_would_do(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mask = next((city / "gtFine/train/aachen").iterdir())
    mask.write_bytes(mask.read_bytes()[:60])
    command = train_command(base_folder, controlnet_folder, city, tmp_path, "--dry_run", "--skip_bad")
    monkeypatch.setattr(
        sys, "argv", list(map(str, [*command, "--preset", "published", "--precompute", tmp_path / "e"]))
    )
    runpy.run_path(str(ROOT / "ControlNet/train.py"), run_name="__main__")
    output = capsys.readouterr().out
    # 5 pairs, 150 epochs, 2 x 2 a step
    assert "Would train 188 steps of 2 x 2 x 1" in output and "on 5 pairs, 32-true" in output
    assert not any((tmp_path / name).exists() for name in ("logs", "trained", "e"))


@pytest.mark.slow
def test_two_processes_train_one_network(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    flags = ["--devices", 2, "--max_steps", 2, "--images_every", 0, "--precision", "32-true"]
    train = train_command(base_folder, controlnet_folder, city, tmp_path, *flags)
    result = run_script(*train, "--dry_run")
    assert result.returncode == 0 and result.stdout.count("Would train 2 steps of 2 x 2 x 2 from") == 1, result.stderr
    assert not (tmp_path / "logs").exists()
    result = run_script(*train)
    assert result.returncode == 0 and result.stdout.count("Trained 2 steps") == 1, result.stderr
    assert (tmp_path / "trained/config.json").exists() and len(list((tmp_path / "logs").iterdir())) == 1
    result = run_script(*train)  # the output exists
    assert result.returncode == 2 and result.stderr.count("error:") == 1 and "Traceback" not in result.stderr


@pytest.mark.slow
def test_both_processes_end_when_the_first_is_told_to(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    flags = ["--devices", 2, "--max_steps", 100000, "--images_every", 0, "--checkpoint_every", 5]
    process = Script(*train_command(base_folder, controlnet_folder, city, tmp_path, *flags))
    wait_for(process, lambda: any((tmp_path / "logs").rglob("step=*.ckpt")))
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(60)[1]
    assert process.returncode == 143 and errors.count("add --resume auto") == 1, errors
    assert not signal_group(process.pid, 0) and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])  # the second process reads the damaged image first, and the first one
def test_a_damaged_image_in_one_of_two_processes_ends_both_with_one_line(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path, seed: int
) -> None:
    image = min((city / "leftImg8bit/train/aachen").iterdir())
    image.write_bytes(image.read_bytes()[:60])
    flags = ["--devices", 2, "--max_steps", 30, "--images_every", 0, "--batch_size", 1, "--accumulate", 1]
    train = train_command(base_folder, controlnet_folder, city, tmp_path, *flags, "--seed", seed)
    result = run_script(*train)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.count("error:") == 1 and f"\nerror: {image} cannot be decoded" in result.stderr


@pytest.mark.slow
def test_lines_of_two_processes_are_printed_once(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    image = min((city / "leftImg8bit/train/aachen").iterdir())
    image.write_bytes(image.read_bytes()[:60])
    flags = ["--devices", 2, "--max_steps", 1, "--images_every", 0, "--skip_bad"]
    result = run_script(*train_command(base_folder, controlnet_folder, city, tmp_path, *flags))
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    assert said.count("skipped ") == said.count("Initializing distributed") == said.count("GPU available") == 1, said


def test_the_published_preset_is_what_was_published() -> None:
    settings = parse_settings(ControlNetTrainingSettings, ["--preset", "published"])
    config = settings.config
    assert (settings.precision, config.batch_size, config.accumulate, config.max_epochs) == ("32-true", 8, 16, 150)
    assert (config.lr, config.caption_dropout, config.ema, config.image_resize) == (1e-5, 0, 0, "nearest")
    assert (config.flip, config.optimizer, config.weight_decay) == (False, "adamw", 0.01)
    assert (config.warmup_steps, config.gradient_clip, config.height, config.width) == (0, 0, 512, 512)
    assert (config.compile, settings.float32_matmul) == (False, "highest")


@pytest.mark.slow
def test_training_from_disk_scored_by_a_segmenter(base_folder: Path, city: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    run_script("ControlNet/tool_add_control.py", base_folder, start, "--hint_encoding", "one_hot")
    more = ["--max_steps", 2, "--images_every", 1, "--num_images", 2, "--val_segmenter", "mini-fast-scnn"]
    more += ["--precompute", tmp_path / "encoded", "--crops", 2, "--export_original", "--overwrite", "--run", "r"]
    result = run_script(*train_command(base_folder, start, city, tmp_path, *more))
    assert result.returncode == 0, result.stderr
    assert "weights_only" not in result.stderr
    assert (tmp_path / "encoded/encoded.json").exists() and (tmp_path / "trained.ckpt").exists()
    run = tmp_path / "logs/r"
    best = json.loads((run / "best/agreement.json").read_text())
    assert best["step"] in (1, 2) and 0 <= best["mask_agreement"] <= 1
    assert "mask_agreement" in (run / "lightning_logs/version_0/metrics.csv").read_text()
    assert json.loads((tmp_path / "trained/config.json").read_text())["hint_encoding"] == "one_hot"
    result = run_script(*transfer_command(base_folder, run / "best", city, tmp_path / "images", "--domain", "fog"))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_bad_frames_are_skipped_and_other_frames_are_not_mixed_in(
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
    assert done.stdout.count("skipped ") == 2 and "2 bad files skipped" in done.stdout
    assert "cannot be decoded" in done.stdout and "image without a mask" in done.stdout
    captions = city / "training/val.jsonl"
    captions.write_text(captions.read_text().replace("trees", "bushes"))
    command = [*command, "--skip_bad"]
    refused(command, "frames_hash", "--overwrite")


@pytest.mark.slow
def test_phrasings_large_images_and_a_fast_sampler(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    unet = load_file(base_folder / "unet/diffusion_pytorch_model.safetensors")
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    rows, columns = unet[f"{layer}.weight"].shape
    lora = {f"unet.{layer}.lora_A.weight": np.ones((2, columns)), f"unet.{layer}.lora_B.weight": np.ones((rows, 2))}
    save_file({key: torch.from_numpy(value).float() for key, value in lora.items()}, tmp_path / "l.safetensors")
    (tmp_path / "phrasings.txt").write_text("in thick smoke\nin smoke\n")
    flags = ["--domain", "thick smoke", "--prompt_file", tmp_path / "phrasings.txt", "--no_captions"]
    flags += ["--sampler", "lcm", "--lora", tmp_path / "l.safetensors", "--guidance_scale", 1.5]
    flags += ["--frame", "whole", "--height", 64, "--large", "upscaled", "--tile", 32, "--limit", 3, "--batch_size", 3]
    flags += ["--without_replacement", "--num_samples", 3]
    done = run_script(*transfer_command(base_folder, controlnet_folder, city, tmp_path / "out", *flags))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out/thick-smoke"
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len({line["source"] for line in lines}) == 3
    assert {line["prompt"] for line in lines} <= {"in thick smoke", "in smoke"}
    for line in lines:
        assert cv2.imread(str(folder / line["image"])).shape == (64, 128, 3)
        assert cv2.imread(str(folder / line["mask"])).shape[:2] == (64, 128)
        assert line["lora_hash"] and line["width"] == 128


@pytest.mark.slow
def test_frames_without_a_caption_are_counted(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    first = json.loads((city / "training/val.jsonl").read_text().splitlines()[0])
    table = tmp_path / "captions_cityscapes.json"
    table.write_text(json.dumps({"cityscapes": {first["image"]: "a road"}}))
    flags = ["--domain", "fog", "--captions", table, "--skip_bad", "--limit", 2]
    done = run_script(*transfer_command(base_folder, controlnet_folder, city, tmp_path / "out", *flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped ") == 2 and "2 bad files skipped" in done.stdout
    assert done.stdout.count(f"no caption in {table}") == 2
    lines = [json.loads(line) for line in (tmp_path / "out/fog/manifest.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["a road, in fog"] * 2


@pytest.mark.slow
def test_one_process_s_error_ends_two_with_one_line(
    base_folder: Path, controlnet_folder: Path, city: Path, tmp_path: Path
) -> None:
    command = transfer_command(base_folder, controlnet_folder, city, tmp_path / "out", "--domain", "fog")
    (tmp_path / "out").write_text("in the way")
    done = run_script(*command, "--devices", 2)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
