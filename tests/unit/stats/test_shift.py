"""Tests of two samples: their rates of false alarms by simulation with fixed seeds, and against known formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.answer_shift import answer_shift
from evalpipe.stats.shift import beta_tail, contrast, effective_units, holm, one_sided, ranks
from evalpipe.stats.word_shift import term_shift, word_shift

LEVEL = 0.05


def two(n_before: int, n_now: int, **options: object):
    """A contrast of independent records that weigh the same."""
    n = n_before + n_now
    return contrast(n_before, n_now, options.get("weights", [1.0] * n), options.get("units", [""] * n))


def rate(p_values: list[float]) -> float:
    """Share of false alarms."""
    return float(np.mean([p <= LEVEL for p in p_values]))


def at_most(n: int) -> float:
    """What a true rate of ``LEVEL`` gives in n runs but one in a thousand."""
    return LEVEL + 3.1 * math.sqrt(LEVEL * (1 - LEVEL) / n)


def test_indicators_give_pearsons_chi_square():
    """Of a table of two words, without its correction, to n / (n - 1)."""
    columns = np.array([[1.0]] * 30 + [[0.0]] * 70 + [[1.0]] * 50 + [[0.0]] * 50)
    found = two(100, 100).shift(columns)
    chi_square = 200 * (30 * 50 - 70 * 50) ** 2 / (100 * 100 * 80 * 120)
    assert found.statistic == pytest.approx(chi_square)
    assert found.difference == pytest.approx([0.2])
    assert found.p == pytest.approx(math.erfc(math.sqrt(chi_square / 2)), rel=0.1)


@pytest.mark.parametrize(
    ("a", "b", "x", "tail"),
    [(2, 3, 0.4, 0.4752), (0.5, 10, 0.3, 0.00832250486), (1, 1, 0.25, 0.75), (8, 1, 0.9, 1 - 0.9**8)],
)
def test_the_tail_of_the_beta_distribution_is_right(a, b, x, tail):
    """Against closed forms and published values."""
    assert beta_tail(a, b, x) == pytest.approx(tail, rel=1e-8)
    assert beta_tail(a, b, 0) == 1
    assert beta_tail(a, b, 1) == 0


@pytest.mark.parametrize("kind", ["heavy", "ranks", "weights", "conversations"])
def test_without_a_shift_the_rate_is_kept(kind):
    """Heavy tails, ranks with ties, records that stand for ten, conversations of five that are much alike."""
    rng = np.random.default_rng(17)
    n_before, n_now, p_values = 300, 100, []
    for _ in range(600):
        x, options = rng.standard_t(3, (400, 5)), {}
        if kind == "ranks":
            x = ranks(rng.poisson(3.0, 400))
        if kind == "weights":
            options = {"weights": rng.choice([1.0, 10.0], 400)}
        if kind == "conversations":
            x = np.repeat(rng.standard_normal((80, 2)), 5, axis=0) + 0.3 * rng.standard_normal((400, 2))
            options = {"units": [f"s{i // 5}" for i in range(400)]}
        p_values.append(two(n_before, n_now, **options).shift(x).p)
    # A few dozen conversations estimate their own likeness: a little more than the level is known and accepted.
    assert rate(p_values) <= at_most(600) + (0.02 if kind == "conversations" else 0)
    assert rate(p_values) >= 0.02


def test_without_conversations_known_the_same_records_cry_wolf():
    """The reason why profiles carry their conversation."""
    rng = np.random.default_rng(18)
    p_values = []
    for _ in range(200):
        x = np.repeat(rng.standard_normal((80, 2)), 5, axis=0)
        p_values.append(two(300, 100).shift(x).p)
    assert rate(p_values) > 0.3


def test_a_shift_is_found_and_measured_and_its_direction_named():
    """Half a standard deviation in one of ten dimensions; chance is taken off the effect."""
    rng = np.random.default_rng(19)
    x = rng.standard_normal((1_000, 10))
    assert two(700, 300).shift(x).separation < 0.25
    x[700:, 3] += 0.5
    found = two(700, 300).shift(x)
    assert found.p < 1e-6
    assert found.separation == pytest.approx(0.5, abs=0.15)
    assert int(np.argmax(np.abs(found.direction))) == 3
    assert 0.58 < found.told_apart < 0.7


def test_what_is_held_equal_explains_a_shift_that_follows_it():
    """Answers that follow the questions have not moved, given the questions; a shift of their own stays."""
    rng = np.random.default_rng(20)
    asked = rng.standard_normal((800, 1))
    asked[400:] += 1.0
    answered = 2.0 * asked + rng.standard_normal((800, 1))
    plain = contrast(400, 400, [1.0] * 800, [""] * 800)
    given_asked = contrast(400, 400, [1.0] * 800, [""] * 800, asked)
    assert plain.shift(answered).p < 1e-6
    assert given_asked.shift(answered).p > 0.01
    answered[400:] += 0.5
    assert given_asked.shift(answered).p < 1e-4


def test_nothing_can_be_told_of_one_sample_or_of_none():
    """No error, and no alarm."""
    assert two(0, 50).shift(np.ones((50, 1))).p == 1
    assert two(50, 50).shift(np.ones((100, 1))).p == 1
    assert contrast(5, 5, [0.0] * 10, [""] * 10).shift(np.arange(10.0)).p == 1
    assert word_shift(two(20, 20), ["a"] * 40).p == 1
    assert term_shift(two(20, 20), [frozenset()] * 40, 0.1).p == 1


def test_a_mix_of_words_keeps_its_rate_where_some_are_rare():
    """A word with one record in fifty, and a long tail."""
    rng = np.random.default_rng(21)
    shares = np.array([0.7, 0.2, 0.05, 0.02] + [0.001] * 30)
    words = [chr(97 + i) for i in range(len(shares))]
    p_values = [
        word_shift(two(900, 100), [words[i] for i in rng.choice(len(shares), 1_000, p=shares)]).p for _ in range(300)
    ]
    assert rate(p_values) <= at_most(300)


@pytest.mark.parametrize("level", [0.01, 0.0014, 0.00023])
def test_a_rare_word_keeps_the_rate_far_out(level):
    """Five are expected, in 100 of now: Pearson's chi-square alone is beyond the last level three times as often."""
    before, beyond = ["rare"] * 100 + ["usual"] * 1_900, 0.0
    for k in range(40):
        p = word_shift(two(2_000, 100), before + ["rare"] * k + ["usual"] * (100 - k)).p
        beyond += math.comb(100, k) * 0.05**k * 0.95 ** (100 - k) * (p <= level)
    assert 0.0 < beyond <= level


