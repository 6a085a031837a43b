"""The plan of the paper's protocol: its commands, what blocks a step, and what is done."""

import importlib
import re
import typing

import pytest
import torch

import path_dicts
from genval.diffusion.original.keys import TEXT
from genval.evaluation.calibration import CITYSCAPES_CALIBRATION, ImageSet
from genval.reproduction import protocol as protocol_module
from genval.reproduction.evaluation_steps import set_name
from genval.reproduction.plan import build_steps
from genval.reproduction.protocol import STAGES, Protocol
from genval.reproduction.sources import WEIGHTS, find_weights
from genval.runtime.errors import GenValError
from genval.runtime.flags import parse_settings
from genval.runtime.paths import REPO_ROOT

MODELS = tuple(path_dicts.MINI_SEGMENTERS)


def mini(**changes):
    values = {
        "preset": "mini",
        "domains": ("fog", "night"),
        "models": MODELS,
        "num_samples": 16,
        "num_object_images": None,
        "render": True,
        "jobs": 1,
        "logit_pixels": 100,
        "device": ("--accelerator", "cpu", "--devices", "1"),
    }
    return Protocol(**(values | changes))


def published(**changes):
    values = {"preset": None, "domains": protocol_module.DOMAINS, "models": tuple(path_dicts.ZOO), "num_samples": 512}
    return mini(**(values | {"render": False} | changes))


def parsed(command):
    """A command's settings, by the script's own dataclass, which ends the process where it does not know a flag."""
    script = importlib.import_module(command[0].removesuffix(".py").replace("/", "."))
    return parse_settings(typing.get_type_hints(script.main)["settings"], command[1:])


@pytest.mark.parametrize("plan", [mini(), mini(num_samples=512, jobs=8, batch_size=8, overwrite=True), published()])
def test_every_command_is_one_that_its_script_takes(plan, monkeypatch):
    commands = {command for step in build_steps(plan) for command in step.commands}
    assert commands
    for command in commands:
        assert parsed(command).preset == (None if command[0] == "mini/render.py" else plan.preset)


@pytest.mark.parametrize("plan", [mini(), mini(num_samples=512, jobs=8), published()])
def test_a_step_comes_after_those_that_it_waits_for(plan):
    before = set()
    steps = build_steps(plan)
    for step in steps:
        assert set(step.before) <= before, step.name
        assert step.stage in STAGES
        before.add(step.name)
    assert len(before) == len(steps), "two steps of one name"


def test_the_demo_has_every_stage_but_captioning_which_rendering_does():
    assert {step.stage for step in build_steps(mini(finetune=("mini-fast-scnn",)))} == {*STAGES} - {"caption"}


def test_segmenters_are_fine_tuned_on_request_and_compared_on_true_objects():
    assert "finetune" not in {step.stage for step in build_steps(mini())}
    plan = mini(finetune=("mini-fast-scnn",))
    tune, compare = [step for step in build_steps(plan) if step.stage == "finetune"]
    assert tune.needs == ("outline", "render") and compare.needs == (tune.name,)
    ((_, *words),) = compare.commands
    segmenters = words[words.index("--segmenters") + 1]
    assert words[words.index("--components") + 1] == "entropy"  # the maps of the page
    tuned = "checkpoints/finetuned/mini-fast-scnn/model.pth"
    assert segmenters == f"mini-fast-scnn,mmseg:mini/segmenters/fast-scnn.py,{tuned}"


def test_with_few_images_all_models_share_a_process_and_with_many_each_has_its_own():
    few = [step.name for step in build_steps(mini(jobs=2)) if step.stage == "evaluate"]
    assert few == ["evaluate real", "evaluate generated", "evaluate corrupted"]
    many = [step.name for step in build_steps(mini(num_samples=512)) if step.stage == "evaluate"]
    assert many == [f"evaluate {kind}: {model}" for model in MODELS for kind in ("real", "generated", "corrupted")]


def test_there_is_no_corruption_of_india_and_india_is_tried_on_idd():
    steps = {step.name: step for step in build_steps(mini(domains=("india", "snow")))}
    assert "corrupt snow" in steps and "corrupt india" not in steps
    flags = [command for command in steps["calibrate on clear"].commands if "eval_calibration_clustering" in command[0]]
    assert [command[-4:] for command in flags] == [
        ("--trg_dataset", "IDD", "--cond", "all"),
        ("--trg_dataset", "ACDC", "--cond", "snow"),
    ]


@pytest.mark.parametrize("plan", [mini(), mini(num_samples=512, domains=("india", "snow"))])
def test_temperatures_are_found_on_all_generated_images_and_on_the_hardest_half(plan, monkeypatch):
    step = next(step for step in build_steps(plan) if step.name.startswith("calibrate on generated"))
    find, try_on, *itself = [parsed(command) for command in step.commands]
    assert find.method.hardest == try_on.method.hardest == (1.0, 0.5)  # by one command: the logits are read once
    assert find.sets.protocol == try_on.sets.protocol == "synthetic" and find.sets.domains == plan.domains
    assert len(itself) == len(plan.domains) and all(one.method.hardest == (1.0,) for one in itself)


def test_sets_have_the_names_that_calibration_gives_them():
    assert set_name("Cityscapes_corrupt_fog") == ImageSet("Cityscapes_corrupt_fog").name
    assert set_name("ACDC", "fog") == ImageSet("ACDC", ("fog",)).name
    assert set_name("Cityscapes_fog", hardest=0.5) == ImageSet("Cityscapes_fog", hardest=0.5).name
    assert set_name("Cityscapes", "clean", protocol_module.CALIBRATION_SCENES) == CITYSCAPES_CALIBRATION.name


