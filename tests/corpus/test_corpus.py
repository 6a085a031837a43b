"""Bad and odd inputs on every reader of their kind: equal to the clean result, refused by name, or skipped and counted.

By default one case per kind is tried, on readers in turn. `python tests/corpus/run.py` tries all, and the cases of
`catalogue.BORROWED`.
"""

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import test_reading
from catalogue import BORROWED, EQUAL, REFUSED, SKIPPED
from PIL import Image, ImageOps
from relis_world import FAKE_MODELS, Relis, write_pair

from genval.captions.filter import read_phrases
from genval.datasets import find_items
from genval.datasets.ood_objects import read_objects
from genval.datasets.ood_sets import find_ood_items, read_ood_pair
from genval.datasets.reading import readable
from genval.diffusion.models.hints import CITYSCAPES_IDS
from genval.diffusion.pairs import load_framed, read_pairs, readable_pairs
from genval.diffusion.prompts import read_phrasings
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl, write_json, write_jsonl, write_png


@dataclass(frozen=True)
class Case:
    family: str
    kind: str
    reader: str
    expected: str
    attempt: Callable[..., str]  # of the world: the outcome

    def __str__(self):
        return f"{self.family}-{self.kind}-{self.reader}"


def outcome_of(call, name):
    """What `call` returns, or REFUSED for an error that names the file."""
    try:
        return call()
    except GenValError as error:
        return REFUSED if name in str(error) else f"refused without {name}: {error}"


def compared(found, expected):
    return EQUAL if np.array_equal(found, expected) else "another value"


def exit_outcome(code, err, name):
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    if code != 2 or len(lines) != 1 or "Traceback" in err:
        return f"exit {code}: {err[-300:]}"
    return REFUSED if name in lines[0] else f"refused without {name}: {lines[0]}"


# Files of images and masks, as `x.png` of a set of two.


def remove(path):
    path.unlink()


def dangling(path):
    path.symlink_to("nowhere.png")


def loop(path):
    path.symlink_to(path.name)


def folder(path):
    path.mkdir()


UNOPENED = {"dangling link": dangling, "link to itself": loop, "folder": folder}


def written(make):
    return lambda path: path.write_bytes(make())


def shown_pixels(make, path):
    """What a viewer shows, by another library call than the reader's."""
    path.write_bytes(make())
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class OwnSet:
    """Images `a` and `x` with masks in a folder, of which a part of `x` is odd."""

    def __init__(self, relis):
        self.relis, self.root = relis, relis.root / "own"
        for name in ("a", "x"):
            write_png(self.root / f"i/{name}.png", test_reading.photograph())
            write_png(self.root / f"g/{name}.png", test_reading.label_ids())
        self.image, self.mask = self.root / "i/x.png", self.root / "g/x.png"
        # The evaluation refuses the same image under two names.
        write_png(self.root / "i/a.png", test_reading.photograph()[::-1].copy())

    @property
    def name(self):
        return f"folder:{self.root}/i,{self.root}/g,cityscapes"

    def eval(self, *flags):
        """Outcome and tables of relis/eval.py."""
        shutil.rmtree(self.relis.results, ignore_errors=True)
        code, out, err = self.relis.eval(self.name, "good", *flags)
        if code:
            return exit_outcome(code, err, "x.png"), None
        (path,) = self.relis.results.rglob("metrics.json")
        metrics = json.loads(path.read_text())
        if metrics["skipped"]:
            counted = metrics["images"] == 1 and len(metrics["skipped"]) == 1 and "skipped" in out and "x.png" in out
            return (SKIPPED if counted else f"{metrics['images']} images"), None
        return EQUAL, [path.with_name(name).read_text() for name in ("confusion_matrix.csv", "per_image.csv")]

    def write(self, part, make, clean):
        """Write the odd file; returns the tables of the clean set where there is one."""
        path, tables = (self.image if part == "image" else self.mask), None
        path.unlink()
        if clean is not None:
            write_png(path, clean)
            tables = clean_tables(self, part, clean)
            path.unlink()
        make(path)
        return tables


_TABLES = {}


