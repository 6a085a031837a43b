"""A generated domain: which masks are drawn for it, what is written for each, and how a stopped run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.artifacts.manifest import Manifest
from genval.artifacts.settings import write_settings
from genval.datasets.captions import read_captions
from genval.datasets.items import BadFile, Item
from genval.diffusion.models.hints import read_encoding
from genval.diffusion.models.pipelines import StableDiffusion
from genval.diffusion.pairs import FramedPair, Pair, load_framed
from genval.diffusion.prompts import Domain, check_template, fit_prompt, make_prompt
from genval.diffusion.sampling.denoiser import Denoiser
from genval.diffusion.sampling.generation import (
    Generated,
    SamplingConfig,
    check_size,
    generate,
    join_generated,
    make_denoiser,
)
from genval.diffusion.sampling.pieces import Pieces
from genval.runtime.background import BackgroundWriter
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_mask, write_png
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed

_TOO_LARGE = "Give --precision bf16-true, a smaller size, or --large tiled with a smaller --tile."
# What a run writes below its domain's folder.
_FOLDERS = ("leftImg8bit", "gtFine", "original")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One picture to make: item `{domain}_{n}_{name}` from a labelled frame, with its prompt, seed and crop."""

    id: str
    source: Item
    prompt: str
    seed: int
    place: float  # 0..1, where along the frame's longer side the crop lies


def caption_frames(
    items: Sequence[Item], source: Path | str, set_aside: list[BadFile] | None = None
) -> tuple[list[Item], dict[str, str]]:
    """The frames to draw from, and their captions by image file name.

    Args:
        source: a file of captions (`genval.datasets.captions.read_captions`), or one caption for every frame.
        set_aside: frames without a caption are added here; without it they stay among the frames, and drawing one is an
            error.
    """
    if isinstance(source, str):
        return list(items), {item.image.name: source for item in items}
    captions = read_captions(source)
    if set_aside is None:
        return list(items), captions
    lacking = [item for item in items if item.image.name not in captions]
    set_aside += [
        BadFile(item.id, item.cond, item.scene, str(item.image), f"no caption in {source}") for item in lacking
    ]
    return [item for item in items if item.image.name in captions], captions


def frames_hash(items: Sequence[Item], captions: Mapping[str, str]) -> str:
    """Twelve hexadecimal digits over what is drawn from: the frames' names in order, and their captions."""
    frames = [[item.scene, item.id, captions.get(item.image.name)] for item in items]
    return hashlib.sha256(json.dumps(frames).encode()).hexdigest()[:12]


def draw_transfers(
    items: Sequence[Item],
    captions: Mapping[str, str],
    domain: Domain,
    count: int,
    seed: int,
    template: str,
    replacement: bool = True,
) -> list[Transfer]:
    """Draw `count` frames at random.

    The same frames are drawn for every domain of one seed, so that domains can be compared picture by picture, and a
    larger count only adds to a smaller one.

    Args:
        items: the labelled frames.
        captions: by image file name.
        template: of the prompt, with `{domain}` and usually `{caption}`.
        replacement: a frame may come several times, as published; otherwise at most once.

    Raises:
        GenValError: there are too few frames, a drawn frame has no caption, or the template has another placeholder or
            leaves the domain out.
    """
    check_template(template)
    if not items:
        raise GenValError("Every frame was set aside by --skip_bad: there is nothing to draw from. Check --data_dir.")
    if not replacement and count > len(items):
        raise GenValError(
            f"--without_replacement: {count} images need as many frames, found {len(items)}. Give --num_samples "
            f"{len(items)} or less, --from_train, or draw with replacement."
        )
    rng = np.random.default_rng(item_seed(seed, "masks"))
    order = np.random.default_rng(item_seed(seed, "order")).permutation(len(items))
    transfers = []
    for n in range(count):
        drawn, place = int(rng.integers(len(items))), float(rng.random())
        item = items[drawn if replacement else int(order[n])]
        if item.image.name not in captions:
            raise GenValError(
                f"No caption for {item.image} in the file of --captions. Add it there, leave such frames out "
                "(--skip_bad), or give --caption TEXT or --no_captions."
            )
        item_id = f"{domain.name}_{n}_{item.id}"
        own_seed = item_seed(seed, item_id)
        prompt = make_prompt(template, captions[item.image.name], domain.text(own_seed))
        transfers.append(Transfer(item_id, item, prompt, own_seed, place))
    return transfers


