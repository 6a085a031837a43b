"""Save a feature vector of each image: the backbone's last feature map, summed over space, divided by its maximum.

Reads:  datasets/ or images/style_transfer/, and the segmenters' checkpoints
Writes: {eval_dir}/{segmenter}/{trg_dataset}/{cond}/{scene}/features.safetensors: {id}/features (channels,); and
        the statistics that relis/eval.py writes, from the same pass

    python relis/extract_features.py --trg_dataset Cityscapes --segmenters SegFormer-B0

Images are processed one at a time. Run the same command again to resume.
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import LIST_MODELS, FeatureSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: FeatureSettings) -> None:
    from genval.evaluation.segmentation import evaluate_all

    evaluated = evaluate_all(settings)
    if evaluated:
        files = [results.packed("features") for one in evaluated for results in one.scenes.values()]
        print(f"wrote {len(files)} files: {files[0]}, ...")


if __name__ == "__main__":
    cli.run(main, FeatureSettings, __doc__, LIST_MODELS)
