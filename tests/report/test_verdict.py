import dataclasses

from genval.report.predictors import Generator, list_predictors
from genval.report.published import PUBLISHED
from genval.report.schema import (
    Coefficients,
    Comparison,
    Estimate,
    Findings,
    GeneratorCheck,
    PearsonEstimate,
    Ranking,
    SampleSizeCurve,
    ValueWithInterval,
)
from genval.report.verdict import NOTHING, answer, verdict


def comparison(value, ends, beats_clear, beats_corrupted=None, regret=0.0, high=None):
    def coefficients(r):
        low, high = ends or (None, None)
        estimate = Estimate(r, ends, None, ends)
        corrected = r if ends else None
        return Coefficients(12, PearsonEstimate(r, corrected, low, high, None if ends else "why"), estimate, estimate)

    return Comparison(
        metric="miou",
        unit="percent",
        better="higher",
        sets={},
        models=[],
        correlation={
            "synthetic": coefficients(value),
            "clear": coefficients(0.1),
            "corrupted": coefficients(value) if beats_corrupted else None,
        },
        difference={},
        beats={"clear": beats_clear, "corrupted": beats_corrupted},
        ranking={"synthetic": Ranking("hf:a", "b", False, None, ValueWithInterval(regret, None, high))},
        bias=ValueWithInterval(0.0, None, None),
    )


def curve(settles_ranking, settles_choice):
    return SampleSizeCurve([], [], [], [], settles_ranking, settles_choice, 0.9, 1.0, total=512)


def findings_of(robustness, curves=None, generators=("controlnet",), checks=()):
    return Findings(
        settings={},
        models=["hf:a", "b"],
        short_names={"hf:a": "a", "b": "b"},
        families={"hf:a": "other", "b": "other"},
        made_by={},
        domains=list(robustness),
        checks=list(checks),
        predictors=list_predictors([Generator(name, None) for name in generators]),
        robustness=robustness,
        calibration={},
        ood_detection={},
        ood_means={},
        sample_size=curves or dict.fromkeys(robustness, curve(None, 32)),
        severity={},
        realism={},
        published=PUBLISHED,
        missing=[],
    )


def test_trust_follows_the_intervals():
    findings = findings_of(
        {
            "fog": comparison(0.9, [0.6, 0.95], "yes", "yes"),
            "night": comparison(0.9, [0.6, 0.95], "undecided", "undecided"),
            "dusk": comparison(0.9, [0.6, 0.95], "no"),
            "dust": comparison(0.9, [0.6, 0.95], None),
            "rain": comparison(0.9, [0.1, 0.95], "yes"),
            "snow": comparison(0.9, [-0.1, 0.95], "yes"),
            "india": comparison(0.9, None, "undecided"),
        }
    )
    trust = {"fog": "better", "night": "yes", "dusk": "worse", "dust": "alone", "rain": "weak", "snow": "no"}
    assert answer(findings).trust == trust | {"india": "few"}
    said = verdict(findings, answer(findings))[0]
    shown = "r corrected for noise 0.90, 95 % interval 0.60 to 0.95, observed 0.90; clear weather 0.10"
    assert f"Yes for dusk ({shown}): generated images predict the" in said
    assert "There is no answer for india (observed r 0.90; why; clear weather 0.10)." in said
    assert "reference mIoU, but clear weather predicts it better." in said
    assert "There are no results in clear weather." in said and "Not for snow (" in said


def test_the_choice_stands_with_what_it_may_lose():
    findings = findings_of(
        {
            "fog": comparison(0.5, [0.1, 0.9], "undecided", high=3.44),
            "night": comparison(0.5, [0.1, 0.9], "undecided", high=0.0),
        }
    )
    assert verdict(findings, answer(findings))[1] == (
        "Which segmenter should be used? For fog, generated images choose a. a is also the best one on the "
        "reference images (95 % interval: a loss of up to 3.4 points). For night, generated images choose a. a is "
        "also the best one on the reference images (95 % interval: a loss of up to 0.0 points)."
    )


