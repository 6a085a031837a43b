"""Training of the small checkpoints of the mini world.

- `stages`: the stages of `mini/train.py`; `settings`: its settings;
- `inpainting`: the inpainting model of the small Stable Diffusion (`genval.diffusion.training.base_model`);
- `segmentation`: the segmenters; `captioner`, `contrastive`: BLIP and CLIP; `detector`, `outliner`: GroundingDINO and
  Segment Anything;
- `data`, `object_crops`, `views`: the training images, and crops and augmentations of them.
"""
