"""What a judge's answer cost, by the options' own prices or the price list that ships with genai-prices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; the cached ones (read from or written to the provider's cache) are part of the input."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0


def cost_usd(
    usage: Usage, *, provider: str, models: tuple[str, ...], base_url: str = "", per_mtok: tuple[float, float] | None
) -> float | None:
    """US dollars for ``usage``, or None if no price is known: unknown is not zero.

    Args:
        usage: the tokens.
        provider: the provider's name in the price list, where ``base_url`` is "".
        models: names of the model to look for, the most exact first.
        base_url: the endpoint; only the ones of providers in the price list have a known price.
        per_mtok: prices for a million input and output tokens that win over the list; cached tokens count as input.
    """
    if per_mtok is not None:
        return (usage.input_tokens * per_mtok[0] + usage.output_tokens * per_mtok[1]) / 1e6
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    tokens = Tokens(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
    )
    for model in models:
        try:
            if base_url:
                return float(calc_price(tokens, model, provider_api_url=base_url).total_price)
            return float(calc_price(tokens, model, provider_id=provider).total_price)
        except (LookupError, ValueError):
            continue
    return None
