"""What may be set, in which words it is refused, and the price table; all pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.controls import Budget, ControlError, Rate, Switch, Weights, check_who, parse
from evalpipe.errors import ConfigError
from evalpipe.prices import price_table

AT = datetime(2026, 11, 22, tzinfo=UTC)
BUDGET = {"per": "user", "limit": 200_000, "unit": "tokens", "window": "day"}


def refusal(kind: str, body: dict[str, Any], *, service: str = "bot", name: str = "one") -> ControlError:
    """The error that setting this ends in."""
    with pytest.raises(ControlError) as caught:
        parse(service, kind, name, body)
    return caught.value


def test_what_is_not_given_has_a_default_that_matches_everything() -> None:
    """A switch without fields is engaged for the whole service."""
    assert parse("bot", "switch", "one", {}) == Switch(engaged=True, feature="", fail="open", max_staleness_s=300)
    assert parse("bot", "budget", "one", BUDGET) == Budget(**BUDGET, lease=0.02)
    assert parse("bot", "rate", "one", {"rate": 0}) == Rate(rate=0.0)


@pytest.mark.parametrize(
    ("kind", "body", "where", "what"),
    [
        ("switch", {"featur": "x"}, "featur", "did you mean 'feature'?"),
        ("switch", {"engaged": "yes"}, "engaged", "must be true or false"),
        ("switch", {"fail": "shut"}, "fail", "not one of open, closed"),
        ("switch", {"max_staleness_s": 0}, "max_staleness_s", "at least 1"),
        ("switch", {"feature": "a\nb"}, "feature", "one line without control characters"),
        ("budget", {**BUDGET, "limit": 0}, "limit", "more than 0"),
        ("budget", {**BUDGET, "limit": 1.5}, "", "whole tokens, not 1.5"),
        ("budget", {**BUDGET, "limit": float("nan")}, "limit", "finite"),
        ("budget", {**BUDGET, "lease": 1.5}, "lease", "at most 1"),
        ("budget", {"per": "user"}, "limit", "is missing"),
        ("weights", {"weights": {"canary": 5}}, "", "no 'baseline'"),
        ("weights", {"weights": {"canary": -5, "baseline": 1}}, "weights.canary", "at least 0, not -5"),
        ("weights", {"weights": {"canary": "5", "baseline": 1}}, "weights.canary", "whole number"),
        ("weights", {"weights": {"canary": 0, "baseline": 0}}, "", "more than 0"),
        ("weights", {"weights": {"a b": 1, "baseline": 1}}, "", "variants are letters"),
        ("weights", {"weights": {"baseline": 1}, "shadow": {"rate": 2, "per_minute": 1}}, "shadow.rate", "at most 1"),
        ("rate", {"rate": 1.5}, "rate", "at most 1"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_where(kind: str, body: dict[str, Any], where: str, what: str) -> None:
    """In words, with the control, the field and the fields that there are."""
    error = refusal(kind, body)
    assert what in error.what
    assert error.where == f"{kind} 'one' of service 'bot'{f', {where}' if where else ''}"
    assert error.advice
    assert str(error).startswith(error.where)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "a:b", "x" * 65, "é"])
def test_a_name_must_fit_into_urls_and_redis_keys(name: str) -> None:
    """Counters of budgets are keyed by it."""
    assert refusal("switch", {}, name=name).where == "name"


def test_a_kind_or_a_service_that_cannot_be_is_refused() -> None:
    """Before anything is looked up."""
    assert "switch, budget, weights, rate" in refusal("flag", {}).advice
    assert refusal("switch", {}, service=" ").where == "service"
    assert refusal("switch", {}, service="a\x00").where == "service"


@pytest.mark.parametrize(("actor", "reason", "where"), [
    ("", "why", "actor"), (" ", "why", "actor"), ("Evalpipe", "why", "actor"), ("ada", " ", "reason"),
    ("ada", "two\nlines", "reason"), ("ada", "x" * 1001, "reason"),
])  # fmt: skip
def test_a_person_stands_for_a_latch_with_a_reason(actor: str, reason: str, where: str) -> None:
    """Nobody acts as evalpipe itself, and nobody without saying why."""
    with pytest.raises(ControlError) as caught:
        check_who("switch 'stop'", actor, reason, needs_reason=True)
    assert caught.value.where == f"switch 'stop', {where}"


def test_the_baseline_comes_last_whatever_the_order_of_writing() -> None:
    """Databases keep no order of keys; a canary that comes first grows at its end only."""
    weights = Weights(weights={"baseline": 80, "b": 5, "canary": 15})
    assert list(weights.in_order()) == ["b", "canary", "baseline"]
    assert list(Weights(weights={"v6": 95, "v7": 5}, baseline="v6").in_order()) == ["v7", "v6"]


@given(st.dictionaries(st.sampled_from(["canary", "b", "c"]), st.integers(0, 100)), st.integers(0, 100))
def test_what_a_variant_loses_the_baseline_gets(others: dict[str, int], of_baseline: int) -> None:
    """The sum stays, so nobody else moves; and it is never nothing."""
    weights = {**others, "canary": others.get("canary", 7), "baseline": of_baseline}
    if not sum(weights.values()):
        return
    before = Weights(weights=weights)
    after = before.without("canary").weights
    assert after["canary"] == 0
    assert sum(after.values()) == sum(weights.values())
    assert {k: v for k, v in after.items() if k not in {"canary", "baseline"}} == {
        k: v for k, v in weights.items() if k not in {"canary", "baseline"}
    }


def test_the_price_list_is_compact_and_its_makers_prices_win(tmp_path: Path) -> None:
    """Under 150 kB for all models; the version is that of the prices."""
    table = price_table(AT)
    found = json.loads(table.text)
    assert found["version"] == table.version == price_table(AT).version
    assert len(table.version) == 12
    assert len(found["models"]) > 1_000
    assert len(table.text) < 150_000
    assert found["models"]["gpt-4o-mini"] == [0.15, 0.6, 0.075]
    assert found["models"]["claude-sonnet-4-5-20250929"] == found["models"]["claude-sonnet-4-5"]
    own = tmp_path / "prices.yaml"
    own.write_text("gpt-4o-mini: [1, 2]\nour-model: [0.5, 1.5, 0.1]\n")
    other = price_table(AT, own)
    assert other.version != table.version
    assert json.loads(other.text)["models"]["gpt-4o-mini"] == [1.0, 2.0, 1.0]
    assert json.loads(other.text)["models"]["our-model"] == [0.5, 1.5, 0.1]


@pytest.mark.parametrize(
    "text", ["- 1", "m: 3", "m: [1]", "m: [1, -2]", "m: [1, 2, 3, 4]", "m: [a, b]", "{", "m: [.nan, 1]"]
)
def test_own_prices_that_cannot_be_used_name_the_variable(tmp_path: Path, text: str) -> None:
    """And the file, the model and what to write."""
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="EVALPIPE_PRICES"):
        price_table(AT, path)
