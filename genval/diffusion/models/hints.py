"""Hints: label masks encoded as the conditioning image of a ControlNet.

The published encoding has one channel, (labelId + 1) / 34, with Cityscapes' labelIds -1..33. A ControlNet can also be
made for colours or for one channel per class, and for any label set. Its `config.json` records the encoding, which
training and generation use.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from genval.datasets.labels import CLASSES, IGNORE, LABEL_SPACES, PALETTE
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json

HINT_ENCODINGS = ("label_id", "colour", "one_hot")
# Entries of a ControlNet's config. Without LABELS_KEY the label set is that of Cityscapes.
ENCODING_KEY = "hint_encoding"
LABELS_KEY = "hint_labels"
# Increase of a hinge's pre-activation from one id to the next.
_HINGE_SLOPE = 2.0


@dataclasses.dataclass(frozen=True)
class LabelClass:
    """A class of a label set: its `id` in masks, its `name` and its RGB `colour`."""

    id: int
    name: str
    colour: tuple[int, int, int]

    @property
    def train_id(self) -> int:
        """The trainId of the Cityscapes class with this name; IGNORE if there is none."""
        return CLASSES.index(self.name) if self.name in CLASSES else IGNORE


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """The ids of a data set's masks.

    Attributes:
        name: a key of `genval.datasets.labels.LABEL_SPACES`, or the name of a user's own set.
        classes: the classes by ascending id.
        last_id: the largest id in masks, except ids that mean "no label".
        known: all ids that may occur in masks.
    """

    name: str
    classes: tuple[LabelClass, ...]
    last_id: int
    known: frozenset[int]

    @functools.cached_property
    def _known_table(self) -> np.ndarray:
        table = np.zeros(256, np.uint8)
        table[sorted(self.known)] = 1
        return table

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """RGB of each id, uint8 (256, 3); black for ids without a class."""
        table = np.zeros((256, 3), np.uint8)
        for one in self.classes:
            table[one.id] = one.colour
        return table

    @functools.cached_property
    def train_ids(self) -> np.ndarray:
        """The trainId of each id, uint8 (256,), by the names of the classes; IGNORE for others."""
        table = np.full(256, IGNORE, np.uint8)
        for one in self.classes:
            table[one.id] = one.train_id
        return table

    def check(self, mask: np.ndarray, source: object) -> None:
        """Check that a mask, uint8 (H, W), contains only ids of this set.

        Args:
            mask: ids.
            source: the mask's name in errors.

        Raises:
            GenValError: there are other ids; the message lists them.
        """
        if cv2.countNonZero(cv2.LUT(mask, self._known_table)) != mask.size:
            unknown = sorted(set(np.unique(mask).tolist()) - self.known)
            raise GenValError(
                f"{source} has ids that are not labels of {self.name}: {', '.join(map(str, unknown))}. Give "
                "the file with the raw ids, or a ControlNet for this label set (tool_add_control.py --hint_labels)."
            )


@dataclasses.dataclass(frozen=True)
class HintEncoding:
    """The encoding of a label set's masks as hints; `name` is one of `HINT_ENCODINGS`."""

    name: str
    labels: LabelSet

    @property
    def channels(self) -> int:
        """Channels of a hint: 1 for label_id, 3 for colour, one per class for one_hot."""
        return {"label_id": 1, "colour": 3}.get(self.name, len(self.labels.classes))

    @property
    def table(self) -> np.ndarray:
        """The hint of each id, float32 (256, channels), 0..1; zeros for ids without a label or class.

        label_id is (id + 1) / (last id + 1). Cityscapes' id -1 (licence plate) is 255 in a mask file and gives 0.
        """
        if self.name == "colour":
            return self.labels.colours.astype(np.float32) / 255
        table = np.zeros((256, self.channels), np.float32)
        if self.name == "label_id":
            ids = np.arange(self.labels.last_id + 1)
            table[ids, 0] = (ids + 1) / np.float32(self.labels.last_id + 1)
        else:
            table[[one.id for one in self.labels.classes], np.arange(self.channels)] = 1
        return table


