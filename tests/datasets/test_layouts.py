"""Layouts of the larger sets, and of one's own folders."""

import json

import numpy as np
import pytest

from genval.datasets import find_items, read_pair
from genval.datasets.layouts import LAYOUTS, find_layout, find_root, is_generated, label_space_of, merged_as
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT
from genval.runtime.settings import dataset_list


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def keys(items):
    return [(item.cond, item.scene, item.id) for item in items]


def test_bdd100k(tmp_path):
    root = tmp_path / "bdd100k"
    touch(
        root, "images/10k/val/7d06fefd-f7be05a6.jpg", "labels/sem_seg/masks/val/7d06fefd-f7be05a6.png",
        "labels/sem_seg/colormaps/val/7d06fefd-f7be05a6.png", "images/10k/train/0004a4c0-d4dff0ad.jpg",
        "labels/sem_seg/masks/train/0004a4c0-d4dff0ad.png", "images/10k/test/ac6d4f42-00000000.jpg",
        "images/100k/val/b1c66a42-6f7d68ca.jpg",
    )  # fmt: skip
    items = find_items("BDD100K", datasets_dir=tmp_path)
    assert keys(items) == [("mixed", "val", "7d06fefd-f7be05a6")]
    assert items[0].label_space == "trainids"
    assert {item.scene for item in find_items("BDD100K", split="all", datasets_dir=tmp_path)} == {"train", "val"}


def test_muses_has_weather_and_time(tmp_path):
    root = tmp_path / "muses"
    for weather, time, recording in (("fog", "day", 1), ("fog", "night", 2), ("clear", "night", 3)):
        name = f"REC000{recording}_frame_045206"
        touch(
            root, f"frame_camera/val/{weather}/{time}/{name}_frame_camera.png",
            f"gt_semantic/val/{weather}/{time}/{name}_gt_labelTrainIds.png",
            f"gt_semantic/val/{weather}/{time}/{name}_gt_labelColor.png",
            f"gt_semantic/val/{weather}/{time}/{name}_gt_labelIds.png",
            f"reference_frames/val/{weather}/{time}/{name}_reference_frame.png",
            f"lidar/val/{weather}/{time}/{name}_lidar.bin",
        )  # fmt: skip
    found = {
        cond: keys(find_items("MUSES", cond, datasets_dir=tmp_path)) for cond in ("all", "fog", "night", "fog_night")
    }
    assert [key[0] for key in found["all"]] == ["clear_night", "fog_day", "fog_night"]
    assert found["all"][0] == ("clear_night", "REC0003", "REC0003_frame_045206")
    assert [key[0] for key in found["fog"]] == ["fog_day", "fog_night"]
    assert [key[0] for key in found["night"]] == ["clear_night", "fog_night"]
    assert [key[0] for key in found["fog_night"]] == ["fog_night"]
    assert len(find_items("MUSES", ["fog", "night"], datasets_dir=tmp_path)) == 3
    with pytest.raises(GenValError, match=r"MUSES has no condition 'snow'.*clear_night, fog_day, fog_night, all"):
        find_items("MUSES", "snow", datasets_dir=tmp_path)


def test_dark_zurich(tmp_path):
    name = "GOPR0356_frame_000321"
    touch(
        tmp_path / "Dark_Zurich", f"rgb_anon/val/night/GOPR0356/{name}_rgb_anon.png",
        "rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000321_ref_rgb_anon.png",
        "rgb_anon/train/twilight/GOPR0348/GOPR0348_frame_000001_rgb_anon.png",
        *(f"gt/val/night/GOPR0356/{name}_gt_{kind}.png" for kind in ("labelTrainIds", "labelIds", "labelColor")),
    )  # fmt: skip
    assert keys(find_items("DarkZurich", datasets_dir=tmp_path)) == [("night", "GOPR0356", name)]


@pytest.mark.parametrize("masks", ["v1.2/labels", "labels"])
def test_mapillary_of_either_release(tmp_path, masks):
    root = tmp_path / "mapillary"
    for split in ("training", "validation"):
        touch(root, f"{split}/images/a.jpg", f"{split}/{masks}/a.png", f"{split}/v2.0/labels/a.png")
    (item,) = find_items("Mapillary", datasets_dir=tmp_path)
    assert (item.label_space, item.scene) == ("mapillary-v1.2", "validation")
    assert item.mask == root / f"validation/{masks}/a.png"
    (item,) = find_items("Mapillary-v2", datasets_dir=tmp_path)
    assert (item.label_space, item.mask) == ("mapillary-v2.0", root / "validation/v2.0/labels/a.png")
    assert find_root("Mapillary", root=root) == root
    assert len(find_items("Mapillary", split="all", datasets_dir=tmp_path)) == 2