def clean_tables(own, part, clean):
    key = part, clean.shape, clean.tobytes()
    if key not in _TABLES:
        _TABLES[key] = own.eval()[1]
    return _TABLES[key]


def by_eval(own, part, make, clean, *flags):
    tables = own.write(part, make, clean)
    outcome, found = own.eval(*flags)
    return outcome if outcome != EQUAL or found == tables else "another score"


def by_check_dataset(own, part, make, clean):
    own.write(part, make, None)
    out = own.relis.root / "checked"
    code, _, err = own.relis("check_dataset", "--trg_dataset", own.name, "--output_dir", out)
    if code not in (0, 1):
        return f"exit {code}: {err[-300:]}"
    faults = json.loads(next(out.glob("*.json")).read_text())["faults"]
    if code == 0 and not faults:
        return EQUAL
    return REFUSED if [fault["id"] for fault in faults] == ["x"] else f"{faults}"


def by_training(own, part, make, clean, skip_bad=False):
    own.write(part, make, None)
    lines = [{"image": f"i/{name}.png", "conditioning_image": f"g/{name}.png", "text": "x"} for name in ("a", "x")]
    write_jsonl(own.root / "train.jsonl", lines)

    def read():
        pairs = read_pairs(own.root / "train.jsonl", own.root, skip_bad)
        if skip_bad:
            kept = readable_pairs(pairs, CITYSCAPES_IDS.labels, 1)
            if len(kept) == 1 and kept[0].image.name == "a.png":
                return SKIPPED
        framed = load_framed(pairs[1], *test_reading.photograph().shape[:2], 0.5)
        write_png(own.root / "clean.png", clean)
        other = {part: own.root / "clean.png"}
        same = type(pairs[1])(other.get("image", own.image), other.get("mask", own.mask), "x")
        expected = load_framed(same, *test_reading.photograph().shape[:2], 0.5)
        return compared(getattr(framed, part), getattr(expected, part))

    return outcome_of(read, "x.png")


def by_items(own, part, make, clean):
    own.write(part, make, None)
    skipped = []
    kept = readable(find_items(own.name, skipped=skipped), skipped)
    if len(kept) == 2 and not skipped:
        return EQUAL
    return SKIPPED if len(kept) == 1 and [file.id for file in skipped] == ["x"] else f"{kept}, {skipped}"


def by_ood(own, part, make, clean):
    for name in ("a", "x"):
        write_png(own.root / f"g/{name}.png", (test_reading.label_ids() == 26).astype(np.uint8))
    own.write(part, make, None)

    def read():
        return compared(read_ood_pair(find_ood_items(f"pair:{own.root}/i,{own.root}/g").items[1])[0], clean)

    return outcome_of(read, "x.png")


def by_corrupt(own, part, make, clean, *flags):
    """relis/corrupt.py with a corruption that changes nothing writes the image's pixels and copies the mask."""
    own.write(part, make, None)
    own.relis.monkeypatch.setattr("genval.evaluation.corruptions.corrupt", lambda image, *_: image)
    code, out, err = own.relis(
        "corrupt", "--src_dataset", own.name, "--domains", "fog", "--output_dir", own.root, *flags
    )
    if code:
        return exit_outcome(code, err, "x.png")
    found = {path.name[0]: path for path in (own.root / "fog/leftImg8bit").rglob("*.png")}
    if "x" not in found:
        return SKIPPED if found and "skipped" in out and "x.png" in out else f"only {sorted(found)}"
    (mask,) = (own.root / "fog/gtFine").rglob("x_*.png")
    if mask.read_bytes() != own.mask.read_bytes():
        return "another mask"
    return compared(np.asarray(Image.open(found["x"])), clean if part == "image" else test_reading.photograph())


FILE_READERS = {
    "eval.py": (by_eval, REFUSED),
    "eval.py --skip_bad": (lambda *given: by_eval(*given, "--skip_bad"), SKIPPED),
    "readable items": (by_items, SKIPPED),
    "check_dataset.py": (by_check_dataset, REFUSED),
    "training": (by_training, REFUSED),
    "training --skip_bad": (lambda *given: by_training(*given, skip_bad=True), SKIPPED),
    "corrupt.py": (by_corrupt, REFUSED),
    "corrupt.py --skip_bad": (lambda *given: by_corrupt(*given, "--skip_bad"), SKIPPED),
    "OOD detection": (by_ood, REFUSED),  # its masks hold other ids
}


