"""The images that a base is trained on: found in folders, captioned by a template, and encoded once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.artifacts.fingerprint import files_hash
from genval.datasets.items import Item
from genval.datasets.reading import read_image
from genval.datasets.unlabelled import find_unlabelled
from genval.diffusion.framing import crop_box, fit_image
from genval.diffusion.models.pipelines import encode_latents
from genval.diffusion.prompts import find_domain
from genval.diffusion.training.autoencoder import to_model_range
from genval.runtime.errors import GenValError, without_skip_bad
from genval.runtime.files import replace_file, write_jsonl
from genval.runtime.paths import resolve
from genval.runtime.progress import progress_bar
from genval.training.batches import read_ahead

_ENCODED_AT_ONCE = 64
_FEWEST = 4


@dataclasses.dataclass(frozen=True)
class OwnImage:
    """An image file, the condition that it shows ("in fog") and where it was taken ("Germany", or "")."""

    path: Path
    condition: str
    place: str


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """A folder of unlabelled images: `name` of the condition, as given, the `folder` and the `place`, or ""."""

    name: str
    folder: str
    place: str


def parse_unlabelled(text: str) -> Unlabelled:
    """Parse `CONDITION=FOLDER` or `CONDITION=FOLDER@PLACE`.

    >>> parse_unlabelled("night=images/night@New York")
    Unlabelled(name='night', folder='images/night', place='New York')

    Raises:
        GenValError: the text has another form.
    """
    name, _, folder = text.partition("=")
    place = ""
    if "@" in folder and not resolve(folder).exists():
        folder, _, place = folder.rpartition("@")
    if not name.strip() or not folder.strip():
        raise GenValError(
            f"--unlabelled: expected CONDITION=FOLDER or CONDITION=FOLDER@PLACE, such as night=images/night@Sweden, "
            f"found {text!r}."
        )
    return Unlabelled(name.strip(), folder.strip(), place.strip())


@dataclasses.dataclass(frozen=True)
class CaptionTemplate:
    """How a caption is made of a place and a condition: a part in [brackets] is left out without its value.

    >>> template = CaptionTemplate("a street[ in {place}][, {condition}]")
    >>> template.fill("Germany", "in fog"), template.fill("", "in fog"), template.fill("Germany", "")
    ('a street in Germany, in fog', 'a street, in fog', 'a street in Germany')

    Raises:
        GenValError: the template has no {condition}, another field, or a field outside of brackets.
    """

    text: str

    def __post_init__(self) -> None:
        fields, outside = re.findall(r"{([^}]*)}", self.text), re.sub(r"\[[^\]]*\]", "", self.text)
        if "condition" not in fields or set(fields) - {"place", "condition"} or re.search(r"[\[\]{}]", outside):
            raise GenValError(
                f"--template: expected a text with {{condition}} and {{place}}, each in brackets, such as "
                f"'a street[ in {{place}}][, {{condition}}]', found {self.text!r}."
            )

    def fill(self, place: str, condition: str) -> str:
        """Return the caption; "" leaves out a place or a condition."""
        values = {"place": place, "condition": condition}

        def part(match: re.Match[str]) -> str:
            inside = match[1]
            for name in re.findall(r"{([^}]*)}", inside):
                if not values[name]:
                    return ""
                inside = inside.replace(f"{{{name}}}", values[name])
            return inside

        return re.sub(r"\[([^\]]*)\]", part, self.text)

    def variants(self, image: OwnImage) -> tuple[str, str, str, str]:
        """Return an image's caption, and the same without the place, without the condition, and without both: ""."""
        place, condition = image.place, image.condition
        return self.fill(place, condition), self.fill("", condition), self.fill(place, ""), ""


def condition_text(name: str) -> str:
    """Return the words of a condition, which are those of `style_transfer.py --domain NAME`.

    Raises:
        GenValError: a misspelled name of a domain.
    """
    return find_domain(name).texts[0]


def find_images(part: Unlabelled) -> list[OwnImage]:
    """Return the images in a folder and the folders in it, sorted by path. Label images are left out.

    Raises:
        GenValError: the folder is missing or has too few images.
    """
    condition = condition_text(part.name)
    images = find_unlabelled(part.folder, f"--unlabelled {part.name}={part.folder}", _FEWEST)
    return [OwnImage(path, condition, part.place) for path in images]


