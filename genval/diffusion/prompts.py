"""What a prompt is made of: a frame's caption, and the words of a domain."""

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

# A word this close to a known domain is taken for a slip of the finger.
_SLIP = 0.8


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain's folder `name` and the `texts` its prompts end in, of which each item takes one."""

    name: str
    texts: tuple[str, ...]

    def text(self, seed: int) -> str:
        """The phrasing for an item, by the item's seed."""
        return self.texts[item_seed(seed, "phrasing") % len(self.texts)]


def find_domain(name: str | None, free_text: str | None = None, prompt_file: str | None = None) -> Domain:
    """A domain by its name in `path_dicts.DOMAINS`, or one made of free text: "thick smoke" makes `thick-smoke`.

    Args:
        name: a known name, or any words; one word that is almost a known name is refused.
        free_text: words that are taken as they are, in the name's place.
        prompt_file: a text file with a phrasing a line; they replace the domain's own text.

    Raises:
        GenValError: a slip in a known name, a text without a letter, or a file that is missing or empty.
    """
    text = free_text if free_text is not None else str(name)
    known = {domain.lower(): domain for domain in path_dicts.DOMAINS}
    if free_text is None and text.lower() in known:
        domain = Domain(known[text.lower()], (path_dicts.DOMAINS[known[text.lower()]],))
    else:
        if free_text is None and difflib.get_close_matches(text.lower(), known, n=1, cutoff=_SLIP):
            raise GenValError(
                f"Unknown domain {text!r}.{suggestion(text, path_dicts.DOMAINS)} Known: "
                f"{', '.join(path_dicts.DOMAINS)}. If it is meant as it stands, give --prompt {text} in place of "
                "--domain."
            )
        folder = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
        if not folder:
            raise GenValError(f"--domain: expected a name or words such as 'thick smoke', found {text!r}.")
        domain = Domain(folder, (f"in {text.strip()}",))
    return domain if prompt_file is None else Domain(domain.name, read_phrasings(resolve(prompt_file)))


def read_phrasings(file: Path) -> tuple[str, ...]:
    """The lines of a prompt file, blank ones left out.

    Raises:
        GenValError: the file is missing, is not text, or has no line.
    """
    try:
        lines = tuple(read_lines(file))
    except GenValError as error:
        raise GenValError(f"--prompt_file: cannot read {file} ({error})") from error
    if not lines:
        raise GenValError(f"--prompt_file: {file} is empty: expected a phrasing a line, such as: in thick smoke")
    return lines


def check_template(template: str) -> None:
    """Refuse a prompt template that cannot be filled in, or that leaves the domain out.

    Raises:
        GenValError: another placeholder than {caption} and {domain}, or no {domain}.
    """
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError:
        fields = {""}
    if not {"domain"} <= fields <= {"caption", "domain"}:
        raise GenValError(
            f"--prompt_template: expected text with {{domain}}, and {{caption}} where captions are used; found "
            f"{template!r}. Without {{domain}} every domain would get the same prompt."
        )


def make_prompt(template: str, caption: str, domain: str) -> str:
    """A prompt; of an empty caption the separators around it go too."""
    return template.format(caption=caption, domain=domain).strip(" ,")


def fit_prompt(template: str, caption: str, domain: str, fits: Callable[[str], bool]) -> str:
    """A prompt that `fits`: words are taken from the caption's end until it does.

    What a text encoder cannot read it leaves out without a word, and the domain usually comes last: a long caption's
    image would be of no domain.

    Raises:
        GenValError: the domain's own words do not fit.
    """
    words = caption.split()
    while not fits(prompt := make_prompt(template, " ".join(words).rstrip(" ,"), domain)):
        if not words:
            raise GenValError(f"The base cannot read all of {domain!r}: it is too long. Give fewer words.")
        words.pop()
    return prompt


def find_captions(name: str | None, split: str, *folders: Path) -> Path:
    """Where the captions are: `name`, or the usual places of a split.

    These are `training/{split}.jsonl` and `captions/captions_cityscapes.json`, in `folders` (the data's), in
    `ControlNet/` and in the repository's root.

    Raises:
        GenValError: there is no such file.
    """
    names = [name] if name else [f"training/{split}.jsonl", "captions/captions_cityscapes.json"]
    roots = [*folders, REPO_ROOT / "ControlNet", REPO_ROOT]
    places = [resolve(name)] if name else []
    places += [root / one for one in names for root in roots]
    for place in places:
        if place.is_file():
            return place
    raise GenValError(
        f"No captions: expected {places[0]} or another {names[-1]}. Put the published training/*.jsonl there, run: "
        "python ControlNet/clip_int.py --dataset cityscapes, or give --caption TEXT or --no_captions."
    )
