"""What an application says about its sampling: rates, floors and always-keep rules. Checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from evalpipe.errors import ConfigError

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.release import Release

DEFAULT_RATE: Final = 0.05
"""Share of traces that is captured where nothing else is said."""
SHADOWED: Final = ":shadow"
"""How the reason of a rollout's shadows ends, and that of the served calls beside them."""
RELEASE_FIELDS: Final = ("model", "prompt", "retrieval", "index", "tool_schema", "data_pipeline")


class Rate:
    """The share of some calls: those that fit all that is given.

    Args:
        rate: from 0 to 1.
        feature, variant, environment, segment: as the call has them; "" fits all.
        release: versions that the release must have, such as ``{"prompt": "v8"}``.

    Raises:
        ConfigError: the rate is no number from 0 to 1, or a field is no such text.
    """

    __slots__ = ("environment", "feature", "rate", "release", "segment", "variant")

    def __init__(
        self,
        rate: float,
        *,
        feature: str = "",
        variant: str = "",
        environment: str = "",
        segment: str = "",
        release: Mapping[str, str] | None = None,
    ) -> None:
        self.feature, self.variant, self.environment, self.segment = feature, variant, environment, segment
        self.release = dict(release or {})
        told = {k: v for k in ("feature", "variant", "environment", "segment") if (v := getattr(self, k)) != ""}
        self.rate = _share(rate, f" of {told or self.release}" if told or self.release else "")
        for name, value in (*told.items(), *self.release.items()):
            if not isinstance(value, str):
                raise ConfigError(f"Rate({name}=...) must be a text that the call must have, not {value!r}")
        for name in self.release:
            if name not in RELEASE_FIELDS:
                raise ConfigError(f"Rate(release=...): {name!r} must be one of {', '.join(RELEASE_FIELDS)}")

    def fits(self, release: Release, feature: str, segment: str) -> bool:
        """Whether it is the rate of such calls."""
        return (
            self.feature in {"", feature}
            and self.variant in {"", release.variant}
            and self.environment in {"", release.environment}
            and self.segment in {"", segment}
            and all(getattr(release, name) == value for name, value in self.release.items())
        )


class Keep:
    """Which calls are kept always, whatever their rate: judged by what every call has at its end.

    Args:
        errors: those that failed.
        cost_above_usd, latency_above_ms: those above.
        flags: those that the application marked with ``call.flag(name)``: all (True), none, or these names.
        finish_reasons: those that ended so, for example ``content_filter``.
        feedback: those that got feedback. Where it came before their end they count; what later feedback brings in is
            there to be read, and weighs nothing.
        per_minute: bound on all of these in one process. Above it a share is kept, and it is recorded as the
            probability: in an outage every call fails, and the queue would be full of them.

    Raises:
        ConfigError: a value cannot work.
    """

    __slots__ = ("cost_above_usd", "errors", "feedback", "finish_reasons", "flags", "latency_above_ms", "per_minute")

    def __init__(
        self,
        *,
        errors: bool = False,
        cost_above_usd: float | None = None,
        latency_above_ms: float | None = None,
        flags: bool | Iterable[str] = True,
        finish_reasons: Iterable[str] = (),
        feedback: bool = True,
        per_minute: float = 600.0,
    ) -> None:
        self.errors, self.feedback = bool(errors), bool(feedback)
        self.cost_above_usd = _bound(cost_above_usd, "Keep(cost_above_usd=...)")
        self.latency_above_ms = _bound(latency_above_ms, "Keep(latency_above_ms=...)")
        self.flags = flags if isinstance(flags, bool) else _names(flags, "Keep(flags=...)")
        self.finish_reasons = _names(finish_reasons, "Keep(finish_reasons=...)")
        self.per_minute = _bound(per_minute, "Keep(per_minute=...)") or 0.0
        if self.per_minute <= 0.0:
            raise ConfigError("Keep(per_minute=...) must be above 0: leave keep= out to keep nothing always")

    def rule(self, call: Call, error: object, cost_usd: float | None, latency_ms: float | None) -> str:
        """The first rule that the call satisfies, or ""."""
        if error and self.errors:
            return "error"
        if cost_usd is not None and self.cost_above_usd is not None and cost_usd > self.cost_above_usd:
            return "cost"
        if flags := call.flags:
            if self.feedback and "feedback" in flags:
                return "feedback"
            if self.flags is True or (self.flags and not self.flags.isdisjoint(flags)):
                return "flag"
        if latency_ms is not None and self.latency_above_ms is not None and latency_ms > self.latency_above_ms:
            return "latency"
        return "finish_reason" if self.finish_reasons and call.finish_reason in self.finish_reasons else ""


class Sampling:
    """What is captured: ``Hook(sampling=Sampling(0.02, rates=[Rate(1.0, variant="canary")], ...))``.

    Args:
        rate: of calls that no entry of ``rates`` fits.
        rates: the first that fits counts.
        by: ``trace`` captures whole traces, ``session`` whole conversations (their traces where none is named).
        floor_per_minute: so many calls of each stratum (feature and segment) are captured a minute, on average, in each
            process: the rate is raised as far as its traffic needs. A rate of 0 stays 0, and so does a rollout's.
        keep: the always-keep rules; None for none.

    Raises:
        ConfigError: a value cannot work.
    """

    __slots__ = ("by", "floor_per_minute", "keep", "rate", "rates")

    def __init__(
        self,
        rate: float = DEFAULT_RATE,
        *,
        rates: Iterable[Rate] = (),
        by: str = "trace",
        floor_per_minute: float = 0.0,
        keep: Keep | None = None,
    ) -> None:
        self.rate = _share(rate, "")
        self.rates = tuple(rates)
        self.by = by
        self.floor_per_minute = _bound(floor_per_minute, "Sampling(floor_per_minute=...)") or 0.0
        self.keep = keep
        if by not in {"trace", "session"}:
            raise ConfigError(f"Sampling(by=...) must be 'trace' or 'session', not {by!r}")
        if bad := [r for r in self.rates if not isinstance(r, Rate)]:
            raise ConfigError(f"Sampling(rates=...) must be evalpipe.Rate's, not {bad[0]!r}")
        if keep is not None and not isinstance(keep, Keep):
            raise ConfigError(f"Sampling(keep=...) must be an evalpipe.Keep or None, not {keep!r}")

    @classmethod
    def of(cls, sample_rate: float | Mapping[str, float]) -> Sampling:
        """The short form: one rate for all, or one for each variant (the default rate for those not named)."""
        if isinstance(sample_rate, Mapping):
            return cls(rates=[Rate(rate, variant=str(variant)) for variant, rate in sample_rate.items()])
        return cls(sample_rate)


def _share(rate: object, of: str) -> float:
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0.0 <= rate <= 1.0:
        raise ConfigError(
            f"the sample rate{of} must be a number from 0 to 1, not {rate!r}: "
            "give sample_rate=0.02, or EVALPIPE_SAMPLE_RATE=0.02, or a rate for each variant"
        )
    return float(rate)


def _bound(value: object, what: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value < float("inf"):
        raise ConfigError(f"{what} must be a number of at least 0, not {value!r}")
    return float(value)


def _names(values: Iterable[str], what: str) -> frozenset[str]:
    names = [values] if isinstance(values, str) else list(values)
    if bad := [name for name in names if not isinstance(name, str)]:
        raise ConfigError(f"{what} must be names, not {bad[0]!r}")
    return frozenset(names)
