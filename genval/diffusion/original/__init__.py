"""Checkpoints in the original formats of Stable Diffusion and ControlNet.

- `keys`: names and shapes of the tensors in the original format and in diffusers;
- `reading`: reading such files;
- `writing`: writing such files.
"""
