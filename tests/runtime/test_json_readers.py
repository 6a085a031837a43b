"""Every reader of a JSON file refuses files of another shape by name, without a traceback."""

import pytest

from genval.artifacts.manifest import Manifest
from genval.datasets.captions import read_captions_by_path
from genval.datasets.labels import find_label_space
from genval.datasets.ood_objects import ObjectImage, read_box, read_curated
from genval.diffusion.models.hints import make_encoding
from genval.diffusion.pairs import read_pairs
from genval.evaluation.calibration import load_calibration
from genval.report.page.objects import read_scores
from genval.report.page.provenance import collect_provenance
from genval.report.page.reliability import collect_diagrams
from genval.report.schema import read_report
from genval.reproduction.record import Record
from genval.results.finding import list_models
from genval.results.ood_blocks import OodResults
from genval.results.scenes import SceneResults, read_statistics
from genval.runtime.errors import GenValError
from genval.segmenters.normalisation import read_normalisation

SCENE = "model/set/fog/all"

# The file, and what reads it from a folder.
READERS = {
    "steps.json": lambda root: Record(root / "steps.json", None, "cpu"),
    "correlation.json": lambda root: read_report(root / "correlation.json"),
    f"{SCENE}/metrics.json": list_models,
    f"{SCENE}/settings.json": lambda root: collect_provenance(root / "none", root),
    f"{SCENE}/manifest.jsonl": lambda root: SceneResults(root, *SCENE.split("/")).ids(),
    f"{SCENE}/statistics/a.json": lambda root: read_statistics(root / SCENE / "statistics/a.json"),
    "best_temperatures.json": load_calibration,
    "manifest.jsonl": Manifest,
    "captions.json": lambda root: read_captions_by_path(root / "captions.json"),
    "captions.jsonl": lambda root: read_captions_by_path(root / "captions.jsonl"),
    "train.jsonl": lambda root: read_pairs(root / "train.jsonl", root),
    "labels.json": lambda root: find_label_space(str(root / "labels.json")),
    "hints.json": lambda root: make_encoding("one_hot", root / "hints.json"),
    "0_pos.json": lambda root: read_box(ObjectImage("x", "0", "x", root, root / "0_pos.json"), 64, 64),
    "curated.json": read_curated,
    "set/model.json": lambda root: read_scores(root / "set/model.json"),
    "set/model/blocks/0.jsonl": lambda root: OodResults(root, "set", "model").is_done("0", []),
    "errors/m/ACDC.json": lambda root: collect_diagrams(root / "errors", root / "none"),
    "net.onnx.json": lambda root: read_normalisation(root / "net.onnx"),
}

CONTENTS = {
    "empty": b"",
    "null": b"null\n{}\n",
    "list": b"[1, 2]\n[3]\n",
    "number": b"3\n3\n",
    "deep": b"[" * 100_000 + b"\n{}\n",
    "deep object": b'{"a":' * 100_000 + b"\n{}\n",
    "NaN": b'{"id": NaN, "model": Infinity}\n{}\n',
    "twice": b'{"id": "a", "id": "b"}\n{}\n',
    "wrong types": b'{"id": 3, "model": 3, "finished": [], "confusion_matrix": [[1, 2], [3]], "temperatures": "x",'
    b' "image": [], "text": 1, "pooled": 3, "set": [], "settings": [], "mean": {}, "0": [], "made_from": 3,'
    b' "0.png": 3}\n{}\n',
    "latin-1": '{"id": "ö"}\n{}\n'.encode("latin-1"),
    "UTF-16": '{"id": "a"}\n{}\n'.encode("utf-16"),
    "binary": bytes(range(256)),
}
# A list of lines may be empty.
ACCEPTED = {
    ("manifest.jsonl", "empty"),
    (f"{SCENE}/manifest.jsonl", "empty"),
    ("set/model/blocks/0.jsonl", "empty"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("file", READERS)
def test_another_content_is_refused_by_name(tmp_path, file, content):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENTS[content])
    for name in ("set/model/blocks/0.npz", "cluster_model.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if (file, content) in ACCEPTED:
        READERS[file](tmp_path)
        return
    with pytest.raises(GenValError, match=rf"{path.name.replace('.', '[.]')}"):
        READERS[file](tmp_path)
