"""Images with objects: the generated set and the public layouts, paired by name and checked."""

import json

import numpy as np
import pytest

from genval.artifacts.fingerprint import file_mark
from genval.datasets.items import BadFile
from genval.datasets.ood_sets import BLOCK, GeneratedFolders, blocks_of, find_ood_items, read_kinds, read_ood_pair
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT

SIZE = (12, 20)


def write(path, value=0, shape=SIZE):
    """An image of one colour, or a mask of `value` with an object of 1 (or of the ids given) in a corner."""
    array = np.full((*shape, 3), 90, np.uint8) if value is None else np.full(shape, value, np.uint8)
    write_png(path, array)


def make_generated(root, numbers=(0, 1, 2, 10), objects=("lion", "teddy_bear")):
    for name in objects:
        for number in numbers:
            write(root / f"refined/{name}/{number}.png", None)
            mask = np.zeros(SIZE, np.uint8)
            mask[3:6, 4:9] = 255
            write_png(root / f"masks/{name}/{number}_mask.png", mask)
            box = {f"{number}.png": {"pos_mask": [2, 3], "size_mask": 8}}
            place = root / f"with_positions/{name}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}_pos.json").write_text(json.dumps(box))
            write_png(place / f"{number}_gt.png", np.repeat(np.arange(12, dtype=np.uint8)[:, None], 20, 1))
    line = {"id": "teddy_bear/0", "object": "teddy bear"}
    (root / "with_positions/manifest.jsonl").write_text(json.dumps(line) + "\n")
    return GeneratedFolders(*(str(root / part) for part in ("refined", "masks", "with_positions")))


PUBLIC = {
    "RoadAnomaly21": ("dataset_AnomalyTrack", "images/v0003.jpg", "labels_masks/v0003_labels_semantic.png"),
    "RoadObstacle21": ("dataset_ObstacleTrack", "images/v_3.webp", "labels_masks/v_3_labels_semantic.png"),
    "RoadAnomaly": ("RoadAnomaly_jpg", "frames/animals01.jpg", "frames/animals01.labels/labels_semantic.png"),
    "StreetHazards": ("streethazards", "test/images/test/t5/7.png", "test/annotations/test/t5/7.png"),
    "FishyscapesStatic": ("fishyscapes", "fs_static_images_v2/0003_rgb.png", "fs_val_v2/0003_labels.png"),
    "FishyscapesLostAndFound": (
        "fishyscapes",
        "leftImg8bit/test/04_Maurener_Weg_8/04_Maurener_Weg_8_000000_000030_leftImg8bit.png",
        "fishyscapes_lostandfound/0000_04_Maurener_Weg_8_000000_000030_labels.png",
    ),
}  # fmt: skip
OTHER_RELEASES = {
    "FishyscapesStatic": ("fishyscapes", "Static/original/12.png", "Static/labels/12.png"),
    "FishyscapesLostAndFound": ("fishyscapes", "LostAndFound/original/12.png", "LostAndFound/labels/12.png"),
}
COLLECTION = [
    (name, (f"anomaly/{name}", "12.jpg", "12_mask.png"))
    for name in ("RoadAnomaly21", "RoadObstacle21", "FishyscapesStatic", "FishyscapesLostAndFound")
]
REAL = REPO_ROOT.parent / "shared/realdata/streets/anomaly"
OWN_FOLDER = (
    "FishyscapesLostAndFound",
    ("fishyscapes", "laf_images/04_a_leftImg8bit.png", "fishyscapes_lostandfound/0017_04_a_labels.png"),
)
# What the masks hold, and what it means.
IDS = {"RoadAnomaly": ([0, 1, 2, 255], [0, 0, 1, 255]), "StreetHazards": ([0, 1, 13, 14], [255, 0, 0, 1])}


