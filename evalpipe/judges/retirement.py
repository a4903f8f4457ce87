"""When a judge's model is going to be switched off, so that somebody hears of it before the judge does.

A new model is a new judge: its grades open a new epoch, and whoever compares must re-grade the anchors first. That
takes days, so the warning comes weeks ahead.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Final

from evalpipe.judges.base import JudgeConfig
from evalpipe.judges.config import common_options

WARN_BEFORE: Final = timedelta(days=30)
"""How long before its end a model is worth an alert."""

_DATED: Final = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)$")
_ORDINAL: Final = re.compile(r"(?<=\d)(st|nd|rd|th)")

# Announced by the providers: OpenAI's as its library has them in words (openai 3.54, types/shared/chat_model.py),
# Anthropic's as in its library's own table, which is also read at run time and wins.
_ANNOUNCED: Final = {
    date(2026, 10, 23): (
        "gpt-4.1-nano", "o4-mini", "o3-mini", "o1", "gpt-4o-2024-05-13", "gpt-4-turbo", "gpt-4-1106-preview", "gpt-4",
        "gpt-4-0613", "gpt-3.5-turbo", "gpt-3.5-turbo-0125",
    ),
    date(2026, 11, 30): ("claude-sonnet-4-5",),
    date(2026, 12, 11): ("gpt-5", "gpt-5-mini", "gpt-5-nano", "o3"),
    date(2027, 1, 14): ("gpt-4.1", "gpt-4.1-mini", "gpt-4o", "gpt-4o-mini"),
    date(2027, 4, 1): ("gpt-5.4-nano", "gpt-5.1"),
}  # fmt: skip


def retires_at(config: JudgeConfig) -> date | None:
    """The day on which the provider switches the judge's model off, or None if none is known.

    The judge's own option ``retires`` wins over what the providers announced. A model's dated name
    (``gpt-5-2025-08-07``) goes with the plain one, and a gateway's prefix (``openai/gpt-5``) does not matter.

    Raises:
        ConfigError: the option is no date.
    """
    if (own := common_options(config).retires) is not None:
        return date.fromisoformat(own)
    model = config.model.rpartition("/")[2]
    known = _announced() | (_anthropic() if "claude" in model else {})
    return known.get(model) or known.get(_DATED.sub("", model))


def retiring(config: JudgeConfig, today: date) -> str | None:
    """A sentence for the alert if the model ends within ``WARN_BEFORE`` or has ended, else None.

    Args:
        config: the judge.
        today: in UTC.

    Raises:
        ConfigError: as ``retires_at``.
    """
    last = retires_at(config)
    if last is None or last - today > WARN_BEFORE:
        return None
    name, days = f"{config.provider}:{config.model}", (last - today).days
    when = "retires today" if days == 0 else f"retires in {days} day{'s' * (days != 1)}"
    told = f"judge {name} {when}, on {last}" if days >= 0 else f"judge {name} was to be retired on {last}"
    return f"{told}: choose another model, grade the anchors with it, and name it in the scorecards and EVALPIPE_JUDGE"


@lru_cache(maxsize=1)
def _announced() -> dict[str, date]:
    return {model: day for day, models in _ANNOUNCED.items() for model in models}


@lru_cache(maxsize=1)
def _anthropic() -> dict[str, date]:
    """The table of Anthropic's library, whose days read ``November 30th, 2026``; {} where it has none."""
    try:
        from anthropic.resources.messages.messages import DEPRECATED_MODELS
    except ImportError:
        return {}
    found = {}
    for model, day in DEPRECATED_MODELS.items():
        try:
            found[model] = datetime.strptime(_ORDINAL.sub("", day), "%B %d, %Y").date()  # noqa: DTZ007 - only a day
        except ValueError:
            continue
    return found
