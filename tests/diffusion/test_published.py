"""Published pipelines as generators: each runs on tiny random weights and resumes; what does not fit is refused."""

import ast
import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusion_world import Refusal
from published_world import write_published
from script_runs import run_script

import path_dicts
from genval.artifacts.manifest import Manifest
from genval.datasets.labels import CLASSES
from genval.datasets.palettes import class_colours
from genval.datasets.reading import read_image
from genval.diffusion.generators import GeneratedSet, generate_domain
from genval.diffusion.prompts import Domain, find_domain, instructions
from genval.diffusion.published.loading import load_pipeline, place, run_pipeline
from genval.diffusion.published.pipelines import CONTROLNETS, EDITORS, Published, Request
from genval.diffusion.settings import PipelineConfig, StyleTransferSettings
from genval.evaluation.scoring import judge_set
from genval.evaluation.settings import ScoringSettings
from genval.runtime.errors import GenValError
from genval.runtime.flags import make_settings
from genval.runtime.settings import DeviceSettings, RunSettings

ALL = {one.name: one for one in (*EDITORS.values(), *CONTROLNETS.values())}
FLUX_CONTROL, SD3_CONTROL = "FluxControlNetPipeline", "StableDiffusion3ControlNetPipeline"
HEIGHT, WIDTH = 64, 128  # FLUX.2 refuses smaller photos
KONTEXT, PIX2PIX = "FluxKontextPipeline", "StableDiffusionInstructPix2PixPipeline"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("published")

    def model(name: str) -> Path:
        return root / name if (root / name).exists() else write_published(ALL[name], root / name)

    return model


@pytest.fixture(autouse=True)
def small_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image's editor resizes every photo to a megapixel, which takes seconds on a CPU."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit_plus

    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(edit_plus, "CONDITION_IMAGE_SIZE", 56 * 56)


def settings_for(published: Published, model: Path, city: Path, output: Path, **values: Any) -> StyleTransferSettings:
    pipeline: dict[str, Any] = {"pipeline_steps": 2}
    if published.controlnet:
        pipeline["hint_colours"] = "ade20k"
        models = {"base": str(model), "controlnet": str(model / "controlnet"), "generator": "controlnet"}
    else:
        pipeline["editor"] = str(model)
        models = {"generator": "edit"}
    run = RunSettings(limit=values.pop("limit", None))
    arguments: dict[str, Any] = {
        "domain": "fog",
        "num_samples": 2,
        "data_dir": str(city),
        "height": HEIGHT,
        "width": WIDTH,
        "output_dir": str(output),
        "num_workers": 1,
        "run": run,
        "device": DeviceSettings(accelerator="cpu"),
        **models,
        **values,
    }
    return StyleTransferSettings(
        pipeline=PipelineConfig(**{**pipeline, **arguments.pop("pipeline_flags", {})}), **arguments
    )


def generated(settings: StyleTransferSettings) -> GeneratedSet:
    done = generate_domain(settings)
    assert done is not None
    return done


@pytest.mark.parametrize("name", ALL)
def test_every_pipeline_generates_and_resumes(
    name: str, models: Callable[[str], Path], city_folder: Path, tmp_path: Path
) -> None:
    published = ALL[name]
    settings = settings_for(published, models(name), city_folder, tmp_path / "out")
    first = generated(dataclasses.replace(settings, run=RunSettings(limit=1)))
    assert first.folder == tmp_path / "out" / ("" if published.controlnet else "edit") / "fog"
    done = generated(settings)
    assert (done.images, done.written) == (2, 1)
    whole = generated(dataclasses.replace(settings, output_dir=str(tmp_path / "whole")))
    for line in Manifest(done.folder).records.values():
        image = read_image(done.folder / line["image"])
        assert image.shape == (HEIGHT, WIDTH, 3) and image.std() > 1
        assert np.array_equal(image, read_image(whole.folder / line["image"]))
        assert (done.folder / line["mask"]).exists() and (done.folder / line["original"]).exists()
        assert line["pipeline"] == name and line["domain_text"] == "in fog"
        wanted = "in fog" if published.controlnet else "Change the weather to dense fog."
        assert wanted in line["prompt"] and ("instruction" in line) == (not published.controlnet)