@pytest.mark.parametrize(("name", "files"), [*PUBLIC.items(), *OTHER_RELEASES.items(), OWN_FOLDER, *COLLECTION])
def test_a_public_set_is_read_as_it_comes(tmp_path, name, files):
    from PIL import Image

    folder, image, mask = files
    ids, kinds = IDS.get(name, ([0, 1, 255], [0, 1, 255]))
    for path in (tmp_path / folder / image, tmp_path / folder / mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, len(ids), 3), 90, np.uint8)).save(tmp_path / folder / image)
    write_png(tmp_path / folder / mask, np.repeat(np.array([ids], np.uint8), 3, 0))
    if "labels_semantic" in mask:
        write((tmp_path / folder / mask).with_name("v0003_labels_semantic_color.png"), None)
    (item,) = find_ood_items(name, tmp_path).items
    pixels, found = read_ood_pair(item)
    assert pixels.shape == (3, len(ids), 3) and found.tolist() == [kinds] * 3
    assert item.cond == name


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real images in ../shared/realdata/streets/anomaly")
@pytest.mark.parametrize(("name", "number"), [("RoadAnomaly21", 10), ("RoadObstacle21", 30), ("FishyscapesStatic", 30)])
def test_the_real_collection(name, number):
    for found in (find_ood_items(name, REAL), find_ood_items(name, root=REAL / name)):
        assert len(found.items) == number
    image, kinds = read_ood_pair(found.items[0])
    assert image.shape[:2] == kinds.shape and (kinds == 1).any() and set(np.unique(kinds)) <= {0, 1, 255}


def test_test_images_without_a_public_mask_are_no_fault_but_a_mask_without_its_image_is(tmp_path):
    root = tmp_path / "dataset_AnomalyTrack"
    for number in (0, 1):
        write(root / f"images/validation{number}.png", None)
        write(root / f"labels_masks/validation{number}_labels_semantic.png")
    write(root / "images/airplane0000.png", None)
    assert [item.id for item in find_ood_items("RoadAnomaly21", tmp_path).items] == ["validation0", "validation1"]
    (root / "images/validation1.png").unlink()
    with pytest.raises(GenValError, match=r"validation1_labels_semantic\.png has no image"):
        find_ood_items("RoadAnomaly21", tmp_path)
    bad: list[BadFile] = []
    assert len(find_ood_items("RoadAnomaly21", tmp_path, skipped=bad).items) == 1 and len(bad) == 1


def test_a_set_may_lie_one_folder_deeper_or_at_trg_root(tmp_path):
    write(tmp_path / "elsewhere/1.png", None)
    (tmp_path / "link/Dataset_anomalytrack").mkdir(parents=True)
    (tmp_path / "link/Dataset_anomalytrack/images").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "link/Dataset_anomalytrack/labels_masks/1_labels_semantic.png")
    assert len(find_ood_items("RoadAnomaly21", tmp_path).items) == 1
    root = tmp_path / "link/Dataset_anomalytrack"
    assert len(find_ood_items("RoadAnomaly21", tmp_path / "nowhere", root).items) == 1
    with pytest.raises(GenValError, match=r"No images with masks of RoadObstacle21 in .*ln -s PATH"):
        find_ood_items("RoadObstacle21", tmp_path)
    with pytest.raises(GenValError, match="Did you mean RoadAnomaly21"):
        find_ood_items("RoadAnomaly2", tmp_path)


def test_two_folders_are_paired_by_name(tmp_path):
    for number in (2, 10):
        write(tmp_path / f"a/x/{number}.png", None)
        write(tmp_path / f"b/x/{number}.png", 1)
    dataset = f"pair:{tmp_path / 'a'},{tmp_path / 'b'}"
    assert [item.id for item in find_ood_items(dataset).items] == ["x/2", "x/10"]
    write(tmp_path / "a/x/11.png", None)
    with pytest.raises(GenValError, match=r"11\.png has no mask"):
        find_ood_items(dataset)
    with pytest.raises(GenValError, match="Expected pair:IMAGES,MASKS"):
        find_ood_items("pair:one")
    with pytest.raises(GenValError, match=r"there is no folder /no/where\. "):
        find_ood_items(f"pair:{tmp_path / 'a'},/no/where")


