"""ood_objects/get_masks.py as a user runs it, with models of random weights."""

import json

import numpy as np
import pytest
from script_runs import run_script

from benchmarks.components.masks import write_tiny
from genval.datasets.reading import read_image, read_mask
from genval.runtime.paths import REPO_ROOT

SCRIPT = REPO_ROOT / "ood_objects" / "get_masks.py"


@pytest.fixture
def masks(grounding_models, object_images):
    def run(*flags, expect=0):
        folders = ["--images_dir", object_images / "refined", "--positions_dir", object_images / "with_positions"]
        folders += ["--output_dir", object_images / "masks", *grounding_models.flags, "--batch_size", 2]
        done = run_script("tests/forking.py", SCRIPT, *folders, *flags)
        assert done.returncode == expect, done.stderr
        return done

    return run


def outputs(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted((root / "masks").rglob("*"))
        if path.is_file() and path.name != "settings.json"
    }


@pytest.mark.slow
def test_masks_lie_in_the_boxes_and_lines_say_how_good_they_are(masks, object_images):
    done = masks("--curate")
    lines = [json.loads(line) for line in (object_images / "masks" / "manifest.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{name}/{i}" for name in ("lion", "polar bear") for i in range(3)]
    found = 0
    for line in lines:
        text = object_images / "masks" / f"{line['id']}_mask.txt"
        assert text.exists() == (line["mask"] is None)
        if line["mask"] is None:
            continue
        found += 1
        mask = read_mask(object_images / "masks" / line["mask"])
        assert mask.shape == (80, 160) and set(np.unique(mask)) == {0, 255}
        box = line["box"]
        inside = mask[box["top"] : box["top"] + box["side"], box["left"] : box["left"] + box["side"]]
        assert inside.sum() == mask.sum()
        assert line["mask_inside_box"] == 1.0
        assert line["mask_area_ratio"] == pytest.approx((mask > 0).sum() / box["side"] ** 2, abs=1e-6)
        chosen = line["detections"][line["chosen"]]
        assert chosen["phrase"] and chosen["score"] == line["detection_score"]
        assert chosen["score"] == max(one["score"] for one in line["detections"] if one["phrase"])
        left, top, right, bottom = chosen["box"]
        assert box["left"] <= left < right <= box["left"] + box["side"]
        assert box["top"] <= top < bottom <= box["top"] + box["side"]
    assert found > 0
    assert f"Wrote {found} masks" in done.stdout
    curated = json.loads((object_images / "masks" / "curated.json").read_text())
    assert sum(len(numbers) for numbers in curated.values()) == found
    assert read_image(object_images / "masks" / "lion" / "sheet.png").shape[2] == 3


@pytest.mark.slow
def test_no_compiler_is_imported(grounding_models, object_images):
    folders = ["--images_dir", object_images / "refined", "--positions_dir", object_images / "with_positions"]
    folders += ["--output_dir", object_images / "masks", *grounding_models.flags, "--limit", 1]
    done = run_script("-X", "importtime", SCRIPT, *folders)
    assert done.returncode == 0 and "transformers.modeling_utils" in done.stderr, done.stderr
    for module in ("torch._dynamo.convert_frame", "torch.distributed.tensor", "scipy.optimize._optimize"):
        assert module not in done.stderr


@pytest.mark.slow
def test_two_processes_share_the_batches(masks, object_images):
    masks()
    expected = outputs(object_images)
    masks("--devices", 2, "--overwrite")
    assert outputs(object_images) == expected


@pytest.mark.slow
def test_a_damaged_image_is_an_error_and_leaves_no_text(masks, object_images):
    (object_images / "refined" / "lion" / "1.png").write_bytes(b"no image")
    done = masks(expect=2)
    assert "1.png cannot be decoded" in done.stderr and "Traceback" not in done.stderr
    assert not (object_images / "masks" / "lion" / "1_mask.txt").exists()


@pytest.mark.slow
def test_the_second_version_and_clip_and_context(masks, object_images, grounding_models, caption_models):
    masks("--sam", grounding_models.sam2, "--clip", caption_models.clip, "--margin", 0.25, "--objects", "lion")
    lines = [json.loads(line) for line in (object_images / "masks" / "manifest.jsonl").read_text().splitlines()]
    assert {line["object"] for line in lines} == {"lion"}
    similarities = [line["similarity"] for line in lines if line["mask"]]
    assert similarities and all(set(one) == {"object", "scene", "scene_name"} for one in similarities)
    assert all(line["clip_hash"] for line in lines)


def test_other_models_and_sam_3_alone(masks, object_images, tmp_path):
    for name in ("Owlv2ForObjectDetection", "SamHQModel", "Sam3Model"):
        write_tiny(name, tmp_path / name)
    owlv2, sam_hq, sam_3 = (tmp_path / name for name in ("Owlv2ForObjectDetection", "SamHQModel", "Sam3Model"))
    thresholds = ["--box_threshold", 0.01, "--text_threshold", 0.01, "--objects", "lion"]
    masks("--detector", owlv2, "--sam", sam_hq, *thresholds)
    manifest = object_images / "masks" / "manifest.jsonl"
    first = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(first) == 3 and all(line["sam_hash"] and line["detections"] for line in first)
    assert "(3 images new)" in masks("--text_masks", "--sam", sam_3, *thresholds).stdout
    second = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert all(line["sam_hash"] is None for line in second)
    assert any(line["mask"] for line in second)
    assert "expected 'sam3'" in masks("--text_masks", "--sam", sam_hq, expect=2).stderr


def test_mistakes_are_one_line(masks, object_images):
    assert "No images of zebra" in masks("--objects", "zebra", expect=2).stderr
    assert "Would mask 6 objects: lion, polar bear" in masks("--dry_run").stdout
    for flag in ("--detector", "--sam"):
        assert "none.pth does not exist" in masks("--dry_run", flag, "checkpoints/none.pth", expect=2).stderr
    assert "No CLIP model" in masks("--dry_run", "--clip", "checkpoints/none", expect=2).stderr
    assert not (object_images / "masks").exists()
