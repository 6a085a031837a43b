"""Training a ControlNet.

- `pair_sampler`: which pairs a batch holds, and how each is augmented;
- `data`: the batches, decoded for each step or encoded once;
- `module`: the training step;
- `log`: progress bar, checkpoints and the image log;
- `runs`: folders of runs, resuming, and the Lightning Trainer;
- `controlnet_run`: the whole run of `ControlNet/train.py`.
"""