@pytest.mark.parametrize("name", ALL)
def test_the_input_decides_about_the_image(name: str, models: Callable[[str], Path]) -> None:
    from PIL import Image

    published = ALL[name]
    pipeline, _ = load_pipeline(
        models(name), published, torch.float32, models(name) / "controlnet" if published.controlnet else None
    )
    place(pipeline, torch.device("cpu"), vae_tiling=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)

    def run(image: np.ndarray, text: str, seed: int) -> torch.Tensor:
        request = Request(Image.fromarray(image), "", guidance=2.0)
        return run_pipeline(pipeline, published, request, {"prompt": text}, 2, seed)

    one = run(pixels[0], "dense fog", 3)
    torch.randn(5)  # what ran before has no influence
    assert torch.equal(one, run(pixels[0], "dense fog", 3))
    assert one.shape == (1, 3, HEIGHT, WIDTH) and float(one.min()) >= -1 and float(one.max()) <= 1
    for other in (run(pixels[1], "dense fog", 3), run(pixels[0], "at night", 3), run(pixels[0], "dense fog", 4)):
        assert not torch.equal(one, other)


def test_a_model_is_not_loaded_as_another_one(
    models: Callable[[str], Path], city_folder: Path, controlnet_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    def refused(name: str, model: Path, *words: str, **values: Any) -> None:
        with pytest.raises(GenValError) as error:
            generate_domain(settings_for(ALL[name], model, city_folder, tmp_path / "out", **values))
        for word in words:
            assert word in str(error.value)

    flux = models(FLUX_CONTROL)
    refused(KONTEXT, flux, "--editor", "is a FluxPipeline", "FluxKontextPipeline")
    refused(KONTEXT, base_folder, "is a StableDiffusionPipeline")
    refused(FLUX_CONTROL, models(KONTEXT), "is a FluxKontextPipeline", controlnet=str(flux / "controlnet"))
    stable_diffusion = {"generator": "img2img", "pipeline_flags": {"hint_colours": None, "pipeline_steps": None}}
    words = ["controlnet is a FluxControlNetModel: expected a ControlNetModel"]
    refused(FLUX_CONTROL, base_folder, *words, controlnet=str(flux / "controlnet"), **stable_diffusion)
    refused(SD3_CONTROL, models(SD3_CONTROL), "is a StableDiffusion3Pipeline", controlnet=str(flux / "controlnet"))
    odd = shutil.copytree(flux / "controlnet", tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    for changes, words in (
        ({"_class_name": "SparseControlNetModel"}, ["SparseControlNetModel", "FluxControlNetModel"]),
        ({"num_mode": 7}, ["union of 7"]),
    ):
        (odd / "config.json").write_text(json.dumps(config | changes))
        refused(FLUX_CONTROL, flux, *words, controlnet=str(odd))
    swapped = shutil.copytree(models(KONTEXT), tmp_path / "swapped")
    index = json.loads((swapped / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "ChromaTransformer2DModel"]
    (swapped / "model_index.json").write_text(json.dumps(index))
    refused(KONTEXT, swapped, "the transformer of a FluxKontextPipeline", "ChromaTransformer2DModel")


def test_incomplete_weights_are_refused(models: Callable[[str], Path], city_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(models(PIX2PIX), tmp_path / "model")
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("conv_out.weight")
    save_file(weights, file)
    settings = settings_for(ALL[PIX2PIX], model, city_folder, tmp_path / "out")
    with pytest.raises(GenValError, match=r"missing keys: conv_out\.weight"):
        generate_domain(settings)


def test_a_controlnet_of_another_width_is_refused(
    models: Callable[[str], Path], city_folder: Path, tmp_path: Path
) -> None:
    from diffusers import FluxControlNetModel

    config = json.loads((models(FLUX_CONTROL) / "controlnet" / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    FluxControlNetModel(**{**config, "num_attention_heads": 4}).save_pretrained(tmp_path / "wide")
    settings = settings_for(
        ALL[FLUX_CONTROL], models(FLUX_CONTROL), city_folder, tmp_path / "out", controlnet=str(tmp_path / "wide")
    )
    with pytest.raises(GenValError, match="num_attention_heads 4 instead of 2"):
        generate_domain(settings)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (KONTEXT, {"pipeline_flags": {"hint_colours": "ade20k"}}, "--hint_colours: FluxKontextPipeline"),
        (KONTEXT, {"pipeline_flags": {"image_guidance": 2.0}}, "--image_guidance"),
        (KONTEXT, {"negative_prompt": "sun"}, "--negative_prompt"),
        (KONTEXT, {"batch_size": 4, "lora": "x"}, "--lora, --batch_size"),
        (KONTEXT, {"height": 20}, "multiples of 8"),
        (KONTEXT, {"prompt_template": "{domain}" + " and more" * 200}, "reads 512 tokens"),
        ("Flux2KleinPipeline", {"pipeline_flags": {"pipeline_guidance": 3.0}}, "--pipeline_guidance: the distilled"),
        (FLUX_CONTROL, {"pipeline_flags": {"hint_colours": None}}, "Give --hint_colours"),
        (FLUX_CONTROL, {"domain_strength": (0.5,)}, "--domain_strength: FluxControlNetPipeline"),
        (FLUX_CONTROL, {"pipeline_flags": {"offload": "model"}}, "--offload is for GPUs"),
    ],
)
def test_flags_that_do_not_apply_are_refused(
    name: str, values: dict[str, Any], words: str, models: Callable[[str], Path], city_folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(ALL[name], models(name), city_folder, tmp_path / "out", **values)
    with pytest.raises(GenValError, match=words):
        generate_domain(settings)


def test_stable_diffusion_refuses_flags_of_pipelines(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path, refused: Refusal
) -> None:
    command = ["ControlNet/style_transfer.py", "--domain", "fog", "--data_dir", city_folder, "--output_dir", tmp_path]
    models = ["--base", base_folder, "--controlnet", controlnet_folder]
    refused([*command, *models, "--hint_colours", "ade20k"], "--hint_colours", "Leave it out")
    refused([*command, "--generator", "img2img", "--offload", "model"], "--offload", "img2img")
    refused([*command, "--generator", "edit", "--editor", tmp_path / "none"], "No model at")


def test_instructions_come_from_the_domain_or_a_file(tmp_path: Path) -> None:
    assert "night" in instructions(Domain("night", ("in night",))).texts[0]
    assert "street in thick smoke." in instructions(Domain("thick-smoke", ("in thick smoke",))).texts[0]
    assert instructions(find_domain("dusk")).texts == (path_dicts.INSTRUCTIONS["dusk"],)
    assert "street in rain of ash." in instructions(Domain("rain", ("in rain of ash",))).texts[0]
    file = tmp_path / "instructions.txt"
    file.write_text("make it foggy\nadd fog\n")
    assert instructions(Domain("fog", ("in fog",)), str(file)) == Domain("fog", ("make it foggy", "add fog"))


def test_hint_colours_are_those_of_the_data_sets() -> None:
    # The module itself needs mmcv, which is not installed everywhere: its table is read from the source.
    package = importlib.util.find_spec("mmseg")
    assert package is not None and package.origin is not None
    source = ast.parse((Path(package.origin).parent / "datasets" / "ade.py").read_text())
    table = next(node for node in ast.walk(source) if isinstance(node, ast.Call) and len(node.keywords) == 2)
    ade20k = {keyword.arg: ast.literal_eval(keyword.value) for keyword in table.keywords}
    names = {"traffic sign": "signboard", "vegetation": "tree", "terrain": "grass", "rider": "person"}
    names |= {"train": "bus", "motorcycle": "minibike"}
    colours = class_colours("ade20k")
    for train_id, name in enumerate(CLASSES):
        assert colours[train_id].tolist() == ade20k["palette"][ade20k["classes"].index(names.get(name, name))]
    assert not colours[255].any() and class_colours("cityscapes")[0].tolist() == [128, 64, 128]


def test_the_hint_has_the_colours_of_the_mask(
    models: Callable[[str], Path], city_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genval.diffusion.published import stage as module

    hints: list[np.ndarray] = []
    run = module.run_pipeline

    def keep(pipeline: Any, published: Published, request: Request, *rest: Any) -> torch.Tensor:
        hints.append(np.asarray(request.image))
        return run(pipeline, published, request, *rest)

    monkeypatch.setattr(module, "run_pipeline", keep)
    settings = settings_for(ALL[FLUX_CONTROL], models(FLUX_CONTROL), city_folder, tmp_path / "out", num_samples=1)
    done = generated(settings)
    line = next(iter(Manifest(done.folder).records.values()))
    mask = cv2.imread(str(done.folder / line["mask"]), cv2.IMREAD_UNCHANGED)
    assert mask is not None and (hints[0][mask == 7] == (140, 140, 140)).all()


@pytest.mark.slow
def test_the_script_edits_and_the_gate_measures_the_drift(
    models: Callable[[str], Path], city_folder: Path, tmp_path: Path
) -> None:
    command = ["ControlNet/style_transfer.py", "--generator", "edit", "--editor", models(PIX2PIX), "--domain", "fog"]
    command += ["--data_dir", city_folder, "--output_dir", tmp_path, "--num_samples", 2, "--pipeline_steps", 2]
    command += ["--height", HEIGHT, "--width", WIDTH, "--accelerator", "cpu"]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert f"Wrote 2 images (2 new) and manifest.jsonl to {tmp_path / 'edit' / 'fog'}" in done.stdout
    judged = judge_set(
        make_settings(
            ScoringSettings,
            "mini",
            generator="edit",
            domain="fog",
            generated_dir=str(tmp_path),
            max_drift=0.0,
            clip=None,
        )
    )
    assert judged is not None and judged.dropped == 2
    assert all(any("drift" in reason for reason in reasons) for reasons in judged.reasons.values())
