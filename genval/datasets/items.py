"""Pairs of an image and its mask: found by name, checked before anything is computed."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import path_dicts
from genval.datasets.layouts import Layout, find_layout, find_root, suggestion
from genval.runtime.errors import GenValError
from genval.runtime.paths import subfolders, why_unopened

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
MASK_EXTENSIONS = (".png",)
ALL = "all"


@dataclass(frozen=True)
class Item:
    """One labelled image."""

    id: str  # the file names' common part, unique within a scene
    image: Path
    mask: Path
    cond: str  # clean, fog, night, ...
    scene: str  # city, recording or folder
    label_space: str = "cityscapes"  # what the mask's ids mean: see labels.find_label_space

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read with the item."""
        return self.image, self.mask


@dataclass(frozen=True)
class BadFile:
    """A file that `--skip_bad` skips, and the reason."""

    id: str
    cond: str
    scene: str
    file: str
    reason: str


_AnyItem = TypeVar("_AnyItem", bound=Item)


class _Key(NamedTuple):
    cond: str
    scene: str
    id: str


def find_items(
    dataset: str,
    cond: str | Sequence[str] = ALL,
    scene: str | Sequence[str] = ALL,
    split: str | None = None,
    root: str | Path | None = None,
    datasets_dir: str | Path = "datasets",
    generated_dir: str | Path = path_dicts.GENERATED_ROOT,
    skipped: list[BadFile] | None = None,
) -> list[Item]:
    """Find the labelled images of a data set, or of some of its conditions and scenes.

    Images and masks are paired by name; the order of files on disk does not matter.

    Args:
        dataset: a name of `layouts.LAYOUTS`, `Cityscapes_{domain}`, or `folder:IMAGES,MASKS,LABELS`.
        cond: condition or conditions, or "all"; for MUSES, with conditions like "fog_night", a part is enough.
        scene: city, recording or folder, one or several, or "all".
        split: a split's folder, or "all" (every split with public labels); None is the default split of the data set.
        root: the data set's folder, if `layouts.find_root` does not find it.
        datasets_dir: the folder of the data sets.
        generated_dir: the folder of the generated sets.
        skipped: images without a mask, masks without an image, files of one id and files that cannot be opened are
            added to this list instead of raising an error.

    Returns:
        The items sorted by condition, scene and id; never empty.

    Raises:
        GenValError: unknown data set, condition, scene or split; no files; an unpaired file; two files for one id; or a
            file that cannot be opened.
    """
    layout = find_layout(dataset)
    root = find_root(dataset, root, datasets_dir, generated_dir)
    split = split or layout.default_split
    splits = layout.splits if split == ALL else (split,)
    # In one folder with the images, masks are told by their suffix.
    not_images = layout.mask_suffixes if layout.images == layout.masks else ()
    images = _scan(root, layout, layout.images, splits, (layout.image_suffix,), IMAGE_EXTENSIONS, not_images)
    masks: dict[_Key, list[Path]] = {}
    for template in (layout.masks, *layout.other_masks):
        masks = masks or _scan(root, layout, template, splits, layout.mask_suffixes, MASK_EXTENSIONS)
    _require_files(images, root / layout.images, layout.image_suffix, IMAGE_EXTENSIONS, dataset, splits)
    _require_files(masks, root / layout.masks, layout.mask_suffixes[0], MASK_EXTENSIONS, dataset, splits)

    both = images.keys() | masks.keys()
    conds = _choose("condition", cond, {key.cond for key in both}, dataset, layout)
    in_conds = {key for key in both if key.cond in conds}
    scenes = _choose("scene", scene, {key.scene for key in in_conds}, dataset, layout)
    wanted = sorted(key for key in in_conds if key.scene in scenes)

    _check_unique(wanted, images, skipped)
    _check_unique(wanted, masks, skipped)
    _check_pairs(wanted, images, masks, root, layout, skipped)
    paired = [key for key in wanted if len(images.get(key, ())) == len(masks.get(key, ())) == 1]
    if not paired:
        raise GenValError(f"No image of {dataset} in {root} has a mask: expected names as in {_expected(layout)}.")
    items = [Item(key.id, images[key][0], masks[key][0], key.cond, key.scene, layout.label_space) for key in paired]
    return openable(items, skipped)


