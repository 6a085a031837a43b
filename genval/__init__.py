"""GenVal: how far a street-scene segmentation model can be trusted in conditions that nobody has labelled.

The functions here run the same stages as the scripts, on the same files, and resume like them. Their keywords are the
scripts' flags.

    import genval

    genval.generate("fog", preset="mini", num_samples=16)
    result = genval.evaluate("mini-segformer-hf", "Cityscapes_fog", preset="mini")
    print(result.metrics()["miou"], result.metrics()["ece"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from genval.diffusion.generators import GeneratedSet
    from genval.evaluation.segmentation import Evaluated

__all__ = ["compare", "evaluate", "generate", "load_segmenter"]


def load_segmenter(
    name: str, device: torch.device | str = "cpu", precision: str = "32-true", **options: Any
) -> nn.Module:
    """Load a segmenter.

    Args:
        name: a name of path_dicts.py, or a specification such as `hf:NAME`, `mmseg:CONFIG,CHECKPOINT` or
            `module:function`.
        device: where it runs.
        precision: dtype of weights and arithmetic, as Lightning names it.
        options: as for `genval.segmenters.load_segmenter`.

    Returns:
        A module: `segmenter(images, size)` maps RGB uint8 (B, 3, H, W) to logits (B, 19, *size).

    Raises:
        GenValError: the name is unknown, or its weights are missing or do not fit.
    """
    import torch

    from genval.segmenters import load_segmenter as load

    return load(name, torch.device(device), precision, **options)


def generate(domain: str, preset: str | None = None, **flags: Any) -> GeneratedSet:
    """Generate the images of a domain on labelled frames, as ControlNet/style_transfer.py does.

    Args:
        domain: fog, night, rain, snow, india, or a text.
        preset: "mini" selects the mini world's data and checkpoints.
        flags: of the script, by name: `num_samples=16`.

    Returns:
        The generated set: its folder, and how many images were generated.

    Raises:
        GenValError: an input is missing or bad, or the folder holds images of other settings.
        TypeError: a flag is unknown.
    """
    from genval.diffusion.generators import generate_domain
    from genval.diffusion.settings import StyleTransferSettings
    from genval.runtime.flags import make_settings

    done = generate_domain(make_settings(StyleTransferSettings, preset, domain=domain, **flags))
    assert done is not None  # this is the first process
    return done


def evaluate(segmenter: str | nn.Module, dataset: str, preset: str | None = None, **flags: Any) -> Evaluated:
    """Evaluate a segmenter on a labelled data set, as relis/eval.py does.

    Args:
        segmenter: a name as for `load_segmenter`, or a loaded segmenter with a `name`.
        dataset: Cityscapes, ACDC, Cityscapes_fog, ...
        preset: "mini" selects the mini world's data and checkpoints.
        flags: of the script, by name: `cond="fog", save=["predictions", "logits"]`.

    Returns:
        The results; `metrics()` gives mIoU, ECE and the others.

    Raises:
        GenValError: a data set or a checkpoint is missing, an image is bad, or a result cannot be written.
        TypeError: a flag is unknown.
    """
    from genval.evaluation.segmentation import evaluate_all
    from genval.evaluation.settings import EvalScriptSettings
    from genval.runtime.flags import make_settings

    name, module = (segmenter, None) if isinstance(segmenter, str) else (str(segmenter.name), segmenter)
    settings = make_settings(EvalScriptSettings, preset, segmenters=name, trg_dataset=dataset, **flags)
    return evaluate_all(settings, module)[0]


def compare(preset: str | None = None, **flags: Any) -> dict[str, Any]:
    """Compare the synthetic verdict with the reference sets, as report/correlate.py does, without writing files.

    Args:
        preset: "mini" selects the mini world's results.
        flags: of the script, by name: `domains=["fog", "night"]`.

    Returns:
        What `correlation.json` holds, see `genval.report.schema`; `["verdict"]` is the verdict in sentences.

    Raises:
        GenValError: there are no results, or a file is damaged.
        TypeError: a flag is unknown.
    """
    from genval.report.settings import CorrelationSettings
    from genval.report.study import correlate
    from genval.runtime.flags import make_settings

    return correlate(make_settings(CorrelationSettings, preset, **flags)).to_json()
