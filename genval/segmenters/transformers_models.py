"""Semantic segmentation models of the transformers library.

They predict one class per pixel (SegFormer, UPerNet, BEiT, DPT, ...), or queries that each have a mask and a class
(MaskFormer, Mask2Former, OneFormer).
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.hub import pretrained, split_revision
from genval.runtime.paths import find_below, resolve
from genval.segmenters.base import Segmenter
from genval.segmenters.class_map import ClassMap, check_outputs, map_by_name
from genval.segmenters.class_names import as_names

_EXPECTED = "Expected config.json, model.safetensors and preprocessor_config.json in a folder, or a name on the hub."

_QUERY_MODELS = {
    "maskformer": "MaskFormerForInstanceSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "oneformer": "OneFormerForUniversalSegmentation",
}
"""The class of each model type with queries."""

_NOT_DEFINING = {"transformers_version", "_name_or_path", "dtype"}
"""Entries of a config that do not decide about predictions."""

_QUERIES_AT_A_TIME = 10
_SMALLEST_SCORE = 1e-12
_ONEFORMER_TASK = "the task is semantic"


class TransformersSegmenter(Segmenter):
    """A transformers semantic segmentation model on images at their native size.

    Mean, deviation and scale are its image processor's; the processor's resize is not applied. Vision transformers get
    whole patches, and their position embeddings are interpolated to the image's size; DPT needs squares as well.
    """

    network: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patch = getattr(self.network.config, "patch_size", 1)
        self.size_divisor = patch if isinstance(patch, int) else 1
        interpolates = "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if interpolates else {}
        # DPT without a backbone of its own takes the number of patches for that of a square.
        config = self.network.config
        self.square = config.model_type == "dpt" and config.backbone_config is None

    def pad(self, pixels: Tensor) -> Tensor:
        if self.square:
            side = max(pixels.shape[-2:])
            pixels = F.pad(pixels, (0, side - pixels.shape[-1], 0, side - pixels.shape[-2]))
        return super().pad(pixels)

    def run(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=pixels, **self.options).logits
        return logits


class QuerySegmenter(Segmenter):
    """A transformers model whose queries each have a mask and a distribution over classes, on images at native size.

    A class's score at a pixel is the sum over queries q of p(class | q) * sigmoid(mask of q), without "no object":
    what the image processors' `post_process_semantic_segmentation` computes. Such scores are not a distribution: their
    sum is not 1. The logits are their logarithms, so that the softmax is each class's share of the sum, and the
    most probable class is that of the scores. Calibration is measured on that share.

    Mask2Former's masks are resized to the image before the sigmoid, as its authors do (transformers resizes them to
    384x384 there, the size its processor makes of every image); those of the others after the sum.

    Args:
        task: OneFormer's tokenised task, int64 (1, 77).
    """

    network: Any
    of_queries = True

    def __init__(self, *args: Any, task: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.size_divisor = 32
        self.masks_first = self.network.config.model_type == "mask2former"
        self.task = task

    def run(self, pixels: Tensor) -> Tensor:
        inputs = {"pixel_values": pixels}
        if self.task is not None:
            inputs["task_inputs"] = self.task.to(pixels.device).expand(len(pixels), -1)
        outputs = self.network(**inputs)
        class_scores = outputs.class_queries_logits.float().softmax(-1)[..., :-1]
        masks = outputs.masks_queries_logits.float()
        size = pixels.shape[-2:]
        if self.masks_first:
            scores = torch.zeros((), device=masks.device)
            # All masks at the size of the image would be 100 floats per pixel.
            for start in range(0, masks.shape[1], _QUERIES_AT_A_TIME):
                some = slice(start, start + _QUERIES_AT_A_TIME)
                share = F.interpolate(masks[:, some], size, mode="bilinear", align_corners=False).sigmoid()
                scores = scores + torch.einsum("bqc,bqhw->bchw", class_scores[:, some], share)
        else:
            scores = torch.einsum("bqc,bqhw->bchw", class_scores, masks.sigmoid())
            scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
        return scores.clamp(min=_SMALLEST_SCORE).log()


def load_transformers(
    name: str,
    source: str,
    device: torch.device,
    precision: str = "32-true",
    checkpoint_root: str | Path = "checkpoints",
    class_map: ClassMap | None = None,
) -> Segmenter:
    """Load a folder in the transformers format, or a name on the Hugging Face hub, for semantic segmentation.

    Args:
        name: as given by the user.
        source: a folder (relative: from the repository's root, or below `checkpoint_root`), else a name on the hub,
            which pins a revision as `NAME@REVISION`.
        device: where the model goes.
        precision: see `Segmenter`.
        checkpoint_root: where a folder is looked for too.
        class_map: see `Segmenter`.

    Raises:
        GenValError: the files are missing or damaged, hold no semantic segmentation model, the weights do not match
            the config key by key, or the model does not have 19 labels in the order of the trainIds and no class map.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a stage has one bar, and this would be another
    place, local = _locate(source, checkpoint_root)
    location, options = pretrained(place)
    options["local_files_only"] = local
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(location, **options)
            mean, std, reads_bgr = _normalisation(location, config.model_type, options)
            class_map = map_by_name(location, as_names(config.id2label), class_map)
            check_outputs(location, config.num_labels, class_map)
            kind = _QUERY_MODELS.get(config.model_type)
            factory = getattr(transformers, kind) if kind else transformers.AutoModelForSemanticSegmentation
            network, report = factory.from_pretrained(
                location, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
                **options,
            )  # fmt: skip
            task = _oneformer_task(location, options) if config.model_type == "oneformer" else None
    except GenValError:
        raise
    except Exception as error:  # OSError for what is missing, ValueError for what does not fit, and safetensors' own
        reason = str(error).partition(chr(10))[0]
        if local and not Path(location).is_dir():
            reason = f"there is no such folder, the hub cannot be reached, and {_cached(place)}."
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = "it needs code of its own, which is never run."
        raise GenValError(f"Cannot load a semantic segmentation model from {location}: {reason} {_EXPECTED}") from error
    problems = [f"{kind.removesuffix('_keys')}: {_shorten(keys)}" for kind, keys in report.items() if keys]
    if problems:
        raise GenValError(f"The weights in {location} do not fit its config.json: {'; '.join(problems)}.")
    _check_numbers(location, local, network)
    arguments = (name, network.to(device), mean, std, precision, class_map)
    segmenter = QuerySegmenter(*arguments, task=task) if kind else TransformersSegmenter(*arguments)
    segmenter.reads_bgr = reads_bgr
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_DEFINING}
    segmenter.definition = json.dumps(values, sort_keys=True, default=str)
    segmenter.revision = getattr(config, "_commit_hash", None)
    return segmenter


