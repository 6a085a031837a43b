"""Fine-tuning of segmenters on generated objects and generated weather.

- `settings`: of `relis/finetune.py`;
- `losses`: the outlier losses and the scores that they are for;
- `outliers`: where objects come from, and what is pasted;
- `data`: the batches;
- `module`: the training step;
- `validation`: mIoU and OOD detection during the training;
- `saving`: the checkpoint in the format of its library, and its recipe;
- `run`: the whole run.
"""
