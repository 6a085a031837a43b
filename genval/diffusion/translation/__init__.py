"""Unpaired image translation: a network that changes the condition of a real photo and keeps its content.

- `settings`: the settings of `ControlNet/train_translation.py`;
- `network`: translator, discriminator and patch heads, and the files of a translator;
- `data`: the images on the device, and random crops of them;
- `training`: the training loop and its state;
- `stage`: the generator `translate` of `ControlNet/style_transfer.py`.
"""
