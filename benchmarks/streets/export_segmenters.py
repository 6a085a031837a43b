"""Export published Cityscapes segmenters, in PyTorch code of their authors, to TorchScript with a `FILE.pt.json`.

EdgeNets (github.com/sacmehta/EdgeNets, commit 2b232d3: DiCENet and ESPNetv2 of several widths, each for two input
sizes) and ESPNet (github.com/sacmehta/ESPNet, commit afe71c3), both MIT. Their code is imported and run: clone them
yourself. Weights are loaded strictly. All have 20 outputs, the last of which is background.

Reads:  EDGENETS/model/segmentation/model_zoo/{dicenet,espnetv2}/*_city_*.pth, ESPNET/pretrained/decoder/*.pth
Writes: OUTPUT/{name}-{width}.pt and .pt.json: networks for inputs of 512x256 and of 1024x512

    git clone https://github.com/sacmehta/EdgeNets; git clone https://github.com/sacmehta/ESPNet
    python benchmarks/streets/export_segmenters.py --edgenets EdgeNets --espnet ESPNet
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve

OUTPUTS = 20
# test/VisualizeResults.py of ESPNet: of BGR pixels on 0..255, which are divided by 255 after the normalisation.
ESPNET_MEAN, ESPNET_STD = [72.3923111, 82.90893555, 73.15840149], [45.3192215, 46.15289307, 44.91483307]
ESPNET_SIZE = (1024, 512)


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of benchmarks/streets/export_segmenters.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/export_segmenters"

    edgenets: str | None = flag(None, "folder of github.com/sacmehta/EdgeNets")
    espnet: str | None = flag(None, "folder of github.com/sacmehta/ESPNet")
    output: str = flag("checkpoints/streets/published", "folder of the exported networks")
    preset: str | None = None


def main(settings: ExportSettings) -> None:
    output = resolve(settings.output)
    count = 0
    if settings.edgenets:
        count += export_edgenets(resolve(settings.edgenets), output)
    if settings.espnet:
        count += export_espnet(resolve(settings.espnet), output)
    if not count:
        raise GenValError("Nothing to export. Give --edgenets and --espnet, the folders of the two repositories.")
    print(f"wrote {count} networks to {settings.output}")


def export_edgenets(source: Path, output: Path) -> int:
    """Export every Cityscapes network of EdgeNets; return their number."""
    files = sorted(source.glob("model/segmentation/model_zoo/*/*_city_*.pth"))
    if not files:
        raise GenValError(f"{source}/model/segmentation/model_zoo has no *_city_*.pth. Clone sacmehta/EdgeNets.")
    sys.path.insert(0, str(source))
    from torch.nn.functional import channel_shuffle

    # The same permutation; the original reads the size of `x.data`, which tracing would keep as constants.
    layers: Any = importlib.import_module("nn_layers.cnn_utils")
    layers.Shuffle.forward = lambda self, x: channel_shuffle(x, self.groups)
    for file in files:
        match = re.fullmatch(r"(dicenet|espnetv2)_s_([\d.]+)_city_(\d+)x(\d+)", file.stem)
        if match is None:
            raise GenValError(f"{file}: expected a name such as dicenet_s_1.0_city_512x256.pth.")
        family, scale, width, height = match[1], float(match[2]), int(match[3]), int(match[4])
        # The defaults of test_segmentation.py; 224 is part of DiCENet's architecture and not the input's size.
        args = SimpleNamespace(
            s=scale, channels=3, model_width=224, model_height=224, num_classes=1000, weights="", dataset="city",
            classes=OUTPUTS,
        )  # fmt: skip
        module: Any = importlib.import_module(f"model.segmentation.{family}")
        network_class = {"dicenet": "DiCENetSegmentation", "espnetv2": "ESPNetv2Segmentation"}[family]
        with contextlib.redirect_stdout(io.StringIO()):
            network = getattr(module, network_class)(args, classes=OUTPUTS, dataset="city")
        export(network, file, output, f"{family}-{match[2]}", (width, height), {})
    return len(files)


def export_espnet(source: Path, output: Path) -> int:
    """Export the three Cityscapes networks of ESPNet; return their number."""
    import torch

    files = sorted(source.glob("pretrained/decoder/espnet_p_2_q_?.pth"))
    if not files:
        raise GenValError(f"{source}/pretrained/decoder has no espnet_p_2_q_*.pth. Clone sacmehta/ESPNet.")
    sys.path.insert(0, str(source / "test"))
    module: Any = importlib.import_module("Model")

    class Scaled(torch.nn.Module):
        """ESPNet with the division of its evaluation before it."""

        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixels / 255)

    for file in files:
        depth = int(file.stem[-1])
        network = module.ESPNet(OUTPUTS, 2, depth)
        load(network, file)
        sidecar = {"mean": ESPNET_MEAN, "std": ESPNET_STD, "scale": 255, "channels": "bgr"}
        export(Scaled(network), None, output, f"espnet-{depth}", ESPNET_SIZE, sidecar)
    return len(files)


def load(network: Any, file: Path) -> None:
    import torch

    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def export(
    network: Any, file: Path | None, output: Path, name: str, size: tuple[int, int], sidecar: dict[str, Any]
) -> None:
    """Load the weights, trace the network at `size` (width, height), and write it with its `FILE.json`."""
    import torch

    from genval.datasets.labels import CLASSES
    from genval.runtime.files import write_bytes, write_json

    if file is not None:
        load(network, file)
    network.eval()
    width, height = size
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.randn(n, 3, height, width, generator=generator) for n in (2, 3))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and says what it keeps as constants
        traced = torch.jit.trace(network, example, check_trace=False)
        difference = (traced(other) - network(other)).abs().max().item()
    if difference > 1e-3:
        raise GenValError(f"{name}: the exported network differs from the original by {difference:.2g}.")
    target = output / f"{name}-{width}.pt"
    content = io.BytesIO()  # a file's name would be in its bytes, from which a segmenter's identity is computed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, content)
    write_bytes(target, content.getvalue())
    write_json(target.with_name(f"{target.name}.json"), {**sidecar, "classes": [*CLASSES, "background"]})


if __name__ == "__main__":
    cli.run(main, ExportSettings, __doc__)