def test_the_sets_own_name_goes_first_in_a_folder_of_several(tmp_path):
    for name in ("IDD_Segmentation", "cityscapes"):
        for folder in ("leftImg8bit/val", "gtFine/val"):
            (tmp_path / name / folder).mkdir(parents=True)
    assert find_root("Cityscapes", root=tmp_path) == tmp_path / "cityscapes"
    assert find_root("Cityscapes", root=tmp_path / "IDD_Segmentation") == tmp_path / "IDD_Segmentation"


def test_every_set_has_a_place_and_a_class():
    import path_dicts

    assert path_dicts.DATASET_ROOTS.keys() == LAYOUTS.keys()
    spaces = [label_space_of(dataset) for dataset in LAYOUTS]
    assert all(len(space.classes) >= 11 or space.groups for space in spaces)


@pytest.fixture
def own(tmp_path):
    """Two scenes of my own, and what its ids mean."""
    for scene, name, label_id in (("a", "1", 0), ("a", "2", 0), ("b", "1", 5)):
        write_png(tmp_path / f"rgb/{scene}/{name}_rgb.png", np.zeros((4, 6, 3), np.uint8))
        write_png(tmp_path / f"gt/{scene}/{name}_gt.png", np.full((4, 6), label_id, np.uint8))
    (tmp_path / "map.json").write_text(json.dumps({"0": "road", "5": "sky"}))
    return tmp_path


def test_a_pair_of_folders_and_a_label_map(own):
    dataset = f"folder:{own}/rgb/{{scene}}/*_rgb.png, {own}/gt/{{scene}}/*_gt.png,{own}/map.json"
    items = find_items(dataset)
    assert keys(items) == [("mixed", "a", "1"), ("mixed", "a", "2"), ("mixed", "b", "1")]
    assert read_pair(items[2])[1].tolist() == [[10] * 6] * 4
    assert label_space_of(dataset).classes == (0, 10)
    assert len(find_items(dataset, scene="a")) == 2
    one_scene = f"folder:{own}/rgb/a/*_rgb,{own}/gt/a/*_gt,{own}/map.json"
    assert keys(find_items(one_scene)) == [("mixed", "mixed", "1"), ("mixed", "mixed", "2")]
    (own / "gt/a/1_gt.png").unlink()
    with pytest.raises(GenValError, match=r"1 image without a mask \(.*rgb/a/1_rgb\.png\)"):
        find_items(dataset)


def test_one_name_for_both_and_any_split(own):
    for kind in ("rgb", "gt"):
        (own / kind / "x.png").write_bytes((own / kind / f"b/1_{kind}.png").read_bytes())
    assert keys(find_items(f"folder:{own}/rgb,{own}/gt,{own}/map.json")) == [("mixed", "mixed", "x")]
    by_split = f"folder:{own}/rgb/{{split}}/*_rgb,{own}/gt/{{split}}/*_gt,{own}/map.json"
    assert [item.scene for item in find_items(by_split)] == ["a", "a", "b"]
    assert [item.scene for item in find_items(by_split, split="b")] == ["b"]


@pytest.mark.parametrize("end", ["tif", "tiff", "TIF", "webp", "jpeg"])
def test_images_of_every_format_that_is_read_are_found(own, end):
    (own / f"rgb/x.{end}").write_bytes(b"image")
    (own / "gt/x.png").write_bytes(b"mask")
    assert keys(find_items(f"folder:{own}/rgb,{own}/gt,{own}/map.json")) == [("mixed", "mixed", "x")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder:a,b", "Expected folder:IMAGES,MASKS,LABELS"),
        ("folder:a,b,", "Expected folder:IMAGES,MASKS,LABELS"),
        ("folder:a/{scene},b,cityscapes", "expected the same of"),
        ("folder:a/{city},b/{city},cityscapes", "expected the same of"),
        ("folder:a/*/x,b/*/x,cityscapes", r"a \* can only be in the file's name"),
        ("folder:a/x*.png,b/*.png,cityscapes", r"expected one \* at the start"),
        ("folder:a,b,kitti", "Unknown labels 'kitti'"),
        ("folder:a,b,maps/absent.json", r"there is no file .*maps/absent\.json: expected one of cityscapes, "),
        ("folder:a,b,tests/", r"tests is a folder: expected one of cityscapes, "),
        ("folder:/no/where,/no/where/else,cityscapes", r"No files of folder:.*expected /no/where/\*"),
        ("folder:/no/{scene},/no/{scene},cityscapes", r"found none\. There is no folder /no\. "),
    ],
)
def test_bad_folders(text, message):
    with pytest.raises(GenValError, match=message):
        find_items(text)


