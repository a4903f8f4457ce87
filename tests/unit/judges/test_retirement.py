"""A model's end is told before it comes."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from evalpipe.errors import ConfigError
from evalpipe.judges import retirement
from evalpipe.judges.config import parse_judge
from evalpipe.judges.retirement import WARN_BEFORE, retires_at, retiring


@pytest.mark.parametrize(
    ("judge", "day"),
    [
        ("openai:gpt-5", date(2026, 12, 11)),
        ("openai-responses:gpt-5-2025-08-07", date(2026, 12, 11)),
        ("openai:openai/o3@http://gateway/v1", date(2026, 12, 11)),
        ("openai:gpt-5.4-nano-2026-03-17", date(2027, 4, 1)),
        ("openai:gpt-4o-2024-05-13", date(2026, 10, 23)),
        ("openai:gpt-4o-2024-11-20", date(2027, 1, 14)),
        ("anthropic:claude-sonnet-4-5", date(2026, 11, 30)),
        ("anthropic:claude-sonnet-4-5-20250929", date(2026, 11, 30)),
        ("anthropic:claude-opus-4-0", date(2026, 6, 15)),
        ("openai:gpt-6-luna", None),
        ("openai:gpt-5.4", None),
        ("openai-decisions:gpt-6-luna", None),
        ("anthropic:claude-haiku-5-5", None),
        ("fake:demo", None),
    ],
)
def test_the_announced_day_is_found_by_the_models_name(judge: str, day: date | None) -> None:
    """Dated names go with the plain one, gateways' prefixes do not matter, and a longer name is another model."""
    assert retires_at(parse_judge(judge)) == day


def test_the_judges_own_option_wins() -> None:
    """Whoever runs the model knows best; an alias of a gateway has no announcement."""
    assert retires_at(parse_judge("openai:gpt-5?retires=2027-02-28")) == date(2027, 2, 28)
    with pytest.raises(ConfigError, match="option 'retires': 'soon' is no date"):
        retires_at(parse_judge("openai:mine?retires=soon"))


def test_the_table_of_anthropics_library_is_read() -> None:
    """Each of its days is understood."""
    from anthropic.resources.messages.messages import DEPRECATED_MODELS

    assert retirement._anthropic().keys() == DEPRECATED_MODELS.keys()


def test_the_warning_comes_a_month_ahead_and_stays() -> None:
    """It names the judge, the day and what to do; after the day it says so."""
    judge, day = parse_judge("openai:mine?retires=2027-02-28"), date(2027, 2, 28)
    assert retiring(judge, day - WARN_BEFORE - timedelta(days=1)) is None
    told = retiring(judge, day - WARN_BEFORE)
    assert told is not None
    assert "openai:mine retires in 30 days, on 2027-02-28: choose another model" in told
    assert "retires in 1 day, on" in str(retiring(judge, day - timedelta(days=1)))
    assert "retires today" in str(retiring(judge, day))
    assert "was to be retired on 2027-02-28" in str(retiring(judge, day + timedelta(days=1)))
    assert retiring(parse_judge("fake:demo"), day) is None
