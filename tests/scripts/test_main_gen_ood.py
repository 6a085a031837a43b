"""ood_detection/main_gen_ood.py on small images with objects, with segmenters made of arithmetic."""

import csv
import json
import os
import runpy
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from relis_world import fake_segmenters
from script_runs import Script

from genval.metrics.statistics import COUNTS_VERSION
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT

SIZE = (24, 40)
PUBLISHED = ("entropy", "confidence", "logits")


class UnsureSegmenter(torch.nn.Module):
    """Less confident where red is bright, by an amount that depends on its name."""

    def __init__(self, name, slope=0.02):
        super().__init__()
        self.name = name
        self.register_buffer("slope", torch.tensor(slope))

    def forward(self, images, size=None):
        classes = torch.nn.functional.one_hot(images[:, 1].long() % 19, 19).permute(0, 3, 1, 2)
        # Blue makes scores of two pixels differ by more than rounding.
        blue = images[:, 2:] + images[:, 1:2] / 256
        return classes * (8 - self.slope * (images[:, :1] + blue / 300)) + 1e-4 * blue * torch.arange(19)[:, None, None]


class SlowSegmenter(UnsureSegmenter):
    def forward(self, images, size=None):
        time.sleep(float(os.environ.get("DELAY", 0)))
        return super().forward(images)


def slow_segmenter(device):
    """A segmenter for subprocesses (`test_main_gen_ood:slow_segmenter`); `DELAY` is its time per batch."""
    return SlowSegmenter("slow")


def make_images(root, numbers=range(4), objects=("lion", "bear")):
    """The generated set's three folders, and RoadAnomaly21's, below `root`."""
    for index, name in enumerate(objects):
        for number in numbers:
            generator = np.random.default_rng(100 * index + number)
            image = generator.integers(0, 180, (*SIZE, 3)).astype(np.uint8)
            mask = np.zeros(SIZE, np.uint8)
            mask[8:16, 5 + number : 20] = 1
            image[..., 0] += (mask * generator.integers(30, 75, SIZE)).astype(np.uint8)
            write_png(root / f"refined/{name}/{number}.png", image)
            write_png(root / f"masks/{name}/{number}_mask.png", mask * 255)
            write_png(root / f"with_positions/{name}/{number}_gt.png", mask)
            box = {f"{number}.png": {"pos_mask": [8, 5], "size_mask": 15}}
            (root / f"with_positions/{name}/{number}_pos.json").write_text(json.dumps(box))
            track = root / "dataset_AnomalyTrack"
            write_png(track / f"images/{name}{number}.png", image)
            mask[0] = 255
            write_png(track / f"labels_masks/{name}{number}_labels_semantic.png", mask)


class Ood:
    """The script on the images below `root`, in this process."""

    def __init__(self, root, monkeypatch, capsys):
        self.root, self.monkeypatch, self.capsys = root, monkeypatch, capsys
        make_images(root)
        module = fake_segmenters()
        self.asked = []

        def load_segmenter(name, device, precision="32-true", **options):
            self.asked.append(name)
            segmenter = UnsureSegmenter(name, {"flat": 0.005}.get(name, 0.02))
            if name == "nan":
                segmenter.forward = lambda images, size=None: torch.full((len(images), 19, *SIZE), float("nan"))
            return segmenter

        def specify(name):
            if name == "missing":
                raise GenValError(f"No checkpoint for {name}.")

        module.load_segmenter, module.specify = load_segmenter, specify
        monkeypatch.setitem(sys.modules, "genval.segmenters", module)

    def flags(self, results="results"):
        folders = [f"--{kind}_dir={self.root}/{folder}" for kind, folder in FOLDERS.items()]
        return [*folders, f"--results_dir={self.root}/{results}", "--accelerator=cpu", "--devices=1", "--draws=50"]

    def __call__(self, *flags, model="steep", results="results"):
        """Run; returns exit code, standard output and standard error."""
        self.monkeypatch.setattr(
            sys, "argv", ["main_gen_ood", "--model", model, *self.flags(results), *map(str, flags)]
        )
        self.capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(REPO_ROOT / "ood_detection/main_gen_ood.py"), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        output = self.capsys.readouterr()
        return code, output.out, output.err

    def json(self, dataset="generated", model="steep", results="results"):
        return json.loads((self.root / results / dataset / f"{model}.json").read_text())

    def rows(self, dataset="generated", model="steep", results="results"):
        with open(self.root / results / dataset / f"{model}.csv") as stream:
            return {row["score"]: row for row in csv.DictReader(stream)}


