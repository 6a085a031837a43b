"""Check --domain_strength against rendered fog of known density, in the mini world.

Renders streets in fog of five densities, generates fog on the same streets at five strengths, and evaluates the
segmenters of the mini world on both. Strength s is compared with the extinction coefficient s * 3.912 / 80 m
(Koschmieder): visibility is 80 m at strength 1 and unlimited at 0.

Reads:  checkpoints/mini
Writes: {output_dir}/: the images, the results of relis/eval.py, and comparison.md, which is also printed

    python benchmarks/fog_density.py --num_images 128
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

try:
    from genval.runtime import cli
    from genval.runtime.errors import GenValError
    from genval.runtime.flags import flag
    from genval.runtime.paths import REPO_ROOT, resolve
    from genval.runtime.settings import positive_int
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    import numpy as np

    from genval.report.schema import SeverityCurve

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
VISIBILITY = 80.0
"""Metres at strength 1: the densest fog that the mini world renders by itself."""
_CLEAR_VISIBILITY = 1e6
_HEIGHT, _WIDTH = 256, 512


@dataclass(frozen=True, kw_only=True)
class FogDensitySettings:
    """Settings of benchmarks/fog_density.py."""

    SCRIPT: ClassVar[str] = "benchmarks/fog_density"

    num_images: int = flag(128, "streets", type=positive_int)
    segmenters: str = flag("all", "segmenters of the mini world")
    accelerator: str = flag("auto", "auto, cpu or gpu")
    output_dir: str = flag("results/fog_density", "folder of images, results and the comparison")


def main(settings: FogDensitySettings) -> None:
    from genval.report.predictors import Generator
    from genval.report.severity import severity_curve
    from genval.results.scenes import model_list
    from genval.runtime.files import write_bytes

    out = resolve(settings.output_dir)
    render_fog(out / "rendered", settings.num_images)
    _generate_and_evaluate(settings, out)
    models = model_list(settings.segmenters, "mini")
    curves = {}
    for name in ("generated", "rendered"):
        generator, folder = Generator(name, str(out / f"eval_{name}")), out / f"eval_{name}"
        curve = severity_curve(folder, models, generator, "fog", [], draws=500, seed=0, preset="mini")
        if curve is None:
            raise GenValError(f"No model has results at every strength in {folder}. Delete it and run this again.")
        curves[name] = curve
    text = compare(curves["generated"], curves["rendered"], {name: contrasts(out / name) for name in curves})
    write_bytes(out / "comparison.md", (text + "\n").encode())
    print(text)


def render_fog(folder: Path, streets: int) -> None:
    """Render the clear validation streets in fog of every density, one set per strength."""
    from genval.datasets.layouts import at_strength
    from genval.runtime.files import write_png
    from mini.world.dataset import plan
    from mini.world.scene import render

    for job in plan("clear", "val", streets):
        for strength in STRENGTHS:
            of_strength = folder / at_strength("fog", strength)
            image, mask = (of_strength / Path(path).relative_to("cityscapes") for path in (job.image, job.mask))
            if image.exists() and mask.exists():
                continue
            visibility = VISIBILITY / strength if strength else _CLEAR_VISIBILITY
            scene = render(job.index, "fog", _HEIGHT, _WIDTH, job.split_seed, visibility=visibility)
            write_png(mask, scene.label_ids)
            write_png(image, scene.image)


def _generate_and_evaluate(settings: FogDensitySettings, out: Path) -> None:
    from genval.datasets.layouts import at_strength

    numbers = ("--num_train", "0", "--num_val", str(settings.num_images), "--domains", "clear")
    _run("mini/render.py", "--output_dir", str(out / "world"), *numbers)
    device = ("--accelerator", settings.accelerator)
    streets = ("--data_dir", str(out / "world"), "--num_samples", str(settings.num_images), "--without_replacement")
    strengths = ("--domain_strength", ",".join(map(str, STRENGTHS)))
    generated = ("--output_dir", str(out / "generated"))
    transfer = ("ControlNet/style_transfer.py", "--preset", "mini", "--domain", "fog")
    _run(*transfer, *strengths, *streets, *generated, *device)
    sets = ",".join(f"Cityscapes_{at_strength('fog', strength)}" for strength in STRENGTHS)
    for name in ("generated", "rendered"):
        folders = ("--generated_dir", str(out / name), "--eval_dir", str(out / f"eval_{name}"))
        what = ("--segmenters", settings.segmenters, "--trg_dataset", sets)
        _run("relis/eval.py", "--preset", "mini", *what, *folders, *device)


def _run(script: str, *flags: str) -> None:
    if subprocess.run([sys.executable, script, *flags], cwd=REPO_ROOT).returncode:
        raise GenValError(f"{script} failed, see above.")


def contrasts(folder: Path) -> np.ndarray:
    """Return the contrast of each street at each strength, float64 (streets, strengths).

    The contrast is the mean absolute difference of neighbouring grey values, at 128x256.
    """
    import cv2
    import numpy as np

    from genval.datasets.layouts import at_strength
    from genval.datasets.reading import read_image

    columns = []
    for strength in STRENGTHS:
        column = []
        for path in sorted((folder / at_strength("fog", strength)).glob("leftImg8bit/val/*/*.png")):
            image = cv2.resize(read_image(path), (_WIDTH // 2, _HEIGHT // 2), interpolation=cv2.INTER_AREA)
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
            column.append(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())
        columns.append(column)
    return np.array(columns).T


def compare(generated: SeverityCurve, rendered: SeverityCurve, contrast: dict[str, np.ndarray]) -> str:
    """Return the comparison as Markdown: mIoU and contrast by strength, and whether models lose alike."""
    import numpy as np

    from genval.metrics.correlation import kendall, pearson
    from genval.runtime.tables import markdown_table

    models = [model for model in generated.miou if model in rendered.miou]
    curves = {"generated": generated, "rendered": rendered}
    miou = {
        name: np.array([[at.value for at in curve.miou[model]] for model in models]) for name, curve in curves.items()
    }
    means = {name: of.mean(0) for name, of in miou.items()}
    shares = {name: (of / of[:, :1]).mean(0) for name, of in contrast.items()}
    header = ["strength", "visibility, m"]
    header += [f"{what}, {name}" for what in ("mean mIoU", "contrast, share") for name in curves]
    rows = [
        [strength, f"{VISIBILITY / strength:.0f}" if strength else "unlimited"]
        + [float(values[name][step]) for values in (means, shares) for name in curves]
        for step, strength in enumerate(STRENGTHS)
    ]
    falling = {name: float((np.diff(of, axis=1) < 0).mean()) for name, of in miou.items()}
    weaker = {name: float((np.diff(of, axis=1) < 0).mean()) for name, of in contrast.items()}
    loss = {name: of[:, 0] - of[:, -1] for name, of in miou.items()}
    lines = [
        f"{len(contrast['generated'])} streets, {len(models)} models.",
        markdown_table(header, rows, digits=2),
        "Steps from one strength to the next in which the mIoU of a model falls: "
        + ", ".join(f"{100 * share:.0f} % {name}" for name, share in falling.items()),
        "Steps in which the contrast of a street falls: "
        + ", ".join(f"{100 * share:.0f} % {name}" for name, share in weaker.items()),
        f"Points of mIoU that models lose from strength 0 to 1, generated and rendered: observed r "
        f"{float(pearson(loss['generated'], loss['rendered'])):.2f}, "
        f"Kendall's tau {float(kendall(loss['generated'], loss['rendered'])):.2f}",
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    cli.run(main, FogDensitySettings, __doc__)
