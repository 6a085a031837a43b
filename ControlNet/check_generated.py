"""Judge generated images: whether each shows its mask and its domain, and differs from all others.

Reads:  a folder of ControlNet/style_transfer.py, or of the released data; the segmenter that judges the images; with
        --clip a CLIP model.
Writes: into the folder: "scores" of each image in manifest.jsonl (scores.jsonl where there is no manifest), scores.png
        (histograms), and gate.json: the kept and the dropped images with reasons, which `relis/eval.py --gate` applies.
        Run the same command again to resume; other thresholds need no new scores.

With --domain clear it also checks the generator, by results of relis/eval.py in --eval_dir: segmenters must rank on
generated clear images as they do on the original clear images of the same streets. With --reference it measures how
far the set is from unlabelled images of the domain (realism.json).

    python ControlNet/check_generated.py --domain fog --segmenter SegFormer-B5 --clip ViT-L-14/openai
    python ControlNet/check_generated.py --domain clear --generator img2img
    python ControlNet/check_generated.py --domain fog --clip ViT-L-14/openai --reference PATH
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import ScoringSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: ScoringSettings) -> None:
    from genval.datasets.gate import GATE
    from genval.evaluation.image_scores import summary
    from genval.evaluation.scoring import find_phrases, find_reference, find_set, judge_set
    from genval.report.clear_check import CLEAR_DOMAIN, clear_check
    from genval.results.finding import NoResultsError, list_models
    from genval.runtime.paths import resolve
    from genval.runtime.tables import markdown_table

    if settings.run.dry_run:
        folder, items = find_set(settings, [] if settings.skip_bad else None)
        if settings.clip:
            find_phrases(settings, folder)
        if settings.reference:
            find_reference(settings.reference)
        print(f"Would judge {len(items)} images of {folder}")
        return
    judged = judge_set(settings)
    if judged is None:  # another process reports
        return
    print(markdown_table(*summary(judged.scores.values()), digits=3))
    for item_id, reasons in judged.reasons.items():
        for reason in reasons:
            print(f"dropped {item_id}: {reason}")
    verdict = f"{judged.folder.name}: {judged.kept} kept, {judged.dropped} dropped"
    print(f"Scored {judged.written} images; {verdict}. Wrote {GATE} and scores.png to {judged.folder}")
    if judged.realism is not None:
        print(judged.realism.sentence())
    if settings.domain == CLEAR_DOMAIN:
        eval_dir = resolve(settings.eval_dir)
        try:
            print(clear_check(eval_dir, list_models(eval_dir), settings.generator, preset=settings.preset).sentence())
        except NoResultsError as error:
            print(f"Not checked: {error}")


if __name__ == "__main__":
    cli.run(main, ScoringSettings, __doc__)
