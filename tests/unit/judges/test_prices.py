"""What an answer cost."""

from __future__ import annotations

import pytest

from evalpipe.judges.prices import Usage, cost_usd

USAGE = Usage(input_tokens=1_000_000, output_tokens=100_000)


def test_own_prices_win_over_the_list() -> None:
    """A local model costs nothing because somebody said so."""
    assert cost_usd(USAGE, provider="openai", models=("gpt-6-luna",), per_mtok=(0.0, 0.0)) == 0.0
    assert cost_usd(USAGE, provider="openai", models=("x",), per_mtok=(2.0, 10.0)) == pytest.approx(3.0)


def test_a_model_that_the_list_knows_has_a_price() -> None:
    """The name that answered comes first, the configured one is the fallback."""
    known = cost_usd(USAGE, provider="anthropic", models=("no-such-model", "claude-haiku-5-5"), per_mtok=None)
    assert known is not None
    assert known > 0


def test_tokens_from_the_cache_cost_less() -> None:
    """Cached tokens are part of the input, at their own price."""
    cached = Usage(input_tokens=1_000_000, cache_read_tokens=900_000, output_tokens=100_000)
    model = {"provider": "anthropic", "models": ("claude-haiku-5-5",), "per_mtok": None}
    assert cost_usd(cached, **model) < cost_usd(USAGE, **model)


@pytest.mark.parametrize("base_url", ["", "http://127.0.0.1:8080/v1"])
def test_an_unknown_price_is_not_zero(base_url: str) -> None:
    """Neither an unknown model nor an unknown endpoint is free."""
    model = "gpt-6-luna" if base_url else "no-such-model"
    assert cost_usd(USAGE, provider="openai", models=(model,), base_url=base_url, per_mtok=None) is None
