"""Topic by keywords and by likeness to examples."""

# ruff: noqa: RUF001 - other scripts are the point

from __future__ import annotations

import subprocess
import sys

import pytest

from evalpipe.errors import ConfigError
from evalpipe.score import Status

RETURNS = {
    "examples": [
        "How do I return a damaged item?",
        "The refund for my returned parcel has not arrived",
        "Send the kettle back in its original packaging",
    ]
}
ON = "You can return the damaged kettle in the original packaging; the refund arrives within 5 days."
OFF = "The senate passed the budget after a long debate on taxes and the election."


def test_likeness_tells_the_topic_from_another(score):
    """The value is the likeness over the threshold, at most 1; the explanation has the likeness."""
    on, off = score("topic", RETURNS, ON), score("topic", RETURNS, OFF)
    assert (on.value, on.label) == (1.0, "on")
    assert (off.value, off.label) == (0.0, "off")
    assert off.explanation == "likeness 0.00"


def test_other_forms_of_a_word_are_like_it(score):
    """By stem and letter trigrams: returning, returnable; a synonym is a stranger, as the docstring says."""
    assert score("topic", RETURNS, "Which of these are returnable or refundable?").value > 0
    assert score("topic", RETURNS, "I want my money").value == 0


def test_a_passage_of_a_long_text_is_enough(score):
    """Likeness does not drown in what stands around."""
    long = OFF * 60 + ON + OFF * 60
    assert score("topic", RETURNS, long).value > 5 * score("topic", RETURNS, OFF * 120).value


def test_a_forbidden_topic_turns_the_value_around(score):
    """``expect: off`` is 1 up to the threshold."""
    params = RETURNS | {"expect": "off"}
    assert score("topic", params, ON).value < 1.0
    assert score("topic", params, ON).label == "on"
    assert score("topic", params, OFF).value == 1.0


def test_a_neighbouring_topic_can_win(score):
    """What is more like the other examples is off the topic."""
    text = "Return the damaged rental car to the airport"
    assert score("topic", RETURNS, text).label == "on"
    assert score("topic", RETURNS | {"other_examples": ["return a rental car at the airport"]}, text).label == "off"


def test_keywords_decide_alone_in_any_script(score):
    """Before any likeness."""
    assert score("topic", {"keywords": ["退货"]}, "请问退货要多久?").value == 1.0
    assert score("topic", {"keywords": ["Refund"]}, "a REFUND").label == "on"


def test_scripts_without_spaces_are_compared_by_pairs_of_characters(score):
    """Enough for a topic in Chinese."""
    params = {"examples": ["我想退货，怎么办理退款？"]}
    assert score("topic", params, "退货以后多久可以收到退款？").label == "on"
    assert score("topic", params, "今天的天气很好").label == "off"


def test_the_input_can_be_what_is_looked_at(score):
    """``of: input``, for what people ask about; without words it is skipped."""
    assert score("topic", RETURNS | {"of": "input"}, OFF, user=ON).label == "on"
    assert score("topic", RETURNS | {"of": "input"}, OFF, user="?").status is Status.SKIPPED


def test_parameters_that_say_no_topic_are_the_authors_error(score):
    """Neither examples nor keywords, or an example without a word of its own."""
    with pytest.raises(ConfigError, match="neither examples nor keywords"):
        score("topic", {}, "x")
    with pytest.raises(ConfigError, match="'and this'"):
        score("topic", {"examples": ["and this"]}, "x")


def test_every_process_finds_the_same_likeness():
    """Not even the last digit depends on the seed of Python's hashes."""
    code = (
        "import sys; sys.path.insert(0, 'tests/unit/scorers')\n"
        "from test_topic import RETURNS, ON; from conftest import _record\n"
        "from evalpipe.scorers.topic import Topic, TopicParams\n"
        "print(repr(Topic(TopicParams(**RETURNS, threshold=1.0)).score(_record(ON))))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(runs) == 1
