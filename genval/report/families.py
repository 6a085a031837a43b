"""Families of segmenters by their names: transformers, ConvNeXt and convolutional networks."""

from __future__ import annotations

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

    >>> [family_of(name) for name in ("SwinLarge", "ConvNext-B-In1K", "UpperNetR50", "hf:nvidia/segformer-b0")]
    ['transformer', 'ConvNeXt', 'convolutional', 'transformer']
    """
    name = model.lower()
    return next((family for family, parts in _PARTS.items() if any(part in name for part in parts)), OTHER)
