"""Networks that a library builds by name, with weights from a file: torchvision and segmentation_models_pytorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from genval.datasets.layouts import suggestion
from genval.runtime.errors import GenValError
from genval.runtime.messages import first_words
from genval.segmenters.base import Segmenter
from genval.segmenters.checkpoints import WithoutRandomValues, load_strictly, read_state_dict
from genval.segmenters.class_map import ClassMap, check_outputs, map_by_name
from genval.segmenters.normalisation import read_normalisation
from genval.segmenters.outputs import find_logits


class BuiltSegmenter(Segmenter):
    """A network from normalised pixels to logits, which may lie in a dictionary under `out`, as torchvision's do."""

    def run(self, pixels: Tensor) -> Tensor:
        logits: Tensor = find_logits(self.name, self.network(pixels), self.class_map)
        return logits


def load_torchvision(
    name: str,
    architecture: str,
    checkpoint: Path | None,
    device: torch.device,
    precision: str = "32-true",
    class_map: ClassMap | None = None,
) -> Segmenter:
    """Load one of torchvision's segmentation models: fcn, deeplabv3, lraspp.

    Args:
        name: as given by the user.
        architecture: as `torchvision.models.get_model` takes it, e.g. `deeplabv3_resnet50`.
        checkpoint: its state dict, with or without the auxiliary head; normalisation: see `read_normalisation`. None:
            torchvision's own weights (COCO images, the 21 classes of Pascal VOC), fetched if they are not in its cache.
        device: where it runs.
        precision: see `Segmenter`.
        class_map: see `Segmenter`.

    Raises:
        GenValError: no such architecture, weights that are missing or do not fit, or other classes without a class map.
    """
    from torchvision import models

    known = models.list_models(module=models.segmentation)
    if architecture not in known:
        raise GenValError(
            f"{name}: torchvision has no segmentation model {architecture!r}.{suggestion(architecture, known)} "
            f"Known: {', '.join(known)}."
        )
    if checkpoint is None:
        try:
            network = models.get_model(architecture, weights="DEFAULT", progress=False)
        except Exception as error:  # whatever urllib and the disk raise
            raise GenValError(
                f"{name}: torchvision's weights are not in its cache and cannot be fetched ({error}). "
                "Give your own: torchvision:NAME,CHECKPOINT."
            ) from error
        check_outputs(name, len(models.get_model_weights(architecture)["DEFAULT"].meta["categories"]), class_map)
        segmenter = BuiltSegmenter(name, network.to(device), precision=precision, class_map=class_map)
        segmenter.definition = architecture
        return segmenter

    def build(outputs: int, state: dict[str, Tensor]) -> nn.Module:
        auxiliary = {"aux_loss": any(key.startswith("aux_classifier.") for key in state)}
        options = {} if architecture.startswith("lraspp") else auxiliary
        network: nn.Module = models.get_model(
            architecture, weights=None, weights_backbone=None, num_classes=outputs, **options
        )
        return network

    return _load(name, architecture, checkpoint, build, "classifier.", 1, device, precision, class_map)


def load_smp(
    name: str,
    architecture: str,
    encoder: str,
    checkpoint: Path,
    device: torch.device,
    precision: str = "32-true",
    class_map: ClassMap | None = None,
) -> Segmenter:
    """Load a model of segmentation_models_pytorch, built with its defaults.

    Args:
        name: as given by the user.
        architecture: e.g. `unet`, in any capitals.
        encoder: e.g. `resnet34`.
        checkpoint: its state dict; normalisation: see `read_normalisation`.
        device: where it runs.
        precision: see `Segmenter`.
        class_map: see `Segmenter`.

    Raises:
        GenValError: the library is not installed, it has no such architecture or encoder, or the weights do not fit.
    """
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise GenValError(
            f"{name} needs segmentation_models_pytorch ({error}): pip install segmentation-models-pytorch"
        ) from error

    def build(outputs: int, state: dict[str, Tensor]) -> nn.Module:
        try:
            network: nn.Module = smp.create_model(
                architecture, encoder_name=encoder, encoder_weights=None, classes=outputs
            )
        except Exception as error:  # KeyError and RuntimeError for names, ValueError for what does not go together
            known = [kind.__name__.lower() for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()]
            raise GenValError(
                f"{name}: segmentation_models_pytorch cannot build {architecture} on {encoder}: {first_words(error)} "
                f"Architectures: {', '.join(known)}."
            ) from error
        return network

    # Every encoder of the library divides sides by 32 at most.
    return _load(
        name, f"{architecture},{encoder}", checkpoint, build, "segmentation_head.", 32, device, precision, class_map
    )


def _load(
    name: str,
    architecture: str,
    checkpoint: Path,
    build: Callable[[int, dict[str, Tensor]], nn.Module],
    head: str,
    size_divisor: int,
    device: torch.device,
    precision: str,
    class_map: ClassMap | None,
) -> Segmenter:
    """Read a state dict, build the network with as many outputs as its `head` has, and fill it strictly."""
    state = read_state_dict(checkpoint, device)
    biases = [value for key, value in state.items() if key.startswith(head) and key.endswith(".bias")]
    if not biases:
        raise GenValError(f"{checkpoint} holds no {head}*.bias: it is not a state dict of {architecture}.")
    outputs = len(biases[-1])
    normalisation = read_normalisation(checkpoint)
    class_map = map_by_name(str(checkpoint), normalisation.classes or state.classes, class_map, outputs)
    check_outputs(f"{name} ({checkpoint})", outputs, class_map)
    with warnings.catch_warnings(), WithoutRandomValues():
        warnings.simplefilter("ignore")
        network = build(outputs, state)
    load_strictly(network, state, checkpoint, architecture)
    segmenter = BuiltSegmenter(name, network, normalisation.mean, normalisation.std, precision, class_map)
    segmenter.reads_bgr = normalisation.channels == "bgr"
    segmenter.size_divisor = size_divisor
    segmenter.definition = architecture
    return segmenter
