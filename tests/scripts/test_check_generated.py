"""ControlNet/check_generated.py: scores, gate, errors; a killed and resumed run writes the same bytes."""

import hashlib
import json
import os
import runpy
import shutil
import signal
import sys
import time

import numpy as np
import pytest
from relis_world import fake_segmenters, labelled, use_fewer_draws
from report_world import write_set
from script_runs import Script

from genval.datasets.labels import CITYSCAPES, CLASSES
from genval.evaluation import scoring
from genval.evaluation.image_scores import agreement
from genval.metrics.confusion import confusion_matrix
from genval.runtime.files import read_jsonl, write_jsonl, write_png
from genval.runtime.paths import REPO_ROOT

CITY = "val/munster"
WRONG = "fog_2_c"  # its image shows another mask
COPY = "fog_4_e"  # a copy of the mask and the image of fog_0_a
IDS = ["fog_0_a", "fog_1_b", WRONG, "fog_3_d", COPY]
WRITE_HISTOGRAMS = scoring.write_histograms


def make_set(root):
    """Write five generated images; the segmenters of `relis_world` read the mask from the red channel."""
    folder = root / "images/fog"
    for number, name in enumerate(IDS):
        seed = 0 if name == COPY else number
        image, label_ids = labelled(seed)
        generated = image.copy()
        if name == WRONG:
            generated[..., 0] = labelled(7)[0][..., 0]
        original = labelled(seed + 100)[0]
        original[..., 0] = CITYSCAPES.to_train_ids(label_ids)
        generated[0, 0, 2] = number  # equal to the eye, not byte for byte: such a set would be refused
        write_png(folder / f"leftImg8bit/{CITY}/{name}_leftImg8bit.png", generated)
        write_png(folder / f"original/{CITY}/{name}_leftImg8bit.png", original)
        write_png(folder / f"gtFine/{CITY}/{name}_gtFine_labelIds.png", label_ids)
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_set(tmp_path)


