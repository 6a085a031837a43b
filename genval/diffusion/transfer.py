"""A generated domain: which masks are drawn for it, what is written for each, and how a stopped run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import path_dicts
from genval.artifacts.manifest import Manifest
from genval.artifacts.settings import write_settings
from genval.datasets.items import Item
from genval.datasets.layouts import suggestion
from genval.diffusion.pairs import FramedPair, Pair, load_framed
from genval.diffusion.pipelines import StableDiffusion
from genval.diffusion.sampling import Generated, SamplingConfig, generate
from genval.runtime.background import BackgroundWriter
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_jsonl, write_png
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed

# What a run writes below its domain's folder.
_FOLDERS = ("leftImg8bit", "gtFine", "original")


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain's folder `name` and the `text` its prompts end in."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One picture to make: item `{domain}_{n}_{name}` from a labelled frame, with its prompt, seed and crop."""

    id: str
    source: Item
    prompt: str
    seed: int
    place: float  # 0..1, where along the frame's longer side the crop lies


def find_domain(name: str | None, free_text: str | None = None) -> Domain:
    """A domain by its name in `path_dicts.DOMAINS`, or one made of free text: "dense fog" makes `dense-fog`.

    Raises:
        GenValError: an unknown name, or a text without a letter.
    """
    if free_text is not None:
        folder = re.sub(r"[^a-z0-9]+", "-", free_text.lower()).strip("-")[:60]
        if not folder:
            raise GenValError(f"--prompt: expected words such as 'dense fog', found {free_text!r}.")
        return Domain(folder, f"in {free_text.strip()}")
    if name not in path_dicts.DOMAINS:
        raise GenValError(
            f"Unknown domain {name!r}.{suggestion(str(name), path_dicts.DOMAINS)} Known: "
            f"{', '.join(path_dicts.DOMAINS)}. For any other text give --prompt TEXT in place of --domain, "
            "or add the domain to path_dicts.py."
        )
    return Domain(str(name), path_dicts.DOMAINS[str(name)])


def read_captions(jsonl: Path) -> dict[str, str]:
    """Captions of a file of captioned pairs by their image's file name, without its folder.

    Raises:
        GenValError: the file is missing, or an entry lacks "image" or "text".
    """
    captions = {}
    for number, record in enumerate(read_jsonl(jsonl), 1):
        if not isinstance(record.get("image"), str) or not isinstance(record.get("text"), str):
            raise GenValError(f'{jsonl}, entry {number}: expected "image" and "text".')
        captions[Path(record["image"]).name] = record["text"]
    return captions


def frames_hash(items: Sequence[Item], captions: Mapping[str, str]) -> str:
    """Twelve hexadecimal digits over what is drawn from: the frames' names in order, and their captions."""
    frames = [[item.scene, item.id, captions.get(item.image.name)] for item in items]
    return hashlib.sha256(json.dumps(frames).encode()).hexdigest()[:12]


def draw_transfers(
    items: Sequence[Item], captions: Mapping[str, str], domain: Domain, count: int, seed: int, template: str
) -> list[Transfer]:
    """Draw `count` frames at random with replacement.

    The same frames are drawn for every domain of one seed, so that domains can be compared picture by picture, and a
    larger count only adds to a smaller one.

    Args:
        items: the labelled frames.
        captions: by image file name.
        template: of the prompt, with `{caption}` and `{domain}`.

    Raises:
        GenValError: there are no frames, a drawn frame has no caption, or the template has another placeholder.
    """
    if not items:
        raise GenValError("Every frame was set aside by --skip_bad: there is nothing to draw from. Check --data_dir.")
    rng = np.random.default_rng(item_seed(seed, "masks"))
    transfers = []
    for n in range(count):
        item, place = items[int(rng.integers(len(items)))], float(rng.random())
        if item.image.name not in captions:
            raise GenValError(f"No caption for {item.image.name}. Add its line to the file of --captions.")
        try:
            prompt = template.format(caption=captions[item.image.name], domain=domain.text)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise GenValError(
                f"--prompt_template: expected text with {{caption}} and {{domain}}, found {template!r}."
            ) from error
        item_id = f"{domain.name}_{n}_{item.id}"
        transfers.append(Transfer(item_id, item, prompt, item_seed(seed, item_id), place))
    return transfers


