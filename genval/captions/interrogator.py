"""Captions by the method of CLIP-interrogator (github.com/pharmapsychotic/clip-interrogator).

A captioner (BLIP, or another model) writes a sentence; CLIP ranks lists of phrases by their similarity to the image.
There are four modes:

- caption: the sentence alone;
- fast: the sentence and the most similar phrases of all lists, ranked once;
- classic: the sentence, the most similar medium, artist, site and movement, and the three most similar flavours;
- best: phrases are added one by one, each time the one that makes the whole text most similar, while the similarity
  rises; the result is the most similar of this text and those of the other modes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genval.captions.blip import load_blip
from genval.captions.captioners import Captioner, load_captioner
from genval.captions.clip import Clip, load_clip
from genval.captions.filter import PHRASES, read_phrases
from genval.captions.settings import InterrogatorConfig
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

_CLASSIC_FLAVORS = 3


@dataclass(frozen=True)
class PhraseLists:
    """The phrases that CLIP ranks, with CLIP-interrogator's names of the lists."""

    mediums: tuple[str, ...]
    artists: tuple[str, ...]
    trendings: tuple[str, ...]
    movements: tuple[str, ...]
    flavors: tuple[str, ...]

    @property
    def hash(self) -> str:
        """12 hexadecimal digits over all phrases in order."""
        lists = [getattr(self, field.name) for field in fields(self)]
        return hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Prepared:
    """An image as the captioner's input, and as CLIP's, float32 (3, h, w) (None in mode caption)."""

    blip: Any
    clip: Tensor | None


@dataclass(frozen=True)
class Description:
    """The captioner's `caption`, the whole `text`, and CLIP's `similarity` of it (-1..1; None in mode caption)."""

    caption: str
    text: str
    similarity: float | None


class Interrogator:
    """Describes images in batches.

    Args:
        blip: the captioner, on its device.
        clip: the ranker, on its device; not needed in mode caption.
        phrases: the phrases to rank.
        config: mode and lengths.

    Raises:
        GenValError: a mode that ranks has no CLIP model.
    """

    def __init__(self, blip: Captioner, clip: Clip | None, phrases: PhraseLists, config: InterrogatorConfig) -> None:
        self.config = config
        self._blip = blip
        self._clip = clip if config.mode != "caption" else None
        self._lists = phrases
        if self._clip is None:
            if config.mode != "caption":
                raise GenValError(f"Mode {config.mode} needs a CLIP model. Give --clip, or --mode caption.")
            return
        self._vectors = {field.name: self._clip.encode_list(getattr(phrases, field.name)) for field in fields(phrases)}

    @property
    def record(self) -> dict[str, Any]:
        """The settings and model hashes that define a description, as JSON values."""
        return {
            **asdict(self.config),
            **self._blip.record,
            "clip_hash": self._clip.hash if self._clip else None,
            "phrases_hash": self._lists.hash if self._clip else None,
            "precision": self._blip.precision,
        }

    def prepare(self, image: np.ndarray) -> Prepared:
        """Resize and normalise RGB uint8 (H, W, 3); safe to call in threads."""
        return Prepared(self._blip.prepare(image), self._clip.prepare(image) if self._clip else None)

    def describe(self, inputs: Sequence[Prepared]) -> list[Description]:
        """Return a description of each image."""
        count = max(1, len(inputs))  # the whole batch is one forward pass
        captions = self._blip.caption_prepared([one.blip for one in inputs], self.config.max_tokens, count)
        if self._clip is None:
            return [Description(caption, caption, None) for caption in captions]
        images = self._clip.encode_prepared([one.clip for one in inputs if one.clip is not None], count)
        if self.config.mode == "fast":
            texts = [self._fast(caption, image) for caption, image in zip(captions, images, strict=True)]
        elif self.config.mode == "classic":
            texts = [self._classic(caption, image) for caption, image in zip(captions, images, strict=True)]
        else:
            texts = self._best(captions, images)
        similarity = (self._clip.encode_texts(texts) * images).sum(1)
        return [
            Description(caption, text, round(value, 5))
            for caption, text, value in zip(captions, texts, similarity.tolist(), strict=True)
        ]

    def _top(self, image: Tensor, name: str, count: int) -> list[str]:
        """Return the `count` phrases of a list that are most similar to an image vector (D,), best first."""
        phrases = getattr(self._lists, name)
        order = (self._vectors[name] @ image).topk(min(count, len(phrases))).indices
        return [phrases[i] for i in order.tolist()]

    def _fast(self, caption: str, image: Tensor) -> str:
        scored = [
            (similarity, phrase)
            for name, vectors in self._vectors.items()
            for similarity, phrase in zip((vectors @ image).tolist(), getattr(self._lists, name), strict=True)
        ]
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        return self._joined([caption, *(phrase for _, phrase in scored[: self.config.max_flavors])])

    def _classic(self, caption: str, image: Tensor) -> str:
        medium, artist, trending, movement = self._attributes(image)
        opening = f"{caption} {artist}" if caption.startswith(medium) else f"{caption}, {medium} {artist}"
        return self._joined([opening, trending, movement, *self._top(image, "flavors", _CLASSIC_FLAVORS)])

    def _best(self, captions: Sequence[str], images: Tensor) -> list[str]:
        """Return the texts of mode best. One phrase is added to all images at a time, so that batches are large."""
        attributes = [self._attributes(image) for image in images]
        subsets = [kept for size in range(5) for kept in itertools.combinations(range(4), size)]
        texts, similarities = self._most_similar(
            [
                [", ".join([caption, *(candidates[i] for i in kept)]) for kept in subsets]
                for caption, candidates in zip(captions, attributes, strict=True)
            ],
            images,
        )
        left = [self._top(image, "flavors", self.config.candidates) for image in images]
        growing = list(range(len(texts)))
        for _ in range(self.config.max_flavors):
            growing = [i for i in growing if left[i]]
            if not growing:
                break
            longer = [[f"{texts[i]}, {flavor}" for flavor in left[i]] for i in growing]
            chosen, raised = self._most_similar(longer, images[growing])
            still = []
            for i, text, similarity in zip(growing, chosen, raised, strict=True):
                if similarity > similarities[i] and self._fits(text):
                    left[i].remove(text.removeprefix(f"{texts[i]}, "))
                    texts[i], similarities[i] = text, similarity
                    still.append(i)
            growing = still
        others = [
            [text, caption, self._fast(caption, image), self._classic(caption, image)]
            for text, caption, image in zip(texts, captions, images, strict=True)
        ]
        return self._most_similar(others, images)[0]

    def _attributes(self, image: Tensor) -> tuple[str, str, str, str]:
        medium, artist, trending, movement = (
            self._top(image, name, 1)[0] for name in ("mediums", "artists", "trendings", "movements")
        )
        return medium, artist, trending, movement

    def _most_similar(self, texts: Sequence[Sequence[str]], images: Tensor) -> tuple[list[str], list[float]]:
        """Return the most similar of each image's texts, and its similarity."""
        assert self._clip is not None
        vectors = self._clip.encode_texts([text for candidates in texts for text in candidates])
        best, values = [], []
        for candidates, rows, image in zip(texts, vectors.split([len(one) for one in texts]), images, strict=True):
            value, place = torch.max(rows @ image, 0)
            best.append(candidates[int(place)])
            values.append(float(value))
        return best, values

    def _joined(self, parts: Sequence[str]) -> str:
        """Join the first part and as many of the others as CLIP can read, with commas."""
        text = parts[0]
        for part in parts[1:]:
            if not self._fits(f"{text}, {part}"):
                break
            text = f"{text}, {part}"
        return text

    def _fits(self, text: str) -> bool:
        assert self._clip is not None
        return self._clip.fits(text)


