"""Objects drawn into many frames, and drawn over again: fixed batches, files and lines as they are finished."""

from __future__ import annotations

import abc
import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.manifest import Manifest
from genval.datasets.items import Item
from genval.datasets.ood_objects import Box, ObjectPicture, object_folder, read_box
from genval.datasets.placement import PlacementConfig, crop_around, place
from genval.diffusion.framing import check_pair
from genval.diffusion.inpainting.frames import box_mask, cut, paste_box, paste_feathered, square
from genval.diffusion.inpainting.model import InpaintingBatch, InpaintingConfig, inpaint, make_inpainter
from genval.diffusion.inpainting.prompts import object_prompt
from genval.diffusion.models.pipelines import StableDiffusion
from genval.diffusion.sampling.denoiser import Denoiser
from genval.diffusion.sampling.generation import Generated, join_generated
from genval.diffusion.sampling.pieces import Pieces
from genval.diffusion.sampling.windows import Window
from genval.runtime.background import BackgroundWriter
from genval.runtime.errors import GenValError
from genval.runtime.files import read_image, read_mask, write_bytes, write_json, write_png
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed


@dataclasses.dataclass(frozen=True)
class ObjectItem:
    """One picture to draw: `{folder}/{number}`, with the object's name as given, its prompt and seed.

    Attributes:
        picture: what is drawn over again; None where a frame is still to be chosen.
    """

    id: str
    object: str
    prompt: str
    seed: int
    picture: ObjectPicture | None = None


def plan_objects(objects: Sequence[str], num_images: int, template: str, seed: int) -> list[ObjectItem]:
    """`num_images` pictures of each object, object by object.

    Another object or more pictures change nothing about the others. A name's folder is safe
    (`genval.datasets.ood_objects.object_folder`), and no two names have one folder.
    """
    items = []
    for name in dict.fromkeys(objects):
        folder, prompt = object_folder(name), object_prompt(template, name)
        ids = [f"{folder}/{number}" for number in range(num_images)]
        items += [ObjectItem(item_id, name, prompt, item_seed(seed, item_id)) for item_id in ids]
    return items


def plan_refinements(pictures: Sequence[ObjectPicture], template: str, seed: int) -> list[ObjectItem]:
    """Each picture once more; its noise is not that of its first drawing."""
    return [
        ObjectItem(
            picture.id,
            picture.object,
            object_prompt(template, picture.object),
            item_seed(seed, f"refined/{picture.id}"),
            picture,
        )
        for picture in pictures
    ]


