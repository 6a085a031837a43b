"""Train a small base, in Stable Diffusion's format, on your own images; ControlNets are then trained on it.

Reads:  --data_dir (labelled images) and --unlabelled (folders of images of other conditions); --autoencoder.
Writes: --output, a Stable Diffusion folder, with captions/{train,val}.jsonl for ControlNet/train.py and training.json;
        LOGS_DIR/RUN with the autoencoder, the latents, the state of the training, losses (CSV, TensorBoard) and
        image_log/. Run the same command again to resume.

    python ControlNet/train_base.py --place Germany --unlabelled night=images/night,fog=images/fog
    python ControlNet/train_base.py --model_size small --max_minutes 20 --autoencoder checkpoints/taesd
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.training.settings import BaseTrainingSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: BaseTrainingSettings) -> None:
    from genval.diffusion.training.base_run import prepare_base, train_base

    run = prepare_base(settings)
    for caption, count in run.groups().items():
        print(f"{count} images: {caption}")
    if settings.dry_run:
        print(
            f"Would train {run.recipe.steps} steps of {run.recipe.batch_size} on {len(run.images)} images on "
            f"{run.device}, then write {run.output}"
        )
        return
    scores = train_base(run)
    millions = (scores["unet_parameters"] + scores["text_parameters"]) / 1e6
    again = "" if scores["finished"] else f" of {run.recipe.steps}; run the same command again to resume"
    print(f"Captions for train.py: {run.output / 'captions/train.jsonl'}")
    print(f'Caption for style_transfer.py: --caption "{run.transfer_caption}"')
    print(f"Wrote a base of {millions:.1f} million parameters to {run.output} after {scores['steps']} steps{again}")


if __name__ == "__main__":
    cli.run(main, BaseTrainingSettings, __doc__)
