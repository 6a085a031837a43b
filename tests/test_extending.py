"""The components of docs/extending.md work as they are written there."""

import json
import textwrap

import numpy as np
import pytest
import torch

from genval.runtime.paths import REPO_ROOT


def blocks(page="docs/extending.md"):
    """Section: its first block of code."""
    page = (REPO_ROOT / page).read_text()
    found = {}
    for section in page.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
        found[section.splitlines()[0]] = textwrap.dedent("\n".join(lines)).strip()
    return found


@pytest.fixture
def add():
    """Run the block of a section; its entry in the registry is removed afterwards."""

    def run(section, registry):
        names = {}
        before = dict(registry)
        exec(compile(blocks()[section], section, "exec"), names)
        added = set(registry) - set(before)
        assert len(added) == 1
        undo.append((registry, added.pop()))
        return names

    undo = []
    yield run
    for registry, key in undo:
        del registry[key]


def test_a_family_of_segmenters(add, tmp_path):
    from genval.segmenters import load_segmenter
    from genval.segmenters.identity import model_identity
    from genval.segmenters.registry import PREFIXES

    add("Segmenter", PREFIXES)
    torch.save(torch.nn.Conv2d(3, 19, 1).state_dict(), tmp_path / "net.pth")
    segmenter = load_segmenter(f"tiny:{tmp_path / 'net.pth'}", "cpu")
    assert segmenter(torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)).shape == (2, 19, 8, 12)
    assert len(model_identity(segmenter)) == 16


def test_a_detector(add, tmp_path):
    from genval.grounding.detector import DETECTORS, load_detector

    add("Detector", DETECTORS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlvit"}))
    [[found]] = load_detector(str(tmp_path)).detect([None], [(30, 40)], "lion", 0.25, 0.25, 0.8)
    assert found.box == (0, 0, 40, 30) and found.phrase == "lion"


def test_a_model_that_segments_boxes(add):
    import inspect

    import transformers

    from genval.grounding.outliner import OUTLINERS

    add("Segment Anything", OUTLINERS)
    for name in OUTLINERS.values():
        inputs = inspect.signature(getattr(transformers, name).forward).parameters
        assert {"pixel_values", "input_boxes", "multimask_output"} <= set(inputs)


def test_a_captioner(add, tmp_path):
    from genval.captions.captioners import CAPTIONERS, load_captioner

    add("Captioner", CAPTIONERS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "git"}))
    captioner = load_captioner(str(tmp_path)).to("cpu")
    images = [np.full((4, 4, 3), value, np.uint8) for value in (200, 20)]
    assert captioner.caption_prepared(list(map(captioner.prepare, images))) == ["a street by day", "a street at night"]


def test_a_generator(add, tmp_path):
    """It generates a set, and a second run finds it finished."""
    from diffusion_world import HEIGHT, WIDTH, write_cityscapes

    from genval.datasets.reading import read_image
    from genval.diffusion.generators import GENERATORS, generate_domain
    from genval.diffusion.settings import StyleTransferSettings
    from genval.runtime.settings import DeviceSettings

    add("Generator", GENERATORS)
    settings = StyleTransferSettings(
        generator="darken",
        domain="night",
        num_samples=2,
        height=HEIGHT,
        width=WIDTH,
        data_dir=str(write_cityscapes(tmp_path / "cityscapes")),
        output_dir=str(tmp_path / "out"),
        device=DeviceSettings(accelerator="cpu"),
    )
    done = generate_domain(settings)
    assert (done.images, done.written) == (2, 2)
    for path in done.folder.glob("leftImg8bit/*/*/*.png"):
        original = read_image(done.folder / "original" / path.relative_to(done.folder / "leftImg8bit"))
        assert np.array_equal(read_image(path), original // 2)
    assert generate_domain(settings).written == 0


@pytest.mark.slow
def test_dinov3_with_a_linear_head(tmp_path):
    """The example of docs/models.md, on a small backbone."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    DINOv3ViTModel(DINOv3ViTConfig(**small, num_register_tokens=4)).save_pretrained(tmp_path)
    torch.save(torch.nn.Conv2d(32, 19, 1).state_dict(), tmp_path / "linear.pth")
    names = {}
    exec(compile(blocks("docs/models.md")["DINOv3 with a linear head"], "models.md", "exec"), names)
    network = names["Linear"](str(tmp_path), tmp_path / "linear.pth").eval()
    with torch.no_grad():
        logits = network(torch.randint(0, 256, (2, 3, 64, 100), dtype=torch.uint8))
    assert logits.shape == (2, 19, 4, 6) and logits.isfinite().all()
