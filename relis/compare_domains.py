"""Compare how a generated and a reference condition rank segmenters: mIoU on both, and their correlation.

Reads:  what relis/eval.py wrote in --eval_dir for Cityscapes, Cityscapes_{domain} and the reference set
Writes: {output_dir}/table.md, table.csv, table.json

    python relis/compare_domains.py --domains fog,night

All columns use the same classes, by default those labelled in every compared set. India is compared with IDD.
"""

from __future__ import annotations

import sys

try:
    from genval.report.settings import DomainTableSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: DomainTableSettings) -> None:
    from genval.report.domain_table import compare_domains
    from genval.runtime.files import write_bytes, write_csv, write_json
    from genval.runtime.paths import resolve

    table = compare_domains(settings)
    folder, text = resolve(settings.output_dir), table.to_markdown()
    print(text)
    write_csv(folder / "table.csv", table.header, table.rows)
    write_json(folder / "table.json", table.to_json())
    write_bytes(folder / "table.md", (text + "\n").encode())
    print(f"wrote {settings.output_dir}/table.md, table.csv, table.json")


if __name__ == "__main__":
    cli.run(main, DomainTableSettings, __doc__)