def test_the_weights_named_are_those_that_the_scripts_take():
    for script, weights in WEIGHTS.items():
        source = (REPO_ROOT / f"{script}.py").read_text()
        for flag, name in weights.items():
            default = re.search(rf'"--{flag}"[^)]*?default="([^"]*)"', source)
            if default:  # others are chosen later, by what else is given
                assert default[1] == name


def test_what_is_missing_is_said_with_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(path_dicts, "CHECKPOINT_ROOT", str(tmp_path))
    monkeypatch.setitem(path_dicts.ZOO["SegFormer-B0"], "checkpoint", "SegFormer/here.pth")
    (tmp_path / "SegFormer").mkdir()
    (tmp_path / "SegFormer" / "here.pth").touch()
    protocol_module._count_once.cache_clear()
    monkeypatch.setattr(Protocol, "datasets_dir", property(lambda self: str(tmp_path / "nothing")))
    steps = {step.name: step for step in build_steps(published(models=("SegFormer-B0", "SETR-PUP", "SwinLarge")))}
    setr, swin = steps["evaluate 2 more segmenters"].missing
    assert "SETR-PUP" in setr.what and "model_zoo.md" in setr.remedy
    assert "SwinLarge" in swin.what and "train swin/" in swin.remedy
    assert "acdc.vision.ee.ethz.ch" in steps["evaluate on ACDC"].missing[0].remedy
    assert any("Cityscapes" in lack.what for lack in steps["generate fog"].missing)
    assert "SegFormer-B0" in steps["evaluate generated"].commands[0]


def test_a_controlnet_with_a_base_in_its_file_needs_no_other(tmp_path, monkeypatch):
    path = tmp_path / "controlnet_cs.ckpt"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(WEIGHTS["ControlNet/style_transfer"], "controlnet", str(path.with_suffix("")))
    control = {"control_model.a": torch.zeros(1)}
    base = {"model.diffusion_model.a": torch.zeros(1), f"{TEXT}a": torch.zeros(1)}

    torch.save({"state_dict": control}, path)
    inputs, missing = find_weights("ControlNet/style_transfer", None)
    assert inputs == (path,) and ["--base" in one.what for one in missing] == [True]
    torch.save({"state_dict": control | base}, path)
    assert find_weights("ControlNet/style_transfer", None) == ((path,), ())
    # Given by a preset, another base is what the script takes.
    monkeypatch.setitem(path_dicts.PRESETS, "mine", {"ControlNet/style_transfer": {"base": str(tmp_path / "absent")}})
    assert len(find_weights("ControlNet/style_transfer", "mine")[1]) == 1


def test_an_unknown_domain_is_refused():
    with pytest.raises(GenValError, match="smoke is none of fog"):
        mini(domains=("smoke",))


def test_objects_are_inpainted_into_generated_streets_too():
    plan = published(object_domains=("fog", "snow"), domains=("fog", "snow"))
    steps = {step.name: step for step in build_steps(plan)}
    assert steps["inpaint in fog"].needs == ("generate fog",)
    assert parsed(steps["inpaint in fog"].commands[0]).data_dir == "images/style_transfer/fog"
    assert parsed(steps["outline in snow"].commands[0]).output_dir == "images/ood_objects-snow/masks"
    assert "inpaint in fog" not in {step.name for step in build_steps(published())}
    # A chain of its own folders: each step reads what the one before writes.
    inpaint, refine, outline = (
        parsed(steps[f"{name} in fog"].commands[0]) for name in ("inpaint", "refine", "outline")
    )
    assert inpaint.output_dir == refine.images_dir == outline.positions_dir and refine.output_dir == outline.images_dir
    assert outline.curate and not parsed(next(s for s in build_steps(mini()) if s.name == "outline").commands[0]).curate
    for flag in ("models", "finetune"):
        with pytest.raises(GenValError, match=r"Unknown segmenter 'mini-fast-scn'. Did you mean mini-fast-scnn or"):
            mini(**{flag: ("mini-fast-scn",)})
    with pytest.raises(GenValError, match="--object_domains: night is none of --domains, fog"):
        published(object_domains=("night",), domains=("fog",))


def test_all_objects_and_those_in_fog_are_sets_of_their_own(monkeypatch):
    monkeypatch.setattr("genval.reproduction.plan.find_models", lambda models: ({"SegFormer-B0": ()}, {}))
    steps = {step.name: step for step in build_steps(published(object_domains=("fog",)))}
    everything = parsed(next(one for name, one in steps.items() if "all generated objects" in name).commands[0])
    in_fog = parsed(next(one for name, one in steps.items() if "generated objects in fog" in name).commands[0])
    assert everything.uncurated and everything.trg_dataset == ("generated",) and not in_fog.uncurated
    assert in_fog.trg_dataset == ("generated-fog",) and in_fog.masks_dir == "images/ood_objects-fog/masks"


def test_temperatures_of_the_real_images_are_the_upper_bound():
    step = next(step for step in build_steps(mini()) if step.name == "calibrate on real")
    find, try_on = (parsed(command) for command in step.commands[:2])
    assert find.sets.calib_dataset == "ACDC" and (try_on.trg_dataset, try_on.cond) == ("ACDC", ("fog",))
