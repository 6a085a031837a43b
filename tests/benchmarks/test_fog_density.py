"""The comparison of generated fog with rendered fog of known density."""

import numpy as np

from benchmarks.fog_density import STRENGTHS, compare, contrasts, render_fog
from genval.report.schema import SeverityCurve, ValueWithInterval


def curve(slopes):
    miou = {
        name: [ValueWithInterval(70 - slope * strength, None, None) for strength in STRENGTHS]
        for name, slope in slopes.items()
    }
    return SeverityCurve(list(STRENGTHS), 2, ["road"], None, miou, {})


def test_rendered_fog_loses_contrast_with_its_density(tmp_path):
    render_fog(tmp_path / "fog", 2)
    contrast = contrasts(tmp_path / "fog")
    assert contrast.shape == (2, len(STRENGTHS)) and (np.diff(contrast, axis=1) < 0).all()
    rendered, generated = curve({"a": 10, "b": 20, "c": 40}), curve({"a": 5, "b": 12, "c": 18})
    text = compare(generated, rendered, {"generated": contrast, "rendered": contrast})
    assert "2 streets, 3 models" in text and "Kendall's tau 1.00" in text
    assert "100 % generated, 100 % rendered" in text
