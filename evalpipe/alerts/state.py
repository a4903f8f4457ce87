"""The life of an alert: inactive, pending, firing, resolved.

Semantics are Prometheus's (its ``rules/alerting.go``): a condition that holds makes
the alert pending; it fires at the first evaluation that is ``for`` or more after the first true one; one false
evaluation in between and it starts over; a firing alert resolves at the first false evaluation, or with
``keep_firing_for`` once the condition has been false for so long without a break. Unlike there, the whole state
survives a restart, and an alert may be evaluated many times a minute: a firing lasts ``fires_at_least``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Literal

from evalpipe.alerts.rules import Life, Severity
from evalpipe.detectors.base import Finding
from evalpipe.detectors.view import Place
from evalpipe.scorecard.values import format_duration

Phase = Literal["inactive", "pending", "firing", "resolved"]

EVERYWHERE: Final = Place()

_TIMES: Final = ("active_at", "fired_at", "resolved_at", "clear_since", "evaluated_at", "shared_at")


@dataclass(frozen=True, slots=True)
class AlertState:
    """An alert between two evaluations; times are aware UTC.

    Attributes:
        phase: ``resolved`` is ``inactive`` with a past: both wait for the condition.
        active_at: first true evaluation of the episode.
        fired_at, resolved_at: of the newest episode that fired.
        clear_since: first false evaluation while ``keep_firing_for`` runs.
        evaluated_at: the newest evaluation; an older one is ignored, so that two schedulers do no harm.
        value, n: as last observed with enough data or not.
        severity: of the newest episode that fired, the highest that it had; "" before the first.
        detector: what the rule's detector remembers.
        detector_key: of which detector; see ``Rule``.
        shared_at: when the share of the traffic was last estimated.
        rule, place: whose alert it is: ``scorecard/rule``, and where.
    """

    phase: Phase = "inactive"
    active_at: datetime | None = None
    fired_at: datetime | None = None
    resolved_at: datetime | None = None
    clear_since: datetime | None = None
    evaluated_at: datetime | None = None
    value: float | None = None
    n: int = 0
    severity: Severity | Literal[""] = ""
    detector: Mapping[str, Any] = field(default_factory=dict)
    detector_key: str = ""
    shared_at: datetime | None = None
    rule: str = ""
    place: Place = EVERYWHERE

    def to_state(self) -> dict[str, Any]:
        """JSON-safe values by name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        for name in _TIMES:
            values[name] = values[name].isoformat() if values[name] is not None else None
        return {**values, "detector": dict(self.detector), "place": list(self.place)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AlertState:
        """The inverse of ``to_state``."""
        values: dict[str, Any] = {name: value for name, value in state.items() if name in cls.__slots__}
        for name in _TIMES:
            if values.get(name) is not None:
                values[name] = datetime.fromisoformat(values[name])
        return cls(**{**values, "place": Place(*values.get("place", ()))})

    def same_as(self, other: AlertState) -> bool:
        """Whether they differ in nothing but in what each evaluation changes: its time and what it saw."""
        return bool(_lasting(self) == _lasting(other))


_lasting: Final = attrgetter(*(name for name in AlertState.__slots__ if name not in {"evaluated_at", "value", "n"}))


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of phase, with the numbers that caused it.

    Attributes:
        rule: name of the rule.
        before, after: phases; ``resolved`` follows ``firing`` only.
        at: of the evaluation.
        active_at, fired_at: of the episode.
        value, n: as observed.
        reason: one sentence for people.
        alert_id: of the alert; "" where it was evaluated alone.
    """

    rule: str
    before: Phase
    after: Phase
    at: datetime
    active_at: datetime | None
    fired_at: datetime | None
    value: float | None
    n: int
    reason: str
    alert_id: str = ""


def advance(
    life: Life, state: AlertState, finding: Finding, now: datetime, *, failed: bool = False
) -> tuple[AlertState, Transition | None]:
    """One evaluation at ``now``: the new state, and the change of phase if there was one.

    Args:
        life: of the alert.
        state: after the evaluation before.
        finding: what was found now.
        now: aware UTC.
        failed: the evaluation ended with an error, which is the finding's reason: ``on_error`` decides.
    """
    if state.evaluated_at is not None and now <= state.evaluated_at:
        return state, None
    new = replace(state, evaluated_at=now, value=finding.value, n=finding.n)
    violated = holds(life, finding, failed=failed)
    if violated is True:
        new = _hit(life, new, now)
    elif violated is False:
        new = _clear(life, new, now)
    if new.phase == state.phase:
        return new, None
    return new, _transition(life, state, new, finding, now, failed=failed)


def holds(life: Life, finding: Finding, *, failed: bool = False) -> bool | None:
    """Whether the condition counts as true; None leaves the alert as it is."""
    if finding.violated is not None and not failed:
        return finding.violated
    return {"keep": None, "ok": False, "firing": True}[life.on_error if failed else life.no_data]


def standing(life: Life, state: AlertState, finding: Finding, now: datetime, *, failed: bool = False) -> Transition:
    """How an alert stands now, in the words and numbers of a change: from its phase to the same."""
    found = _transition(life, state, state, finding, now, failed=failed)
    if state.phase != "firing" or state.clear_since is None:
        return found
    clear = f"; clear since {state.clear_since:%H:%M:%S} UTC, it resolves if that lasts"
    return replace(found, reason=found.reason + clear)


def _transition(
    life: Life, before: AlertState, after: AlertState, finding: Finding, now: datetime, *, failed: bool
) -> Transition:
    episode = before if after.phase == "inactive" else after
    return Transition(
        rule=life.name,
        before=before.phase,
        after=after.phase,
        at=now,
        active_at=episode.active_at,
        fired_at=after.fired_at if after.phase in {"firing", "resolved"} else None,
        value=finding.value,
        n=finding.n,
        reason=_reason(life, finding, after.phase, failed=failed),
    )


def _hit(life: Life, state: AlertState, now: datetime) -> AlertState:
    if state.phase == "firing":
        return replace(state, clear_since=None)
    active_at = state.active_at if state.phase == "pending" and state.active_at is not None else now
    if now - active_at >= life.for_:
        return replace(
            state,
            phase="firing",
            active_at=active_at,
            fired_at=now,
            resolved_at=None,
            clear_since=None,
            severity="" if life.severity == "table" else life.severity,
        )
    return replace(state, phase="pending", active_at=active_at)


def _clear(life: Life, state: AlertState, now: datetime) -> AlertState:
    if state.phase == "pending":
        return replace(state, phase="inactive", active_at=None)
    if state.phase != "firing":
        return state
    clear_since = state.clear_since or now
    too_young = state.fired_at is not None and now - state.fired_at < life.fires_at_least
    if too_young or now - clear_since < life.keep_firing_for:
        return replace(state, clear_since=clear_since)
    return replace(state, phase="resolved", resolved_at=now, clear_since=None)


def _reason(life: Life, finding: Finding, phase: Phase, *, failed: bool) -> str:
    if failed:
        return f"{finding.reason}; on_error = {life.on_error} makes {life.name} {phase}"
    if finding.violated is None:
        return f"{finding.reason or 'nothing is known'}; no_data = {life.no_data} makes {life.name} {phase}"
    waits = f" (for {format_duration(life.for_)})" if life.for_ and phase in {"pending", "firing"} else ""
    return f"{finding.reason}; {life.name} is {phase}{waits}"
