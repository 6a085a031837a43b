import random

import numpy as np
import pytest

from genval.datasets import find_items, partition, read_pair
from genval.datasets.layouts import find_root, label_space_of
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT

CAMVID = REPO_ROOT.parent / "shared/realdata/camvid"


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def cityscapes(root, names, image=True, mask=True, split="val", mask_suffix="_gtFine_labelIds"):
    for name in names:
        city = name.split("_")[-3]
        if image:
            touch(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
        if mask:
            touch(root / f"gtFine/{split}/{city}/{name}{mask_suffix}.png")


NAMES = ["lindau_000000_000019", "frankfurt_000001_000002", "frankfurt_000000_000001", "munster_000000_000019"]


@pytest.fixture
def root(tmp_path):
    cityscapes(tmp_path / "cityscapes", random.sample(NAMES, len(NAMES)))
    # What else lies in these folders.
    touch(tmp_path / "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_color.png")
    touch(tmp_path / "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_instanceIds.png")
    touch(tmp_path / "cityscapes/leftImg8bit/val/lindau/.DS_Store")
    touch(tmp_path / "cityscapes/leftImg8bit/val/lindau/._lindau_000000_000019_leftImg8bit.png")
    cityscapes(tmp_path / "cityscapes", ["ulm_000000_000019"], split="train")
    return tmp_path


def find(root, dataset="Cityscapes", **options):
    return find_items(dataset, datasets_dir=root, generated_dir=root / "generated", **options)


def test_items_are_sorted_and_paired_by_name(root):
    items = find(root)
    assert [item.id for item in items] == sorted(NAMES)
    assert all(item.image.name.startswith(item.id) and item.mask.name.startswith(item.id) for item in items)
    assert {(item.cond, item.label_space) for item in items} == {("clean", "cityscapes")}


def test_scenes_and_splits_select(root):
    assert [item.scene for item in find(root, scene=["munster", "lindau"])] == ["lindau", "munster"]
    assert [item.scene for item in find(root, split="train")] == ["ulm"]
    assert len(find(root, split="all")) == 5


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_both_named(root):
    cityscapes(root / "cityscapes", ["lindau_000009_000019"], mask=False)
    cityscapes(root / "cityscapes", ["munster_000009_000019"], image=False)
    with pytest.raises(GenValError, match=r"1 image without a mask .*lindau_000009.* and 1 mask without .*munster_0"):
        find(root)
    assert len(find(root, scene="frankfurt")) == 2  # other scenes are none of its business
    skipped = []
    assert [item.id for item in find(root, skipped=skipped)] == sorted(NAMES)
    assert [(bad.scene, bad.reason) for bad in skipped] == [
        ("lindau", "image without a mask"),
        ("munster", "mask without an image"),
    ]


def test_a_missing_file_never_shifts_the_pairs(root):
    (root / "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000001_gtFine_labelIds.png").unlink()
    for item in find(root, skipped=[]):
        assert item.image.name.removesuffix("_leftImg8bit.png") == item.mask.name.removesuffix("_gtFine_labelIds.png")


def test_two_files_for_one_id_are_refused(root):
    touch(root / "cityscapes/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.jpg")
    with pytest.raises(GenValError, match=r"Two files for lindau_000000_000019"):
        find(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "Cityscape"}, r"Unknown data set 'Cityscape'\. Did you mean Cityscapes\?"),
        ({"cond": "fog"}, r"no condition 'fog'.*Cityscapes_fog.*--cond one of: clean, all"),
        ({"scene": "frankfrut"}, r"no scene 'frankfrut'\. Did you mean frankfurt\?.*frankfurt, lindau, munster"),
        ({"split": "test"}, r"No files of Cityscapes: expected .*leftImg8bit/test/\{scene\}/\*_leftImg8bit"),
        ({"dataset": "ACDC"}, r"No ACDC in .*acdc.*holds cityscapes.*ln -s PATH"),
        ({"dataset": "Cityscapes_fgo"}, r"No Cityscapes_fgo in .*style_transfer.py --domain fgo"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_known(root, options, message):
    with pytest.raises(GenValError, match=message):
        find(root, **options)


def test_hints_name_the_scenes_of_the_set_alone(root):
    for cond, scene in (("fog", "GOPR0475"), ("night", "GOPR0351")):
        name = f"{cond}/val/{scene}/{scene}_frame_1"
        touch(root / f"ACDC/rgb_anon/{name}_rgb_anon.png", root / f"ACDC/gt/{name}_gt_labelIds.png")
    with pytest.raises(GenValError, match=r"no scene 'frankfurt'\. Give --scene one of: GOPR0351, GOPR0475, all"):
        find(root, "ACDC", scene="frankfurt")


def test_empty_folders_are_refused(tmp_path):
    (tmp_path / "cityscapes/leftImg8bit/val/lindau").mkdir(parents=True)
    with pytest.raises(GenValError, match="No files of Cityscapes"):
        find(tmp_path)
    cityscapes(tmp_path / "cityscapes", ["lindau_000000_000019"], mask=False)
    with pytest.raises(GenValError, match=r"expected .*gtFine/val/\{scene\}/\*_gtFine_labelIds\.png, found none"):
        find(tmp_path)


def test_acdc_merges_train_and_val_and_never_reads_the_clear_references(tmp_path):
    for cond, scene in (("fog", "GOPR0475"), ("night", "GOPR0351")):
        for split in ("train", "val"):
            name = f"{scene}_frame_{split}"
            touch(
                tmp_path / f"ACDC/rgb_anon/{cond}/{split}/{scene}/{name}_rgb_anon.png",
                tmp_path / f"ACDC/rgb_anon/{cond}/{split}_ref/{scene}/{name}_ref_rgb_anon.png",
                tmp_path / f"ACDC/gt/{cond}/{split}/{scene}/{name}_gt_labelIds.png",
            )
        touch(tmp_path / f"ACDC/rgb_anon/{cond}/test/{scene}/{scene}_frame_test_rgb_anon.png")
    items = find(tmp_path, "ACDC")
    assert [(item.cond, item.id) for item in items] == [
        (cond, f"{scene}_frame_{split}")
        for cond, scene in (("fog", "GOPR0475"), ("night", "GOPR0351"))
        for split in ("train", "val")
    ]
    assert [item.id for item in find(tmp_path, "ACDC", cond="night", split="val")] == ["GOPR0351_frame_val"]
    with pytest.raises(GenValError, match=r"no condition 'nihgt'\. Did you mean night\?"):
        find(tmp_path, "ACDC", cond="nihgt")
    with pytest.raises(GenValError, match=r"no scene 'GOPR0351'.*--scene one of: GOPR0475, all"):
        find(tmp_path, "ACDC", cond="fog", scene="GOPR0351")


def test_idd_is_called_india_or_clean_and_may_be_jpg(tmp_path):
    touch(
        tmp_path / "IDD_Segmentation/leftImg8bit/val/119/0001_leftImg8bit.jpg",
        tmp_path / "IDD_Segmentation/gtFine/val/119/0001_gtFine_labellevel3Ids.png",
    )
    for cond in ("india", "clean", "all"):
        (item,) = find(tmp_path, "IDD", cond=cond)
        assert (item.cond, item.scene, item.label_space) == ("india", "119", "idd")


@pytest.mark.parametrize("mask_suffix", ["_labelIds", "_gtFine_labelIds"])
def test_generated_sets_of_any_domain_with_either_name_of_the_mask(tmp_path, mask_suffix):
    cityscapes(tmp_path / "generated/sand_storm", ["sand_storm_7_lindau_000000_000019"], mask_suffix=mask_suffix)
    (item,) = find(tmp_path, "Cityscapes_sand_storm")
    assert (item.id, item.cond, item.scene) == ("sand_storm_7_lindau_000000_000019", "sand_storm", "lindau")


@pytest.mark.parametrize("place", ["cityscapes", "Cityscapes", "mine/cityscapes", "mine/CityScapes", "cityscapes/v1"])
def test_a_data_set_is_found_where_links_put_it(tmp_path, place):
    cityscapes(tmp_path / place, NAMES)
    assert find_root("Cityscapes", datasets_dir=tmp_path) == tmp_path / place
    assert len(find_items("Cityscapes", root=tmp_path / place)) == 4


def test_classes_of_a_data_set():
    assert [
        len(label_space_of(dataset).classes) for dataset in ("Cityscapes", "Cityscapes_india", "IDD", "CamVid")
    ] == [
        19,
        19,
        17,
        11,
    ]


@pytest.mark.skipif(not CAMVID.exists(), reason="needs the real CamVid images in ../shared/realdata/camvid")
def test_camvid_has_dusk_and_day():
    items = find_items("CamVid", root=CAMVID)
    assert len(items) == 701
    assert {item.scene for item in items if item.cond == "dusk"} == {"0001TP"}
    assert {item.scene for item in items if item.cond == "day"} == {"0006R0", "0016E5", "Seq05VD"}
    assert len(find_items("CamVid", cond="dusk", split="test", root=CAMVID)) == 62
    image, train_ids = read_pair(items[0])
    assert image.shape == (360, 480, 3) and train_ids.shape == (360, 480)
    assert set(np.unique(train_ids)) <= {*label_space_of("CamVid").classes, 255}


@pytest.fixture
def pixels(tmp_path):
    """Seven images of two cities, the third larger than the others."""
    names = [f"a_{n:06d}_000000" for n in range(5)] + [f"b_{n:06d}_000000" for n in range(2)]
    for number, name in enumerate(names):
        city, height = name[0], 12 if number == 2 else 8
        image = np.full((height, 6, 3), number, np.uint8)
        write_png(tmp_path / f"cityscapes/leftImg8bit/val/{city}/{name}_leftImg8bit.png", image)
        write_png(
            tmp_path / f"cityscapes/gtFine/val/{city}/{name}_gtFine_labelIds.png", np.full((height, 6), 7, np.uint8)
        )
    return tmp_path


def test_the_partition_holds_one_scene_per_batch(pixels):
    assert [len(batch) for batch in partition(find(pixels), 4)] == [4, 1, 2]


def test_the_partition_of_a_scene_does_not_depend_on_the_others(pixels):
    whole = partition(find(pixels), 4)
    assert partition(find(pixels, scene="b"), 4) == whole[2:]


def test_the_size_mismatch_names_both_files(pixels):
    write_png(pixels / "cityscapes/gtFine/val/b/b_000000_000000_gtFine_labelIds.png", np.zeros((9, 6), np.uint8))
    item = find(pixels, scene="b")[0]
    with pytest.raises(GenValError) as error:
        read_pair(item)
    assert str(item.image) in str(error.value) and str(item.mask) in str(error.value)


def test_rendered_streets_never_pass_for_real_ones(tmp_path):
    (tmp_path / "mini/cityscapes/leftImg8bit").mkdir(parents=True)
    assert find_root("Cityscapes", datasets_dir=tmp_path) == tmp_path / "mini/cityscapes"
    (tmp_path / "mini/derived.json").write_text("{}")
    with pytest.raises(GenValError, match="No Cityscapes"):
        find_root("Cityscapes", datasets_dir=tmp_path)
    assert find_root("Cityscapes", datasets_dir=tmp_path / "mini") == tmp_path / "mini/cityscapes"
