"""Latent diffusion conditioned on label masks: loading, training and sampling.

All sizes and constants are read from the models' configs, so Stable Diffusion 1.5 and much smaller models use the same
code. The settings of all scripts are in `settings`. `pairs` and `framing` read and crop images with their masks,
`prompts` composes prompts, and `style_transfer` is the resumable stage of `ControlNet/style_transfer.py`. Models,
training, sampling, inpainting and the original file formats have a sub-package each.
"""
