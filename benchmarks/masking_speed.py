"""Speed of finding and outlining objects, GroundingDINO Swin-T and SAM ViT-H with random weights of true size.

Reads:  nothing: weights and pictures are random
Writes: --output, JSON; prints a Markdown table

    python benchmarks/masking_speed.py --output results/masking_speed.json

A row is PRECISION:BATCH. `loop` rows take one picture after the other, preparation and all, as the published code does
(in float32); the others are batches, prepared by threads meanwhile, as ood_objects/get_masks.py does. Every picture
gets both models: a box in its middle is outlined, whatever was detected. Files are neither read nor written.
"""

from __future__ import annotations

import argparse
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.runtime.cli import comma_list, parse, positive_int, run, script_parser
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

if TYPE_CHECKING:
    import torch

# For the detector, for the outliner, and height and width before.
Prepared = tuple[np.ndarray, np.ndarray, tuple[int, ...]]
# transformers knows these tokens of BERT's by their numbers.
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


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "benchmarks/masking_speed")
    rows = "loop-32-true,loop-bf16-true,bf16-true:8,bf16-true:16"
    parser.add_argument("--rows", type=comma_list, default=rows, help="loop-PRECISION or PRECISION:BATCH")
    parser.add_argument("--pictures", type=positive_int, default=64, help="of the batched rows; loops take a quarter")
    parser.add_argument("--side", type=positive_int, default=384, help="pixels of a picture's side")
    parser.add_argument("--threads", type=positive_int, default=8, help="that prepare pictures")
    parser.add_argument("--tiny", action="store_true", help="small models and pictures, to try it out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", default="results/masking_speed.json")
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    import torch

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table

    plans = [parse_row(text) for text in args.rows]
    device = torch.device(args.device)
    torch.manual_seed(0)
    detector, outliner, tokenizer = random_models(args.tiny)
    pictures = list(np.random.default_rng(0).integers(0, 256, (args.pictures, args.side, args.side, 3), np.uint8))
    rows: list[dict[str, Any]] = []
    for text, (loop, precision, batch) in zip(args.rows, plans, strict=True):
        shown = pictures[: max(1, len(pictures) // 4)] if loop else pictures
        models = place_models(detector, outliner, tokenizer, precision, device, args.tiny)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [walk(*models, shown, batch, 0 if loop else args.threads) for _ in range(2)][-1]
        gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        rows.append({"row": text, "ms a picture": 1000 * seconds / len(shown), "GiB": gib})
        for name in ("loop-32-true", f"loop-{precision}"):
            known = [row["ms a picture"] for row in rows if row["row"] == name]
            rows[-1][f"x {name}"] = known[0] / rows[-1]["ms a picture"] if known else None
        print(rows[-1], flush=True)
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        write_json(resolve(args.output), {"device": machine, "torch": torch.__version__, "rows": rows})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print(markdown_table(columns, [[row.get(name) for name in columns] for row in rows], digits=2))
    print(f"wrote {args.output}")


def parse_row(text: str) -> tuple[bool, str, int]:
    """Whether it is a loop, the precision and the batch size."""
    if text.startswith("loop-"):
        return True, text.removeprefix("loop-"), 1
    precision, _, batch = text.rpartition(":")
    if not precision or not batch.isdecimal() or int(batch) < 1:
        raise GenValError(f"--rows: expected loop-PRECISION or PRECISION:BATCH, such as bf16-true:8; found {text!r}.")
    return False, precision, int(batch)


def random_models(tiny: bool) -> tuple[Any, Any, Any]:
    """GroundingDINO, SAM and BERT's tokenizer, on the CPU."""
    from transformers import (
        BertTokenizer,
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
    vocabulary = {SPECIAL.get(number, f"[unused{number}]"): number for number in range(VOCABULARY)}
    detector = GroundingDinoForObjectDetection(GroundingDinoConfig(**small))
    return detector, SamModel(SamConfig(vision_config=TINY_VIT if tiny else VIT_H)), BertTokenizer(vocab=vocabulary)


def place_models(
    detector: Any, outliner: Any, tokenizer: Any, precision: str, device: torch.device, tiny: bool
) -> tuple[Any, Any]:
    """Copies of the models in a precision, on a device."""
    import copy

    from genval.grounding.detector import Detector
    from genval.grounding.outliner import Outliner

    size = (64, 96) if tiny else (800, 1333)
    return (
        Detector(copy.deepcopy(detector), tokenizer, *size, precision=precision).to(device),
        Outliner(copy.deepcopy(outliner), precision).to(device),
    )


def walk(detector: Any, outliner: Any, pictures: list[np.ndarray], size: int, threads: int) -> float:
    """Go through the pictures in batches of `size`; without threads they are prepared in between. Returns seconds."""

    def prepare(picture: np.ndarray) -> Prepared:
        return detector.prepare(picture), outliner.prepare(picture), picture.shape[:2]

    start = time.perf_counter()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        prepared = iter(pool.map(prepare, pictures) if threads else map(prepare, pictures))
        while batch := list(itertools.islice(prepared, size)):
            see(detector, outliner, batch)
    return time.perf_counter() - start


def see(detector: Any, outliner: Any, batch: list[Prepared]) -> None:
    """Both models on a batch of prepared pictures; their results are on the CPU afterwards."""
    for_detector, for_outliner, sizes = zip(*batch, strict=True)
    detector.detect(for_detector, sizes, "lion", 0.999, 0.25, 0.8)
    middle = [(width / 4, height / 4, 3 * width / 4, 3 * height / 4) for height, width in sizes]
    outliner.outline(for_outliner, sizes, middle)


if __name__ == "__main__":
    run(main, parse_args)
