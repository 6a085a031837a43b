from genval.report.verdict import NOTHING, answer, verdict


def comparison(value, ends, beats_clear, beats_corrupted=None, regret=0.0, high=None):
    estimate = {"value": value, "over_models": ends, "over_images": None, "over_both": ends}
    correlation = {"synthetic": {"pearson": estimate}, "clear": {"pearson": {**estimate, "value": 0.1}}}
    return {
        "correlation": {**correlation, "corrupted": {"pearson": estimate} if beats_corrupted else None},
        "beats": {"clear": beats_clear, "corrupted": beats_corrupted},
        "ranking": {"synthetic": {"chosen": "hf:a", "best": "b", "regret": {"value": regret, "high": high}}},
    }


def values_of(robustness, curves=None):
    curve = {"settles_ranking": None, "settles_choice": 32, "total": 512}
    return {
        "robustness": robustness,
        "sample_size": curves or dict.fromkeys(robustness, curve),
        "short_names": {"hf:a": "a", "b": "b"},
    }


def test_trust_follows_the_intervals():
    values = values_of(
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
    assert answer(values)["trust"] == trust | {"india": "no"}
    said = verdict(values, answer(values))[0]
    assert "Yes for dusk (r 0.90, 95 % interval 0.60 to 0.95; clear weather 0.10): generated images predict the" in said
    assert "reference mIoU, but clear weather predicts it better." in said
    assert "There are no results in clear weather." in said and "Not for snow (" in said


def test_the_choice_stands_with_what_it_may_lose():
    values = values_of(
        {
            "fog": comparison(0.5, [-0.1, 0.9], "undecided", high=3.44),
            "night": comparison(0.5, [-0.1, 0.9], "undecided", high=0.0),
        }
    )
    assert verdict(values, answer(values))[1] == (
        "Which segmenter should be used? For fog, generated images choose a. a is also the best one on the "
        "reference images (95 % interval: a loss of up to 3.4 points). For night, generated images choose a. a is "
        "also the best one on the reference images (95 % interval: a loss of up to 0.0 points)."
    )


def test_three_sentences_group_what_is_the_same():
    values = values_of(
        {
            "fog": comparison(0.9, [0.6, 0.95], "yes", "yes"),
            "rain": comparison(0.8, [0.55, 0.9], "yes", "undecided", regret=1.25),
        },
        {
            "fog": {"settles_ranking": 128, "settles_choice": 16, "total": 512},
            "rain": {"settles_ranking": None, "settles_choice": 16, "total": 512},
        },
    )
    assert verdict(values, answer(values)) == [
        "Can the synthetic verdict be trusted? Yes for fog (r 0.90, 95 % interval 0.60 to 0.95; clear weather "
        "0.10; corruptions 0.90) and rain (r 0.80, 95 % interval 0.55 to 0.90; clear weather 0.10; corruptions "
        "0.80): generated images predict the reference mIoU, and better than clear weather does. Generated images "
        "predict better than classic corruptions for fog. It is undecided whether generated images or classic "
        "corruptions predict better for rain.",
        "Which segmenter should be used? For fog, generated images choose a. a is also the best one on the "
        "reference images. For rain, generated images choose a. On the reference images it is 1.2 points of mIoU "
        "below b, the best one.",
        "How many generated images are enough? 16 images are enough to choose a segmenter for fog and rain. 128 "
        "images are enough to rank the segmenters for fog. 512 images are not enough to rank the segmenters for "
        "rain.",
    ]


def test_without_a_comparison_nothing_is_said():
    values = values_of({})
    assert all(line.endswith(NOTHING) for line in verdict(values, answer(values)))
    assert len(verdict(values, answer(values))) == 3
