"""Write predictions and confidences in the layout of the BRAVO challenge, and compute its metrics.

Reads:  --bravo_dir with bravo_ACDC, bravo_SMIYC, bravo_synobjs, ...; the segmenters' checkpoints; --labels_dir
Writes: {output_dir}/{segmenter}/{the image's path}_pred.png (trainIds) and _conf.png (16 bits), and with --labels_dir
        {output_dir}/{segmenter}/bravo.json

    python relis/bravo.py --segmenters SegFormer-B5

Run the same command again to resume. The challenge's toolkit encodes the folder of a segmenter as a submission. The
challenge forbids generative models for data augmentation: segmenters that were fine-tuned on generated images must not
be submitted.
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import LIST_MODELS, BravoSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: BravoSettings) -> None:
    from genval.evaluation.bravo import export_all
    from genval.runtime.tables import markdown_table

    rows = export_all(settings)
    if rows:
        header = list(dict.fromkeys(key for row in rows for key in row))
        cells = [
            [100 * row[key] if isinstance(row.get(key), float) else row.get(key) for key in header] for row in rows
        ]
        print(markdown_table(header, cells, digits=2))
    if not settings.run.dry_run:
        print(f"wrote {settings.output_dir}/{{segmenter}}/")


if __name__ == "__main__":
    cli.run(main, BravoSettings, __doc__, LIST_MODELS)