def make_encoding(name: str, labels: str | Path = "cityscapes") -> HintEncoding:
    """Return the encoding `name` of a label set: a key of `LABEL_SPACES`, or a JSON file.

    The file is `{"0": {"name": "sky", "colour": [128, 128, 128]}, "1": "road", "2": null, ...}` and contains every id
    of the masks, 0..254. A name alone is a class of Cityscapes with its colour, null means no class, and 255 always
    means "no label". A segmenter's predictions are compared with the masks for classes with names of Cityscapes.

    Raises:
        GenValError: an unknown name, or a file that is missing or not of this form.
    """
    if name not in HINT_ENCODINGS:
        raise GenValError(f"--hint_encoding: expected one of {', '.join(HINT_ENCODINGS)}, found {name!r}.")
    if str(labels) in LABEL_SPACES:
        return HintEncoding(name, known_labels(str(labels)))
    path = Path(labels).expanduser()
    if not path.is_file():
        raise GenValError(
            f"--hint_labels: expected one of {', '.join(LABEL_SPACES)}, or a JSON file of ids; {path} does not exist."
        )
    return HintEncoding(name, _own_labels(path.stem, read_json(path, dict[str, Any]), path))


def _rgb(colour: Any) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {red}, {green}, {blue}")
    return red, green, blue


@functools.cache
def known_labels(name: str) -> LabelSet:
    """Return the label set of a key of `LABEL_SPACES`: its evaluated classes with Cityscapes' names and colours."""
    space = LABEL_SPACES[name]
    classes = [
        LabelClass(int(i), CLASSES[space.table[i]], _rgb(PALETTE[space.table[i]]))
        for i in np.flatnonzero(space.table != IGNORE)
    ]
    known = np.flatnonzero(space.known).tolist()
    # Ids of 250 and above mean "no label" in the data sets.
    return LabelSet(name, tuple(classes), max(i for i in known if i < 250), frozenset(known))


CITYSCAPES_IDS = HintEncoding("label_id", known_labels("cityscapes"))
"""The published encoding."""


