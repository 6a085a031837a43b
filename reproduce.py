"""Reproduce the paper's protocol in one command, from data sets and checkpoints to tables and report.

The protocol generates 512 images in each of five domains, and evaluates the 42 segmenters of the zoo on them, on
corruptions as a baseline and on the real sets. It finds temperatures on generated images and tests them on the real
sets, generates objects and measures their detection, and writes correlations, tables and the report page.

Reads:  datasets/ and checkpoints/; what is missing is listed, with the place to get it
Writes: images/ and results/ by the stages it runs, results/report/index.html by the last of them; and
        results/reproduce/steps.json (what ran, and how fast) and logs/

    python reproduce.py --dry_run                              # what is done, to do and missing, and how long it takes
    python reproduce.py
    python reproduce.py --preset mini --domains fog,night      # the same stages on the mini world: make demo

Each step is a command that can also be run alone. Run the same command again to resume.
"""

from __future__ import annotations

import sys

try:
    from genval.reproduction.settings import ReproductionSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: ReproductionSettings) -> None:
    from genval.reproduction.plan import build_steps
    from genval.reproduction.printing import print_end, print_missing, print_plan, print_unmarked
    from genval.reproduction.protocol import STAGES, Protocol
    from genval.reproduction.record import Record, describe_device
    from genval.reproduction.running import Runner
    from genval.reproduction.state import check_any_runs, check_stages, survey, up_to_date
    from genval.results.scenes import model_list
    from genval.runtime.errors import GenValError
    from genval.runtime.fork_server import LIBRARIES, can_fork
    from genval.runtime.locks import lock_folders
    from genval.runtime.paths import resolve

    devices = settings.devices or ("1" if settings.jobs > 1 else "auto")
    protocol = Protocol(
        preset=settings.preset,
        domains=settings.domains,
        models=tuple(model_list(settings.segmenters, settings.preset)),
        num_samples=settings.num_samples,
        num_object_images=settings.num_object_images,
        render=settings.render,
        jobs=settings.jobs,
        logit_pixels=settings.logit_pixels,
        device=("--accelerator", settings.accelerator, "--devices", devices),
        batch_size=settings.batch_size,
        overwrite=settings.overwrite,
        trust_code=settings.trust_code,
        object_domains=settings.object_domains,
        finetune=settings.finetune,
    )
    stages = check_stages(settings.stages, STAGES)
    steps = build_steps(protocol)
    folder = resolve(settings.output_dir)
    record = Record(folder / "steps.json", settings.preset, describe_device(settings.accelerator))
    states = survey(steps, record.marks, stages, settings.overwrite)
    print_plan(steps, states, record, settings.jobs, settings.dry_run)
    print_unmarked(record.without_marks(steps), states)
    print_missing(steps, states)
    if settings.dry_run:
        return

    check_any_runs(steps, states, stages)
    libraries = LIBRARIES if can_fork() else ()
    runner = Runner(steps, states, record, folder / "logs", settings.jobs, settings.accelerator != "cpu", libraries)
    with lock_folders([folder]):
        runner.run()
    print_missing(steps, states)
    current = up_to_date(steps, states, stages, runner.ended)
    print_end(current, protocol.report_dir, runner.seconds, list(runner.failed))
    if runner.failed:
        listed = "\n  ".join(f"{name}: {last}" for name, last in runner.failed.items())
        raise GenValError(
            f"{len(runner.failed)} steps failed:\n  {listed}\nFix the cause and run the same command again."
        )


if __name__ == "__main__":
    cli.run(main, ReproductionSettings, __doc__)