def test_the_name_of_labels_may_be_in_any_case(own):
    items = find_items(f"folder:{own}/rgb/a/*_rgb,{own}/gt/a/*_gt,CityScapes")
    assert items[0].label_space == "cityscapes"


def test_lists_of_data_sets_keep_folders_together():
    assert dataset_list("ACDC,folder:a,b,c.json,IDD") == ["ACDC", "folder:a,b,c.json", "IDD"]


def test_a_domain_may_hold_braces():
    assert find_layout("Cityscapes_a {b}").cond.format() == "a {b}"


def test_sets_of_other_generators_have_a_folder_of_their_own(tmp_path):
    frame = "leftImg8bit/val/aachen/a_leftImg8bit.png"
    for folder in ("fog", "img2img/fog"):
        (tmp_path / folder / frame).parent.mkdir(parents=True)
    assert find_root("Cityscapes_fog", generated_dir=tmp_path) == tmp_path / "fog"
    assert find_root("Cityscapes_img2img_fog", generated_dir=tmp_path) == tmp_path / "img2img/fog"
    assert find_layout("Cityscapes_img2img_fog").cond == "fog"
    with pytest.raises(GenValError, match=r"style_transfer\.py --generator translate --domain fog"):
        find_root("Cityscapes_translate_fog", generated_dir=tmp_path)
    with pytest.raises(GenValError, match=r"corrupt\.py --method histogram --reference PATH --domain fog"):
        find_root("Cityscapes_histogram_fog", generated_dir=tmp_path)


STREETS = REPO_ROOT.parent / "shared/realdata/streets"


def write_item(image, mask, ids):
    """Write an image and a mask of these ids, of one row."""
    from PIL import Image

    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((1, len(ids), 3), 90, np.uint8)).save(image)
    write_png(mask, np.array([ids], np.uint8))


# Data set: image, mask, another file that is neither; ids of the mask, trainIds (or merged classes); what is found.
PUBLIC_LAYOUTS = {
    "IDD-lite": (
        ("idd20k_lite/leftImg8bit/val/3/024541_image.jpg", "idd20k_lite/gtFine/val/3/024541_label.png"),
        "idd20k_lite/gtFine/val/3/024541_inst_label.png",
        ([0, 1, 2, 3, 4, 5, 6, 255], [0, 1, 5, 6, 3, 2, 4, 255]),
        ("india", "3", "024541"),
    ),
    "IDD-lite-flat": (
        ("idd_lite/train/3_024541.jpg", "idd_lite/train/3_024541_label.png"),
        "idd_lite/unlabelled/3_024542.jpg",
        ([0, 1, 2, 3, 4, 5, 6, 255], [0, 1, 5, 6, 3, 2, 4, 255]),
        ("india", "train", "3_024541"),
    ),
    "CamVid-SegNet": (
        ("CamVid/val/0016E5_07959.png", "CamVid/valannot/0016E5_07959.png"),
        "CamVid/val.txt",
        ([0, 3, 11], [10, 0, 255]),
        ("day", "0016E5", "0016E5_07959"),
    ),
}


@pytest.mark.parametrize("dataset", PUBLIC_LAYOUTS)
def test_a_public_layout(tmp_path, dataset):
    (image, mask), other, (ids, train_ids), found = PUBLIC_LAYOUTS[dataset]
    write_item(tmp_path / image, tmp_path / mask, ids)
    write_png(tmp_path / other, np.zeros((1, 2), np.uint8))
    (item,) = find_items(dataset, datasets_dir=tmp_path)
    assert (item.cond, item.scene, item.id) == found
    assert read_pair(item)[1].tolist() == [train_ids]


def test_camvid_in_both_layouts_in_one_folder(tmp_path):
    write_item(tmp_path / "camvid/train/0001TP_1.png", tmp_path / "camvid/trainannot/0001TP_1.png", [3])
    write_item(tmp_path / "camvid/images/train/0001TP_1.jpg", tmp_path / "camvid/labels/train/0001TP_1.png", [3])
    for dataset in ("CamVid", "CamVid-SegNet"):
        (item,) = find_items(dataset, datasets_dir=tmp_path)
        assert item.cond == "dusk" and read_pair(item)[1].tolist() == [[0]]