def fit_prompts(
    transfers: Sequence[Transfer],
    captions: Mapping[str, str],
    domain: Domain,
    template: str,
    fits: Callable[[str], bool],
) -> list[Transfer]:
    """The transfers with captions cut where `genval.diffusion.prompts.fit_prompt` has to."""
    return [
        transfer
        if fits(transfer.prompt)
        else dataclasses.replace(
            transfer,
            prompt=fit_prompt(template, captions[transfer.source.image.name], domain.text(transfer.seed), fits),
        )
        for transfer in transfers
    ]


def whole_width(item: Item, height: int) -> int:
    """The width of a picture of that height that shows the whole frame."""
    frame_height, frame_width = read_mask(item.mask).shape
    return round(height * frame_width / frame_height)


def default_batch_size(device: torch.device, height: int, width: int) -> int:
    """Pictures at a time: 32 of 512x512 keep a large GPU busy (13 GiB); a CPU gains nothing from more than four."""
    return 4 if device.type == "cpu" else max(1, min(32, 32 * 512**2 // (height * width)))


def choose_compiling(
    mode: str, device: torch.device, count: int, batch_size: int, height: int, width: int, steps: int
) -> bool:
    """Whether to generate kernels for `count` pictures on a device, and say so: `mode` is "on", "off" or "auto".

    "auto" does where it saves more time than it takes. Measured on one H100 at 512x512 and 25 steps in bfloat16: about
    100 s once; then 0.15 s a picture in place of 0.23 s, or of 0.42 s where batches are of one. The decision is for
    the whole run, whatever of it is done: a stopped run goes on with the same kernels.
    """
    saved = max(0.42 / batch_size, 0.23) - 0.15
    seconds = count * (height * width / 512**2) * (steps / 25) * saved
    compiled = mode == "on" or (mode == "auto" and device.type == "cuda" and seconds > 100)
    if compiled:
        print(
            f"Generating kernels for batches of {batch_size} of {height}x{width} first: this takes minutes, of which "
            f"an H100 needs about 2, and saves it about {seconds / 60:.0f} (--compile off to leave it).",
            flush=True,
        )
    return compiled


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
    Manifest(folder).merge()
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
        compiled: generate kernels for the batches' shape first.
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
        compiled: bool = False,
    ) -> None:
        check_size(base, sampling, height, width)
        self.labels = read_encoding(controlnet, "The ControlNet").labels
        self.folder = folder
        self.base = base
        self.controlnet = controlnet
        self.sampling = sampling
        self.height = height
        self.width = width
        self.negative_prompt = negative_prompt
        self.record = dict(record or {})
        self.compiled = compiled
        self.retried = 0
        self._denoiser: Denoiser | None = None
        self._pieces: Pieces | None = None

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
        self._pieces = self._pieces or Pieces(batch_size, _TOO_LARGE)
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
            load_framed(Pair(t.source.image, t.source.mask, t.prompt), self.height, self.width, t.place, self.labels)
            for t in batch
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
        assert self._pieces is not None

        def draw(piece: slice, rows: int) -> Generated:
            # Made here and kept: its kernels and its recording serve every later batch.
            self._denoiser = self._denoiser or make_denoiser(
                self.base, self.controlnet, self.sampling, self.compiled, graphed=True
            )
            return generate(
                self.base,
                self.controlnet,
                np.stack([one.mask for one in framed[piece]]),
                [transfer.prompt for transfer in batch[piece]],
                [self.negative_prompt] * len(batch[piece]),
                [transfer.seed for transfer in batch[piece]],
                self.sampling,
                self._denoiser,
                rows,
            )

        def release() -> None:
            self._denoiser = None

        return join_generated(self._pieces.compute(len(batch), draw, release))
