"""What a calibration report says in words."""

from __future__ import annotations

from datetime import UTC, datetime

from evalpipe.scorers.calibration import About, assess, meaning
from evalpipe.store.calibrations import Both

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def told(*cells: tuple[str, str, int], weight: float = 1.0) -> str:
    """The sentences on so many records of each pair of grades, people's first."""
    values = {"pass": 1.0, "fail": 0.0}
    both = [
        Both(f"r-{people}-{judge}-{i}", "e", "fake:x/1", "v", AT, "scored", values[judge], judge,
             weight if judge != people else 1.0, None, people={"anna": (people, values[people])})
        for people, judge, n in cells
        for i in range(n)
    ]  # fmt: skip
    return " ".join(meaning(assess(both, About("desk", "grounded", "e", "fake:x/1"), AT)))


def test_each_share_is_told_with_its_interval_and_for_which_share_of_bad_answers_it_holds() -> None:
    """How many of what passes are bad depends on how many are bad at all."""
    words = told(("pass", "pass", 54), ("fail", "pass", 6), ("fail", "fail", 14), ("pass", "fail", 6))
    assert "Of 100 answers that it passes, about 10 (5 to 20) are bad." in words
    assert "Of 100 that it fails, about 30 (15 to 52) are good." in words
    assert "Of 100 bad answers it finds about 70 (48 to 85), however many there are." in words
    assert "This holds where about 25 of 100 answers are bad, as among those labelled." in words


def test_no_error_among_a_few_records_is_not_told_as_no_error() -> None:
    """Twelve passes that people pass too leave room for a quarter of bad ones."""
    words = told(("pass", "pass", 12))
    assert "about 0 (0 to 24) are bad" in words
    assert "People fail none of them: whether it finds bad answers is unknown." in words


def test_weights_count_in_what_is_told() -> None:
    """Each error stands for ten, and is known as one."""
    words = told(("pass", "pass", 50), ("fail", "pass", 5), ("fail", "fail", 20), weight=10.0)
    assert "Of 100 answers that it passes, about 50 (" in words
    assert "about 58 of 100 answers are bad" in words
