import dataclasses
import functools
import shutil
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_world import HEIGHT, WIDTH, copy_of_base, write_xl_base

from genval.artifacts.settings import write_settings
from genval.diffusion.models.controlnet import add_control, load_controlnet
from genval.diffusion.models.hints import CITYSCAPES_IDS, HintEncoding, encode_hint, make_encoding
from genval.diffusion.models.pipelines import TextStates, load_base
from genval.diffusion.pairs import Pair, read_pairs
from genval.diffusion.training.data import ControlNetData, EncodedFolder, encode_pairs
from genval.diffusion.training.module import ControlNetModule
from genval.diffusion.training.pair_sampler import PairSampler
from genval.diffusion.training.settings import ControlNetTrainingSettings, TrainingConfig
from genval.runtime.errors import GenValError
from genval.training.module import check_optimizer
from genval.training.runs import (
    changed_flags,
    check_output,
    choose_run,
    latest_checkpoint,
    make_trainer,
    training_precision,
)

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

SMALL: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "batch_size": 2,
    "accumulate": 2,
    "max_steps": 4,
    "lr": 1e-3,
    "warmup_steps": 1,
    "gradient_clip": 1.0,
    "ema": 0.9,
}


def train(
    base_folder: Path,
    city: Path,
    folder: Path,
    checkpoint: Path | None = None,
    cached: bool = False,
    encoded: bool = False,
    encoding: HintEncoding = CITYSCAPES_IDS,
    pairs: list[Pair] | None = None,
    **changes: Any,
) -> ControlNetModule:
    config = TrainingConfig(**{**SMALL, **changes})
    pairs = pairs or read_pairs(city / "training/train.jsonl", city)
    base = copy_of_base(base_folder)
    store = EncodedFolder(folder / "encoded", base, pairs, config) if encoded else None
    controlnet = add_control(base, encoding)
    module = ControlNetModule(base, controlnet, config, pairs if cached else None, 1, store)
    trainer = make_trainer(folder, config, len(pairs), accelerator="cpu", devices=1, checkpoint_every=100, log_every=1)
    trainer.fit(module, ControlNetData(pairs, config, 1, cached, store), ckpt_path=checkpoint, weights_only=True)
    return module


def weights(module: ControlNetModule) -> dict[str, torch.Tensor]:
    return {**module.controlnet.state_dict(), **{f"ema.{k}": v for k, v in module.trained.state_dict().items()}}


