"""A filter that removes weather, time of day and noise words from captions and keeps the sentences grammatical."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from genval.runtime.errors import GenValError
from genval.runtime.files import read_lines

PHRASES = Path(__file__).parent / "phrases"
DEFAULT_FILTER = PHRASES / "filter.txt"

_ARTICLE = r"(?:an?|the|this|that|some|its|any)"
# Words of degree in front of a weather term.
_DEGREE = (
    r"(?:very|quite|rather|really|slightly|partly|mostly|extremely|light|heavy|heavily|thick|dense|deep|strong|bright|"
    r"dark|cold|hot|warm|late|early|beautiful|lots? of|a lot of|full of|bit of|layer of|blanket of|patch(?:es)? of)"
)
# Nouns that are removed with the weather term: a rainy DAY, cloudy SKIES.
_CARRIER = r"(?:days?|weather|conditions?|sk(?:y|ies)|season|time|hours?|light|lighting|evening|night|morning)"
_PLACE = r"(?:(?:in|on|over|across) the (?:background|sky|ground|distance|air|horizon))"
_PREPOSITION = (
    r"(?:in|on|at|by|during|under|underneath|beneath|through|with|amid|amidst|of|into|from|before|after|against|around|"
    r"while|when|as|because of|due to)"
)
# Participles that are removed with the preposition: COVERED in snow.
_STATE = (
    r"(?:(?:partially |completely |partly |fully )?(?:covered|filled|shrouded|surrounded|soaked|blanketed|hidden|"
    r"bathed|lit|illuminated|dusted|wrapped|taken|shown|seen|obscured))"
)
_THERE = r"(?:(?:and |while |as |when |because |but )?(?:it(?:'s| is| was)|there(?:'s| is| are| was| were))(?: also)?)"
# Words that end a noun phrase: a term in front of them is a noun, not an adjective.
_STOP = (
    r"(?:and|or|but|with|in|on|at|by|of|to|from|near|is|are|was|were|while|that|which|as|over|under|through|behind|"
    r"into)"
)


class CaptionFilter:
    """Removes words and phrases from captions, and the words that have no meaning without them.

    An adjective is removed alone ("a rainy street" becomes "a street"). A noun is removed with its article, its
    preposition and its words of degree ("cars in the heavy rain, trees" becomes "cars, trees"; "on a cloudy day" is
    removed as a whole).

    Args:
        phrases: the phrases to remove; case is ignored.

    Attributes:
        dropped: how often each phrase was removed so far.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        self.phrases = tuple(dict.fromkeys(phrase.lower() for phrase in phrases))
        self.dropped: Counter[str] = Counter()
        longest_first = sorted(self.phrases, key=lambda phrase: (-len(phrase), phrase))
        terms = "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in longest_first)
        self._pattern = re.compile(
            rf"(?P<opening>(?:\b{_THERE}\s+)?(?:\b{_STATE}\s+)?(?:\b(?:early|late)\s+)?(?:\b{_PREPOSITION}\s+)?)"
            rf"(?P<article>(?:\b{_ARTICLE}\s+)?)(?P<degree>(?:\b{_DEGREE}\s+)*)"
            rf"(?<![\w-])(?P<term>{terms})(?![\w-])"
            rf"(?:\s+{_CARRIER}\b)*(?:\s+{_PLACE}\b)?",
            re.IGNORECASE,
        )

    def __call__(self, caption: str) -> str:
        """Return the caption without the phrases; it may be empty."""
        if not self.phrases:
            return caption
        text = caption
        while (match := self._pattern.search(text)) is not None:
            self.dropped[" ".join(match["term"].lower().split())] += 1
            text = _without(text, match)
        return _tidied(text) if text != caption else caption


def read_phrases(path: str | Path) -> list[str]:
    """Return the lines of a text file, without blank lines and comments (`#`).

    Raises:
        GenValError: the file is missing, is not text, or has no lines.
    """
    phrases = [line for line in read_lines(path) if not line.startswith("#")]
    if not phrases:
        raise GenValError(f"{path} lists nothing: expected one word or phrase per line.")
    return phrases


def _without(text: str, match: re.Match[str]) -> str:
    before, after = text[: match.start()], text[match.end() :]
    following = re.match(r"\s+([\w'-]+)", after)
    if following and not re.fullmatch(_STOP, following[1], re.IGNORECASE) and not _is_verb(following[1]):
        # The term is an adjective: article and preposition belong to the word that follows.
        article = match["article"]
        if article.strip().lower() in ("a", "an"):
            article = "an " if re.match(r"[aeiou]", following[1], re.IGNORECASE) else "a "
        return f"{before}{match['opening']}{article}{after.lstrip()}"
    if joined := re.match(rf"\s*(?:and|or)\s+(?!{_ARTICLE}?\s*$)", after):
        # "with rain and cars": the words that follow replace the term.
        rest = after[joined.end() :]
        # "a rainy and busy street" keeps its article; in "a sunset and cars" the article is removed too.
        own = " of" in match["degree"] or re.match(rf"{_ARTICLE}\b|\w+s\b", rest, re.IGNORECASE)
        return f"{before}{match['opening']}{'' if own else match['article']}{rest}"
    return re.sub(r"(?:\s*\b(?:and|or|but)\s*|\s+)$", "", before, flags=re.IGNORECASE) + " " + after.lstrip()


def _is_verb(word: str) -> bool:
    return bool(re.fullmatch(r"\w+ing", word)) and word.lower() not in ("building", "parking", "crossing", "evening")


def _tidied(text: str) -> str:
    """Correct commas and spaces, and remove articles and prepositions without a noun."""
    dangling = rf"\s*\b(?:with|of|during|under|an?|the|{_STATE} (?:in|with|by)|and|or|but)\s*(?=,|\.|;|$)"
    while True:
        tidied = re.sub(r"\s+", " ", text).strip()
        tidied = re.sub(r"\s+([,.;])", r"\1", tidied)
        tidied = re.sub(dangling, "", tidied, flags=re.IGNORECASE)
        tidied = re.sub(r"(?:,\s*)+([,.;])", r"\1", tidied)
        tidied = re.sub(rf"(?:^|(?<=,))\s*(?:and|or|but)\s+(?={_PREPOSITION}\b)", " ", tidied, flags=re.IGNORECASE)
        tidied = re.sub(r"^[\s,.;]+|[\s,;]+$|^(?:and|or|but)\s+", "", tidied, flags=re.IGNORECASE)
        tidied = re.sub(r",(?=[^\s\d])", ", ", tidied)
        if tidied == text:
            return tidied
        text = tidied
