"""mini/render.py as a user runs it: the layouts, resuming, captions and refusals."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from script_runs import run_script

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

SCRIPT = Path(__file__).resolve().parents[2] / "mini" / "render.py"


def render(out: Path, *flags: object, workers: int = 1) -> subprocess.CompletedProcess[str]:
    size = ("--height", 64, "--width", 128)
    return run_script(SCRIPT, "--out", out, "--num_train", 3, "--num_val", 2, *size, "--workers", workers, *flags)


def digests(out: Path) -> dict[str, str]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini")
    result = render(out, workers=2)  # and one in the tests, which gives the same bytes
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("Rendered 30 images, kept 0")
    return out


def test_files_lie_where_the_real_sets_keep_them(rendered):
    for path in (
        "cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
        "acdc/rgb_anon/fog/train/GOPR0102/GOPR0102_frame_000000_rgb_anon.png",
        "acdc/gt/snow/val/GOPR0411/GOPR0411_frame_000000_gt_labelIds.png",
        "IDD_Segmentation/leftImg8bit/train/100/000000_leftImg8bit.png",
        "IDD_Segmentation/gtFine/val/201/000000_gtFine_labellevel3Ids.png",
    ):
        assert (rendered / path).is_file(), path
    assert len(list(rendered.rglob("*.png"))) == 60
    assert not list(rendered.rglob("*.part"))


def test_masks_are_single_channel_ids(rendered):
    for path in [*rendered.rglob("*labelIds.png"), *rendered.rglob("*labellevel3Ids.png")]:
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask.dtype == np.uint8 and mask.shape == (64, 128)
    idd = {
        int(i)
        for path in rendered.rglob("*labellevel3Ids.png")
        for i in np.unique(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    }
    assert idd <= {0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 14, 15, 18, 19, 20, 22, 24, 25, 255}
    assert {0, 25, 9} <= idd


def test_scenes_of_splits_and_domains_differ(rendered):
    masks = [path.read_bytes() for path in rendered.rglob("*Ids.png")]
    assert len(set(masks)) == len(masks)


def test_every_image_has_a_caption(rendered):
    captions = {}
    for path in (rendered / "captions").glob("*.json"):
        ((name, entries),) = json.loads(path.read_text()).items()
        assert path.name == f"captions_{name}.json"
        captions |= entries
    images = {
        str(p.relative_to(rendered)) for p in [*rendered.rglob("*leftImg8bit.png"), *rendered.rglob("*rgb_anon.png")]
    }
    assert set(captions) == images
    assert all(captions.values())


def test_training_lines_name_files(rendered):
    for split, count in (("train", 3), ("val", 2), ("diffusion", 18)):
        lines = [json.loads(line) for line in (rendered / "training" / f"{split}.jsonl").read_text().splitlines()]
        assert len(lines) == count
        for line in lines:
            assert set(line) == {"image", "conditioning_image", "text"}
            assert (rendered / line["image"]).is_file() and (rendered / line["conditioning_image"]).is_file()


def test_a_stopped_run_resumes_to_the_same_bytes(rendered):
    before = digests(rendered)
    lost = sorted(rendered.rglob("*.png"))[::7]
    for path in lost:
        path.unlink()
    (rendered / "captions" / "captions_idd.json").unlink()
    result = render(rendered)
    assert result.returncode == 0, result.stderr
    assert "kept" in result.stdout
    assert digests(rendered) == before


def test_overwrite_gives_the_same_bytes(rendered):
    before = digests(rendered)
    result = render(rendered, "--overwrite", "--domains", "clear,india")
    assert result.returncode == 0, result.stderr
    assert digests(rendered) == before


def test_a_smaller_run_keeps_the_captions_of_a_larger_one(rendered):
    before = {p: p.read_bytes() for p in (rendered / "captions").glob("*.json")}
    lists = {p: p.read_bytes() for p in (rendered / "training").glob("*.jsonl")}
    result = render(rendered, "--num_train", "1", "--num_val", "1")
    assert result.returncode == 0, result.stderr
    assert "Rendered 0 images, kept 12" in result.stdout
    assert {p: p.read_bytes() for p in before} == before
    render(rendered)
    assert {p: p.read_bytes() for p in lists} == lists


def test_another_size_in_the_same_folder_is_refused(rendered, tmp_path):
    before = digests(rendered)
    result = render(rendered, "--height", "32", "--width", "64", "--num_train", "1")
    assert result.returncode == 2
    assert "(64, 128)" in result.stderr and "--overwrite" in result.stderr and result.stderr.count("\n") == 1
    assert digests(rendered) == before
    small = ("--domains", "fog", "--num_train", "0", "--num_val", "1")
    assert render(tmp_path, *small).returncode == 0
    assert render(tmp_path, *small, "--height", "32", "--width", "64", "--overwrite").returncode == 0
    (image,) = tmp_path.rglob("*_rgb_anon.png")
    assert cv2.imread(str(image)).shape == (32, 64, 3)


def test_help_needs_no_renderer():
    code = (
        f"import runpy, sys; sys.argv = ['render.py', '--help']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    watch = f"import atexit, sys; atexit.register(lambda: print({{'numpy', 'cv2'}} & set(sys.modules))); {code}"
    result = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("flags", [("--domains", "hail"), ("--width", "100")])
def test_wrong_flags_are_one_line(tmp_path, flags):
    result = render(tmp_path, *flags)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_smaller_run_does_not_shorten_the_lists_of_a_larger_one(tmp_path):
    for count in ("3", "1"):
        done = render(tmp_path, "--num_train", count, "--num_val", count, "--domains", "clear")
        assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        records = [json.loads(line) for line in (tmp_path / f"training/{split}.jsonl").read_text().splitlines()]
        assert len(records) == 3
        assert all((tmp_path / record[key]).is_file() for record in records for key in ("image", "conditioning_image"))
