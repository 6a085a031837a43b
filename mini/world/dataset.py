"""The data sets of the mini world: paths of the images, rendering in processes, captions and training lists.

The folders and names are those of Cityscapes (clear), ACDC (fog, night, rain, snow) and IDD (india). NumPy and OpenCV
are imported only where they are used, so that a script can import this module and answer --help at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genval.runtime.errors import GenValError

CONDITIONS = ("clear", "fog", "night", "rain", "snow", "india")
SPLITS = ("train", "val")
CITIES = {"train": ("aachen", "bochum", "bremen"), "val": ("frankfurt", "lindau", "munster")}
# Cityscapes label ids to IDD level3Ids. IDD has no terrain; 1 is its drivable fallback, which no class maps to.
IDD_IDS = {7: 0, 8: 2, 11: 22, 12: 14, 13: 15, 17: 20, 19: 19, 20: 18, 21: 24, 22: 1, 23: 25, 24: 4, 25: 5, 26: 9,
           27: 10, 28: 11, 32: 6, 33: 7}  # fmt: skip
OBJECTS = "objects"  # the domain of clear streets with objects, which is rendered only if it is named
BATCH = 10  # images per task of a process, which waits for the disk once per task


@dataclass(frozen=True)
class Job:
    """One image to render, and the paths of its files below the output folder."""

    domain: str
    split: str
    index: int
    image: str
    mask: str

    @property
    def split_seed(self) -> int:
        """The seed of the scenes of a domain and split."""
        return 2 * CONDITIONS.index(self.domain) + SPLITS.index(self.split)

    @property
    def dataset(self) -> str:
        """The name of the set in the captions."""
        return set_name(self.domain)


@dataclass(frozen=True)
class Target:
    """The output folder, the size of the images, and whether existing ones are rendered again."""

    out: Path
    height: int
    width: int
    overwrite: bool


# Renders a job; returns its result and the pending writes of a thread. It must be a module's function, to be pickled.
RenderJob = Callable[[Any, Target, ThreadPoolExecutor], tuple[Any, list]]


def set_name(domain: str) -> str:
    """The name of a domain's set in the captions."""
    return {"clear": "cityscapes", "india": "idd"}.get(domain, f"acdc_{domain}")


def plan(domain: str, split: str, count: int) -> Iterator[Job]:
    """Yield the jobs of one split of a domain; scenes are distributed over its folders in turn."""
    for index in range(count):
        if domain == "clear":
            city = CITIES[split][index % 3]
            stem = f"{split}/{city}/{city}_{index // 3:06d}_{19:06d}"
            image, mask = f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"
            root = "cityscapes"
        elif domain == "india":
            stem = f"{split}/{(100 if split == 'train' else 200) + index % 3}/{index // 3:06d}"
            image, mask = f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labellevel3Ids.png"
            root = "IDD_Segmentation"
        else:
            number = 100 * CONDITIONS.index(domain) + 10 * SPLITS.index(split) + index % 2 + 1
            stem = f"{domain}/{split}/GOPR{number:04d}/GOPR{number:04d}_frame_{index // 2:06d}"
            image, mask = f"rgb_anon/{stem}_rgb_anon.png", f"gt/{stem}_gt_labelIds.png"
            root = "acdc"
        yield Job(domain, split, index, f"{root}/{image}", f"{root}/{mask}")


def check_size(target: Target) -> None:
    """Check that a folder has no images of another size.

    Raises:
        GenValError: `derived.json` records another size, and `overwrite` is not set.
    """
    from genval.runtime.files import read_json

    path = target.out / "derived.json"
    if target.overwrite or not path.exists():
        return
    made = read_json(path)
    size = (made.get("height"), made.get("width")) if isinstance(made, dict) else None
    if size != (target.height, target.width):
        raise GenValError(
            f"{target.out} holds images of (height, width) {size}, asked for {(target.height, target.width)}. "
            "Choose another --out, or --overwrite."
        )


def read_captions(out: Path, domains: Sequence[str]) -> dict[str, str]:
    """Read the captions of earlier runs for some domains, by image."""
    from genval.runtime.files import read_json

    captions: dict[str, str] = {}
    for name in map(set_name, domains):
        path = out / "captions" / f"captions_{name}.json"
        if path.exists():
            captions.update(read_json(path, dict[str, dict[str, str]]).get(name, {}))
    return captions


def render_all(jobs: Sequence[Job], target: Target, workers: int) -> tuple[dict[str, str], int]:
    """Render images with a progress bar; return their captions by image and the number of written images."""
    return render_jobs(_render_job, jobs, target, workers)


