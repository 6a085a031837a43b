"""Families of segmenters by their names: transformers, ConvNeXt and convolutional networks."""

from __future__ import annotations

import itertools

TRANSFORMER, CONVNEXT, CONVOLUTIONAL, OTHER = "transformer", "ConvNeXt", "convolutional", "other"
FAMILIES = (TRANSFORMER, CONVNEXT, CONVOLUTIONAL, OTHER)
# Parts of names, in small letters. The first family with a part in the name is taken: UPerNet has backbones of each.
_PARTS = {
    CONVNEXT: ("convnext",),
    TRANSFORMER: ("segformer", "swin", "setr", "segmenter", "mask2former", "oneformer", "eomt", "dino", "beit", "-vit"),
    CONVOLUTIONAL: (
        *("resnet", "r18", "r50", "r101", "hrnet", "mobilenet", "bisenet", "icnet", "deeplab", "dlv3", "pspnet"),
        *("fpn", "fcn", "scnn", "unet", "ccnet", "gcnet", "apcnet", "ann-", "efficientnet"),
    ),
}


def family_of(model: str) -> str:
    """Return the family of a segmenter, by its name or specification; `OTHER` if these do not tell.

    Of a specification, the names of its files decide, or else the nearest folder that tells: a folder `segmenters` says
    nothing about what is in it.

    >>> [family_of(name) for name in ("SwinLarge", "ConvNext-B-In1K", "UpperNetR50", "hf:nvidia/segformer-b0")]
    ['transformer', 'ConvNeXt', 'convolutional', 'transformer']
    >>> family_of("mmseg:segmenters/fcn.py,segmenters/epoch_9.pth"), family_of("hf:segformer-b0/checkpoint-9")
    ('convolutional', 'transformer')
    """
    _, _, paths = model.lower().rpartition(":")
    names = [path.replace("\\", "/").split("/")[::-1] for path in paths.split(",")]
    for level in itertools.zip_longest(*names, fillvalue=""):
        text = " ".join(name for name in level if name != "segmenters")
        for family, parts in _PARTS.items():
            if any(part in text for part in parts):
                return family
    return OTHER
