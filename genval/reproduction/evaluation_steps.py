"""The steps that measure segmenters: evaluation, calibration, detection of objects, and what all of it says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import path_dicts
from genval.datasets.layouts import CORRUPTED_PREFIX, GENERATED_PREFIX
from genval.finetuning.paths import output_specification
from genval.report import HARDEST_SHARE
from genval.reproduction.image_steps import object_folders, objects_are_judged
from genval.reproduction.outputs import of_correlation, of_evaluations, of_files
from genval.reproduction.protocol import (
    CALIBRATION_SCENES,
    CLEAR,
    CLEAR_COND,
    CORRUPTED,
    GENERATED,
    REAL,
    Protocol,
    list_models,
    step_name,
)
from genval.reproduction.sources import count_ood_images, list_ood_images
from genval.reproduction.steps import Step
from genval.results.ood_blocks import OodResults
from genval.results.scenes import folder_name
from genval.runtime.commands import Missing
from genval.runtime.paths import resolve

# Of the name of the results on objects that curation rejects too.
_ALL = "-uncurated"


def evaluation_steps(
    protocol: Protocol,
    group: tuple[str, ...],
    groups: Sequence[tuple[str, ...]],
    inputs: tuple[Path, ...],
    missing_data: dict[str, Missing],
) -> list[Step]:
    """The segmenters on real, generated and corrupted sets."""
    kept = ("--save", "predictions,logits", "--logit_pixels", str(protocol.logit_pixels))

    def command(datasets: Sequence[str], *flags: str) -> tuple[str, ...]:
        what = ("--segmenters", list_models(protocol, group), "--trg_dataset", ",".join(datasets))
        return protocol.command("relis/eval", *what, *flags, *kept, *protocol.trust(), device=True)

    steps = []
    real = {name: conds for name, conds in protocol.real_sets().items() if name not in missing_data}
    if real:
        commands = tuple(command([name], "--cond", ",".join(conds)) for name, conds in real.items())
        # Rendered sets have no other conditions: one process does for all.
        commands = (command(list(real)),) if protocol.render else commands
        sets = [(name, cond, protocol.images_of(name, cond)) for name, conds in real.items() for cond in conds]
        needs: tuple[str, ...] = ("render",) if protocol.render else ()
        steps.append(_evaluation(protocol, group, groups, REAL, commands, sets, needs, inputs))
    datasets = [f"{GENERATED_PREFIX}{domain}" for domain in protocol.domains]
    sets = [(name, domain, protocol.num_samples) for name, domain in zip(datasets, protocol.domains, strict=True)]
    needs = tuple(f"generate {domain}" for domain in protocol.domains)
    steps.append(_evaluation(protocol, group, groups, GENERATED, (command(datasets),), sets, needs, inputs))
    if protocol.corruptible:
        datasets = [f"{CORRUPTED_PREFIX}{domain}" for domain in protocol.corruptible]
        frames = protocol.images_of(CLEAR, CLEAR_COND)
        sets = [(name, domain, frames) for name, domain in zip(datasets, protocol.corruptible, strict=True)]
        needs = tuple(f"corrupt {domain}" for domain in protocol.corruptible)
        steps.append(_evaluation(protocol, group, groups, CORRUPTED, (command(datasets),), sets, needs, inputs))
    return steps


def _evaluation(
    protocol: Protocol,
    group: tuple[str, ...],
    groups: Sequence[tuple[str, ...]],
    kind: str,
    commands: tuple[tuple[str, ...], ...],
    sets: Sequence[tuple[str, str, int | None]],
    needs: tuple[str, ...],
    inputs: tuple[Path, ...],
) -> Step:
    sizes = [size for _, _, size in sets]
    size = None if None in sizes else len(group) * sum(size or 0 for size in sizes)
    places = [(model, dataset, cond) for model in group for dataset, cond, _ in sets]
    made = partial(of_evaluations, protocol.root, places)
    # A generated or corrupted set is the same folder under every condition.
    data = protocol.images_in(*((dataset, cond if kind == REAL else "all") for dataset, cond, _ in sets))
    name = step_name("evaluate", kind, group, groups)
    return Step(name, "evaluate", commands, size, made, needs, inputs=inputs, data=data)


def calibration_steps(
    protocol: Protocol, group: tuple[str, ...], groups: Sequence[tuple[str, ...]], missing_data: dict[str, Missing]
) -> list[Step]:
    """Temperatures found on generated, clear and corrupted images, tried on the real domains.

    Those of generated ones are found twice: on all of them, as published, and on the hardest. Temperatures of the real
    images themselves are the upper bound.
    """
    domains = [domain for domain in protocol.domains if path_dicts.REAL_SETS[domain][0] not in missing_data]
    who = ("--segmenters", list_models(protocol, group))
    tests = {domain: _tested(domain) for domain in domains}

    def pair(calibrating: Sequence[str], test: Sequence[str], found: bool = False) -> list[tuple[str, ...]]:
        find = protocol.command("relis/compute_clusters_temp_scaling", *who, *calibrating)
        try_on = protocol.command("relis/eval_calibration_clustering", *who, *calibrating, *test)
        return [try_on] if found else [find, try_on]

    plans: dict[str, tuple[list[tuple[str, ...]], list[tuple[str, str]], tuple[str, ...]]] = {}
    if domains:
        shares = ("--hardest", f"1,{HARDEST_SHARE:g}")
        commands = pair(("--protocol", "synthetic", "--domains", ",".join(domains), *shares), ())
        files = []
        for domain in domains:
            dataset = f"{GENERATED_PREFIX}{domain}"
            own, hardest = set_name(dataset), set_name(dataset, hardest=HARDEST_SHARE)
            files += [(set_name(*tests[domain]), own), (set_name(*tests[domain]), hardest), (own, own)]
            commands += pair(("--calib_dataset", dataset), ("--trg_dataset", dataset), found=True)
        plans[GENERATED] = (commands, files, (GENERATED, REAL))
    if domains and CLEAR not in missing_data:
        scenes = ("--calib_cond", CLEAR_COND, "--calib_scene", CALIBRATION_SCENES)
        commands, files = [], []
        for number, domain in enumerate(domains):
            commands += pair(("--calib_dataset", CLEAR, *scenes), _test_flags(domain), found=number > 0)
            clear = set_name(CLEAR, CLEAR_COND, CALIBRATION_SCENES)
            files.append((set_name(*tests[domain]), clear))
        plans["clear"] = (commands, files, (REAL,))
    corrupted = [domain for domain in domains if domain in protocol.corruptible]
    if corrupted and CLEAR not in missing_data:
        commands, files = [], []
        for domain in corrupted:
            commands += pair(("--calib_dataset", f"{CORRUPTED_PREFIX}{domain}"), _test_flags(domain))
            files.append((set_name(*tests[domain]), set_name(f"{CORRUPTED_PREFIX}{domain}")))
        plans[CORRUPTED] = (commands, files, (CORRUPTED, REAL))
    if domains:
        commands, files = [], []
        for domain in domains:
            dataset, cond = tests[domain]
            calibrating = ("--calib_dataset", dataset, *(("--calib_cond", cond) if cond != "all" else ()))
            commands += pair(calibrating, _test_flags(domain))
            files.append((set_name(*tests[domain]), set_name(*tests[domain])))
        plans[REAL] = (commands, files, (REAL,))
    root = resolve(protocol.option("relis/eval_calibration_clustering", "output_dir", "results/temperature_scaling"))
    return [
        Step(
            step_name("calibrate on", kind, group, groups),
            "calibrate",
            tuple(commands),
            len(files) * len(group),
            partial(
                of_files,
                [
                    root / folder_name(model) / tested / f"from_{source}" / "vanilla_ece.json"
                    for model in group
                    for tested, source in files
                ],
            ),
            needs=tuple(step_name("evaluate", need, group, groups) for need in kinds),
            work=len(files) * len(group) * protocol.num_samples,
        )
        for kind, (commands, files, kinds) in plans.items()
    ]


def _tested(domain: str) -> tuple[str, str]:
    """The data set and condition that a domain's temperatures are tried on; of IDD all, as --protocol does."""
    dataset, cond = path_dicts.REAL_SETS[domain]
    return (dataset, "all") if dataset == "IDD" else (dataset, cond)