def encode_hint(masks: torch.Tensor, encoding: HintEncoding = CITYSCAPES_IDS) -> torch.Tensor:
    """Encode (B, H, W) uint8 masks as (B, channels, H, W) float32 hints, 0..1, in channels-last memory format."""
    if masks.dtype != torch.uint8 or masks.ndim != 3:
        raise ValueError(f"expected (B, H, W) uint8, found {tuple(masks.shape)} {masks.dtype}")
    return _device_table(encoding, masks.device)[masks.int()].permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _device_table(encoding: HintEncoding, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(encoding.table).to(device)


def record_encoding(controlnet: Any, encoding: HintEncoding = CITYSCAPES_IDS) -> None:
    """Record the encoding in a ControlNet's config, which is saved in `config.json`."""
    labels = encoding.labels
    own: dict[str, Any] = {str(i): None for i in sorted(labels.known - {255})}
    own |= {str(one.id): {"name": one.name, "colour": list(one.colour)} for one in labels.classes}
    controlnet.register_to_config(
        **{
            ENCODING_KEY: encoding.name,
            LABELS_KEY: labels.name if labels.name in LABEL_SPACES else {"name": labels.name, "classes": own},
        }
    )


def read_encoding(controlnet: Any, source: object) -> HintEncoding:
    """Return the encoding that a ControlNet's config records.

    Args:
        controlnet: diffusers' ControlNetModel.
        source: the ControlNet's name in errors, usually its folder.

    Raises:
        GenValError: the config has no known encoding, or its channels differ from the ControlNet's.
    """
    channels = controlnet.config.conditioning_channels
    name, labels = controlnet.config.get(ENCODING_KEY), controlnet.config.get(LABELS_KEY, "cityscapes")
    if name not in HINT_ENCODINGS:
        raise GenValError(
            f"{source} does not read label masks: expected {ENCODING_KEY!r}: one of {', '.join(HINT_ENCODINGS)} in its "
            f"config.json, found {name!r} and {channels} hint channels. Make one with ControlNet/tool_add_control.py "
            "and train it, or add the entry ('label_id' if it was trained on (labelId + 1) / 34)."
        )
    if isinstance(labels, str) and labels in LABEL_SPACES:
        encoding = HintEncoding(name, known_labels(labels))
    elif isinstance(labels, dict):
        encoding = HintEncoding(name, _own_labels(str(labels.get("name")), labels.get("classes"), source))
    else:
        raise GenValError(
            f"{source}: {LABELS_KEY!r} in its config.json is {labels!r}: expected one of {', '.join(LABEL_SPACES)} or "
            "a table of ids. Make the ControlNet again with ControlNet/tool_add_control.py."
        )
    if channels != encoding.channels:
        raise GenValError(
            f"{source} has {channels} hint channels, but {ENCODING_KEY!r}: {name!r} of {encoding.labels.name} has "
            f"{encoding.channels}. Fix its config.json, or make it again with ControlNet/tool_add_control.py."
        )
    return encoding


def check_labels(encoding: HintEncoding, label_space: str, source: object) -> None:
    """Check that the masks have the label set of the ControlNet.

    Args:
        encoding: of the ControlNet.
        label_space: of the masks, a key of `LABEL_SPACES` or a JSON file.
        source: the ControlNet's name in errors.

    Raises:
        GenValError: the label sets differ.
    """
    if encoding.labels.name not in (label_space, Path(label_space).stem):
        raise GenValError(
            f"{source} reads masks of {encoding.labels.name}, but these frames have {label_space} masks. Give a "
            f"ControlNet made with --hint_labels {label_space}, or other frames."
        )


@torch.no_grad()
def init_hinges(conv: torch.nn.Conv2d, encoding: HintEncoding = CITYSCAPES_IDS) -> None:
    """Initialise the first convolution of a hint embedding as hinges: output c is SiLU(k (hint - t_c)).

    With the default initialisation, neighbouring ids have almost the same output. The thresholds t_c are spread over
    the midpoints between the ids of consecutive classes, so linear combinations of the outputs separate the classes.

    Args:
        conv: a convolution with one input channel and an odd kernel; only its centre weight becomes nonzero.
        encoding: a label_id encoding.

    Raises:
        GenValError: another encoding than label_id.
    """
    if encoding.name != "label_id":
        raise GenValError(
            f"--hint_init hinges is for --hint_encoding label_id, found {encoding.name}. Give --hint_init default."
        )
    ids = np.array([-1, *(one.id for one in encoding.labels.classes)])
    midpoints = (ids[1:] + ids[:-1]) / 2
    places = np.linspace(0, len(midpoints) - 1, conv.out_channels)
    scale = encoding.labels.last_id + 1
    thresholds = (np.interp(places, np.arange(len(midpoints)), midpoints) + 1) / scale
    slope = _HINGE_SLOPE * scale
    height, width = conv.kernel_size
    conv.weight.zero_()
    conv.weight[:, 0, height // 2, width // 2] = slope
    assert conv.bias is not None
    conv.bias.copy_(torch.from_numpy(-slope * thresholds))


def _own_labels(name: str, classes: Any, source: object) -> LabelSet:
    """Return the label set of `{"0": {"name": "sky", "colour": [128, 128, 128]}, "1": "road", "2": null, ...}`."""
    try:
        entries = {int(key): entry for key, entry in classes.items()}
        found = [_own_class(i, entries[i]) for i in sorted(entries) if entries[i] is not None]
        if not found or min(entries) < 0 or max(entries) > 254 or len(entries) < len(classes):
            raise ValueError(f"{len(found)} classes with ids {sorted(entries)}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GenValError(
            f'{source}: expected a label set such as {{"0": {{"name": "sky", "colour": [128, 128, 128]}}, "1": "road", '
            f"...}} with ids 0..254, colours 0..255 and names without a colour being Cityscapes', found something else "
            f"({type(error).__name__}: {error}). Fix it."
        ) from error
    return LabelSet(name, tuple(found), max(entries), frozenset([*entries, 255]))


def _own_class(label_id: int, entry: Any) -> LabelClass:
    if isinstance(entry, str):
        return LabelClass(label_id, entry, _rgb(PALETTE[CLASSES.index(entry)]))
    return LabelClass(label_id, str(entry["name"]), _rgb(entry["colour"]))
