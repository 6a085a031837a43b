"""Files that cannot be opened, or that decode into something else, as the scripts meet them."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from script_runs import run_script

from genval.captions.sources import match_sources
from genval.datasets import find_items
from genval.datasets.labels import CITYSCAPES, PALETTE
from genval.datasets.ood_sets import find_ood_items
from genval.datasets.reading import read_image, read_mask
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT

APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        "


def dangle(path):
    path.unlink()
    path.symlink_to("nowhere.png")


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def become_folder(path):
    path.unlink()
    path.mkdir()


UNOPENED = {"link": dangle, "loop": loop, "folder": become_folder}


def street(root, number=0, part="leftImg8bit"):
    folder = root / "datasets/cityscapes" / ("leftImg8bit" if part == "leftImg8bit" else "gtFine") / "val/frankfurt"
    return sorted(folder.glob(f"*_{part}.png"))[number]


@pytest.mark.parametrize("part", ["leftImg8bit", "gtFine_labelIds"])
@pytest.mark.parametrize("kind", UNOPENED)
def test_an_evaluation_skips_what_cannot_be_opened(relis, kind, part):
    path = street(relis.root, part=part)
    UNOPENED[kind](path)
    relis.refused(path.name, "--skip_bad", code_out_err=relis.eval())
    code, out, err = relis.eval("Cityscapes", "good", "--skip_bad")
    assert code == 0, err
    assert f"skipped {path}" in out
    metrics = json.loads(next(relis.results.glob("good/Cityscapes/clean/frankfurt/metrics.json")).read_text())
    assert metrics["images"] == 2 and len(metrics["skipped"]) == 1


def test_the_reason_of_a_skipped_file_does_not_advise_to_skip_it(relis):
    path = street(relis.root)
    path.write_bytes(b"x")
    relis.refused(path.name, "--skip_bad", code_out_err=relis.eval())
    out = relis.eval("Cityscapes", "good", "--skip_bad")[1]
    assert f"skipped {path}: {path} cannot be decoded" in out and "--skip_bad" not in out
    metrics = json.loads((relis.results / "good/Cityscapes/clean/frankfurt/metrics.json").read_text())
    assert "--skip_bad" not in metrics["skipped"][0]["reason"]


def test_an_evaluation_skips_what_vanishes_while_the_segmenter_is_loaded(relis):
    path, module = street(relis.root), sys.modules["genval.segmenters"]
    load = module.load_segmenter

    def load_slowly(*arguments, **options):
        path.unlink(missing_ok=True)
        return load(*arguments, **options)

    module.load_segmenter = load_slowly
    code, out, err = relis.eval("Cityscapes", "good", "--skip_bad")
    assert code == 0, err
    assert f"skipped {path}: does not exist" in out


@pytest.mark.parametrize("part", ["leftImg8bit", "gtFine_labelIds"])
@pytest.mark.parametrize("kind", [*UNOPENED, "damaged"])
def test_a_corrupted_set_leaves_out_bad_files(relis, kind, part):
    path = street(relis.root, part=part)
    UNOPENED.get(kind, lambda path: path.write_bytes(b"x"))(path)
    flags = ("--datasets_dir", relis.root / "datasets", "--output_dir", relis.root / "corrupted", "--domain", "fog")
    relis.refused(path.name, code_out_err=relis("corrupt", *flags))
    code, out, err = relis("corrupt", *flags, "--skip_bad")
    assert code == 0, err
    assert "corrupted 4 of" in out and "skipped 1 bad files" in out and path.name in out
    assert len(find_items("Cityscapes_corrupt_fog", root=relis.root / "corrupted/fog")) == 4
    assert "corrupted 0 of" in relis("corrupt", *flags, "--skip_bad")[1]


def test_loops_end_in_pairs_of_folders_and_in_road_anomaly(tmp_path):
    for number in range(2):
        write_png(tmp_path / f"i/{number}.png", np.zeros((4, 4, 3), np.uint8))
        write_png(tmp_path / f"g/{number}.png", np.ones((4, 4), np.uint8))
        write_png(tmp_path / f"frames/{number}.png", np.zeros((4, 4, 3), np.uint8))
        write_png(tmp_path / f"frames/{number}.labels/labels_semantic.png", np.zeros((4, 4), np.uint8))
    for folder in ("i", "g", "frames"):
        for name in ("one", "two"):  # two loops double the paths at each level
            (tmp_path / folder / name).symlink_to(tmp_path / folder)
        (tmp_path / folder / "._0.png").write_bytes(APPLE)
    assert len(find_ood_items(f"pair:{tmp_path}/i,{tmp_path}/g").items) == 2
    assert len(find_ood_items("RoadAnomaly", root=tmp_path).items) == 2
    assert len(find_items(f"folder:{tmp_path}/i,{tmp_path}/g,cityscapes")) == 2
    assert [source.image.name for source in match_sources(f"{tmp_path}/i/**/*.png")] == ["0.png", "1.png"]
    assert len(match_sources(f"{tmp_path}/**")) == 4 + 2 * 2
    (tmp_path / "i/2.png").symlink_to("nowhere.png")
    with pytest.raises(GenValError, match=r"2\.png is a link"):
        match_sources(f"{tmp_path}/i/*.png")
    skipped = []
    assert len(match_sources(f"{tmp_path}/i/*.png", skipped)) == 2 and len(skipped) == 1


def test_two_links_that_lead_to_each_other_end(tmp_path):
    for name, other in (("i", "g"), ("g", "i")):
        write_png(tmp_path / name / "0.png", np.ones((4, 4), np.uint8))
        (tmp_path / name / "other").symlink_to(tmp_path / other)
    items = find_ood_items(f"pair:{tmp_path}/i,{tmp_path}/g").items
    assert {item.id for item in items} == {"0", "other/0"}


def own_set(root, count=1):
    """A set of one's own with a sound pair `a0` and its name in the form of --trg_dataset."""
    generator = np.random.default_rng(0)
    for number in range(count):
        ids = generator.integers(0, 34, (6, 10)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        write_png(root / f"i/a{number}.png", generator.integers(0, 256, (24, 40, 3)).astype(np.uint8))
        write_png(root / f"g/a{number}.png", ids)
    return f"folder:{root}/i,{root}/g,cityscapes"


def faulty(root, name, make_image=None, make_mask=None):
    image, mask = Image.fromarray(read_image(root / "i/a0.png")), Image.fromarray(read_mask(root / "g/a0.png"))
    for part, made, make in (("i", image, make_image), ("g", mask, make_mask)):
        path = root / part / f"{name}.png"
        if make is None:
            made.save(path, "PNG")
        else:
            make(made, path)


KINDS = {
    "gif": ({"make_image": lambda image, path: image.save(path, "GIF")}, "GIF"),
    "eps": ({"make_image": lambda image, path: image.save(path, "EPS")}, "EPS"),
    "int32": (
        {"make_image": lambda image, path: Image.fromarray(np.asarray(image)[..., 0].astype("i4")).save(path, "TIFF")},
        "mode I",
    ),
    "cmyk": ({"make_image": lambda image, path: image.convert("CMYK").save(path, "JPEG")}, "mode CMYK"),
    "transparent": ({"make_image": lambda image, path: image.convert("RGBA").rotate(9).save(path)}, "transparent"),
    "animated": (
        {"make_image": lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(9)])},
        "2 frames",
    ),
    "turned": (
        {"make_image": lambda image, path: image.save(path, "JPEG", exif=orientation(6))},
        "the image has 24x40",
    ),
    "dangling": ({"make_image": lambda image, path: path.symlink_to("nowhere")}, "is a link"),
    "folder": ({"make_mask": lambda mask, path: path.mkdir()}, "is a folder"),
    "colours": (
        {"make_mask": lambda mask, path: Image.fromarray(PALETTE[CITYSCAPES.table[np.asarray(mask)]]).save(path)},
        "not a label mask",
    ),
    "reduced": ({"make_mask": lambda mask, path: mask.quantize(16).save(path)}, "palette"),
    "16 bits": (
        {"make_mask": lambda mask, path: Image.fromarray(np.asarray(mask).astype("u2")).save(path)},
        "at most 8 bits",
    ),
    "jpeg mask": ({"make_mask": lambda mask, path: mask.save(path, "JPEG")}, "JPEG"),
    "trainIds": (
        {"make_mask": lambda mask, path: Image.fromarray(CITYSCAPES.table[np.asarray(mask) // 20 * 7]).save(path)},
        "trainIds",
    ),
}


def orientation(number):
    data = Image.Exif()
    data[274] = number
    return data


def run(script, *flags):
    return run_script(script, *flags, environment={"PYTHONPATH": str(REPO_ROOT)})


def test_check_dataset_reports_every_kind(tmp_path):
    dataset = own_set(tmp_path)
    for name, (changes, _) in KINDS.items():
        faulty(tmp_path, name.replace(" ", "_"), **changes)
    done = run("relis/check_dataset.py", "--trg_dataset", dataset, "--output_dir", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    report = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    found = {fault["id"]: fault["reason"] for fault in report["faults"]}
    for name, (_, reason) in KINDS.items():
        assert reason in found.pop(name.replace(" ", "_")), name
    assert found == {}


def test_a_name_that_is_not_utf_8_is_refused_or_skipped(tmp_path):
    dataset = own_set(tmp_path, count=2)
    for folder in "ig":
        first = sorted((tmp_path / folder).iterdir())[0]
        first.rename(first.with_name(os.fsdecode(b"M\xfcnchen") + first.suffix))
    for script in ("relis/check_dataset.py", "relis/eval.py"):
        flags = ["--trg_dataset", dataset, "--output_dir", tmp_path / "out"]
        if "eval" in script:
            flags[2:] = ["--segmenters", "mini-fast-scnn", "--eval_dir", tmp_path / "out", "--accelerator", "cpu"]
        done = run(script, *flags)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        assert "not UTF-8 (rename it)" in done.stdout + done.stderr
    done = run(script, *flags, "--skip_bad")
    assert done.returncode == 0, done.stderr
    assert "M\\udcfcnchen.png: has a name that is not UTF-8" in done.stdout


@pytest.mark.parametrize("kind", ["trainids", "dummy"])
def test_check_dataset_reports_the_ids_of_a_whole_set(tmp_path, kind):
    dataset = own_set(tmp_path, count=2)
    for path in (tmp_path / "g").iterdir():
        ids = np.full((24, 40), 8, np.uint8)
        ids[:3], ids[-1] = 0, 255
        write_png(path, ids if kind == "trainids" else np.ones_like(ids))
    done = run("relis/check_dataset.py", "--trg_dataset", dataset, "--output_dir", tmp_path / "out")
    assert done.returncode == 1 and "1 faults" in done.stdout
    assert ("hold trainIds" if kind == "trainids" else "no pixel of any mask has a class") in done.stdout


def test_a_set_of_other_ids_is_refused_before_it_is_evaluated(relis, tmp_path):
    dataset = own_set(tmp_path, count=2)
    for path in (tmp_path / "g").iterdir():
        write_png(path, np.full((24, 40), 3, np.uint8))
    relis.refused("no pixel of any mask has a class", code_out_err=relis.eval(dataset))
    relis.refused("no pixel of any mask has a class", code_out_err=relis.eval(dataset, "good", "--skip_bad"))


def test_metrics_do_not_depend_on_how_an_image_is_stored(relis, tmp_path):
    dataset = own_set(tmp_path, count=2)
    shown = relis.eval(dataset)[1]
    for path in (tmp_path / "i").iterdir():
        Image.fromarray(read_image(path)).rotate(180).save(path, exif=orientation(3))
    shutil.rmtree(relis.results)
    assert "| good" in shown and metrics_of(shown) == metrics_of(relis.eval(dataset)[1])


def metrics_of(output):
    return [line for line in output.splitlines() if line.startswith("| good")]


def test_a_byte_order_mark_in_a_list_of_phrases_is_ignored(tmp_path):
    (tmp_path / "phrases.txt").write_text("fog\nrain\n", encoding="utf-8-sig")
    captions = {"c": {"a.png": "a street, fog, a car", "b.png": "a street, rain, a car"}}
    (tmp_path / "captions.json").write_text(json.dumps(captions), encoding="utf-8-sig")
    flags = ("--from_captions", tmp_path / "captions.json", "--filter", tmp_path / "phrases.txt")
    done = run("ControlNet/clip_int.py", *flags, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "fog 1, rain 1" in done.stdout
