import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusion_world import HEIGHT, WIDTH

from genval.artifacts.manifest import Manifest
from genval.artifacts.settings import write_settings
from genval.artifacts.stage import run_stage
from genval.datasets.captions import read_captions
from genval.datasets.items import BadFile, Item, find_items
from genval.datasets.reading import read_image, read_mask
from genval.diffusion import style_transfer as transfer_module
from genval.diffusion.generators import GeneratedSet, generate_domain, generate_domains, plan_domains
from genval.diffusion.models.controlnet import load_controlnet
from genval.diffusion.models.pipelines import load_base
from genval.diffusion.prompts import find_domain
from genval.diffusion.sampling.compiling import choose_compiling, keep_kernels, recorded_choice
from genval.diffusion.sampling.stage import default_batch_size
from genval.diffusion.settings import SamplingConfig, StyleTransferSettings
from genval.diffusion.style_transfer import (
    Transfer,
    TransferStage,
    caption_frames,
    choose_transfers,
    image_size,
)
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl
from genval.runtime.flags import make_settings
from genval.runtime.settings import DeviceSettings, RunSettings


def frames(count: int) -> list[Item]:
    return [
        Item(f"n{i}", Path(f"leftImg8bit/val/c/n{i}_leftImg8bit.png"), Path(f"n{i}.png"), "clean", "c")
        for i in range(count)
    ]


CAPTIONS = {f"n{i}_leftImg8bit.png": f"caption {i}" for i in range(20)}
TEMPLATE = "{caption}, {domain}"


def test_choices_are_seeded_with_replacement_and_shared_by_domains() -> None:
    fog = choose_transfers(frames(4), CAPTIONS, find_domain("fog"), 20, 1, TEMPLATE)
    assert fog == choose_transfers(frames(4), CAPTIONS, find_domain("fog"), 20, 1, TEMPLATE)
    assert len({t.source.id for t in fog}) == 4 and len({t.id for t in fog}) == len({t.seed for t in fog}) == 20
    night = choose_transfers(frames(4), CAPTIONS, find_domain("night"), 20, 1, TEMPLATE)
    assert [t.source for t in fog] == [t.source for t in night] and fog[0].seed != night[0].seed
    assert fog[:5] == choose_transfers(frames(4), CAPTIONS, find_domain("fog"), 5, 1, TEMPLATE)
    other = choose_transfers(frames(4), CAPTIONS, find_domain("fog"), 20, 2, TEMPLATE)
    assert [t.source for t in fog] != [t.source for t in other]
    first = fog[0]
    assert first.id == f"fog_0_{first.source.id}" and first.prompt == f"caption {first.source.id[1:]}, in fog"


def test_each_frame_at_most_once() -> None:
    def draw(count: int) -> list[Transfer]:
        return choose_transfers(frames(6), CAPTIONS, find_domain("fog"), count, 1, TEMPLATE, replacement=False)

    assert len({t.source.id for t in draw(6)}) == 6 and draw(6)[:4] == draw(4)
    with pytest.raises(GenValError, match="7 images need as many frames, found 6"):
        draw(7)


def test_phrasings_of_a_domain_are_shared_out_by_seed(tmp_path: Path) -> None:
    (tmp_path / "smoke.txt").write_text("in thick smoke\n\nwith smoke everywhere\n")
    domain = find_domain("smoke", prompt_file=str(tmp_path / "smoke.txt"))
    chosen = choose_transfers(frames(4), CAPTIONS, domain, 40, 1, TEMPLATE)
    endings = [t.prompt.partition(", ")[2] for t in chosen]
    assert set(endings) == {"in thick smoke", "with smoke everywhere"} and 10 < endings.count("in thick smoke") < 30
    assert chosen == choose_transfers(frames(4), CAPTIONS, domain, 40, 1, TEMPLATE)


