"""The four modes, on models that are known by construction: a vector counts the words of a text."""

from dataclasses import fields, replace

import pytest
import torch

from genval.captions.interrogator import (
    Interrogator,
    InterrogatorConfig,
    PhraseLists,
    Prepared,
    read_phrase_lists,
)
from genval.runtime.errors import GenValError

WORDS = ("street", "photo", "drawing", "drone", "child", "map", "archive", "news", "cubism", "cars", "trees", "tram",
         "snow", "houses")  # fmt: skip
LISTS = PhraseLists(
    mediums=("photo", "drawing"),
    artists=("by drone", "by child"),
    trendings=("from map", "from archive"),
    movements=("news", "cubism"),
    flavors=("trees", "tram", "snow", "houses", "cars"),
)


class WordBlip:
    """Says "street" of everything."""

    def caption_prepared(self, inputs, max_tokens, batch_size):
        return ["street"] * len(inputs)


class WordClip:
    """Reads `limit` words at most."""

    def __init__(self, limit=99):
        self.limit = limit
        self.encoded = 0

    def encode_texts(self, texts):
        self.encoded += len(texts)
        counts = [[float(text.replace(",", " ").split().count(word)) for word in WORDS] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(counts) + 1e-6, dim=-1)

    encode_list = encode_texts

    def encode_prepared(self, inputs, batch_size):
        return torch.stack(inputs)

    def fits(self, text):
        return len(text.split()) <= self.limit


def image_vector(**weights):
    vector = torch.tensor([float(weights.get(word, 0)) for word in WORDS])
    return Prepared(torch.zeros(3, 1, 1), torch.nn.functional.normalize(vector, dim=0))


def described(mode, *images, clip=None, **config):
    interrogator = Interrogator(WordBlip(), clip or WordClip(), LISTS, InterrogatorConfig(mode, **config))
    return interrogator.describe(images)


STREET = image_vector(street=3, trees=2.5, cars=2, tram=0.1, photo=0.4, drone=0.3, map=0.2, news=0.15)


def test_caption_needs_no_clip():
    interrogator = Interrogator(WordBlip(), None, LISTS, InterrogatorConfig("caption"))
    (description,) = interrogator.describe([STREET])
    assert description.text == description.caption == "street" and description.similarity is None


def test_fast_adds_the_most_similar_phrases_of_all_lists_in_order():
    (description,) = described("fast", STREET, max_flavors=3)
    assert description.text == "street, trees, cars, photo"


def test_classic_has_the_best_of_each_list_and_three_flavours():
    (description,) = described("classic", STREET)
    assert description.text == "street, photo by drone, from map, news, trees, cars, tram"


def test_best_grows_while_it_helps_and_is_the_most_similar_of_all():
    best, fast, classic, caption = (
        described(mode, STREET)[0] if mode != "caption" else described("best", STREET, max_flavors=1)[0]
        for mode in ("best", "fast", "classic", "caption")
    )
    # The greedy chain adds trees, then cars, and nothing that is not in the image.
    assert best.text == "street, trees, cars"
    assert best.similarity > max(fast.similarity, classic.similarity, caption.similarity)


def test_best_is_what_trying_every_link_by_hand_gives():
    clip, image = WordClip(), STREET.clip
    text = "street"
    value = float(clip.encode_texts([text]) @ image)
    while True:
        longer = {flavor: float(clip.encode_texts([f"{text}, {flavor}"]) @ image) for flavor in LISTS.flavors}
        flavor = max(longer, key=lambda key: longer[key])
        if longer[flavor] <= value:
            break
        text, value = f"{text}, {flavor}", longer[flavor]
    (description,) = described("best", STREET)
    assert description.text == text and description.similarity == pytest.approx(value, abs=1e-5)


def test_images_of_a_batch_do_not_mix():
    others = [image_vector(street=1, snow=1), STREET, image_vector(tram=1), image_vector(street=1)]
    together = described("best", *others)
    assert together == [described("best", one)[0] for one in others]
    assert [one.text for one in together][3] == "street"


def test_limits_hold():
    (description,) = described("best", STREET, max_flavors=1)
    assert description.text == "street, trees"
    assert described("fast", STREET, clip=WordClip(limit=2))[0].text == "street, trees"
    assert described("best", STREET, clip=WordClip(limit=2))[0].text == "street, trees"
    few, many = WordClip(), WordClip()
    described("best", STREET, clip=few, candidates=1)
    described("best", STREET, clip=many, candidates=5)
    assert few.encoded < many.encoded


def test_bad_settings_are_refused():
    with pytest.raises(GenValError, match="Unknown mode 'quick'"):
        InterrogatorConfig("quick")
    with pytest.raises(GenValError, match="above 0"):
        InterrogatorConfig(max_flavors=0)
    with pytest.raises(GenValError, match="needs a CLIP"):
        Interrogator(WordBlip(), None, LISTS, InterrogatorConfig("fast"))


def test_phrase_lists_of_ones_own(tmp_path):
    ours = read_phrase_lists()
    assert all(len(getattr(ours, field.name)) >= 5 for field in fields(ours))
    assert all(artist.startswith("by ") for artist in ours.artists)
    (tmp_path / "mine.txt").write_text("moss\nmoss\nrust\n")
    assert read_phrase_lists(tmp_path / "mine.txt") == replace(ours, flavors=("moss", "rust"))
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(GenValError, match=r"none of mediums\.txt"):
        read_phrase_lists(folder)
    (folder / "artists.txt").write_text("Ada Painter\ninspired by Bo Sketcher\n")
    theirs = read_phrase_lists(folder)
    assert theirs.artists == ("by Ada Painter", "inspired by Bo Sketcher") and theirs.flavors == ours.flavors
    assert theirs.hash != ours.hash == read_phrase_lists().hash