def _test_flags(domain: str) -> tuple[str, ...]:
    dataset, cond = _tested(domain)
    return ("--trg_dataset", dataset, "--cond", cond)


def set_name(dataset: str, cond: str = "all", scenes: str = "", hardest: float = 1.0) -> str:
    """The folder that calibration names a set by, as `genval.evaluation.calibration.ImageSet` does (that needs torch).

    >>> set_name("ACDC", "fog"), set_name("Cityscapes", "clean", "lindau,munster")
    ('ACDC_fog', 'Cityscapes_clean_lindau+munster')
    """
    parts = [*([scenes.replace(",", "+")] if scenes else []), *([f"hardest{100 * hardest:g}"] if hardest < 1 else [])]
    return "_".join([folder_name(dataset), cond, *parts])


def detection_steps(
    protocol: Protocol,
    group: tuple[str, ...],
    groups: Sequence[tuple[str, ...]],
    inputs: tuple[Path, ...],
    generated: int,
) -> list[Step]:
    """The segmenters on generated objects, so many images per set, and on true objects.

    Where CLIP judged the objects, they are measured twice: the curated ones, and all of them.
    """
    root = resolve(protocol.option("ood_detection/main_gen_ood", "output_dir", "results/ood_detection"))
    needs = ("render",) if protocol.render else ()
    sets = true_object_sets(protocol)

    def step(
        kind: str, datasets: Sequence[str], images: int, before: tuple[str, ...], *more: str, suffix: str = ""
    ) -> Step:
        name = step_name("detect", kind, group, groups)
        flags = ("--segmenters", list_models(protocol, group), "--trg_dataset", ",".join(datasets), *more)
        command = protocol.command("ood_detection/main_gen_ood", *flags, *protocol.trust(), device=True)
        files = [OodResults(root, one + suffix, model).csv for one in datasets for model in group]
        size, made = len(files), partial(of_files, files)
        data = {
            f"data set {one}": partial(list_ood_images, one, protocol.datasets_dir) for one in datasets if one in sets
        }
        return Step(name, "detect", (command,), size, made, before, inputs=inputs, data=data, work=len(group) * images)

    steps = [step("generated objects", [GENERATED], generated, ("outline",))]
    if objects_are_judged(protocol):
        all_objects = step("all generated objects", [GENERATED], generated, ("outline",), "--uncurated", suffix=_ALL)
        steps.append(all_objects)
    for domain in protocol.object_domains:
        folders = [part for flag, folder in object_folders(protocol, domain).items() for part in (f"--{flag}", folder)]
        outlined = (f"outline in {domain}",)
        name = f"{GENERATED}-{domain}"
        steps.append(step(f"generated objects in {domain}", [name], generated, outlined, *folders))
    if sets:
        true = sum(count_ood_images(name, protocol.datasets_dir) for name in sets)
        true = max(true, protocol.num_samples) if protocol.render else true
        steps.append(step("true objects", sets, true, needs))
    return steps


