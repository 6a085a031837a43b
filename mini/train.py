"""Train the small checkpoints of the mini world, or of any data set in the same layout.

The stages run in this order: `autoencoder` and `diffusion` (a Stable Diffusion of 10 M parameters, on captioned images
of all weathers, without masks), `controlnet` (ControlNet/tool_add_control.py and ControlNet/train.py, on clear scenes
and masks), `segmenters` (on clear scenes), `captioner` (a BLIP and a CLIP, on captioned images of all weathers),
`inpainting` (the Stable Diffusion again, on streets with objects), `detector` and `outliner` (a GroundingDINO and a
Segment Anything, on these streets). A stage whose output exists is skipped. Run the same command again to resume.

Reads:  DATA_DIR/training/diffusion.jsonl  {"image", "text"}, all weathers; masks in it help the captioner
        DATA_DIR/training/train.jsonl      {"image", "conditioning_image", "text"}, clear; val.jsonl the same
        DATA_DIR/training/objects.jsonl    {"image", "mask", "object", "box", "text", "clean"}
Writes: OUTPUT/autoencoder (an intermediate), OUTPUT/stable-diffusion, OUTPUT/controlnet, OUTPUT/segmenters,
        OUTPUT/captioner, OUTPUT/clip, OUTPUT/inpainting, OUTPUT/grounding-dino, OUTPUT/sam, OUTPUT/training.json
        (scores of every stage)

    python mini/render.py --num_train 16000 --num_val 400 --output_dir datasets/mini_train
    python mini/train.py --data_dir datasets/mini_train --output checkpoints/mini
"""

from __future__ import annotations

import sys

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from mini.recipe.settings import TrainSettings
from mini.recipe.stages import train_stages


def main(settings: TrainSettings) -> None:
    train_stages(settings)


if __name__ == "__main__":
    cli.run(main, TrainSettings, __doc__)
