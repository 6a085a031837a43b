"""relis/corrupt.py on the tiny world of relis/."""

import json
import shutil

from genval.datasets import find_items
from genval.datasets.reading import read_image


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


def test_an_evaluation_without_the_set_says_how_to_make_it(relis):
    relis.refused("relis/corrupt.py --domain fog", code_out_err=relis.eval("Cityscapes_corrupt_fog"))


def test_a_dry_run_writes_nothing(relis):
    code, out, _ = corrupt(relis, "--domain", "fog", "--dry_run")
    assert code == 0 and "5 images" in out
    assert not (relis.root / "corrupted").exists()
