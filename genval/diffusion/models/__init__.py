"""Stable Diffusion and ControlNet: loading, saving and the encoding of masks.

- `pipelines`: the parts of a Stable Diffusion model, loaded from a folder, a hub name or an original file;
- `controlnet`: making, loading and saving a ControlNet;
- `hints`: label masks as the input of a ControlNet;
- `lora`: adding a LoRA to the weights of a UNet;
- `messages`: silencing the libraries while weights are loaded, and wording of errors about keys.
"""