@pytest.mark.parametrize(
    "kept",
    [
        {},
        pytest.param({"cached": True}, marks=pytest.mark.slow),
        pytest.param({"encoded": True}, marks=pytest.mark.slow),
        pytest.param({"cached": True, "encoded": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_halves_are_the_whole(base_folder: Path, city_folder: Path, tmp_path: Path, kept: dict[str, bool]) -> None:
    whole = train(base_folder, city_folder, tmp_path / "whole", **kept)
    train(base_folder, city_folder, tmp_path / "halves", max_steps=2, **kept)
    middle = latest_checkpoint(tmp_path / "halves")
    assert middle is not None and middle.name == "step=2.ckpt"
    halves = train(base_folder, city_folder, tmp_path / "halves", middle, **kept)
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(halves)[key]), key
    # The checkpoint before is kept, and the first version's losses are still there.
    assert sorted(path.name for path in middle.parent.iterdir()) == ["step=2.ckpt", "step=4.ckpt"]
    assert (tmp_path / "halves/lightning_logs/version_0/metrics.csv").read_text().count("\n") == 3
    assert (tmp_path / "halves/lightning_logs/version_1/metrics.csv").read_text().count("\n") == 3


def test_only_the_control_is_trained_and_saved(base_folder: Path, city_folder: Path, tmp_path: Path) -> None:
    start = add_control(copy_of_base(base_folder)).state_dict()
    module = train(base_folder, city_folder, tmp_path / "run")
    fresh = load_base(base_folder)
    for trained, loaded in ((module.base.unet, fresh.unet), (module.base.vae, fresh.vae)):
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, trained.state_dict()[key])
        assert all(parameter.grad is None for parameter in trained.parameters())
    assert (module.controlnet.state_dict()["conv_in.weight"] != start["conv_in.weight"]).any()
    assert (module.trained.conv_in.weight != module.controlnet.conv_in.weight).any()
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in saved} == {"controlnet", "average"}


def test_nothing_of_the_bases_encoder_is_recorded(base_folder: Path) -> None:
    """Only the decoder carries gradients back: the encoder's activations need none."""
    base = copy_of_base(base_folder)
    module = ControlNetModule(base, add_control(base), TrainingConfig(**SMALL))
    recorded = {}
    for name in ("down_blocks", "mid_block", "up_blocks"):
        part = getattr(base.unet, name)
        block = part[-1] if isinstance(part, torch.nn.ModuleList) else part
        block.register_forward_hook(
            lambda _, __, out, name=name: recorded.update(
                {name: (out[0] if isinstance(out, tuple) else out).requires_grad}
            )
        )
    text = TextStates(torch.randn(2, 16, 32))
    loss = module.denoising_loss(
        torch.randn(2, 4, 8, 16), torch.rand(2, 1, 32, 64), text, torch.Generator().manual_seed(0)
    )
    assert recorded == {"down_blocks": False, "mid_block": False, "up_blocks": True}
    loss.backward()
    # At the start every gradient but those of the zero convolutions is zero.
    assert module.controlnet.controlnet_mid_block.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_training_lowers_the_loss(
    base_folder: Path, city_folder: Path, controlnet_folder: Path, tmp_path: Path
) -> None:
    """Measured on fixed noise, before and after: the logged loss of single batches is too noisy."""
    pairs = read_pairs(city_folder / "training/train.jsonl", city_folder)

    def loss(module: ControlNetModule) -> float:
        cache = encode_pairs(module.base, pairs, module.config, workers=1)
        index = torch.arange(6)
        never = torch.zeros(6, dtype=torch.bool)
        latents, masks, text = cache(
            {"index": index, "crop": torch.zeros_like(index), "flip": never, "drop_caption": never}
        )
        with torch.no_grad():
            hints = (masks + 1)[:, None].float() / 34
            total = 0.0
            for seed in range(8):
                generator = torch.Generator().manual_seed(seed)
                total += float(module.denoising_loss(latents.float(), hints, text.to(torch.float32), generator))
        return total

    base = copy_of_base(base_folder)
    before = loss(ControlNetModule(base, add_control(base), TrainingConfig(**SMALL)))
    after = loss(train(base_folder, city_folder, tmp_path / "run", cached=True, max_steps=60, ema=0.0))
    assert after < 0.97 * before


def test_every_pass_uses_every_pair_once() -> None:
    config = TrainingConfig(**{**SMALL, "batch_size": 3})
    plans = [PairSampler(7, config, rank=rank, world_size=2) for rank in range(2)]
    indices = [sample.index for number in range(7) for plan in plans for sample in plan.batch(number)]
    assert len(indices) == 42 and set(Counter(indices).values()) == {6}
    for start in range(0, 42, 7):
        assert sorted(indices[start : start + 7]) == list(range(7))
    assert indices[:7] != indices[7:14]


def test_a_plan_can_start_anywhere() -> None:
    config = TrainingConfig(**SMALL)
    batches = iter(PairSampler(5, config, start=9))
    assert [next(batches), next(batches)] == [PairSampler(5, config).batch(9), PairSampler(5, config).batch(10)]
    assert PairSampler(5, config).batch(9) != PairSampler(5, TrainingConfig(**{**SMALL, "seed": 1})).batch(9)


def test_flips_and_dropped_captions_come_as_often_as_asked() -> None:
    config = TrainingConfig(**{**SMALL, "batch_size": 1000, "caption_dropout": 0.1})
    samples = PairSampler(10, config).batch(0)
    assert 0.45 < sum(sample.flip for sample in samples) / 1000 < 0.55
    assert 0.07 < sum(sample.drop_caption for sample in samples) / 1000 < 0.13
    still = PairSampler(10, TrainingConfig(**{**SMALL, "flip": False, "caption_dropout": 0.0})).batch(0)
    assert not any(sample.flip or sample.drop_caption for sample in still)


def test_published_epochs_as_steps() -> None:
    # 2,975 pairs, batch 8, accumulate 16: 150 epochs are 3,487 optimiser steps.
    assert TrainingConfig().total_steps(2975) == 3487
    assert TrainingConfig().total_steps(2975, world_size=2) == 1744
    assert TrainingConfig(max_steps=2100).total_steps(2975) == 2100


def test_hint_embedding_has_its_own_rate(base_folder: Path, controlnet_folder: Path) -> None:
    base = copy_of_base(base_folder)
    config = TrainingConfig(**{**SMALL, "hint_lr_scale": 4.0})
    module = ControlNetModule(base, load_controlnet(controlnet_folder, base), config)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert groups[1]["initial_lr"] == 4 * groups[0]["initial_lr"] == 4e-3
    assert sum(len(group["params"]) for group in groups) == len(list(module.controlnet.parameters()))


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"max_steps": 0},
        {"ema": 1.0},
        {"caption_dropout": -0.1},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"gradient_clip": float("nan")},
        {"warmup_steps": -1},
        {"lr_schedule": "linear"},
        {"image_resize": "cubic"},
        {"optimizer": "sgd"},
        {"attention": "flash"},
        {"crops": 0},
    ],
)
def test_bad_settings_name_the_flag(change: dict[str, Any]) -> None:
    with pytest.raises(GenValError, match=f"--{next(iter(change))}"):
        TrainingConfig(**change)