def openable(items: Sequence[_AnyItem], skipped: list[BadFile] | None) -> list[_AnyItem]:
    """Return the items whose files can be opened.

    Args:
        items: the items.
        skipped: files that cannot be opened are added to this list instead of raising an error.

    Raises:
        GenValError: a file is missing, a folder, a link that leads nowhere, or may not be read; or no item is left.
    """
    kept = []
    for item in items:
        faults = [(_printable(file), reason) for file in item.files if (reason := why_unopened(file))]
        if faults and skipped is None:
            raise GenValError(f"{faults[0][0]} {faults[0][1]}. Fetch or make the file again, or use --skip_bad.")
        if skipped is not None:
            skipped += [BadFile(_printable(item.id), item.cond, item.scene, file, reason) for file, reason in faults]
        if not faults:
            kept.append(item)
    if items and not kept:
        raise GenValError(f"None of {len(items)} images can be opened with its mask, such as {items[0].image}.")
    return kept


def _printable(name: str | Path) -> str:
    """A name with escapes for its bytes that are no UTF-8."""
    return str(name).encode(errors="backslashreplace").decode()


def find_original(item: Item) -> Path | None:
    """The real crop from whose mask an image was generated, if the generator saved it."""
    folder = item.image.parents[3] / "original" / item.image.parent.relative_to(item.image.parents[2])
    # The published generator gives originals no suffix of their own.
    matches = sorted(path for end in (".*", "_*") for path in folder.glob(f"{glob.escape(item.id)}{end}"))
    return matches[0] if matches else None


def _scan(
    root: Path,
    layout: Layout,
    template: str,
    splits: Sequence[str],
    suffixes: Sequence[str],
    extensions: Collection[str],
    other_files: Sequence[str] = (),
) -> dict[_Key, list[Path]]:
    """Every file of one kind, by (condition, scene, id); not those whose name ends as in `other_files`."""
    others = tuple(end for end in (*other_files, *layout.other_files) if end)
    found: dict[_Key, list[Path]] = {}
    for folder, names in _folders(root, template, splits):
        for path in sorted(folder.iterdir()):
            suffix = next((end for end in suffixes if path.stem.endswith(end)), None)
            if suffix is None or path.suffix.lower() not in extensions or path.name.startswith("."):
                continue
            if others and path.stem.endswith(others):
                continue
            item_id = path.stem.removesuffix(suffix)
            scene = names.get("scene") or layout.scene.format(**names) or item_id.partition(layout.scene_separator)[0]
            cond = names.get("cond") or dict(layout.cond_by_scene).get(scene) or layout.cond.format(**names)
            found.setdefault(_Key(cond, scene, item_id), []).append(path)
    return found


