"""What a judge's calls cost: by the options' own prices, or by the price list that ships with genai-prices."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from evalpipe.errors import ConfigError
from evalpipe.judges.base import JudgeConfig, Prompt, judges
from evalpipe.judges.config import common_options

BATCH_FACTOR: Final = 0.5
"""What OpenAI and Anthropic take for a call of their batch APIs, as a share of the price."""
FRAME_TOKENS: Final = 256
"""Allowance for what providers put around the messages and the schema: marks of roles, words on the answer's form."""
_WRITE, _WRITE_1H = 1.25, 2.0
"""A token written to the provider's cache costs so many times the input's price, at OpenAI and Anthropic alike."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; those read from or written to the provider's cache are part of the input.

    Attributes:
        cache_write_1h_tokens: the part of ``cache_write_tokens`` that is kept for an hour and costs more.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    cache_write_1h_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars for a million tokens of each kind, for prompts of more than ``above`` tokens."""

    above: int
    input: float
    output: float
    read: float
    written: float
    written_1h: float


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs.

    Attributes:
        rates: by the prompt's length, the shortest first; long prompts cost more at some providers.
        written_1h: this judge has its rubric cached for an hour.
    """

    rates: tuple[Rates, ...]
    written_1h: bool = False

    @property
    def usd_per_mtok(self) -> tuple[float, float]:
        """US dollars for a million input and output tokens of short prompts."""
        return self.rates[0].input, self.rates[0].output

    def at(self, input_tokens: int) -> Rates:
        """What holds for a prompt of this length; the whole call has one rate."""
        return next((rates for rates in reversed(self.rates) if input_tokens > rates.above), self.rates[0])

    def usd(self, usage: Usage) -> float:
        """US dollars for one call."""
        rates = self.at(usage.input_tokens)
        long = usage.cache_write_1h_tokens
        short = usage.cache_write_tokens - long
        plain = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
        cached = usage.cache_read_tokens * rates.read + short * rates.written + long * rates.written_1h
        return (plain * rates.input + cached + usage.output_tokens * rates.output) / 1e6


def cost_usd(
    usage: Usage,
    *,
    provider: str,
    models: Sequence[str],
    base_url: str = "",
    per_mtok: tuple[float, float] | None,
    factor: float = 1.0,
) -> float | None:
    """US dollars for ``usage``, or None if no price is known: unknown is not zero.

    Args:
        usage: the tokens.
        provider: the provider's name in the price list, where ``base_url`` is "".
        models: names of the model to look for, the most exact first.
        base_url: the endpoint; only the ones of providers in the price list have a known price.
        per_mtok: prices for a million input and output tokens that win over the list: see ``own_price``.
        factor: share of the price that is taken, ``BATCH_FACTOR`` for a call of a batch.
    """
    price = own_price(per_mtok) if per_mtok is not None else _first_listed(provider, models, base_url)
    return None if price is None else price.usd(usage) * factor


def own_price(per_mtok: tuple[float, float]) -> Price:
    """The price that somebody set: tokens from the cache count as input, those written to it as 1.25 or 2 of them."""
    input_, output = per_mtok
    return Price((Rates(0, input_, output, input_, _WRITE * input_, _WRITE_1H * input_),))


def price_of(config: JudgeConfig, base_url: str = "") -> Price | None:
    """What this judge costs, or None if nobody knows.

    Args:
        config: the judge; its option ``usd_per_mtok`` wins over the list.
        base_url: the endpoint, where it is not the configuration's or the provider's variable's.

    Raises:
        ConfigError: there is no such provider, or ``usd_per_mtok`` has a wrong value.
    """
    judge: Any = judges.get(config.provider)
    provider = getattr(judge, "price_list", config.provider)
    own = common_options(config).usd_per_mtok
    if own is None and not provider:
        own = (0.0, 0.0)  # it has no model to pay for
    url = base_url or _endpoint(config)
    price = own_price(own) if own is not None else _first_listed(provider, (config.model,), url)
    return price and replace(price, written_1h=config.options.get("cache_ttl") == "1h")


def require_price(config: JudgeConfig) -> Price:
    """What this judge costs.

    Raises:
        ConfigError: nobody knows: without a price no cap could be kept.
    """
    price = price_of(config)
    if price is None:
        host = urlsplit(_endpoint(config)).hostname
        raise ConfigError(
            f"judge {config.provider}:{config.model}{f' at {host}' if host else ''} has no known price, and without "
            "one no cap on money can be kept: write the US dollars for a million input and output tokens behind its "
            "name, as ?usd_per_mtok=IN/OUT, or ?usd_per_mtok=0 for a model that costs nothing"
        )
    return price


def worst_case_usd(prompt: Prompt, price: Price, max_tokens: int | None = None) -> float:
    """US dollars that one call can cost at the most.

    Args:
        prompt: what is asked. A token is at least one byte of it.
        price: the judge's.
        max_tokens: bound on the answer, thinking included; the prompt's own without it.
    """
    schema = json.dumps(prompt.schema, ensure_ascii=False)
    sent = sum(len(text.encode("utf-8", "replace")) for text in (prompt.system, prompt.user, schema)) + FRAME_TOKENS
    rates = price.at(sent)
    input_ = max(rates.input, rates.written_1h if price.written_1h else rates.written)
    return (sent * input_ + (max_tokens or prompt.max_tokens) * rates.output) / 1e6


def _endpoint(config: JudgeConfig) -> str:
    """The base URL: the configuration's, else the provider's variable's, else "" for the provider's own."""
    variable = getattr(judges.get(config.provider), "base_url_variable", "")
    return config.base_url or (os.environ.get(variable, "") if variable else "")


def _first_listed(provider: str, models: Sequence[str], base_url: str) -> Price | None:
    today = datetime.now(UTC).date()
    return next((price for model in models if (price := _listed(provider, model, base_url, today)) is not None), None)


@lru_cache(maxsize=512)
def _listed(provider: str, model: str, base_url: str, today: date) -> Price | None:
    """The list's price; looked up once a day, since that takes a tenth of a millisecond."""
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    where: Mapping[str, Any] = {"provider_api_url": base_url} if base_url else {"provider_id": provider}
    at = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    try:
        found: Any = calc_price(Tokens(input_tokens=1), model, genai_request_timestamp=at, **where).model_price
    except (LookupError, ValueError):
        return None
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok")
    listed = [getattr(found, name, None) for name in names]
    starts = {0} | {tier.start for price in listed for tier in getattr(price, "tiers", ())}
    return Price(tuple(_rates(start, listed) for start in sorted(starts)))


def _rates(above: int, listed: Sequence[Any]) -> Rates:
    input_, output, read, written, written_1h = (_tier(price, above) for price in listed)
    plain = input_ or 0.0
    short = plain if written is None else written
    return Rates(
        above, plain, output or 0.0, plain if read is None else read, short, short if written_1h is None else written_1h
    )


def _tier(price: Any, above: int) -> float | None:
    if price is None:
        return None
    tiers = [tier.price for tier in sorted(getattr(price, "tiers", ()), key=lambda t: t.start) if tier.start <= above]
    return float(tiers[-1] if tiers else getattr(price, "base", price))
