"""The recipes of the detector and the outliner: what they train on, their losses, and that what they save is usable."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from script_runs import run_script

from genval.grounding.detector import Detection, as_caption
from genval.runtime.errors import GenValError
from genval.runtime.files import write_jsonl, write_png
from mini.recipe.detector import (
    DetectorRecipe,
    _Names,
    build_detector,
    build_tokenizer,
    detection_losses,
    measure_detector,
    pairwise_overlap,
    predictions,
)
from mini.recipe.object_crops import (
    CropSampler,
    MeasuredCrop,
    cut,
    load_object_images,
    mask_boxes,
    measured_crops,
    sample_squares,
)
from mini.recipe.outliner import jittered, mask_overlap, measure_outliner, outline_losses

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
NAMES = ("lion", "polar bear")
COLOURS = {"lion": (220, 160, 40), "polar bear": (40, 80, 230)}


def write_objects(folder: Path, count: int = 6, height: int = 64, width: int = 96) -> None:
    """Streets of noise with a disc in the colour of its name, and one line without an object."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        name = NAMES[number % 2]
        clean = rng.integers(90, 120, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        radius = int(rng.integers(8, 20))
        centre = int(rng.integers(radius, width - radius)), int(rng.integers(radius, height - radius))
        cv2.circle(mask, centre, radius, 255, -1)
        image = np.where(mask[..., None] > 0, np.uint8(COLOURS[name]), clean)
        files = {"image": image, "clean": clean, "mask": mask}
        paths = {kind: f"training/objects/{number:03d}_{kind}.png" for kind in files}
        for kind, image in files.items():
            write_png(folder / paths[kind], image)
        lines.append({**paths, "object": name})
    lines.append({**lines[0], "object": ""})
    write_jsonl(folder / "training/objects.jsonl", lines)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    write_objects(folder)
    return folder


def test_images_are_read_around_their_object(data_dir):
    streets = load_object_images(data_dir, workers=2)
    assert len(streets) == 6 and streets.names == list(NAMES) * 3
    assert streets.images.shape == streets.clean.shape == (6, 3, 64, 64)
    for mask, box, image, clean in zip(streets.masks, streets.boxes, streets.images, streets.clean, strict=True):
        rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert torch.equal((image != clean).any(0), mask[0] > 0)
    odd = streets.part(torch.arange(6) % 2 == 1)
    assert odd.names == ["polar bear"] * 3 and torch.equal(odd.boxes[0], streets.boxes[1])


def test_bad_lists_of_objects_are_refused(data_dir, tmp_path):
    with pytest.raises(GenValError, match=r"mini/render\.py"):
        load_object_images(tmp_path)
    line = json.loads((data_dir / "training/objects.jsonl").read_text().splitlines()[0])

    def listed(**changes):
        write_jsonl(data_dir / "bad/training/objects.jsonl", [{**line, **changes}])
        for kind in ("image", "clean", "mask"):
            source = data_dir / line[kind]
            (data_dir / "bad" / line[kind]).parent.mkdir(parents=True, exist_ok=True)
            (data_dir / "bad" / line[kind]).write_bytes(source.read_bytes())
        return load_object_images(data_dir / "bad")

    with pytest.raises(GenValError, match="clean: expected text"):
        listed(clean=None)
    write_png(data_dir / "bad/none.png", np.zeros((64, 96), np.uint8))
    with pytest.raises(GenValError, match="shows no lion"):
        listed(mask="none.png")
    write_png(data_dir / "bad/small.png", np.full((32, 96), 255, np.uint8))
    with pytest.raises(GenValError, match="expected 96x64 pixels, found 96x32"):
        listed(mask="small.png")


def test_squares_lie_inside_and_hold_their_object():
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(500, 2, generator=generator) * 160
    boxes = torch.cat([starts, starts + 20 + torch.rand(500, 2, generator=generator) * 76], 1)
    left, top, side = sample_squares(boxes, 256, generator).unbind(1)
    extent = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    share = extent / side
    assert side.min() > 46 - 1e-3 and side.max() <= 256 and share.max() <= 1 + 1e-5
    assert share[extent > 46].min() >= 0.3 - 1e-5 and share[extent > 46].std() > 0.1
    assert (left >= 0).all() and (top >= 0).all() and (left + side <= 256.01).all() and (top + side <= 256.01).all()
    out = torch.stack([left - boxes[:, 0], top - boxes[:, 1], boxes[:, 2] - left - side, boxes[:, 3] - top - side])
    assert (out <= 0.06 * extent + 1e-3).all()


def test_boxes_and_masks_move_with_the_square():
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 16:32, 24:40] = 1  # rows, columns
    squares = torch.tensor([[16.0, 8.0, 32.0], [16.0, 8.0, 32.0]])
    result = (cut(masks, squares, 16, torch.tensor([1.0, -1.0])) > 0.5).float()
    boxes = mask_boxes(result)
    assert boxes[0].tolist() == [4 / 16, 4 / 16, 12 / 16, 12 / 16]
    assert torch.equal(result[1], result[0].flip(-1))
    assert mask_boxes(torch.zeros(1, 1, 8, 8)).tolist() == [[0, 0, 0, 0]]
    corner = torch.zeros(1, 1, 8, 8)
    corner[..., 7, 0] = 1
    assert mask_boxes(corner).tolist() == [[0, 7 / 8, 1 / 8, 1]]


