"""Models on the Hugging Face hub, `OWNER/NAME` or pinned as `OWNER/NAME@REVISION`; their own code never runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genval.runtime.errors import GenValError


def split_revision(name: str) -> tuple[str, str | None]:
    """A hub name and its revision: a commit, a branch or a tag. A folder has none, whatever its name is.

    >>> split_revision("nvidia/segformer-b0@1c9cc33"), split_revision("nvidia/segformer-b0")
    (('nvidia/segformer-b0', '1c9cc33'), ('nvidia/segformer-b0', None))
    """
    repository, _, revision = name.partition("@")
    if Path(name).expanduser().is_dir() or not (repository and revision):
        return name, None
    return repository, revision


def pretrained(place: str) -> tuple[str, dict[str, Any]]:
    """What every `from_pretrained` of transformers is called with: the folder or hub name, and the options.

    Code that a model's repository brings is refused, without a question on the terminal.

    Args:
        place: a folder, or a hub name with or without a revision.
    """
    forbid_remote_code()
    name, revision = split_revision(place)
    return name, {"trust_remote_code": False, **({"revision": revision} if revision else {})}


def refuse_changed_weights(location: str, config: Any) -> None:
    """Refuse adapters and quantised models, which transformers would load as other weights without an error.

    Args:
        location: of `pretrained`.
        config: of transformers.

    Raises:
        GenValError: the folder has an adapter of peft, which would be added even to weights that contain it; or the
            config has a quantisation, which is ignored if its method is unknown, and lost in a change of precision.
    """
    if Path(location, "adapter_config.json").is_file():
        raise GenValError(
            f"{location} holds an adapter of peft (adapter_config.json). Merge it with its model (merge_and_unload), "
            "and save the result in a folder of its own."
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise GenValError(
            f"{location} is quantised (quantization_config: {method}). Give the model before quantisation."
        )


def forbid_remote_code() -> None:
    """Have transformers refuse a repository's code where a library calls it without `trust_remote_code=False`.

    It would ask on the terminal, and run the code for a "y" on standard input.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
