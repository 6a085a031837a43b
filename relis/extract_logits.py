"""Logits of random pixels of each image, with the pixels' labels and places: what calibration is done on.

Reads:  datasets/ or images/style_transfer/, and the segmenters' checkpoints
Writes: {root_exp_dir}/{model_arch}/{trg_dataset}/{cond}/{scene}/logits.safetensors: {id}/logits (pixels, 19) before the
        softmax, {id}/labels uint8 (trainIds, 255 is void), {id}/indices int32 (row * width + column); and the
        statistics that relis/eval.py writes, from the same pass

    python relis/extract_logits.py --trg_dataset Cityscapes --model_arch SegFormer-B0

20,000 pixels an image, as published; --logit_pixels -1 keeps all. Run again, it goes on where it was.
"""

from __future__ import annotations

import argparse

from genval.evaluation.arguments import add_evaluation_arguments
from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/extract_logits")
    add_evaluation_arguments(parser)
    parser.set_defaults(save=["logits"], sample=-1)
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.evaluation.segmentation import evaluate_all

    evaluated = evaluate_all(args)
    if evaluated:
        files = [results.packed("logits") for one in evaluated for results in one.scenes.values()]
        print(f"wrote {len(files)} files: {files[0]}, ...")


if __name__ == "__main__":
    cli.run(main, parse_args)
