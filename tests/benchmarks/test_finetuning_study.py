"""The study of fine-tuning: paired differences, cut-outs, and the benchmark of speed and of resuming."""

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from script_runs import run_script

from genval.datasets.reading import read_mask
from genval.runtime.paths import REPO_ROOT


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("finetuning_study", REPO_ROOT / "benchmarks/finetuning.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_differences_are_paired(study):
    noise = np.random.default_rng(0).normal(size=1001)
    draws = {name: {"aupr_object": noise + shift} for name, shift in (("before", 1.0), ("control", 2.0), ("new", 2.5))}
    found = study.compare(draws, ("aupr_object",))
    assert found["values"]["new"]["aupr_object"] == pytest.approx(noise[0] + 2.5)
    assert found["differences"]["new - control"]["aupr_object"] == pytest.approx([0.5, 0.5, 0.5])
    pairs = {"control - before", "new - before", "new - control", "control - new"}
    assert set(found["differences"]) == pairs


def test_cut_outs_can_be_pasted(study, tmp_path):
    from genval.finetuning.outliers import find_outliers

    study.write_cut_outs(["lion", "zebra"], tmp_path)
    assert set(np.unique(read_mask(tmp_path / "masks/lion.png"))) == {0, 1}
    assert find_outliers(f"paste:{tmp_path}/images,{tmp_path}/masks", None, None).count == 2


def test_weights_of_other_flags_are_not_taken(study, tmp_path):
    from genval.finetuning.settings import FinetuneSettings
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_json
    from genval.runtime.flags import flatten, parse_settings

    def flags(**changed):
        settings = study.FinetuningStudySettings(output_dir=str(tmp_path), render=True, **changed)
        return [*map(str, study.finetune_flags(settings, "mini-fast-scnn", "noise", tmp_path / "out", "noise"))]

    write_json(tmp_path / "recipe.json", {"settings": flatten(parse_settings(FinetuneSettings, flags()))})
    study.require_same_flags(tmp_path / "recipe.json", flags(num_workers=1, accelerator="cpu"))
    with pytest.raises(GenValError, match=r"made with --lr 0\.0002, not 0\.001"):
        study.require_same_flags(tmp_path / "recipe.json", flags(lr=1e-3))


def test_a_failure_is_not_taken_for_an_earlier_end_without_weights(study, tmp_path, monkeypatch):
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_bytes

    write_bytes(tmp_path / "logs/mini-fast-scnn-noise.log", b"error: No validation kept clear mIoU\n")
    monkeypatch.setattr(study, "run_here", lambda *_, **__: False)
    settings = study.FinetuningStudySettings(output_dir=str(tmp_path), render=True, variants=("noise",))
    with pytest.raises(GenValError, match="Fine-tuning mini-fast-scnn on noise failed"):
        study.study_segmenter(settings, "mini-fast-scnn")


def test_streets_of_another_number_are_refused(study, tmp_path):
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_bytes

    def settings(num_val):
        return study.FinetuningStudySettings(output_dir=str(tmp_path), render=True, num_val=num_val)

    with pytest.raises(GenValError, match=r"has 0 streets, expected 42 .* Give --render"):
        study.check_validation_streets(settings(2))
    for number in range(2 + study.VALIDATED):
        write_bytes(tmp_path / f"world/validation/dataset_AnomalyTrack/images/{number}.png", b"")
    study.check_validation_streets(settings(2))
    (tmp_path / "world/validation/pairs").mkdir()
    for num_val in (1, 3):
        with pytest.raises(GenValError, match=rf"has 42 streets, expected {num_val + 40} .* Give --num_val 2, another"):
            study.render(settings(num_val))


class Threads(ThreadPoolExecutor):
    """Stands in for the pool of processes, so that functions can be replaced."""

    def __init__(self, workers, *_):
        super().__init__(workers)


def test_a_defect_with_one_segmenter_does_not_end_the_study(study, tmp_path, monkeypatch, capsys):
    from genval.runtime.errors import GenValError
    from genval.runtime.files import read_json

    def fails(settings, name):
        if name == "mini-fast-scnn":
            raise ValueError("It is wrong")
        return {"seconds": {"all": 1.0}}

    monkeypatch.setattr(study, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(study, "study_segmenter", fails)
    monkeypatch.setattr(study, "report", lambda settings, done: print("reported", *done))
    settings = study.FinetuningStudySettings(
        output_dir=str(tmp_path), datasets_dir="none", val_ood="none", segmenters="mini-fast-scnn,mini-pspnet-r18"
    )
    with pytest.raises(GenValError, match=r"^mini-fast-scnn: ValueError: It is wrong\.$"):
        study.main(settings)
    said = capsys.readouterr()
    assert "reported mini-pspnet-r18" in said.out and "in fails" in said.err
    assert list(read_json(tmp_path / "study.json")) == ["mini-pspnet-r18"]


@pytest.mark.parametrize("score, further", [("rba", ["rba"]), ("energy", [])])
def test_the_test_measures_the_score_that_is_trained(study, tmp_path, monkeypatch, score, further):
    from genval.evaluation.settings import OodDetectionSettings
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_json
    from genval.runtime.flags import parse_settings

    seen = []

    def run(path, *flags, log):
        if path == "relis/finetune.py":
            write_json(tmp_path / "segmenters/mini-fast-scnn/noise/recipe.json", {"segmenter": "mini-semfpn-r18"})
            return True
        seen.append(parse_settings(OodDetectionSettings, [*map(str, flags)]))
        return False

    monkeypatch.setattr(study, "run_here", run)
    settings = study.FinetuningStudySettings(output_dir=str(tmp_path), render=True, variants=("noise",), score=score)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/mini-fast-scnn-noise.log").write_bytes(b"")
    with pytest.raises(GenValError, match=r"main_gen_ood\.py failed"):
        study.study_segmenter(settings, "mini-fast-scnn")
    assert list(seen[0].scores) == further


@pytest.mark.slow
def test_a_resumed_run_is_exact_on_a_cpu(tmp_path):
    command = [
        "benchmarks/finetuning_speed.py",
        "--segmenters",
        "mini-fast-scnn",
        "--accelerator",
        "cpu",
    ]
    command += ["--image_size", "128x256", "--crop_size", "64x128", "--batch_size", "2", "--steps", "4"]
    command += ["--num_workers", "1", "--output_dir", str(tmp_path)]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    row = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert row[0] == "mini-fast-scnn" and row[4:] == ["2", "0", "0"]
    (measured,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert measured["segmenter"] == "mini-fast-scnn" and measured["resumed differs by"] == "0"


def test_a_script_runs_in_the_process_of_its_segmenter_with_its_output_in_the_log(tmp_path):
    code = (
        "import runpy, sys; from pathlib import Path; log = Path(sys.argv[1])\n"
        "run_here = runpy.run_path('benchmarks/finetuning.py')['run_here']\n"
        "good = run_here('relis/finetune.py', '--help', log=log)\n"
        "bad = run_here('relis/finetune.py', '--segmenter', 'none', log=log)\n"
        "sys.exit(0 if (good, bad) == (True, False) else 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "logs/a.log")], cwd=REPO_ROOT)
    text = (tmp_path / "logs/a.log").read_text()
    assert done.returncode == 0, text
    assert "--outlier_ratio" in text and "error: the following arguments are required: --output" in text