def prepare_folder(folder: Path, settings: Mapping[str, Any], same: Sequence[str], overwrite: bool) -> None:
    """Make a domain's folder ready: empty, or holding the beginning of this very run.

    Args:
        folder: `{output_dir}/{domain}`.
        settings: all settings; they are written to `settings.json`.
        same: the settings that must not differ from those of the files already there.
        overwrite: delete what is there first.

    Raises:
        GenValError: the folder was made with other settings or not by this stage, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise GenValError(f"{folder} is a file: expected a folder. Remove it, or give another --output_dir.")
    if overwrite:
        for name in _FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for file in (*folder.glob("manifest*.jsonl"), folder / "settings.json"):
            file.unlink(missing_ok=True)
    record = folder / "settings.json"
    if record.exists():
        before = read_json(record)["settings"]
        differing = [
            f"{key} {before.get(key)} (now {settings[key]})" for key in same if before.get(key) != settings[key]
        ]
        if differing:
            raise GenValError(
                f"{folder} was made with {', '.join(differing)}. Give --overwrite to make it again, or another "
                "--output_dir."
            )
    elif any((folder / name).exists() for name in _FOLDERS):
        raise GenValError(
            f"{folder} holds pictures but no settings.json: it was not made by style_transfer.py. Give another "
            "--output_dir, or --overwrite to replace it."
        )
    # A killed process leaves the temporary name of the file it was writing.
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)
    write_settings(folder, settings)


class TransferRun:
    """Makes the pictures of a domain, batch by batch.

    Batches are a fixed partition of the transfers. A batch of which anything is missing is computed as a whole and only
    what is missing is written: a stopped and resumed run leaves the same bytes as one that was not stopped.

    Args:
        folder: `{output_dir}/{domain}`, prepared by `prepare_folder`.
        base, controlnet: on one device and of one dtype.
        sampling: how to sample.
        height, width: of the pictures.
        negative_prompt: for every item.
        record: what the manifest says of every item beside its own prompt, seed and files.
    """

    def __init__(
        self,
        folder: Path,
        base: StableDiffusion,
        controlnet: Any,
        sampling: SamplingConfig,
        height: int,
        width: int,
        negative_prompt: str = "",
        record: Mapping[str, Any] | None = None,
    ) -> None:
        base.check_size(height, width)
        self.folder = folder
        self.base = base
        self.controlnet = controlnet
        self.sampling = sampling
        self.height = height
        self.width = width
        self.negative_prompt = negative_prompt
        self.record = dict(record or {})
        self.retried = 0
        self._largest: int | None = None

    def make(self, transfers: Sequence[Transfer], batch_size: int, rank: int = 0, world_size: int = 1) -> int:
        """Make what is missing of `transfers`; process `rank` takes every `world_size`-th batch.

        Returns:
            The number of pictures computed by this process.

        Raises:
            GenValError: a source file is damaged, a picture cannot be made or a file cannot be written.
        """
        manifest = Manifest(self.folder, rank)
        batches = [transfers[i : i + batch_size] for i in range(0, len(transfers), batch_size)][rank::world_size]
        todo = [batch for batch in batches if not all(self._done(transfer, manifest) for transfer in batch)]
        done = sum(len(batch) for batch in batches) - sum(len(batch) for batch in todo)
        bar = progress_bar(sum(map(len, batches)), "Style transfer", initial=done, rank=rank)
        # One writing thread: the manifest then never names a file that is not there yet.
        # Resumed runs have to give the same bytes, so that cuDNN may not choose its algorithms by trying them out.
        same = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        with same, bar, ThreadPoolExecutor(1) as reader, BackgroundWriter(threads=1, waiting=4) as writer:
            upcoming = deque(reader.submit(self._load, batch) for batch in todo[:2])
            for i, batch in enumerate(todo):
                framed = upcoming.popleft().result()
                upcoming += [reader.submit(self._load, later) for later in todo[i + 2 : i + 3]]
                writer.submit(self._write, batch, framed, self._generate(batch, framed), manifest)
                bar.update(len(batch))
        return sum(map(len, todo))

    def _load(self, batch: Sequence[Transfer]) -> list[FramedPair]:
        return [
            load_framed(Pair(t.source.image, t.source.mask, t.prompt), self.height, self.width, t.place) for t in batch
        ]

    def _write(
        self, batch: Sequence[Transfer], framed: Sequence[FramedPair], generated: Generated, manifest: Manifest
    ) -> None:
        records = []
        for i, (transfer, source) in enumerate(zip(batch, framed, strict=True)):
            files = self.files(transfer)
            pixels = {"image": generated.images[i], "mask": source.mask, "original": source.image}
            for kind, file in files.items():
                if not (self.folder / file).exists():
                    write_png(self.folder / file, pixels[kind])
            self.retried += generated.retries[i]
            if transfer.id not in manifest:
                records.append(
                    {
                        "id": transfer.id,
                        **files,
                        "source": transfer.source.id,
                        "box": list(source.box),
                        "prompt": transfer.prompt,
                        "negative_prompt": self.negative_prompt,
                        "seed": generated.seeds[i],
                        "retries": generated.retries[i],
                        **self.record,
                    }
                )
        manifest.append(records)

    def files(self, transfer: Transfer) -> dict[str, str]:
        """A transfer's three files below the folder: the generated `image`, its `mask` and the `original` crop."""
        # .../leftImg8bit/{split}/{city}/{name}_leftImg8bit.png
        split, city = transfer.source.image.parts[-3:-1]
        return {
            "image": f"leftImg8bit/{split}/{city}/{transfer.id}_leftImg8bit.png",
            "mask": f"gtFine/{split}/{city}/{transfer.id}_gtFine_labelIds.png",
            "original": f"original/{split}/{city}/{transfer.id}_leftImg8bit.png",
        }

    def _done(self, transfer: Transfer, manifest: Manifest) -> bool:
        return transfer.id in manifest and all((self.folder / file).exists() for file in self.files(transfer).values())

    def _generate(self, batch: Sequence[Transfer], framed: Sequence[FramedPair]) -> Generated:
        """Generate a batch, in smaller pieces where it does not fit into the device's memory."""
        parts: list[Generated] = []
        start = 0
        while start < len(batch):
            size = min(self._largest or len(batch), len(batch) - start)
            piece = batch[start : start + size]
            part: Generated | None
            try:
                part = generate(
                    self.base,
                    self.controlnet,
                    np.stack([one.mask for one in framed[start : start + size]]),
                    [transfer.prompt for transfer in piece],
                    [self.negative_prompt] * size,
                    [transfer.seed for transfer in piece],
                    self.sampling,
                )
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise GenValError(
                        "One picture does not fit into the device's memory. Give --precision 16-true or a smaller size."
                    ) from error
                part = None
            if part is None:
                # Out here the exception is gone, and with it the failed attempt's tensors, which its frames held.
                torch.cuda.empty_cache()
                self._largest = size // 2
                print(f"Out of memory with {size} pictures at a time: going on with {self._largest}.", flush=True)
                continue
            parts.append(part)
            start += size
        return Generated(
            np.concatenate([part.images for part in parts]),
            [seed for part in parts for seed in part.seeds],
            [retries for part in parts for retries in part.retries],
        )
