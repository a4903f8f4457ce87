"""Values that people write in words: durations, shares, lists of globs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

NAME: Final = r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$"
"""Names of scorecards, criteria and alert rules: they become parts of series, URLs and metrics."""
JUDGE: Final = r"^(default|[a-z][a-z0-9_-]*:\S+)$"
"""Which judge: the configured one, or provider and model."""
SHORTEST_WINDOW: Final = timedelta(minutes=1)
"""Scores are kept by the minute."""
LONGEST_WINDOW: Final = timedelta(days=30)
"""A mean over longer than this is a report, not an alert."""

_UNITS_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION: Final = re.compile(r"^(?:(\d{1,5})d)?(?:(\d{1,5})h)?(?:(\d{1,5})m)?(?:(\d{1,5})s)?$", re.ASCII)
DURATION_PATTERN: Final = r"^(?=\d)(\d{1,5}d)?(\d{1,5}h)?(\d{1,5}m)?(\d{1,5}s)?$"
_POINTS: Final = re.compile(r"^(\d*\.?\d{1,8}) ?points?$", re.ASCII)
_PERCENT: Final = re.compile(r"^(\d{1,3}(?:\.\d{1,6})?) ?%$", re.ASCII)


def parse_duration(value: Any) -> timedelta:
    """The duration in text such as ``90s``, ``10m``, ``1h30m`` or ``7d``.

    Raises:
        ValueError: it is not in that form; the message says what is expected.
    """
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError("is not a duration; write 90s, 10m, 1h30m or 7d")
    return timedelta(seconds=sum(int(n or 0) * s for n, s in zip(match.groups(), _UNITS_S.values(), strict=True)))


def format_duration(value: timedelta) -> str:
    """The shortest text that ``parse_duration`` reads as ``value``; whole seconds."""
    left, text = int(value.total_seconds()), ""
    for unit, seconds in _UNITS_S.items():
        count, left = divmod(left, seconds)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_share(value: Any) -> float:
    """The share in ``5%`` or ``0.05``, as a fraction in (0, 1].

    Raises:
        ValueError: it is neither, or out of range; the message says what is expected.
    """
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        # Rounded, so that 5% is the same number as 0.05 and gives the same version.
        share: float = round(float(match.group(1)) / 100, 8)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        share = value
    else:
        raise ValueError("is not a share; write 5% or 0.05")
    if not 0.0 < share <= 1.0:
        hint = f"; did you mean {share:g}%?" if 1.0 < share <= 100.0 else ""
        raise ValueError(f"must be more than 0 and at most 1 (100%){hint}")
    return float(share)


def _or_zero(value: Any) -> float:
    return 0.0 if value in ("0%", 0) and not isinstance(value, bool) else parse_share(value)


def parse_margin(value: Any) -> float | str:
    """The share in ``5%`` or ``0.05`` (up to 100 times for a rise), or points as the text ``0.03 points``.

    Raises:
        ValueError: it is neither, or out of range; the message says what is expected.
    """
    if isinstance(value, str) and (match := _POINTS.fullmatch(value)):
        points = float(match.group(1))
        if not 0.0 < points < 1.0:
            raise ValueError("must be more than 0 and less than 1 point: scores go from 0 to 1")
        return f"{points:g} points"
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)) and 100 < float(match.group(1)) < 1000:
        return round(float(match.group(1)) / 100, 8)
    try:
        return parse_share(value)
    except ValueError as error:
        raise ValueError(str(error).replace("5% or 0.05", "5%, 0.05 or 0.03 points")) from None


def parse_percent(value: Any) -> float:
    """The percentage in ``5`` or ``5%``, above 0 and at most 100.

    Raises:
        ValueError: it is neither, or out of range; the message says what is expected.
    """
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        value = float(match.group(1))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a percentage; write 5 or 5%")  # noqa: TRY004 - pydantic makes a message of this one
    if not 0.0 < value <= 100.0:
        raise ValueError("must be more than 0 and at most 100 percent")
    return float(value)


def _weights(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(_is_weight(weight) for weight in value):
        raise ValueError("must be two weights of 1 or more, [baseline, canary]")
    return (float(value[0]), float(value[1]))


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1.0


def _lasting(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("must be longer than 0s")
    return value


def _period(value: timedelta) -> timedelta:
    if value < SHORTEST_WINDOW:
        raise ValueError(f"must be {format_duration(SHORTEST_WINDOW)} or longer")
    return value


def _window(value: timedelta) -> timedelta:
    if not SHORTEST_WINDOW <= value <= LONGEST_WINDOW:
        raise ValueError(f"must be from {format_duration(SHORTEST_WINDOW)} to {format_duration(LONGEST_WINDOW)}")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_DURATION_SCHEMA: Final = {"type": "string", "pattern": DURATION_PATTERN, "examples": ["90s", "10m", "1h30m", "7d"]}
_SHARE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string", "pattern": r"^\d{1,3}(\.\d{1,6})? ?%$"},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ],
    "examples": ["5%", 0.05],
}
_GLOBS_SCHEMA: Final = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    "examples": ["support-*", ["support-desk", "returns-desk"]],
}

Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_DURATION_SCHEMA),
]
"""A duration of whole seconds, written ``90s``, ``10m``, ``1h30m`` or ``7d``."""

Lasting = Annotated[Duration, AfterValidator(_lasting)]
"""A duration of a second or more."""

Period = Annotated[Duration, AfterValidator(_period)]
"""A duration of a minute or more."""

Window = Annotated[Duration, AfterValidator(_window)]
"""A duration over which a mean is taken."""

Share = Annotated[float, BeforeValidator(parse_share), WithJsonSchema(_SHARE_SCHEMA)]
"""A share in (0, 1], written ``5%`` or ``0.05``."""

ShareOrZero = Annotated[
    float,
    BeforeValidator(_or_zero),
    WithJsonSchema(
        {**_SHARE_SCHEMA, "anyOf": [_SHARE_SCHEMA["anyOf"][0], {"type": "number", "minimum": 0, "maximum": 1}]}
    ),
]
"""A share in [0, 1], written ``0%``, ``5%`` or ``0.05``."""

Globs = Annotated[list[str], BeforeValidator(_as_list), WithJsonSchema(_GLOBS_SCHEMA)]
"""One glob or a list of them; ``*``, ``?`` and ``[ab]`` as in file names, upper and lower case differ."""

Margin = Annotated[
    float | str,
    BeforeValidator(parse_margin),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^(\d{1,3}(\.\d{1,6})? ?%|\d*\.?\d{1,8} ?points?)$"},
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            ],
            "examples": ["5%", "0.03 points"],
        }
    ),
]
"""A change that matters: a share of the baseline, ``5%`` or ``0.05``, or ``0.03 points`` of a score."""

Percent = Annotated[
    float,
    BeforeValidator(parse_percent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\d{1,3}(\.\d{1,6})? ?%$"},
                {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            ],
            "examples": [5, "5%"],
        }
    ),
]
"""A percentage in (0, 100], written ``5`` or ``5%``."""

Weights = Annotated[
    tuple[float, float],
    BeforeValidator(_weights),
    WithJsonSchema({"type": "array", "items": {"type": "number", "minimum": 1}, "minItems": 2, "maxItems": 2}),
]
"""The largest weights of a score in the baseline and in the canary."""
