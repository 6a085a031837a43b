"""Whole runs on the CPU: resumed runs are exact, outputs load by prefix, and what was trained on is not tested."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from genval.datasets import find_items
from genval.finetuning.run import prepare_finetuning
from genval.finetuning.validation import Validated, Validation
from genval.runtime.errors import GenValError
from genval.runtime.files import write_jsonl, write_png
from genval.segmenters import load_segmenter
from genval.segmenters.recipe import refuse_trained_images
from genval.training.runs import latest_checkpoint, run_training

pytestmark = pytest.mark.slow


def weights(folder):
    return torch.load(folder / "model.pth", weights_only=True)["state_dict"]


@pytest.mark.parametrize("score", ["entropy", "energy", "rba"])
def test_a_resumed_run_gives_the_same_weights(settings, tmp_path, score):
    flags = dict(score=score, lr_schedule="constant", ema=0.9)
    if score == "entropy":
        flags["segmenter"] = "mini-fast-scnn"  # it has dropout
    run_training(prepare_finetuning(settings(**flags, output=str(tmp_path / "whole"), run="whole")))
    run_training(prepare_finetuning(settings(**flags, max_steps=2, run="first")))
    run_training(prepare_finetuning(settings(**flags, run="first", resume="last")))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "output")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    before = load_segmenter(settings(**flags).segmenter, "cpu").network.state_dict()
    assert any(not torch.equal(before[key], found[key]) for key in found)
    # Statistics of batch norms stay.
    assert all(torch.equal(before[key], found[key]) for key in found if "running" in key)


def test_an_interrupted_run_says_how_to_resume(settings, monkeypatch, capsys):
    run = prepare_finetuning(settings(run="stopped"))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.module, "training_step", interrupt)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning ignores further signals of the process
    with pytest.raises(SystemExit):
        run_training(run)
    assert "interrupted: add --resume auto --run stopped to resume." in capsys.readouterr().err


@pytest.mark.parametrize("batch", [2, 3], ids=["within_a_step", "at_its_end"])
def test_a_run_that_is_told_to_end_is_resumed_exactly(settings, tmp_path, monkeypatch, batch):
    flags = dict(accumulate=2, batch_size=2, checkpoint_every=100, val_every=2, max_miou_drop=100, ema=0.9)
    run_training(prepare_finetuning(settings(**flags, output=str(tmp_path / "whole"), run="whole")))
    run = prepare_finetuning(settings(**flags))
    step = run.module.training_step

    def told_to_end(inputs, batch_idx):
        if batch_idx == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(inputs, batch_idx)

    monkeypatch.setattr(run.module, "training_step", told_to_end)
    with pytest.raises(SystemExit) as ended:
        run_training(run)
    assert ended.value.code == 143
    assert [path.name for path in (tmp_path / "logs/run").rglob("*.ckpt")] == ["step=2.ckpt"]
    assert len(json.loads((tmp_path / "logs/run/validation.json").read_text())) == 1  # the one of step 2 is left
    run_training(prepare_finetuning(settings(**flags, resume="auto")))
    whole, resumed = (tmp_path / f"logs/{name}/validation.json" for name in ("whole", "run"))
    assert whole.read_text() == resumed.read_text()
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "output")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_the_output_is_a_segmenter_with_a_recipe(settings, tmp_path, world, capsys):
    planned = run_training(prepare_finetuning(settings(dry_run=True)))
    assert planned.startswith("Would train 4 steps of 4 x 1 x 1 from torchvision:")
    assert "on 4 clear streets, 2 outliers, 32-true" in planned and not (tmp_path / "output").exists()
    run_training(prepare_finetuning(settings(save_dtype="fp16")))
    specification = f"torchvision:lraspp_mobilenet_v3_large,{tmp_path}/output/model.pth"
    assert f"--segmenters {specification}" in capsys.readouterr().out
    segmenter = load_segmenter(specification, "cpu")
    recipe = segmenter.recipe
    assert recipe.content["loss"] == "uniform" and recipe.content["segmenter"] == specification
    assert recipe.content["steps"] == 4 and "aachen_000000_000019" in recipe.frames
    train = find_items("Cityscapes", split="train", datasets_dir=world)
    with pytest.raises(GenValError, match=r"was fine-tuned on 4 of these 4 images"):
        refuse_trained_images(segmenter, train)
    refuse_trained_images(segmenter, find_items("Cityscapes", datasets_dir=world))
    refuse_trained_images(load_segmenter(settings().segmenter, "cpu"), train)
    with pytest.raises(GenValError, match="holds a fine-tuned segmenter already"):
        prepare_finetuning(settings(run="other"))


def test_a_second_fine_tuning_remembers_the_first(settings, tmp_path):
    run_training(prepare_finetuning(settings()))
    again = settings(
        segmenter=f"torchvision:lraspp_mobilenet_v3_large,{tmp_path}/output/model.pth", run="again",
        output=str(tmp_path / "again"), outliers="noise", limit=1,
    )  # fmt: skip
    run_training(prepare_finetuning(again))
    recipe = json.loads((tmp_path / "again/recipe.json").read_text())
    assert len(recipe["trained_on"]["frames"]) == 4 and recipe["from"]["recipe"]


def test_validation_keeps_weights_within_the_allowed_drop(settings, tmp_path):
    run_training(prepare_finetuning(settings(val_every=2, max_miou_drop=100)))
    rows = json.loads((tmp_path / "logs/run/validation.json").read_text())
    assert [row["step"] for row in rows] == [0, 2, 4]
    recipe = json.loads((tmp_path / "output/recipe.json").read_text())
    assert recipe["steps"] == 4 and recipe["validation"] == rows


def test_a_run_whose_miou_falls_is_stopped(settings, tmp_path, monkeypatch):
    falling = iter([0.6, 0.595, 0.5, 0.4])
    monkeypatch.setattr(
        "genval.finetuning.validation.ValidationSet.measure",
        lambda self, segmenter, device, step: dict(
            step=step, miou=next(falling), auroc=None, fpr95=None, aupr_object=None
        ),
    )
    done = run_training(prepare_finetuning(settings(val_every=1, max_miou_drop=1)))
    assert "Stopped at step 2, since clear mIoU fell from 60.0 to 50.0" in done
    assert json.loads((tmp_path / "output/recipe.json").read_text())["steps"] == 1
    with pytest.raises(GenValError, match=r"No validation kept clear mIoU within 0 points of 40.0"):
        falling = iter([0.4, 0.3])
        bad = settings(val_every=1, max_miou_drop=0, output=str(tmp_path / "bad"), run="bad")
        run_training(prepare_finetuning(bad))
    assert not (tmp_path / "bad").exists()


class Killed(Exception):
    """Ends a run in the middle."""


@pytest.mark.parametrize("killed_at", [2, 4])
def test_a_run_killed_in_a_validation_repeats_it(settings, tmp_path, monkeypatch, killed_at):
    flags = dict(val_every=2, max_miou_drop=100)
    run_training(prepare_finetuning(settings(**flags, output=str(tmp_path / "whole"), run="whole")))
    measure = Validation._measure

    def measure_or_die(self, module, step):
        if step == killed_at:
            raise Killed
        return measure(self, module, step)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "_measure", measure_or_die)
        with pytest.raises(Killed):
            run_training(prepare_finetuning(settings(**flags)))
    run_training(prepare_finetuning(settings(**flags, resume="auto")))
    whole, resumed = (tmp_path / f"logs/{name}/validation.json" for name in ("whole", "run"))
    assert whole.read_text() == resumed.read_text()
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "output")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("checkpoint_every, val_every, killed_at", [(3, 2, 4), (2, 3, 6), (3, 1, 5), (4, 1, 3)])
def test_a_run_killed_between_checkpoints_is_resumed_exactly(
    settings, world, tmp_path, monkeypatch, checkpoint_every, val_every, killed_at
):
    """Weights that were kept after the last checkpoint are not chosen before their step is trained again."""
    aupr = {1: 0.5, 2: 0.3, 3: 0.2, 4: 0.6, 5: 0.1, 6: 0.1}

    def measure(self, module, step):
        if step == killed_at and self.folder.name == "run" and not killed:
            killed.append(step)
            raise Killed
        return Validated(step=step, miou=0.5, auroc=None, fpr95=None, aupr_object=aupr.get(step, 0.1))

    killed = []
    monkeypatch.setattr(Validation, "_measure", measure)
    for name in ("0", "1"):
        write_png(tmp_path / f"masks/{name}.png", np.eye(64, 128, dtype=np.uint8))
    flags = dict(checkpoint_every=checkpoint_every, val_every=val_every, max_steps=6, outliers="noise")
    flags["val_ood"] = (f"pair:{world}/objects/refined/lion,{tmp_path}/masks",)
    run_training(prepare_finetuning(settings(**flags, output=str(tmp_path / "whole"), run="whole")))
    with pytest.raises(Killed):
        run_training(prepare_finetuning(settings(**flags)))
    run_training(prepare_finetuning(settings(**flags, resume="auto")))
    whole, resumed = (tmp_path / f"logs/{name}/validation.json" for name in ("whole", "run"))
    assert whole.read_text() == resumed.read_text()
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "output")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    steps = [json.loads((tmp_path / f"{name}/recipe.json").read_text())["steps"] for name in ("whole", "output")]
    assert steps == [max(range(val_every, 7, val_every), key=aupr.get)] * 2


def test_a_finished_or_stopped_run_writes_the_same_again(settings, tmp_path, monkeypatch):
    def falls(self, module, step):
        return Validated(step=step, miou=0.5 - step / 10, auroc=None, fpr95=None, aupr_object=None)

    monkeypatch.setattr(Validation, "_measure", falls)
    for run, max_miou_drop, steps in (("finished", 100, [0, 1, 2, 3, 4]), ("stopped", 15, [0, 1, 2])):
        flags = dict(val_every=1, max_miou_drop=max_miou_drop, checkpoint_every=1, run=run, output=str(tmp_path / run))
        run_training(prepare_finetuning(settings(**flags)))
        before = weights(tmp_path / run)
        shutil.rmtree(tmp_path / run)
        run_training(prepare_finetuning(settings(**flags, resume="auto")))
        rows = json.loads((tmp_path / f"logs/{run}/validation.json").read_text())
        assert [row["step"] for row in rows] == steps
        assert all(torch.equal(before[key], value) for key, value in weights(tmp_path / run).items())


@pytest.mark.parametrize("max_steps", [2, 4])
def test_a_stopped_run_continues_with_a_larger_drop(settings, world, tmp_path, monkeypatch, max_steps):
    """The weights at which it stopped can be chosen now; those of a run that allows less cannot."""

    def falls(self, module, step):
        return Validated(step=step, miou=0.5 - step / 10, auroc=None, fpr95=None, aupr_object=0.9 if step == 2 else 0.1)

    monkeypatch.setattr(Validation, "_measure", falls)
    flags = dict(outliers="noise", val_every=1, checkpoint_every=1, max_steps=max_steps)
    write_png(tmp_path / "masks/0.png", np.eye(64, 128, dtype=np.uint8))
    flags["val_ood"] = (f"pair:{world}/objects/refined/lion,{tmp_path}/masks",)
    shutil.copy(tmp_path / "masks/0.png", tmp_path / "masks/1.png")
    with pytest.raises(GenValError, match=r"it was 40\.0 at step 1"):
        run_training(prepare_finetuning(settings(**flags, max_miou_drop=5)))
    with pytest.raises(GenValError, match=r"it was 40\.0 at step 1"):
        run_training(prepare_finetuning(settings(**flags, max_miou_drop=5, resume="auto")))
    run_training(prepare_finetuning(settings(**flags, max_miou_drop=15, resume="auto")))  # stops at step 2
    assert json.loads((tmp_path / "output/recipe.json").read_text())["steps"] == 1
    run_training(prepare_finetuning(settings(**flags, max_miou_drop=100, resume="auto")))
    assert json.loads((tmp_path / "output/recipe.json").read_text())["steps"] == 2
    with pytest.raises(GenValError, match="No validation kept clear mIoU within 15 points"):
        run_training(prepare_finetuning(settings(**flags, max_miou_drop=15, resume="auto")))


def test_a_resumed_run_remembers_what_it_was_trained_on(settings, tmp_path):
    run_training(prepare_finetuning(settings(outliers="noise", max_steps=2)))
    run_training(prepare_finetuning(settings(outliers="noise", limit=1, resume="auto")))
    recipe = json.loads((tmp_path / "output/recipe.json").read_text())
    assert len(recipe["trained_on"]["frames"]) == 4


def test_a_run_is_not_continued_with_another_segmenter_loss_or_validation(settings, tmp_path, world):
    flags = dict(score="energy", val_every=2, max_miou_drop=100, val_images=2)
    run_training(prepare_finetuning(settings(**flags, max_steps=2)))
    state = torch.load(world / "net.pth", weights_only=True)
    torch.save({key: value * 2 if value.ndim else value for key, value in state.items()}, tmp_path / "other.pth")
    for name, value in (
        ("score", "rba"),
        ("val_images", 1),
        ("segmenter", f"torchvision:lraspp_mobilenet_v3_large,{tmp_path}/other.pth"),
    ):
        with pytest.raises(GenValError, match=rf"--resume: .*--{name} .*\(was .* start again"):
            run_training(prepare_finetuning(settings(**{**flags, name: value}, resume="auto")))


def test_objects_in_validation_frames_leave_nothing_to_validate_on(settings, tmp_path):
    from finetuning_world import write_objects

    write_objects(tmp_path / "objects", "munster")
    with pytest.raises(GenValError, match=r"All 2 validation images .* --from_train"):
        prepare_finetuning(settings(val_every=2, outliers=str(tmp_path / "objects")))


def test_bad_validation_images_are_skipped(settings, tmp_path, capsys):
    for name in ("0.png", "1.png"):
        write_png(tmp_path / "images" / name, np.ones((64, 64, 3), np.uint8))
        write_png(tmp_path / "masks" / name, np.ones((64, 64), np.uint8))
    damaged = tmp_path / "images/1.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    flags = dict(outliers="noise", val_every=1, val_ood=(f"pair:{tmp_path}/images,{tmp_path}/masks",), skip_bad=True)
    prepare_finetuning(settings(**flags))
    assert f"skipped {damaged}" in capsys.readouterr().out
    for folder in ("images", "masks"):
        (tmp_path / folder / "0.png").unlink()
    with pytest.raises(GenValError, match=r"None of the images of a validation set can be read, such as .*1\.png"):
        prepare_finetuning(settings(**flags))


def test_settings_that_do_not_fit_are_refused(settings, world):
    with pytest.raises(GenValError, match=r"--loss uniform does not improve --score energy: .* --loss energy"):
        settings(loss="uniform", score="energy")
    with pytest.raises(GenValError, match="Nothing to train on"):
        settings(outliers=None)
    with pytest.raises(GenValError, match="leave no clear street"):
        settings(batch_size=1)
    with pytest.raises(GenValError, match="onnx: cannot be fine-tuned"):
        (world / "net.onnx").write_bytes(b"")
        prepare_finetuning(settings(segmenter=f"onnx:{world}/net.onnx"))
    assert latest_checkpoint(world) is None


@pytest.mark.parametrize("kind", ["hf", "smp", "mmseg"])
def test_every_library_has_its_format(settings, tmp_path, kind):
    """The saved segmenter loads, and gives other logits than before."""
    if kind == "hf":
        name = "mini-segformer-hf"
    elif kind == "mmseg":
        name = "mini-semfpn-r18"
    else:
        smp = pytest.importorskip("segmentation_models_pytorch")
        network = smp.create_model("unet", encoder_name="mobilenet_v2", encoder_weights=None, classes=19)
        torch.save(network.state_dict(), tmp_path / "unet.pth")
        (tmp_path / "unet.pth.json").write_text('{"mean": [1, 2, 3], "std": [4, 5, 6], "scale": 255}')
        name = f"smp:unet,mobilenet_v2,{tmp_path}/unet.pth"
    made = settings(segmenter=name, max_steps=1, crop_size=(64, 64), generated_ratio=0.5)
    run_training(prepare_finetuning(made))
    recipe = json.loads((tmp_path / "output/recipe.json").read_text())
    before, after = load_segmenter(name, "cpu"), load_segmenter(recipe["segmenter"], "cpu")
    assert type(after) is type(before) and torch.equal(after.mean, before.mean) and torch.equal(after.std, before.std)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert after(image).shape == (1, 19, 64, 64) and not torch.equal(after(image), before(image))
    assert after.recipe.content["from"]["name"] == name


def test_generated_weather_is_mixed_in_and_its_frames_are_not_tested(settings, tmp_path):
    from finetuning_world import write_fog

    write_fog(tmp_path / "images")
    flags = dict(outliers=None, generated="fog", generated_split="train", generated_dir=str(tmp_path / "images"))
    prepared = prepare_finetuning(settings(**flags, limit=1))
    assert prepared.data_size == "1 clear streets, 2 generated images"
    run_training(prepared)
    recipe = json.loads((tmp_path / "output/recipe.json").read_text())
    assert recipe["generated"] == ["fog"] and recipe["loss"] is None
    frames = ["aachen_000000_000019", "aachen_000001_000019"]
    generated = [f"fog_{number}_{frame}" for number, frame in enumerate(frames)]
    assert recipe["trained_on"]["frames"] == frames + generated
    segmenter = load_segmenter(recipe["segmenter"], "cpu")
    found = {
        split: find_items("Cityscapes_fog", split=split, generated_dir=tmp_path / "images")
        for split in ("train", "val")
    }
    refuse_trained_images(segmenter, found["val"])
    with pytest.raises(GenValError, match=r"fine-tuned on 2 of these 2 images or on images of the same masks"):
        refuse_trained_images(segmenter, found["train"])


@pytest.mark.parametrize("has_manifest", [True, False])
def test_frames_of_sets_with_other_names_are_not_tested(settings, tmp_path, has_manifest):
    """A domain with a number in its name; and images of another tool, which have the names of their frames."""
    from finetuning_world import write_fog

    write_fog(tmp_path / "images")
    lines = []
    for path in sorted((tmp_path / "images/fog").rglob("fog_*.png")):
        new = path.name.replace("fog_", "level_2_") if has_manifest else path.name.split("_", 2)[2]
        path.rename(path.with_name(new))
        lines.append({"id": new.partition("_leftImg8bit")[0], "source": path.name.split("_", 2)[2][:20]})
    if has_manifest:
        write_jsonl(tmp_path / "images/fog/manifest.jsonl", lines)
    flags = dict(outliers=None, generated="fog", generated_split="train", generated_dir=str(tmp_path / "images"))
    run_training(prepare_finetuning(settings(**flags, limit=1)))
    recipe = json.loads((tmp_path / "output/recipe.json").read_text())
    frames = recipe["trained_on"]["frames"]
    # What is not such a frame is the id of a generated image, or a part of it.
    assert {"aachen_000000_000019", "aachen_000001_000019"} <= set(frames)
    assert all(frame.endswith(("aachen_000000_000019", "aachen_000001_000019")) for frame in frames)
