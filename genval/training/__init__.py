"""The parts of a training run that generators and segmenters share.

- `settings`: of the optimisation;
- `module`: optimiser, learning rate, clipped gradients and averaged weights;
- `batches`: the order of the items, and loading in advance;
- `interruption`: Ctrl-C and SIGTERM;
- `callbacks`: progress bar and checkpoints;
- `runs`: folders of runs, resuming, the Lightning Trainer, and the run itself.
"""
