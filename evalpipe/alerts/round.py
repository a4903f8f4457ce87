"""One evaluation of every rule at every place. The same code in production, in tests of rules, and in simulations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from evalpipe.alerts.affected import share_affected
from evalpipe.alerts.impact import Share
from evalpipe.alerts.rules import Rule, bounded_key
from evalpipe.alerts.state import AlertState, Transition, advance, standing
from evalpipe.alerts.table import severity_of, worse
from evalpipe.detectors.base import Finding
from evalpipe.detectors.view import Feed, Place

SHARE_EVERY: Final = timedelta(minutes=5)
"""How often the share of the traffic is estimated anew while an alert fires."""


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fires.

    Attributes:
        rule, place: whose.
        finding: of this evaluation.
        severity: now; it rises during an episode, and never falls.
        share: of the service's traffic; None where it is unknown, or was not estimated in this evaluation.
    """

    rule: Rule
    place: Place
    finding: Finding
    severity: str
    share: Share | None


@dataclass(frozen=True, slots=True)
class Mishap:
    """Something of a rule that failed; ``place`` is None where not even its places are known."""

    rule: str
    place: Place | None
    error: Exception

    def __str__(self) -> str:
        where = "/".join(part for part in self.place if part) if self.place is not None else "any place"
        return f"alert rule {self.rule} could not be evaluated at {where}: {said(self.error)}"


@dataclass(slots=True)
class Round:
    """What one evaluation found, by alert id.

    Attributes:
        states: of every alert that was looked at.
        transitions: changes of phase, in order.
        firing: alerts that fire now.
        standing: how each alert stands now, in words.
        errors: what could not be evaluated.
    """

    states: dict[str, AlertState] = field(default_factory=dict)
    transitions: list[Transition] = field(default_factory=list)
    firing: dict[str, Firing] = field(default_factory=dict)
    standing: dict[str, Transition] = field(default_factory=dict)
    errors: list[Mishap] = field(default_factory=list)


def alert_id(rule: Rule, place: Place) -> str:
    """Of a rule's alert at a place: the same as long as both are called the same, and of no other place.

    A slash in the name of a place is written as JSON pointers do (``~1``, and a tilde ``~0``): it parts nothing.
    """
    service, environment, variant, feature, release_id = (_part(name) for name in place)
    more = [feature, release_id] if feature or "feature" in rule.scope.by else [release_id]
    while more and not more[-1]:
        more.pop()
    return bounded_key("/".join([service, environment, variant, rule.scorecard, rule.name, *more]))


def _part(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def evaluate(
    rules: Iterable[Rule],
    feed: Feed,
    book: Mapping[str, AlertState],
    now: datetime,
    recover: Callable[[Exception], None] | None = None,
) -> Round:
    """Evaluate every rule once at each of its places.

    Also where it has an alert and nothing is left to look at: the rule's ``no_data`` is for that, but an alert of a
    place that is gone altogether does not fire for ever. A rule that fails stops no other.

    Args:
        rules: to evaluate.
        feed: where series come from.
        book: the alerts of before, by id; those of other rules are not looked at.
        now: aware UTC.
        recover: is given what a rule failed of, to mend the feed for the next ones; raises what ends the evaluation.
    """
    done, known = Round(), _known(book)
    for rule in rules:
        places: set[Place] | None = None
        try:
            places = set(feed.places(rule.scope))
        except Exception as error:  # noqa: BLE001 - see _mishap
            _mishap(done, rule, None, error, recover)
        for place in sorted((places or set()) | known.get(rule.full_name, set())):
            gone = places is not None and place not in places
            _one(_Look(rule, place, feed, now, done, recover, gone), book)
    return done


@dataclass(frozen=True, slots=True)
class _Look:
    """A rule at a place; ``gone`` where nothing that it reads has happened there for long."""

    rule: Rule
    place: Place
    feed: Feed
    now: datetime
    done: Round
    recover: Callable[[Exception], None] | None
    gone: bool


def _mishap(
    done: Round, rule: Rule, place: Place | None, error: Exception, recover: Callable[[Exception], None] | None
) -> None:
    """One rule of many: the others go on, unless ``recover`` says that they cannot."""
    if recover is not None:
        recover(error)
    done.errors.append(Mishap(rule.full_name, place, error))


def _one(look: _Look, book: Mapping[str, AlertState]) -> None:
    rule, place, feed, now, done = look.rule, look.place, look.feed, look.now, look.done
    id_ = alert_id(rule, place)
    before = book.get(id_) or AlertState(rule=rule.full_name, place=place)
    if before.detector_key != rule.detector_key:
        before = replace(before, detector={}, detector_key=rule.detector_key)
    remembered, failed = before.detector, False
    try:
        remembered, finding = rule.detector.look(feed.view(rule.scope, place, id_), before.detector)
    except Exception as error:  # noqa: BLE001 - as above; on_error says what follows
        _mishap(done, rule, place, error, look.recover)
        finding, failed = Finding(None, reason=f"the evaluation failed: {said(error)}"), True
    if look.gone and finding.violated is None and not failed and rule.life.no_data == "keep":
        finding = replace(finding, violated=False, reason=f"nothing comes from there any more ({finding.reason})")
    after, transition = advance(rule.life, before, finding, now, failed=failed)
    if after is before:
        return  # a newer evaluation was there first
    if remembered is not after.detector:
        after = replace(after, detector=remembered)
    if after.phase == "firing":
        after = _firing(look, after, finding, id_)
    done.states[id_] = after
    if transition is not None:
        done.transitions.append(replace(transition, alert_id=id_))
    done.standing[id_] = transition or standing(rule.life, after, finding, now, failed=failed)


def _firing(look: _Look, state: AlertState, finding: Finding, id_: str) -> AlertState:
    """The state with its severity, which rises and never falls in an episode."""
    rule, place, now, share = look.rule, look.place, look.now, None
    if finding.violated and (state.shared_at is None or now - state.shared_at >= SHARE_EVERY or state.fired_at == now):
        state = replace(state, shared_at=now)
        try:
            share = share_affected(rule, place, look.feed, finding, now)
        except Exception as error:  # noqa: BLE001 - as above; the alert is told without it
            _mishap(look.done, rule, place, error, look.recover)
    severity = rule.life.severity
    if severity == "table":
        severity = severity_of(rule.kind, finding, share)
        if rule.kill_switch and not rule.dry_run:
            severity = worse(severity, "SEV2")  # its calls are stopped: a capability is gone
    if finding.violated or not state.severity:
        state = replace(state, severity=worse(state.severity, severity))
    look.done.firing[id_] = Firing(rule, place, finding, state.severity, share)
    return state


def _known(book: Mapping[str, AlertState]) -> dict[str, set[Place]]:
    found: dict[str, set[Place]] = defaultdict(set)
    for state in book.values():
        found[state.rule].add(state.place)
    return found


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"


__all__: Sequence[str] = ("Firing", "Mishap", "Round", "alert_id", "evaluate")