def file_cases(family, part, kind, make, clean=None):
    """Cases of one kind on every reader; `clean` makes the pixels that it shows, if it is not refused."""

    def attempt(relis, by):
        own = OwnSet(relis)
        return by(own, part, make, clean and clean(own.root / "shown.png"))

    return [
        Case(family, kind, reader, expected if clean is None else EQUAL, functools.partial(attempt, by=by))
        for reader, (by, expected) in FILE_READERS.items()
        if part == "image" or by is not by_ood
    ]


def image_cases():
    cases = []
    for kind, make in {**test_reading.SHOWN, **test_reading.JPEGS}.items():
        is_exact = kind in test_reading.SHOWN

        def clean(path, make=make, is_exact=is_exact):
            return test_reading.photograph() if is_exact else shown_pixels(make, path)

        cases += file_cases("image file", "image", kind, written(make), clean)
    for kind, make in test_reading.GREY.items():

        def clean(path, kind=kind, make=make):
            if kind == "jpeg":
                return shown_pixels(make, path)
            return np.repeat(test_reading.grey()[..., None], 3, -1)

        cases += file_cases("image file", "image", f"grey, {kind}", written(make), clean)
    for kind, (make, _) in test_reading.REFUSED.items():
        cases += file_cases("image file", "image", kind, written(make))
    for kind, make in UNOPENED.items():
        cases += file_cases("image file", "image", kind, make)
    return cases


def mask_cases():
    cases = []
    for kind, (make, ids) in test_reading.MASKS.items():
        cases += file_cases("mask file", "mask", kind, written(make), lambda path, ids=ids: ids())
    for kind, (make, _) in test_reading.REFUSED_MASKS.items():
        cases += file_cases("mask file", "mask", kind, written(make))
    for kind, make in UNOPENED.items():
        cases += file_cases("mask file", "mask", kind, make)
    return cases


# Lists of words.

WORDS = ["fog", "polar bear"]
TEXTS = {
    "byte order mark": ("fog\npolar bear\n".encode("utf-8-sig"), EQUAL),
    "UTF-16, little-endian": (b"\xff\xfe" + "fog\npolar bear\n".encode("utf-16-le"), EQUAL),
    "UTF-16, big-endian": (b"\xfe\xff" + "fog\npolar bear\n".encode("utf-16-be"), EQUAL),
    "line ends of Windows": (b"fog\r\npolar bear\r\n", EQUAL),
    "line ends of old Macs": (b"fog\rpolar bear\r", EQUAL),
    "no line end": (b"fog\npolar bear", EQUAL),
    "blank lines": (b"\n\nfog\n \n\t\npolar bear\n\n", EQUAL),
    "spaces around": (b"  fog \n\tpolar bear\t\n", EQUAL),
    "a line twice": (b"fog\npolar bear\nfog\n", EQUAL),
    "Latin-1": ("fog\nLöwe\n".encode("latin-1"), REFUSED),
    "binary": (bytes(range(256)), REFUSED),
    "half a character": ("fog\nLöwe".encode()[:-3], REFUSED),
    "UTF-16 of an odd length": (b"\xff\xfef\0o", REFUSED),
    "empty": (b"", REFUSED),
    "only blank lines": (b"\n \n", REFUSED),
    "missing": (None, REFUSED),
    "folder": (folder, REFUSED),
    "dangling link": (dangling, REFUSED),
    "link to itself": (loop, REFUSED),
}
TEXT_READERS = {"objects": read_objects, "phrases of captions": read_phrases, "phrasings of prompts": read_phrasings}


def text_cases():
    def attempt(relis, content, read):
        path = relis.root / "list.txt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            content(path)
        return outcome_of(lambda: compared(list(dict.fromkeys(read(path))), WORDS), "list.txt")

    return [
        Case("text file", kind, reader, expected, functools.partial(attempt, content=content, read=read))
        for kind, (content, expected) in TEXTS.items()
        for reader, read in TEXT_READERS.items()
    ]


