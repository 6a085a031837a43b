"""ControlNet/clip_int.py as a user runs it, on models of a few thousand random weights."""

import json
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from captions_world import CaptionModels
from diffusion_world import ROOT, Refusal, write_cityscapes
from script_runs import Script, run_script

from benchmarks.components.captioners import write_tiny

SCRIPT = "ControlNet/clip_int.py"


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    write_cityscapes(tmp_path / "datasets" / "cityscapes")
    return tmp_path / "datasets"


def command(models: CaptionModels, datasets: Path, *more: object) -> list[object]:
    where = ["--datasets_dir", datasets, "--output_dir", datasets.parent / "captions"]
    return [SCRIPT, "--dataset", "cityscapes", *models.flags, *where, "--max_tokens", 6, "--batch_size", 2, *more]


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[object]], str]:
    """Run the script in this process (a start of the libraries takes seconds); gives what it printed."""

    def run(arguments: Sequence[object]) -> str:
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "settings.json"
    }


@pytest.mark.slow
def test_a_data_set_is_captioned_and_trained_on(caption_models: CaptionModels, datasets: Path) -> None:
    (datasets / "drop.txt").write_text("street\na\n[\n")
    done = run_script(*command(caption_models, datasets, "--jsonl", "--filter", datasets / "drop.txt"))
    assert done.returncode == 0, done.stderr
    folder = datasets.parent / "captions"
    assert done.stdout.splitlines()[-1].endswith(f"to {folder / 'captions_cityscapes.json'}")
    captions = json.loads((folder / "captions_cityscapes.json").read_text())["cityscapes"]
    assert len(captions) == 9  # train and val
    lines = [json.loads(line) for line in (folder / "captions_cityscapes.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == list(captions)
    root = datasets / "cityscapes"
    assert all((root / line[key]).is_file() for line in lines for key in ("image", "conditioning_image"))
    settings = json.loads((folder / "cityscapes/settings.json").read_text())["settings"]
    assert settings["mode"] == "fast" and set(settings["filter_report"]["dropped"]) <= {"street", "a", "["}

    from genval.diffusion.pairs import read_pairs

    assert len(read_pairs(folder / "captions_cityscapes.jsonl", root)) == 9


@pytest.mark.slow
def test_no_compiler_is_imported(caption_models: CaptionModels, datasets: Path) -> None:
    done = run_script("-X", "importtime", *command(caption_models, datasets, "--limit", 1))
    assert done.returncode == 0 and "transformers.modeling_utils" in done.stderr, done.stderr
    for module in ("torch._dynamo.convert_frame", "torch.distributed.tensor", "scipy.optimize._optimize"):
        assert module not in done.stderr


@pytest.mark.slow
def test_a_model_with_a_prompt_replaces_blip(
    caption_models: CaptionModels, datasets: Path, run_here: Callable[[Sequence[object]], str], refused: Refusal
) -> None:
    write_tiny("Qwen3VLForConditionalGeneration", datasets / "qwen")
    (datasets / "prompt.txt").write_text("describe the street")
    chat = ["--captioner", datasets / "qwen", "--prompt_file", datasets / "prompt.txt", "--split", "val"]
    assert "(0 new" not in run_here(command(caption_models, datasets, *chat))
    assert "(0 new" in run_here(command(caption_models, datasets, *chat))
    lines = (datasets.parent / "captions/cityscapes/manifest.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert line["prompt"] == "describe the street" and line["captioner_hash"] and line["similarity"] is not None
        assert "blip_hash" not in line and line["text"].startswith(line["caption"])
    alone = command(caption_models, datasets, "--prompt_file", datasets / "prompt.txt")
    refused(alone, "is the prompt of --captioner")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(
    caption_models: CaptionModels, datasets: Path, run_here: Callable[[Sequence[object]], str]
) -> None:
    slow = command(caption_models, datasets, "--mode", "best", "--max_flavors", 2, "--candidates", 12)
    process = Script(*slow)
    folder = datasets.parent / "captions"
    manifest, end = folder / "cityscapes/manifest.jsonl", time.monotonic() + 120
    while not manifest.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "captions_cityscapes.json").exists() and len(manifest.read_text().splitlines()) < 9
    run_here(slow)
    halves = outputs(folder)
    shutil.rmtree(folder)
    assert "(9 new" in run_here(slow)
    assert outputs(folder) == halves and len(halves) == 2
    assert "(0 new" in run_here(slow)


@pytest.mark.slow
def test_two_processes_write_what_one_does(
    caption_models: CaptionModels, datasets: Path, run_here: Callable[[Sequence[object]], str]
) -> None:
    one, two = (command(caption_models, datasets, "--mode", "classic", "--devices", n) for n in (1, 2))
    run_here(one)
    alone = outputs(datasets.parent / "captions")
    shutil.rmtree(datasets.parent / "captions")
    done = run_script("tests/forking.py", *two)
    assert done.returncode == 0, done.stderr
    assert outputs(datasets.parent / "captions") == alone


def test_patterns_and_bad_images(
    caption_models: CaptionModels, datasets: Path, refused: Refusal, run_here: Callable[[Sequence[object]], str]
) -> None:
    bad = next((datasets / "cityscapes/leftImg8bit/val/lindau").iterdir())
    bad.write_bytes(bad.read_bytes()[:60])
    pattern = datasets / "cityscapes/leftImg8bit/val/**/*.png"
    flags = [*caption_models.flags, "--output_dir", datasets / "captions", "--mode", "caption", "--max_tokens", 3]
    images = [SCRIPT, "--images", pattern, *flags]
    refused(images, "cannot be decoded", bad.name, "--skip_bad")
    said = run_here([*images, "--skip_bad", "--name", "mine", "--jsonl", datasets / "mine.jsonl", "--no_filter"])
    assert f"skipped {bad}" in said
    assert len(json.loads((datasets / "captions/captions_mine.json").read_text())["mine"]) == 2
    assert len((datasets / "mine.jsonl").read_text().splitlines()) == 2


def test_existing_captions_are_filtered_without_a_model(
    datasets: Path, refused: Refusal, run_here: Callable[[Sequence[object]], str]
) -> None:
    source = datasets / "captions_cityscapes.json"
    source.write_text(json.dumps({"cityscapes": {"a.png": "arafed cars in the rain", "b.png": "a street", "c": "fog"}}))
    refilter = [SCRIPT, "--from_captions", source, "--output_dir", datasets / "out"]
    said = run_here(refilter)
    assert "Removed from 2 captions: arafed 1, rain 1, fog 1" in said and "1 captions are empty" in said
    result = json.loads((datasets / "out/captions_cityscapes.json").read_text())
    assert result == {"cityscapes": {"a.png": "cars", "b.png": "a street", "c": ""}}
    settings = json.loads((datasets / "out/captions_cityscapes/settings.json").read_text())["settings"]
    assert settings["filter_report"]["dropped"] == {"arafed": 1, "rain": 1, "fog": 1}
    refused(refilter, "exists", "--overwrite")
    refused([*refilter[:3], "--output_dir", datasets], "exists")  # never onto its own source unasked


def test_bad_input(caption_models: CaptionModels, datasets: Path, refused: Refusal) -> None:
    flags = command(caption_models, datasets)
    refused([SCRIPT, *flags[3:]], "--dataset", "--images", "--from_captions")
    refused([*flags, "--images", "*.png"], "Give one of")
    refused([SCRIPT, "--dataset", "cityscape", *flags[3:]], "Unknown data set 'cityscape'", "Did you mean cityscapes?")
    refused([SCRIPT, "--dataset", "idd", *flags[3:]], "No IDD", "--datasets_dir")
    refused([SCRIPT, "--images", datasets / "*.jpg", *flags[3:]], "matches no image")
    refused([*flags, "--split", "vall"], "No files of Cityscapes")
    refused([*flags, "--filter", datasets / "none.txt"], "Cannot read", "none.txt")
    refused([*flags, "--flavors", datasets], "none of mediums.txt")
    refused([*flags, "--clip", datasets / "none"], "No CLIP model", "none")
    refused([*flags, "--blip", datasets], "Cannot load the BLIP captioner")
    refused([SCRIPT, "--from_captions", datasets / "none.json"], "Cannot read")
    assert not (datasets.parent / "captions").exists()


def test_dry_run(
    caption_models: CaptionModels, datasets: Path, refused: Refusal, run_here: Callable[[Sequence[object]], str]
) -> None:
    dry = command(caption_models, datasets, "--dry_run", "--split", "val", "--limit", 2)
    said = run_here(dry)
    assert "Would caption 2 images, such as leftImg8bit/val/lindau" in said
    refused([*dry, "--blip", "checkpoints/none"], "No BLIP captioner at")
    refused([*dry, "--captioner", datasets], "Cannot load the captioner")
    refused([*dry, "--mode", "fast", "--clip", "checkpoints/none"], "No CLIP model")
    assert not (datasets.parent / "captions").exists()
