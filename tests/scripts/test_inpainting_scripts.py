"""The two inpainting scripts of ood_objects/ as a user runs them, on a random model of 0.2 million parameters."""

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
from diffusion_world import ROOT, Refusal
from script_runs import Script, run_script

from genval.datasets.ood_objects import object_folder
from genval.datasets.reading import read_image
from genval.runtime.paths import REPO_ROOT

NAMES = ["lion", "../x", "Löwe", "a" * 300]


@pytest.fixture
def inpaint(inpainting_folder: Path, city_folder: Path, tmp_path: Path) -> Any:
    def command(*more: object) -> list[object]:
        flags = ["--model", inpainting_folder, "--data_dir", city_folder, "--output_dir", tmp_path / "inpainted"]
        flags += ["--objects", ",".join(NAMES), "--num_images", 3, "--size", 16, "--steps", 2, "--batch_size", 4]
        return ["ood_objects/sd_inpaint.py", *flags, "--accelerator", "cpu", "--devices", 1, "--num_workers", 2, *more]

    return command


@pytest.fixture
def refine(inpainting_folder: Path, tmp_path: Path) -> Any:
    def command(*more: object) -> list[object]:
        flags = ["--model", inpainting_folder, "--images_dir", tmp_path / "inpainted", "--size", 16, "--steps", 3]
        flags += ["--output_dir", tmp_path / "refined", "--batch_size", 4, "--num_workers", 2]
        return ["ood_objects/refine_gen_images.py", *flags, "--accelerator", "cpu", "--devices", 1, *more]

    return command


@pytest.fixture
def succeed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`succeed(command)`: the script's output, run in this process: a start of the libraries takes seconds."""

    def run(command: list[object]) -> str:
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        runpy.run_path(str(ROOT / str(command[0])), run_name="__main__")
        return capsys.readouterr().out

    return run


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "settings.json")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_from_streets_to_refined_objects_and_masks(
    inpaint: Any, refine: Any, succeed: Any, refused: Refusal, grounding_models: Any, tmp_path: Path
) -> None:
    done = run_script(*inpaint())
    assert done.returncode == 0, done.stderr
    output = done.stdout
    inpainted, refined = tmp_path / "inpainted", tmp_path / "refined"
    assert output.splitlines()[-1] == f"Wrote 12 images (12 new) and manifest.jsonl to {inpainted}"
    assert [line["object"] for line in lines(inpainted)] == [name for name in NAMES for _ in range(3)]
    assert {path.name for path in inpainted.iterdir() if path.is_dir()} == {object_folder(name) for name in NAMES}
    assert not (tmp_path / "x").exists()
    settings = json.loads((inpainted / "settings.json").read_text())["settings"]
    assert settings["guidance_scale"] == 15 and settings["strength"] == 1 and settings["min_box"] == 256
    before = contents(inpainted)
    assert "(0 new" in succeed(inpaint()) and contents(inpainted) == before
    # More objects and more images are added to what is there; other settings do not.
    assert "(3 new" in succeed(inpaint("--objects", "lion,zebra", "--num_images", 3))
    assert before.items() - contents(inpainted).items() == {("manifest.jsonl", before["manifest.jsonl"])}
    refused(inpaint("--steps", 3), "lion/0, which was made with steps 2 (now 3)", "--overwrite")
    # The second of two processes was killed: what it left is older than what comes.
    (inpainted / "manifest.jsonl").rename(inpainted / "manifest.rank1.jsonl")
    succeed(inpaint("--objects", "zebra", "--steps", 3, "--overwrite"))
    assert [line["steps"] for line in lines(inpainted) if line["object"] == "zebra"] == [3] * 3

    assert "Wrote 15 images (15 new" in succeed(refine())
    assert lines(refined)[0]["prompt"] == NAMES[-1] and lines(refined)[-1]["prompt"] == "zebra"
    before = contents(refined)
    assert "(0 new" in succeed(refine()) and contents(refined) == before
    (refined / "manifest.jsonl").rename(refined / "manifest.rank1.jsonl")
    succeed(refine("--objects", "zebra", "--seed", 5, "--overwrite"))
    assert [line["run_seed"] for line in lines(refined) if line["object"] == "zebra"] == [5] * 3
    command = [
        "ood_objects/get_masks.py",
        "--images_dir",
        refined,
        "--positions_dir",
        inpainted,
        *grounding_models.flags,
    ]
    assert "images new" in succeed([*command, "--output_dir", tmp_path / "masks", "--objects", "lion,../x"])
    assert {line["object"] for line in lines(tmp_path / "masks")} == {"lion", "../x"}


@pytest.mark.slow
def test_two_processes_inpaint_what_one_inpaints(inpaint: Any, succeed: Any, tmp_path: Path) -> None:
    command = inpaint("--objects", "lion,zebra,clock")
    succeed(command)
    expected = contents(tmp_path / "inpainted")
    shutil.rmtree(tmp_path / "inpainted")
    done = run_script("tests/forking.py", *command, "--devices", 2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "inpainted") == expected and len(expected) == 3 * 9 + 1


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(inpaint: Any, succeed: Any, tmp_path: Path) -> None:
    command = inpaint("--objects", "lion,zebra", "--num_images", 24, "--steps", 6)
    process = Script(*command)
    end = time.monotonic() + 120
    while not (tmp_path / "inpainted/lion/5.png").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    succeed(command)
    halves = contents(tmp_path / "inpainted")
    shutil.rmtree(tmp_path / "inpainted")
    succeed(command)
    assert contents(tmp_path / "inpainted") == halves and len(halves) == 3 * 48 + 1