# Folders of results: something about Cityscapes' results of the model `good` is wrong.

PLACE = "good/Cityscapes/clean/frankfurt"


class Evaluated:
    """A world with results of three models on clear streets, generated fog and real fog, of which a copy is made."""

    def __init__(self, relis, base):
        if not (base / "done").exists():
            self._evaluate(relis, base)
        for name in ("results", "datasets", "images"):
            shutil.rmtree(relis.root / name, ignore_errors=True)
            shutil.copytree(base / name, relis.root / name)
        for path in [*relis.results.rglob("*.json"), *relis.results.rglob("manifest.jsonl")]:
            path.write_text(path.read_text().replace(str(base), str(relis.root)))
        self.relis, self.root, self.folder = relis, relis.root, relis.results / PLACE

    @staticmethod
    def _evaluate(relis, base):
        shutil.copytree(relis.root, base, dirs_exist_ok=True)
        here = Relis(base, relis.monkeypatch, relis.capsys)
        for model in FAKE_MODELS:
            save = ("--save", "predictions,logits", "--logit_pixels", "-1")
            code, _, err = here.eval("Cityscapes,Cityscapes_fog,ACDC", model, *save)
            assert code == 0, err
        (base / "done").touch()

    def records(self, change):
        """Change the records of every image of the scene, in the manifest and beside the statistics."""
        records = read_jsonl(self.folder / "manifest.jsonl")
        for record in records:
            path = self.folder / f"statistics/{record['id']}.json"
            value = json.loads(path.read_text())
            change(value)
            change(record)
            path.write_text(json.dumps(value) + "\n")
        write_jsonl(self.folder / "manifest.jsonl", records)

    def metrics(self, **values):
        write_json(self.folder / "metrics.json", json.loads((self.folder / "metrics.json").read_text()) | values)

    def manifest(self, change):
        path = self.folder / "manifest.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    def street(self, part="leftImg8bit"):
        kind = "leftImg8bit" if part == "leftImg8bit" else "gtFine"
        return next((self.root / f"datasets/cityscapes/{kind}/val/frankfurt").glob(f"*_{part}.png"))

    def one(self, suffix):
        return min((self.folder / "statistics").glob(f"*{suffix}"))


def without(*keys):
    def change(record):
        for key in keys:
            record.pop(key, None)

    return change


