"""What an answer cost, and what it can cost at the most."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.judges.base import Prompt
from evalpipe.judges.config import parse_judge
from evalpipe.judges.prices import BATCH_FACTOR, Usage, cost_usd, price_of, require_price, worst_case_usd

USAGE = Usage(input_tokens=1_000_000, output_tokens=100_000)
MODELS = (
    ("openai", "gpt-6-luna"),
    ("openai", "gpt-4.1-mini"),
    ("anthropic", "claude-haiku-5-5"),
    ("anthropic", "claude-sonnet-4-5"),
)


@pytest.fixture(autouse=True)
def no_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the developer's own."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Tokens of any kind, also in prompts so long that they cost more."""
    whole = draw(st.sampled_from([0, 1, 999, 100_000, 100_001, 200_001, 272_000, 272_001, 500_000]))
    read = draw(st.integers(0, whole))
    written = draw(st.integers(0, whole - read))
    return Usage(whole, read, written, draw(st.integers(0, 5_000)), draw(st.integers(0, written)))


def test_own_prices_win_over_the_list() -> None:
    """A local model costs nothing because somebody said so."""
    assert cost_usd(USAGE, provider="openai", models=("gpt-6-luna",), per_mtok=(0.0, 0.0)) == 0.0
    assert cost_usd(USAGE, provider="openai", models=("x",), per_mtok=(2.0, 10.0)) == pytest.approx(3.0)


def test_own_prices_count_what_is_written_to_the_cache() -> None:
    """A token that is written costs 1.25 tokens, one that is kept for an hour 2; one that is read costs one."""
    used = Usage(input_tokens=1_000_000, cache_read_tokens=100_000, cache_write_tokens=500_000)
    assert cost_usd(used, provider="", models=(), per_mtok=(1.0, 0.0)) == pytest.approx(0.5 + 0.5 * 1.25)
    hour = Usage(input_tokens=1_000_000, cache_write_tokens=500_000, cache_write_1h_tokens=500_000)
    assert cost_usd(hour, provider="", models=(), per_mtok=(1.0, 0.0)) == pytest.approx(0.5 + 0.5 * 2)


@pytest.mark.parametrize(("provider", "model"), MODELS)
@given(usage=usages())
def test_listed_prices_are_the_price_lists_own_sums(provider: str, model: str, usage: Usage) -> None:
    """Looking a price up once and multiplying ourselves gives what the list's own, slower, sum gives."""
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    hour = usage.cache_write_1h_tokens if provider == "anthropic" else 0  # OpenAI's list knows no such tokens
    usage = Usage(usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.output_tokens, hour)
    told: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
    } | ({"cache_write_1h_tokens": hour} if hour else {})
    expected = float(calc_price(Tokens(**told), model, provider_id=provider).total_price)
    assert cost_usd(usage, provider=provider, models=(model,), per_mtok=None) == pytest.approx(expected, abs=1e-12)


def test_a_model_that_the_list_knows_has_a_price() -> None:
    """The name that answered comes first, the configured one is the fallback."""
    known = cost_usd(USAGE, provider="anthropic", models=("no-such-model", "claude-haiku-5-5"), per_mtok=None)
    assert known is not None
    assert known > 0


def test_a_call_of_a_batch_costs_half() -> None:
    """As both providers' price pages say."""
    now = cost_usd(USAGE, provider="openai", models=("gpt-6-luna",), per_mtok=None)
    later = cost_usd(USAGE, provider="openai", models=("gpt-6-luna",), per_mtok=None, factor=BATCH_FACTOR)
    assert now is not None
    assert later == pytest.approx(now / 2)


@pytest.mark.parametrize("base_url", ["", "http://127.0.0.1:8080/v1"])
def test_an_unknown_price_is_not_zero(base_url: str) -> None:
    """Neither an unknown model nor an unknown endpoint is free."""
    model = "gpt-6-luna" if base_url else "no-such-model"
    assert cost_usd(USAGE, provider="openai", models=(model,), base_url=base_url, per_mtok=None) is None


@pytest.mark.parametrize(
    "judge",
    [
        "openai:gpt-6-luna",
        "openai-responses:gpt-6-luna",
        "openai-decisions:gpt-6-luna",
        "anthropic:claude-haiku-5-5",
        "openai:mine@http://127.0.0.1:8080/v1?usd_per_mtok=0",
        "fake:demo",
    ],
)
def test_a_judge_with_a_price_may_be_opened(judge: str) -> None:
    """By the list, by its option, or because it has no model at all."""
    assert require_price(parse_judge(judge)) == price_of(parse_judge(judge))


@pytest.mark.parametrize(
    "judge", ["openai:no-such-model", "openai:gpt-6-luna@http://127.0.0.1:8080/v1", "anthropic:mine@http://10.0.0.1"]
)
def test_a_judge_without_a_price_is_an_error_that_says_what_to_write(judge: str) -> None:
    """No cap could be kept; a local model is free only if somebody says so."""
    with pytest.raises(ConfigError, match=r"\?usd_per_mtok=IN/OUT, or \?usd_per_mtok=0 for a model that costs nothing"):
        require_price(parse_judge(judge))


def test_the_providers_variable_moves_the_price_with_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an own gateway takes, nobody knows."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gateway.internal/v1")
    with pytest.raises(ConfigError, match=r"gateway\.internal has no known price"):
        require_price(parse_judge("openai:gpt-6-luna"))


def test_a_wrong_price_is_told_by_its_option() -> None:
    """As all wrong options are."""
    with pytest.raises(ConfigError, match="option 'usd_per_mtok': 'cheap' is no price"):
        require_price(parse_judge("openai:m?usd_per_mtok=cheap"))


@given(
    system=st.text(max_size=200),
    user=st.text(max_size=200),
    provider=st.sampled_from(MODELS),
    read=st.floats(0, 1),
    written=st.booleans(),
)
def test_no_call_costs_more_than_the_worst_case(
    system: str, user: str, provider: tuple[str, str], read: float, written: bool
) -> None:
    """A token is at least a byte, whatever the script; also where the provider writes all of it to its cache."""
    name, model = provider
    prompt = Prompt(system, user, {"type": "object"}, max_tokens=100)
    price = require_price(parse_judge(f"{name}:{model}"))
    tokens = len((system + user).encode("utf-8", "replace"))
    cached = int(tokens * read)
    used = Usage(tokens, 0 if written else cached, cached if written else 0, output_tokens=100)
    cost = cost_usd(used, provider=name, models=(model,), per_mtok=None)
    assert cost is not None
    assert cost <= worst_case_usd(prompt, price)


def test_the_worst_case_knows_the_bound_on_the_answer_and_the_hour_in_the_cache() -> None:
    """A judge's own ``max_tokens`` wins over the prompt's; an hour's cache costs twice the input to write."""
    prompt = Prompt("a" * 1000, "b" * 1000, {}, max_tokens=100)
    price = require_price(parse_judge("anthropic:m?usd_per_mtok=1/10"))
    hour = require_price(parse_judge("anthropic:m?usd_per_mtok=1/10&cache_ttl=1h"))
    more = worst_case_usd(prompt, price, 1100) - worst_case_usd(prompt, price)
    assert more == pytest.approx(1000 * 10 / 1e6)
    input_part = worst_case_usd(prompt, price) - 100 * 10 / 1e6
    assert worst_case_usd(prompt, hour) - 100 * 10 / 1e6 == pytest.approx(input_part * 2 / 1.25)
