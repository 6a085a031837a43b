"""Results of different models, of parts of a set, and of images that are gone or doubled never become one number."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from relis_world import FAKE_MODELS, labelled, use_fewer_draws

from genval.artifacts.tensors import PackedTensors
from genval.datasets import find_items
from genval.datasets.gate import write_gate
from genval.runtime.files import read_jsonl, write_jsonl, write_png

SCENE = "good/Cityscapes/clean"


@pytest.fixture
def world(relis, monkeypatch):
    use_fewer_draws(monkeypatch)
    return relis


def other_model(monkeypatch, wrong=0.5):
    monkeypatch.setitem(FAKE_MODELS, "good", wrong)


def final(world, *flags, dataset="Cityscapes"):
    return world(
        "compute_final_metrics", "--trg_dataset", dataset, "--segmenters", "good", "--eval_dir", world.results,
        "--output_dir", world.root / "final", *flags,
    )  # fmt: skip


def metrics(world, scene="frankfurt"):
    return json.loads((world.results / SCENE / scene / "metrics.json").read_text())


def image(world, city, name, suffix="_leftImg8bit", kind="leftImg8bit"):
    return world.root / f"datasets/cityscapes/{kind}/val/{city}/{name}{suffix}.png"


def test_scenes_of_two_models_are_not_pooled(world, monkeypatch):
    world.eval("Cityscapes", "good")
    first = read_jsonl(world.results / SCENE / "frankfurt/manifest.jsonl")[0]["identity"]
    other_model(monkeypatch)
    world.eval("Cityscapes", "good", "--scene", "munster")
    second = read_jsonl(world.results / SCENE / "munster/manifest.jsonl")[0]["identity"]
    assert first != second
    world.refused(
        "cannot be pooled: model identity", first, second, "Run: python relis/eval.py", code_out_err=final(world)
    )
    flags = (
        "--trg_dataset",
        "Cityscapes",
        "--segmenters",
        "good",
        "--eval_dir",
        world.results,
        "--output_dir",
        world.root,
    )
    world.refused("cannot be pooled", first, second, code_out_err=world("eval_calibration", *flags))
    assert final(world, "--scene", "munster")[0] == 0


def test_precisions_are_not_pooled(world):
    world.eval("Cityscapes", "good")
    for line in (records := read_jsonl(world.results / SCENE / "munster/manifest.jsonl")):
        line["precision"] = "bf16-true"
    write_jsonl(world.results / SCENE / "munster/manifest.jsonl", records)
    world.refused("precision 32-true and bf16-true", code_out_err=final(world))


def test_results_of_a_label_map_that_was_edited_are_refused_by_readers_and_evaluated_again(world):
    root, labels = world.root / "datasets/cityscapes", world.root / "labels.json"
    dataset = (
        f"folder:{root}/leftImg8bit/val/{{scene}}/*_leftImg8bit,{root}/gtFine/val/{{scene}}/*_gtFine_labelIds,{labels}"
    )

    def miou():
        world.eval(dataset, "good")
        code, _, err = final(world, dataset=dataset)
        assert code == 0, err
        return next(json.loads(path.read_text())["miou"] for path in (world.root / "final").rglob("*.json"))

    ids = {str(label_id): None for label_id in range(256)} | {"7": "road", "26": "car"}
    labels.write_text(json.dumps(ids))
    first = miou()
    labels.write_text(json.dumps(ids | {"7": "car", "26": "road"}))
    world.refused("the file of LABELS", "changed", code_out_err=final(world, dataset=dataset))
    assert miou() != first
    labels.write_text(json.dumps(ids))
    assert miou() == first


def test_results_of_a_version_without_identities_are_refused_by_readers_and_evaluated_again(world):
    world.eval("Cityscapes", "good")
    for scene in ("frankfurt", "munster"):
        folder = world.results / SCENE / scene
        for path in [folder / "manifest.jsonl", *folder.glob("statistics/*.json")]:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                line["weights"] = line.pop("identity")
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    world.refused("did not record which model made it", code_out_err=final(world))
    _, out, _ = world.eval("Cityscapes", "good")
    assert "do not state which model made them" in out
    assert final(world)[0] == 0


def test_logits_of_an_earlier_model_are_not_used(world, monkeypatch):
    save = ("--save", "predictions,logits", "--logit_pixels", "200")
    world.eval("Cityscapes", "good", *save)
    path = world.results / SCENE / "munster/logits.safetensors"
    old = path.read_bytes()
    other_model(monkeypatch)
    _, out, _ = world.eval("Cityscapes", "good")  # without logits: those of the earlier model are gone
    assert not path.exists() and "removed logits of another model" in out
    world.eval("Cityscapes", "good", *save)
    assert path.read_bytes() != old
    identity = read_jsonl(path.with_name("manifest.jsonl"))[0]["identity"]
    assert PackedTensors(path).about["identity"] == identity
    path.write_bytes(old)  # e.g. copied from another folder
    flags = (
        "--trg_dataset",
        "Cityscapes",
        "--segmenters",
        "good",
        "--eval_dir",
        world.results,
        "--output_dir",
        world.root,
    )
    found = world("eval_calibration", *flags, "--source", "logits")
    world.refused("holds logits of another model", identity, code_out_err=found)


def test_logits_of_an_earlier_image_are_not_used(world):
    save = ("--save", "predictions,logits", "--logit_pixels", "200")
    world.eval("Cityscapes", "good", *save)
    path = world.results / SCENE / "munster/logits.safetensors"
    old = path.read_bytes()
    write_png(image(world, "munster", "munster_000000_000019"), labelled(99)[0])
    world.eval("Cityscapes", "good")
    world.eval("Cityscapes", "good", *save)
    assert path.read_bytes() != old


def test_temperatures_of_an_earlier_model_are_refused(world, monkeypatch):
    save = ("--save", "predictions,logits", "--logit_pixels", "-1")
    world.eval("Cityscapes", "good", *save)
    common = ("--segmenters", "good", "--eval_dir", world.results, "--calibration_dir", world.root / "temperatures")
    common += ("--calib_dataset", "Cityscapes")
    assert world("compute_clusters_temp_scaling", *common)[0] == 0
    test = ("--trg_dataset", "Cityscapes", "--output_dir", world.root / "scaled")
    assert world("eval_calibration_clustering", *common, *test)[0] == 0
    other_model(monkeypatch)
    world.eval("Cityscapes", "good", *save)
    world.refused(
        "are not of the same model: model identity", "best_temperatures.json",
        code_out_err=world("eval_calibration_clustering", *common, *test),
    )  # fmt: skip
    assert world("compute_clusters_temp_scaling", *common)[0] == 0
    assert world("eval_calibration_clustering", *common, *test)[0] == 0


def test_a_limited_result_is_marked_named_and_never_replaces_a_whole_one(world, monkeypatch):
    world.eval("Cityscapes", "good", "--limit", "2")
    assert metrics(world)["limit"] == 2 and metrics(world)["images"] == 2
    code, out, _ = final(world)
    assert code == 0 and "results of a part of the images only (--limit 2)" in out
    assert json.loads((world.root / "final/good/Cityscapes/all.json").read_text())["limit"] == 2
    flags = (
        "--trg_dataset",
        "Cityscapes",
        "--segmenters",
        "good",
        "--eval_dir",
        world.results,
        "--output_dir",
        world.root,
    )
    world.refused("a part of the images (--limit 2)", code_out_err=world("eval_calibration", *flags))

    world.eval("Cityscapes", "good")
    whole = {path: path.read_bytes() for path in world.results.rglob("*") if path.is_file()}
    assert metrics(world)["limit"] is None
    code, out, _ = world.eval("Cityscapes", "good", "--limit", "2")
    assert code == 0 and "a part of the images only (--limit 2)" in out
    assert {path: path.read_bytes() for path in world.results.rglob("*") if path.is_file()} == whole
    other_model(monkeypatch)
    world.refused("holds results of all images", code_out_err=world.eval("Cityscapes", "good", "--limit", "2"))
    assert {path: path.read_bytes() for path in world.results.rglob("*") if path.is_file()} == whole


def test_limited_and_whole_scenes_are_not_pooled(world):
    world.eval("Cityscapes", "good", "--limit", "2")
    world.eval("Cityscapes", "good", "--scene", "munster")
    world.refused("cannot be pooled: --limit 2 and none", code_out_err=final(world))


def test_a_limit_above_the_number_of_images_is_none(world):
    world.eval("Cityscapes", "good", "--limit", "99")
    assert metrics(world)["limit"] is None


@pytest.mark.parametrize("gone", ["scene", "image"])
def test_images_that_the_data_set_no_longer_has_are_not_pooled(world, gone):
    world.eval("Cityscapes", "good")
    if gone == "scene":
        shutil.rmtree(image(world, "munster", "x").parent)
    else:
        image(world, "munster", "munster_000000_000019").unlink()
    world.refused("no longer in the data set", code_out_err=final(world))


def test_results_whose_images_are_all_gone_are_refused_where_the_data_set_is(world):
    world.eval("Cityscapes", "good")
    for path in (world.root / "datasets/cityscapes").rglob("*.png"):
        path.unlink()
    world.refused("10 of 10 images and masks", "no longer in the data set", code_out_err=final(world))


def evaluate_two_folders(world):
    """Evaluate one scene from one folder, and the other one from another folder with other images; return both."""
    one, other = world.root / "datasets/cityscapes", world.root / "other/cityscapes"
    shutil.copytree(one, other)
    write_png(other / "leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png", labelled(5)[0])
    world.eval("Cityscapes", "good", "--scene", "frankfurt")
    assert world.eval("Cityscapes", "good", "--scene", "munster", "--datasets_dir", other.parent)[0] == 0
    return one, other


def test_scenes_of_two_folders_of_a_data_set_are_not_pooled(world):
    one, other = evaluate_two_folders(world)
    images = read_jsonl(world.results / SCENE / "munster/manifest.jsonl")
    assert all(other.as_posix() in record["image"] for record in images)
    shutil.move(one / "leftImg8bit/val/frankfurt", one / "leftImg8bit/val/gone")  # neither folder holds all images
    shutil.rmtree(other / "leftImg8bit/val/frankfurt")
    world.refused("cannot be pooled", "of two folders", one, other, "Run: python", code_out_err=final(world))


@pytest.mark.parametrize("place", ["both", "neither"])
def test_two_folders_of_a_data_set_are_refused_by_their_marks(world, place):
    one, other = evaluate_two_folders(world)
    # The second folder holds other images of the first scene too.
    write_png(other / "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png", labelled(6)[0])
    if place == "neither":
        shutil.rmtree(one)
        shutil.rmtree(other)
    world.refused("cannot be pooled", "of two folders", one, other, code_out_err=final(world))


@pytest.mark.parametrize("way", ["copied", "moved", "linked"])
def test_scenes_of_a_data_set_that_was_moved_or_copied_are_pooled(world, way):
    one, other = world.root / "datasets/cityscapes", world.root / "other/cityscapes"
    world.eval("Cityscapes", "good", "--scene", "frankfurt")
    other.parent.mkdir()
    {"copied": shutil.copytree, "moved": shutil.move, "linked": lambda one, other: other.symlink_to(one)}[way](
        one, other
    )
    assert world.eval("Cityscapes", "good", "--scene", "munster", "--datasets_dir", other.parent)[0] == 0
    assert final(world)[0] == 0
    if way == "copied":  # an image of the first scene changed where it was read, and not in the copy
        write_png(image(world, "frankfurt", "frankfurt_000000_000294"), labelled(6)[0])
        assert final(world)[0] == 0


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["logits.safetensors", "statistics/{}.npz", "statistics/{}.json"])
def test_damaged_files_are_computed_again_and_counted(world, name, overwrite):
    flags = ("--save", "predictions,logits", *(["--overwrite"] if overwrite else []))
    world.eval("Cityscapes", "good", *flags[:2])
    path = world.results / SCENE / "munster" / name.format("munster_000000_000019")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    code, out, _ = world.eval("Cityscapes", "good", *flags)
    said = "damaged files of earlier results: 1, such as" in out and str(path) in out
    assert code == 0 and path.read_bytes() == whole
    assert said or (overwrite and "statistics" in name)  # which --overwrite replaces without reading them
    assert "damaged files" not in world.eval("Cityscapes", "good", *flags)[1]


def test_results_can_be_read_where_the_data_set_is_not(world):
    world.eval("Cityscapes", "good")
    shutil.rmtree(world.root / "datasets")
    assert final(world)[0] == 0


def test_an_image_that_changed_is_not_pooled(world):
    world.eval("Cityscapes", "good")
    write_png(image(world, "munster", "munster_000000_000019"), np.zeros((24, 40, 3), np.uint8))
    world.refused("changed after these results were computed", "munster_000000_000019", code_out_err=final(world))


@pytest.mark.parametrize("way", ["copy", "link", "linked scene", "other mask"])
def test_an_image_that_is_there_twice_is_refused_or_skipped(world, way):
    for kind, suffix in (("leftImg8bit", "_leftImg8bit"), ("gtFine", "_gtFine_labelIds")):
        source = image(world, "munster", "munster_000000_000019", suffix, kind)
        if way == "linked scene":
            source.parent.with_name("zurich").symlink_to(source.parent)
        else:
            target = source.with_name(f"munster_000009_000019{suffix}.png")
            target.symlink_to(source) if way == "link" else shutil.copy(source, target)
            if way == "other mask" and kind == "gtFine":
                write_png(target, labelled(5)[1])
    world.refused("the same image as", "--skip_bad", code_out_err=world.eval("Cityscapes", "good"))
    code, out, _ = world.eval("Cityscapes", "good", "--skip_bad")
    assert code == 0 and "the same image as" in out
    assert metrics(world, "munster")["images"] == 2


@pytest.mark.parametrize("change", ["empty", "doubled", "shortened"])
def test_a_manifest_that_disagrees_with_the_metrics_is_refused(world, change):
    world.eval("Cityscapes", "good")
    path = world.results / SCENE / "frankfurt/manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text({"empty": "", "doubled": "".join(2 * lines), "shortened": "".join(lines[:-1])}[change])
    world.refused("manifest.jsonl", "Run: python relis/eval.py", code_out_err=final(world))


@pytest.mark.parametrize("damage", ["no manifest", "truncated manifest", "truncated statistics"])
def test_the_command_for_damaged_results_repairs_them(world, damage):
    world.eval("Cityscapes", "good")
    folder = world.results / SCENE / "frankfurt"
    before = (folder / "metrics.json").read_bytes()
    path = folder / "manifest.jsonl" if "manifest" in damage else min(folder.glob("statistics/*.json"))
    if damage == "no manifest":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    world.refused(folder, "relis/eval.py", code_out_err=final(world))
    assert world.eval("Cityscapes", "good")[0] == 0
    assert (folder / "metrics.json").read_bytes() == before and final(world)[0] == 0


def test_splits_are_not_pooled(world):
    for kind in ("leftImg8bit", "gtFine"):
        folder = world.root / "datasets/cityscapes" / kind
        (folder / "train").mkdir()
        (folder / "val/munster").rename(folder / "train/munster")
    world.eval("Cityscapes", "good")
    world.eval("Cityscapes", "good", "--split", "train")
    world.refused("cannot be pooled: --split val and train", code_out_err=final(world))
    world.eval("Cityscapes", "good", "--split", "val")
    assert final(world, "--scene", "frankfurt")[0] == 0


def test_scenes_of_two_gates_are_not_pooled(world):
    folder = world.root / "images/fog"
    items = find_items("Cityscapes_fog", root=folder)
    for number, scene in enumerate(("frankfurt", "munster")):
        write_gate(folder, items, {item.id: ["bad"] * (item is items[0]) * number for item in items}, {})
        assert world.eval("Cityscapes_fog", "good", "--gate", "--scene", scene)[0] == 0
    refused = final(world, dataset="Cityscapes_fog-gated")
    world.refused("cannot be pooled: gate.json", "--gate", code_out_err=refused)
    assert world.eval("Cityscapes_fog", "good", "--gate")[0] == 0
    assert final(world, dataset="Cityscapes_fog-gated")[0] == 0


def test_results_of_an_earlier_gate_are_refused(world):
    folder = world.root / "images/fog"
    items = find_items("Cityscapes_fog", root=folder)
    write_gate(folder, items, {item.id: [] for item in items}, {})
    assert world.eval("Cityscapes_fog", "good", "--gate")[0] == 0
    assert final(world, dataset="Cityscapes_fog-gated")[0] == 0
    write_gate(folder, items, {item.id: ["bad"] * (item is items[0]) for item in items}, {})
    refused = final(world, dataset="Cityscapes_fog-gated")
    world.refused(folder / "gate.json", "changed after these results", "--gate", code_out_err=refused)
    assert world.eval("Cityscapes_fog", "good", "--gate")[0] == 0
    assert final(world, dataset="Cityscapes_fog-gated")[0] == 0


def test_statistics_of_another_model_than_the_manifest_states_are_refused(world, monkeypatch):
    world.eval("Cityscapes", "good")
    path = world.results / SCENE / "frankfurt/statistics/frankfurt_000000_000294.json"
    before = path.read_bytes()
    other_model(monkeypatch)
    world.eval("Cityscapes", "good")
    path.write_bytes(before)
    world.refused(path.name, "manifest.jsonl", "run relis/eval.py again", code_out_err=final(world))


def test_temperatures_of_earlier_images_are_refused(world):
    save = ("--save", "predictions,logits", "--logit_pixels", "-1")
    world.eval("Cityscapes", "good", *save)
    common = ("--segmenters", "good", "--eval_dir", world.results, "--calibration_dir", world.root / "temperatures")
    common += ("--calib_dataset", "Cityscapes", "--calib_scene", "munster")
    assert world("compute_clusters_temp_scaling", *common)[0] == 0
    test = ("--trg_dataset", "Cityscapes", "--scene", "frankfurt", "--output_dir", world.root / "scaled")
    assert world("eval_calibration_clustering", *common, *test)[0] == 0
    write_png(image(world, "munster", "munster_000000_000019"), labelled(99)[0])
    world.eval("Cityscapes", "good", *save)
    again = world("eval_calibration_clustering", *common, *test)
    world.refused("best_temperatures.json", "other images of Cityscapes_all_munster", code_out_err=again)


def test_commands_repeat_the_folder_of_the_data_sets(world):
    world.eval("Cityscapes", "good")
    (world.results / SCENE / "munster/metrics.json").unlink()
    world.refused(f"--datasets_dir {world.root / 'datasets'}", code_out_err=final(world))


def test_commands_repeat_the_flags_of_the_evaluation(world):
    world.eval("Cityscapes", "good", "--split", "val", "--class_map", "trainids")
    (world.results / SCENE / "munster/metrics.json").unlink()
    world.refused("--split val", "--class_map trainids", code_out_err=final(world))


def test_a_function_without_weights_is_evaluated_again_and_says_so(world, monkeypatch):
    scale = [0.0]

    def plain(name, device, precision="32-true", **options):
        class Plain(torch.nn.Module):
            name = "plain"

            def forward(self, images, size=None):
                return (
                    torch.nn.functional.one_hot((images[:, 0] + int(scale[0])).long() % 19, 19).movedim(-1, 1).float()
                )

        return Plain()

    monkeypatch.setattr(sys.modules["genval.segmenters"], "load_segmenter", plain)
    code, out, _ = world.eval("Cityscapes", "good")
    before = metrics(world)["miou"]
    assert code == 0 and "evaluated again in every run" in out
    scale[0] = 1.0
    world.eval("Cityscapes", "good")
    assert metrics(world)["miou"] != before
