"""relis/estimate.py: estimates on images without masks."""

import json
import shutil

import numpy as np
from relis_world import FAKE_MODELS

from genval.datasets import CLASSES
from genval.datasets.reading import read_image, read_mask
from genval.report.label_free import vote_counts
from genval.report.scores import mean_iou


def estimate(relis, images, *flags):
    return relis(
        "estimate", "--segmenters", ",".join(FAKE_MODELS), "--images", images, "--eval_dir", relis.results,
        "--output_dir", relis.root / "estimates", "--accelerator", "cpu", "--devices", "1", "--bootstrap_draws", "50",
        *flags,
    )  # fmt: skip


def test_estimates_need_no_masks(relis):
    folder = relis.root / "unlabelled"
    shutil.copytree(relis.root / "datasets/acdc/rgb_anon/fog", folder)  # no masks, and images of two splits
    code, out, err = estimate(relis, f"fog={folder}")
    assert code == 0, err
    found = json.loads((relis.root / "estimates/estimates.json").read_text())["fog"]
    assert found["images"] == len(list(folder.rglob("*.png"))) and set(found["values"]) == {"vote", "confidence"}
    assert "missing: no results of any segmenter on Cityscapes (clean)" in out

    saved = relis.root / "estimates/{}/fog/unlabelled/unlabelled"
    names = sorted(path.name for path in (relis.root / "estimates/good/fog").rglob("predictions/*.png"))
    votes = []
    for name in names:
        predictions = [read_mask(f"{saved}/predictions/{name}".format(model)) for model in FAKE_MODELS]
        votes.append(vote_counts(np.stack([one.reshape(-1) for one in predictions])))
    expected = mean_iou(np.sum(votes, 0), range(len(CLASSES)))
    assert [found["values"]["vote"][model]["value"] for model in FAKE_MODELS] == expected.tolist()
    assert out.index("| good ") < out.index("| poor ")
    image = read_image(sorted(folder.rglob("*.png"))[0])
    assert image.shape[:2] == predictions[0].shape


def test_clear_results_add_the_difference_of_confidences_and_a_second_run_computes_nothing(relis, monkeypatch):
    assert relis.eval("Cityscapes", ",".join(FAKE_MODELS))[0] == 0
    folder = relis.root / "datasets/acdc/rgb_anon/fog"
    code, out, err = estimate(relis, folder)
    assert code == 0 and "missing" not in out, err
    before = json.loads((relis.root / "estimates/estimates.json").read_text())
    assert set(before["fog"]["values"]) == {"vote", "confidence", "doc"}
    monkeypatch.setattr("genval.evaluation.unlabelled.UnlabelledStage.compute", None)
    assert estimate(relis, folder)[0] == 0
    assert json.loads((relis.root / "estimates/estimates.json").read_text()) == before


def test_one_model_under_two_names_does_not_vote_twice(relis, monkeypatch):
    monkeypatch.setitem(FAKE_MODELS, "again", FAKE_MODELS["good"])
    call = estimate(relis, relis.root / "datasets/acdc/rgb_anon/fog")
    relis.refused("good and again are the same model", "--segmenters", code_out_err=call)


def test_an_image_that_is_in_a_folder_twice_is_refused(relis):
    folder = relis.root / "unlabelled"
    shutil.copytree(relis.root / "datasets/acdc/rgb_anon/fog", folder)
    first = sorted(folder.rglob("*.png"))[0]
    shutil.copy(first, copy := first.with_name("z_copy.png"))
    relis.refused(f"{copy}: the same image as {first}", "count twice", code_out_err=estimate(relis, folder))


def test_clear_results_of_another_precision_are_refused(relis):
    assert relis.eval("Cityscapes", ",".join(FAKE_MODELS), "--precision", "bf16-true")[0] == 0
    call = estimate(relis, relis.root / "datasets/acdc/rgb_anon/fog")
    relis.refused("are not of the same model", "bf16-true", "relis/estimate.py", code_out_err=call)


def test_folders_that_cannot_be_read_are_refused(relis):
    relis.refused("--images", "nothing is not a folder", code_out_err=estimate(relis, f"fog={relis.root}/nothing"))
    folder = relis.root / "datasets/acdc/rgb_anon/fog"
    call = estimate(relis, f"{folder},{folder}")
    relis.refused("--images: expected folders with different names", code_out_err=call)
    call = estimate(relis, f"..={folder}")
    relis.refused("--images: expected folders with different names", code_out_err=call)
    code, out, _ = estimate(relis, folder, "--dry_run")
    assert code == 0 and "fog: 8 images for each of 3 segmenters" in out
    call = estimate(relis, folder, "--dry_run", "--segmenters", "good,none")
    relis.refused("Unknown segmenter 'none'", code_out_err=call)
