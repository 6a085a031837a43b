"""Prompts of objects, with the right article."""

from __future__ import annotations

import re

from genval.diffusion.prompts import placeholders
from genval.runtime.errors import GenValError

# Also abbreviations whose first letter is pronounced with a vowel: SUV, X-ray.
_VOWEL = re.compile(r"(?i:[aeiou]|hour|hono|heir|honest|x-?ray)|[FHLMNRSX](?=[A-Z0-9]+\b)")
# Words that begin with a vowel letter but are pronounced like "you" or "won".
_CONSONANT = re.compile(r"uni(?!n|m|dent)|u[bst][aeiou]|uri|ura|ukulele|ufo|eu|ewe|one(?:sie)?\b|once", re.IGNORECASE)


def article(name: str) -> str:
    """Return "a" or "an", by the first sound of a name.

    >>> [article(name) for name in ("lion", "elephant", "hourglass", "unicorn", "umbrella")]
    ['a', 'an', 'an', 'a', 'an']
    """
    return "an" if _VOWEL.match(name) and not _CONSONANT.match(name) else "a"


def check_object_template(template: str) -> None:
    """Check that a prompt template is valid and contains the object.

    Raises:
        GenValError: another placeholder than {article} and {object}, or no {object}.
    """
    if not {"object"} <= placeholders(template) <= {"article", "object"}:
        raise GenValError(
            f"--prompt_template: expected text with {{object}}, and {{article}} for 'a' or 'an'; found {template!r}. "
            "Without {object} every object would get the same prompt."
        )


def object_prompt(template: str, name: str) -> str:
    """Return the prompt of an object, such as "A photo of an elephant"."""
    return template.format(article=article(name), object=name)
