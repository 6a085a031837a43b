"""Speed of detecting and segmenting objects: GroundingDINO Swin-T and SAM ViT-H of full size with random weights.

Reads:  nothing: weights and images are random
Writes: --output, JSON; prints a Markdown table

    python benchmarks/masking_speed.py --output results/masking_speed.json

A row is PRECISION:BATCH. `loop` rows prepare and process one image after the other, as the published code does (in
float32). The other rows are batches that threads prepare in the background, as ood_objects/get_masks.py does. Both
models run on every image: a box in its middle is segmented, whatever was detected. No files are read or written.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    import torch

# The inputs of the detector and of the outliner, and the height and width before resizing.
Prepared = tuple[np.ndarray, np.ndarray, tuple[int, ...]]
# The ids of these tokens of BERT are fixed in transformers.
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
VOCABULARY = 30522
VIT_H = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "mlp_dim": 5120,
    "global_attn_indexes": [7, 15, 23, 31],
}
TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "mlp_dim": 32,
    "global_attn_indexes": [],
}


@dataclass(frozen=True, kw_only=True)
class MaskingSpeedSettings:
    """Settings of benchmarks/masking_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/masking_speed"

    rows: tuple[str, ...] = flag(
        ("loop-32-true", "loop-bf16-true", "bf16-true:8", "bf16-true:16"),
        "loop-PRECISION or PRECISION:BATCH",
        type=comma_list,
    )
    images: int = flag(64, "images of the batched rows; loops take a quarter", type=positive_int)
    side: int = flag(384, "pixels of an image's side", type=positive_int)
    threads: int = flag(8, "that prepare images", type=positive_int)
    tiny: bool = flag(False, "small models and images, to try it out")
    accelerator: str = flag("cuda", "")
    output: str = flag("results/masking_speed.json", "")
    preset: str | None = None


def main(settings: MaskingSpeedSettings) -> None:
    import torch

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table

    plans = [parse_row(text) for text in settings.rows]
    device = torch.device(settings.accelerator)
    torch.manual_seed(0)
    detector, outliner, tokenizer = random_models(settings.tiny)
    images = list(
        np.random.default_rng(0).integers(0, 256, (settings.images, settings.side, settings.side, 3), np.uint8)
    )
    rows: list[dict[str, Any]] = []
    for text, (loop, precision, batch) in zip(settings.rows, plans, strict=True):
        shown = images[: max(1, len(images) // 4)] if loop else images
        models = place_models(detector, outliner, tokenizer, precision, device, settings.tiny)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [walk(*models, shown, batch, 0 if loop else settings.threads) for _ in range(2)][-1]
        gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        rows.append({"row": text, "ms an image": 1000 * seconds / len(shown), "GiB": gib})
        for name in ("loop-32-true", f"loop-{precision}"):
            known = [row["ms an image"] for row in rows if row["row"] == name]
            rows[-1][f"x {name}"] = known[0] / rows[-1]["ms an image"] if known else None
        print(rows[-1], flush=True)
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        write_json(resolve(settings.output), {"device": machine, "torch": torch.__version__, "rows": rows})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print(markdown_table(columns, [[row.get(name) for name in columns] for row in rows], digits=2))
    print(f"wrote {settings.output}")


def parse_row(text: str) -> tuple[bool, str, int]:
    """Parse a row: whether it is a loop, the precision and the batch size."""
    if text.startswith("loop-"):
        return True, text.removeprefix("loop-"), 1
    precision, _, batch = text.rpartition(":")
    if not precision or not batch.isdecimal() or int(batch) < 1:
        raise GenValError(f"--rows: expected loop-PRECISION or PRECISION:BATCH, such as bf16-true:8; found {text!r}.")
    return False, precision, int(batch)


def random_models(tiny: bool) -> tuple[Any, Any, Any]:
    """Return GroundingDINO, SAM and BERT's tokenizer, on the CPU."""
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        SamConfig,
        SamModel,
    )

    small: dict[str, Any] = {}
    if tiny:
        swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
        bert = {"model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1}
        small = {
            "backbone_config": swin | {"out_features": ["stage2", "stage3", "stage4"]},
            "text_config": bert | {"num_attention_heads": 2, "intermediate_size": 16},
            "num_queries": 20,
            "encoder_layers": 1,
            "decoder_layers": 2,
        }
    detector = GroundingDinoForObjectDetection(GroundingDinoConfig(**small))
    return detector, SamModel(SamConfig(vision_config=TINY_VIT if tiny else VIT_H)), random_tokenizer()


def random_tokenizer() -> Any:
    """Return BERT's tokenizer with its special tokens, and other words than the published ones."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={SPECIAL.get(number, f"[unused{number}]"): number for number in range(VOCABULARY)})


def place_models(
    detector: Any, outliner: Any, tokenizer: Any, precision: str, device: torch.device, tiny: bool
) -> tuple[Any, Any]:
    """Return copies of the models in a precision, on a device."""
    import copy

    from genval.grounding.detector import Detector
    from genval.grounding.outliner import Outliner

    size = (64, 96) if tiny else (800, 1333)
    return (
        Detector(copy.deepcopy(detector), tokenizer, *size, precision=precision).to(device),
        Outliner(copy.deepcopy(outliner), precision).to(device),
    )


def walk(detector: Any, outliner: Any, images: list[np.ndarray], size: int, threads: int) -> float:
    """Process the images in batches of `size`, without threads one after the other; return the seconds."""

    def prepare(image: np.ndarray) -> Prepared:
        return detector.prepare(image), outliner.prepare(image), image.shape[:2]

    start = time.perf_counter()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        prepared = iter(pool.map(prepare, images) if threads else map(prepare, images))
        while batch := list(itertools.islice(prepared, size)):
            see(detector, outliner, batch)
    return time.perf_counter() - start


def see(detector: Any, outliner: Any, batch: list[Prepared]) -> None:
    """Run both models on a batch of prepared images and copy their outputs to the CPU."""
    for_detector, for_outliner, sizes = zip(*batch, strict=True)
    detector.detect(for_detector, sizes, "lion", 0.999, 0.25, 0.8)
    middle = [(width / 4, height / 4, 3 * width / 4, 3 * height / 4) for height, width in sizes]
    outliner.outline(for_outliner, sizes, middle)


if __name__ == "__main__":
    cli.run(main, MaskingSpeedSettings, __doc__)
