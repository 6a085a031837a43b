"""relis/check_dataset.py as a user runs it."""

import json


def check(relis, dataset, *flags):
    return relis(
        "check_dataset", "--trg_dataset", dataset, "--datasets_dir", relis.root / "datasets",
        "--generated_dir", relis.root / "images", "--results_dir", relis.results, *flags,
    )  # fmt: skip


def test_sound_sets_are_reported_and_end_with_0(relis):
    code, out, _ = check(relis, "Cityscapes,ACDC,Cityscapes_fog", "--split", "all")
    assert code == 0
    assert "ACDC: 8 pairs in 2 scenes; 8 of 40x24" in out
    assert out.count("0 faults; wrote") == 3
    report = json.loads((relis.results / "ACDC.json").read_text())
    assert report["scenes"] == {"fog/GOPR0475": 4, "night/GOPR0351": 4}
    assert report["faults"] == []


def test_a_faulty_set_ends_with_1_and_names_the_files(relis):
    folder = relis.root / "datasets/cityscapes/leftImg8bit/val"
    (folder / "munster/munster_000000_000019_leftImg8bit.png").unlink()
    (folder / "frankfurt/frankfurt_000000_000294_leftImg8bit.png").write_bytes(b"no image")
    code, out, _ = check(relis, "Cityscapes")
    assert code == 1
    assert "munster_000000_000019_gtFine_labelIds.png: mask without an image" in out
    assert "frankfurt_000000_000294_leftImg8bit.png cannot be decoded" in out
    assert "2 faults; wrote" in out
    faults = json.loads((relis.results / "Cityscapes.json").read_text())["faults"]
    assert {fault["id"] for fault in faults} == {"munster_000000_000019", "frankfurt_000000_000294"}


def test_a_set_that_is_not_there_ends_with_2(relis):
    relis.refused("No IDD in", "ln -s", code_out_err=check(relis, "IDD"))


def test_folders_of_ones_own(relis):
    root = relis.root / "datasets/cityscapes"
    dataset = f"folder:{root}/leftImg8bit/val/{{scene}}/*_leftImg8bit,{root}/gtFine/val/{{scene}}/*_gtFine_labelIds"
    code, out, _ = check(relis, f"{dataset},cityscapes")
    assert code == 0 and "5 pairs in 2 scenes" in out
    code, out, _ = check(relis, f"{dataset},trainids")
    assert code == 1 and "ids that are not Cityscapes trainIds" in out


def test_eval_lists_models_without_any_other_flag(relis):
    """--list_models needs neither models nor data sets; here the library of segmenters is a stand-in."""
    import sys

    sys.modules["genval.segmenters"].describe_segmenters = lambda: "10 of 52 checkpoints are on this disk:"
    code, out, _ = relis("eval", "--list_models")
    assert code == 0 and out == "10 of 52 checkpoints are on this disk:\n"
