"""The parts of Stable Diffusion and the ControlNet: loading, conversion of label hints, LoRA."""
