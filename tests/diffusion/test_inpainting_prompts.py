import pytest

from genval.diffusion.inpainting.prompts import article, check_object_template, object_prompt
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT


def test_the_listed_objects_have_their_article():
    names = (REPO_ROOT / "ood_objects" / "objects.txt").read_text().splitlines()
    assert {name for name in names if article(name) == "an"} == {"armchair", "arcade machine", "elephant"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hour glass", "an"),
        ("heirloom", "an"),
        ("horse", "a"),
        ("unicorn", "a"),
        ("unicycle", "a"),
        ("uniform", "a"),
        ("umbrella", "an"),
        ("uncle", "an"),
        ("user manual", "a"),
        ("urn", "an"),
        ("one-wheeler", "a"),
        ("onion", "an"),
        ("owl", "an"),
        ("ewe", "a"),
        ("UFO", "a"),
        ("Elephant", "an"),
        ("eucalyptus", "a"),
        ("unimpressed cat", "an"),
        ("unidentified object", "an"),
        ("urinal", "a"),
        ("uranium barrel", "a"),
        ("onesie", "a"),
        ("SUV", "an"),
        ("LED lamp", "an"),
        ("x-ray machine", "an"),
        ("suv", "a"),
        ("Suv", "a"),
        ("GPU", "a"),
        ("狮子", "a"),
        ("", "a"),
    ],
)
def test_an_article_goes_by_the_sound(name, expected):
    assert article(name) == expected


def test_templates():
    assert object_prompt("A photo of {article} {object}", "elephant") == "A photo of an elephant"
    assert object_prompt("{object}", "lion") == "lion"
    for template in ("a photo", "{article}", "{object} {colour}", "{object", "{}"):
        with pytest.raises(GenValError, match="--prompt_template"):
            check_object_template(template)
    check_object_template("{object} on a street")