def test_a_word_that_was_never_there_is_found_and_named():
    """Though the baseline expects none of it."""
    words = ["en"] * 1_000 + ["en"] * 180 + ["fr"] * 20
    found = word_shift(two(1_000, 200), words)
    assert found.p < 1e-6
    assert found.grown[0] == "fr"
    assert found.variation == pytest.approx(0.1)
    strange = ["en"] * 1_000 + ["en"] * 180 + [f"x{i}" for i in range(20)]
    assert word_shift(two(1_000, 200), strange).p < 1e-6


def test_terms_keep_their_rate_and_a_new_phrase_is_named():
    """Among hundreds of words."""
    rng = np.random.default_rng(22)
    words = np.array([f"w{i}" for i in range(300)])
    shares = 1 / (1 + np.arange(300.0))
    shares /= shares.sum()

    def texts(n: int) -> list[frozenset[str]]:
        return [frozenset(words[rng.choice(300, 15, p=shares)]) for _ in range(n)]

    p_values = [term_shift(two(200, 100), texts(300), 0.05).p for _ in range(100)]
    assert rate(p_values) <= at_most(100)
    swapped = texts(200) + [text | {"certainly"} for text in texts(100)]
    found = term_shift(two(200, 100), swapped, 0.2)
    assert found.terms[0] == ("certainly", 0.0, 1.0)
    assert found.p < 1e-6


def answers(rng: np.random.Generator, questions: int, shift: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Unit vectors about a centre for each question, which moves by ``shift``."""
    found = {}
    for i in range(questions):
        centre, other = rng.standard_normal((2, 16))
        rows = np.vstack(
            [
                centre + 0.7 * rng.standard_normal((6, 16)),
                centre + shift * other + 0.7 * rng.standard_normal((2, 16)),
            ]
        )
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        found[f"q{i}"] = rows[:6], rows[6:]
    return found


def test_answers_to_the_same_questions_keep_their_rate_and_a_change_is_found():
    """Each question moves its own way, so that their mean does not; too few questions say nothing."""
    rng = np.random.default_rng(23)
    p_values = [found.p for _ in range(400) if (found := answer_shift(answers(rng, 20, 0.0))) is not None]
    assert rate(p_values) <= at_most(400)
    moved = answer_shift(answers(rng, 20, 0.8))
    assert moved is not None
    assert moved.p < 1e-3
    assert moved.now < moved.before - 0.05
    assert answer_shift(answers(rng, 7, 0.0)) is None


def test_one_sided_is_students_test():
    """A t of -2 with four degrees of freedom has a tail of .0581."""
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) - math.sqrt(2.0)
    mean, p = one_sided(values, np.ones(5))
    assert mean == pytest.approx(-math.sqrt(2))
    assert p == pytest.approx(0.0581, abs=1e-4)
    assert one_sided(-values, np.ones(5))[1] == pytest.approx(1 - 0.0581, abs=1e-4)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    """And at most multiplies by how many there are."""
    adjusted = holm(p_values)
    assert adjusted.keys() == p_values.keys()
    for name, p in p_values.items():
        assert p <= adjusted[name] <= 1
        assert adjusted[name] >= min(1.0, min(p_values.values()) * len(p_values))
    for a in p_values:
        for b in p_values:
            assert not (p_values[a] < p_values[b] and adjusted[a] > adjusted[b])


def test_few_large_parts_are_worth_little():
    """Ten equal ones are worth ten, one large one about one."""
    assert effective_units(np.ones(10)) == pytest.approx(10)
    assert effective_units(np.array([100.0, 1, 1])) == pytest.approx(1, abs=0.01)
    assert effective_units(np.zeros(3)) == 0