def grey_out(path):
    write_png(path, np.zeros_like(np.asarray(Image.open(path))))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def scramble(path):
    """Overwrite the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(bytes(range(256)) * (len(data) // 512) + data[len(data) // 512 * 256 :])


def double_image(world):
    world.manifest(lambda lines: [*lines[:-1], lines[0]])


def other_folder(record):
    """Say that an image and its mask were read from a folder that is not on this machine."""
    for key in ("image", "mask"):
        record[key] = record[key].replace("datasets/cityscapes", "moved/cityscapes")
    record["mask_mark"] = "0-0"


def relabel(world):
    """The same streets with other labels, under the marks of the old ones."""
    write_pair(world.root / "datasets/cityscapes", "frankfurt", world.street().name.removesuffix("_leftImg8bit.png"), 7)


RESULTS = {
    "another model": lambda world: world.records(lambda record: record.update(identity="other")),
    "another precision": lambda world: world.records(lambda record: record.update(precision="bf16-true")),
    "other measured pixels": lambda world: world.records(
        lambda record: record.update(confidences_of={"pixels": 10, "seed": 0})
    ),
    "another version of the counts": lambda world: world.records(lambda record: record.update(counts_version=0)),
    "no identity": lambda world: world.records(without("identity")),
    "no precision": lambda world: world.records(without("precision")),
    "no version of the counts": lambda world: world.records(without("counts_version")),
    "a limited scene": lambda world: world.metrics(limit=2),
    "image gone": lambda world: world.street().unlink(),
    "mask gone": lambda world: world.street("gtFine_labelIds").unlink(),
    "image changed": lambda world: grey_out(world.street()),
    "mask changed": lambda world: grey_out(world.street("gtFine_labelIds")),
    "image and mask changed": relabel,
    "scene gone": lambda world: shutil.rmtree(world.street().parent),
    "all images gone": lambda world: [path.unlink() for path in (world.root / "datasets/cityscapes").rglob("*.png")],
    "another folder of the data set": lambda world: world.records(other_folder),
    "image listed twice": double_image,
    "empty manifest": lambda world: world.manifest(lambda lines: []),
    "doubled manifest": lambda world: world.manifest(lambda lines: 2 * lines),
    "shortened manifest": lambda world: world.manifest(lambda lines: lines[:-1]),
    "truncated manifest": lambda world: cut(world.folder / "manifest.jsonl"),
    "manifest of another scene": lambda world: shutil.copy(
        world.folder.with_name("munster") / "manifest.jsonl", world.folder
    ),
    "no manifest": lambda world: (world.folder / "manifest.jsonl").unlink(),
    "no metrics": lambda world: (world.folder / "metrics.json").unlink(),
    "truncated metrics": lambda world: cut(world.folder / "metrics.json"),
    "scene copied under another name": lambda world: shutil.copytree(world.folder, world.folder.with_name("aachen")),
}
# Single files of which a reader reads some.
PIECES = {
    "no statistics of an image": lambda world: world.one(".json").unlink(),
    "truncated statistics": lambda world: cut(world.one(".json")),
    "no counts of an image": lambda world: world.one(".npz").unlink(),
    "truncated counts": lambda world: cut(world.one(".npz")),
    "truncated logits": lambda world: cut(world.folder / "logits.safetensors"),
    "empty counts": lambda world: world.one(".npz").write_bytes(b""),
    "corrupt counts": lambda world: scramble(world.one(".npz")),
    "empty statistics": lambda world: world.one(".json").write_bytes(b""),
    "corrupt logits": lambda world: scramble(world.folder / "logits.safetensors"),
    "no confusion matrix": lambda world: (world.folder / "confusion_matrix.csv").unlink(),
    "truncated confusion matrix": lambda world: cut(world.folder / "confusion_matrix.csv"),
}


def saved(world, script, *flags):
    out = world.root / "out"
    return world.relis(script, "--segmenters", "good", "--eval_dir", world.relis.results, "--output_dir", out, *flags)


RESULT_READERS = {
    "compute_final_metrics.py": lambda world: saved(world, "compute_final_metrics", "--trg_dataset", "Cityscapes"),
    "eval_calibration.py": lambda world: saved(world, "eval_calibration", "--trg_dataset", "Cityscapes"),
    "eval_calibration.py --source statistics": lambda world: saved(
        world, "eval_calibration", "--trg_dataset", "Cityscapes", "--source", "statistics"
    ),
    "eval_prr.py": lambda world: saved(world, "eval_prr", "--trg_dataset", "Cityscapes"),
    "eval_ood.py": lambda world: saved(world, "eval_ood", "--in_dataset", "Cityscapes", "--trg_dataset", "ACDC"),
    "compute_clusters_temp_scaling.py": lambda world: world.relis(
        "compute_clusters_temp_scaling", "--segmenters", "good", "--eval_dir", world.relis.results,
        "--calibration_dir", world.root / "out", "--calib_dataset", "Cityscapes",
    ),
    "compare_domains.py": lambda world: world.relis(
        "compare_domains", "--eval_dir", world.relis.results, "--output_dir", world.root / "out", "--domains", "fog",
    ),
    "correlate.py": lambda world: world.relis(
        "report/correlate", "--eval_dir", world.relis.results, "--output_dir", world.root / "out", "--domains", "fog",
        "--bootstrap_draws", "20", "--scaling_dir", world.root / "scaling", "--ood_dir", world.root / "ood",
    ),
}  # fmt: skip
READS = {  # which pieces a reader reads; others change nothing
    "compute_final_metrics.py": {"statistics", "counts"},
    "eval_calibration.py": {"logits"},
    "eval_calibration.py --source statistics": {"statistics", "counts"},
    "eval_prr.py": {"statistics", "counts"},
    "eval_ood.py": {"statistics", "counts"},
    "compute_clusters_temp_scaling.py": {"logits"},
    "compare_domains.py": {"confusion"},
    "correlate.py": {"statistics", "counts"},
}
_OUTPUTS = {}


def outputs(world):
    """What a reader wrote, without the place of the results."""
    files = sorted(path for path in (world.root / "out").rglob("*") if path.suffix in (".json", ".csv"))
    return [(path.name, path.read_text().replace(str(world.root), "")) for path in files]


def by_reader(world, reader, damage):
    read = RESULT_READERS[reader]
    if reader not in _OUTPUTS:
        code, _, err = read(world)
        assert code == 0, err
        _OUTPUTS[reader] = outputs(world)
        shutil.rmtree(world.root / "out")
    damage(world)
    code, out, err = read(world)
    if code:
        return exit_outcome(code, err, "Cityscapes/clean")
    if outputs(world) == _OUTPUTS[reader]:
        return EQUAL
    # A model without sound results is left out of a comparison of several, which says so.
    return SKIPPED if "of good on Cityscapes" in out else "another number"


def by_resuming(world, damage):
    """An evaluation after the damage gives what one without earlier results gives."""
    damage(world)
    flags = ("--save", "predictions,logits", "--logit_pixels", "-1")
    found = []
    for _ in range(2):
        code, _, err = world.relis.eval("Cityscapes", "good", *flags)
        tables = [world.folder / name for name in ("confusion_matrix.csv", "per_image.csv", "logits.safetensors")]
        found.append([path.read_bytes() for path in tables] if code == 0 else exit_outcome(code, err, str(world.root)))
        shutil.rmtree(world.relis.results, ignore_errors=True)
    if found[0] == found[1]:
        return EQUAL if isinstance(found[0], list) else found[0]
    return found[0] if found[0] == REFUSED else "another result"


def result_cases():
    def attempt(relis, base, by):
        return by(Evaluated(relis, base))

    cases = []
    for kind, damage in {**RESULTS, **PIECES}.items():
        for reader in RESULT_READERS:
            expected = EXPECTED.get((reader, kind), REFUSED)
            if kind in PIECES and not any(part in kind for part in READS[reader]):
                expected = EQUAL
            by = functools.partial(by_reader, reader=reader, damage=damage)
            cases.append(Case("results folder", kind, reader, expected, functools.partial(attempt, by=by)))
        by, reader = functools.partial(by_resuming, damage=damage), "eval.py, resumed"
        expected = EXPECTED.get((reader, kind), EQUAL)
        cases.append(Case("results folder", kind, reader, expected, functools.partial(attempt, by=by)))
    return cases


# The readers' exceptions: a comparison leaves out a model without finished results and says so, an evaluation writes
# damaged results again where it need not read them.
EXPECTED = {
    **{("correlate.py", kind): SKIPPED for kind in ("no metrics", "no manifest", "no counts of an image")},
    **{("eval.py, resumed", kind): REFUSED for kind in ("image gone", "mask gone", "scene gone", "all images gone")},
}

CASES = [*image_cases(), *mask_cases(), *text_cases(), *result_cases()]


def one_per_kind(cases):
    """One case per kind; the readers take turns."""
    by_kind = {}
    for case in cases:
        by_kind.setdefault((case.family, case.kind), []).append(case)
    return [found[number % len(found)] for number, found in enumerate(by_kind.values())]


def test_every_kind_has_a_case_and_every_borrowed_test_exists():
    assert len(CASES) >= 300 and len(one_per_kind(CASES)) >= 60
    tests = Path(__file__).parents[1]
    for row in BORROWED:
        file, _, name = row.test.partition("::")
        assert f"def {name}(" in (tests / file).read_text(), row.test


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        whole = metafunc.config.pluginmanager.has_plugin("whole corpus")
        metafunc.parametrize("case", CASES if whole else one_per_kind(CASES), ids=str)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


def test_the_outcome_is_the_expected_one(case, relis, base):
    options = {"base": base} if case.family == "results folder" else {}
    assert case.attempt(relis, **options) == case.expected
