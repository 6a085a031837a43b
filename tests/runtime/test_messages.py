"""The parts that messages have in common."""

import logging

from genval.runtime.messages import first_words, listed, print_once, silence_loading


def test_lists_are_cut_and_count_the_rest():
    assert listed([]) == "none" and listed(["a", 2]) == "a, 2"
    assert listed("abcd", 3) == "a, b, c and 1 more"


def test_errors_are_worded_on_one_line():
    assert first_words(ValueError("a\n  b"), 2) == "a " and first_words(KeyError()) == "KeyError"


def test_a_line_is_printed_once_and_by_the_first_process(capsys, monkeypatch):
    for text in ("a line of a test", "a line of a test"):
        print_once(text)
    monkeypatch.setenv("LOCAL_RANK", "1")
    print_once("a line of another process")
    assert capsys.readouterr().out == "a line of a test\n"


def test_libraries_are_silent_inside_and_as_before_outside():
    logger = logging.getLogger("diffusers")
    before = logger.level
    with silence_loading():
        assert logger.level == logging.getLogger("transformers").level == logging.ERROR
    assert logger.level == before