def sampling_weights(images: Sequence[OwnImage], factors: Mapping[str, float]) -> torch.Tensor:
    """Return how often each image is drawn, (N,) float32 with sum 1.

    A group, all images of one condition and place, is drawn in proportion to the square root of its size, times the
    factor of its condition.

    Args:
        images: the images.
        factors: condition text -> factor; 1 where it is missing.
    """
    sizes = Counter((image.condition, image.place) for image in images)
    weights = [factors.get(image.condition, 1.0) / sizes[image.condition, image.place] ** 0.5 for image in images]
    tensor = torch.tensor(weights, dtype=torch.float64)
    return (tensor / tensor.sum()).float()


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Encoded images: `latents` (N, 2, C, h, w) float16, not scaled, of each image and its mirror image.

    `index` (N,) are the numbers of the images in the list that was encoded: bad images are left out.
    """

    latents: torch.Tensor
    index: torch.Tensor

    @property
    def deviation(self) -> float:
        """The standard deviation of the latents, without the differences between the means of the channels."""
        # Enough images for the third digit.
        latents = self.latents[:: max(1, len(self.latents) // 512), 0].float()
        return float(latents.var((0, 2, 3)).mean().sqrt())


def encode_own_images(
    vae: Any,
    images: Sequence[OwnImage],
    height: int,
    width: int,
    cache: Path,
    mark: str,
    *,
    workers: int,
    device: torch.device,
    skip_bad: bool = False,
) -> EncodedImages:
    """Encode images and their mirror images once, or read them from the cache of an earlier run.

    An image is cropped around its centre to the aspect ratio of the target, and resized.

    Args:
        vae: AutoencoderKL or AutoencoderTiny, on `device`.
        images: the images.
        height, width: target size in pixels.
        cache: the file that is written; it is replaced where its mark differs.
        mark: identifies the images, the size and the autoencoder (`encoding_mark`).
        workers: threads that decode.
        device: where to encode.
        skip_bad: skip and count images that cannot be read, instead of stopping.

    Raises:
        GenValError: an image cannot be read, or all were skipped.
    """
    found = _read_cache(cache, mark)
    if found is not None and (skip_bad or len(found["index"]) == len(images)):
        print(f"{cache} has the latents of {len(found['index'])} of these {len(images)} images: read")
        return EncodedImages(found["latents"].to(device), found["index"])
    bad: list[str] = []

    def load(number: int) -> np.ndarray | None:
        try:
            return read_framed(images[number].path, height, width)
        except GenValError as error:
            if not skip_bad:
                raise
            bad.append(without_skip_bad(str(error)))
            return None

    numbers = [list(range(i, min(i + _ENCODED_AT_ONCE, len(images)))) for i in range(0, len(images), _ENCODED_AT_ONCE)]
    latents, index = [], []
    with progress_bar(len(images), "Encoding the images") as bar:
        for chunk, loaded in read_ahead(numbers, load, workers):
            good = [(number, image) for number, image in zip(chunk, loaded, strict=True) if image is not None]
            if good:
                batch = torch.from_numpy(np.stack([image for _, image in good])).to(device).permute(0, 3, 1, 2)
                latents.append(torch.stack([_encode(vae, batch), _encode(vae, batch.flip(-1))], 1))
                index += [number for number, _ in good]
            bar.update(len(chunk))
    for reason in bad:
        print(f"skipped: {reason}")
    if not index:
        raise GenValError(f"All {len(images)} images were skipped by --skip_bad, the last because: {bad[-1]}")
    encoded = EncodedImages(torch.cat(latents), torch.tensor(index))
    _write_cache(cache, mark, encoded)
    return encoded


def encoding_mark(images: Sequence[OwnImage], height: int, width: int, vae: Any) -> str:
    """Return 16 hexadecimal digits over the files' names and marks, the image size and the autoencoder's weights."""
    files = files_hash(image.path for image in images)
    digest = hashlib.sha256(json.dumps([files, height, width]).encode())
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_framed(path: Path, height: int, width: int) -> np.ndarray:
    """Read an image, crop it around its centre to the target's aspect ratio and resize it: (height, width, 3) uint8."""
    image = read_image(path)
    box = crop_box(image.shape[0], image.shape[1], height, width, 0.5)
    return fit_image(image, box, height, width)


def write_pairs(path: Path, items: Sequence[Item], data_dir: Path, caption: str) -> None:
    """Write the lines that `train.py --jsonl` reads: one per labelled image, all with one caption."""

    def name(file: Path) -> str:
        return os.path.relpath(file, data_dir) if file.is_relative_to(data_dir) else str(file)

    write_jsonl(path, [{"image": name(i.image), "conditioning_image": name(i.mask), "text": caption} for i in items])


@torch.no_grad()
def _encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Encode in float32: this happens once."""
    return encode_latents(vae, to_model_range(images.contiguous())).half()


def _write_cache(path: Path, mark: str, encoded: EncodedImages) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": encoded.latents.cpu().contiguous(), "index": encoded.index}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={"mark": mark})


def _read_cache(path: Path, mark: str) -> dict[str, torch.Tensor] | None:
    """Return the tensors of the cache; None if it is missing, damaged, or of other images."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("mark") != mark:
                return None
            return {name: file.get_tensor(name) for name in ("latents", "index")}
    except (OSError, SafetensorError) as error:
        print(f"{path} is damaged ({error}): the images are encoded again.")
        return None
