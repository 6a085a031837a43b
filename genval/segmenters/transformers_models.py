"""Semantic segmentation models of the transformers library.

They give logits per pixel (`dense_models`), or queries that each have a mask and a class (`query_models`); some take
squares of one size alone (`windows`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.hub import pretrained, refuse_changed_weights, split_revision
from genval.runtime.messages import listed
from genval.runtime.paths import resolve
from genval.segmenters.base import Segmenter
from genval.segmenters.checkpoints import EXPECTED_FILES, find_folder
from genval.segmenters.class_map import ClassMap, check_outputs, map_by_name
from genval.segmenters.class_names import as_names
from genval.segmenters.dense_models import TransformersSegmenter
from genval.segmenters.processor import Processor, read_processor
from genval.segmenters.query_models import QuerySegmenter
from genval.segmenters.windows import WINDOWED, WindowedQueries, WindowedTransformer

# A model with several heads, one of which is for semantic segmentation.
_ALSO_SEGMENTS = ("Tipsv2DptForDensePrediction",)

_NOT_DEFINING = {"transformers_version", "_name_or_path", "dtype"}
"""Entries of a config that do not decide about predictions."""

_ONEFORMER_TASK = "the task is semantic"


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
            the config key by key, are quantised or those of an adapter, or the model does not have 19 labels in the
            order of the trainIds and no class map.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a stage has one bar, and this would be another
    place, local = _locate(source, checkpoint_root)
    location, options = pretrained(place)
    options["local_files_only"] = local
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(location, **options)
            factory, _ = _find_class(location, config)
            _check_form(location, config, class_map)
            processor = read_processor(location, config.model_type, options)
            class_map = map_by_name(location, as_names(config.id2label), class_map)
            check_outputs(location, config.num_labels, class_map)
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
        raise GenValError(
            f"Cannot load a semantic segmentation model from {location}: {reason} {EXPECTED_FILES}"
        ) from error
    lists = {kind.removesuffix("_keys"): sorted(keys, key=str) for kind, keys in report.items() if keys}
    problems = [f"{kind}: {listed(keys)}" for kind, keys in lists.items()]
    if problems:
        raise GenValError(f"The weights in {location} do not fit its config.json: {'; '.join(problems)}.")
    _check_numbers(location, local, network)
    segmenter = wrap(name, network.to(device), processor, precision, class_map, task)
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_DEFINING}
    segmenter.definition = json.dumps(values, sort_keys=True, default=str)
    if config.model_type in WINDOWED:
        segmenter.definition += str(processor)
    segmenter.revision = getattr(config, "_commit_hash", None)
    return segmenter


def wrap(
    name: str,
    network: Any,
    processor: Processor,
    precision: str = "32-true",
    class_map: ClassMap | None = None,
    task: Tensor | None = None,
) -> Segmenter:
    """Return a segmenter of a transformers model that is on its device; arguments as of `QuerySegmenter`."""
    arguments = (name, network, processor.mean, processor.std, precision, class_map)
    has_queries = _find_class(name, network.config)[1]
    segmenter: Segmenter
    if network.config.model_type in WINDOWED:
        segmenter = (WindowedQueries if has_queries else WindowedTransformer)(*arguments, processor=processor)
    else:
        segmenter = QuerySegmenter(*arguments, task=task) if has_queries else TransformersSegmenter(*arguments)
    segmenter.processor = processor
    segmenter.reads_bgr = processor.reads_bgr
    return segmenter


def _find_class(location: str, config: Any) -> tuple[Any, bool]:
    """Return the class of a config's model, and whether it has queries.

    Raises:
        GenValError: transformers has no segmentation model of this type, or the weights are those of another class.
    """
    from transformers.models.auto import modeling_auto

    per_pixel = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    with_queries = modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    for mapping in (per_pixel, with_queries):
        if type(config) in mapping:
            found: Any = mapping[type(config)]
            saved = config.architectures or [found.__name__]
            # Some models for poses or depth have the same keys.
            if not {found.__name__, *_ALSO_SEGMENTS} & set(saved):
                raise GenValError(f"{location} holds a {saved[0]}: expected a {found.__name__}. {EXPECTED_FILES}")
            return found, mapping is with_queries
    known = ", ".join(sorted(kind.model_type for mapping in (per_pixel, with_queries) for kind in mapping))
    raise GenValError(
        f"Cannot load a semantic segmentation model from {location}: its type is {config.model_type!r}. The installed "
        f"transformers segments with {known}. Wrap another network in a Python function (module:function)."
    )


def _check_form(location: str, config: Any, class_map: ClassMap | None) -> None:
    """Refuse what transformers would load as something else without a word."""
    refuse_changed_weights(location, config)
    if class_map is None and set(config.id2label) != set(range(config.num_labels)):
        raise GenValError(
            f"{location}: id2label of config.json must name the outputs 0 to {config.num_labels - 1}, found "
            f"{listed(sorted(config.id2label))}. Give the meaning of each output with --class_map (trainids: the 19 in "
            "the order of Cityscapes)."
        )


def _locate(source: str, checkpoint_root: str | Path) -> tuple[str, bool]:
    """The folder or the hub's name, and whether to ask nobody for it.

    Raises:
        GenValError: it can only be a folder, and is none; or the hub does not have it.
    """
    folder = find_folder(source, checkpoint_root)
    if folder is not None:
        return str(folder), True
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
            f"There is no folder {resolve(source)}, and the Hugging Face hub has no model {source!r}. {EXPECTED_FILES}"
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

    def parts_of(name: str) -> list[str]:
        index = find(f"{name}.index.json")
        names = set(read_json(Path(index))["weight_map"].values()) if index else {name}
        return list(filter(None, map(find, sorted(names))))

    real = {key for key, value in network.state_dict().items() if value.is_floating_point()}
    parts = parts_of("model.safetensors")
    for path in parts:
        with safe_open(path, "pt") as stream:
            kinds = {key: stream.get_slice(key).get_dtype() for key in stream.keys() if key in real}  # noqa: SIM118
        _refuse(path, [f"{key} ({kind})" for key, kind in kinds.items() if not kind.startswith(("F", "BF"))])
    for path in [] if parts else parts_of("pytorch_model.bin"):
        tensors = torch.load(path, map_location="meta", weights_only=True)
        kinds = {key: value.dtype for key, value in tensors.items() if key in real}
        _refuse(path, [f"{key} ({kind})" for key, kind in kinds.items() if not kind.is_floating_point])


def _refuse(path: str, wrong: list[str]) -> None:
    if wrong:
        raise GenValError(f"The weights in {path} are no real numbers: {listed(sorted(wrong))}. Save them as float32.")