def check_folder(
    folder: Path, items: Sequence[ObjectItem], record: Mapping[str, Any], maker: str, overwrite: bool
) -> None:
    """Refuse to mix pictures of other settings, or of another origin, with those to come.

    Args:
        record: what every line of the manifest will say.
        maker: the stage's script, for the error.

    Raises:
        GenValError: a wanted picture was made with other settings, or the folder holds pictures without a manifest.
    """
    if folder.exists() and not folder.is_dir():
        raise GenValError(f"{folder} is a file: expected a folder. Remove it, or give another --output_dir.")
    if overwrite or not folder.exists():
        return
    if not (folder / "settings.json").exists() and next(folder.glob("*/*.png"), None) is not None:
        raise GenValError(
            f"{folder} holds pictures but no settings.json: it was not made by {maker}. Give another --output_dir, or "
            "--overwrite to replace them."
        )
    lines = Manifest(folder).records
    for item in items:
        line = lines.get(item.id, {**record, "prompt": item.prompt})
        now = {**record, "prompt": item.prompt}
        differing = [f"{key} {line.get(key)} (now {value})" for key, value in now.items() if line.get(key) != value]
        if differing:
            raise GenValError(
                f"{folder / item.id}.png was made with {', '.join(differing)}. Give --overwrite to make it again, or "
                "another --output_dir."
            )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A frame made ready.

    Attributes:
        frame: RGB uint8 (H, W, 3).
        box: where the object is, or is to be.
        crop: what the model sees of the frame.
        image: the crop at the model's size, RGB uint8 (h, w, 3).
        mask: bool (h, w), what is drawn anew.
        line: what the manifest says of this frame.
        label_file: its labelIds, where they are copied beside the picture.
    """

    frame: np.ndarray
    box: Box
    crop: Window
    image: np.ndarray
    mask: np.ndarray
    line: dict[str, Any]
    label_file: Path | None = None


class InpaintingRun(abc.ABC):
    """Draws the pictures of a stage, batch by batch, and appends each picture's line to `{folder}/manifest.jsonl`.

    Batches are a fixed partition of the items. A batch of which anything is missing is computed as a whole and only
    what is missing is written: a stopped and resumed run leaves the same bytes as one that was not stopped.

    Args:
        folder: of the stage's pictures, `{object}/{i}.png`.
        model: of `load_inpainting`, on its device.
        config: how to draw.
        record: what every line says beside its own values.
        negative_prompt: for every item.
        compiled: generate kernels for the batches' shape first.
    """

    title = "pictures"

    def __init__(
        self,
        folder: Path,
        model: StableDiffusion,
        config: InpaintingConfig,
        record: Mapping[str, Any],
        negative_prompt: str = "",
        compiled: bool = False,
    ) -> None:
        self.folder = folder
        self.model = model
        self.config = config
        self.record = dict(record)
        self.negative_prompt = negative_prompt
        self.compiled = compiled
        self.retried = 0
        self._denoiser: Denoiser | None = None
        self._pieces: Pieces | None = None

    @abc.abstractmethod
    def _load(self, item: ObjectItem) -> Loaded:
        """Read an item's frame and choose what of it is drawn."""

    @abc.abstractmethod
    def _write(self, item: ObjectItem, loaded: Loaded, picture: np.ndarray) -> None:
        """Write an item's files, the drawn crop put back into its frame."""

    def _is_done(self, item: ObjectItem, manifest: Manifest) -> bool:
        return item.id in manifest and (self.folder / f"{item.id}.png").exists()

    def make(
        self,
        items: Sequence[ObjectItem],
        batch_size: int,
        workers: int = 4,
        rank: int = 0,
        world_size: int = 1,
        overwrite: bool = False,
    ) -> int:
        """Draw what is missing of `items`; process `rank` takes every `world_size`-th batch.

        Args:
            workers: threads that decode and encode pictures.
            overwrite: draw everything again.

        Returns:
            The number of pictures written by this process.

        Raises:
            GenValError: a source file is damaged, a picture cannot be drawn or a file cannot be written.
        """
        manifest = Manifest(self.folder, rank)
        batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)][rank::world_size]
        done = set() if overwrite else {item.id for part in batches for item in part if self._is_done(item, manifest)}
        todo = [batch for batch in batches if not all(item.id in done for item in batch)]
        self._pieces = self._pieces or Pieces(batch_size)
        total, made = sum(map(len, batches)), 0
        bar = progress_bar(total, self.title, initial=total - sum(map(len, todo)), rank=rank)
        # Resumed runs have to give the same bytes, so that cuDNN may not choose its algorithms by trying them out.
        same = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        # One thread at a time finishes batches: the manifest then never names a file that is not there yet.
        with (
            same,
            bar,
            ThreadPoolExecutor(workers) as pool,
            BackgroundWriter(threads=1, waiting=2) as writer,
        ):
            ahead: deque[list[Future[Loaded]]] = deque(
                [pool.submit(self._load, item) for item in batch] for batch in todo[:2]
            )
            for index, batch in enumerate(todo):
                loaded = [job.result() for job in ahead.popleft()]
                ahead += [[pool.submit(self._load, item) for item in later] for later in todo[index + 2 : index + 3]]
                generated = self._generate(batch, loaded)
                missing = [i for i, item in enumerate(batch) if item.id not in done]
                writer.submit(self._finish, batch, loaded, generated, missing, manifest, pool)
                made += len(missing)
                bar.update(len(batch))
        return made

    def _generate(self, batch: Sequence[ObjectItem], loaded: Sequence[Loaded]) -> Generated:
        """Draw a batch, in smaller pieces where it does not fit into the device's memory."""
        assert self._pieces is not None
        shapes = {one.image.shape for one in loaded}
        if len(shapes) > 1:
            raise GenValError(
                f"Frames of several sizes in one batch: {', '.join(f'{w}x{h}' for h, w, _ in sorted(shapes))}. Leave "
                "--whole_frame out, or give --batch_size 1."
            )
        whole = InpaintingBatch(
            np.stack([one.image for one in loaded]),
            np.stack([one.mask for one in loaded]),
            [item.prompt for item in batch],
            [self.negative_prompt] * len(batch),
            [item.seed for item in batch],
        )

        def draw(piece: slice, rows: int) -> Generated:
            # Made here and kept: its kernels and its recording serve every later batch.
            self._denoiser = self._denoiser or make_inpainter(self.model, self.config, self.compiled, graphed=True)
            return inpaint(self._denoiser, whole.rows(range(*piece.indices(len(whole)))), self.config, rows)

        def release() -> None:
            self._denoiser = None

        return join_generated(self._pieces.compute(len(whole), draw, release))

    def _finish(
        self,
        batch: Sequence[ObjectItem],
        loaded: Sequence[Loaded],
        generated: Generated,
        missing: Sequence[int],
        manifest: Manifest,
        pool: ThreadPoolExecutor,
    ) -> None:
        list(pool.map(lambda i: self._write(batch[i], loaded[i], generated.images[i]), missing))
        self.retried += sum(generated.retries[i] for i in missing)
        manifest.append([self._line(batch[i], loaded[i], generated, i) for i in missing])

    def _line(self, item: ObjectItem, loaded: Loaded, generated: Generated, index: int) -> dict[str, Any]:
        box, crop = loaded.box, loaded.crop
        return {
            "id": item.id,
            "object": item.object,
            "image": f"{item.id}.png",
            **loaded.line,
            "frame": list(loaded.frame.shape[:2]),
            "box": {"top": box.top, "left": box.left, "side": box.side},
            "crop": {"top": crop.top, "left": crop.left, "height": crop.height, "width": crop.width},
            "prompt": item.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": generated.seeds[index],
            "retries": generated.retries[index],
            **self.record,
        }


