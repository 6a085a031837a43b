"""Provenance of the numbers: commands, versions, seeds and hashes of checkpoints, from the files of the stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import path_dicts
from genval.results.shapes import ImageLine
from genval.runtime.commands import Command, flag_text
from genval.runtime.files import read_json, read_jsonl
from genval.runtime.flags import canonical


class _Settings(TypedDict):
    """`settings.json`."""

    settings: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]


# What stages add to the flags in settings.json.
_NOT_FLAGS = {"script", "preset", "domain_text", "overwrite", "limit", "dry_run"}


def collect_provenance(generated_dir: Path, results: Path, others: Iterable[Path] = ()) -> dict[str, Any]:
    """Read every settings.json of generated sets and evaluations.

    Args:
        generated_dir: folder of the generated sets.
        results: folder of the results of relis/eval.py.
        others: more folders with settings.json in or below them.

    Returns:
        `runs`, each with its `command` and its number of outputs; `versions`, the versions of every package;
        `weights`, hashes of checkpoints by the name of the checkpoint; `warnings`, sentences about
        inconsistent versions or weights.
    """
    paths = sorted(generated_dir.glob("*/settings.json")) + sorted(results.glob("*/*/*/*/settings.json"))
    paths += sorted(path for folder in others for path in folder.rglob("settings.json"))
    runs: dict[str, int] = {}
    versions: dict[str, set[str]] = {}
    weights: dict[str, set[str]] = {}
    for path in paths:
        content = read_json(path, _Settings)
        settings = content.get("settings", {})
        command = command_of(settings)
        runs[command] = runs.get(command, 0) + 1
        for package, version in content.get("versions", {}).items():
            versions.setdefault(package, set()).add(version)
        for key, value in settings.items():
            if key.endswith("_hash") and value:
                weights.setdefault(f"{key.removesuffix('_hash')} ({settings.get(_named(key), 'unnamed')})", set()).add(
                    str(value)
                )
    for path in sorted(results.glob("*/*/*/*/manifest.jsonl")):
        for record in read_jsonl(path, ImageLine):
            found = f"{record.get('identity', 'not recorded')} in {record.get('precision', 'unknown')}"
            weights.setdefault(segmenter_key(record.get("model", path.parts[-5])), set()).add(found)
    warnings = [
        f"{package} was at versions {', '.join(sorted(found))} in different runs."
        for package, found in versions.items()
        if len(found) > 1
    ]
    warnings += [
        f"{name} had different weights in different runs ({', '.join(sorted(found))}): run the older ones again."
        for name, found in weights.items()
        if len(found) > 1 and not name.startswith("frames")
    ]
    return {
        "runs": [{"command": command, "outputs": count} for command, count in sorted(runs.items())],
        "versions": {package: sorted(found) for package, found in versions.items()},
        "weights": {name: sorted(found) for name, found in sorted(weights.items())},
        "warnings": warnings,
    }


def segmenter_key(model: str) -> str:
    """Return the name of a segmenter among the `weights` of `collect_provenance`."""
    return f"segmenter {model}"


def command_of(settings: Mapping[str, Any]) -> str:
    """Return the command of a run from its settings, without the flags that its preset sets.

    >>> command_of({"script": "relis/eval", "preset": None, "trg_dataset": ["ACDC"], "gate": False, "seed": 0})
    'python relis/eval.py --trg_dataset ACDC --seed 0'
    """
    script, preset = settings.get("script", "unknown"), settings.get("preset")
    given = {canonical(key): value for key, value in path_dicts.PRESETS.get(preset or "", {}).get(script, {}).items()}
    flags = {canonical(key): value for key, value in settings.items() if key not in _NOT_FLAGS}
    own = {
        key: value
        for key, value in flags.items()
        if not key.endswith("_hash") and (key not in given or flag_text(value) != flag_text(given[key]))
    }
    return str(Command(script, {"preset": preset, **own}))


def _named(key: str) -> str:
    """The flag that names the hashed checkpoint or folder."""
    return {"frames_hash": "data_dir"}.get(key, key.removesuffix("_hash"))