def test_pairs_without_any_object_are_refused(tmp_path):
    """Masks of 0 and 255, the usual values of binary images, would be background and void alone."""
    for name in "ab":
        write(tmp_path / f"images/{name}.png", None)
        write(tmp_path / f"masks/{name}.png", 255 if name == "b" else 0)
    dataset = f"pair:{tmp_path / 'images'},{tmp_path / 'masks'}"
    with pytest.raises(GenValError, match=r"No mask of pair:.* expected .* 1 \(object\) .* found only 0, 255"):
        find_ood_items(dataset)
    write(tmp_path / "masks/b.png", 1)
    assert len(find_ood_items(dataset).items) == 2


def test_the_generated_set_leaves_out_what_was_not_found_or_not_chosen(tmp_path):
    folders = make_generated(tmp_path)
    (tmp_path / "masks/lion/1_mask.png").unlink()
    (tmp_path / "masks/lion/1_mask.txt").write_text("nothing above the threshold")
    (tmp_path / "masks/curated.json").write_text(json.dumps({"lion": {"2": False}, "teddy_bear": {"0": True}}))
    found = find_ood_items("generated", generated=folders)
    assert [item.id for item in found.items] == [
        *("lion/0", "lion/10"),
        *(f"teddy_bear/{number}" for number in (0, 1, 2, 10)),
    ]
    assert found.left_out == {"no object found": 1, "not chosen in curated.json": 1}
    assert {item.scene for item in found.items} == {"lion", "teddy bear"}
    assert len(find_ood_items("generated", generated=folders, curated=False).items) == 7
    assert len(find_ood_items("generated", generated=folders, objects=["teddy bear"]).items) == 4
    image, kinds = read_ood_pair(found.items[0])
    assert image.shape == (*SIZE, 3) and kinds.sum() == 15 and set(np.unique(kinds)) == {0, 1}


def test_an_image_without_mask_or_reason_is_an_error(tmp_path):
    folders = make_generated(tmp_path)
    (tmp_path / "masks/lion/1_mask.png").unlink()
    with pytest.raises(GenValError, match=r"lion/1\.png has neither .*Run: python ood_objects/get_masks\.py"):
        find_ood_items("generated", generated=folders)
    bad: list[BadFile] = []
    assert len(find_ood_items("generated", generated=folders, skipped=bad).items) == 7 and len(bad) == 1


