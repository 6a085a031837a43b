"""relis/corrupt.py on the tiny world of relis/."""

import json
import shutil

import numpy as np
import pytest

from genval.datasets import find_items
from genval.datasets.reading import read_image
from genval.runtime.files import write_png


def corrupt(relis, *flags, output="corrupted"):
    return relis("corrupt", "--datasets_dir", relis.root / "datasets", "--output_dir", relis.root / output, *flags)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_a_corrupted_set_can_be_evaluated_and_has_the_masks_of_the_clear_set(relis):
    code, out, err = corrupt(relis, "--domain", "fog,night")
    assert code == 0, err
    assert "corrupted 5 of 5 images" in out
    clear = find_items("Cityscapes", datasets_dir=relis.root / "datasets")
    for domain in ("fog", "night"):
        items = find_items(f"Cityscapes_corrupt_{domain}", generated_dir=relis.root / "images")
        assert [item.id for item in items] == [item.id for item in clear]
        assert {item.cond for item in items} == {domain}
        for item, source in zip(items, clear, strict=True):
            assert item.mask.read_bytes() == source.mask.read_bytes()
            assert (read_image(item.image) != read_image(source.image)).mean() > 0.5
    records = [json.loads(line) for line in (relis.root / "corrupted/fog/manifest.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [item.id for item in clear]
    assert {record["severity"] for record in records} == {3}
    assert len({record["seed"] for record in records}) == 5


def test_a_resumed_run_writes_the_same_bytes(relis):
    corrupt(relis, "--domain", "rain", output="whole")
    corrupt(relis, "--domain", "rain", "--limit", "2")
    code, out, err = corrupt(relis, "--domain", "rain")
    assert code == 0, err
    assert "corrupted 3 of 5 images" in out
    assert files(relis.root / "corrupted") == files(relis.root / "whole")
    assert "corrupted 0 of 5 images" in corrupt(relis, "--domain", "rain")[1]
    assert "corrupted 5 of 5 images" in corrupt(relis, "--domain", "rain", "--severity", "5")[1]
    assert files(relis.root / "corrupted") != files(relis.root / "whole")


def test_invalid_input_is_refused(relis):
    relis.refused("'india'", "another country", code_out_err=corrupt(relis, "--domain", "india"))
    relis.refused("severity", code_out_err=corrupt(relis, "--severity", "6"))
    corrupt(relis, "--domain", "snow", "--limit", "2")
    shutil.rmtree(relis.root / "datasets/cityscapes/leftImg8bit/val/frankfurt")
    shutil.rmtree(relis.root / "datasets/cityscapes/gtFine/val/frankfurt")
    relis.refused("other frames", code_out_err=corrupt(relis, "--domain", "snow"))


@pytest.fixture
def fog_and_night(relis):
    """Folders of unlabelled images of two domains, one image of which is damaged."""
    rng = np.random.default_rng(0)
    for domain, low, high in (("fog", 150, 220), ("night", 0, 60)):
        for number in range(3):
            write_png(relis.root / domain / f"{number}.png", rng.integers(low, high, (20, 30, 3), np.uint8))
    (relis.root / "fog/bad.png").write_bytes(b"no image")
    return f"fog={relis.root / 'fog'},night={relis.root / 'night'}"


def transfer(relis, method, references, *flags, domains="fog,night"):
    return relis(
        "corrupt",
        *("--datasets_dir", relis.root / "datasets", "--generated_dir", relis.root / "images"),
        *("--method", method, "--domains", domains, "--reference", references, *flags),
    )


@pytest.mark.parametrize("method", ["histogram", "fourier"])
def test_appearance_is_transferred_from_unlabelled_images(relis, fog_and_night, method):
    code, out, err = transfer(relis, method, fog_and_night, "--skip_bad")
    assert code == 0, err
    assert "fog: changed 5 of 5 images" in out and "skipped" in out and "bad.png" in out
    clear = find_items("Cityscapes", datasets_dir=relis.root / "datasets")
    brightness = {}
    for domain in ("fog", "night"):
        items = find_items(f"Cityscapes_{method}_{domain}", generated_dir=relis.root / "images")
        assert [(item.id, item.cond) for item in items] == [(item.id, domain) for item in clear]
        for item, source in zip(items, clear, strict=True):
            assert item.mask.read_bytes() == source.mask.read_bytes()
        brightness[domain] = np.mean([read_image(item.image).mean() for item in items])
        lines = (relis.root / f"images/{method}/{domain}/manifest.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert {record["method"] for record in records} == {method} and len({r["seed"] for r in records}) == 5
        assert all(record["reference"] != "bad.png" and record["reference_mark"] for record in records)
    assert brightness["fog"] > 165 and brightness["night"] < 65  # Fourier's negative values are clipped
    before = files(relis.root / "images")
    assert "changed 0 of 5 images" in transfer(relis, method, fog_and_night, "--skip_bad")[1]
    some = next((relis.root / f"images/{method}/night").rglob("*_leftImg8bit.png"))
    some.unlink()
    assert "night: changed 1 of 5 images" in transfer(relis, method, fog_and_night, "--skip_bad")[1]
    assert files(relis.root / "images") == before
    assert "night: changed 5 of 5 images" in transfer(relis, method, fog_and_night, "--skip_bad", "--seed", "1")[1]


def test_references_are_checked(relis, fog_and_night):
    night = relis.root / "night"
    relis.refused("night=PATH", code_out_err=transfer(relis, "histogram", night))
    relis.refused("fog=PATH,night=PATH", code_out_err=transfer(relis, "histogram", f"fog={night},rain={night}"))
    missing = transfer(relis, "fourier", relis.root / "nothing", domains="fog")
    relis.refused("nothing is not a folder", code_out_err=missing)
    relis.refused("--method fourier needs", code_out_err=corrupt(relis, "--method", "fourier"))
    relis.refused("have no reference images", code_out_err=corrupt(relis, "--reference", night))
    relis.refused("--beta", code_out_err=transfer(relis, "fourier", fog_and_night, "--beta", "0.5"))
    code, out, err = transfer(relis, "histogram", night, "--dry_run", domains="thick-smoke")
    assert code == 0 and "like 3 reference images" in out, err
    relis.refused(
        "--method histogram --reference PATH --domain fog", code_out_err=relis.eval("Cityscapes_histogram_fog")
    )


def test_an_evaluation_without_the_set_says_how_to_make_it(relis):
    relis.refused("relis/corrupt.py --domain fog", code_out_err=relis.eval("Cityscapes_corrupt_fog"))


def test_a_dry_run_writes_nothing(relis):
    code, out, _ = corrupt(relis, "--domain", "fog", "--dry_run")
    assert code == 0 and "5 images" in out
    assert not (relis.root / "corrupted").exists()