@pytest.mark.slow
def test_placement_on_the_road_samplers_and_whole_frames(
    inpaint: Any, refine: Any, succeed: Any, tmp_path: Path
) -> None:
    succeed(
        inpaint("--placement", "road", "--sampler", "dpm++", "--limit", 5, "--prompt_template", "{object} at night")
    )
    assert {line["placement"] for line in lines(tmp_path / "inpainted")} <= {"road", "published"}
    assert {line["placement_rule"] for line in lines(tmp_path / "inpainted")} == {"road"}
    assert lines(tmp_path / "inpainted")[0]["prompt"] == "lion at night"
    succeed(refine("--whole_frame", "--sampler", "unipc"))
    for line in lines(tmp_path / "refined"):
        assert read_image(tmp_path / "refined" / line["image"]).shape == (32, 64, 3)


def test_what_would_be_done(inpaint: Any, succeed: Any, tmp_path: Path) -> None:
    output = succeed(inpaint("--dry_run", "--objects", "elephant", "--seed", 3))
    assert "Would inpaint 3 images of 1 objects" in output
    assert output.strip().endswith("such as: A photo of an elephant")
    assert not (tmp_path / "inpainted").exists()


def test_mistakes_are_one_line(
    inpaint: Any, refine: Any, base_folder: Path, city_folder: Path, refused: Refusal, tmp_path: Path
) -> None:
    refused(inpaint("--model", "checkpoints/none.ckpt"), "No checkpoint at")
    refused(inpaint("--model", "checkpoints/none", "--dry_run"), "No model at")
    refused(inpaint("--model", base_folder, "--dry_run", "--strength", 2), "--denoising_strength")
    refused(inpaint("--prompt_template", "an object"), "--prompt_template", "{object}")
    refused(inpaint("--objects_file", tmp_path / "none.txt", "--data_dir", tmp_path), "--data_dir")
    refused(inpaint("--max_box", 100), "--min_box 256 --max_box 100")
    refused(inpaint("--steps", 1, "--strength", 0.3), "leaves no step")
    refused(refine(), "No images in", "Run: python ood_objects/sd_inpaint.py")
    (tmp_path / "inpainted/lion").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "inpainted/lion/0.png"), np.zeros((32, 64, 3), np.uint8))
    refused(refine(), "0_pos.json does not exist", "sd_inpaint.py")
    refused(refine("--objects", "zebra"), "No images of zebra", "found lion")
    (tmp_path / "inpainted/lion/0_pos.json").write_text('{"row": 0, "col": 0, "size": 8}')
    refused(refine("--model", "checkpoints/none", "--dry_run"), "No model at")


@pytest.mark.slow
def test_models_and_folders_that_do_not_suit_are_one_line(
    inpaint: Any, refine: Any, base_folder: Path, refused: Refusal, tmp_path: Path
) -> None:
    refused(inpaint("--model", base_folder), "is not an inpainting model", "9 input channels")
    refused(inpaint("--size", 20), "multiples of 8, found 20x20")
    refused(inpaint("--context", 1.7), "room for a crop of 27 pixels", "--max_box")
    assert not list((tmp_path / "inpainted").rglob("*.png"))
    (tmp_path / "inpainted/lion").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "inpainted/lion/0.png"), np.zeros((32, 64, 3), np.uint8))
    (tmp_path / "inpainted/settings.json").unlink()
    refused(inpaint(), "no settings.json", "--overwrite")
    for content, words in (
        ({"0.png": {"pos_mask": [30, 0], "size_mask": 8}}, "is not inside"),
        ({"1.png": {"pos_mask": [0, 0], "size_mask": 8}}, "Expected"),
    ):
        (tmp_path / "inpainted/lion/0_pos.json").write_text(json.dumps(content))
        refused(refine(), "0_pos.json", words)
    (tmp_path / "inpainted/lion/0.png").write_bytes(b"no image")
    refused(refine(), "0.png cannot be decoded")
    assert not list((tmp_path / "refined").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (REPO_ROOT / "checkpoints/mini/inpainting").exists(), reason="checkpoints/mini/inpainting is not here"
)
@pytest.mark.skipif(not (REPO_ROOT / "datasets/mini/cityscapes").exists(), reason="datasets/mini is not rendered")
def test_the_mini_world(succeed: Any, tmp_path: Path) -> None:
    flags = ["--preset", "mini", "--accelerator", "cpu"]
    inpainted, refined = tmp_path / "inpainted", tmp_path / "refined"
    succeed(["ood_objects/sd_inpaint.py", *flags, "--objects", "lion", "--num_images", 2, "--output_dir", inpainted])
    succeed(["ood_objects/refine_gen_images.py", *flags, "--images_dir", inpainted, "--output_dir", refined])
    for line in lines(refined):
        image, source = (read_image(folder / line["image"]) for folder in (refined, inpainted))
        assert image.shape == (256, 512, 3) and not np.array_equal(image, source)
