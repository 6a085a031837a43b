"""Sampling images from label masks and prompts.

- `generation`: the sampling loop, with retries of failed images and large images;
- `denoiser`: one step of the loop, a UNet with a ControlNet and guidance;
- `blocks`, `fused`: the blocks of its networks in PyTorch, and with kernels for NVIDIA GPUs;
- `compiling`: which networks are compiled;
- `windows`: overlapping windows of a large image;
- `micro_batches`: smaller batches when the device runs out of memory;
- `stage`: the base class of the resumable stages that generate images.
"""