def test_a_chosen_frame_without_a_caption_is_named_or_skipped(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text('{"image": "a/n1_leftImg8bit.png", "text": "a street"}\n')
    items, captions = caption_frames(frames(3), file)
    with pytest.raises(GenValError, match=r"No caption for leftImg8bit/val/c/n[02]_leftImg8bit.png.*--skip_bad"):
        choose_transfers(items, captions, find_domain("fog"), 9, 1, TEMPLATE)
    bad: list[BadFile] = []
    items, captions = caption_frames(frames(3), file, bad)
    assert [item.id for item in items] == ["n1"] and [one.id for one in bad] == ["n0", "n2"]
    assert str(file) in bad[0].reason
    assert {t.prompt for t in choose_transfers(items, captions, find_domain("fog"), 9, 1, TEMPLATE)} == {
        "a street, in fog"
    }


@pytest.mark.parametrize(("caption", "prompt"), [("a road", "a road, in fog"), ("", "in fog")])
def test_one_caption_for_all_or_none(caption: str, prompt: str) -> None:
    items, captions = caption_frames(frames(3), caption)
    assert {t.prompt for t in choose_transfers(items, captions, find_domain("fog"), 5, 1, TEMPLATE)} == {prompt}


def test_choices_need_a_valid_template() -> None:
    for template in ("{weather}", "{caption}", "{domain", "{caption.x}, {domain}"):
        with pytest.raises(GenValError, match="--prompt_template"):
            choose_transfers(frames(1), CAPTIONS, find_domain("fog"), 1, 1, template)


def test_the_recorded_choice_of_a_folder(tmp_path: Path) -> None:
    assert recorded_choice(tmp_path, overwrite=False) is None
    write_settings(tmp_path, {"compiled": True})
    assert recorded_choice(tmp_path, overwrite=False) is True
    assert recorded_choice(tmp_path, overwrite=True) is None
    write_settings(tmp_path, {"seed": 0})
    assert recorded_choice(tmp_path, overwrite=False) is None


def test_kernels_are_kept_elsewhere_where_the_cache_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    default = f"{tempfile.gettempdir()}/torchinductor_somebody"  # PyTorch sets it when its compiler is imported
    folders = (("file", tempfile.gettempdir(), ""), ("cache", tmp_path / "cache/inductor", default))
    for cache, kept, named in folders:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", named)
        monkeypatch.setenv("GENVAL_CACHE", str(tmp_path / cache))
        keep_kernels()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(kept))
    keep_kernels()  # a user's own folder stays
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache/inductor")


def test_compiling_is_chosen_by_the_user_or_by_the_run_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_compiling("on", gpu) and choose_compiling("on", gpu, recorded=False)
    assert choose_compiling("auto", gpu, recorded=True)
    assert "--compile off" not in capsys.readouterr().out
    assert not choose_compiling("auto", gpu) and not choose_compiling("auto", gpu, recorded=False)
    assert not choose_compiling("off", gpu, recorded=True)
    assert not capsys.readouterr().out
    # A CPU cannot continue the set of a GPU with the same bytes.
    assert choose_compiling("auto", cpu, recorded=True)
    assert "--compile off" in capsys.readouterr().out
    assert default_batch_size(gpu, 512, 512) == 32 and default_batch_size(gpu, 1024, 2048) == 4


def test_the_size_of_whole_frames(city_folder: Path) -> None:
    frame = find_items("Cityscapes", root=city_folder)[0]
    for choice, size in (("crop", (512, 256)), ("whole", (512, 1024)), ("full", (HEIGHT, WIDTH))):
        assert image_size(StyleTransferSettings(domain="fog", frame=choice, height=512, width=256), frame) == size


