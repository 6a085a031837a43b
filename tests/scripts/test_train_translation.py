"""ControlNet/train_translation.py and `style_transfer.py --generator translate` as a user runs them."""

from pathlib import Path

import pytest
from diffusion_world import HEIGHT, WIDTH, Refusal
from script_runs import run_script

from genval.datasets.items import find_items
from genval.runtime.files import read_json

SIZE = ["--height", HEIGHT, "--width", WIDTH, "--accelerator", "cpu"]


@pytest.mark.slow
def test_from_unlabelled_images_to_a_generated_set(city_folder: Path, tmp_path: Path, refused: Refusal) -> None:
    # Any images serve as those of a domain.
    fog, output = city_folder / "leftImg8bit/val", tmp_path / "translation"
    train = ["ControlNet/train_translation.py", "--data_dir", city_folder, "--unlabelled", f"fog={fog}", *SIZE]
    train += ["--output", output, "--channels", 4, "--blocks", 1, "--batch_size", 2, "--max_steps", 2]
    result = run_script(*train, "--dry_run")
    assert result.returncode == 0 and "at most 2 steps of 2 on 6 clear, 3 fog images" in result.stdout, result.stderr
    assert not output.exists()
    result = run_script(*train)
    assert result.returncode == 0, result.stderr
    assert f"images: wrote {output}" in result.stdout and "Trained 2 steps in" in result.stdout
    assert "holds the result of this training" in run_script(*train).stdout
    assert read_json(output / "settings.json")["settings"]["unlabelled"] == [["fog", str(fog)]]
    refused([*train, "--seed", 1], "other settings: seed 1 (was 0)", "--overwrite")

    transfer = ["ControlNet/style_transfer.py", "--generator", "translate", "--translator", output, *SIZE]
    transfer += ["--data_dir", city_folder, "--output_dir", tmp_path / "sets", "--num_samples", 2]
    result = run_script(*transfer, "--domain", "fog")
    assert result.returncode == 0 and "Wrote 2 images (2 new)" in result.stdout, result.stderr
    assert len(find_items("Cityscapes_translate_fog", generated_dir=tmp_path / "sets")) == 2
    # There are three frames, and a frame that is translated twice would count twice.
    result = run_script(*transfer, "--domain", "fog", "--num_samples", 9)
    assert result.returncode == 0 and "Wrote 3 images (1 new)" in result.stdout, result.stderr
    assert len(find_items("Cityscapes_translate_fog", generated_dir=tmp_path / "sets")) == 3
    refused([*transfer, "--domain", "night"], "--domain night: the translator was trained on fog")