def load_interrogator(
    config: InterrogatorConfig,
    blip: str,
    clip: str,
    flavors: str | Path | None = None,
    precision: str = "32-true",
    device: torch.device | str = "cpu",
    captioner: str | None = None,
    prompt_file: str | None = None,
) -> Interrogator:
    """Load the models by name or folder (CLIP only if the mode ranks phrases), and the phrase lists.

    With `captioner`, an image-to-text model replaces BLIP.

    Raises:
        GenValError: as `load_blip`, `load_captioner`, `load_clip` and `read_phrase_lists`.
    """
    phrases = read_phrase_lists(flavors)
    writer = load_captioner(captioner, prompt_file, precision) if captioner else load_blip(blip, precision)
    writer.to(device)
    ranker = load_clip(clip, precision).to(device) if config.mode != "caption" else None
    return Interrogator(writer, ranker, phrases, config)


def read_phrase_lists(flavors: str | Path | None = None) -> PhraseLists:
    """Read the phrase lists of this package or of a user.

    Args:
        flavors: a file of flavours, or a folder with any of mediums.txt, artists.txt, trendings.txt, movements.txt and
            flavors.txt, such as CLIP-interrogator's data folder. Missing lists are those of this package.

    Raises:
        GenValError: the file or folder is missing or empty, or a file is not text.
    """
    names = [field.name for field in fields(PhraseLists)]
    own = {name: PHRASES / f"{name}.txt" for name in names}
    if flavors is not None:
        place = resolve(flavors)
        theirs = {name: place / f"{name}.txt" for name in names if (place / f"{name}.txt").is_file()}
        if place.is_dir() and not theirs:
            raise GenValError(f"{place} has none of {', '.join(f'{name}.txt' for name in names)}. Give a file of them.")
        own |= theirs if place.is_dir() else {"flavors": place}
    lists = {name: read_phrases(path) for name, path in own.items()}
    lists["artists"] = [
        name if name.lower().startswith(("by ", "inspired by ")) else f"by {name}" for name in lists["artists"]
    ]
    return PhraseLists(**{name: tuple(dict.fromkeys(phrases)) for name, phrases in lists.items()})
