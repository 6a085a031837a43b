"""Train a ControlNet to generate street scenes from label masks; the Stable Diffusion model is frozen.

Reads:  --base and --controlnet (made by ControlNet/tool_add_control.py), captioned pairs (--jsonl, --data_dir).
Writes: --output, the trained ControlNet (diffusers folder); logs/{run}/ with checkpoints
        (lightning_logs/version_0/checkpoints), image_log/, losses (CSV, TensorBoard), settings.json and, with
        --val_segmenter, best/, the ControlNet with the highest mask agreement.

    python ControlNet/train.py --compile --precompute datasets/cityscapes_encoded
    python ControlNet/train.py --preset published
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.training.settings import ControlNetTrainingSettings
    from genval.runtime import cli
    from genval.runtime.devices import start_others
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: ControlNetTrainingSettings) -> None:
    start_others(settings)
    from genval.diffusion.training.controlnet_run import prepare_training
    from genval.training.runs import run_training

    done = run_training(prepare_training(settings))
    if done is not None:  # another process reports
        print(done)


if __name__ == "__main__":
    cli.run(main, ControlNetTrainingSettings, __doc__)
