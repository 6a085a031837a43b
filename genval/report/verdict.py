"""The verdict: three answers in complete sentences. Can it be trusted, which segmenter, how many images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from genval.report.comparison import CLEAR, CORRUPTED, SYNTHETIC

# A ranking whose Pearson's r has its interval above this is taken for trustworthy.
TRUSTED_R = 0.5
_TRUST_SENTENCES = {
    "better": "Yes for {}: generated images predict the reference mIoU, and better than clear weather does.",
    "yes": "Yes for {}: generated images predict the reference mIoU, but clear weather may predict it as well.",
    "worse": "Yes for {}: generated images predict the reference mIoU, but clear weather predicts it better.",
    "alone": "Yes for {}: generated images predict the reference mIoU. There are no results in clear weather.",
    "weak": "Only roughly for {}: the correlation is positive, but it may be weak.",
    "no": "Not for {}: no correlation is shown.",
}
_CORRUPTION_SENTENCES = {
    "yes": "Generated images predict better than classic corruptions for {}.",
    "undecided": "It is undecided whether generated images or classic corruptions predict better for {}.",
    "no": "Classic corruptions predict better than generated images for {}.",
}
# The trust by whether generated images beat clear weather; None where that was not measured.
TRUSTED = {"yes": "better", "undecided": "yes", "no": "worse", None: "alone"}
NOTHING = (
    "There is no answer yet: it needs three segmenters with results on the clear, a generated and its reference set."
)


def answer(values: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the answers by domain.

    `trust`: where the interval of Pearson's r (over models and images) lies above 0.5, "better" when that of the
    difference to clear weather lies above 0, "worse" when it lies below, "yes" when it holds 0, "alone" without results
    in clear weather; else "weak" when r's interval lies above 0, and "no" otherwise. `model`: what the synthetic
    figures choose, with the regret in points and the upper end of its interval, `regret_high`, or None. `images`: a
    sample-size curve's `settles_ranking`, `settles_choice` and `total`.
    """
    trust: dict[str, str] = {}
    model: dict[str, Any] = {}
    for domain, comparison in values["robustness"].items():
        ends = _interval(comparison["correlation"][SYNTHETIC]["pearson"])
        low = ends[0] if ends else -1.0
        trusted = TRUSTED[comparison["beats"][CLEAR]]
        trust[domain] = trusted if low > TRUSTED_R else "weak" if low > 0 else "no"
        ranking = comparison["ranking"][SYNTHETIC]
        model[domain] = {key: ranking[key] for key in ("chosen", "best")}
        model[domain] |= {"regret": ranking["regret"]["value"], "regret_high": ranking["regret"]["high"]}
    images = {
        domain: {key: curve[key] for key in ("settles_ranking", "settles_choice", "total")}
        for domain, curve in values["sample_size"].items()
    }
    return {"trust": trust, "model": model, "images": images}


QUESTIONS = (
    "Can the synthetic verdict be trusted?",
    "Which segmenter should be used?",
    "How many generated images are enough?",
)


def verdict(values: Mapping[str, Any], answers: Mapping[str, Any]) -> list[str]:
    """Return the three answers as text, from the parts of `correlation.json` and the result of `answer`."""
    if not values["robustness"]:
        return [f"{question} {NOTHING}" for question in QUESTIONS]
    sentences = (_trust(values, answers), _segmenters(values, answers), _images(answers))
    return [f"{question} {' '.join(said)}" for question, said in zip(QUESTIONS, sentences, strict=True)]


def _trust(values: Mapping[str, Any], answers: Mapping[str, Any]) -> list[str]:
    def shown(domain: str) -> str:
        correlation = values["robustness"][domain]["correlation"]
        ends = _interval(correlation[SYNTHETIC]["pearson"])
        parts = [f"r {_two(correlation[SYNTHETIC]['pearson']['value'])}"]
        parts[0] += f", 95 % interval {_two(ends[0])} to {_two(ends[1])}" if ends else ""
        for side, name in ((CLEAR, "clear weather"), (CORRUPTED, "corruptions")):
            if correlation[side]:
                parts.append(f"{name} {_two(correlation[side]['pearson']['value'])}")
        return f"{domain} ({'; '.join(parts)})"

    groups = _group(answers["trust"], _TRUST_SENTENCES)
    said = [_TRUST_SENTENCES[trust].format(_join(map(shown, domains))) for trust, domains in groups.items()]
    beats = {domain: of["beats"][CORRUPTED] for domain, of in values["robustness"].items() if of["beats"][CORRUPTED]}
    against = _group(beats, _CORRUPTION_SENTENCES)
    return said + [_CORRUPTION_SENTENCES[beat].format(_join(domains)) for beat, domains in against.items()]


def _segmenters(values: Mapping[str, Any], answers: Mapping[str, Any]) -> list[str]:
    short, said = values["short_names"], []
    for domain, model in answers["model"].items():
        name, best, high = short[model["chosen"]], short[model["best"]], model["regret_high"]
        said.append(f"For {domain}, generated images choose {name}.")
        if model["regret"] == 0:
            said.append(f"{name} is also the best one on the reference images.")
        else:
            said.append(
                f"On the reference images it is {model['regret']:.1f} points of mIoU below {best}, the best one."
            )
        if high is not None:
            said[-1] = f"{said[-1][:-1]} (95 % interval: a loss of up to {high:.1f} points)."
    return said


def _images(answers: Mapping[str, Any]) -> list[str]:
    said = []
    for key, purpose in (("settles_choice", "choose a segmenter"), ("settles_ranking", "rank the segmenters")):
        enough: dict[int, list[str]] = {}
        too_few: dict[int, list[str]] = {}
        for domain, curve in answers["images"].items():
            if curve[key]:
                enough.setdefault(curve[key], []).append(domain)
            else:
                too_few.setdefault(curve["total"], []).append(domain)
        said += [f"{number} images are enough to {purpose} for {_join(names)}." for number, names in enough.items()]
        said += [
            f"{number} images are not enough to {purpose} for {_join(names, 'or')}."
            for number, names in too_few.items()
        ]
    return said


def _group(by_domain: Mapping[str, str], order: Iterable[str]) -> dict[str, list[str]]:
    """Return the domains by their value, in the given order of values."""
    groups = {value: [domain for domain, found in by_domain.items() if found == value] for value in order}
    return {value: domains for value, domains in groups.items() if domains}


def _join(names: Iterable[str], word: str = "and") -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def _interval(estimate: Mapping[str, Any]) -> list[float] | None:
    ends: list[float] | None = estimate["over_both"] or estimate["over_models"]
    return ends


def _two(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