def test_a_domain_or_a_prompt_is_required() -> None:
    for both in ({}, {"domain": "fog", "prompt": "in fog"}):
        with pytest.raises(GenValError, match="one of --domain and --prompt"):
            StyleTransferSettings(**both)
    assert StyleTransferSettings(domain="fog", no_captions=True).fixed_caption == ""
    assert StyleTransferSettings(domain="fog").fixed_caption is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"denoising_strength": 0.5}, "--generator controlnet does not start from the photo"),
        ({"generator": "img2img", "denoising_strength": 0.0}, "--denoising_strength: expected a number above 0"),
        ({"generator": "img2img", "denoising_strength": 0.01}, "of --steps 25 leaves no step"),
        ({"generator": "img2img", "sampling": SamplingConfig(large="upscaled")}, "Give --large tiled"),
        ({"generator": "edit", "domain_strength": (0.5, 1.0)}, "--domain_strength: --generator edit has no prompt"),
        ({"generator": "translate", "domain_strength": (0.0,)}, "--domain_strength: --generator translate"),
        ({"domain_strength": (1e-5,)}, "--domain_strength: expected numbers from 0 to 1 in steps"),
    ],
)
def test_settings_that_do_not_fit_the_generator(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GenValError, match=message):
        StyleTransferSettings(domain="fog", **settings)


def test_img2img_starts_from_the_crop(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path
) -> None:
    def make(**settings: Any) -> GeneratedSet | None:
        return generate_domain(
            StyleTransferSettings(
                domain="fog",
                base=str(base_folder),
                controlnet=str(controlnet_folder),
                data_dir=str(city_folder),
                output_dir=str(tmp_path),
                num_samples=3,
                height=HEIGHT,
                width=WIDTH,
                batch_size=2,
                sampling=SamplingConfig(10, 1.0, sampler="dpm++"),
                device=DeviceSettings(accelerator="cpu"),
                **settings,
            )
        )

    make()
    make(generator="img2img", denoising_strength=0.1)
    with pytest.raises(GenValError, match=r"denoising_strength 0\.1 \(now 0\.8\)"):
        make(generator="img2img")
    published, own = Manifest(tmp_path / "fog").records, Manifest(tmp_path / "img2img/fog").records
    for (name, line), other in zip(own.items(), published.values(), strict=True):
        assert name == other["id"] and line == other | {"generator": "img2img", "denoising_strength": 0.1}
    assert [item.id for item in find_items("Cityscapes_img2img_fog", generated_dir=tmp_path)] == sorted(own)
    # All settings but the start are shared, so at full strength the images are those from noise.
    make(generator="img2img", denoising_strength=1.0, run=RunSettings(overwrite=True))
    for line in published.values():
        one, other = (read_image(tmp_path / folder / line["image"]) for folder in ("fog", "img2img/fog"))
        np.testing.assert_array_equal(one, other)


def test_several_domains_in_one_run_are_those_of_several_runs(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: str, domain: str) -> list[int]:
        settings = StyleTransferSettings(
            domain=domain,
            base=str(base_folder),
            controlnet=str(controlnet_folder),
            data_dir=str(city_folder),
            output_dir=str(tmp_path / folder),
            num_samples=3,
            height=HEIGHT,
            width=WIDTH,
            batch_size=2,
            sampling=SamplingConfig(2, 3.0),
            device=DeviceSettings(accelerator="cpu"),
        )
        return [done.written for done in generate_domains(plan_domains(settings))]

    denoisers = []
    made = transfer_module.make_denoiser
    monkeypatch.setattr(transfer_module, "make_denoiser", lambda *a, **k: denoisers.append(a) or made(*a, **k))
    assert make("together", "fog,night") == [3, 3] and len(denoisers) == 1
    assert make("apart", "fog") == make("apart", "night") == [3]
    for domain in ("fog", "night"):
        one, other = (contents(tmp_path / name / domain) for name in ("apart", "together"))
        for files in (one, other):
            settings = json.loads(files.pop("settings.json"))["settings"]
            assert settings["domain"] == domain and settings["compiled"] is False
        assert len(one) == 10 and one == other
    # Each domain resumes on its own.
    shutil.rmtree(tmp_path / "together/night")
    assert make("together", "fog,night") == [0, 3]
    assert contents(tmp_path / "together/night").items() >= other.items()
    with pytest.raises(GenValError, match="--prompt_file describes one domain"):
        plan_domains(StyleTransferSettings(domain="fog,night", prompt_file="phrasings.txt"))


