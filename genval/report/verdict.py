"""The verdict: three answers in complete sentences. Can it be trusted, which segmenter, how many images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from genval.report.schema import (
    CLEAR,
    CORRUPTED,
    SYNTHETIC,
    Answers,
    Comparison,
    EnoughImages,
    Findings,
    ModelChoice,
    PearsonEstimate,
    Predictor,
)

# A ranking whose corrected r has its interval above this is taken for trustworthy.
TRUSTED_R = 0.5
_TRUST_SENTENCES = {
    "better": "Yes for {}: generated images predict the reference mIoU, and better than clear weather does.",
    "yes": "Yes for {}: generated images predict the reference mIoU, but clear weather may predict it as well.",
    "worse": "Yes for {}: generated images predict the reference mIoU, but clear weather predicts it better.",
    "alone": "Yes for {}: generated images predict the reference mIoU. There are no results in clear weather.",
    "weak": "Only roughly for {}: the correlation is positive, but it may be weak.",
    "no": "Not for {}: no positive correlation is shown.",
    "few": "There is no answer for {}.",
}
# Answers without evidence that the choice of generated images means anything: no segmenter is named.
_NOT_SHOWN = ("no", "few")
_CORRUPTION_SENTENCES = {
    "yes": "Generated images predict better than classic corruptions for {}.",
    "undecided": "It is undecided whether generated images or classic corruptions predict better for {}.",
    "no": "Classic corruptions predict better than generated images for {}.",
}
_GENERATOR_SENTENCES = {
    "yes": "Images of {first} predict better than those of {other} for {domains}.",
    "undecided": "It is undecided whether images of {first} or of {other} predict better for {domains}.",
    "no": "Images of {other} predict better than those of {first} for {domains}.",
}
# The trust by whether generated images beat clear weather; None where that was not measured.
TRUSTED = {"yes": "better", "undecided": "yes", "no": "worse", None: "alone"}
NOTHING = (
    "There is no answer yet: it needs three segmenters with results on clear images, on a generated set and on its "
    "reference set."
)


def answer(findings: Findings) -> Answers:
    """Compute the answers by domain.

    With the trust "few" and "no", no model is named.
    """
    trust: dict[str, str] = {}
    model: dict[str, ModelChoice] = {}
    for domain, comparison in findings.robustness.items():
        own, ranking = comparison.correlation[SYNTHETIC], comparison.ranking[SYNTHETIC]
        assert own is not None and ranking is not None  # a comparison always has the synthetic set
        trust[domain] = trust_in(own.pearson, comparison.beats[CLEAR])
        if trust[domain] not in _NOT_SHOWN:
            model[domain] = ModelChoice(ranking.chosen, ranking.best, ranking.regret.value, ranking.regret.high)
    images = {
        domain: EnoughImages(curve.settles_ranking, curve.settles_choice, curve.total)
        for domain, curve in findings.sample_size.items()
    }
    return Answers(trust, model, images)


def trust_in(r: PearsonEstimate, beats_clear: str | None) -> str:
    """Return how far generated images can be trusted in a domain.

    The answer depends on the interval of the corrected r and on that of its difference to clear weather. It is "few"
    without an interval. If r's interval is above 0.5, it is "better" if the difference's interval is above 0, "worse"
    if it is below 0, "yes" if it contains 0, and "alone" without results in clear weather. Else it is "weak" if r's
    interval is above 0, and "no" otherwise.
    """
    if r.low is None:
        return "few"
    return TRUSTED[beats_clear] if r.low > TRUSTED_R else "weak" if r.low > 0 else "no"


QUESTIONS = (
    "Can the synthetic verdict be trusted?",
    "Which segmenter should be used?",
    "How many generated images are enough?",
)


def verdict(findings: Findings, answers: Answers) -> list[str]:
    """Return the three answers as text; the first one names the domains that were asked for and not compared."""
    absent = [domain for domain in findings.domains if domain not in findings.robustness]
    not_compared = [f"{_join(absent)} could not be compared: results are missing."] if absent else []
    if not findings.robustness:
        return [f"{question} {NOTHING}" for question in QUESTIONS]
    failed = [f"Do not trust {check.said}." for check in findings.checks if check.passed is False]
    sentences = ([*failed, *_trust(findings, answers), *not_compared], _segmenters(findings, answers), _images(answers))
    return [f"{question} {' '.join(said)}" for question, said in zip(QUESTIONS, sentences, strict=True)]


def _trust(findings: Findings, answers: Answers) -> list[str]:
    shown = {
        domain: _shown(domain, comparison, findings.predictors) for domain, comparison in findings.robustness.items()
    }
    groups = _group(answers.trust, _TRUST_SENTENCES)
    said = [
        _TRUST_SENTENCES[trust].format(_join(shown[domain] for domain in domains)) for trust, domains in groups.items()
    ]
    against = _group(_beats(findings, CORRUPTED), _CORRUPTION_SENTENCES)
    said += [_CORRUPTION_SENTENCES[beat].format(_join(domains)) for beat, domains in against.items()]
    first = findings.predictors[0].name
    for other in findings.other_generators:
        for beat, domains in _group(_beats(findings, other.key), _GENERATOR_SENTENCES).items():
            said.append(_GENERATOR_SENTENCES[beat].format(first=first, other=other.name, domains=_join(domains)))
    return [*said, *_label_free(findings)]


def _label_free(findings: Findings) -> list[str]:
    """The best estimate from unlabelled images in each domain, as one sentence."""
    best = []
    for domain, comparison in findings.robustness.items():
        found = {one.name: comparison.correlation.get(one.key) for one in findings.label_free}
        values = {name: of.pearson.shown for name, of in found.items() if of and of.pearson.shown is not None}
        if values:
            name = max(values, key=lambda name: values[name])
            best.append(f"{_two(values[name])} for {domain} ({name})")
    if not best:
        return []
    about = "With unlabelled images of the condition, the best label-free estimate that was tried has an r of"
    return [f"{about} {_join(best)}."]


def _beats(findings: Findings, baseline: str) -> dict[str, str]:
    """Whether generated images beat a baseline, by domain."""
    robustness = findings.robustness.items()
    return {domain: beat for domain, comparison in robustness if (beat := comparison.beats.get(baseline))}


def _shown(domain: str, comparison: Comparison, predictors: Sequence[Predictor]) -> str:
    """A domain with the correlation of each predictor in parentheses."""
    own = comparison.correlation[SYNTHETIC]
    assert own is not None
    r = own.pearson
    if r.ends is None:
        parts = [f"observed r {_two(r.value)}", r.refused or "no interval"]
    else:
        interval = f"95 % interval {_two(r.low)} to {_two(r.high)}"
        parts = [f"r corrected for noise {_two(r.corrected)}, {interval}, observed {_two(r.value)}"]
    for predictor in (one for one in predictors[1:] if not one.is_label_free):
        baseline = comparison.correlation.get(predictor.key)
        if baseline:
            parts.append(f"{predictor.name} {_two(baseline.pearson.shown)}")
    return f"{domain} ({'; '.join(parts)})"


def _segmenters(findings: Findings, answers: Answers) -> list[str]:
    short, said = findings.short_names, []
    unknown = [domain for domain, trust in answers.trust.items() if trust in _NOT_SHOWN]
    if unknown:
        said.append(f"Generated images give no answer for {_join(unknown)}.")
    for domain, model in answers.model.items():
        name, best = short[model.chosen], short[model.best]
        said.append(f"For {domain}, generated images choose {name}.")
        if model.regret == 0:
            said.append(f"{name} is also the best one on the reference images.")
        else:
            said.append(
                f"Its mIoU on the reference images is {model.regret:.1f} points below that of {best}, the best one."
            )
        if model.regret_high is not None:
            said[-1] = f"{said[-1][:-1]} (95 % interval: a loss of up to {model.regret_high:.1f} points)."
    return said


def _images(answers: Answers) -> list[str]:
    shown = {domain: curve for domain, curve in answers.images.items() if answers.trust[domain] not in _NOT_SHOWN}
    if not shown:
        return ["There is no answer without a positive correlation."]
    choice = {domain: (curve.settles_choice, curve.total) for domain, curve in shown.items()}
    ranking = {domain: (curve.settles_ranking, curve.total) for domain, curve in shown.items()}
    return [*_enough("choose a segmenter", choice), *_enough("rank the segmenters", ranking)]


def _enough(purpose: str, settled: Mapping[str, tuple[int | None, int]]) -> list[str]:
    """Sentences about the number of images that is enough, or the total that is not, by domain."""
    enough: dict[int, list[str]] = {}
    too_few: dict[int, list[str]] = {}
    for domain, (number, total) in settled.items():
        if number:
            enough.setdefault(number, []).append(domain)
        else:
            too_few.setdefault(total, []).append(domain)
    said = [f"{number} images are enough to {purpose} for {_join(names)}." for number, names in enough.items()]
    return said + [
        f"{total} images are not enough to {purpose} for {_join(names, 'or')}." for total, names in too_few.items()
    ]


def _group(by_domain: Mapping[str, str], order: Iterable[str]) -> dict[str, list[str]]:
    """Return the domains by their value, in the given order of values."""
    groups = {value: [domain for domain, found in by_domain.items() if found == value] for value in order}
    return {value: domains for value, domains in groups.items() if domains}


def _join(names: Iterable[str], word: str = "and") -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def _two(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
