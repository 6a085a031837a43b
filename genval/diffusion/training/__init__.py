"""Training a ControlNet or a LoRA.

- `pair_sampler`: which pairs a batch holds, and how each is augmented;
- `data`: the batches, decoded for each step or encoded once;
- `module`: the training step;
- `log`: progress bar, checkpoints and the image log;
- `runs`: folders of runs, resuming, the Lightning Trainer, and the run itself;
- `controlnet_run`, `lora_run`: the models and data of `ControlNet/train.py` and `ControlNet/train_lora.py`.
"""
