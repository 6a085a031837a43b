"""The paper's protocol in one command: from data sets and checkpoints on the disk to all tables and one page.

512 images in each of five domains, the 42 models of the zoo, calibration by temperatures found on generated pictures
and tried on the real domains, generated objects, corruptions as the baseline, correlations, tables, report.

Reads:  datasets/ and checkpoints/, whatever of them there is; what is missing is listed with where to get it
Writes: images/ and results/ by the stages it runs, results/report/index.html by the last of them; and
        results/reproduce/steps.json (what ran, and how fast) and logs/

    python reproduce.py --dry_run                              # what is done, to do and missing, and how long it takes
    python reproduce.py
    python reproduce.py --preset mini --domains fog,night      # the same stages on the embedded world: make demo

Each step is a command that can be run alone and goes on where it was; so does the whole when it is started again.
"""

from __future__ import annotations

import argparse

from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "reproduce")
    what = parser.add_argument_group("what is reproduced")
    what.add_argument("--domains", type=cli.comma_list, default="fog,night,rain,snow,india", help="some of these")
    what.add_argument("--models", default="all", help="models as given to relis/eval.py")
    what.add_argument("--num_samples", type=cli.positive_int, default=512, help="generated images a domain")
    what.add_argument("--num_object_images", type=cli.positive_int, help="images an object (default: sd_inpaint.py's)")
    what.add_argument("--logit_pixels", type=cli.positive_int, default=20000, help="pixels an image for calibration")
    what.add_argument("--render", action="store_true", help="render the embedded world's data sets first")
    what.add_argument(
        "--stages", type=cli.comma_list, default="all", help="only these: render, generate, evaluate, ... as printed"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--dry_run", action="store_true", help="print the plan with every command, and stop")
    how.add_argument("--overwrite", action="store_true", help="have every step make its files again")
    how.add_argument("--jobs", type=cli.positive_int, default=1, help="steps at a time, each with a log file")
    how.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
    how.add_argument("--devices", help="a step's devices (default: all; with several jobs one, in turn)")
    how.add_argument("--batch_size", type=cli.positive_int, help="of every stage that has one (default: its own)")
    how.add_argument("--results_dir", default="results/reproduce", help="where the record and the logs are kept")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.reproduction.plan import build_steps
    from genval.reproduction.printing import print_end, print_missing, print_plan
    from genval.reproduction.protocol import STAGES, Protocol
    from genval.reproduction.record import Record, describe_device
    from genval.reproduction.running import Runner
    from genval.reproduction.state import check_any_runs, check_stages, survey, up_to_date
    from genval.results.scenes import model_list
    from genval.runtime.errors import GenValError
    from genval.runtime.paths import resolve

    devices = args.devices or ("1" if args.jobs > 1 else "auto")
    protocol = Protocol(
        preset=args.preset,
        domains=tuple(args.domains),
        models=tuple(model_list(args.models, args.preset)),
        num_samples=args.num_samples,
        num_object_images=args.num_object_images,
        render=args.render,
        jobs=args.jobs,
        logit_pixels=args.logit_pixels,
        device=("--accelerator", args.accelerator, "--devices", devices),
        batch_size=args.batch_size,
        overwrite=args.overwrite,
    )
    stages = check_stages(args.stages, STAGES)
    steps = build_steps(protocol)
    folder = resolve(args.results_dir)
    record = Record(folder / "steps.json", args.preset, describe_device(args.accelerator))
    standings = survey(steps, record.finished, stages, args.overwrite)
    print_plan(steps, standings, record, args.jobs, args.dry_run)
    print_missing(steps, standings)
    if args.dry_run:
        return

    check_any_runs(steps, standings, stages)
    runner = Runner(steps, standings, record, folder / "logs", args.jobs, args.accelerator != "cpu")
    runner.run()
    print_missing(steps, standings)
    print_end(up_to_date(steps, standings, stages, runner.ended), protocol.report_dir, runner.seconds)
    if runner.failed:
        listed = "\n  ".join(f"{name}: {last}" for name, last in runner.failed.items())
        raise GenValError(f"{len(runner.failed)} steps failed:\n  {listed}\nMend the cause and run the same again.")


if __name__ == "__main__":
    cli.run(main, parse_args)
