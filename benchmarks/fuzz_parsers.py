"""Coverage-guided fuzzing of the readers of files: every input is read, or refused with a GenValError that names it.

Reads:  nothing
Writes: {output_dir}/{parser}.json: executions, seconds and findings (inputs that raised another exception)

    pip install atheris
    python benchmarks/fuzz_parsers.py --parser manifest --seconds 600

Inputs start from valid files of each kind. A finding is saved next to the table, ready to be run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_RECORD = {"id": "a", "model": "m", "identity": "0", "precision": "32-true", "image": "a.png", "image_mark": "1-0"}


def parse_manifest(path: Path) -> None:
    from genval.artifacts.manifest import Manifest

    path.rename(path.with_name("manifest.jsonl"))
    Manifest(path.parent)


def parse_jsonl(path: Path) -> None:
    from genval.runtime.files import read_jsonl

    read_jsonl(path)


def parse_positions(path: Path) -> None:
    from genval.datasets.ood_objects import ObjectImage, read_box

    read_box(ObjectImage("lion", "0", "lion", path.with_name("0.png"), path), 128, 256)


def parse_statistics(path: Path) -> None:
    from genval.results.scenes import read_statistics

    read_statistics(path)


def parse_counts(path: Path) -> None:
    from genval.results.scenes import SceneResults
    from genval.runtime.files import write_bytes

    scene = SceneResults(path.parent, "m", "d", "c", "s")
    write_bytes(scene.statistics("a"), json.dumps({"id": "a", "confusion_matrix": [[1]]}).encode())
    path.rename(scene.counts("a"))
    scene.read_image({"id": "a"})


def parse_class_map(path: Path) -> None:
    from genval.datasets.labels import find_label_space

    find_label_space(str(path))


def parse_normalisation(path: Path) -> None:
    from genval.segmenters.normalisation import read_normalisation

    path.rename(path.with_name("net.onnx.json"))
    read_normalisation(path.with_name("net.onnx"))


def parse_tensors(path: Path) -> None:
    from genval.artifacts.tensors import packed_ids, read_about

    read_about(path)
    packed_ids(path)


def _tensors() -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({"a/logits": np.zeros((2, 3), np.float32)}, {"about": json.dumps({"pixels": 2})})


def _counts() -> bytes:
    from genval.metrics.statistics import PixelStatistics
    from genval.results.scenes import write_counts

    with tempfile.TemporaryDirectory() as folder:
        write_counts(Path(folder) / "a.npz", PixelStatistics.empty(1))
        return (Path(folder) / "a.npz").read_bytes()


PARSERS: dict[str, tuple[Callable[[Path], None], Callable[[], list[bytes]]]] = {
    "manifest": (parse_manifest, lambda: [(json.dumps(_RECORD) + "\n").encode() * 2]),
    "jsonl": (parse_jsonl, lambda: [b'{"id": "a"}\n{"id": "b", "x": [1, 2.5, null]}\n']),
    "pos": (parse_positions, lambda: [b'{"0.png": {"pos_mask": [10, 20], "size_mask": 64}}']),
    "statistics": (parse_statistics, lambda: [json.dumps({**_RECORD, "confusion_matrix": [[1, 0], [2, 3]]}).encode()]),
    "counts": (parse_counts, lambda: [_counts()]),
    "class_map": (parse_class_map, lambda: [b'{"0": "road", "7": 13, "34": null, "other": null}']),
    "FILE.json": (parse_normalisation, lambda: [b'{"mean": [1, 2, 3], "std": [4.5, 5, 6], "channels": "bgr"}']),
    "safetensors": (parse_tensors, lambda: [_tensors()]),
}


def main() -> None:
    """Read the flags and fuzz one reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parser", choices=PARSERS, required=True, help="which reader")
    parser.add_argument("--seconds", type=int, default=600, help="time limit")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("results/fuzz"), help="folder of the table and findings"
    )
    arguments = parser.parse_args()
    fuzz(arguments.parser, arguments.seconds, arguments.output_dir)


def fuzz(name: str, seconds: int, output_dir: Path) -> None:
    """Fuzz one reader for a time; write its table and the inputs of its findings.

    Args:
        name: a key of `PARSERS`.
        seconds: the time limit.
        output_dir: the folder of the table and the findings.
    """
    import atheris

    with atheris.instrument_imports(include=["genval", "json"]):
        import genval.artifacts.manifest
        import genval.artifacts.tensors
        import genval.datasets.labels
        import genval.datasets.ood_objects
        import genval.results.scenes
        import genval.segmenters.normalisation  # noqa: F401
    from genval.runtime.errors import GenValError

    parse, seeds = PARSERS[name]
    output_dir.mkdir(parents=True, exist_ok=True)
    output = output_dir.resolve() / f"{name}.json"
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    start, found = time.monotonic(), {"executions": 0, "accepted": 0}
    findings: dict[str, str] = {}

    def report() -> None:
        values = {"parser": name, "seconds": round(time.monotonic() - start), **found, "findings": findings}
        output.write_text(json.dumps(values, indent=2) + "\n")

    def run_once(content: bytes) -> None:
        place = folder / "case"
        place.mkdir()
        path = place / "input"
        path.write_bytes(content)
        try:
            parse(path)
            found["accepted"] += 1
        except GenValError:
            pass
        except Exception as error:  # a finding: one input is kept for each kind and place of exception
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            line = f"{type(error).__name__} in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
            if line not in findings:
                findings[line] = str(error)[:200]
                output.with_name(f"{name}-{len(findings)}.bin").write_bytes(content)
                report()
        for file in sorted(place.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        place.rmdir()
        found["executions"] += 1
        if found["executions"] % 1000 == 0:
            report()

    limits = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], run_once)
    try:
        atheris.Fuzz()
    finally:
        report()


if __name__ == "__main__":
    main()
