"""Runs that put objects into frames and refine them, on a random model of 0.2 million parameters."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from genval.artifacts.stage import run_stage
from genval.datasets.boxes import Box
from genval.datasets.items import find_items
from genval.datasets.ood_objects import find_object_images, object_folder
from genval.datasets.placement import PlacementConfig
from genval.datasets.reading import read_image, read_mask
from genval.diffusion.inpainting import stages as inpainting_stages
from genval.diffusion.inpainting.model import load_inpainting
from genval.diffusion.inpainting.stages import (
    InpaintingStage,
    ObjectItem,
    ObjectStage,
    RefinementStage,
    plan_objects,
    plan_refinements,
)
from genval.diffusion.models.pipelines import StableDiffusion
from genval.diffusion.sampling.micro_batches import MicroBatches
from genval.diffusion.settings import InpaintingConfig
from genval.runtime.errors import GenValError

TEMPLATE = "A photo of {article} {object}"
NAMES = ["lion", "elephant", "../x"]
SHARED: dict[str, Any] = {"batch_size": 4, "settings": {"seed": 0}}
RECORD = {"run_seed": 0, "steps": 1}


@pytest.fixture(scope="module")
def model(inpainting_folder: Path) -> StableDiffusion:
    return load_inpainting(inpainting_folder)


def object_stage(folder: Path, model: StableDiffusion, city: Path, **settings: Any) -> ObjectStage:
    frames = find_items("Cityscapes", root=city)
    config, record = InpaintingConfig(1, 1.0), settings.pop("record", RECORD)
    placement = PlacementConfig(**settings)
    return ObjectStage(folder, record, model, config, frames, placement, 16, **SHARED)


def make(stage: InpaintingStage, items: list[ObjectItem], batch_size: int = 4, **options: Any) -> int:
    return run_stage(stage, items, batch_size=batch_size, num_workers=2, **options).written


@pytest.fixture(scope="module")
def inpainted(model: StableDiffusion, city_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inpainted") / "with_positions"
    make(object_stage(folder, model, city_folder), plan_objects(NAMES, 3, TEMPLATE, 0), 4)
    return folder


def contents(folder: Path, manifest: bool = False) -> dict[str, bytes]:
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file() and (manifest or file.suffix != ".jsonl") and file.name != "settings.json"
    ]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_items_keep_their_seeds_whatever_else_is_planned() -> None:
    items = {item.id: item for item in plan_objects(["zebra", *NAMES, "lion"], 5, TEMPLATE, 0)}
    assert len(items) == 20
    for item in plan_objects(NAMES, 3, TEMPLATE, 0):
        assert items[item.id] == item
    assert items["elephant/0"].prompt == "A photo of an elephant"
    assert len({item.seed for item in items.values()}) == 20
    assert plan_objects(["lion"], 1, TEMPLATE, 1)[0].seed != items["lion/0"].seed


def test_files_are_the_published_ones(inpainted: Path, city_folder: Path) -> None:
    folders = [object_folder(name) for name in NAMES]
    expected = {
        f"{folder}/{i}{end}" for folder in folders for i in range(3) for end in (".png", "_gt.png", "_pos.json")
    }
    assert contents(inpainted).keys() == expected
    frames = {item.id: item for item in find_items("Cityscapes", root=city_folder)}
    for line in lines(inpainted):
        image = read_image(inpainted / line["image"])
        source = frames[line["source"]]
        assert np.array_equal(read_mask(inpainted / line["gt"]), read_mask(source.mask))
        number = line["id"].rpartition("/")[2]
        place = json.loads((inpainted / line["position"]).read_text())
        box = Box.square(**line["box"])
        assert place == {f"{number}.png": {"pos_mask": [box.top, box.left], "size_mask": box.side}}
        assert 8 <= box.side <= 16 and line["crop"]["top"] >= 8 and line["placement"] == "published"
        changed = np.any(image != read_image(source.image), axis=-1)
        changed[box.top : box.top + box.side, box.left : box.left + box.side] = False
        assert not changed.any()
        assert line["frame"] == [32, 64] and line["run_seed"] == 0 and line["retries"] == 0
    assert {line["object"] for line in lines(inpainted)} == set(NAMES)
    assert {image.object for image in find_object_images(inpainted, inpainted)} == set(NAMES)


def test_a_stopped_run_resumes_to_the_same_bytes(
    inpainted: Path, model: StableDiffusion, city_folder: Path, tmp_path: Path
) -> None:
    folder, items = tmp_path / "again", plan_objects(NAMES, 3, TEMPLATE, 0)
    make(object_stage(folder, model, city_folder), items[:4], 4)
    (folder / "lion/1_pos.json").unlink()
    (folder / "lion/2.png").unlink()
    run = object_stage(folder, model, city_folder)
    assert make(run, items, 4) == 7
    assert contents(folder) == contents(inpainted)
    assert make(run, items, 4) == 0
    assert make(run, items[:2], 4, overwrite=True) == 2
    assert contents(folder).keys() == contents(inpainted).keys()


def test_another_batch_size_changes_rounding_alone(
    inpainted: Path, model: StableDiffusion, city_folder: Path, tmp_path: Path
) -> None:
    make(object_stage(tmp_path, model, city_folder), plan_objects(NAMES, 3, TEMPLATE, 0), 2)
    for name in contents(inpainted):
        if name.endswith("_gt.png") or name.endswith(".json"):
            assert (tmp_path / name).read_bytes() == (inpainted / name).read_bytes()
        else:
            difference = read_image(tmp_path / name).astype(int) - read_image(inpainted / name)
            assert np.abs(difference).max() <= 1


def test_memory_that_is_full_makes_batches_smaller(
    inpainted: Path, model: StableDiffusion, city_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inpainting_stages.start_inpainting

    def small(denoiser: Any, batch: Any, *others: Any) -> Any:
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return real(denoiser, batch, *others)

    monkeypatch.setattr(inpainting_stages, "start_inpainting", small)
    run = object_stage(tmp_path, model, city_folder)
    assert make(run, plan_objects(["lion"], 3, TEMPLATE, 0), 3) == 3
    assert run.micro_batches.rows == 2
    with pytest.raises(GenValError, match="does not fit into the device's memory"):
        MicroBatches(2).compute(2, lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()), lambda: None)


def refinement(folder: Path, model: StableDiffusion, **settings: Any) -> RefinementStage:
    return RefinementStage(folder, RECORD, model, InpaintingConfig(3, 1.0, 0.65), 16, **SHARED, **settings)


def refinements(inpainted: Path) -> list[ObjectItem]:
    return plan_refinements(find_object_images(inpainted, inpainted), "{object}", 0)


def test_refinement_touches_the_crop_alone(inpainted: Path, model: StableDiffusion, tmp_path: Path) -> None:
    items = refinements(inpainted)
    assert items[0].prompt == "elephant" and not {item.seed for item in items} & {
        line["seed"] for line in lines(inpainted)
    }
    assert make(refinement(tmp_path, model), items, 4) == 9
    for line in lines(tmp_path):
        before, after = read_image(inpainted / line["image"]), read_image(tmp_path / line["image"])
        changed = np.any(before != after, axis=-1)
        assert changed.any()
        crop, box = line["crop"], line["box"]
        assert crop["height"] == crop["width"] == min(32, int(1.5 * box["side"]))
        changed[crop["top"] : crop["top"] + crop["height"], crop["left"] : crop["left"] + crop["width"]] = False
        assert not changed.any()
    assert make(refinement(tmp_path, model), items, 4) == 0


def test_an_image_that_was_inpainted_again_is_refined_again(
    inpainted: Path, model: StableDiffusion, tmp_path: Path
) -> None:
    shutil.copytree(inpainted, tmp_path / "inpainted")
    items = refinements(tmp_path / "inpainted")
    make(refinement(tmp_path / "refined", model), items, 4)
    file = tmp_path / "inpainted" / f"{items[0].id}.png"
    cv2.imwrite(str(file), 255 - cv2.imread(str(file)))
    assert make(refinement(tmp_path / "refined", model), items, 4) == 1


def test_images_of_a_changed_frame_are_inpainted_again(
    city_folder: Path, model: StableDiffusion, tmp_path: Path
) -> None:
    city, folder, items = tmp_path / "city", tmp_path / "objects", plan_objects(NAMES, 3, TEMPLATE, 0)
    shutil.copytree(city_folder, city)
    assert make(object_stage(folder, model, city), items) == 9
    source = lines(folder)[0]["source"]
    file = next(item.image for item in find_items("Cityscapes", root=city) if item.id == source)
    cv2.imwrite(str(file), 255 - cv2.imread(str(file)))
    assert make(object_stage(folder, model, city), items) == sum(line["source"] == source for line in lines(folder))
    make(object_stage(tmp_path / "whole", model, city), items)
    assert contents(folder, manifest=True) == contents(tmp_path / "whole", manifest=True)
    assert make(object_stage(folder, model, city), items) == 0


def test_the_published_refinement_inpaints_the_whole_frame(
    inpainted: Path, model: StableDiffusion, tmp_path: Path
) -> None:
    make(refinement(tmp_path, model, whole_frame=True), refinements(inpainted)[:2], 2)
    for line in lines(tmp_path):
        before, after = read_image(inpainted / line["image"]), read_image(tmp_path / line["image"])
        assert after.shape == before.shape and np.any(before != after, axis=-1).mean() > 0.9
        assert line["crop"] == {"top": 0, "left": 0, "height": 32, "width": 64}


def test_whole_frames_of_other_sizes_are_refused(inpainted: Path, model: StableDiffusion, tmp_path: Path) -> None:
    shutil.copytree(inpainted, tmp_path / "inpainted")
    items = refinements(tmp_path / "inpainted")[:2]
    file = tmp_path / "inpainted" / f"{items[0].id}.png"
    cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (80, 48)))
    with pytest.raises(GenValError, match=r"several sizes .*64x32, 80x48.*--whole_frame"):
        make(refinement(tmp_path / "refined", model, whole_frame=True), items, 2)
    cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (66, 34)))
    with pytest.raises(GenValError, match=r"0\.png: .*multiples of 8, found 34x66.*--whole_frame"):
        make(refinement(tmp_path / "refined", model, whole_frame=True), items, 2)


@pytest.mark.parametrize("settings", [{"context": 0.5}, {"feather": -1.0}, {"feather": float("nan")}])
def test_settings_of_a_crop_that_make_no_sense_are_refused(
    settings: dict[str, float], model: StableDiffusion, tmp_path: Path
) -> None:
    with pytest.raises(GenValError, match=f"--{next(iter(settings))}"):
        refinement(tmp_path, model, **settings)


def test_bad_input_is_an_error_and_writes_nothing(
    inpainted: Path, model: StableDiffusion, city_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(city_folder, tmp_path / "city")
    mask = next((tmp_path / "city/gtFine/val").rglob("*.png"))
    for file in (tmp_path / "city/gtFine/val").rglob("*.png"):
        cv2.imwrite(str(file), np.zeros((8, 8), np.uint8))
    with pytest.raises(GenValError, match=r"is 64x32 but its mask .* is 8x8"):
        make(object_stage(tmp_path / "out", model, tmp_path / "city"), plan_objects(NAMES, 1, TEMPLATE, 0), 2)
    for file in (tmp_path / "city").rglob("*/val/*/*.png"):
        cv2.imwrite(str(file), np.zeros((32, 20) if file.parts[-4] == "gtFine" else (32, 20, 3), np.uint8))
    with pytest.raises(GenValError, match="room for a crop of 24 pixels"):
        make(object_stage(tmp_path / "out", model, tmp_path / "city"), plan_objects(NAMES, 1, TEMPLATE, 0), 2)
    mask.write_bytes(b"no mask")
    assert not list((tmp_path / "out").rglob("*.png"))
    shutil.copytree(inpainted, tmp_path / "inpainted")
    items = refinements(tmp_path / "inpainted")
    assert items[0].source is not None
    place = {f"{items[0].source.number}.png": {"pos_mask": [30, 0], "size_mask": 8}}
    items[0].source.position.write_text(json.dumps(place))
    with pytest.raises(GenValError, match="is not inside"):
        make(refinement(tmp_path / "refined", model), items, 4)
    assert not list((tmp_path / "refined").rglob("*.png"))


def test_images_of_other_settings_are_refused(
    inpainted: Path, model: StableDiffusion, city_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(inpainted, tmp_path / "inpainted")
    folder, items = tmp_path / "inpainted", plan_objects(NAMES, 3, TEMPLATE, 0)

    def stage(record: dict[str, Any] = RECORD) -> ObjectStage:
        return object_stage(folder, model, city_folder, record=record)

    (folder / "settings.json").unlink()
    with pytest.raises(GenValError, match=r"holds images but no settings\.json: it was not written by sd_inpaint\.py"):
        make(stage(), items)
    (folder / "settings.json").write_text("{}")
    assert make(stage(), items) == 0
    with pytest.raises(GenValError, match=r"lion/0, which was made with steps 1 \(now 2\)\. Give --overwrite"):
        make(stage({**RECORD, "steps": 2}), items)
    other = plan_objects(["lion"], 1, "{object} at night", 0)
    with pytest.raises(GenValError, match="prompt A photo of a lion"):
        make(stage(), other)
    # Other objects may have other settings; wanted ones are computed again.
    assert make(stage({"steps": 3}), plan_objects(["zebra"], 1, TEMPLATE, 0)) == 1
    assert make(stage({"steps": 3}), other, overwrite=True) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(GenValError, match="is a file"):
        make(object_stage(tmp_path / "file", model, city_folder), items)
