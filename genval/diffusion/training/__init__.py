"""Training a ControlNet or a LoRA, or a base on one's own images.

- `settings`: of the scripts that train;
- `pair_sampler`: which pairs a batch holds, and how each is augmented;
- `data`: the batches, decoded for each step or encoded once;
- `module`: the training step;
- `log`: the image log;
- `controlnet_run`, `lora_run`: the models and data of `ControlNet/train.py` and `ControlNet/train_lora.py`;
- `loop`: the training loop of small models on one device, which the recipes of `mini/` share;
- `autoencoder`, `base_model`: a small autoencoder and a small Stable Diffusion;
- `own_images`: the images of a base, their captions and latents;
- `base_run`: the whole run of `ControlNet/train_base.py`.
"""
