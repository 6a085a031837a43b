"""Published pipelines of diffusers as generators: instruction editors, and ControlNets of SD 3.5, FLUX and Qwen-Image.

They are used as published, for inference only. A model is loaded only as the class that its `model_index.json` or
`config.json` names, with all weights present; other classes are refused by name.

- `pipelines`: what is run and how; a new pipeline is one entry in `EDITORS` or `CONTROLNETS`;
- `loading`: a pipeline's folder, its networks, and their place on devices;
- `stage`: the generators of `ControlNet/style_transfer.py`.
"""