def test_runs_are_numbered_and_found_again(tmp_path: Path) -> None:
    checkpoints = tmp_path / "3/lightning_logs/version_0/checkpoints"
    assert choose_run(tmp_path, None, None) == (tmp_path / "0", None)
    assert choose_run(tmp_path, None, "auto") == (tmp_path / "0", None)
    with pytest.raises(GenValError, match="no checkpoint"):
        choose_run(tmp_path, None, "last")
    checkpoints.mkdir(parents=True)
    for step in (9, 10):
        torch.save({"state_dict": {}}, checkpoints / f"step={step}.ckpt")
    assert choose_run(tmp_path, None, None) == (tmp_path / "4", None)
    for resume in ("last", "auto", str(checkpoints / "step=10.ckpt")):
        assert choose_run(tmp_path, None, resume) == (tmp_path / "3", checkpoints / "step=10.ckpt")
    with pytest.raises(GenValError, match="has checkpoints already"):
        choose_run(tmp_path, "3", None)
    with pytest.raises(GenValError, match="does not exist"):
        choose_run(tmp_path, None, "none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "moved.ckpt")
    with pytest.raises(GenValError, match="Give --run NAME"):
        choose_run(tmp_path, None, str(tmp_path / "moved.ckpt"))


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    checkpoints = tmp_path / "0/lightning_logs/version_0/checkpoints"
    checkpoints.mkdir(parents=True)
    for step in (9, 10):
        torch.save({"state_dict": {"weight": torch.ones(1000)}}, checkpoints / f"step={step}.ckpt")
    (checkpoints / "step=best.ckpt").write_text("a user's")
    last = checkpoints / "step=10.ckpt"
    data = last.read_bytes()
    middle = data.index(torch.ones(1000).numpy().tobytes()) + 400
    last.write_bytes(
        {"truncated": data[: len(data) // 2], "changed": data[:middle] + b"\1" + data[middle + 1 :], "empty": b""}[
            damage
        ]
    )
    for resume in ("last", "auto"):
        assert choose_run(tmp_path, None, resume) == (tmp_path / "0", checkpoints / "step=9.ckpt")
        assert f"{last} is damaged" in capsys.readouterr().err
    with pytest.raises(GenValError, match="not a checkpoint"):
        choose_run(tmp_path, None, str(last))
    (checkpoints / "step=9.ckpt").unlink()
    assert choose_run(tmp_path, None, "auto") == (tmp_path / "0", None)
    with pytest.raises(GenValError, match="no checkpoint"):
        choose_run(tmp_path, None, "last")


def test_two_checkpoints_are_kept(base_folder: Path, city_folder: Path, tmp_path: Path) -> None:
    for steps in (2, 4, 6):
        checkpoint = latest_checkpoint(tmp_path)
        train(base_folder, city_folder, tmp_path, checkpoint, max_steps=steps)
    assert checkpoint is not None
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["step=4.ckpt", "step=6.ckpt"]


def test_changed_flags_of_a_resumed_run_are_named(tmp_path: Path) -> None:
    first = ControlNetTrainingSettings(batch_size=2, lr=1e-3, max_steps=10)
    assert changed_flags(tmp_path, first) == []
    write_settings(tmp_path, first)
    assert changed_flags(tmp_path, first) == []
    second = ControlNetTrainingSettings(batch_size=4, accumulate=1, lr=1e-4, max_steps=20, devices="2", output="other")
    named = ["--batch_size 4 (was 2)", "--accumulate 1 (was 16)", "--lr 0.0001 (was 0.001)", "--devices 2 (was auto)"]
    assert changed_flags(tmp_path, second) == named
    (tmp_path / "settings.json").write_text("null")
    assert changed_flags(tmp_path, second) == []


def test_lightning_gives_no_tips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    make_trainer(tmp_path, TrainingConfig(**SMALL), 4, accelerator="cpu", devices=1)
    assert "GPU available" in caplog.text and "Tip" not in caplog.text


def test_a_run_is_not_resumed_with_other_training_data(base_folder: Path, city_folder: Path, tmp_path: Path) -> None:
    train(base_folder, city_folder, tmp_path, max_steps=1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    pairs = read_pairs(city_folder / "training/train.jsonl", city_folder)

    def resume(*changed: Pair) -> None:
        train(base_folder, city_folder, tmp_path, checkpoint, pairs=list(changed), max_steps=2)

    with pytest.raises(GenValError, match=rf"{len(pairs)} images, found {len(pairs) - 1}\. Restore the data"):
        resume(*pairs[1:])
    for changed in ([dataclasses.replace(pairs[0], caption="another street"), *pairs[1:]], pairs[::-1]):
        with pytest.raises(GenValError, match="found other files, captions or another order"):
            resume(*changed)
    moved = tmp_path / "elsewhere"
    shutil.copytree(city_folder, moved)
    resume(*read_pairs(moved / "training/train.jsonl", moved))
    content = torch.load(checkpoint, weights_only=True)
    del content["ControlNetData"]  # a checkpoint of an earlier version
    torch.save(content, checkpoint)
    resume(*pairs[1:])


def test_a_resumed_run_uses_its_own_learning_rate(base_folder: Path, city_folder: Path, tmp_path: Path) -> None:
    train(base_folder, city_folder, tmp_path, max_steps=2, lr=1e-3)
    checkpoint = latest_checkpoint(tmp_path)
    resumed = train(base_folder, city_folder, tmp_path, checkpoint, lr=1e-5, hint_lr_scale=3.0, weight_decay=0.5)
    groups = resumed.trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [1e-5, 3.0 * 1e-5]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5]


@pytest.mark.parametrize("run", ["../x", "a/../../x", "/x", ".", "", ".."])
def test_a_run_stays_in_the_folder_of_all_runs(tmp_path: Path, run: str) -> None:
    for resume in (None, "auto", "last"):
        with pytest.raises(GenValError, match=r"--run: expected a name of something in"):
            choose_run(tmp_path, run, resume)
    assert choose_run(tmp_path, "a/b", "auto") == (tmp_path / "a/b", None)


def gradients(module: ControlNetModule, text: TextStates) -> dict[str, torch.Tensor]:
    """Of every trained weight, for one fixed batch; the zero convolutions are not zero, so that all matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.controlnet.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid")):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    latents, hints = torch.randn(2, 4, 8, 16, generator=generator), torch.rand(2, 1, 32, 64, generator=generator)
    module.denoising_loss(latents, hints, text, generator).backward()
    return {name: parameter.grad for name, parameter in module.controlnet.named_parameters()}


@pytest.mark.parametrize(
    "change",
    [{"gradient_checkpointing": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_ways_to_compute_give_the_same_gradients(
    base_folder: Path, change: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without generating code, which takes minutes: what is tested is that the pass can be traced as one.
    compiler = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: compiler(function, dynamic=dynamic))
    text = TextStates(torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)))
    found = []
    for changes in ({}, change):
        base = copy_of_base(base_folder)
        module = ControlNetModule(base, add_control(base), TrainingConfig(**{**SMALL, **changes}))
        found.append(gradients(module, text))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)
        assert gradient.any() or "cond_embedding" in name or name == "controlnet_down_blocks.0.bias"


@pytest.mark.slow
def test_the_step_of_several_processes_is_compiled_as_a_whole(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph

    compiler = functools.partial(torch.compile, backend=record)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: compiler(function, dynamic=dynamic))
    # The ControlNet of this test has fewer gradients than one part of the usual size.
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1024)
    text = TextStates(torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        found = []
        for compiled in (False, True):
            base = copy_of_base(base_folder)
            module = ControlNetModule(base, add_control(base), TrainingConfig(**{**SMALL, "compile": compiled}))
            # As Lightning does: the training step runs inside of DDP's forward pass.
            monkeypatch.setattr(module, "forward", module.denoising_loss)
            parallel = torch.nn.parallel.DistributedDataParallel(module, bucket_cap_mb=0.02)
            monkeypatch.setattr(module, "denoising_loss", lambda *inputs, run=parallel: run(*inputs))
            found.append(gradients(module, text))
    finally:
        torch.distributed.destroy_process_group()
    assert len(graphs) == 1
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


@pytest.mark.slow
def test_an_xl_base_is_trained(city_folder: Path, tmp_path: Path) -> None:
    folder = write_xl_base(tmp_path / "xl")
    module = train(folder, city_folder, tmp_path / "run", encoded=True, max_steps=2)
    start = add_control(load_base(folder)).state_dict()
    assert (
        module.controlnet.state_dict()["add_embedding.linear_1.weight"] != start["add_embedding.linear_1.weight"]
    ).any()


@pytest.mark.parametrize("name", ["colour", pytest.param("one_hot", marks=pytest.mark.slow)])
def test_other_encodings_are_trained(base_folder: Path, city_folder: Path, tmp_path: Path, name: str) -> None:
    encoding = make_encoding(name)
    module = train(base_folder, city_folder, tmp_path / "run", encoding=encoding, max_steps=2)
    start = add_control(copy_of_base(base_folder), encoding).state_dict()
    key = "controlnet_cond_embedding.conv_in.weight"
    assert module.controlnet.state_dict()[key].shape[1] == encoding.channels
    assert (module.controlnet.state_dict()[key] != start[key]).any()
    assert module.encoding == encoding
    assert encode_hint(torch.zeros(1, 4, 4, dtype=torch.uint8), encoding).shape == (1, encoding.channels, 4, 4)


def test_an_unknown_prediction_is_refused(base_folder: Path) -> None:
    base = copy_of_base(base_folder)
    base.scheduler_config["prediction_type"] = "sample"
    with pytest.raises(GenValError, match="found sample"):
        ControlNetModule(base, add_control(base), TrainingConfig(**SMALL))


def test_eight_bit_adam_is_asked_for_by_name(
    base_folder: Path, controlnet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    check_optimizer("adamw")
    with pytest.raises(GenValError, match="pip install bitsandbytes"):
        check_optimizer("adamw8bit")
    stand_in = types.ModuleType("bitsandbytes.optim")
    stand_in.AdamW8bit = type("AdamW8bit", (torch.optim.AdamW,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", stand_in)
    base = copy_of_base(base_folder)
    config = TrainingConfig(**{**SMALL, "optimizer": "adamw8bit"})
    module = ControlNetModule(base, load_controlnet(controlnet_folder, base), config)
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer).__name__ == "AdamW8bit" and optimizer.param_groups[0]["weight_decay"] == 0.01


def test_precision_is_chosen_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert training_precision(None, "auto") == training_precision(None, "gpu") == "bf16-mixed"
    assert training_precision(None, "cpu") == "32-true"
    assert training_precision("16-mixed", "auto") == "16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert training_precision(None, "auto") == "32-true"
    with pytest.raises(GenValError, match="Use bf16-mixed"):
        training_precision("bf16-true", "auto")


def test_a_controlnet_is_not_replaced_unasked(tmp_path: Path) -> None:
    check_output(tmp_path, None, False)
    (tmp_path / "config.json").write_text("{}")
    check_output(tmp_path, "last", False)
    check_output(tmp_path, None, True)
    with pytest.raises(GenValError, match="--overwrite"):
        check_output(tmp_path, None, False)
