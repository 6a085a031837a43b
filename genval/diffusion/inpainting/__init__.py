"""Inpainting objects into street images, and refining them.

- `frames`: crops of a frame at the model's size, and pasting the inpainted crop back;
- `model`: loading, saving and running a Stable Diffusion inpainting model;
- `prompts`: the prompts of objects;
- `stages`: the resumable stages of `ood_objects/sd_inpaint.py` and `ood_objects/refine_gen_images.py`.
"""