def _locate(source: str, checkpoint_root: str | Path) -> tuple[str, bool]:
    """The folder or the hub's name, and whether to ask nobody for it.

    Raises:
        GenValError: it can only be a folder, and is none; or the hub does not have it.
    """
    folder = resolve(source) if resolve(source).is_dir() else find_below(checkpoint_root, source)
    if folder is not None:
        return str(folder), True
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise GenValError(f"There is no folder {resolve(source)}. {_EXPECTED}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    repository, revision = split_revision(source)
    try:
        # Asked first and once: loading would try several times, for half a minute, and print each time.
        HfApi().model_info(repository, revision=revision, timeout=10)
    except GatedRepoError as error:
        raise GenValError(f"The hub's {source} is gated: accept its terms, then: hf auth login") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise GenValError(
            f"There is no folder {resolve(source)}, and the Hugging Face hub has no model {source!r}. {_EXPECTED}"
        ) from error
    except Exception:  # no network, or none to the hub: a copy in the cache will do
        return source, True
    return source, False


def _cached(location: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    name, revision = split_revision(location)
    here = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    return "the copy in its cache is incomplete" if here else "its cache holds no copy"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the hub's log: the errors contain the relevant part."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _oneformer_task(location: str, options: Mapping[str, Any]) -> Tensor:
    """OneFormer's task as its processor makes it: the tokens of a sentence, 0 where there are none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location, **options)
    tokens = tokenizer(_ONEFORMER_TASK, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    task: Tensor = tokens["input_ids"] * tokens["attention_mask"]
    return task


def _check_numbers(location: str, local: bool, network: nn.Module) -> None:
    """Refuse weights that are whole numbers, truth values or complex: transformers makes float32 of them."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    def find(file: str) -> str | None:
        found: str | None = cached_file(
            location,
            file,
            local_files_only=local,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return found

    index = find("model.safetensors.index.json")
    parts = set(read_json(Path(index))["weight_map"].values()) if index else {"model.safetensors"}
    real = {key for key, value in network.state_dict().items() if value.is_floating_point()}
    for path in filter(None, map(find, sorted(parts))):
        with safe_open(path, "pt") as stream:
            kinds = {key: stream.get_slice(key).get_dtype() for key in stream.keys() if key in real}  # noqa: SIM118
        wrong = [f"{key} ({kind})" for key, kind in kinds.items() if not kind.startswith(("F", "BF"))]
        if wrong:
            raise GenValError(f"The weights in {path} are no real numbers: {_shorten(wrong)}. Save them as float32.")


def _normalisation(location: str, model_type: str, options: Mapping[str, Any]) -> tuple[list[float], list[float], bool]:
    """A processor's (x * rescale - mean) / std as mean and deviation on the scale 0..255, and whether it takes BGR."""
    from transformers import AutoImageProcessor, OneFormerImageProcessor

    if model_type == "oneformer":  # its processor fetches lists of classes when it is made
        values: dict[str, Any] = OneFormerImageProcessor.get_image_processor_dict(location, **options)[0]
    else:
        values = AutoImageProcessor.from_pretrained(location, **options).to_dict()
    # Not every processor has every step: MobileViT's, for one, does not normalise, and wants BGR.
    scale = values["rescale_factor"] if values.get("do_rescale") else 1.0
    mean, std = (values["image_mean"], values["image_std"]) if values.get("do_normalize") else ([0.0] * 3, [1.0] * 3)
    reads_bgr = bool(values.get("do_flip_channel_order"))
    if scale == 1.0 and 0 < max(mean) <= 1 and max(std) <= 1:
        raise GenValError(
            f"{location}: preprocessor_config.json normalises pixels 0..255 with mean {mean} and std {std}, which are "
            'for pixels 0..1. Set "do_rescale": true and "rescale_factor": 0.00392156862745098.'
        )
    return [value / scale for value in mean], [value / scale for value in std], reads_bgr


def _shorten(keys: Any) -> str:
    names = sorted(str(key) for key in keys)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
