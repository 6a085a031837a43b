"""A feature vector of each image: the backbone's last feature map, summed over space, divided by its maximum.

Reads:  datasets/ or images/style_transfer/, and the segmenters' checkpoints
Writes: {root_exp_dir}/{model_arch}/{trg_dataset}/{cond}/{scene}/features.safetensors: {id}/features (channels,); and
        the statistics that relis/eval.py writes, from the same pass

    python relis/extract_features.py --trg_dataset Cityscapes --model_arch SegFormer-B0

The images are run one at a time. Run again, it goes on where it was.
"""

from __future__ import annotations

import argparse

from genval.evaluation.arguments import add_evaluation_arguments
from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/extract_features")
    add_evaluation_arguments(parser)
    parser.set_defaults(save=["features"], sample=-1)
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.evaluation.segmentation import evaluate_all

    evaluated = evaluate_all(args)
    if evaluated:
        files = [results.packed("features") for one in evaluated for results in one.scenes.values()]
        print(f"wrote {len(files)} files: {files[0]}, ...")


if __name__ == "__main__":
    cli.run(main, parse_args)
