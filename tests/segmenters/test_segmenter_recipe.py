"""The recipe beside a checkpoint, and which images it forbids to test on."""

import json

import pytest

from genval.datasets.items import Item
from genval.evaluation.bravo import BravoImage
from genval.evaluation.unlabelled import UnlabelledImage
from genval.runtime.errors import GenValError
from genval.segmenters.recipe import MADE_BY, find_recipe, frame_ids, was_trained_on


def write_recipe(folder, **content):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps({"made_by": MADE_BY, **content}))
    (folder / "model.pth").write_bytes(b"weights")
    return folder / "model.pth"


def item(folder, name, content):
    path = folder / f"{name}.png"
    path.write_bytes(content)
    return Item(name, path, path, "clean", "city")


def test_images_of_the_same_frame_or_the_same_bytes_were_trained_on(tmp_path):
    marked = item(tmp_path, "other", b"pixels")
    from genval.artifacts.fingerprint import current_mark

    seen = {"frames": ["aachen_000000_000019"], "marks": [current_mark(marked.image)]}
    recipe = find_recipe(write_recipe(tmp_path / "new", trained_on=seen))
    assert recipe == find_recipe(tmp_path / "new")
    assert was_trained_on(recipe, marked)
    assert was_trained_on(recipe, item(tmp_path, "aachen_000000_000019", b"a"))
    assert was_trained_on(recipe, item(tmp_path, "fog_12_aachen_000000_000019", b"b"))
    assert not was_trained_on(recipe, item(tmp_path, "aachen_000001_000019", b"c"))
    # The domain's name and number may come twice, but an id that only ends alike is another frame.
    assert was_trained_on(recipe, item(tmp_path, "thick-smoke_7_fog_12_aachen_000000_000019", b"e"))
    assert not was_trained_on(recipe, item(tmp_path, "night_aachen_000000_000019", b"f"))
    assert not was_trained_on(recipe, item(tmp_path, "fog_012_aachen_000000_000019", b"g"))
    # Images without masks, and those of the BRAVO challenge.
    assert was_trained_on(recipe, UnlabelledImage("unlabelled", marked.image))
    generated = item(tmp_path, "fog_0_aachen_000000_000019_leftImg8bit", b"h").image
    assert was_trained_on(recipe, UnlabelledImage(f"val_aachen_{generated.stem}", generated))
    flared = item(tmp_path, "a", b"d").image
    assert was_trained_on(recipe, BravoImage("synflare", flared, "bravo_synflare/aachen_000000_000019_leftImg8bit"))
    assert not was_trained_on(recipe, BravoImage("synflare", flared, "bravo_synflare/aachen_000001_000019_leftImg8bit"))


def test_the_id_of_a_real_frame_is_not_cut():
    # That of an image whose generator keeps the names of the frames, too.
    assert frame_ids("aachen_000000_000019") == {"aachen_000000_000019"}


def test_only_a_complete_recipe_of_the_script_is_read(tmp_path):
    assert find_recipe(None) is None and find_recipe(tmp_path / "model.pth") is None
    file = write_recipe(tmp_path / "other", made_by="another tool")
    assert find_recipe(file) is None
    file = write_recipe(tmp_path / "new")
    with pytest.raises(GenValError, match=r"recipe.json, trained_on: .*Fine-tune the segmenter again"):
        find_recipe(file)
