"""Three sentences for one reader: can it be trusted, which model, how many images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from genval.report.comparison import CLEAR, CORRUPTED, SYNTHETIC

# A ranking whose Pearson's r has its interval above this is taken for trustworthy.
TRUSTED_R = 0.5
TRUST_WORDS = {
    "better": "Yes, better than clear weather",
    "yes": "Yes, though clear weather may say as much",
    "worse": "Yes, though clear weather says more",
    "alone": "Yes, not compared with clear weather",
    "weak": "Only roughly",
    "no": "Not shown",
}
# What is trusted, by whether it beats clear weather; None where that was not measured.
TRUSTED = {"yes": "better", "undecided": "yes", "no": "worse", None: "alone"}
BEATS_WORDS = {"yes": "better", "undecided": "no clear difference", "no": "worse"}
NOTHING = "Nothing can be said yet: three models with results on the clear, a generated and its true set are needed."


def answer(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the sentences say, by domain.

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


def verdict(values: Mapping[str, Any], answers: Mapping[str, Any]) -> list[str]:
    """The three sentences, from `correlation.json`'s parts and what `answer` gives."""
    questions = ("Can the synthetic verdict be trusted?", "Which model to trust?", "How many generated images?")
    if not values["robustness"]:
        return [f"{question} {NOTHING}" for question in questions]
    said = (_trust(values, answers), _models(values, answers), _images(answers))
    return [f"{question} {'. '.join(parts)}." for question, parts in zip(questions, said, strict=True)]


def _trust(values: Mapping[str, Any], answers: Mapping[str, Any]) -> list[str]:
    def shown(domain: str) -> str:
        correlation = values["robustness"][domain]["correlation"]
        ends = _interval(correlation[SYNTHETIC]["pearson"])
        parts = [f"r {_two(correlation[SYNTHETIC]['pearson']['value'])}"]
        parts += [f"{_two(ends[0])} to {_two(ends[1])}"] if ends else []
        parts += [f"{s} {_two(correlation[s]['pearson']['value'])}" for s in (CLEAR, CORRUPTED) if correlation[s]]
        return f"{domain} ({', '.join(parts)})"

    groups = _group(answers["trust"], lambda trust: TRUST_WORDS[trust], TRUST_WORDS.values())
    said = [f"{word} for {_listed(map(shown, domains))}" for word, domains in groups.items()]
    beats = {domain: of["beats"][CORRUPTED] for domain, of in values["robustness"].items() if of["beats"][CORRUPTED]}
    against = _group(beats, lambda beat: BEATS_WORDS[beat], BEATS_WORDS.values())
    if against:
        said += ["Against classic corruptions: " + "; ".join(f"{w} for {_listed(d)}" for w, d in against.items())]
    return said


def _models(values: Mapping[str, Any], answers: Mapping[str, Any]) -> list[str]:
    short = values["short_names"]

    def shown(model: Mapping[str, Any]) -> str:
        if model["regret"] == 0:
            return f"{short[model['chosen']]}, the best on true pictures too,"
        return (
            f"{short[model['chosen']]}, on true pictures {model['regret']:.1f} points of mIoU below "
            f"{short[model['best']]},"
        )

    def within(domain: str) -> str:
        high = answers["model"][domain]["regret_high"]
        return domain if high is None else f"{domain} (95 % interval: up to {high:.1f} points lost)"

    groups = _group(answers["model"], shown)
    return [f"{said} for {_listed(map(within, domains))}" for said, domains in groups.items()]


def _images(answers: Mapping[str, Any]) -> list[str]:
    def shown(key: str) -> dict[str, list[str]]:
        return _group(answers["images"], lambda of: str(of[key] or f"More than {of['total']}"))

    said = [f"{number} choose a model for {_listed(domains)}" for number, domains in shown("settles_choice").items()]
    ranked = shown("settles_ranking").items()
    return said + [f"{number} settle the ranking for {_listed(domains)}" for number, domains in ranked]


def _group(by_domain: Mapping[str, Any], say: Callable[[Any], str], order: Iterable[str] = ()) -> dict[str, list[str]]:
    """The domains of which the same is said, by what is said."""
    groups: dict[str, list[str]] = {word: [] for word in order}
    for domain, value in by_domain.items():
        groups.setdefault(say(value), []).append(domain)
    return {word: domains for word, domains in groups.items() if domains}


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _interval(estimate: Mapping[str, Any]) -> list[float] | None:
    ends: list[float] | None = estimate["over_both"] or estimate["over_models"]
    return ends


def _two(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
