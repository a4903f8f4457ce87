"""What tokens cost: the price list that ships with genai-prices, and the operator's own prices over it.

Hooks get it as one compact table with their control document; a judge's calls are priced in ``judges.prices``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

from evalpipe.errors import ConfigError

FIRST: Final = (
    "openai", "anthropic", "google", "mistral", "cohere", "deepseek", "x-ai", "meta", "moonshotai", "zai", "minimax",
    "voyageai", "perplexity", "azure", "aws",
)  # fmt: skip
"""Whose price holds where several providers sell a model of one name: its maker's."""

Price = tuple[float, float, float]
"""US dollars for a million input, output and cached input tokens."""


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model.

    Attributes:
        version: a hash of the prices.
        text: the JSON that hooks read: ``{"version", "models": {name: [input, output, cached]}}``.
    """

    version: str
    text: str


def price_table(at: datetime, overrides: Path | None = None) -> PriceTable:
    """The prices that hold at ``at``.

    Args:
        at: some prices change on a date.
        overrides: a YAML or JSON file of prices that win: ``{model: [input, output, cached]}``.

    Raises:
        ConfigError: the file cannot be read, or a price in it is none.
    """
    models = _listed(at) | (read_prices(overrides) if overrides is not None else {})
    body = json.dumps(dict(sorted(models.items())), separators=(",", ":"))
    version = hashlib.sha256(body.encode()).hexdigest()[:12]
    return PriceTable(version, f'{{"version":"{version}","models":{body}}}')


def read_prices(path: Path) -> dict[str, Price]:
    """The prices in a file.

    Raises:
        ConfigError: it cannot be read, or a price in it is none; says which.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"EVALPIPE_PRICES: {str(path)!r} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"EVALPIPE_PRICES: {str(path)!r} must be a mapping from models to prices, not {found!r}")
    return {str(model): _price(path, model, given) for model, given in found.items()}


def _price(path: Path, model: Any, given: Any) -> Price:
    numbers = given if isinstance(given, list) else []
    good = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e6]
    if len(good) != len(numbers) or len(good) not in {2, 3}:
        raise ConfigError(
            f"EVALPIPE_PRICES: {str(path)!r} gives {model!r} the price {given!r}; write [input, output] or "
            "[input, output, cached input], each in US dollars for a million tokens"
        )
    return good[0], good[1], good[2] if len(good) == 3 else good[0]


def _listed(at: datetime) -> dict[str, Price]:
    from genai_prices.data_snapshot import get_snapshot

    rank = {name: index for index, name in enumerate(FIRST)}
    models: dict[str, Price] = {}
    beginnings: dict[str, Price] = {}
    for provider in sorted(get_snapshot().providers, key=lambda p: rank.get(p.id, len(FIRST))):
        own: dict[str, Price] = {}
        for model in provider.models:
            if price := _of(model, at):
                started = _names(model.match, "starts_with")
                own.update(dict.fromkeys(started, price))
                for name in (model.id, *_names(model.match, "equals"), *started):
                    models.setdefault(name, _begun(beginnings, name) or price)
        if provider.id in rank:
            beginnings = own | beginnings
    return models


def _begun(beginnings: dict[str, Price], name: str) -> Price | None:
    """The price of the longest beginning of ``name`` that its maker prices: a dated name at a reseller is the same."""
    return next((beginnings[name[:n]] for n in range(len(name), 3, -1) if name[:n] in beginnings), None)


def _of(model: Any, at: datetime) -> Price | None:
    """The price of short prompts: tiers for long ones are left to the provider's bill."""
    found = model.get_prices(at)
    numbers = [_base(getattr(found, f"{name}_mtok", None)) for name in ("input", "output", "cache_read")]
    if numbers[0] is None and numbers[1] is None:
        return None
    input_, output = numbers[0] or 0.0, numbers[1] or 0.0
    return input_, output, input_ if numbers[2] is None else numbers[2]


def _base(price: Any) -> float | None:
    return None if price is None else float(getattr(price, "base", price))


def _names(match: Any, kind: str) -> list[str]:
    """The names, or beginnings of names, that a model goes by."""
    if clauses := getattr(match, "or_", None):
        return [name for clause in clauses for name in _names(clause, kind)]
    name = getattr(match, kind, None)
    return [name] if name else []