FOLDERS = {"images": "refined", "masks": "masks", "positions": "with_positions", "datasets": ""}


@pytest.fixture
def ood(tmp_path, monkeypatch, capsys):
    return Ood(tmp_path, monkeypatch, capsys)


def read(root, name, number):
    from genval.datasets.reading import read_image, read_mask

    return read_image(root / f"refined/{name}/{number}.png"), read_mask(root / f"masks/{name}/{number}_mask.png") == 255


def test_segmenters_share_decoded_images(ood):
    """One image is decoded once more, for the check of the second segmenter."""
    from genval.evaluation import ood_detection

    read, ids = ood_detection.read_ood_pair, []

    def counted(item):
        ids.append(f"{item.cond} {item.id}")
        return read(item)

    ood.monkeypatch.setattr(ood_detection, "read_ood_pair", counted)
    code, _, err = ood(model="steep,flat")
    assert code == 0, err
    assert len(set(ids)) == 8 and len(ids) == 9


def test_metrics_equal_those_of_the_published_procedure(ood):
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    assert ood("--exact")[0] == 0
    content = ood.json()
    pixels = {name: ([], []) for name in PUBLISHED}
    for name in ("lion", "bear"):
        for number in range(4):
            image, mask = read(ood.root, name, number)
            logits = UnsureSegmenter("steep")(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
            probabilities = logits.softmax(0).numpy()
            entropy = -(probabilities * np.log(probabilities + 1e-15)).sum(0)
            of_image = content[str(ood.root / f"refined/{name}/{number}.png")]
            assert of_image["raw_entropy"] == pytest.approx(entropy[mask].mean(), abs=1e-5)
            assert of_image["rel_entropy"] == pytest.approx(entropy[mask].mean() / entropy[~mask].mean(), abs=1e-4)
            for score, values in zip(PUBLISHED, (entropy, -probabilities.max(0), -logits.amax(0).numpy()), strict=True):
                pixels[score][0].append(values.ravel())
                pixels[score][1].append(mask.ravel())
                check(of_image[score], values.ravel(), mask.ravel(), 1e-5)
    for score, (values, masks) in pixels.items():
        check(content["pooled"][score], np.concatenate(values), np.concatenate(masks), 1e-5)
        fpr, tpr, _ = roc_curve(np.concatenate(masks), np.concatenate(values))
        row = ood.rows()[score]
        assert float(row["auroc"]) == pytest.approx(auc(fpr, tpr), abs=1e-5)
        assert float(row["auroc_low"]) < float(row["auroc"]) < float(row["auroc_high"])
        precision, recall, _ = precision_recall_curve(np.concatenate(masks), np.concatenate(values))
        assert float(row["aupr_object"]) == pytest.approx(auc(recall, precision), abs=1e-5)
        assert (row["set"], row["model"], row["images"], row["objects"]) == ("generated", "steep", "8", "2")


def check(found, scores, objects, tolerance):
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(objects, scores)
    assert found["auroc"] == pytest.approx(auc(fpr, tpr), abs=tolerance)
    for key, curve in (
        ("aupr_in", precision_recall_curve(objects, scores)),
        ("aupr_out", precision_recall_curve(~objects, -scores)),
    ):
        assert found[key] == pytest.approx(auc(curve[1], curve[0]), abs=tolerance)


def test_pixels_without_an_order_are_reported_and_counts_have_a_version(ood):
    code, output, _ = ood()
    assert code == 0 and "end of the score's range" not in output
    block = min((ood.root / "results/generated/steep/blocks").glob("*.jsonl"))
    lines = block.read_text().splitlines()
    assert json.loads(lines[0])["made_from"]["counts_version"] == COUNTS_VERSION
    module = sys.modules["genval.segmenters"]
    plain = module.load_segmenter

    def steeper(name, *args, **options):
        segmenter = plain(name, *args, **options)
        forward = segmenter.forward
        segmenter.forward = lambda images, size=None: forward(images, size) * 300
        return segmenter

    ood.monkeypatch.setattr(module, "load_segmenter", steeper)
    code, output, _ = ood(model="saturated")
    assert code == 0 and "entropy of saturated on generated:" in output and "end of the score's range" in output
    assert float(ood.rows(model="saturated")["entropy"]["saturated"]) > 0.1
    assert float(ood.rows(model="saturated")["confidence"]["saturated"]) == 0


@pytest.mark.slow
def test_levels_agree_with_single_pixels_within_their_bounds(ood):
    ood("--exact", results="exact")
    ood()
    levels, exact = ood.json()["pooled"], ood.json(results="exact")["pooled"]
    assert not levels["exact"] and exact["exact"]
    for score in (*PUBLISHED, "energy"):
        for key in ("auroc", "fpr", "aupr_in", "aupr_out"):
            assert abs(levels[score][key] - exact[score][key]) <= levels[score]["bounds"][key] + 1e-9 < 0.3


def test_running_again_measures_nothing_and_changes_nothing(ood):
    ood()
    before = (
        (ood.root / "results/generated/steep.json").read_bytes(),
        (ood.root / "results/generated/steep.csv").read_bytes(),
    )
    blocks = {path: path.stat().st_mtime_ns for path in (ood.root / "results").rglob("blocks/*")}
    assert len(blocks) == 4
    assert ood()[0] == 0
    after = (
        (ood.root / "results/generated/steep.json").read_bytes(),
        (ood.root / "results/generated/steep.csv").read_bytes(),
    )
    assert after == before
    assert {path: path.stat().st_mtime_ns for path in blocks} == blocks
    ood("--overwrite")
    assert all(path.stat().st_mtime_ns > stamp for path, stamp in blocks.items())


def test_only_changed_blocks_are_measured_again(ood):
    ood()
    blocks = {path: path.stat().st_mtime_ns for path in (ood.root / "results").rglob("blocks/*")}
    mask = np.zeros(SIZE, np.uint8)
    mask[2:6, 3:9] = 255
    write_png(ood.root / "masks/lion/2_mask.png", mask)
    (ood.root / "masks/lion/3_mask.png").unlink()
    (ood.root / "masks/lion/3_mask.txt").write_text("nothing found")
    code, out, _ = ood()
    assert code == 0 and "skipped: 1 no object found" in out
    assert {path.name for path, stamp in blocks.items() if path.stat().st_mtime_ns > stamp} == {
        *("lion-00000.jsonl", "lion-00000.npz"),
    }
    ood(results="fresh")
    assert ood.json()["pooled"] == ood.json(results="fresh")["pooled"]


@pytest.mark.slow
def test_sets_models_and_parts_have_results_of_their_own(ood):
    (ood.root / "masks/curated.json").write_text(json.dumps({"lion": {"0": False}}))
    code, out, _ = ood("--trg_dataset", "generated,RoadAnomaly21", model="steep,flat")
    assert code == 0 and "1 not chosen in curated.json" in out
    assert ood.asked == ["flat", "steep"]  # all but the first are checked before the first is run
    assert ood.json()["pooled"]["images"] == 7 and ood.json("RoadAnomaly21", "flat")["pooled"]["images"] == 8
    assert ood.json("RoadAnomaly21")["pooled"]["pixels"]["void"] == 8 * SIZE[1]
    assert float(ood.rows(model="flat")["entropy"]["auroc"]) < float(ood.rows()["entropy"]["auroc"])
    ood("--uncurated")
    assert ood("--trg_dataset", "generated-fog")[0] == 0 and ood.json("generated-fog")["pooled"]["images"] == 7
    ood("--objects", "bear")
    assert (
        ood.json("generated-uncurated")["pooled"]["images"] == 8 and ood.json("generated-bear")["pooled"]["images"] == 4
    )
    pair = f"pair:{ood.root}/dataset_AnomalyTrack/images,{ood.root}/masks_of_pair"
    for path in (ood.root / "dataset_AnomalyTrack/labels_masks").iterdir():
        (ood.root / "masks_of_pair").mkdir(exist_ok=True)
        (ood.root / "masks_of_pair" / path.name.replace("_labels_semantic", "")).write_bytes(path.read_bytes())
    assert ood("--trg_dataset", pair)[0] == 0
    (place,) = (ood.root / "results").glob("pair_*")
    assert json.loads((place / "steep.json").read_text())["pooled"]["entropy"]["auroc"] == pytest.approx(
        ood.json("RoadAnomaly21")["pooled"]["entropy"]["auroc"]
    )


def test_images_without_object_pixels_are_pooled_but_have_no_metrics(ood):
    write_png(ood.root / "masks/lion/0_mask.png", np.zeros(SIZE, np.uint8))
    write_png(ood.root / "masks/lion/1_mask.png", np.full(SIZE, 255, np.uint8))
    assert ood()[0] == 0
    pooled = ood.json()["pooled"]
    assert len(pooled["images_without_both"]) == 2 and pooled["images"] == 8
    assert pooled["pixels"]["object"] + pooled["pixels"]["background"] == 8 * SIZE[0] * SIZE[1]
    assert ood.json()[str(ood.root / "refined/lion/0.png")]["entropy"]["auroc"] is None
    assert ood.rows()["entropy"]["images_with_both"] == "6"


def test_an_image_that_is_there_twice_is_refused_or_skipped(ood):
    track = ood.root / "dataset_AnomalyTrack"
    for name in ("images/lion0.png", "labels_masks/lion0_labels_semantic.png"):
        shutil.copy(track / name, track / name.replace("lion0", "lion9"))
    code, _, err = ood("--trg_dataset", "RoadAnomaly21")
    assert code == 2 and "the same image as" in err and "--skip_bad" in err
    code, out, _ = ood("--trg_dataset", "RoadAnomaly21", "--skip_bad")
    assert code == 0 and "lion9.png: the same image as" in out


def test_new_images_of_the_standardising_set_are_measured(ood):
    from relis_world import write_pair

    flags = ("--standardise", "Cityscapes", "--standardise_images", "2")
    values = []
    for seed in (0, 5):
        for number in range(2):
            write_pair(ood.root / "cityscapes", "munster", f"munster_{number:06d}_000019", seed + number)
        assert ood(*flags)[0] == 0
        values.append((ood.root / "results/max_logits/steep.json").read_text())
        values.append(ood.rows()["standardised"]["auroc"])
    assert values[0] != values[2] and values[1] != values[3]


@pytest.mark.slow
def test_whole_objects_void_and_standardised_scores(ood):
    from relis_world import write_pair

    for number in range(3):
        write_pair(ood.root / "cityscapes", "munster", f"munster_{number:06d}_000019", number)
    flags = ("--components", "entropy,standardised", "--component_sizes", "5,5", "--void", "1")
    code, _, err = ood(*flags, "--standardise", "Cityscapes", "--standardise_images", "2")
    assert code == 0, err
    rows = ood.rows()
    assert set(rows) == {*PUBLISHED, "energy", "standardised"}
    assert 0 < float(rows["entropy"]["siou"]) <= 1 and rows["logits"]["siou"] == ""
    assert 0 < float(rows["entropy"]["ppv"]) <= 1 and 0 <= float(rows["entropy"]["f1"]) <= 1
    about = json.loads((ood.root / "results/max_logits/steep.json").read_text())
    assert sum(about["pixels"]) == 2 * SIZE[0] * SIZE[1]
    assert len(list((ood.root / "results/generated/steep/levels/entropy").rglob("*.png"))) == 8


def test_rejected_by_all_and_the_benchmarks_threshold(ood):
    flags = ("--scores", "rba", "--components", "entropy,rba", "--component_sizes", "5,5")
    assert ood(*flags)[0] == 0
    levels = ood.rows()
    assert 0 <= float(levels["rba"]["auroc"]) <= 1 and 0 < float(levels["entropy"]["siou"]) <= 1
    assert ood(*flags, "--component_threshold", "benchmark")[0] == 0
    benchmark = ood.rows()
    assert float(benchmark["entropy"]["siou"]) == pytest.approx(float(levels["entropy"]["siou"]), abs=0.1)
    assert benchmark["entropy"]["auroc"] == levels["entropy"]["auroc"]
    folder = ood.root / "results/generated/steep"
    assert len(list((folder / "values/rba").rglob("*.npy"))) == 8 and not list((folder / "levels").rglob("*.png"))


@pytest.mark.parametrize(
    ("prepare", "flags", "said"),
    [
        (lambda root: None, ["--model", "nan"], "bear/0.png. Use --precision 32-true"),
        (lambda root: write_png(root / "masks/lion/0_mask.png", np.zeros((9, 9), np.uint8)), [], "differ in size"),
        (lambda root: (root / "masks/lion/0_mask.png").write_bytes(b"x"), [], "lion/0_mask.png cannot be decoded"),
        (lambda root: (root / "masks/lion/0_mask.png").unlink(), [], "Run: python ood_objects/get_masks.py"),
        (lambda root: None, ["--trg_dataset", "RoadObstacle21"], "No images with masks of RoadObstacle21"),
        (lambda root: None, ["--trg_dataset", "nothing"], "Unknown set 'nothing'"),
        (lambda root: None, ["--components", "sharpness"], "sharpness"),
        (lambda root: None, ["--components", "standardised"], "--known Cityscapes"),
        (lambda root: None, ["--scores", "knn"], "--known Cityscapes"),
        (lambda root: None, ["--components", "rba"], "give --scores rba"),
        (lambda root: None, ["--scores", "odin"], "gives logits only"),
        (lambda root: None, ["--void", "300"], "0..255"),
        (lambda root: None, ["--objects", "zebra"], "No images of zebra"),
    ],
)
def test_bad_input_is_one_line_that_names_it(ood, prepare, flags, said):
    prepare(ood.root)
    code, _, err = ood(*flags)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and said in lines[0] and "Traceback" not in err
    assert not list((ood.root / "results").glob("*/*.csv"))


def test_metrics_of_an_earlier_run_are_not_used_for_images_that_are_now_bad(ood):
    ood()
    for number in range(4):
        (ood.root / f"refined/lion/{number}.png").write_bytes(b"x")
    code, _, _ = ood("--skip_bad")
    assert code == 0 and ood.json()["pooled"]["images"] == 4
    assert not any("lion" in key for key in ood.json())


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED_RESULTS = {
    "truncated counts": ("blocks/lion-00000.npz", halve),
    "empty counts": ("blocks/lion-00000.npz", lambda path: path.write_bytes(b"")),
    "no counts": ("blocks/lion-00000.npz", lambda path: path.unlink()),
    "truncated lines of a block": ("blocks/lion-00000.jsonl", halve),
    "empty lines of a block": ("blocks/lion-00000.jsonl", lambda path: path.write_bytes(b"")),
    "lines of a block as a list": ("blocks/lion-00000.jsonl", lambda path: path.write_text("[]\n")),
    "doubled lines of a block": ("blocks/lion-00000.jsonl", lambda path: path.write_bytes(2 * path.read_bytes())),
    "no lines of a block": ("blocks/lion-00000.jsonl", lambda path: path.unlink()),
    "lines of another block": (
        "blocks/lion-00000.jsonl",
        lambda path: shutil.copy(path.with_name("bear-00000.jsonl"), path),
    ),
    "truncated metrics": ("", halve),
    "no metrics": ("", lambda path: path.unlink()),
}


@pytest.mark.parametrize("kind", DAMAGED_RESULTS)
def test_damaged_results_are_measured_again(ood, kind):
    assert ood()[0] == 0
    results = ood.root / "results/generated"
    whole = {path.relative_to(results): path.read_bytes() for path in results.rglob("*") if path.is_file()}
    name, damage = DAMAGED_RESULTS[kind]
    damage(next(results.rglob(name)) if name else results / "steep.json")
    code, out, err = ood()
    assert code == 0, err
    is_damaged = kind.startswith(("truncated", "empty counts", "lines of a block")) and bool(name)
    assert ("damaged blocks of earlier results: 1, such as" in out) == is_damaged
    assert {path.relative_to(results): path.read_bytes() for path in results.rglob("*") if path.is_file()} == whole


def test_levels_of_an_earlier_image_are_not_used_for_component_metrics(ood):
    part = ("--objects", "lion", "--limit", "2")
    flags = (*part, "--components", "entropy", "--component_sizes", "5,5")
    ood(*flags)
    image, _ = read(ood.root, "lion", 0)
    write_png(ood.root / "refined/lion/0.png", image[:, ::-1].copy())
    ood(*part)  # measures the block again, and writes no levels
    ood(*flags)
    ood(*flags, results="fresh")
    found = [ood.json("generated-lion", results=name)["pooled"]["entropy"] for name in ("results", "fresh")]
    assert found[0]["components"] == found[1]["components"]


def test_the_labels_of_the_street_are_part_of_the_record(ood):
    ood("--void", "0")
    before = ood.json()["pooled"]["pixels"]
    write_png(ood.root / "with_positions/lion/0_gt.png", np.ones(SIZE, np.uint8))
    ood("--void", "0")
    assert ood.json()["pooled"]["pixels"]["void"] < before["void"]


@pytest.mark.parametrize("bad", ["0", "1"])
def test_a_failure_loses_no_block_that_was_measured_before_it(ood, bad):
    (ood.root / f"refined/lion/{bad}.png").write_bytes(b"x")
    code, _, err = ood("--batch_size", "1")
    assert code == 2 and f"lion/{bad}.png" in err
    assert [path.stem for path in ood.root.glob("results/*/*/blocks/*.jsonl")] == ["bear-00000"]


def test_bad_images_may_be_skipped(ood):
    (ood.root / "refined/lion/0.png").write_bytes(b"x")
    code, out, _ = ood("--skip_bad")
    assert code == 0 and "skipped" in out and "1 skipped (--skip_bad)" in out
    assert ood.json()["pooled"]["images"] == 7
    assert ood.json()["pooled"]["skipped"][0]["file"].endswith("lion/0.png")
    (ood.root / "masks/lion/1_mask.png").unlink()
    (ood.root / "refined/bear/0.png").write_bytes(b"x")
    ood("--skip_bad")
    files = [entry["file"] for entry in ood.json()["pooled"]["skipped"]]
    assert len(files) == 3 and files == sorted(files)  # whoever found them


def _dangle(path):
    path.unlink()
    path.symlink_to("nowhere.png")


def _loop(path):
    path.unlink()
    path.symlink_to(path.name)


def _become_folder(path):
    path.unlink()
    path.mkdir()


_UNOPENED = {"link": _dangle, "loop": _loop, "folder": _become_folder}


@pytest.mark.parametrize("kind", _UNOPENED)
@pytest.mark.parametrize(
    ("flags", "file"),
    [
        ((), "refined/lion/1.png"),
        ((), "masks/lion/1_mask.png"),
        (("--trg_dataset", "RoadAnomaly21"), "dataset_AnomalyTrack/images/lion1.png"),
        (("--trg_dataset", "RoadAnomaly21"), "dataset_AnomalyTrack/labels_masks/lion1_labels_semantic.png"),
    ],
)
def test_ood_detection_skips_what_cannot_be_opened(ood, kind, flags, file):
    _UNOPENED[kind](ood.root / file)
    code, _, err = ood(*flags)
    assert code == 2 and err.startswith("error:") and file in err
    code, _, err = ood(*flags, "--skip_bad")
    assert code == 0, err
    pooled = ood.json(flags[-1] if flags else "generated")["pooled"]
    assert pooled["images"] == 7 and len(pooled["skipped"]) == 1


def test_hidden_files_and_loops_change_nothing_in_ood_detection(ood):
    for folder in ("refined/lion", "masks/lion", "dataset_AnomalyTrack/images", "dataset_AnomalyTrack/labels_masks"):
        for file in sorted((ood.root / folder).iterdir()):
            (ood.root / folder / f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
        (ood.root / folder / "again").symlink_to(ood.root / folder)
        (ood.root / folder / "up").symlink_to(ood.root)
    for name in ("generated", "RoadAnomaly21"):
        code, _, err = ood("--trg_dataset", name)
        assert code == 0, err
        assert ood.json(name)["pooled"]["images"] == 8


def test_a_dry_run_and_a_limit(ood):
    code, out, _ = ood("--dry_run", model="steep,flat")
    assert code == 0 and "generated: 8 images for each of 2 segmenters" in out
    code, _, err = ood("--dry_run", model="steep,missing")
    assert code == 2 and "No checkpoint for missing." in err
    assert not (ood.root / "results").exists() and not ood.asked
    ood("--limit", "5")
    assert ood.json()["pooled"]["images"] == 5 and ood.json()["pooled"]["limit"] == 5


def command(root, results, *flags):
    folders = [f"--{kind}_dir={root}/{folder}" for kind, folder in FOLDERS.items()]
    model = "test_main_gen_ood:slow_segmenter"
    return [
        *("ood_detection/main_gen_ood.py", "--model", model, f"--results_dir={root}/{results}"),
        *(*folders, "--accelerator=cpu", "--draws=50", *flags),
    ]


def start(root, results, *flags, delay=0.0):
    paths = os.pathsep.join(str(REPO_ROOT / folder) for folder in (".", "tests", "tests/scripts"))
    environment = {"PYTHONPATH": paths, "DELAY": str(delay)}
    return Script("tests/forking.py", *command(root, results, *flags), environment=environment)


@pytest.mark.slow
def test_neither_a_kill_nor_the_number_of_processes_changes_a_byte(tmp_path):
    make_images(tmp_path, range(40), ("bear", "lion", "owl"))
    whole = start(tmp_path, "whole", "--devices=1")
    assert whole.wait(120) == 0, whole.communicate()[1]
    two = start(tmp_path, "two", "--devices=2")
    assert two.wait(180) == 0, two.communicate()[1]
    killed = start(tmp_path, "killed", "--devices=1", delay=0.1)
    end = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("*.jsonl")) and time.monotonic() < end:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = len(list((tmp_path / "killed").rglob("blocks/*.jsonl")))
    assert 0 < done < 6 and not list((tmp_path / "killed").rglob("*.csv"))
    again = start(tmp_path, "killed", "--devices=1")
    assert again.wait(120) == 0, again.communicate()[1]
    results = [sorted((tmp_path / name / "generated").glob("*.*")) for name in ("whole", "two", "killed")]
    assert (
        [path.name for path in results[0]] == [path.name for path in results[1]] == [path.name for path in results[2]]
    )
    for one, other, third in zip(*results, strict=True):
        assert one.read_bytes() == other.read_bytes() == third.read_bytes()
