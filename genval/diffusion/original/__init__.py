"""Checkpoints in the original formats of Stable Diffusion and ControlNet."""