def render_jobs(render_job: RenderJob, jobs: Sequence[Any], target: Target, workers: int) -> tuple[dict[str, Any], int]:
    """Run `render_job` on each job in several processes; return results by image and the number of written images."""
    from genval.runtime.progress import progress_bar

    found: dict[str, Any] = {}
    written = 0
    batches = [(render_job, jobs[i : i + BATCH], target) for i in range(0, len(jobs), BATCH)]
    # The processes are started before the progress bar, because its thread does not survive a fork.
    with _pool(min(workers, len(batches))) as pool, progress_bar(len(jobs), "rendering") as bar:
        for results in pool.imap_unordered(render_batch, batches):
            for job, result, new in results:
                found[job.image] = result
                written += new
            bar.update(len(results))
    return found, written


@contextmanager
def _pool(workers: int) -> Iterator[Any]:
    """Open a pool of processes; forked processes share the imported renderer."""
    from multiprocessing import get_context

    import cv2

    import mini.world.scene  # noqa: F401  (before the fork)

    cv2.setNumThreads(1)
    with get_context("fork" if sys.platform == "linux" else "spawn").Pool(max(workers, 1)) as pool:
        yield pool


def render_batch(task: tuple[RenderJob, Sequence[Any], Target]) -> list[tuple[Any, Any, bool]]:
    """Render some images; return each one's job, its result and whether anything was written.

    A second thread encodes and flushes an image while the next one is rendered. All files are written on return.
    """
    import cv2

    render_job, jobs, target = task
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(1) as writer:
        pending = [(job, *render_job(job, target, writer)) for job in jobs]
    for future in (future for _, _, writes in pending for future in writes):
        future.result()
    return [(job, result, bool(writes)) for job, result, writes in pending]


def _render_job(job: Job, target: Target, writer: ThreadPoolExecutor) -> tuple[str, list]:
    """Render an image; return its caption and the pending writes of its missing files."""
    import numpy as np

    from genval.runtime.files import write_png

    from .scene import render

    scene = render(job.index, job.domain, target.height, target.width, job.split_seed)
    labels = scene.label_ids
    if job.domain == "india":
        table = np.full(256, 255, np.uint8)
        table[list(IDD_IDS)] = list(IDD_IDS.values())
        labels = table[labels]
    wanted = [(target.out / path, pixels) for path, pixels in ((job.image, scene.image), (job.mask, labels))
              if target.overwrite or not (target.out / path).exists()]  # fmt: skip
    return scene.caption, [writer.submit(write_png, path, pixels, noisy=True) for path, pixels in wanted]


def with_weather(caption: str, image: str, domain: str) -> str:
    """Append a phrase of the domain to a caption: for half of the images that of the prompts, else a paraphrase."""
    from genval.runtime.seeds import item_seed

    from .captions import DOMAIN_PHRASES

    seed, phrases = item_seed(0, image), DOMAIN_PHRASES[domain]
    return f"{caption}, {phrases[seed // 2 % len(phrases) if seed % 2 else 0]}"


def write_captions(out: Path, domains: Sequence[str], captions: dict[str, str]) -> None:
    """Write captions/captions_{set}.json for the sets of some domains, with the images of earlier runs."""
    from genval.runtime.files import write_json

    for domain in domains:
        name, image = set_name(domain), _image_folder(domain)
        found = {path: text for path, text in sorted(captions.items()) if path.startswith(image)}
        write_json(out / "captions" / f"captions_{name}.json", {name: found})


def _image_folder(domain: str) -> str:
    """Return the folder of a domain's images, with a slash."""
    return {"clear": "cityscapes/", "india": "IDD_Segmentation/"}.get(domain, f"acdc/rgb_anon/{domain}/")


def write_training_lists(out: Path) -> None:
    """List the captioned clear pairs in training/{train,val}.jsonl, and all training pairs in diffusion.jsonl.

    The lists follow the captions, which hold the images of earlier and larger runs too.
    """
    from genval.runtime.files import write_jsonl

    for split in SPLITS:
        lines = []
        for image, caption in read_captions(out, ["clear"]).items():
            if f"/{split}/" not in image:
                continue
            # A ControlNet that is trained on captions without weather learns clear weather itself and cannot generate
            # another one. Captions of val have no weather, because generation appends a domain.
            text = caption if split == "val" else with_weather(caption, image, "clear")
            lines.append({"image": image, "conditioning_image": _mask_of(image), "text": text})
        write_jsonl(out / "training" / f"{split}.jsonl", lines)
    lines = []
    for domain in CONDITIONS:
        for image, text in read_captions(out, [domain]).items():
            if "/train/" in image:
                text = with_weather(text, image, domain)
                lines.append({"image": image, "conditioning_image": _mask_of(image), "text": text})
    write_jsonl(out / "training" / "diffusion.jsonl", lines)


def _mask_of(image: str) -> str:
    """Return the path of an image's mask: level3Ids in IDD, labelIds in the other sets."""
    ids = "labellevel3Ids" if image.startswith("IDD") else "labelIds"
    mask = image.replace("/leftImg8bit/", "/gtFine/").replace("_leftImg8bit.png", f"_gtFine_{ids}.png")
    return mask.replace("/rgb_anon/", "/gt/").replace("_rgb_anon.png", "_gt_labelIds.png")
