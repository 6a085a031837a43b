"""All steps of the paper's protocol, in the order in which they need each other."""

from __future__ import annotations

import path_dicts
from genval.reproduction.evaluation_steps import (
    calibration_steps,
    detection_steps,
    evaluation_steps,
    finetuning_steps,
    report_steps,
    true_object_sets,
)
from genval.reproduction.image_steps import image_steps_of, object_steps
from genval.reproduction.outputs import nothing
from genval.reproduction.protocol import Protocol, group_models
from genval.reproduction.sources import PAGES, find_data, find_models
from genval.reproduction.steps import Step
from genval.runtime.commands import Missing


def build_steps(protocol: Protocol) -> list[Step]:
    """Every step of the protocol, each after those that it needs."""
    missing_data = {} if protocol.render else find_data(list(protocol.real_sets()), protocol.datasets_dir)
    models, without_weights = find_models(list(protocol.models))
    groups = group_models(protocol, list(models))
    steps = image_steps_of(protocol, missing_data)
    for group in groups:
        inputs = tuple(path for model in group for path in models[model])
        steps += evaluation_steps(protocol, group, groups, inputs, missing_data)
        steps += calibration_steps(protocol, group, groups, missing_data)
    for name, one in missing_data.items():
        steps.append(Step(f"evaluate on {name}", "evaluate", (), None, nothing, missing=(one,)))
    if without_weights:
        missing = tuple(without_weights.values())
        name = f"evaluate {len(missing)} more segmenter{'' if len(missing) == 1 else 's'}"
        steps.append(Step(name, "evaluate", (), None, nothing, missing=missing))
    objects = object_steps(protocol, missing_data)
    steps += objects
    for domain in protocol.object_domains:
        steps += object_steps(protocol, missing_data, domain)
    for group in groups:
        inputs = tuple(path for model in group for path in models[model])
        steps += detection_steps(protocol, group, groups, inputs, objects[-1].size or 0)
    if not true_object_sets(protocol):
        place = path_dicts.OOD_ROOTS["RoadAnomaly21"]
        one = Missing(f"data set RoadAnomaly21 in {place}", f"{PAGES['RoadAnomaly21']}; ln -s PATH {place}")
        steps.append(Step("detect true objects", "detect", (), None, nothing, missing=(one,)))
    if protocol.finetune:
        steps += finetuning_steps(protocol, tuple(path for paths in models.values() for path in paths))
    return [*steps, *report_steps(protocol, list(models), steps)]
