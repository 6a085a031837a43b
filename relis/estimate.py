"""Estimate the accuracy of segmenters on unlabelled images of a condition; no masks are needed.

Reads:  folders of images; results of relis/eval.py on clear weather in --eval_dir, if there are any
Writes: {output_dir}/{segmenter}/{set}/: predictions and counts of confidences, from which a run resumes;
        {output_dir}/estimates.md and estimates.json

    python relis/estimate.py --segmenters all --images fog=PATH

Estimates: mIoU with the majority vote of the other segmenters as the labels (from three segmenters on), average
confidence, and with clear-weather results the difference of confidences. They rank segmenters. Their values do
not replace an mIoU with labels.
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import LIST_MODELS, EstimateSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: EstimateSettings) -> None:
    from genval.evaluation.unlabelled import UNLABELLED, predict_unlabelled
    from genval.report.estimates import estimate
    from genval.report.evidence import Place
    from genval.results.scenes import model_list
    from genval.runtime.files import write_bytes, write_json
    from genval.runtime.paths import resolve

    sets = predict_unlabelled(settings)
    models = model_list(settings.model.segmenters, settings.preset)
    if settings.run.dry_run:
        for name, images in sets.items():
            print(f"{name}: {len(images)} images for each of {len(models)} segmenters")
        return
    if not sets:  # another process reports
        return
    root = resolve(settings.output_dir)
    found = [
        estimate(
            root,
            models,
            name,
            [image.id for image in images],
            Place(name, UNLABELLED),
            (resolve(settings.eval_dir), Place(settings.clear_dataset, settings.clear_cond)),
            draws=settings.bootstrap_draws,
            seed=settings.seed,
            preset=settings.preset,
        )
        for name, images in sets.items()
    ]
    text = "\n\n".join(one.to_markdown() for one in found)
    print(text)
    for part in dict.fromkeys(part for one in found for part in one.missing):
        print(f"missing: {part.what}. Run: {part.remedy}")
    write_bytes(root / "estimates.md", (text + "\n").encode())
    write_json(
        root / "estimates.json",
        {
            one.name: {
                "images": one.images,
                "values": {
                    key: {model: value.to_json() for model, value in of.items()} for key, of in one.values.items()
                },
            }
            for one in found
        },
    )
    print(f"wrote {settings.output_dir}/estimates.md, estimates.json")


if __name__ == "__main__":
    cli.run(main, EstimateSettings, __doc__, LIST_MODELS)