class ObjectRun(InpaintingRun):
    """Draws objects into street frames: `{i}.png`, `{i}_gt.png` (the frame's labelIds) and `{i}_pos.json`.

    An item's seed chooses its frame and its box. The box of the drawn crop is put back hard-edged, as published; what
    is around it is the frame's, byte for byte.

    Args:
        frames: labelled frames of Cityscapes' labelIds, which are drawn from with replacement.
        placement: where and how large boxes are.
        size: side of the square the model draws, in pixels.
    """

    title = "objects"

    def __init__(
        self,
        folder: Path,
        model: StableDiffusion,
        config: InpaintingConfig,
        record: Mapping[str, Any],
        frames: Sequence[Item],
        placement: PlacementConfig,
        size: int,
        negative_prompt: str = "",
        compiled: bool = False,
    ) -> None:
        super().__init__(folder, model, config, record, negative_prompt, compiled)
        model.check_size(size, size)
        self.frames = frames
        self.placement = placement
        self.size = size

    def _load(self, item: ObjectItem) -> Loaded:
        rng = np.random.default_rng(item_seed(item.seed, "place"))
        source = self.frames[int(rng.integers(len(self.frames)))]
        frame, label_ids = read_image(source.image), read_mask(source.mask)
        check_pair(frame, label_ids, source.image, source.mask)
        placed = place(label_ids, self.placement, rng, source.image)
        crop = square(placed.crop)
        return Loaded(
            frame,
            placed.box,
            crop,
            cut(frame, crop, self.size, self.size),
            box_mask(placed.box, crop, self.size, self.size, blurred=True),
            {
                "gt": f"{item.id}_gt.png",
                "position": f"{item.id}_pos.json",
                "source": source.id,
                "placement": placed.rule,
            },
            source.mask,
        )

    def _write(self, item: ObjectItem, loaded: Loaded, picture: np.ndarray) -> None:
        assert loaded.label_file is not None
        box, number = loaded.box, item.id.rpartition("/")[2]
        position = {f"{number}.png": {"pos_mask": [box.top, box.left], "size_mask": box.side}}
        write_json(self.folder / loaded.line["position"], position)
        write_bytes(self.folder / loaded.line["gt"], loaded.label_file.read_bytes())
        write_png(self.folder / f"{item.id}.png", paste_box(loaded.frame, picture, loaded.crop, box), noisy=True)

    def _is_done(self, item: ObjectItem, manifest: Manifest) -> bool:
        return all((self.folder / f"{item.id}{end}").exists() for end in (".png", "_gt.png", "_pos.json")) and (
            item.id in manifest
        )