@pytest.fixture
def check(folder, monkeypatch, capsys):
    """`check(*flags)` runs the script in this process; returns exit code, output and errors."""
    monkeypatch.setitem(sys.modules, "genval.segmenters", fake_segmenters())
    use_fewer_draws(monkeypatch)
    # The histograms take longer than everything else here: only one test has them written.
    monkeypatch.setattr(scoring, "write_histograms", lambda path, *_: path.write_bytes(b""))

    def call(*flags, script="ControlNet/check_generated", where=("--folder", folder)):
        where = [*where, "--segmenter", "good"] if script.startswith("ControlNet") else []
        argv = [script, *where, "--accelerator", "cpu", "--devices", "1", *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(REPO_ROOT / f"{script}.py"), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def read_gate(folder):
    gate = json.loads((folder / "gate.json").read_text())
    return [entry["id"] for entry in gate["kept"]], {entry["id"]: entry["reasons"] for entry in gate["dropped"]}


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_scores_gate_and_histograms(check, folder, monkeypatch):
    monkeypatch.setattr(scoring, "write_histograms", WRITE_HISTOGRAMS)
    code, out, err = check()
    assert code == 0, err
    scores = {record["id"]: record["scores"] for record in read_jsonl(folder / "scores.jsonl")}
    assert list(scores) == sorted(IDS)
    for number, name in enumerate(IDS):
        seed = 0 if name == COPY else number
        image, label_ids = labelled(seed)
        train_ids = CITYSCAPES.to_train_ids(label_ids)
        if name == WRONG:
            image[..., 0] = labelled(7)[0][..., 0]
        classes = image[..., 0].clip(max=18)
        prediction = np.where(image[..., 1] < 256 * 0.1, (classes + 1) % 19, classes)
        expected = agreement(confusion_matrix(train_ids, prediction), CLASSES)
        assert scores[name]["miou"] == pytest.approx(expected["miou"], abs=1e-12)
        assert scores[name]["iou_per_class"] == pytest.approx(expected["iou_per_class"])
        assert scores[name]["relative_miou"] == pytest.approx(expected["miou"] / scores[name]["original_miou"])
        assert scores[name]["original_miou"] > 0.5
        assert not {"clip", "phrases", "domain_probability"} & scores[name].keys()  # absent without --clip, not zero
    kept, dropped = read_gate(folder)
    assert kept == ["fog_0_a", "fog_1_b", "fog_3_d"]
    assert dropped.keys() == {WRONG, COPY} and dropped[COPY] == ["near-duplicate of fog_0_a: 0 bits"]
    assert dropped[WRONG][0].startswith("relative_miou 0.")
    assert "3 kept, 2 dropped" in out and f"dropped {COPY}: near-duplicate" in out
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_a_killed_run_do_not_overrule_new_ones(check, folder):
    assert check()[0] == 0
    lines = list(read_jsonl(folder / "scores.jsonl"))
    for line in lines:
        line["scores"]["segmenter_hash"] = "another"
    write_jsonl(folder / "scores.rank1.jsonl", lines)
    assert "3 kept, 2 dropped" in check()[1]
    assert not (folder / "scores.rank1.jsonl").exists()


def test_other_thresholds_need_no_new_scores(check, folder):
    assert check()[0] == 0
    before = (folder / "scores.jsonl").read_bytes()
    code, out, _ = check("--min_of_median", "0", "--min_bits", "0")
    assert code == 0 and "Scored 0 images" in out and "5 kept, 0 dropped" in out
    assert (folder / "scores.jsonl").read_bytes() == before
    assert "Scored 5 images" in check("--overwrite")[1]
    assert (folder / "scores.jsonl").read_bytes() == before
    # Another segmenter, or an image that was generated again, needs new scores.
    assert "Scored 5 images" in check("--segmenter", "fair")[1]
    write_png(folder / f"leftImg8bit/{CITY}/fog_1_b_leftImg8bit.png", labelled(1)[0][::-1].copy())
    assert "Scored 1 images" in check("--segmenter", "fair", "--batch_size", 1)[1]


def test_scores_go_into_the_lines_of_a_manifest(check, folder):
    lines = [{"id": name, "seed": number, "domain_text": "in fog"} for number, name in enumerate(reversed(IDS))]
    write_jsonl(folder / "manifest.jsonl", lines)
    assert check()[0] == 0
    written = read_jsonl(folder / "manifest.jsonl")
    assert [{key: record[key] for key in lines[0]} for record in written] == lines
    assert all(record["scores"]["miou"] > 0 for record in written)
    assert not (folder / "scores.jsonl").exists()
    assert "Scored 0 images" in check()[1] and read_jsonl(folder / "manifest.jsonl") == written
    write_jsonl(folder / "manifest.jsonl", written[1:])
    code, _, err = check()
    assert code == 2 and "1 images that are missing in its manifest.jsonl" in err


def test_without_originals_the_agreement_itself_is_judged(check, folder):
    for path in (folder / "original").rglob("*.png"):
        path.unlink()
    assert check()[0] == 0
    assert not any("relative_miou" in record["scores"] for record in read_jsonl(folder / "scores.jsonl"))
    reasons = read_gate(folder)[1]
    assert reasons.keys() == {WRONG, COPY} and reasons[WRONG][0].startswith("miou 0.")


def test_with_clip_the_domain_is_judged(check, folder, caption_models):
    from genval.captions.clip import load_clip
    from genval.datasets.reading import read_image

    code, _, err = check("--clip", caption_models.clip, "--clear_phrase", "at night")
    assert code == 0, err
    clip = load_clip(str(caption_models.clip))
    phrases = ["a street in fog", "a street at night"]
    for record in read_jsonl(folder / "scores.jsonl"):
        image = read_image(folder / f"leftImg8bit/{CITY}/{record['id']}_leftImg8bit.png")
        logits = clip.logit_scale * (clip.encode_images([image]) @ clip.encode_texts(phrases).T)[0]
        assert record["scores"]["phrases"] == phrases and record["scores"]["clip_hash"] == clip.hash
        assert record["scores"]["domain_probability"] == pytest.approx(logits.softmax(0)[0].item(), abs=1e-4)
    code, out, _ = check("--clip", caption_models.clip, "--clear_phrase", "at night", "--min_domain", 1)
    assert code == 0 and "Scored 0 images" in out
    dropped = read_gate(folder)[1]
    assert len(dropped) == 5 and all(any("domain probability" in why for why in whys) for whys in dropped.values())


def test_a_damaged_image_stops_the_run_or_is_skipped(check, folder):
    path = folder / f"leftImg8bit/{CITY}/fog_1_b_leftImg8bit.png"
    path.write_bytes(path.read_bytes()[:200])
    code, _, err = check()
    assert code == 2 and "fog_1_b_leftImg8bit.png cannot be decoded" in err and not (folder / "gate.json").exists()
    assert check("--skip_bad")[0] == 0
    kept, dropped = read_gate(folder)
    assert "fog_1_b" not in kept and "cannot be decoded" in dropped["fog_1_b"][0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--segmenter", "nan"], "gives NaN or infinite logits"),
        (["--segmenter", "none"], "Unknown segmenter 'none'"),
        (["--min_domain", "2"], "--min_domain: expected a number from 0 to 1.0, found 2.0"),
        (["--clip", "nowhere"], "No CLIP model nowhere"),
        (["--clip", "x", "--clip_template", "a street"], "--clip_template: expected a text with {phrase}"),
        (["--reference", "x"], "--reference needs --clip"),
        (["--clip", "x", "--reference", "nowhere"], "nowhere is not a folder"),
        (["--clip", "x", "--reference", "nowhere", "--dry_run"], "nowhere is not a folder"),
    ],
)
def test_refusals_are_one_line(check, flags, said):
    code, _, err = check(*flags)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and said in lines[0], err