def test_crops_show_the_object_or_the_street_without_it(data_dir):
    streets = load_object_images(data_dir)
    index, empty = torch.arange(6), torch.tensor([False, True] * 3)
    crops = CropSampler(streets, 32, 0).sample(index, empty)
    again = CropSampler(streets, 32, 0).sample(index, empty)
    assert torch.equal(crops.pixels, again.pixels) and crops.pixels.shape == (6, 3, 32, 32)
    assert (crops.masks.amax((1, 2, 3)) == (~empty).float()).all() and (crops.boxes[empty] == 0).all()
    spread = crops.pixels.std((2, 3)).amax(1)
    assert spread[~empty].min() > spread[empty].max()  # the streets are noise of one grey
    (first, *_) = measured_crops(streets)
    assert first.image.shape == first.empty.shape == (*first.mask.shape, 3) and first.name == "lion"
    assert ((first.image != first.empty).any(-1) == first.mask).all()
    assert first.mask[int(first.box[1]) :, int(first.box[0]) :].sum() == first.mask.sum()


def test_the_detector_knows_names_and_spells_other_words():
    tokenizer = build_tokenizer(NAMES)
    tokens = tokenizer(as_caption("Polar Bear")).input_ids
    assert tokens[0] == 101 and tokens[-2:] == [1012, 102] and len(tokens) == 5
    assert tokenizer.convert_tokens_to_ids("?") == 1029
    assert tokenizer.decode(tokens[1:-1]) == "polar bear."
    assert tokenizer.unk_token_id not in tokenizer("a very odd name-tag, no. 7").input_ids
    names = _Names(tokenizer, NAMES, CPU)
    assert names.wanted.sum(1).tolist() == [1, 2]
    assert names.tokens(torch.tensor([1, 0, 1]))["attention_mask"].sum(1).tolist() == [5, 4, 5]


@pytest.mark.slow
def test_predictions_hold_what_the_model_gives():
    from genval.grounding.detector import fix_text_positions

    torch.manual_seed(0)
    recipe = DetectorRecipe(
        image_size=64, vision_widths=(8, 8, 8, 8), text_width=16, text_layers=1, width=32, feed_forward=32, queries=5
    )
    tokenizer = build_tokenizer(NAMES)
    model = fix_text_positions(build_detector(recipe, len(tokenizer))).eval()
    tokens = _Names(tokenizer, NAMES, CPU).tokens(torch.tensor([0, 1]))
    with torch.no_grad():
        result = model(pixel_values=torch.randn(2, 3, 64, 64), **tokens)
        proposals, *layers = predictions(model, result, tokens["attention_mask"])
    assert proposals[0].shape == (2, 64 + 16 + 4, 5) and proposals[1].shape == (2, 84, 4)
    assert len(layers) == 2
    assert torch.equal(layers[-1][0], result.logits[..., :5]) and torch.allclose(layers[-1][1], result.pred_boxes)
    assert layers[0][0][0, :, 4].tolist() == [float("-inf")] * 5  # the shorter name is filled up


