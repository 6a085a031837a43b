"""Render the embedded world's data sets: streets with labels and captions, laid out like the real sets.

Reads:  nothing.
Writes: --out, with cityscapes/ (clear), acdc/ (fog, night, rain, snow), IDD_Segmentation/ (india), a caption of every
        picture in captions/captions_{set}.json, the captioned clear pairs in training/{train,val}.jsonl, and the
        training pictures of every domain in training/diffusion.jsonl, where the caption names the weather too.
        Pictures that exist are kept, so that the same command goes on after a stop.

    python mini/render.py --num_train 2000 --num_val 200
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from genval.runtime.cli import comma_list, parse, positive_int, run, script_parser
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

CONDITIONS = ("clear", "fog", "night", "rain", "snow", "india")
SPLITS = ("train", "val")
CITIES = {"train": ("aachen", "bochum", "bremen"), "val": ("frankfurt", "lindau", "munster")}
# Cityscapes label ids to IDD level3Ids. IDD has no terrain; 1 is its drivable fallback, which no class maps to.
IDD_IDS = {7: 0, 8: 2, 11: 22, 12: 14, 13: 15, 17: 20, 19: 19, 20: 18, 21: 24, 22: 1, 23: 25, 24: 4, 25: 5, 26: 9,
           27: 10, 28: 11, 32: 6, 33: 7}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One picture: what to render, and where it goes below --out."""

    domain: str
    split: str
    index: int
    image: str
    mask: str

    @property
    def split_seed(self) -> int:
        """Each domain and split has a stream of scenes of its own."""
        return 2 * CONDITIONS.index(self.domain) + SPLITS.index(self.split)

    @property
    def dataset(self) -> str:
        """The name of the set in the captions."""
        return {"clear": "cityscapes", "india": "idd"}.get(self.domain, f"acdc_{self.domain}")


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "mini/render")
    parser.add_argument("--out", default="datasets/mini", help="folder for the data sets")
    parser.add_argument("--num_train", type=count, default=2000, help="training pictures a domain")
    parser.add_argument("--num_val", type=count, default=200, help="validation pictures a domain")
    parser.add_argument("--height", type=positive_int, default=256, help="pixels")
    parser.add_argument("--width", type=positive_int, default=512, help="pixels, twice the height")
    parser.add_argument("--domains", type=comma_list, default=list(CONDITIONS), help="separated by commas")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="render existing pictures again")
    return parse(parser)


def count(text: str) -> int:
    """An argparse type: a whole number, zero included."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text}")
    return value


def plan(domain: str, split: str, count: int) -> Iterator[Job]:
    """The jobs of one split of a domain; scenes are dealt to its folders in turn."""
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


def render_job(task: tuple[Job, str, int, int, bool]) -> tuple[Job, str, bool]:
    """Render one picture and write what is missing; returns its caption and whether anything was written."""
    import cv2
    import numpy as np

    from genval.runtime.files import write_png
    from mini.world import render

    cv2.setNumThreads(1)
    job, out, height, width, overwrite = task
    scene = render(job.index, job.domain, height, width, job.split_seed)
    labels = scene.label_ids
    if job.domain == "india":
        table = np.full(256, 255, np.uint8)
        table[list(IDD_IDS)] = list(IDD_IDS.values())
        labels = table[labels]
    wanted = [(path, pixels) for path, pixels in ((job.image, scene.image), (job.mask, labels))
              if overwrite or not (Path(out) / path).exists()]  # fmt: skip
    for path, pixels in wanted:
        write_png(Path(out) / path, pixels)
    return job, scene.caption, bool(wanted)


def with_weather(caption: str, image: str, domain: str) -> str:
    """The caption with a phrase for the domain: half of the time the one prompts end with, else a paraphrase."""
    from genval.runtime.seeds import item_seed
    from mini.world import DOMAIN_PHRASES

    seed, phrases = item_seed(0, image), DOMAIN_PHRASES[domain]
    return f"{caption}, {phrases[seed // 2 % len(phrases) if seed % 2 else 0]}"


def write_diffusion_list(out: Path) -> None:
    """List the training pictures of every domain in `out`, captions with their weather."""
    from genval.runtime.files import read_json, write_jsonl

    lines = []
    for domain in CONDITIONS:
        path = out / "captions" / f"captions_{Job(domain, 'train', 0, '', '').dataset}.json"
        captions = read_json(path).popitem()[1] if path.exists() else {}
        for image, text in captions.items():
            if "/train/" in image:
                lines.append({"image": image, "text": with_weather(text, image, domain)})
    write_jsonl(out / "training" / "diffusion.jsonl", lines)


def main(args: argparse.Namespace) -> None:
    unknown = sorted(set(args.domains) - set(CONDITIONS))
    if unknown:
        raise GenValError(f"--domains: {', '.join(unknown)} is none of {', '.join(CONDITIONS)}.")
    if args.width != 2 * args.height:
        raise GenValError(f"--width must be twice --height, found {args.width} and {args.height}.")

    from multiprocessing import get_context

    from genval.runtime.files import read_json, write_json, write_jsonl
    from genval.runtime.progress import progress_bar

    out = resolve(args.out)
    counts = {"train": args.num_train, "val": args.num_val}
    jobs = [job for domain in args.domains for split in SPLITS for job in plan(domain, split, counts[split])]
    captions: dict[str, str] = {}
    for name in sorted({job.dataset for job in jobs}):
        path = out / "captions" / f"captions_{name}.json"
        if path.exists() and not args.overwrite:
            captions.update(read_json(path)[name])
    tasks = [
        (job, str(out), args.height, args.width, args.overwrite)
        for job in jobs
        if args.overwrite or job.image not in captions or not all((out / p).exists() for p in (job.image, job.mask))
    ]
    written = 0
    with get_context("spawn").Pool(args.workers) as pool, progress_bar(len(tasks), "rendering") as bar:
        for job, text, new in pool.imap_unordered(render_job, tasks, chunksize=4):
            captions[job.image] = text
            written += new
            bar.update()
    for name in sorted({job.dataset for job in jobs}):
        found = {job.image: captions[job.image] for job in jobs if job.dataset == name}
        write_json(out / "captions" / f"captions_{name}.json", {name: dict(sorted(found.items()))})
    for split in SPLITS if "clear" in args.domains else ():
        lines = []
        for job in (job for job in jobs if job.domain == "clear" and job.split == split):
            # A ControlNet trained on captions that leave the weather open would learn to draw clear weather itself and
            # resist any other; generation (val) puts a domain of its own after the caption.
            text = captions[job.image] if split == "val" else with_weather(captions[job.image], job.image, "clear")
            lines.append({"image": job.image, "conditioning_image": job.mask, "text": text})
        write_jsonl(out / "training" / f"{split}.jsonl", lines)
    write_diffusion_list(out)
    write_json(out / "derived.json", {"made_by": "mini/render.py", "height": args.height, "width": args.width})
    print(f"Rendered {written} pictures, kept {len(jobs) - written}, in {out}: {', '.join(args.domains)}")


if __name__ == "__main__":
    run(main, parse_args)
