"""Training of the small checkpoints of the mini world.

- `stages`: the stages of `mini/train.py`; `settings`: its settings; `training`: the training loop they share;
- `autoencoder`, `diffusion`, `inpainting`: a small Stable Diffusion and its inpainting model;
- `segmentation`: the segmenters; `captioner`, `contrastive`: BLIP and CLIP; `detector`, `outliner`: GroundingDINO and
  Segment Anything;
- `data`, `object_crops`, `views`: the training images, and crops and augmentations of them.
"""