def test_a_resumed_set_keeps_the_kernels_that_it_was_begun_with(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StyleTransferSettings(
        domain="fog,night",
        base=str(base_folder),
        controlnet=str(controlnet_folder),
        data_dir=str(city_folder),
        output_dir=str(tmp_path),
        num_samples=1,
        height=HEIGHT,
        width=WIDTH,
        sampling=SamplingConfig(2, 3.0),
        device=DeviceSettings(accelerator="cpu"),
    )
    for domain, compiled in (("fog", True), ("night", False)):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "settings.json").write_text(json.dumps({"settings": {"compiled": compiled}}))
    asked = []
    made = transfer_module.make_denoiser

    def make(base: Any, controlnet: Any, sampling: Any, compiled: bool, **options: Any) -> Any:
        asked.append(compiled)
        return made(base, controlnet, sampling, **options)

    monkeypatch.setattr(transfer_module, "make_denoiser", make)
    monkeypatch.setattr(transfer_module, "choose_compiling", lambda _, device, recorded: recorded)
    # The compiled one comes last, because compiling also changes the decoder.
    assert [done.folder.name for done in generate_domains(plan_domains(settings))] == ["night", "fog"]
    assert asked == [False, True]


def test_each_strength_is_recorded_and_a_repeated_one_counts_once(
    base_folder: Path, controlnet_folder: Path, city_folder: Path
) -> None:
    models = {"base": str(base_folder), "controlnet": str(controlnet_folder), "data_dir": str(city_folder)}
    settings = make_settings(StyleTransferSettings, domain="fog", domain_strength="-0,0.0,0.50,0.5,1", **models)
    plans = plan_domains(settings)
    assert [plan.folder.name for plan in plans] == ["fog-0.0", "fog-0.5", "fog"]
    assert [plan.settings.domain_strength for plan in plans] == [(0.0,), (0.5,), (1.0,)]


class World:
    def __init__(self, base_folder: Path, controlnet_folder: Path, city: Path) -> None:
        self.base = load_base(base_folder)
        self.controlnet = load_controlnet(controlnet_folder, self.base).eval()
        items = find_items("Cityscapes", root=city)
        captions = read_captions(city / "training/val.jsonl")
        self.transfers = choose_transfers(items, captions, find_domain("fog"), 7, 0, TEMPLATE)

    def stage(self, folder: Path, batch_size: int = 3, record: dict[str, Any] | None = None) -> TransferStage:
        return TransferStage(
            folder,
            record or {"run_seed": 0},
            self.base,
            self.controlnet,
            SamplingConfig(2, 3.0),
            height=HEIGHT,
            width=WIDTH,
            batch_size=batch_size,
            settings={"seed": 0},
        )

    def make(self, folder: Path, batch_size: int = 3, fabric: Any = None) -> int:
        stage = self.stage(folder, batch_size)
        return run_stage(stage, self.transfers, batch_size=batch_size, num_workers=2, fabric=fabric).written


