"""Train a LoRA of a Stable Diffusion model on unlabelled images of one condition, for style_transfer.py --lora.

Reads:  --base and --images, a folder of images; captions of them (--captions), or one --caption for all.
Writes: --output, the LoRA (pytorch_lora_weights.safetensors); logs/{run}/ with checkpoints
        (lightning_logs/version_0/checkpoints), image_log/, losses (CSV, TensorBoard) and settings.json.

    python ControlNet/train_lora.py --images datasets/my_fog --domain fog --cache_latents --compile
    python ControlNet/train_lora.py --images datasets/my_fog --domain fog --max_minutes 10 --run fog --resume auto
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.training.settings import LoraTrainingSettings
    from genval.runtime import cli
    from genval.runtime.devices import start_others
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: LoraTrainingSettings) -> None:
    start_others(settings)
    from genval.diffusion.training.lora_run import prepare_lora_training
    from genval.training.runs import run_training

    done = run_training(prepare_lora_training(settings))
    if done is not None:  # another process reports
        print(done)


if __name__ == "__main__":
    cli.run(main, LoraTrainingSettings, __doc__)
