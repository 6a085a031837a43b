"""benchmarks/mask_comparison.py: its metrics, and a run with small models."""

import json

import numpy as np
import pytest
from script_runs import run_script

from benchmarks.components.masks import write_tiny
from benchmarks.mask_comparison import parse_model, summarise
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


def test_an_object_without_a_mask_counts_as_no_overlap():
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    half = truth.copy()
    half[1] = False
    found = summarise([truth, half, None, None], [truth] * 4)
    assert found == {"masked": 0.5, "IoU of masked": 0.75, "IoU": 0.375}
    assert summarise([None], [truth])["IoU of masked"] is None


def test_models_are_two_names_or_one_with_a_prefix():
    assert parse_model("a/b+c") == ("a/b", "c") and parse_model("box:c/d") == ("box", "c/d")
    for text in ("sam", "text:", "+sam"):
        with pytest.raises(GenValError, match="expected DETECTOR\\+SAM, text:SAM_3 or box:SAM"):
            parse_model(text)


@pytest.mark.slow
def test_models_are_compared(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(3):
        clean = rng.integers(60, 90, (64, 128, 3), dtype=np.uint8)
        mask = np.zeros((64, 128), np.uint8)
        mask[20:50, 30 + number : 60] = 255
        image = np.where(mask[..., None] > 0, np.uint8(220), clean)
        paths = {key: f"training/objects/{number}_{key}.png" for key in ("image", "clean", "mask")}
        for key, pixels in (("image", image), ("clean", clean), ("mask", mask)):
            write_png(tmp_path / paths[key], pixels)
        lines.append(json.dumps(paths | {"object": "lion"}))
    (tmp_path / "training/objects.jsonl").write_text("\n".join(lines))
    for name in ("MMGroundingDinoForObjectDetection", "SamModel", "Sam3Model"):
        write_tiny(name, tmp_path / name)
    models = f"{tmp_path}/MMGroundingDinoForObjectDetection+{tmp_path}/SamModel,text:{tmp_path}/Sam3Model"
    command = ["benchmarks/mask_comparison.py", "--models", f"{models},box:{tmp_path}/SamModel"]
    command += ["--data_dir", str(tmp_path), "--box_threshold", "0.01", "--text_threshold", "0.01"]
    done = run_script(*command, "--output", tmp_path / "table.json")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["objects"] == 3 and len(table["rows"]) == 3
    assert [row["masked empty"] is None for row in table["rows"]] == [False, False, True]
    assert all(row["masked"] > 0 and row["images/s"] > 0 for row in table["rows"])
