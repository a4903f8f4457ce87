"""The hook's options: what the code gives, else the environment, else the default. Checked when the hook is made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from evalpipe.errors import ConfigError
from evalpipe.hook.redaction import Keep, Redaction, Redactor
from evalpipe.hook.redaction import resolve as resolve_redaction
from evalpipe.hook.sampling import DEFAULT_RATE, Sampler, Sampling
from evalpipe.release import FIELDS, Release

PREFIX: Final = "EVALPIPE_"
SCHEMES: Final = ("redis://", "rediss://", "unix://")
Capture = Literal["full", "metadata"]
Fail = Literal["open", "closed"]


class Options(NamedTuple):
    """What a hook does; the meaning of each is in ``evalpipe.Hook``."""

    release: Release
    enabled: bool
    redis_url: str
    sampler: Sampler
    metadata_only: bool
    redact: Redactor
    keep: Keep | None
    buffer_size: int
    max_buffer_bytes: int
    max_record_bytes: int
    flush_interval_s: float
    queue_max_messages: int
    debug: bool
    enforce: bool
    fail: str
    prices: Mapping[str, tuple[float, ...]]


def resolve(
    *,
    service: str,
    release: Release | None,
    redis_url: str | None,
    sample_rate: float | Mapping[str, float] | None,
    sampling: Sampling | None,
    enabled: bool | None,
    capture: str | None,
    redact: bool | Redactor | Redaction,
    enforce: bool,
    fail: str,
    prices: Mapping[str, Sequence[float]] | None,
    flush_interval_s: float | None,
    **bounds: int,
) -> Options:
    """The options in force.

    Raises:
        ConfigError: a value cannot work; the message names the option, the variable and the value.
    """
    url = redis_url or os.environ.get(PREFIX + "REDIS_URL", "")
    asked = _flag("ENABLED") if enabled is None else enabled
    if asked and not url:
        raise ConfigError("the hook is enabled but has no queue: give redis_url=, or set EVALPIPE_REDIS_URL")
    if url and not url.startswith(SCHEMES):
        raise ConfigError(f"the hook's redis_url must begin with {', '.join(SCHEMES)}; it begins with {url[:8]!r}")
    on = bool(url) if asked is None else asked
    kind = capture or os.environ.get(PREFIX + "CAPTURE") or "full"
    if kind not in get_args(Capture):
        raise ConfigError(f"capture must be 'full' or 'metadata', not {kind!r} (argument, or EVALPIPE_CAPTURE)")
    redactor, keep = resolve_redaction(redact)
    if fail not in get_args(Fail):
        raise ConfigError(f"fail must be 'open' or 'closed', not {fail!r}: it says what enforced calls do at the start")
    for name, value in bounds.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
    return Options(
        release=_release(service, release, needed=on),
        enabled=on,
        redis_url=url,
        sampler=Sampler(_sampling(sample_rate, sampling)),
        metadata_only=kind == "metadata",
        redact=redactor,
        keep=keep,
        flush_interval_s=_interval(flush_interval_s),
        debug=bool(_flag("DEBUG")),
        enforce=enforce,
        fail=fail,
        prices=_prices(prices or {}),
        **bounds,
    )


def _sampling(rate: float | Mapping[str, float] | None, sampling: Sampling | None) -> Any:
    if sampling is None:
        return _rate() if rate is None else rate
    if rate is not None:
        raise ConfigError(f"give sample_rate={rate!r} or sampling=Sampling(...), not both: a Sampling has a rate too")
    if not isinstance(sampling, Sampling):
        raise ConfigError(f"sampling must be an evalpipe.Sampling, not {sampling!r}")
    return sampling


def _prices(given: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    prices = {}
    for model, usd in given.items():
        numbers = tuple(usd) if isinstance(usd, list | tuple) else ()
        if len(numbers) not in {2, 3} or not all(isinstance(n, int | float) and n >= 0 for n in numbers):
            raise ConfigError(
                f"prices[{model!r}] must be USD for a million input and output tokens, and perhaps cached input, "
                f"such as (0.20, 0.75), not {usd!r}"
            )
        prices[str(model)] = tuple(float(n) for n in numbers)
    return prices


def _flag(name: str) -> bool | None:
    text = os.environ.get(PREFIX + name, "").strip().lower()
    if not text:
        return None
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"{PREFIX}{name} must be 1 or 0, not {text!r}")


def _rate() -> Any:
    text = os.environ.get(PREFIX + "SAMPLE_RATE", "").strip()
    if not text:
        return DEFAULT_RATE
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(
            f'EVALPIPE_SAMPLE_RATE must be a number such as 0.02, or {{"canary": 1, "baseline": 0.02}}, not {text!r}'
        ) from None


def _interval(given: float | None) -> float:
    value: Any = given
    if value is None:
        text = os.environ.get(PREFIX + "FLUSH_INTERVAL_S", "").strip() or "1.0"
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(f"EVALPIPE_FLUSH_INTERVAL_S must be a number of seconds, not {text!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.01 <= value <= 3600:
        raise ConfigError(f"flush_interval_s must be from 0.01 to 3600 seconds, not {value!r}")
    return float(value)


def _release(service: str, release: Release | None, *, needed: bool) -> Release:
    """The release as the code gives it; what it leaves at the default comes from the environment."""
    known = release or Release()
    if not isinstance(known, Release):
        raise ConfigError(f"release must be an evalpipe.Release, not {known!r}")
    if service and known.service and service != known.service:
        raise ConfigError(f"the hook has service={service!r}, and its release {known.service!r}: give one of them")
    outside = {"service": os.environ.get(PREFIX + "SERVICE", ""), **_release_from_env()}
    if environment := os.environ.get(PREFIX + "ENVIRONMENT"):
        outside["environment"] = environment
    if service:
        outside["service"] = service
    default = Release()
    unset = {name: value for name, value in outside.items() if getattr(known, name) == getattr(default, name)}
    known = known.with_(**unset)
    if needed and not known.service:
        raise ConfigError("the hook needs the service's name: Hook(service='support-bot'), or EVALPIPE_SERVICE")
    for name in FIELDS:
        value: Any = getattr(known, name)
        if not isinstance(value, str) or "\x00" in value:
            raise ConfigError(f"the release's {name} must be a text without NUL characters, not {value!r}")
    return known


def _release_from_env() -> dict[str, str]:
    text = os.environ.get(PREFIX + "RELEASE", "").strip()
    if not text.startswith("{"):
        return {"variant": text} if text else {}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"EVALPIPE_RELEASE is no JSON object ({error}): {text!r}") from None
    for name, value in values.items():
        if name not in FIELDS or not isinstance(value, str):
            raise ConfigError(f"EVALPIPE_RELEASE: {name!r} must be one of {', '.join(FIELDS)}, and its value a text")
    return values  # type: ignore[no-any-return]