def test_detection_losses_are_those_written_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator)
    logits[0, :, 4] = float("-inf")
    guessed = torch.rand(3, 6, 4, generator=generator) * 0.3 + 0.3
    guessed[0, :3] = torch.tensor([0.4, 0.6, 0.4, 0.6]) + 0.04 * torch.randn(3, 4, generator=generator)
    boxes = torch.tensor([[0.2, 0.3, 0.6, 0.9], [0.1, 0.1, 0.5, 0.4], [0.4, 0.2, 0.8, 0.7]])
    wanted = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    present = torch.tensor([True, True, False])
    count = 2

    def box_terms(guess, box):
        x, y, w, h = guess
        left, top, right, bottom = box
        l1 = abs(x - (left + right) / 2) + abs(y - (top + bottom) / 2)
        l1 += abs(w - (right - left)) + abs(h - (bottom - top))
        mine = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        inner = max(0, min(mine[2], right) - max(mine[0], left)) * max(0, min(mine[3], bottom) - max(mine[1], top))
        union = w * h + (right - left) * (bottom - top) - inner
        hull = (max(mine[2], right) - min(mine[0], left)) * (max(mine[3], bottom) - min(mine[1], top))
        return 5 * l1 + 2 * (1 - inner / union + (hull - union) / hull), inner / union

    names = places = 0.0
    right, twins = 0, 0
    for image in range(3):
        tokens = [t for t in range(5) if wanted[image, t]]
        terms = [box_terms(guessed[image, query].tolist(), boxes[image].tolist()) for query in range(6)]
        scores = 1 / (1 + np.exp(-logits[image].double().numpy()))
        costs = [terms[query][0] - scores[query, tokens].mean() for query in range(6)]
        nearest = np.argsort(costs)[:count] if present[image] else []
        for query in range(6):
            overlap = terms[query][1]
            quality = max(overlap, 0.5) if query in nearest else overlap if overlap >= 0.5 and present[image] else 0
            twins += quality > 0 and query not in nearest
            for t in range(5):
                goal = quality if t in tokens else 0
                right += goal > 0
                p = scores[query, t]
                if p > 0:
                    names -= (goal - p) ** 2 * (goal * np.log(p) + (1 - goal) * np.log1p(-p))
        places += sum(terms[query][0] for query in nearest)
    assert twins
    result = detection_losses(logits, guessed, wanted, boxes, present, count)
    assert result.tolist() == pytest.approx([4 * names / right, places / 4], rel=1e-4)
    none = detection_losses(logits, guessed, wanted, boxes, torch.zeros(3, dtype=torch.bool), count)
    assert none[1] == 0 and none[0] > 0 and torch.isfinite(none).all()


def test_detection_losses_have_finite_gradients_behind_a_texts_end():
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    ended = logits.masked_fill(torch.tensor([False, False, True]), float("-inf"))
    guessed = torch.full((1, 2, 4), 0.5)
    wanted = torch.tensor([[False, True, False]])
    detection_losses(
        ended, guessed, wanted, torch.tensor([[0.2, 0.2, 0.7, 0.7]]), torch.tensor([True]), 1
    ).sum().backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[..., 1] != 0).all()


def test_outline_losses_teach_the_best_mask_and_every_estimate():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    sharp = torch.where(mask > 0, 4.0, -4.0)[0, 0]
    logits = torch.stack([sharp, -sharp, torch.full((4, 4), 4.0)])[None].requires_grad_()
    estimates = torch.tensor([[0.5, 0.5, 0.5]])
    result = outline_losses(logits, estimates, mask)
    p = 1 / (1 + np.exp(-4))
    dice = 1 - (2 * 8 * p + 1) / (8 * p + 8 * (1 - p) + 8 + 1)
    assert result[0].item() == pytest.approx(-np.log(p) + dice, rel=1e-4)
    assert result[1].item() == pytest.approx(np.mean([(0.5 - 1) ** 2, (0.5 - 0) ** 2, 0]), rel=1e-4)
    result[0].backward()
    assert (logits.grad[0, 0] != 0).all() and (logits.grad[0, 1:] == 0).all()


def test_overlaps():
    one, other = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    one[0, :2], other[0, 1:3] = True, True
    assert mask_overlap(one, other).tolist() == pytest.approx([1 / 3, 0])
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]]), torch.tensor([[1.0, 0, 3, 2], [2, 2, 3, 3]])
    assert pairwise_overlap(*boxes).tolist() == pytest.approx([1 / 3, 0])
    boxes = torch.tensor([[0.2, 0.2, 0.4, 0.8]]).expand(2000, 4)
    moved = jittered(boxes, 0.1, torch.Generator().manual_seed(0)) - boxes
    assert moved.std(0).tolist() == pytest.approx([0.02, 0.06, 0.02, 0.06], rel=0.1)


