"""The life of an alert: inactive, pending, firing, resolved.

Semantics are Prometheus's (its ``rules/alerting.go``): a condition that holds makes
the alert pending; it fires at the first evaluation that is ``for`` or more after the first true one; one false
evaluation in between and it starts over; a firing alert resolves at the first false evaluation, or with
``keep_firing_for`` once the condition has been false for so long without a break. Unlike there, the whole state
survives a restart, and an alert may be evaluated many times a minute: a firing lasts ``fires_at_least``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from evalpipe.alerts.rules import Observation, ThresholdRule

Phase = Literal["inactive", "pending", "firing", "resolved"]


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
    """

    phase: Phase = "inactive"
    active_at: datetime | None = None
    fired_at: datetime | None = None
    resolved_at: datetime | None = None
    clear_since: datetime | None = None
    evaluated_at: datetime | None = None
    value: float | None = None
    n: int = 0

    def to_state(self) -> dict[str, Any]:
        """JSON-safe values by name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in values.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> AlertState:
        """The inverse of ``to_state``."""
        values: dict[str, Any] = dict(state)
        for name in ("active_at", "fired_at", "resolved_at", "clear_since", "evaluated_at"):
            if values[name] is not None:
                values[name] = datetime.fromisoformat(values[name])
        return cls(**values)


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


def advance(
    rule: ThresholdRule, state: AlertState, observation: Observation, now: datetime
) -> tuple[AlertState, Transition | None]:
    """One evaluation at ``now``: the new state, and the change of phase if there was one."""
    if state.evaluated_at is not None and now <= state.evaluated_at:
        return state, None
    new = replace(state, evaluated_at=now, value=observation.value, n=observation.n)
    violated = rule.violated(observation)
    if violated is True:
        new = _hit(rule, new, now)
    elif violated is False:
        new = _clear(rule, new, now)
    if new.phase == state.phase:
        return new, None
    episode = state if new.phase == "inactive" else new
    return new, Transition(
        rule=rule.name,
        before=state.phase,
        after=new.phase,
        at=now,
        active_at=episode.active_at,
        fired_at=new.fired_at if new.phase in {"firing", "resolved"} else None,
        value=observation.value,
        n=observation.n,
        reason=_reason(rule, observation, new.phase),
    )


def standing(rule: ThresholdRule, state: AlertState, observation: Observation) -> Transition:
    """How an alert that fires stands now, in the words and numbers of a change: from firing to firing."""
    reason = _reason(rule, observation, state.phase)
    if state.clear_since is not None:
        reason += f"; clear since {state.clear_since:%H:%M:%S} UTC, it resolves if that lasts"
    return Transition(
        rule=rule.name,
        before=state.phase,
        after=state.phase,
        at=observation.at,
        active_at=state.active_at,
        fired_at=state.fired_at,
        value=observation.value,
        n=observation.n,
        reason=reason,
    )


def _hit(rule: ThresholdRule, state: AlertState, now: datetime) -> AlertState:
    if state.phase == "firing":
        return replace(state, clear_since=None)
    active_at = state.active_at if state.phase == "pending" and state.active_at is not None else now
    if now - active_at >= rule.for_:
        return replace(state, phase="firing", active_at=active_at, fired_at=now, resolved_at=None, clear_since=None)
    return replace(state, phase="pending", active_at=active_at)


def _clear(rule: ThresholdRule, state: AlertState, now: datetime) -> AlertState:
    if state.phase == "pending":
        return replace(state, phase="inactive", active_at=None)
    if state.phase != "firing":
        return state
    clear_since = state.clear_since or now
    too_young = state.fired_at is not None and now - state.fired_at < rule.fires_at_least
    if too_young or now - clear_since < rule.keep_firing_for:
        return replace(state, clear_since=clear_since)
    return replace(state, phase="resolved", resolved_at=now, clear_since=None)


def _reason(rule: ThresholdRule, observation: Observation, phase: Phase) -> str:
    scores = rule.aggregation == "mean"
    what, of = (f"mean of {rule.criterion}", "scores") if scores else (rule.criterion, "calls")
    window = f"{what} over {rule.window}"
    if observation.value is None or observation.n < rule.min_sample:
        return (
            f"{window} has {observation.n} {of} of at least {rule.min_sample} needed (min_sample); "
            f"no_data = {rule.no_data} makes {rule.name} {phase}"
        )
    value = f"{observation.value:.3f}" if scores else f"{observation.value:.4g}"
    return (
        f"{window} is {value} of {observation.n} {of}; {rule.name} is {phase} ({rule.comparison} "
        f"{rule.threshold:g} for {rule.for_})"
    )