def test_images_and_masks_in_one_folder(tmp_path):
    for cond in ("fog", "night"):
        write_item(tmp_path / cond / "a_1.png", tmp_path / cond / "a_1_labelTrainIds.png", [0, 13, 255])
    dataset = f"folder:{tmp_path}/{{cond}},{tmp_path}/{{cond}}/*_labelTrainIds,trainids"
    assert keys(find_items(dataset)) == [("fog", "mixed", "a_1"), ("night", "mixed", "a_1")]
    write_png(tmp_path / "fog/a_2.png", np.zeros((1, 3, 3), np.uint8))
    with pytest.raises(GenValError, match="1 image without a mask"):
        find_items(dataset)


def test_names_of_sets_in_merged_classes(tmp_path):
    (tmp_path / "level1.json").write_text(json.dumps({"0": ["road", "sidewalk"], "6": "sky"}))
    own = f"folder:{tmp_path}/rgb,{tmp_path}/gt,{tmp_path}/level1.json"
    assert merged_as("Cityscapes_fog-gated", "IDD-lite") == "Cityscapes_fog@idd-level1-gated"
    assert label_space_of("Cityscapes_fog@idd-level1-gated").names == label_space_of("IDD-lite").names
    assert merged_as("Cityscapes", own) == f"Cityscapes@{tmp_path}/level1.json"
    assert label_space_of(merged_as("Cityscapes", own)).names == label_space_of(own).names
    assert merged_as("IDD-lite", "ACDC@idd-level1") == "IDD-lite"
    assert is_generated("Cityscapes_fog@idd-level1") and not is_generated("Cityscapes_corrupt_fog@idd-level1")
    for dataset, message in (
        ("Cityscapes@idd", "merges no classes"),
        ("IDD-lite@idd-level1", "are merged classes"),
        ("Cityscape@idd-level1", "Did you mean Cityscapes"),
    ):
        with pytest.raises(GenValError, match=message):
            find_layout(dataset)


def test_a_set_in_merged_classes_has_the_files_of_the_set(tmp_path):
    write_item(
        tmp_path / "images/fog/leftImg8bit/val/a/1_leftImg8bit.png",
        tmp_path / "images/fog/gtFine/val/a/1_labelIds.png",
        [7, 8, 11, 21, 26, 33, 0],
    )
    (item,) = find_items("Cityscapes_fog@idd-level1", generated_dir=tmp_path / "images")
    assert (item.cond, item.scene, item.id) == ("fog", "a", "1")
    assert read_pair(item)[1].tolist() == [[0, 1, 2, 2, 6, 6, 255]]


@pytest.mark.skipif(not STREETS.is_dir(), reason="needs the real images in ../shared/realdata/streets")
def test_real_layouts():
    items = find_items("IDD-lite-flat", root=STREETS / "idd_lite")
    assert len(items) == 1403 and set(np.unique(read_pair(items[0])[1])) <= {*range(7), 255}
    acdc = f"folder:{STREETS}/acdc/{{cond}},{STREETS}/acdc/{{cond}}/*_labelTrainIds,trainids"
    counts = {cond: len(find_items(acdc, cond=cond)) for cond in ("fog", "night", "rain", "snow")}
    assert counts == {"fog": 5, "night": 10, "rain": 10, "snow": 9}
    for item in find_items(acdc):
        image, train_ids = read_pair(item)
        assert image.shape[:2] == train_ids.shape and (train_ids != 255).mean() > 0.5


def test_a_missing_set_of_the_mini_world_is_to_be_rendered_or_generated(tmp_path, monkeypatch):
    monkeypatch.setattr("genval.runtime.paths.REPO_ROOT", tmp_path)
    with pytest.raises(GenValError, match="Run make demo, which renders it, or give --trg_root PATH"):
        find_root("Cityscapes", datasets_dir="datasets/mini")
    with pytest.raises(GenValError, match=r"style_transfer.py --domain fog --preset mini, or give --generated_dir"):
        find_root("Cityscapes_fog", datasets_dir="datasets/mini", generated_dir="images/mini/style_transfer")
    with pytest.raises(GenValError, match=r"style_transfer.py --domain fog, or give --generated_dir"):
        find_root("Cityscapes_fog")
    with pytest.raises(GenValError, match="Link it: ln -s PATH"):
        find_root("Cityscapes")
