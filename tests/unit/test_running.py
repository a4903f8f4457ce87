"""How the tests themselves are run: see ``stopwatch`` and ``sharing``."""

from __future__ import annotations

from pathlib import Path

import pytest
from sharing import GROUPS, GroupsScheduling
from stopwatch import TookTooLongError, assert_quick, within

ROOT = Path(__file__).parents[2]
RUNS: list[Path] = []


def test_a_test_that_took_too_long_is_run_again_with_fixtures_of_its_own(tmp_path: Path) -> None:
    """Until it does not; this one would fail without."""
    RUNS.append(tmp_path)
    assert_quick(0.0 if len(RUNS) == 3 else 1.0, 0.5)
    assert len(set(RUNS)) == 3


def test_a_limit_is_told_with_what_it_took() -> None:
    """It counts as a failed assertion."""
    with pytest.raises(TookTooLongError, match="not below 0 s"), within(0.0):
        pass
    assert issubclass(TookTooLongError, AssertionError)


def test_tests_of_a_group_share_a_worker_and_others_are_alone() -> None:
    """By files that are there."""
    split = GroupsScheduling.__new__(GroupsScheduling)._split_scope
    for path, group in GROUPS.items():
        assert (ROOT / path).is_file()
        assert split(f"{path}::test_one") == split(f"{path}::test_two[a::b]") == group
    assert split("tests/unit/test_x.py::test_one") == "tests/unit/test_x.py::test_one"
