"""The control document as a hook reads it, compiled for the call that must not wait.

Kill switches are read strictly: all of them, or the document is none. Of the rest an entry that cannot be used is left
out: a rollout with a mistake must not hold a kill switch back.

Only the control thread parses; calls read the finished, never changed object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from evalpipe.hook.rates import SHADOWED

if TYPE_CHECKING:
    from evalpipe.hook.call import Call

SCHEMA: Final = 1
"""The newest schema of the control document that this hook can read."""
WINDOWS_S: Final[Mapping[str, int]] = {"minute": 60, "hour": 3600, "day": 86_400}
MICRO: Final = 1_000_000
"""Money is counted in whole millionths of a US dollar."""
MOST_WEIGHT: Final = 2_147_483_647
"""Of all arms together: flagd takes no more."""

Rates = list[tuple[str, str, str, float, str]]
"""feature, variant, environment ("" fits all), rate, reason; the first that fits counts."""
Prices = Mapping[str, tuple[float, ...]]
"""US dollars for a million input, output and perhaps cached input tokens, by model."""


class Switch(NamedTuple):
    """A kill switch that can refuse a call: it is engaged, or refuses when nothing is known."""

    name: str
    feature: str
    segment: str
    variant: str
    environment: str
    engaged: bool
    reason: str
    incident: str
    closed: bool
    max_staleness_s: float

    def fits(self, call: Call) -> bool:
        """Whether it is about such calls."""
        return (
            (not self.feature or self.feature == call.feature)
            and (not self.segment or self.segment == call.segment)
            and (not self.variant or self.variant == call.release.variant)
            and (not self.environment or self.environment == call.release.environment)
        )


class Budget(NamedTuple):
    """What may be spent in a window by one user, feature, segment or service.

    ``units`` and ``lease`` are the limit and a lease in tokens or millionths of a US dollar.
    """

    name: str
    per: str
    feature: str
    segment: str
    environment: str
    limit: float
    unit: str
    window: str
    units: int
    lease: int
    reason: str
    incident: str
    closed: bool
    max_staleness_s: float

    @property
    def window_s(self) -> int:
        """Seconds of a window."""
        return WINDOWS_S[self.window]

    def key(self, call: Call) -> str | None:
        """Whose account the call spends from; None if it spends from none: it does not match, or names no such key.

        A shadow serves nobody, so it spends nothing of a user's.
        """
        if (
            (self.feature and self.feature != call.feature)
            or (self.segment and self.segment != call.segment)
            or (self.environment and self.environment != call.release.environment)
        ):
            return None
        per = self.per
        if per == "service":
            return ""
        if per == "user" and call.release.variant == SHADOW:
            return None
        whose: Any = call.user_id if per == "user" else call.feature if per == "feature" else call.segment
        return str(whose) if whose else None  # the application may have set a number


class Rollout(NamedTuple):
    """The weights of one rollout, the arm that grows first and the baseline last."""

    name: str
    environment: str
    features: tuple[str, ...]
    weights: tuple[tuple[str, int], ...]
    baseline: str
    sample: float
    shadow: tuple[float, float] | None

    def rates(self) -> Rates:
        """What to capture of its arms, so that all are of one size, and of its shadows: all that are run.

        Shadows run for the traces that a rate of this size captures, so that rate is their inclusion probability. While
        nobody gets the canary, the served calls of just these traces are captured: a shadow is compared with one.
        """
        features, reason = self.features or ("",), f"rollout:{self.name}"
        beside = reason + SHADOWED
        shadows = [(feature, SHADOW, self.environment, self.shadow[0], beside) for feature in features if self.shadow]
        arms = [(arm, weight) for arm, weight in self.weights if weight and arm != self.baseline]
        of_baseline = dict(self.weights).get(self.baseline, 0)
        if not arms or not of_baseline:
            served = [(f, self.baseline, where, rate, why) for f, _, where, rate, why in shadows if of_baseline]
            return served + shadows
        equal = min(1.0, self.sample * max(weight for _, weight in arms) / of_baseline)
        shares = [*((arm, self.sample) for arm, _ in arms), (self.baseline, equal)]
        of_arms = [(feature, arm, self.environment, rate, reason) for feature in features for arm, rate in shares]
        return of_arms + shadows


SHADOW: Final = "shadow"
"""The variant of what runs beside served calls."""


class Document(NamedTuple):
    """One revision of the control document. ``rollouts`` by name, an environment's own before that for all.

    ``skipped`` says which entries could not be used, and why.
    """

    revision: int
    published_at: float
    switches: tuple[Switch, ...]
    budgets: tuple[Budget, ...]
    rollouts: Mapping[str, tuple[Rollout, ...]]
    rates: Rates
    skipped: tuple[str, ...] = ()

    def rollout(self, name: str, environment: str) -> Rollout | None:
        """The rollout of that name in that environment."""
        for rollout in self.rollouts.get(name, ()):
            if rollout.environment in {"", environment}:
                return rollout
        return None


class DocumentError(ValueError):
    """A control document, or its prices, that cannot be used; says where and why."""


def parse(text: str | bytes) -> Document:
    """The control document in ``text``.

    Raises:
        DocumentError: it is none, one of its switches is none, or it is of a schema that this hook does not know.
    """
    known = _Reader(_loaded(text), "document")
    if (schema := known.number("schema", least=1)) > SCHEMA:
        raise DocumentError(
            f"schema {schema:g} is newer than {SCHEMA}, the newest that this evalpipe reads: upgrade it"
        )
    switches = tuple(s for s in known.each("switches", _switch) if s.engaged or s.closed)
    skipped: list[str] = []
    rollouts: dict[str, tuple[Rollout, ...]] = {}
    for rollout in known.each("rollouts", _rollout, skipped):
        found = (*rollouts.get(rollout.name, ()), rollout)
        rollouts[rollout.name] = tuple(sorted(found, key=lambda r: not r.environment))
    of_arms = [rate for found in rollouts.values() for rollout in found for rate in rollout.rates()]
    return Document(
        revision=int(known.number("revision")),
        published_at=known.number("published_at"),
        switches=switches,
        budgets=tuple(known.each("budgets", _budget, skipped)),
        rollouts=rollouts,
        rates=[*sorted(of_arms, key=_breadth), *sorted(known.each("rates", _rate, skipped), key=_breadth)],
        skipped=tuple(skipped),
    )


def parse_prices(text: str | bytes) -> Prices:
    """The prices in ``text``.

    Raises:
        DocumentError: they are none.
    """
    models = _Reader(_loaded(text), "prices").mapping("models")
    for model, usd in models.items():
        if not isinstance(usd, list) or not 2 <= len(usd) <= 3 or not all(_is_number(n) and 0 <= n < 1e9 for n in usd):
            raise DocumentError(f"prices.models.{model} must be two or three numbers, not {usd!r}")
    return {model: tuple(usd) for model, usd in models.items()}


def _loaded(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"no JSON: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Reader:
    """Reads the fields of one object; what is missing has its default, what is of another kind is refused."""

    def __init__(self, given: Any, where: str) -> None:
        if not isinstance(given, dict):
            raise DocumentError(f"{where} must be an object, not {given!r:.100}")
        self._given = given
        self._where = where

    def bad(self, name: str, what: str) -> DocumentError:
        return DocumentError(f"{self._where}.{name} must be {what}, not {self._given.get(name)!r:.100}")

    def text(self, name: str, default: str | None = "", among: tuple[str, ...] = ()) -> str:
        value = self._given.get(name, default)
        if not isinstance(value, str) or (among and value not in among) or (default is None and not value):
            raise self.bad(name, f"one of {', '.join(among)}" if among else "a text")
        return value

    def number(self, name: str, default: float | None = None, *, least: float = 0.0, most: float = 1e15) -> float:
        value: Any = self._given.get(name, default)
        if not _is_number(value) or not least <= value <= most:
            raise self.bad(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._given.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._given.get(name, {})
        if not isinstance(value, dict):
            raise self.bad(name, "an object")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._given.get(name, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.bad(name, "a list of texts")
        return tuple(value)

    def each(self, name: str, make: Callable[[_Reader], Any], skipped: list[str] | None = None) -> list[Any]:
        """What ``make`` reads of each entry; given ``skipped``, what cannot be read is told there and left out."""
        value = self._given.get(name, [])
        if not isinstance(value, list):
            if skipped is None:
                raise self.bad(name, "a list")
            skipped.append(str(self.bad(name, "a list")))
            return []
        found = []
        for index, entry in enumerate(value):
            try:
                found.append(make(_Reader(entry, f"{self._where}.{name}[{index}]")))
            except DocumentError as problem:
                if skipped is None:
                    raise
                called = entry.get("name") if isinstance(entry, dict) else None
                skipped.append(f"{problem} (in {called!r:.100})" if called else str(problem))
        return found

    def inner(self, name: str) -> _Reader | None:
        value = self._given.get(name)
        return None if value is None else _Reader(value, f"{self._where}.{name}")

    def closed(self) -> bool:
        return self.text("fail", "open", ("open", "closed")) == "closed"


def _switch(of: _Reader) -> Switch:
    return Switch(
        name=of.text("name", None),
        feature=of.text("feature"),
        segment=of.text("segment"),
        variant=of.text("variant"),
        environment=of.text("environment"),
        engaged=of.flag("engaged", default=True),
        reason=of.text("reason"),
        incident=of.text("incident"),
        closed=of.closed(),
        max_staleness_s=of.number("max_staleness_s", 300.0),
    )


def _budget(of: _Reader) -> Budget:
    limit, unit = of.number("limit"), of.text("unit", None, ("tokens", "usd"))
    units = min(int(limit) if unit == "tokens" else round(limit * MICRO), 1 << 53)
    return Budget(
        name=of.text("name", None),
        per=of.text("per", None, ("user", "feature", "segment", "service")),
        feature=of.text("feature"),
        segment=of.text("segment"),
        environment=of.text("environment"),
        limit=limit,
        unit=unit,
        window=of.text("window", None, tuple(WINDOWS_S)),
        units=units,
        lease=max(1, int(of.number("lease", 0.02, most=1.0) * units)),
        reason=of.text("reason"),
        incident=of.text("incident"),
        closed=of.closed(),
        max_staleness_s=of.number("max_staleness_s", 300.0),
    )


def _rollout(of: _Reader) -> Rollout:
    weights = tuple(of.mapping("weights").items())
    if not all(isinstance(w, int) and not isinstance(w, bool) and w >= 0 for _, w in weights):
        raise of.bad("weights", "whole numbers by arm")
    if not 0 < sum(w for _, w in weights) <= MOST_WEIGHT:
        raise of.bad("weights", f"weights that add up to more than 0 and at most {MOST_WEIGHT}")
    baseline = of.text("baseline", "baseline")
    return Rollout(
        name=of.text("name", None),
        environment=of.text("environment"),
        features=of.texts("features"),
        weights=tuple(sorted(weights, key=lambda arm: (arm[0] == baseline, arm[0]))),
        baseline=baseline,
        sample=of.number("sample", 1.0, most=1.0),
        shadow=_shadow(of),
    )


def _shadow(of: _Reader) -> tuple[float, float] | None:
    shadow = of.inner("shadow")
    return None if shadow is None else (shadow.number("rate", most=1.0), shadow.number("per_minute"))


def _breadth(rate: tuple[str, str, str, float, str]) -> int:
    """Of two rates that fit a call, the one that says more about it counts."""
    return rate[:3].count("")


def _rate(of: _Reader) -> tuple[str, str, str, float, str]:
    rate = of.number("rate", most=1.0)
    return of.text("feature"), of.text("variant"), of.text("environment"), rate, "rate"
