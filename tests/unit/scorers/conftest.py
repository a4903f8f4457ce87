"""A record with the output under test, and a heuristic's score of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from evalpipe.record import Record, Release
from evalpipe.scorers.base import heuristics


def _record(output="", user="How do I return my kettle?", **fields):
    return Record(
        record_id="r1",
        trace_id="t1",
        captured_at=datetime(2026, 11, 22, 3, 30, tzinfo=UTC),
        release=Release(service="desk"),
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": user}],
        output=output,
        **fields,
    )


@pytest.fixture
def record():
    """Makes a record from its output and any other field."""
    return _record


@pytest.fixture
def score():
    """Scores an output (and any other field of its record) by the heuristic of that name and its parameters."""

    def _score(name, params, output, **fields):
        heuristic = heuristics.get(name)
        return heuristic(heuristic.Params(**params)).score(_record(output, **fields))

    return _score
