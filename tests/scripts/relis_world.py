"""A tiny Cityscapes, its generated fog and a tiny ACDC, and segmenters made of arithmetic, for the tests of relis/."""

import functools
import importlib.util
import os
import runpy
import shutil
import sys
import time
import types
import zlib

import numpy as np
import pytest
import torch

from genval.datasets.labels import CITYSCAPES
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT

SIZE = (24, 40)
CITYSCAPES_NAMES = {
    "frankfurt": ["frankfurt_000000_000294", "frankfurt_000000_000576", "frankfurt_000001_000538"],
    "munster": ["munster_000000_000019", "munster_000001_000019"],
}


def labelled(seed, size=SIZE):
    """An image whose red channel shows the class, and its labelIds."""
    generator = np.random.default_rng(seed)
    label_ids = generator.integers(0, 34, (6, 10)).astype(np.uint8).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    image = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
    image[..., 0] = CITYSCAPES.to_train_ids(label_ids)
    return image, label_ids


def write_pair(folder, city, name, seed, size=SIZE, mask_suffix="_gtFine_labelIds", split="val"):
    image, label_ids = labelled(seed, size)
    image[0, 0, 2] = zlib.crc32(f"{city}{name}".encode()) % 256  # no two images of a set are equal
    write_png(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
    write_png(folder / "gtFine" / split / city / f"{name}{mask_suffix}.png", label_ids)


def make_world(root):
    """Write `datasets/cityscapes`, `datasets/acdc` (fog, night) and `images/fog`, `images/night` below `root`."""
    for city, names in CITYSCAPES_NAMES.items():
        for number, name in enumerate(names):
            write_pair(root / "datasets/cityscapes", city, name, number)
            for domain in ("fog", "night"):
                generated = root / "images" / domain
                write_pair(generated, city, f"{domain}_{number}_{name}", number + 10, mask_suffix="_labelIds")
                write_png(
                    generated / "original/val" / city / f"{domain}_{number}_{name}_leftImg8bit.png", labelled(1)[0]
                )
    for cond, recording in (("fog", "GOPR0475"), ("night", "GOPR0351")):
        for split in ("train", "val"):
            for frame in range(2):
                image, label_ids = labelled(frame + 20)
                image[0, 0, 2] = len(cond) + 10 * len(split)  # no two images of a set are equal
                name = f"{recording}_frame_{frame:06d}_{split}"
                write_png(root / f"datasets/acdc/rgb_anon/{cond}/{split}/{recording}/{name}_rgb_anon.png", image)
                write_png(root / f"datasets/acdc/gt/{cond}/{split}/{recording}/{name}_gt_labelIds.png", label_ids)
                reference = f"rgb_anon/{cond}/{split}_ref/{recording}/{name}_ref_rgb_anon.png"
                write_png(root / "datasets/acdc" / reference, 255 - image)
    return root


class FakeSegmenter(torch.nn.Module):
    """Reads the class from the red channel and is wrong on a fraction of the pixels that depends on its name."""

    def __init__(self, name, wrong):
        super().__init__()
        self.name = name
        self.register_buffer("wrong", torch.tensor(wrong))

    def forward(self, images, size=None):
        classes = images[:, 0].long().clamp(max=18)
        # The green channel is noise: which pixels are wrong depends on the image alone.
        classes = torch.where(images[:, 1] < 256 * self.wrong, (classes + 1) % 19, classes)
        return torch.nn.functional.one_hot(classes, 19).permute(0, 3, 1, 2).float()


FAKE_MODELS = {"good": 0.1, "fair": 0.3, "poor": 0.6}


class SlowSegmenter(FakeSegmenter):
    """A network with a weight, by which its results are recognised; one-hot outputs would be refused."""

    def forward(self, images, size=None):
        time.sleep(float(os.environ.get("DELAY", 0)))
        return 5 * super().forward(images) - torch.linspace(0, 1, 19)[:, None, None]


def slow_segmenter(device):
    """A segmenter for subprocesses (`relis_world:slow_segmenter`); `DELAY` is its time per batch."""
    return SlowSegmenter("slow", 0.3)


def fake_segmenters():
    """A stand-in for the module `genval.segmenters`."""
    from genval.runtime.errors import GenValError

    module = types.ModuleType("genval.segmenters")
    module.__path__ = [str(REPO_ROOT / "genval/segmenters")]  # submodules are the real ones

    def specify(name):
        if name not in FAKE_MODELS:
            raise GenValError(f"Unknown segmenter {name!r}. Known: {', '.join(FAKE_MODELS)}.")

    def load_segmenter(name, device, precision="32-true", **options):
        if name == "nan":
            segmenter = FakeSegmenter(name, 0.0)
            segmenter.forward = lambda images, size=None: torch.full((len(images), 19, *size), float("nan"))
            return segmenter
        specify(name)
        return FakeSegmenter(name, FAKE_MODELS[name]).to(device)

    module.load_segmenter, module.specify = load_segmenter, specify
    return module


def load_script(name):
    """Import a script such as `relis/eval` as a module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), REPO_ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use_fewer_draws(monkeypatch, draws=40):
    """Use few bootstrap draws: a thousand would take most of the time of evaluating a tiny set."""
    from genval.metrics import reliability
    from genval.results import scenes as results

    monkeypatch.setattr(results, "pool", functools.partial(reliability.pool, draws=draws))


class Relis:
    """The scripts of relis/ on a tiny world, in this process."""

    def __init__(self, root, monkeypatch, capsys):
        self.root = root
        self.results = root / "results"
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.setitem(sys.modules, "genval.segmenters", fake_segmenters())
        use_fewer_draws(monkeypatch)

    def __call__(self, script, *flags):
        """Run a script; returns exit code, standard output and standard error."""
        path = script if "/" in script else f"relis/{script}"
        self.monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        self.capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(REPO_ROOT / f"{path}.py"), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        output = self.capsys.readouterr()
        return code, output.out, output.err

    def eval(self, dataset="Cityscapes", model="good", *flags):
        return self(
            "eval", "--trg_dataset", dataset, "--model_arch", model, "--root_exp_dir", self.results,
            "--datasets_dir", self.root / "datasets", "--generated_dir", self.root / "images",
            "--accelerator", "cpu", "--devices", "1", *flags,
        )  # fmt: skip

    def refused(self, *said, code_out_err):
        """Check that a call ended with one line on standard error that contains all of `said`."""
        code, _, err = code_out_err
        lines = [line for line in err.strip().splitlines() if line.startswith("error:")]
        assert code == 2, err
        assert len(lines) == 1 and "Traceback" not in err, err
        for text in said:
            assert str(text) in lines[0], lines[0]


@pytest.fixture(scope="session")
def relis_files(tmp_path_factory):
    """The tiny world, for copying only."""
    return make_world(tmp_path_factory.mktemp("relis"))


@pytest.fixture
def relis(relis_files, tmp_path, monkeypatch, capsys):
    shutil.copytree(relis_files, tmp_path, dirs_exist_ok=True)
    return Relis(tmp_path, monkeypatch, capsys)
