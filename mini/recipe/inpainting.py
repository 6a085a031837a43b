"""The small inpainting model: the UNet of the small Stable Diffusion, trained to generate a named object in a box."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genval.datasets.reading import read_image
from genval.diffusion.inpainting.model import save_inpainting
from genval.diffusion.training.autoencoder import to_model_range
from genval.diffusion.training.loop import Average, Log, adamw, fit, warm_cosine, weight_count
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed
from mini.recipe.views import held_out

CONTEXT = 1.5  # side of a crop over the side of its box, as in ood_objects/sd_inpaint.py


class ListedCrop(TypedDict):
    """A line of `training/objects.jsonl` with the box around its object: row, column and side in pixels."""

    image: str
    object: str
    box: tuple[int, int, int]
    text: str


@dataclass(frozen=True)
class InpaintingRecipe:
    """Crops and schedule."""

    size: int = 128  # pixels per side of a crop
    variants: int = 4  # crops of each image
    least_side: float = 0.15  # minimum side of an object as a fraction of the frame's height
    most_room: float = 1.5  # maximum ratio of the box's side to the object's
    steps: int = 6000
    seconds: float | None = None  # time limit
    batch_size: int = 128
    learning_rate: float = 4e-4
    warmup: float = 0.03  # fraction of the schedule
    ema: float = 0.998
    bare_names: float = 0.4  # fraction of prompts that are only the object's name, as in refinement
    prompt_dropout: float = 0.12  # trains the unconditional branch that classifier-free guidance needs
    kept_weight: float = 0.2  # weight of the loss outside the box, where the input contains the target
    seed: int = 0


@dataclass(frozen=True)
class ObjectCrops:
    """Square crops of streets around an object.

    Attributes:
        images: (N, 3, S, S) uint8 RGB.
        boxes: (N, 4) int64 top, left, bottom, right of the box to inpaint, in pixels of the crop.
        texts: N prompts, "a photo of a lion".
        names: N names, "lion".
        apart: (N,) bool, the held-out crops.
    """

    images: Tensor
    boxes: Tensor
    texts: list[str]
    names: list[str]
    apart: Tensor

    def __len__(self) -> int:
        return len(self.names)


def load_object_crops(data_dir: Path, recipe: InpaintingRecipe, limit: int | None, workers: int) -> ObjectCrops:
    """Crop squares around the objects of `data_dir/training/objects.jsonl`, some of them mirrored.

    The box is up to `most_room` times as large as the object and contains it at a random place. The crop is `CONTEXT`
    times as large as the box and centred on it, but inside the frame.

    Raises:
        GenValError: the list is missing or has no object that is large enough, or a file cannot be read.
    """
    path = data_dir / "training/objects.jsonl"
    records: list[dict[str, Any]] = read_jsonl(path, ListedCrop) if path.is_file() else []
    records = [line for line in records if line["object"]][:limit]
    heights = {read_image(data_dir / line["image"]).shape[0] for line in records[:1]}
    records = [line for line in records if line["box"][2] >= recipe.least_side * max(heights)]
    if not records:
        raise GenValError(
            f"{path} is missing or lists no object of at least {recipe.least_side:.0%} of the image's height. "
            f"Render the data first: python mini/render.py --output_dir {data_dir} --training_objects 8000"
        )
    images = np.empty((len(records), recipe.variants, 3, recipe.size, recipe.size), np.uint8)
    boxes = np.empty((len(records), recipe.variants, 4), np.int64)

    def load(index: int) -> None:
        record = records[index]
        frame = read_image(data_dir / record["image"])
        rng = random.Random(item_seed(recipe.seed, record["image"]))
        for variant in range(recipe.variants):
            crop, boxes[index, variant] = cut_crop(frame, record["box"], recipe, rng)
            images[index, variant] = crop.transpose(2, 0, 1)

    with ThreadPoolExecutor(workers) as pool, progress_bar(len(records), f"read {path.name}") as bar:
        for _ in pool.map(load, range(len(records))):
            bar.update()
    return ObjectCrops(
        torch.from_numpy(images).flatten(0, 1),
        torch.from_numpy(boxes).flatten(0, 1),
        [line["text"] for line in records for _ in range(recipe.variants)],
        [line["object"] for line in records for _ in range(recipe.variants)],
        held_out(len(records)).repeat_interleave(recipe.variants),
    )


def cut_crop(
    frame: np.ndarray, square: Sequence[int], recipe: InpaintingRecipe, rng: random.Random
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Return a crop around an object and the box in it.

    Args:
        frame: (H, W, 3) uint8.
        square: top, left, side of the square around the object, in pixels of the frame.
        recipe: size of the crop and of the box.
        rng: random generator.

    Returns:
        (size, size, 3) uint8, and top, left, bottom, right of the box in it.
    """
    height, width = frame.shape[:2]
    top, left, side = square
    box = min(round(side * rng.uniform(1, recipe.most_room)), int(height / CONTEXT))
    crop = round(CONTEXT * box)
    box_top, box_left = (
        min(max(start - rng.randint(0, max(box - side, 0)), 0), end - box)
        for start, end in ((top, height), (left, width))
    )
    crop_top, crop_left = (
        min(max(start - (crop - box) // 2, 0), end - crop) for start, end in ((box_top, height), (box_left, width))
    )
    pixels = frame[crop_top : crop_top + crop, crop_left : crop_left + crop]
    shrinks = crop > recipe.size
    pixels = cv2.resize(
        pixels, (recipe.size, recipe.size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )
    scale = recipe.size / crop
    y0, x0 = round((box_top - crop_top) * scale), round((box_left - crop_left) * scale)
    y1, x1 = (min(start + round(box * scale), recipe.size) for start in (y0, x0))
    if rng.random() < 0.5:
        return pixels[:, ::-1], (y0, recipe.size - x1, y1, recipe.size - x0)
    return pixels, (y0, x0, y1, x1)


def train_inpainting(
    crops: ObjectCrops,
    base: Path,
    recipe: InpaintingRecipe,
    output: Path,
    device: torch.device,
    log: Log = print,
) -> dict[str, Any]:
    """Fine-tune the UNet and text encoder of `base`; save them in fp16 in a folder that shares the other parts.

    The UNet's first convolution gets five more input channels (the mask and the latents of the masked image) with zero
    weights (Rombach et al., 2022, section 4.5). The text encoder is trained too, because the base was not trained on
    names of objects.

    Args:
        crops: from `load_object_crops`.
        base: a Stable Diffusion folder.
        recipe: size and schedule.
        output: folder to write, as `genval.diffusion.inpainting.model.save_inpainting` does.
        device: where to train.
        log: called with each line of text.

    Returns:
        Scores: last smoothed loss; loss inside the box of held-out crops with the right name, another name and no name;
        parameters, steps, images per second, seconds.
    """
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTokenizer

    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL.from_pretrained(base / "vae").float().to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer", trust_remote_code=False)
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    trained = _load_trained(base, device)
    average = Average(trained, recipe.ema)
    task = _build_task(vae, crops, tokenizer, scheduler.alphas_cumprod.to(device), recipe)
    optimisation = adamw(
        trained.parameters(), device, learning_rate=recipe.learning_rate, weight_decay=1e-2,
        schedule=warm_cosine(recipe.warmup), betas=(0.9, 0.999),
    )  # fmt: skip
    inside = (~crops.apart).nonzero()[:, 0].to(device)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    result = fit(
        "inpainting", lambda _: _losses(task, trained, inside, recipe, generator), optimisation, labels=["loss"],
        steps=recipe.steps, seconds=recipe.seconds, average=average, log=log,
    )  # fmt: skip
    seconds = result.seconds
    measured = task.measure(average.model, crops.apart.nonzero()[:, 0].to(device))
    shared = Path(os.path.relpath(base, output)).as_posix()
    save_inpainting(average.model["unet"], output, shared, text_encoder=average.model["text"])
    return {
        "loss": round(result.losses["loss"], 4),
        **measured,
        "unet_parameters": weight_count(trained["unet"]),
        "text_parameters": weight_count(trained["text"]),
        "crops": len(inside),
        "steps": result.steps,
        "images_per_second": round(result.steps * recipe.batch_size / seconds, 1),
        "seconds": round(seconds, 1),
    }


def _load_trained(base: Path, device: torch.device) -> nn.ModuleDict:
    """Load the widened UNet and the text encoder of `base`, in training mode."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", trust_remote_code=False).float().to(device)
    unet = widened(UNet2DConditionModel.from_pretrained(base / "unet").float())
    unet = unet.to(device, memory_format=torch.channels_last)
    return nn.ModuleDict({"unet": unet, "text": text_encoder}).train()


def _losses(
    task: _Task, models: Any, inside: Tensor, recipe: InpaintingRecipe, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a batch of the crops `inside` (N,); errors outside the box have a lower weight."""
    index = torch.randint(len(inside), (recipe.batch_size,), generator=generator, device=inside.device)
    chosen = inside[index]
    errors, masks = task.errors(models, chosen, task.sample_prompts(chosen, generator), generator)
    loss = (errors * (masks + recipe.kept_weight * (1 - masks))).mean()
    return loss, [loss]


def _build_task(vae: Any, crops: ObjectCrops, tokenizer: Any, alphas: Tensor, recipe: InpaintingRecipe) -> _Task:
    """Build the task with all tokenized prompts of the crops, the empty prompt last."""
    prompts = [*sorted({*crops.texts, *crops.names}), ""]
    limit = tokenizer.model_max_length
    ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
    return _Task(vae, crops, prompts, ids["input_ids"].to(alphas.device), alphas, recipe)


def widened(unet: Any) -> Any:
    """Return the UNet with additional input channels (mask and masked latents), whose weights are zero."""
    from diffusers import UNet2DConditionModel

    channels = unet.config.in_channels
    # Entries with an underscore are internal to diffusers; one of them would reset the number of channels.
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    wide = UNet2DConditionModel.from_config({**config, "in_channels": 2 * channels + 1})
    state = unet.state_dict()
    weight = torch.zeros_like(wide.conv_in.weight)
    weight[:, :channels] = state["conv_in.weight"]
    wide.load_state_dict(state | {"conv_in.weight": weight})
    return wide


class _Task:
    """The inputs and targets of the training; all crops are encoded once.

    Args:
        vae: encodes the crops.
        crops: the data.
        prompts: all prompts, the empty prompt last.
        ids: (P, tokens) of the prompts.
        alphas: the schedule's cumulative products.
        recipe: fractions of the kinds of prompts.
    """

    def __init__(
        self, vae: Any, crops: ObjectCrops, prompts: list[str], ids: Tensor, alphas: Tensor, recipe: InpaintingRecipe
    ) -> None:
        self._ids, self._alphas, self._recipe = ids, alphas, recipe
        device = ids.device
        row = {prompt: number for number, prompt in enumerate(prompts)}
        self._texts, self._names = (
            torch.tensor([row[text] for text in texts], device=device) for texts in (crops.texts, crops.names)
        )
        self._none = row[""]
        clean, masks, masked = [], [], []
        for at in range(0, len(crops), 256):
            part = slice(at, at + 256)
            pixels = to_model_range(crops.images[part].to(device))
            hidden = box_masks(crops.boxes[part].to(device), recipe.size)
            clean.append(_encode(vae, pixels))
            masked.append(_encode(vae, pixels * (1 - hidden)))
            masks.append(F.interpolate(hidden, clean[-1].shape[-2:]).half())
        self._clean, self._masks, self._masked = (torch.cat(parts) for parts in (clean, masks, masked))

    def sample_prompts(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Return the numbers of prompts for crops (B,): a sentence, a name or the empty prompt."""
        random_values = torch.rand(2, len(chosen), generator=generator, device=chosen.device)
        rows = torch.where(random_values[0] < self._recipe.bare_names, self._names[chosen], self._texts[chosen])
        return torch.where(random_values[1] < self._recipe.prompt_dropout, self._none, rows)

    def errors(self, models: Any, chosen: Tensor, prompts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return squared errors of the velocity (B, C, h, w) at random timesteps, and masks (B, 1, h, w), float32."""
        device = chosen.device
        clean, masks, masked = (part[chosen].float() for part in (self._clean, self._masks, self._masked))
        noise = torch.randn(clean.shape, generator=generator, device=device)
        times = torch.randint(len(self._alphas), (len(chosen),), generator=generator, device=device)
        signal, sigma = (part[times].sqrt().view(-1, 1, 1, 1) for part in (self._alphas, 1 - self._alphas))
        given = torch.cat([signal * clean + sigma * noise, masks, masked], 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = models["text"](self._ids).last_hidden_state[prompts]  # fewer prompts than crops: all of them
            predicted = models["unet"](given, times, states).sample
        return (predicted.float() - (signal * noise - sigma * clean)).square(), masks

    @torch.no_grad()
    def measure(self, models: Any, chosen: Tensor) -> dict[str, float]:
        """Return the mean squared error inside the box with the right, another and no name, with the same noise."""
        if not len(chosen):
            return {}
        other = self._texts[chosen.roll(self._recipe.variants * max(1, len(chosen) // 2 // self._recipe.variants))]
        asked = {"right": self._texts[chosen], "other": other, "none": torch.full_like(chosen, self._none)}
        metrics = {}
        for name, prompts in asked.items():
            generator = torch.Generator(chosen.device).manual_seed(0)
            total, count = 0.0, 0.0
            for part, rows in zip(chosen.split(256), prompts.split(256), strict=True):
                errors, masks = self.errors(models, part, rows, generator)
                total += float((errors * masks).sum())
                count += float(masks.sum()) * errors.shape[1]
            metrics[f"box_loss_{name}_name"] = round(total / count, 4)
        return metrics


def box_masks(boxes: Tensor, size: int) -> Tensor:
    """Return masks (B, 1, size, size) float32, 1 inside boxes (B, 4) of top, left, bottom, right."""
    line = torch.arange(size, device=boxes.device)
    top, left, bottom, right = boxes.unsqueeze(-1).unbind(1)
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1).float()


@torch.no_grad()
def _encode(vae: Any, pixels: Tensor) -> Tensor:
    """Return posterior means (B, C, h, w) float16 of pixels (B, 3, H, W) float32, -1..1."""
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
        return (vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half()
