"""Save the logits of random pixels of each image, with the pixels' labels and positions, for calibration.

Reads:  datasets/ or images/style_transfer/, and the segmenters' checkpoints
Writes: {eval_dir}/{segmenter}/{trg_dataset}/{cond}/{scene}/logits.safetensors: {id}/logits (pixels, 19) before the
        softmax, {id}/labels uint8 (trainIds, 255 is void), {id}/indices int32 (row * width + column); and the
        statistics that relis/eval.py writes, from the same pass

    python relis/extract_logits.py --trg_dataset Cityscapes --segmenters SegFormer-B0

The default is 20,000 pixels per image, as published; --logit_pixels -1 saves all. Run the same command again to resume.
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import LIST_MODELS, LogitSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: LogitSettings) -> None:
    from genval.evaluation.segmentation import evaluate_all

    evaluated = evaluate_all(settings)
    if evaluated:
        files = [results.packed("logits") for one in evaluated for results in one.scenes.values()]
        print(f"wrote {len(files)} files: {files[0]}, ...")


if __name__ == "__main__":
    cli.run(main, LogitSettings, __doc__, LIST_MODELS)