def _folders(root: Path, template: str, splits: Sequence[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Every folder that matches the template, with the values of its placeholders."""
    places: list[tuple[Path, dict[str, str]]] = [(root, {})]
    for part in template.split("/"):
        if "{split}" in part and splits:
            places = [
                (place / part.replace("{split}", split), {**names, "split": split})
                for place, names in places
                for split in splits
            ]
        elif part.startswith("{"):
            places = [
                (entry, {**names, part.strip("{}"): entry.name})
                for place, names in places
                for entry in subfolders(place)
            ]
        else:
            places = [(place / part, names) for place, names in places]
        places = [(place, names) for place, names in places if place.is_dir()]
    yield from places


def _require_files(
    files: Collection[_Key], place: Path, suffix: str, extensions: Sequence[str], dataset: str, splits: Sequence[str]
) -> None:
    if files:
        return
    names = splits[0] if len(splits) == 1 else "{" + ",".join(splits) + "}"
    pattern = str(place).replace("{split}", names) if splits else str(place)
    endings = extensions[0] if len(extensions) == 1 else "{" + ",".join(end[1:] for end in extensions) + "}"
    dot = "" if endings.startswith(".") else "."
    above = Path(str(place).partition("{")[0])
    missing = "" if above.is_dir() else f" There is no folder {above}."
    raise GenValError(
        f"No files of {dataset}: expected {pattern}/*{suffix}{dot}{endings}, found none.{missing} "
        "Put the data there, or check the flags for its folder and its split."
    )


def _choose(kind: str, asked: str | Sequence[str], known: set[str], dataset: str, layout: Layout) -> set[str]:
    names = [asked] if isinstance(asked, str) else list(asked)
    if ALL in names:
        return known
    flag = "cond" if kind == "condition" else "scene"
    if kind == "condition":
        names = [layout.cond if name in layout.cond_aliases else name for name in names]
        if "{" in layout.cond:  # composed of parts: "night" means every condition at night
            whole = {name: [cond for cond in known if name in cond.split("_")] or [name] for name in names}
            names = [cond for name in names for cond in whole[name]]
    for name in names:
        if name not in known:
            generated = (
                f" The generated set is --trg_dataset Cityscapes_{name}."
                if dataset == "Cityscapes" and kind == "condition"
                else ""
            )
            raise GenValError(
                f"{dataset} has no {kind} {name!r}.{suggestion(name, known)}{generated} "
                f"Give --{flag} one of: {', '.join(sorted(known))}, all."
            )
    return set(names)


def _check_unique(wanted: Sequence[_Key], files: dict[_Key, list[Path]], skipped: list[BadFile] | None) -> None:
    for key in wanted:
        first, *others = files.get(key, [Path()])
        if others and skipped is None:
            raise GenValError(f"Two files for {key.id}: {first} and {others[0]}. Move one of them elsewhere.")
        if others and skipped is not None:
            reason = f"another file of this id: {others[0]}"
            skipped.append(BadFile(key.id, key.cond, key.scene, str(first), reason))


def _check_pairs(
    wanted: Sequence[_Key],
    images: dict[_Key, list[Path]],
    masks: dict[_Key, list[Path]],
    root: Path,
    layout: Layout,
    skipped: list[BadFile] | None,
) -> None:
    if skipped is not None:
        for files, others, reason in (
            (images, masks, "image without a mask"),
            (masks, images, "mask without an image"),
        ):
            unpaired = [key for key in wanted if key in files and key not in others]
            skipped += [BadFile(key.id, key.cond, key.scene, str(files[key][0]), reason) for key in unpaired]
        return
    unpaired_images = [images[key][0] for key in wanted if key not in masks]
    unpaired_masks = [masks[key][0] for key in wanted if key not in images]
    faults = []
    if unpaired_images:
        faults.append(f"{_count(unpaired_images, 'image')} without a mask ({_first(unpaired_images, root)})")
    if unpaired_masks:
        faults.append(f"{_count(unpaired_masks, 'mask')} without an image ({_first(unpaired_masks, root)})")
    if faults:
        raise GenValError(
            f"{root}: {' and '.join(faults)}. Expected names as in {_expected(layout)}. "
            "Complete the pairs, or use --skip_bad."
        )


def _count(paths: Sequence[Path], noun: str) -> str:
    return f"{len(paths)} {noun}{'s' if len(paths) != 1 else ''}"


def _first(paths: Sequence[Path], root: Path, count: int = 3) -> str:
    shown = [path.relative_to(root).as_posix() for path in paths[:count]]
    return ", ".join(shown) + (", ..." if len(paths) > count else "")


def _expected(layout: Layout) -> str:
    return f"{layout.images}/ID{layout.image_suffix}.png with {layout.masks}/ID{layout.mask_suffixes[0]}.png"
