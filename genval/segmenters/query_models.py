"""Transformers models whose queries each have a mask and a class: MaskFormer, Mask2Former, OneFormer, DETR, EoMT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genval.segmenters.base import Segmenter

# Their masks are resized to the image before the sigmoid, those of the others after the sum.
_MASKS_FIRST = ("mask2former", "eomt", "eomt_dinov3", "videomt")
_QUERIES_AT_A_TIME = 10
_SMALLEST_SCORE = 1e-12


class QuerySegmenter(Segmenter):
    """A transformers model whose queries each have a mask and a distribution over classes, on images at native size.

    A class's score at a pixel is the sum over queries q of p(class | q) * sigmoid(mask of q), without "no object":
    what the image processors' `post_process_semantic_segmentation` computes. Such scores are not a distribution: their
    sum is not 1. The logits are their logarithms, so that the softmax is each class's share of the sum, and the
    most probable class is that of the scores. Calibration is measured on that share. Panoptic models are used in the
    same way: the instances of a class add up.

    Mask2Former's and EoMT's masks are resized to the image before the sigmoid, as their authors do (transformers
    resizes Mask2Former's to 384x384 there, the size its processor makes of every image); those of the others after the
    sum.

    Args:
        task: OneFormer's tokenised task, int64 (1, 77).
    """

    network: Any
    of_queries = True
    size_divisor = 32

    def __init__(self, *args: Any, task: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kind = self.network.config.model_type
        self.masks_first = kind in _MASKS_FIRST
        self.takes_videos = kind == "videomt"
        self.task = task

    def run(self, pixels: Tensor) -> Tensor:
        # An image is a video of one frame.
        inputs = {"pixel_values_videos": pixels[:, None]} if self.takes_videos else {"pixel_values": pixels}
        if self.task is not None:
            inputs["task_inputs"] = self.task.to(pixels.device).expand(len(pixels), -1)
        outputs = self.network(**inputs)
        # DETR has names of its own for the two outputs.
        classes = outputs.logits if "pred_masks" in outputs else outputs.class_queries_logits
        masks = outputs.pred_masks if "pred_masks" in outputs else outputs.masks_queries_logits
        class_scores, masks = classes.float().softmax(-1)[..., :-1], masks.float()
        size = pixels.shape[-2:]
        if self.masks_first:
            scores = torch.zeros((), device=masks.device)
            # All masks at the size of the image would be 100 floats per pixel.
            for start in range(0, masks.shape[1], _QUERIES_AT_A_TIME):
                some = slice(start, start + _QUERIES_AT_A_TIME)
                share = F.interpolate(masks[:, some], size, mode="bilinear", align_corners=False).sigmoid()
                scores = scores + torch.einsum("bqc,bqhw->bchw", class_scores[:, some], share)
        else:
            scores = torch.einsum("bqc,bqhw->bchw", class_scores, masks.sigmoid())
            scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
        return to_logits(scores)


def to_logits(scores: Tensor) -> Tensor:
    """The logarithms of scores 0 and above; that of 0 is a finite number."""
    return scores.clamp(min=_SMALLEST_SCORE).log()
