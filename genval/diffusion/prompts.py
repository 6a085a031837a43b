"""Prompts of a domain: the caption of a frame and the words of the domain."""

from __future__ import annotations

import dataclasses
import difflib
import re
import string
from collections.abc import Callable
from pathlib import Path

import path_dicts
from genval.datasets.layouts import suggestion
from genval.runtime.errors import GenValError
from genval.runtime.files import read_lines
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.seeds import item_seed

# From this similarity to a known domain on, a word is taken for a misspelling.
_MISSPELLING = 0.8


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain: the `name` of its folder, and the `texts` that describe it, of which each item takes one."""

    name: str
    texts: tuple[str, ...]

    def text(self, seed: int) -> str:
        """Return the text of an item, chosen by its seed."""
        return self.texts[item_seed(seed, "phrasing") % len(self.texts)]


def split_domains(text: str) -> list[str]:
    """Split `fog,night` into names. A text with a comma in which no part is a known domain stays whole.

    Raises:
        GenValError: only some parts are known domains.
    """
    parts = [part.strip() for part in text.split(",")]
    known = {domain.lower() for domain in path_dicts.DOMAINS}
    unknown = [part for part in parts if part.lower() not in known]
    if len(parts) == 1 or len(unknown) == len(parts):
        return [text]
    if unknown:
        raise GenValError(
            f"--domain {text}: {' and '.join(map(repr, unknown))} is not a known domain; a list can only have these: "
            f"{', '.join(path_dicts.DOMAINS)}. Give a text as --prompt."
        )
    return list(dict.fromkeys(part.lower() for part in parts))


def find_domain(name: str | None, free_text: str | None = None, prompt_file: str | None = None) -> Domain:
    """Return a domain of `path_dicts.DOMAINS`, or make one of free text: "thick smoke" becomes `thick-smoke`.

    Args:
        name: a known name, or any text that is not similar to a known name.
        free_text: a text that is used verbatim, instead of `name`.
        prompt_file: a text file with one phrasing per line, which replace the text of the domain.

    Raises:
        GenValError: a misspelled name, a text without letters, the name of a generator, or a prompt file that is
            missing or empty.
    """
    text = free_text if free_text is not None else str(name)
    known = {domain.lower(): domain for domain in path_dicts.DOMAINS}
    if free_text is None and text.lower() in known:
        domain = Domain(known[text.lower()], (path_dicts.DOMAINS[known[text.lower()]],))
    else:
        if free_text is None and difflib.get_close_matches(text.lower(), known, n=1, cutoff=_MISSPELLING):
            raise GenValError(
                f"Unknown domain {text!r}.{suggestion(text, path_dicts.DOMAINS)} Known: "
                f"{', '.join(path_dicts.DOMAINS)}. To use this text unchanged, give --prompt {text} in place of "
                "--domain."
            )
        folder = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
        if not folder:
            raise GenValError(f"--domain: expected a name or words such as 'thick smoke', found {text!r}.")
        if folder in path_dicts.GENERATORS:
            raise GenValError(f"--domain: {folder} is the name of a generator. Describe the domain in other words.")
        domain = Domain(folder, (f"in {text.strip()}",))
    return domain if prompt_file is None else Domain(domain.name, read_phrasings(resolve(prompt_file)))


def instructions(domain: Domain, prompt_file: str | None = None) -> Domain:
    """Return the instructions that turn a photo into a domain, in place of the words that describe the domain.

    They are the lines of a prompt file, or else the one of `path_dicts.INSTRUCTIONS`.

    Raises:
        GenValError: the prompt file is missing or empty.
    """
    if prompt_file is not None:
        return Domain(domain.name, read_phrasings(resolve(prompt_file)))
    general = tuple(path_dicts.INSTRUCTION.format(domain=text) for text in domain.texts)
    # A text of --prompt is used as it stands, even if it is the name of a domain.
    is_known = domain.texts == (path_dicts.DOMAINS.get(domain.name),)
    known = path_dicts.INSTRUCTIONS.get(domain.name) if is_known else None
    return Domain(domain.name, general if known is None else (known,))


def read_phrasings(file: Path) -> tuple[str, ...]:
    """Return the nonblank lines of a prompt file.

    Raises:
        GenValError: the file is missing, is not text, or has no lines.
    """
    try:
        lines = tuple(read_lines(file))
    except GenValError as error:
        raise GenValError(f"--prompt_file: cannot read {file} ({error})") from error
    if not lines:
        raise GenValError(f"--prompt_file: {file} is empty: expected one phrasing per line, such as: in thick smoke")
    return lines


def placeholders(template: str) -> set[str]:
    """Return the names of the placeholders in a template; {""} if its syntax is wrong."""
    try:
        return {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError:
        return {""}


def check_template(template: str) -> None:
    """Check that a prompt template is valid and contains the domain.

    Raises:
        GenValError: another placeholder than {caption} and {domain}, or no {domain}.
    """
    if not {"domain"} <= placeholders(template) <= {"caption", "domain"}:
        raise GenValError(
            f"--prompt_template: expected text with {{domain}}, and {{caption}} where captions are used; found "
            f"{template!r}. Without {{domain}} every domain would get the same prompt."
        )


def make_prompt(template: str, caption: str, domain: str) -> str:
    """Fill in a prompt template; with an empty caption, the separators around it are removed."""
    return template.format(caption=caption, domain=domain).strip(" ,")


def fit_prompt(template: str, caption: str, domain: str, fits: Callable[[str], bool]) -> str:
    """Fill in a prompt template; remove words from the end of the caption until the prompt `fits`.

    A text encoder truncates long prompts silently. The domain is usually at the end of the prompt, so a long caption
    would remove it.

    Raises:
        GenValError: the domain's words alone do not fit.
    """
    words = caption.split()
    while not fits(prompt := make_prompt(template, " ".join(words).rstrip(" ,"), domain)):
        if not words:
            raise GenValError(f"The base cannot read all of {domain!r}: it is too long. Give fewer words.")
        words.pop()
    return prompt


def find_captions(name: str | None, split: str, *folders: Path) -> Path:
    """Return the file of captions: `name`, or by default the file of a split in the published places.

    These are `training/{split}.jsonl` and `captions/captions_cityscapes.json`, in `folders`, in `ControlNet/` and in
    the repository's root.

    Raises:
        GenValError: the file does not exist.
    """
    names = [name] if name else [f"training/{split}.jsonl", "captions/captions_cityscapes.json"]
    roots = [*folders, REPO_ROOT / "ControlNet", REPO_ROOT]
    places = [resolve(name)] if name else []
    places += [root / one for one in names for root in roots]
    for place in places:
        if place.is_file():
            return place
    raise GenValError(
        f"No captions: expected {' or '.join(map(str, dict.fromkeys(places)))}. Put the published training/*.jsonl "
        "there, run: python ControlNet/clip_int.py --dataset cityscapes, or give --caption TEXT or --no_captions."
    )
