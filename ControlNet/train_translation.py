"""Train a network that translates clear photos into other conditions, from unlabelled images of each condition.

Reads:  clear images (--data_dir) and folders of images of each domain (--unlabelled).
Writes: --output: translator.safetensors and config.json, log.csv (losses, speed), image_log/, settings.json and
        training.json. Run the same command again to resume; a resumed run ends with the same weights.

    python ControlNet/train_translation.py --unlabelled night=PATH,fog=PATH --max_minutes 12
    python ControlNet/style_transfer.py --generator translate --domain fog
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.translation.settings import TranslationTrainingSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: TranslationTrainingSettings) -> None:
    from genval.diffusion.translation.training import image_counts, plan_training, train_translation

    plan = plan_training(settings)
    if settings.dry_run:
        config = settings.config
        print(
            f"Would train at most {config.max_steps} steps of {config.batch_size} on {image_counts(settings, plan)} "
            f"images, then write {plan.output}"
        )
        return
    if plan.is_done:
        print(f"{plan.output} holds the result of this training. Give --overwrite to train again.")
        return
    training = train_translation(settings, plan)
    print(
        f"Trained {training.step} steps in {training.seconds / 60:.1f} minutes on {image_counts(settings, plan)} "
        f"images: wrote {plan.output}"
    )


if __name__ == "__main__":
    cli.run(main, TranslationTrainingSettings, __doc__)