def test_a_clear_set_checks_its_generator(check, folder, tmp_path):
    clear = tmp_path / "images/img2img/clear"
    shutil.copytree(folder, clear)
    flags = ("--domain", "clear", "--generator", "img2img", "--generated_dir", tmp_path / "images")
    flags += ("--eval_dir", tmp_path / "eval")
    code, out, err = check(*flags, where=())
    assert code == 0 and "Scored 5 images" in out, err
    assert "Not checked: The check of img2img" in out and "relis/eval.py" in out
    for name in ("good", "fair", "poor"):
        write_set(tmp_path / "eval", name, "Cityscapes", "clean", ["a", "b", "c", "d", "e"], 0.9)
        write_set(tmp_path / "eval", name, "Cityscapes_img2img_clear", "clear", ["clear_0_a", "clear_1_e"], 0.8)
    out = check(*flags, where=())[1]
    assert "img2img: r of mIoU on generated and original clear images of the same 2 streets is" in out


def test_an_unknown_domain_needs_a_phrase_for_clip(check, folder):
    other = folder.rename(folder.with_name("thick-smoke"))
    code, _, err = check("--folder", other, "--clip", "x")
    assert code == 2 and "The phrase of thick-smoke is unknown" in err


def test_dry_run_writes_nothing(check, folder):
    code, out, _ = check("--dry_run", "--limit", 2)
    assert code == 0 and "Would judge 2 images" in out and not digest(folder)


def test_eval_applies_the_gate(check, folder, tmp_path):
    assert check()[0] == 0
    flags = ["--trg_dataset", "Cityscapes_fog", "--generated_dir", tmp_path / "images", "--model_arch", "fair"]
    flags += ["--root_exp_dir", tmp_path / "results"]
    code, out, err = check(*flags, "--gate", script="relis/eval")
    assert code == 0, err
    metrics = next((tmp_path / "results").rglob("metrics.json"))
    values = json.loads(metrics.read_text())
    assert (values["images"], values["dropped_by_gate"]) == (3, 2)
    assert "2 images dropped by its gate.json" in out
    assert [entry["reason"].startswith("gate: ") for entry in values["skipped"]] == [True, True]
    # The results of the whole set have a folder of their own.
    code, out, err = check(*flags, script="relis/eval")
    places = {path.parts[-4]: json.loads(path.read_text()) for path in (tmp_path / "results").rglob("metrics.json")}
    assert code == 0 and {name: values["images"] for name, values in places.items()} == {
        "Cityscapes_fog": 5,
        "Cityscapes_fog-gated": 3,
    }
    assert "dropped_by_gate" not in places["Cityscapes_fog"]
    # A gate that keeps no image removes the metrics of an earlier gate, and keeps those of the whole set.
    assert check("--min_agreement", 9)[0] == 0
    code, _, err = check(*flags, "--gate", script="relis/eval")
    assert code == 2 and "no image is left to evaluate" in err
    left = [path.parts[-4] for path in (tmp_path / "results").rglob("metrics.json")]
    assert left == ["Cityscapes_fog"]
    (folder / "gate.json").unlink()
    code, _, err = check(*flags, "--gate", script="relis/eval")
    assert code == 2 and "Run: python ControlNet/check_generated.py --folder" in err
    code, _, err = check(*flags, "--gate", "--preset", "mini", script="relis/eval")
    assert code == 2 and "Run: python ControlNet/check_generated.py --preset mini --folder" in err


def start(folder, *flags, delay=0.0):
    command = [
        "tests/forking.py", "ControlNet/check_generated.py", "--folder", folder, "--accelerator", "cpu",
        "--segmenter", "relis_world:slow_segmenter", "--batch_size", "1", *flags,
    ]  # fmt: skip
    paths = f"{REPO_ROOT}{os.pathsep}{REPO_ROOT / 'tests/scripts'}"
    return Script(*command, environment={"PYTHONPATH": paths, "DELAY": str(delay)})


@pytest.mark.slow
def test_a_resumed_run_and_two_processes_write_the_bytes_of_one_run(tmp_path):
    folders = {name: make_set(tmp_path / name) for name in ("one", "killed", "two")}
    process = start(folders["one"], "--devices", "1")
    assert "Scored 5 images" in process.communicate(timeout=180)[0]
    process = start(folders["killed"], "--devices", "1", delay=0.4)
    journal = folders["killed"] / "scores.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folders["killed"] / "gate.json").exists()
    with open(journal, "ab") as stream:
        stream.write(b'{"id": "fog_3_d", "sco')  # a line that was being written
    out, err = start(folders["killed"], "--devices", "1").communicate(timeout=180)
    assert "Scored 5 images" not in out and "kept" in out, err
    _, err = start(folders["two"], "--devices", "2").communicate(timeout=180)
    results = [digest(folder) for folder in folders.values()]
    assert results[0].keys() == {"scores.jsonl", "scores.png", "gate.json"}
    assert results[1] == results[0] and results[2] == results[0], err