class _Answers:
    """A detector that sees lions alone, where they are, and one of them in an empty street."""

    def __init__(self, crops):
        self._crops = {id(crop.image): crop for crop in crops} | {id(crop.empty): None for crop in crops}
        self._alarm = id(crops[0].empty)

    def to(self, device):
        return self

    def prepare(self, image):
        return image

    def detect(self, inputs, sizes, text, box_threshold, text_threshold, nms_threshold):
        found = []
        for image in inputs:
            crop = self._crops[id(image)]
            sees = crop is not None and crop.name == text == "lion"
            score = 0.6 if sees else 0.3 if id(image) == self._alarm else 0.0
            box = crop.box if sees else (0.0, 0.0, 4.0, 4.0)
            found.append([Detection(box, score, text if score else "")])
        return found


class _Fills:
    """An outliner that takes the whole box."""

    def to(self, device):
        return self

    def prepare(self, image):
        return image

    def outline(self, inputs, sizes, boxes):
        masks = []
        for size, (left, top, right, bottom) in zip(sizes, boxes, strict=True):
            mask = np.zeros(size, bool)
            mask[int(top) : int(bottom), int(left) : int(right)] = True
            masks.append((mask, 1.0))
        return masks


def test_measures_count_finds_alarms_and_overlaps(monkeypatch, tmp_path):
    mask = np.zeros((20, 20), bool)
    mask[5:15, 4:12] = True
    crops = [
        MeasuredCrop(np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20, 3), np.uint8), mask, name)
        for name in ("lion", "lion", "zebra", "zebra")
    ]
    monkeypatch.setattr("mini.recipe.detector.load_detector", lambda folder: _Answers(crops))
    metrics = measure_detector(tmp_path, crops, CPU)
    assert metrics["held_out"] == 4
    assert metrics["recall"]["0.25"] == 0.5 and metrics["recall"]["0.5"] == 0.5
    assert metrics["false_alarms"]["0.25"] == 0.25 and metrics["false_alarms"]["0.4"] == 0.0
    assert set(metrics["wrong_names"].values()) == {0.0}
    monkeypatch.setattr("mini.recipe.outliner.load_detector", lambda folder: _Answers(crops))
    monkeypatch.setattr("mini.recipe.outliner.load_outliner", lambda folder: _Fills())
    metrics = measure_outliner(tmp_path, crops, CPU, tmp_path)
    assert metrics == {
        "held_out": 4, "mask_iou": 1.0, "masked": 0.5, "mask_iou_found": 1.0, "masked_empty": 0.25
    }  # fmt: skip
    assert measure_outliner(tmp_path, crops, CPU) == {"held_out": 4, "mask_iou": 1.0}


@pytest.mark.slow
def test_trained_models_are_loaded_by_the_script_that_uses_them(tmp_path):
    """Few steps on discs: losses fall, the stages write their metrics, and get_masks.py reads the folders."""
    from genval.runtime.files import write_json

    data, output, objects = tmp_path / "data", tmp_path / "checkpoints", tmp_path / "objects"
    write_objects(data, count=24)

    def call(*flags):
        done = run_script(*flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = ["mini/train.py", "--data_dir", data, "--output", output, "--stages", "detector,outliner"]
    command += ["--device", "auto", "--batch_size", 4, "--detector_steps", 6, "--outliner_steps", 6]
    call(*command)
    metrics = json.loads((output / "training.json").read_text())
    assert metrics["detector"]["steps"] == metrics["outliner"]["steps"] == 6
    assert set(metrics["detector"]["recall"]) == set(metrics["detector"]["false_alarms"])
    assert {"mask_iou", "masked", "masked_empty"} <= set(metrics["outliner"])
    for name in ("grounding-dino", "sam"):
        assert (output / name / "model.safetensors").stat().st_size < 5e6
    assert "skipped" in call(*command)

    streets = load_object_images(data)
    for number, image in enumerate(streets.images[:2]):
        write_png(objects / f"refined/lion/{number}.png", image.permute(1, 2, 0).numpy())
        place = {f"{number}.png": {"pos_mask": [0, 0], "size_mask": 64}}
        write_json(objects / f"with_positions/lion/{number}_pos.json", place)
    call(
        "ood_objects/get_masks.py", "--images_dir", objects / "refined", "--positions_dir", objects / "with_positions",
        "--output_dir", objects / "masks", "--detector", output / "grounding-dino", "--sam", output / "sam",
        "--clip", "none", "--accelerator", "cpu", "--num_workers", 1, "--box_threshold", 0, "--text_threshold", 0,
    )  # fmt: skip
    lines = [json.loads(line) for line in (objects / "masks/manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["detections"] for line in lines)