def test_three_sentences_group_what_is_the_same():
    findings = findings_of(
        {
            "fog": comparison(0.9, [0.6, 0.95], "yes", "yes"),
            "rain": comparison(0.8, [0.55, 0.9], "yes", "undecided", regret=1.25),
        },
        {
            "fog": curve(128, 16),
            "rain": curve(None, 16),
        },
    )
    assert verdict(findings, answer(findings)) == [
        "Can the synthetic verdict be trusted? Yes for fog (r corrected for noise 0.90, 95 % interval 0.60 to "
        "0.95, observed 0.90; clear weather 0.10; corruptions 0.90) and rain (r corrected for noise 0.80, 95 % "
        "interval 0.55 to 0.90, observed 0.80; clear weather 0.10; corruptions 0.80): generated images predict the "
        "reference mIoU, and better than clear weather does. Generated images predict better than classic corruptions "
        "for fog. It is undecided whether generated images or classic corruptions predict better for rain.",
        "Which segmenter should be used? For fog, generated images choose a. a is also the best one on the "
        "reference images. For rain, generated images choose a. Its mIoU on the reference images is 1.2 "
        "points below that of b, the best one.",
        "How many generated images are enough? 16 images are enough to choose a segmenter for fog and rain. 128 "
        "images are enough to rank the segmenters for fog. 512 images are not enough to rank the segmenters for "
        "rain.",
    ]


def test_other_generators_are_compared_with_the_first():
    fog = comparison(0.9, [0.6, 0.95], "yes")
    fog.correlation["img2img"], fog.beats["img2img"] = fog.correlation["clear"], "yes"
    night = comparison(0.9, [0.6, 0.95], "yes")
    night.correlation["img2img"], night.beats["img2img"] = fog.correlation["synthetic"], "undecided"
    findings = findings_of({"fog": fog, "night": night}, generators=("controlnet", "img2img"))
    said = verdict(findings, answer(findings))[0]
    assert "95 % interval 0.60 to 0.95, observed 0.90; img2img 0.10; clear weather 0.10)" in said
    assert "Images of controlnet predict better than those of img2img for fog." in said
    assert "It is undecided whether images of controlnet or of img2img predict better for night." in said


def test_no_segmenter_is_named_without_a_correlation():
    """A segmenter beside "not shown" would be taken for a recommendation."""
    findings = findings_of(
        {
            "fog": comparison(-0.6, [-0.9, 0.1], "undecided"),
            "night": comparison(0.9, None, "undecided"),
            "rain": comparison(0.9, [0.6, 0.95], "yes"),
        }
    )
    answers = answer(findings)
    said = verdict(findings, answers)
    assert list(answers.model) == ["rain"]
    assert "Generated images give no answer for fog and night." in said[1] and said[1].count("choose a") == 1
    assert "fog" not in said[2] and "rain" in said[2]
    none = findings_of({"fog": comparison(-0.6, [-0.9, 0.1], "undecided")})
    assert verdict(none, answer(none))[1:] == [
        "Which segmenter should be used? Generated images give no answer for fog.",
        "How many generated images are enough? There is no answer without a positive correlation.",
    ]


def test_a_negative_correlation_is_not_denied():
    findings = findings_of({"fog": comparison(-0.9, [-0.97, -0.6], "undecided")})
    trust, *_ = verdict(findings, answer(findings))
    assert "-0.97 to -0.60" in trust and "no positive correlation is shown" in trust


def test_a_domain_without_results_is_named():
    findings = findings_of({"rain": comparison(0.9, [0.6, 0.95], "yes")})
    findings = dataclasses.replace(findings, domains=["fog", "rain", "snow"])
    assert "fog and snow could not be compared: results are missing." in verdict(findings, answer(findings))[0]


def test_a_generator_that_fails_on_clear_images_is_not_trusted():
    checks = [GeneratorCheck("a", True, "a passed", None), GeneratorCheck("b", False, "b: it failed", None)]
    findings = findings_of({"rain": comparison(0.9, [0.6, 0.95], "yes")}, checks=checks)
    said = verdict(findings, answer(findings))[0]
    assert "trusted? Do not trust b: it failed. Yes for rain" in said and "a passed" not in said


def test_without_a_comparison_nothing_is_said():
    findings = findings_of({})
    assert all(line.endswith(NOTHING) for line in verdict(findings, answer(findings)))
    assert len(verdict(findings, answer(findings))) == 3
