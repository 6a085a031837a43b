"""Fine-tune a segmenter on generated objects, to detect unknown ones, and on generated weather, to withstand it.

Reads:  --src_dataset, labelled clear streets; --outliers, images with objects; --generated, sets of generated weather;
        and the segmenter's checkpoint
Writes: --output, the segmenter in the format of its library, with recipe.json beside it; logs/{run}/ with checkpoints,
        losses, validation.json and settings.json

    python relis/finetune.py --segmenter SegFormer-B0 --outliers images/ood_objects --output checkpoints/objects
    python relis/finetune.py --segmenter SegFormer-B0 --generated fog,night --output checkpoints/weather

The script prints the specification of the new segmenter, which every --segmenters accepts.
"""

from __future__ import annotations

import sys

try:
    from genval.finetuning.settings import FinetuneSettings
    from genval.runtime import cli
    from genval.runtime.devices import start_others
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: FinetuneSettings) -> None:
    start_others(settings)
    from genval.finetuning.run import prepare_finetuning
    from genval.training.runs import run_training

    done = run_training(prepare_finetuning(settings))
    if done is not None:  # another process reports
        print(done)


if __name__ == "__main__":
    cli.run(main, FinetuneSettings, __doc__)
