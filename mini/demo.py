"""The whole story on the embedded world: render, generate fog and night, evaluate, compare, and draw a contact sheet.

Each step is a command that is printed before it runs; any of them can be run alone. Killed and started again, the demo
goes on where it was: every stage passes over what it has finished.

Reads:  checkpoints/mini
Writes: datasets/mini, images/mini, results/mini, with results/mini/demo/table.md and contact_sheet.png

    python mini/demo.py            (or: make demo)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from genval.runtime.cli import comma_list, parse, positive_int, run, script_parser
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "mini/demo")
    parser.add_argument("--num_samples", type=positive_int, default=16, help="images a domain")
    parser.add_argument(
        "--domains", type=comma_list, default=["fog", "night"], help="the domains to generate and compare"
    )
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count() or 1, help="threads a step")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    commands = steps(args.num_samples, args.domains)
    # More threads than cores make every step many times slower; a library's own default may be the host's cores.
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    start = time.perf_counter()
    for number, command in enumerate(commands, 1):
        elapsed = time.perf_counter() - start
        print(f"\n[{number}/{len(commands)}, {elapsed:.0f} s] $ python {' '.join(command)}", flush=True)
        if not args.dry_run and subprocess.run([sys.executable, *command], cwd=REPO_ROOT, env=environment).returncode:
            raise GenValError(f"{command[0]} failed (see above). Mend the cause and run the same again: it goes on.")
    print(f"\ndemo finished in {time.perf_counter() - start:.0f} s")


def steps(num_samples: int, domains: list[str]) -> list[list[str]]:
    """The demo's commands, without the interpreter."""
    preset, listed, number = ["--preset", "mini"], ",".join(domains), str(num_samples)
    targets = ",".join(["Cityscapes", *(f"Cityscapes_{domain}" for domain in domains), "ACDC"])
    return [
        ["mini/render.py", "--num_train", "0", "--num_val", number, "--domains", f"clear,{listed}"],
        *(["ControlNet/style_transfer.py", *preset, "--domain", domain, "--num_samples", number] for domain in domains),
        ["relis/eval.py", *preset, "--trg_dataset", targets],
        ["relis/compare_domains.py", *preset, "--domains", listed],
        ["relis/contact_sheet.py", *preset, "--domains", listed],
    ]


if __name__ == "__main__":
    run(main, parse_args)