def finetuning_steps(protocol: Protocol, inputs: tuple[Path, ...]) -> list[Step]:
    """Segmenters fine-tuned on the generated objects, and both versions on true objects.

    Objects are generated in frames of val, as published: clear mIoU is therefore not validated.
    """
    sets, steps = true_object_sets(protocol), []
    objects = Path(protocol.option("ood_objects/get_masks", "output_dir", "images/ood_objects/masks")).parent
    needs = ("outline", *(("render",) if protocol.render else ()))
    for model in protocol.finetune:
        output = f"checkpoints/finetuned/{folder_name(model)}"
        flags = ("--segmenter", model, "--outliers", str(objects), "--output", output, "--val_every", "0")
        run = ("--run", f"reproduce-{folder_name(model)}", "--resume", "auto")
        command = protocol.command("relis/finetune", *flags, *run, *protocol.trust(), *protocol.device)
        made = partial(of_files, [resolve(output) / "recipe.json"])
        name = f"fine-tune {model}"
        steps.append(Step(name, "finetune", (command,), 1, made, needs, inputs=inputs))
        if sets:
            tuned = output_specification(model, output)
            # Component metrics write the map of the score, which the page shows before and after.
            what = ("--segmenters", f"{model},{tuned}", "--trg_dataset", ",".join(sets), "--components", "entropy")
            root = resolve(protocol.option("ood_detection/main_gen_ood", "output_dir", "results/ood_detection"))
            command = protocol.command("ood_detection/main_gen_ood", *what, *protocol.trust(), device=True)
            made = partial(of_files, [OodResults(root, one, tuned).csv for one in sets])
            steps.append(Step(f"compare {model}", "finetune", (command,), len(sets), made, (name,)))
    return steps


@functools.cache
def true_object_sets(protocol: Protocol) -> tuple[str, ...]:
    """The sets of true objects that there are, or will be once they are rendered; looked for once a plan."""
    if protocol.render:
        return ("RoadAnomaly21",)
    return tuple(name for name in path_dicts.OOD_ROOTS if count_ood_images(name, protocol.datasets_dir))


def report_steps(protocol: Protocol, models: Sequence[str], steps: Sequence[Step]) -> list[Step]:
    """What the results say."""
    folder = protocol.report_dir
    evaluations = tuple(step.name for step in steps if step.stage == "evaluate")
    others = tuple(step.name for step in steps if step.stage in ("calibrate", "detect", "outline", "generate"))
    listed = list_models(protocol, models)
    flags = ("--segmenters", listed, "--domains", ",".join(protocol.domains))
    return [
        Step(
            "correlate",
            "correlate",
            (protocol.command("report/correlate", *flags),),
            1,
            partial(of_correlation, folder / "correlation.json", protocol.domains, listed),
            any_of=evaluations,
            after=others,
            work=sum(step.size or 0 for step in steps if step.stage == "evaluate"),
        ),
        Step(
            "tables",
            "tables",
            (protocol.command("report/tables"),),
            1,
            partial(of_files, [folder / "tables"]),
            needs=("correlate",),
        ),
        Step(
            "report",
            "report",
            (protocol.command("report/make_report"),),
            1,
            partial(of_files, [folder / "index.html"]),
            any_of=evaluations,
            after=("correlate", *others),
        ),
    ]
