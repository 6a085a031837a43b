"""The recipe of the captioner and the CLIP model: what they learn from, and how they are measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genval.diffusion.training.loop import progress
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from mini.recipe.captioner import (
    CaptionerRecipe,
    build_processor,
    cell_map,
    load_class_cells,
    measure_captioner,
    part_table,
    train_captioner,
)
from mini.recipe.contrastive import DOMAINS, _Phrases, measure_contrastive, multi_positive_loss
from mini.recipe.views import Views, caption_parts, held_out, moved, named_domains, names

CPU = torch.device("cpu")
FOG = "a narrow street with tram tracks and a crossing with two cars and a person, trees and grass, in thick fog"
NIGHT = "a tree-lined avenue with many cars, houses, in the dark at night"


def test_captions_come_apart():
    assert caption_parts(FOG) == [
        "a narrow street", "tram tracks", "a crossing", "two cars", "a person", "trees", "grass", "fog"
    ]  # fmt: skip
    assert caption_parts(NIGHT)[-1] == "night"
    assert caption_parts("a street, trees") == ["a street", "trees"]


def test_every_caption_of_the_world_names_one_domain():
    from mini.world.captions import DOMAIN_PHRASES

    for domain, wordings in DOMAIN_PHRASES.items():
        for wording in wordings:
            assert named_domains(f"a street with cars, {wording}") == {domain}
            assert caption_parts(f"a street with cars, {wording}")[-1] == domain
    assert named_domains("a snowy street, in fog, at night") == {"fog", "night"}
    assert names(FOG, "car", "cars") and not names(NIGHT, "person", "people") and not names("cartoon", "car")


def test_views_are_the_same_for_one_seed_and_stay_close_to_the_image():
    images = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 1, 32).expand(4, 3, 32, 32).contiguous()
    index, pixels, warp = Views(images, 6, CPU, 0).sample()
    again = Views(images, 6, CPU, 0).sample()
    assert torch.equal(index, again[0]) and torch.equal(pixels, again[1])
    assert pixels.shape == (6, 3, 32, 32)
    rising = pixels[:, 0, 16, 31] > pixels[:, 0, 16, 0]
    assert torch.equal(rising, warp[:, 0, 0] > 0)  # the mirrored ones fall


def test_maps_move_with_the_image():
    maps = torch.zeros(2, 1, 4, 4)
    maps[:, :, :, 0] = 1
    warp = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[-1.0, 0, 0], [0, 1, 0]]])
    result = moved(maps, warp)
    assert torch.allclose(result[0], maps[0]) and torch.allclose(result[1], maps[1].flip(-1))


def test_a_schedule_ends_by_steps_or_by_time():
    import time

    assert progress(5, 10, time.perf_counter(), None) == 0.5
    assert progress(0, 10, time.perf_counter() - 60, 120) == pytest.approx(0.5, abs=0.01)
    assert progress(0, 10, time.perf_counter() - 600, 120) == 1.0
    assert held_out(60).nonzero().flatten().tolist() == [10, 30, 50]


def test_classes_keep_their_values_when_moved():
    classes = torch.tensor([[[[11.0, 255, 2, 2], [0, 0, 0, 0]]]])
    warp = torch.tensor([[[-1.0, 0, 0.1], [0, 1, 0.1]]])
    assert set(moved(classes, warp, "nearest").unique().tolist()) <= {0.0, 2.0, 11.0, 255.0}


def test_cells_tell_their_classes(tmp_path):
    mask = np.full((64, 128), 7, np.uint8)  # road
    mask[4:12, 100:124] = 24  # a person in the upper right corner
    mask[32:] = 255
    write_png(tmp_path / "a_labelIds.png", mask)
    write_png(tmp_path / "b_labellevel3Ids.png", np.full((64, 128), 4, np.uint8))  # IDD's person
    records = [{"conditioning_image": name} for name in ("a_labelIds.png", "b_labellevel3Ids.png")]
    classes = load_class_cells(tmp_path, records, 4, 2)
    assert classes.dtype == torch.uint8
    road, person = 0, 11
    assert classes[0].tolist() == [[road] * 3 + [person], [road] * 4, [255] * 4, [255] * 4]
    assert classes[1].unique().tolist() == [person]
    assert load_class_cells(tmp_path, [{}], 4, 2) is None
    with pytest.raises(GenValError, match="does not exist"):
        load_class_cells(tmp_path, [{"conditioning_image": "none.png"}], 4, 2)


@pytest.mark.slow
def test_captioner_learns_from_masks_and_is_read_back(tmp_path):
    from genval.captions.blip import load_blip

    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(2, (16, 4, 4), generator=generator, dtype=torch.uint8) * 11
    classes[:, 0, 0] = 255
    grey = classes.eq(11).repeat_interleave(8, 1).repeat_interleave(8, 2)  # persons are white
    images = grey.unsqueeze(1).expand(-1, 3, -1, -1).to(torch.uint8) * 255
    small = {"vision_width": 32, "vision_layers": 1, "text_width": 32, "text_layers": 1, "batch_size": 8}
    recipe = CaptionerRecipe(image_size=32, patch_size=16, cells=2, steps=150, learning_rate=1e-2, **small)
    metrics = train_captioner(images, [FOG, NIGHT] * 8, recipe, tmp_path, CPU, classes, log=lambda _: None)
    assert 0 < metrics["loss_classes"] < 0.5  # nats; a blind one has 0.69
    without = train_captioner(images, [FOG, NIGHT] * 8, replace(recipe, steps=1), tmp_path, CPU, log=lambda _: None)
    assert without["loss_classes"] == 0
    assert len(load_blip(str(tmp_path)).caption_images([np.zeros((32, 64, 3), np.uint8)], max_tokens=4)) == 1


def test_tokens_become_a_map_of_cells():
    tokens = torch.zeros(1, 4, 3 * 4)  # 2x2 tokens of 3 classes in 2x2 cells
    tokens[0, 1, 2 * 4 + 2] = 5  # upper right token, third class, lower left cell
    cells = cell_map(tokens, 2)
    assert cells.shape == (1, 3, 4, 4) and cells[0, 2, 1, 2] == 5 and cells.sum() == 5


def test_words_of_the_captions_are_single_tokens_and_others_are_spelled():
    tokenizer = build_processor([FOG, NIGHT], 32).tokenizer
    assert len(tokenizer(NIGHT, add_special_tokens=False).input_ids) == 16
    assert tokenizer.unk_token_id not in tokenizer("a zebra-striped 4x4!").input_ids


def test_parts_of_enough_captions_are_counted():
    parts, table = part_table([FOG, NIGHT, NIGHT], at_least=2)
    assert "two cars" not in parts and {"many cars", "night", "fog"} <= set(parts)
    assert table[:, parts.index("many cars")].tolist() == [0, 1, 1] and table[0, parts.index("fog")] == 1
    assert table[:, parts.index("cars")].tolist() == [1, 1, 1]
    parts, table = part_table([FOG, NIGHT], at_least=1)
    assert table[:, parts.index("people")].tolist() == [1, 0]


def test_multi_positive_loss_is_the_mean_over_right_pairs():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
    true = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    rows = torch.softmax(logits, 1).log()
    columns = torch.softmax(logits, 0).log()
    by_hand = -((rows[0, 0] + rows[0, 1]) / 2 + rows[1, 1] + rows[2, 2]) / 3
    by_hand = (by_hand - (columns[0, 0] + (columns[0, 1] + columns[1, 1]) / 2 + columns[2, 2]) / 3) / 2
    assert multi_positive_loss(logits, true).item() == pytest.approx(by_hand.item(), abs=1e-6)
    one_each = multi_positive_loss(logits, torch.eye(3, dtype=torch.bool))
    target = torch.arange(3)
    clip = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    assert one_each.item() == pytest.approx(clip.item(), abs=1e-6)


def test_sampled_texts_describe_the_images_that_have_their_parts():
    texts = [FOG, NIGHT, "a wide street with two cars, trees, in fog", "a wide street with many cars, at night"]
    phrases = _Phrases(texts, 0)
    assert [DOMAINS[i] for i in phrases.domain_numbers] == ["fog", "night", "fog", "night"]
    for _ in range(20):
        written, true = phrases.sample([0, 1, 2, 3])
        for column, text in enumerate(written):
            said = set(caption_parts(text)) | named_domains(text)
            for row, whole in enumerate(texts):
                words = set(caption_parts(whole))
                assert bool(true[row, column]) == all(part in words or named_domains(part) & words for part in said)
        assert true.diagonal().all()
    assert [named_domains(text) for text in phrases.domains()] == [{domain} for domain in DOMAINS]


def test_measures_know_right_from_wrong(monkeypatch, tmp_path):
    said = [FOG, NIGHT.replace("in the dark at night", "at night"), "a street with cars, in fog", "a street, in fog"]
    targets = [FOG, NIGHT, "a street with cars, at night", "a street with people, in fog"]

    class Says:
        def to(self, device):
            return self

        def caption_images(self, images, max_tokens, batch_size):
            return said

    monkeypatch.setattr("mini.recipe.captioner.load_blip", lambda folder: Says())
    metrics = measure_captioner(tmp_path, [None] * 4, targets, CPU)
    assert metrics["weather_accuracy"] == 0.75 and metrics["weather_accuracy_worst"] == 0.5
    assert metrics["car_accuracy"] == 1.0 and metrics["person_accuracy"] == 0.75
    assert metrics["person_balanced_accuracy"] == 0.75 and metrics["person_share"] == 0.5

    class Compares:
        def to(self, device):
            return self

        def encode_texts(self, texts):
            return torch.eye(len(DOMAINS))

        def encode_images(self, images):
            rows = {"fog": [0.2, 0.9, 0, 0, 0, 0], "clear": [0.9, 0.1, 0, 0, 0, 0], "wrong": [0.1, 0.3, 0.5, 0, 0, 0]}
            return torch.tensor([rows[image] for image in images])

    monkeypatch.setattr("mini.recipe.contrastive.load_clip", lambda folder: Compares())
    texts = ["a street, in fog", "a street, on a sunny day", "a street, on a clear day"]
    metrics = measure_contrastive(tmp_path, ["fog", "clear", "wrong"], texts, CPU)
    assert metrics == {
        "held_out": 3, "domain_accuracy": 0.6667, "domain_accuracy_worst": 0.5, "against_clear_worst": 0.75
    }  # fmt: skip