@pytest.mark.parametrize("found", [True, False])
def test_an_image_that_was_made_again_since_it_was_outlined_is_an_error(tmp_path, found):
    folders = make_generated(tmp_path)
    images = {item.id: item.image for item in find_ood_items("generated", generated=folders).items}
    # Lines without a mark, and images without a line, are somebody's own.
    lines = [{"id": "lion/0", "source": file_mark(images["lion/0"])}, {"id": "lion/2"}]
    lines.append({"id": "lion/1", "source": file_mark(images["lion/1"])})
    (tmp_path / "masks/manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if not found:
        (tmp_path / "masks/lion/1_mask.png").rename(tmp_path / "masks/lion/1_mask.txt")
    assert len(find_ood_items("generated", generated=folders).items) == 7 + found
    write_png(images["lion/1"], np.full((*SIZE, 3), 91, np.uint8))
    with pytest.raises(GenValError, match=r"lion/1\.png was made again .*Run: python ood_objects/get_masks\.py"):
        find_ood_items("generated", generated=folders)
    bad: list[BadFile] = []
    assert len(find_ood_items("generated", generated=folders, skipped=bad).items) == 7
    assert [file.id for file in bad] == ["lion/1"]


def test_curating_moves_no_image_to_another_block(tmp_path):
    folders = make_generated(tmp_path, numbers=range(BLOCK + 2), objects=("lion",))
    before = {item.id: item.block for item in find_ood_items("generated", generated=folders).items}
    assert [len(items) for items in blocks_of(find_ood_items("generated", generated=folders).items).values()] == [
        BLOCK,
        2,
    ]
    (tmp_path / "masks/curated.json").write_text(json.dumps({"lion": {"3": False}}))
    after = {item.id: item.block for item in find_ood_items("generated", generated=folders).items}
    assert after == {key: block for key, block in before.items() if key != "lion/3"}


def test_void_ids_are_the_streets_outside_the_object(tmp_path):
    folders = make_generated(tmp_path)
    item = find_ood_items("generated", generated=folders, void=[0, 4]).items[0]
    kinds = read_kinds(item)
    assert (kinds[0] == 255).all() and (kinds[4, :4] == 255).all() and (kinds[4, 4:9] == 1).all()
    assert (kinds[1] == 0).all()
    (tmp_path / "with_positions/lion/0_gt.png").unlink()
    with pytest.raises(GenValError, match=r"0_gt\.png does not exist"):
        find_ood_items("generated", generated=folders, void=[0])


@pytest.mark.parametrize("part", ["masks/lion/0_mask.png", "with_positions/lion/0_gt.png"])
def test_sizes_that_differ_are_an_error_that_names_both_files(tmp_path, part):
    folders = make_generated(tmp_path)
    write(tmp_path / part, 0, (12, 19))
    with pytest.raises(GenValError, match=r"differ in size: expected one size, found .*1[29]") as error:
        read_ood_pair(find_ood_items("generated", generated=folders, void=[0]).items[0])
    assert str(tmp_path / part) in str(error.value)


def test_a_mask_of_other_values_is_an_error(tmp_path):
    folders = make_generated(tmp_path)
    write(tmp_path / "masks/lion/0_mask.png", 7)
    with pytest.raises(GenValError, match=r"lion/0_mask\.png is not a mask of generated: expected .* found \[7\]"):
        read_ood_pair(find_ood_items("generated", generated=folders).items[0])


def test_tracks_of_the_benchmark_are_parts_of_its_sets(tmp_path):
    track = tmp_path / "dataset_ObstacleTrack"
    for name in ("driveway_1", "snowstorm1_2", "snowstorm2_2", "gravel_3", "darkasphalt2_4", "validation_5"):
        write_png(track / f"images/{name}.png", np.zeros((*SIZE, 3), np.uint8))
        write_png(track / f"labels_masks/{name}_labels_semantic.png", np.zeros(SIZE, np.uint8))
    found = {
        part: [item.id for item in find_ood_items(f"RoadObstacle21{part}", tmp_path).items]
        for part in ("", "-test", "-night", "-snow", "-validation")
    }
    assert len(found.pop("")) == 6
    assert found == {
        "-test": ["darkasphalt2_4", "gravel_3"],
        "-night": ["driveway_1"],
        "-snow": ["snowstorm1_2", "snowstorm2_2"],
        "-validation": ["validation_5"],
    }


def test_lost_and_found_without_known_objects(tmp_path):
    root = tmp_path / "dataset_LostAndFound"
    mask = np.array([[0, 1], [2, 40]], np.uint8)
    for street, name in (("02_Hans", "02_Hans_000000_000010"), ("10_Schlossberg_9", "10_Schlossberg_9_000004_000020")):
        write_png(root / f"leftImg8bit/test/{street}/{name}_leftImg8bit.png", np.zeros((2, 2, 3), np.uint8))
        write_png(root / f"gtCoarse/test/{street}/{name}_gtCoarse_labelIds.png", mask)
    assert len(find_ood_items("LostAndFound", tmp_path).items) == 2
    (item,) = find_ood_items("LostAndFoundNoKnown", tmp_path).items
    assert item.id == "02_Hans_000000_000010" and read_ood_pair(item)[1].tolist() == [[255, 0], [1, 1]]