class RefinementRun(InpaintingRun):
    """Draws the box of each picture over again, beginning with what is in it: `{object}/{i}.png`.

    Of a frame, a square around the box is drawn and put back with a feathered seam; pixels outside it stay as they
    are, byte for byte. Where `whole_frame` is set the model draws the frame, and what it gives is the picture, as
    published: the background then has gone through the VAE too.

    Args:
        size: side of the square the model draws, in pixels; whole frames are drawn at their own size.
        context: side of the crop over the box's.
        feather: width of the seam as a share of the box's side.
    """

    title = "refinement"

    def __init__(
        self,
        folder: Path,
        model: StableDiffusion,
        config: InpaintingConfig,
        record: Mapping[str, Any],
        size: int,
        context: float = 1.5,
        feather: float = 0.125,
        whole_frame: bool = False,
        negative_prompt: str = "",
        compiled: bool = False,
    ) -> None:
        super().__init__(folder, model, config, record, negative_prompt, compiled)
        if not context >= 1:
            raise GenValError(f"--context: expected 1 or more, the crop's side over the box's; found {context}.")
        if not feather >= 0:
            raise GenValError(f"--feather: expected 0 or more, a share of the box's side; found {feather}.")
        if not whole_frame:
            model.check_size(size, size)
        self.size = size
        self.context = context
        self.feather = feather
        self.whole_frame = whole_frame

    def _is_done(self, item: ObjectItem, manifest: Manifest) -> bool:
        assert item.picture is not None
        return super()._is_done(item, manifest) and manifest.records[item.id]["source"] == file_mark(item.picture.image)

    def _load(self, item: ObjectItem) -> Loaded:
        assert item.picture is not None
        mark = file_mark(item.picture.image)
        frame = read_image(item.picture.image)
        height, width = frame.shape[:2]
        box = read_box(item.picture, height, width)
        crop, drawn = Window(0, 0, height, width), (height, width)
        if not self.whole_frame:
            crop, drawn = square(crop_around(box, self.context, height, width)), (self.size, self.size)
        try:
            self.model.check_size(*drawn)
        except GenValError as error:
            raise GenValError(f"{item.picture.image}: {error} Leave --whole_frame out.") from error
        image, mask = cut(frame, crop, *drawn), box_mask(box, crop, *drawn)
        return Loaded(frame, box, crop, image, mask, {"source": mark})

    def _write(self, item: ObjectItem, loaded: Loaded, picture: np.ndarray) -> None:
        if not self.whole_frame:
            feather = round(self.feather * loaded.box.side)
            picture = paste_feathered(loaded.frame, picture, loaded.crop, loaded.box, feather)
        write_png(self.folder / f"{item.id}.png", picture, noisy=True)
