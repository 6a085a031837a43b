"""Settings of ControlNet/clip_int.py. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag, group
from genval.runtime.settings import DeviceSettings, RunSettings, num_workers_flag, positive_int, skip_bad_flag

MODES = ("caption", "fast", "classic", "best")


@dataclass(frozen=True)
class InterrogatorConfig:
    """How captions are made.

    Raises:
        GenValError: an unknown mode, or a number below 1.
    """

    mode: str = flag(
        "fast",
        "caption: the captioner's sentence; fast: with CLIP's phrases ranked once; classic: with the best phrase of "
        "each list; best: with phrases added one by one",
        choices=MODES,
    )
    max_tokens: int = flag(32, "maximum length of the captioner's sentence in tokens", type=positive_int)
    max_flavors: int = flag(8, "maximum number of phrases added, in modes fast and best", type=positive_int)
    candidates: int = flag(96, "number of most similar flavors that mode best tries", type=positive_int)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise GenValError(f"Unknown mode {self.mode!r}: expected one of {', '.join(MODES)}.")
        if min(self.max_tokens, self.max_flavors, self.candidates) < 1:
            raise GenValError(f"Expected numbers above 0, found {self}.")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Settings of ControlNet/clip_int.py."""

    SCRIPT: ClassVar[str] = "ControlNet/clip_int"

    dataset: str | None = flag(
        None, "cityscapes, idd, acdc_{fog,night,rain,snow}, camvid, mini (path_dicts.py)", title="images"
    )
    images: str | None = flag(None, "a pattern instead of a data set: 'folder/**/*.png', in quotes")
    from_captions: str | None = flag(None, "a .json or .jsonl file of captions to filter, without captioning")
    split: str | None = flag(None, "folder of a split (default: all splits with public labels)")
    datasets_dir: str | None = flag(None, "folder of the data sets (default: datasets)")
    interrogator: InterrogatorConfig = group(InterrogatorConfig, "captions")
    blip: str = flag("Salesforce/blip-image-captioning-large", "hub name or folder", title="models and phrases")
    captioner: str | None = flag(
        None, "an image-to-text model of transformers instead of BLIP, such as Qwen/Qwen3-VL-8B-Instruct"
    )
    prompt_file: str | None = flag(None, "a text file with the prompt of --captioner")
    clip: str = flag("ViT-L-14/openai", "open_clip name, hf-hub:NAME, or folder")
    flavors: str | None = flag(None, "a file of phrases, or a folder of CLIP-interrogator's lists")
    filter: str | None = flag(None, "a file of phrases to remove (default: genval/captions/phrases/filter.txt)")
    no_filter: bool = flag(False, "remove nothing")
    output_dir: str = flag("captions", "folder of the captions", title="output")
    name: str | None = flag(None, "name of the set in the files (default: the data set, or images)")
    jsonl: str | None = flag(None, "also write the lines that train.py reads, optionally to a given file", bare="")
    skip_bad: bool = skip_bad_flag()
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device", precision="32-true")
    batch_size: int = flag(32, "images per forward pass", type=positive_int, title="speed")
    num_workers: int = num_workers_flag()
    preset: str | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.dataset, self.images, self.from_captions)) != 1:
            raise GenValError("Give one of --dataset NAME, --images PATTERN and --from_captions FILE.")
        if self.prompt_file is not None and self.captioner is None:
            raise GenValError("--prompt_file is the prompt of --captioner, and BLIP takes no prompt. Leave it out.")

    @property
    def set_name(self) -> str:
        """The name of the captioned set in the files."""
        return self.name or self.dataset or "images"
