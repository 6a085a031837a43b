"""Families of segmenters by name."""

import doctest

import path_dicts
from genval.report import families
from genval.report.families import CONVNEXT, CONVOLUTIONAL, OTHER, TRANSFORMER, family_of


def test_every_named_segmenter_has_a_family():
    assert doctest.testmod(families).failed == 0
    found = {model: family_of(model) for model in (*path_dicts.ZOO, *path_dicts.MINI_SEGMENTERS)}
    assert OTHER not in found.values()
    by_family = {family: sorted(name for name, of in found.items() if of == family) for family in set(found.values())}
    assert by_family[CONVNEXT] == ["ConvNext", "ConvNext-B-In1K", "ConvNext-B-In21K", "mini-upernet-convnext-hf"]
    transformers = {name for name in by_family[TRANSFORMER] if not name.startswith(("SegFormer", "SETR"))}
    assert transformers == {"Segmenter", "SwinLarge", "mini-segformer-hf", "mini-segformer-mit", "mini-upernet-swin"}
    assert len(by_family[CONVOLUTIONAL]) == len(found) - len(by_family[CONVNEXT]) - len(by_family[TRANSFORMER])
    assert family_of("onnx:my_model.onnx") == OTHER
