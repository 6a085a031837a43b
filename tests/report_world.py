"""Results of made-up models as relis/eval.py leaves them, without running anything, for the tests of report/."""

import json
import runpy
import shutil
import sys

import numpy as np
import pytest

from genval.metrics.statistics import PixelStatistics
from genval.results.scenes import SceneResults, write_counts, write_statistics
from genval.runtime.files import write_json, write_jsonl
from genval.runtime.paths import REPO_ROOT

CITY = [f"frankfurt_000000_{number:06d}" for number in range(6)]
FOG = [f"fog_{number}_{name}" for number, name in enumerate(CITY)]
TRUE_FOG = [f"GOPR0475_frame_{number:06d}" for number in range(5)]
# Share of the pixels that a model gets right in clear weather and in fog: the order differs.
MODELS = {"alpha": (0.9, 0.5), "beta": (0.85, 0.6), "gamma": (0.8, 0.7), "delta": (0.75, 0.65)}
# With the others, enough for an interval of a correlation.
MORE_MODELS = {"epsilon": (0.82, 0.55), "eta": (0.84, 0.62), "theta": (0.79, 0.58), "zeta": (0.87, 0.53)}
MORE_TRUE_FOG = [*TRUE_FOG, *(f"GOPR0475_frame_{number:06d}" for number in range(5, 10))]
CLASSES = 19


def matrix_of(item, right, absent=()):
    """A confusion matrix with the labels of an image and a share of about `right` on the diagonal."""
    labels = np.random.default_rng(abs(hash_of(item))).integers(200, 400, CLASSES)
    labels[list(absent)] = 0
    noise = np.random.default_rng(abs(hash_of(f"{item}{right}"))).integers(-15, 15, CLASSES)
    hits = np.clip((labels * right).astype(int) + noise, 0, labels)
    matrix = np.diag(hits)
    matrix[np.arange(CLASSES), (np.arange(CLASSES) + 1) % CLASSES] += labels - hits
    return matrix


def hash_of(text):
    return int.from_bytes(text.encode()[-8:], "big")


def made_by(model):
    """What a record says about the model."""
    return {"identity": f"identity of {model}", "precision": "32-true", "confidences_of": "all", "counts_version": 1}


def write_set(root, model, dataset, cond, ids, right, scene="frankfurt", confidence=0.8, absent=(), mark=None):
    """An evaluated set; every pixel is in the confidence bin of `confidence`, or with None in none."""
    results = SceneResults(root, model, dataset, cond, scene)

    def record(item):
        return {"id": item, **made_by(model)} | ({} if mark is None else {"image_mark": f"{mark} {item}"})

    for item in ids:
        matrix = matrix_of(item, right, absent)
        write_statistics(results.statistics(item), record(item), matrix)
        if confidence is not None:
            statistics = PixelStatistics.empty()
            hits = np.trace(matrix)
            statistics.bins[:, int(confidence * 15)] = matrix.sum() - hits, hits
            statistics.bin_confidence[int(confidence * 15)] = confidence * matrix.sum()
            write_counts(results.counts(item), statistics)
    write_jsonl(results.folder / "manifest.jsonl", [record(item) for item in ids])
    write_json(results.metrics, {"model": model, "images": len(ids), "limit": None})


def write_results(root):
    """Write the results of every model on clear streets, generated fog and real fog."""
    for model, (clear, fog) in MODELS.items():
        write_set(root, model, "Cityscapes", "clean", CITY, clear)
        write_set(root, model, "Cityscapes_fog", "fog", FOG, fog - 0.05)
        write_set(root, model, "ACDC", "fog", TRUE_FOG, fog, scene="GOPR0475")


def write_more_results(root):
    """Write results of eight models on ten images of real fog and twelve of the others."""
    city = [f"frankfurt_000000_{number:06d}" for number in range(12)]
    for model, (clear, fog) in (MODELS | MORE_MODELS).items():
        write_set(root, model, "Cityscapes", "clean", city, clear)
        write_set(root, model, "Cityscapes_fog", "fog", [f"fog_{n}_{name}" for n, name in enumerate(city)], fog - 0.05)
        write_set(root, model, "ACDC", "fog", MORE_TRUE_FOG, fog, scene="GOPR0475")


class Report:
    """The scripts of report/ on these results, in this process."""

    def __init__(self, root, monkeypatch, capsys):
        self.root, self.results = root, root / "results"
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, script, *flags):
        """Run a script; returns exit code, standard output and standard error."""
        self.monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        self.capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(REPO_ROOT / f"report/{script}.py"), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        output = self.capsys.readouterr()
        return code, output.out, output.err

    def correlate(self, *flags, domains="fog"):
        """Run report/correlate.py, which has to succeed; returns its output and what it wrote."""
        code, out, err = self(
            "correlate", "--root_exp_dir", self.results, "--domains", domains, "--draws", "50",
            "--scaling_dir", self.root / "scaling", "--ood_dir", self.root / "ood",
            "--results_dir", self.root / "report", *flags,
        )  # fmt: skip
        assert code == 0, err
        return out, json.loads((self.root / "report/correlation.json").read_text())

    def refused(self, *said, code_out_err):
        """Check that a call ended with one line on standard error that contains all of `said`."""
        code, _, err = code_out_err
        lines = [line for line in err.strip().splitlines() if line.startswith("error:")]
        assert code == 2 and len(lines) == 1, err
        for text in said:
            assert str(text) in lines[0], lines[0]


@pytest.fixture(scope="session")
def report_files(tmp_path_factory):
    """The results, made once."""
    root = tmp_path_factory.mktemp("report")
    write_results(root)
    return root


@pytest.fixture
def report(report_files, tmp_path, monkeypatch, capsys):
    shutil.copytree(report_files, tmp_path / "results")
    return Report(tmp_path, monkeypatch, capsys)
