"""Names that become paths stay in their folder."""

from pathlib import Path

import pytest

from genval.captions.captioning import filter_captions
from genval.captions.settings import CaptionSettings
from genval.datasets.layouts import find_layout
from genval.evaluation.scoring import find_set
from genval.evaluation.settings import ScoringSettings
from genval.results.scenes import pair
from genval.runtime.errors import GenValError
from genval.runtime.paths import inside, is_inside
from genval.training.runs import choose_run

OUTSIDE = ["../x", "a/../../x", "/x", "..", ".", "", "a//b", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_its_folder_is_refused(name):
    assert not is_inside(name)
    with pytest.raises(GenValError, match=r"--flag: expected a name of something in out"):
        inside("out", name, "--flag")


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a.b", "über", "a b"])
def test_a_name_inside_is_a_path(name):
    assert inside("out", name, "--flag") == Path("out") / name


@pytest.mark.parametrize("name", OUTSIDE[:3])
def test_flags_that_name_a_folder_stay_in_theirs(tmp_path, name):
    with pytest.raises(GenValError, match="--run"):
        choose_run(tmp_path, name, None)
    with pytest.raises(GenValError, match="--domain"):
        find_set(ScoringSettings(domain=name, generated_dir=str(tmp_path)))
    with pytest.raises(GenValError, match="--name"):
        filter_captions(CaptionSettings(from_captions="a.json", name=name, output_dir=str(tmp_path)))
    with pytest.raises(GenValError, match="--cond"):
        pair([name], ["all"])
    with pytest.raises(GenValError, match="Data set"):
        find_layout(f"Cityscapes_{name}")
