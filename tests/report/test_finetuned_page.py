"""The maps of a score before and after fine-tuning, on the page."""

import base64
import io

import cv2
import numpy as np
import pytest
from page_world import write_world
from PIL import Image

from genval.kernels.layout import SCORE_LEVELS
from genval.metrics.ood_pooling import coarse_levels
from genval.report.page import collect, write_page
from genval.report.page.finetuned import collect_finetuned
from genval.report.page.gallery import GalleryLimits
from genval.results.ood_blocks import OodResults
from genval.runtime.files import write_json, write_png
from genval.segmenters.recipe import MADE_BY, find_recipe

BEFORE, LIMITS = "mini-fast-scnn", GalleryLimits(width=16)
OBJECT = np.zeros((8, 16), bool)
OBJECT[2:5, 4:8] = True


def write_results(root, model, levels, aupr, extra=()):
    """Results of one image: the level of each pixel, of one score."""
    results = OodResults(root / "ood", "RoadAnomaly21", model)
    made_from = {
        "id": "a",
        "model": model,
        "image": str(root / "a.png"),
        "mask": str(root / "a_mask.png"),
        **dict(extra),
    }
    counts = np.stack([np.bincount(levels[kind == OBJECT], minlength=SCORE_LEVELS) for kind in (False, True)])[None]
    line = {"made_from": made_from, "figures": {"entropy": {"aupr_in": aupr}}}
    results.write_block("a", [line], counts, coarse_levels(counts)[None])
    path = results.levels("entropy", "a")
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), levels.astype(np.uint16))


@pytest.fixture
def tuned(tmp_path):
    """A segmenter and its fine-tuned version, whose object has a higher score (a lower level) than the background."""
    write_png(tmp_path / "a.png", np.full((8, 16, 3), 128, np.uint8))
    write_png(tmp_path / "a_mask.png", OBJECT.astype(np.uint8))
    output = tmp_path / "tuned"
    output.mkdir()
    (output / "model.pth").write_bytes(b"weights")
    trained_on = {"frames": [], "marks": []}
    recipe = {
        "made_by": MADE_BY,
        "from": {"name": BEFORE},
        "scores": ["entropy"],
        "outliers": "objects",
        "trained_on": trained_on,
    }
    write_json(output / "recipe.json", recipe)
    spread = np.arange(128).reshape(8, 16) * 100
    after = f"mmseg:mini/segmenters/fast-scnn.py,{output}/model.pth"
    write_results(tmp_path, BEFORE, spread, 0.2)
    better = np.where(OBJECT, 0, spread + 1)
    write_results(tmp_path, after, better, 0.9, {"recipe": find_recipe(output / "model.pth").mark}.items())
    return tmp_path, after


def brightness(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")).astype(int)


def test_the_maps_show_how_few_background_pixels_score_as_high(tuned):
    root, after = tuned
    (pair,) = collect_finetuned(root / "ood", LIMITS)
    assert (pair["set"], pair["score"]) == ("RoadAnomaly21", "entropy")
    first, second = pair["rows"]
    assert (first["name"], first["objects"], second["name"], second["objects"]) == (BEFORE, "none", after, "objects")
    assert second["auroc"] == pytest.approx(100) and 40 < first["auroc"] < 90 and second["fpr95"] == 0
    (image,) = pair["images"]
    assert (image["before"]["aupr"], image["after"]["aupr"]) == pytest.approx((20, 90))
    before, new = brightness(image["before"]["map"]), brightness(image["after"]["map"])
    # Before, the score falls from the first pixel to the last; then, the object is above all of the background.
    assert before[0, 0] == before.max() and (np.diff(before.ravel()) <= 0).all()
    assert (new[OBJECT] == new.max()).all() and new[OBJECT].min() > new[~OBJECT].mean()


def test_a_segmenter_without_its_weights_or_of_another_recipe_is_not_shown(tuned):
    root, _ = tuned
    recipe = (root / "tuned/recipe.json").read_text()
    (root / "tuned/recipe.json").write_text(recipe.replace("entropy", "energy"))
    assert collect_finetuned(root / "ood", LIMITS) == []
    (root / "tuned/recipe.json").unlink()
    assert collect_finetuned(root / "ood", LIMITS) == []


def test_the_page_has_the_panel_folded(tuned, tmp_path):
    from dataclasses import replace

    sources = replace(write_world(tmp_path / "world", images=1), ood=tuned[0] / "ood")
    text = write_page(tmp_path / "index.html", collect(sources, None, LIMITS)).read_text()
    panel = text[text.index('id="finetuned"') :]
    assert panel.startswith('id="finetuned">') and "AUPR 90.0&nbsp;%" in panel and "AUPR 20.0&nbsp;%" in panel
    assert "RbA, Swin-B" in panel and "generated, curated" in panel
    assert panel.count('alt="score before fine-tuning, a"') == panel.count('alt="score after fine-tuning, a"') == 1
