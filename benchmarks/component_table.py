"""Table of components that run: segmenters, detectors, Segment Anything, captioners, all with random weights.

Reads:  nothing: weights and images are random
Writes: --output, JSON; prints a Markdown table, and the components that are refused with the errors

    python benchmarks/component_table.py
    python benchmarks/component_table.py --size full --accelerator cuda --precision bf16-true

`tiny` writes each model to a folder as transformers saves it, and loads it as the scripts do. `full` makes it on the
device with the published dimensions (benchmarks/components), and measures seconds per image and the peak of memory.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    import torch

# What is done to one image, again and again.
Run = Callable[[], Any]

# Components that are refused, by slot: a model type of transformers.
REFUSED = {
    "segmenters": ("rf_detr", "clipseg", "detr_of_boxes"),
    "detectors": ("owlvit", "omdet-turbo"),
    "outliners": ("edgetam", "sam3"),
    "text_masks": ("sam3_tracker",),
    "captioners": ("segformer",),
}
CHECKED = {
    "segmenters": "scores of transformers (tests/segmenters/test_model_classes.py, test_query_models.py)",
    "detectors": "boxes of transformers (tests/grounding/test_components.py)",
    "outliners": "masks of transformers (tests/grounding/test_components.py, test_outliner.py)",
    "text_masks": "masks of transformers (tests/grounding/test_components.py)",
    "captioners": "text of transformers (tests/captions/test_chat.py)",
}


@dataclass(frozen=True, kw_only=True)
class ComponentSettings:
    """Settings of benchmarks/component_table.py."""

    SCRIPT: ClassVar[str] = "benchmarks/component_table"

    slots: tuple[str, ...] = flag(tuple(CHECKED), "", type=comma_list)
    components: tuple[str, ...] | None = flag(None, "only these, by the names in the table", type=comma_list)
    size: str = flag("tiny", "", choices=("tiny", "full"))
    repeats: int = flag(3, "timed runs after the first one", type=positive_int)
    precision: str = flag("32-true", "one of Lightning's")
    accelerator: str = flag("cpu", "")
    output: str = flag("results/component_table.json", "")
    preset: str | None = None

    def __post_init__(self) -> None:
        unknown = [slot for slot in self.slots if slot not in CHECKED]
        if unknown:
            raise GenValError(f"--slots: expected some of {', '.join(CHECKED)}; found {unknown[0]!r}.")


def main(settings: ComponentSettings) -> None:
    import torch
    import transformers

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = torch.device(settings.accelerator)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    made = {"device": machine, "torch": torch.__version__, "transformers": transformers.__version__}
    rows: list[dict[str, Any]] = []
    for slot in settings.slots:
        for name in COMPONENTS[slot]():
            if settings.components is None or name in settings.components:
                row = {"slot": slot, "component": name, **measure(slot, name, settings, device)}
                rows.append(row | {"checked by": CHECKED[slot]} if settings.size == "tiny" else row)
                print(row, flush=True)
                write_json(resolve(settings.output), {**made, "size": settings.size, "rows": rows})
    refused = [row for slot in settings.slots for row in refusals(slot)]
    write_json(resolve(settings.output), {**made, "size": settings.size, "rows": rows, "refused": refused})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print(markdown_table(columns, [[row.get(name) for name in columns] for row in rows], digits=3))
    print(markdown_table(["slot", "refused", "error"], [list(row.values()) for row in refused]))
    print(f"wrote {settings.output}")


def measure(slot: str, name: str, settings: ComponentSettings, device: torch.device) -> dict[str, Any]:
    """Make a component and run it; return whether it runs, or the error, and what it takes."""
    import gc

    import torch

    cuda = device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            if settings.size == "tiny":
                run, source = load_tiny(slot, name, Path(folder), settings.precision, device), "small"
            else:
                run, source = make_full(slot, name, settings.precision, device)
            run()
            if cuda:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            for _ in range(settings.repeats):
                run()
            if cuda:
                torch.cuda.synchronize(device)
            seconds = (time.perf_counter() - start) / settings.repeats
    except Exception as error:  # the table says what does not run, whatever the reason is
        return {"runs": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    gib = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None
    return {"runs": True, "dimensions": source, "s per image": seconds, "GiB": gib}


def load_tiny(slot: str, name: str, folder: Path, precision: str, device: torch.device) -> Run:
    """Write a small model, load it as the scripts do, and return a function that processes an image."""
    from components import captioners, masks, segmenters

    writers = {"segmenters": segmenters.write_tiny, "captioners": captioners.write_tiny}
    writers.get(slot, masks.write_tiny)(name, folder)
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    return runner(slot, load(slot, str(folder), precision, device), image)


def load(slot: str, place: str, precision: str, device: torch.device) -> Any:
    """Load a component as the scripts do."""
    if slot == "segmenters":
        from genval.segmenters import load_segmenter

        return load_segmenter(f"hf:{place}", device, precision)
    if slot == "detectors":
        from genval.grounding.detector import load_detector

        return load_detector(place, precision=precision).to(device)
    if slot == "outliners":
        from genval.grounding.outliner import load_outliner

        return load_outliner(place, precision).to(device)
    if slot == "text_masks":
        from genval.grounding.text_masks import load_text_masker

        return load_text_masker(place, precision).to(device)
    from genval.captions.captioners import load_captioner

    return load_captioner(place, precision=precision).to(device)


def runner(slot: str, component: Any, image: np.ndarray) -> Run:
    """Return a function that processes one image."""
    import torch

    if slot == "segmenters":
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(component.mean.device)
        # Without the check of values: random weights may give the same number everywhere.
        return lambda: component.infer(component.prepare(pixels)).float().sum().item()
    height, width = image.shape[:2]
    if slot == "outliners":
        box = (width / 4, height / 4, 3 * width / 4, 3 * height / 4)
        return lambda: component.outline([component.prepare(image)], [(height, width)], [box])
    if slot == "captioners":
        return lambda: component.caption_prepared([component.prepare(image)], max_tokens=32)
    return lambda: component.detect([component.prepare(image)], [(height, width)], "lion", 0.25, 0.25, 0.8)


def make_full(slot: str, name: str, precision: str, device: torch.device) -> tuple[Run, str]:
    """Make a component of published dimensions with random weights on the device.

    Returns:
        A function that processes one image: 1024x2048 for segmenters and captioners, 512x512 for the others, which see
        the crop around an object; and the source of the dimensions.
    """
    from components import captioners, masks, segmenters

    rng = np.random.default_rng(0)
    large, crop = (rng.integers(0, 256, (*size, 3), np.uint8) for size in ((1024, 2048), (512, 512)))
    if slot == "segmenters":
        from genval.segmenters.processor import Processor
        from genval.segmenters.transformers_models import wrap

        entries, source = segmenters.FULL[name]
        with on_device(device, precision):
            network = segmenters.find_class(name)(segmenters.make_config(name, entries))
        network.to(device)  # `torch.Tensor(...)` of some classes is made on the CPU whatever the device is
        if hasattr(network, "attn_mask_probs"):
            network.attn_mask_probs.zero_()  # as at the end of training
        size = {"shortest_edge": 1024} if name.startswith("eomt") else None
        processor = Processor([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False, size)
        task = segmenters.random_task(device) if name == "oneformer" else None
        return runner(slot, wrap(name, network, processor, precision, task=task), large), source
    if slot == "captioners":
        from genval.captions.chat import ChatCaptioner

        with on_device(device, precision):
            model, text_processor = captioners.MAKERS[name](True)
        captioner = ChatCaptioner(name, model, text_processor, precision=precision).to(device)
        return runner(slot, captioner, large), captioners.FULL[name][1]
    entries, source = masks.FULL[name]
    with on_device(device, precision if slot != "detectors" or name.startswith("Owl") else "32-true"):
        model = masks.make_model(name, entries)
    return runner(slot, masks.wrap(name, model, precision).to(device), crop), source


@contextmanager
def on_device(device: torch.device, precision: str) -> Iterator[None]:
    """Make modules on a device, in the precision of their weights."""
    import torch

    from genval.runtime.precision import weights_dtype

    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(weights_dtype(precision))
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def refusals(slot: str) -> list[dict[str, str]]:
    """Return the errors for folders with a config of a refused type."""
    import torch

    rows = []
    for kind in REFUSED[slot]:
        with tempfile.TemporaryDirectory() as folder:
            config = {"model_type": kind}
            if kind == "detr_of_boxes":
                config = {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}
            Path(folder, "config.json").write_text(json.dumps(config))
            try:
                load(slot, folder, "32-true", torch.device("cpu"))
            except GenValError as error:
                rows.append({"slot": slot, "refused": kind, "error": str(error).replace(folder, "FOLDER")})
            else:
                raise AssertionError(f"{slot}: {kind} is not refused")
    return rows


def _segmenter_types() -> list[str]:
    from components.segmenters import known_types

    return known_types()


def _captioner_classes() -> list[str]:
    from components.captioners import MAKERS

    return list(MAKERS)


def _mask_classes(*ends: str) -> Callable[[], list[str]]:
    def find() -> list[str]:
        from components.masks import TINY

        return [name for name in TINY if name.endswith(ends)]

    return find


COMPONENTS: dict[str, Callable[[], list[str]]] = {
    "segmenters": _segmenter_types,
    "detectors": _mask_classes("ObjectDetection"),
    "outliners": _mask_classes("SamModel", "SamHQModel", "Sam2Model", "TrackerModel"),
    "text_masks": _mask_classes("Sam3Model", "Sam3LiteTextModel"),
    "captioners": _captioner_classes,
}


if __name__ == "__main__":
    cli.run(main, ComponentSettings, __doc__)