@pytest.fixture(scope="module")
def world(base_folder: Path, controlnet_folder: Path, city_folder: Path) -> World:
    return World(base_folder, controlnet_folder, city_folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_files_and_their_layout(world: World, tmp_path: Path) -> None:
    assert world.make(tmp_path / "fog") == 7
    # The evaluation's own reader finds them.
    found = find_items("Cityscapes_fog", root=tmp_path / "fog")
    assert sorted(item.id for item in found) == sorted(t.id for t in world.transfers)
    records = {record["id"]: record for record in read_jsonl(tmp_path / "fog/manifest.jsonl")}
    assert list(records) == [t.id for t in world.transfers]
    for transfer in world.transfers:
        record = records[transfer.id]
        np.testing.assert_array_equal(read_mask(tmp_path / "fog" / record["mask"]), read_mask(transfer.source.mask))
        np.testing.assert_array_equal(
            read_image(tmp_path / "fog" / record["original"]), read_image(transfer.source.image)
        )
        assert read_image(tmp_path / "fog" / record["image"]).shape == (HEIGHT, WIDTH, 3)
        assert (record["seed"], record["prompt"]) == (transfer.seed, transfer.prompt)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_stopped_run_resumes_to_the_same_bytes(world: World, tmp_path: Path, kept: int) -> None:
    world.make(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    # What a kill leaves: some records with their files, the next item with two of its three files, a torn line.
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    lines = (part / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (part / "manifest.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    for transfer in world.transfers[kept:]:
        for file in list(world.stage(part).files(transfer).values())[2 if transfer is world.transfers[kept] else 0 :]:
            (part / file).unlink()
    finished = [part / file for t in world.transfers[:kept] for file in world.stage(part).files(t).values()]
    before = [file.stat().st_mtime_ns for file in finished]
    assert world.make(part) == 7 - kept
    assert contents(part) == whole
    assert [file.stat().st_mtime_ns for file in finished] == before


def test_finished_runs_compute_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make(tmp_path)
    monkeypatch.setattr(transfer_module, "start_generation", None)
    assert world.make(tmp_path) == 0


def test_processes_share_the_batches(world: World, tmp_path: Path) -> None:
    class First:  # of two processes, without communication
        global_rank, world_size, is_global_zero = 0, 2, True

        def broadcast(self, value: Any, source: int) -> Any:
            return value if source == 0 or value is None else (0, ())

    world.make(tmp_path / "one")
    assert world.make(tmp_path / "two", fabric=First()) == 4
    assert world.make(tmp_path / "two") == 3
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_images_of_other_settings_are_refused(world: World, tmp_path: Path) -> None:
    run_stage(world.stage(tmp_path), world.transfers[:3], batch_size=3)
    with pytest.raises(GenValError, match=r"run_seed 0 \(now 1\).*--overwrite"):
        run_stage(world.stage(tmp_path, record={"run_seed": 1}), world.transfers[3:], batch_size=3)
    run_stage(world.stage(tmp_path, record={"run_seed": 1}), world.transfers[3:4], batch_size=3, overwrite=True)
    assert list(Manifest(tmp_path).records) == [world.transfers[3].id]
    assert len(list((tmp_path / "leftImg8bit").rglob("*.png"))) == 1
    (tmp_path / "settings.json").unlink()
    with pytest.raises(GenValError, match=r"no settings\.json: it was not written by style_transfer\.py"):
        run_stage(world.stage(tmp_path), world.transfers, batch_size=3)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_images_of_a_changed_frame_are_made_again(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path, kind: str
) -> None:
    city, folder = tmp_path / "city", tmp_path / "fog"
    shutil.copytree(city_folder, city)
    world = World(base_folder, controlnet_folder, city)
    world.make(folder)
    changed = world.transfers[0].source
    file = changed.image if kind == "image" else changed.mask
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(file), np.ascontiguousarray(pixels[:, ::-1]))
    assert world.make(folder) == sum(transfer.source.id == changed.id for transfer in world.transfers)
    world.make(tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_another_batch_size_changes_rounding_only(world: World, tmp_path: Path) -> None:
    world.make(tmp_path / "three", 3)
    world.make(tmp_path / "one", 1)
    for transfer in world.transfers:
        file = world.stage(tmp_path).files(transfer)["image"]
        one, three = (read_image(tmp_path / folder / file).astype(int) for folder in ("one", "three"))
        assert np.abs(one - three).max() <= 1


def test_out_of_memory_halves_the_batch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    original = transfer_module.start_generation

    def limited(denoiser: Any, batch: Any, *args: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("full")
        return original(denoiser, batch, *args)

    monkeypatch.setattr(transfer_module, "start_generation", limited)
    assert world.make(tmp_path / "small", 5) == 7
    assert sizes == [5, 2, 2, 1, 2]
    assert "Out of memory with 5 images at a time: continuing with 2." in capsys.readouterr().out
    monkeypatch.setattr(transfer_module, "start_generation", original)
    world.make(tmp_path / "large", 5)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert small.keys() == large.keys()


def test_one_image_too_large_for_the_memory(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(transfer_module, "start_generation", full)
    with pytest.raises(GenValError, match="--precision bf16-true"):
        world.make(tmp_path, 2)
