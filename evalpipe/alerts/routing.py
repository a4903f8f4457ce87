"""Which channels an alert goes to, and how it is gathered with others: Alertmanager's routes, one level deep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from evalpipe.alerts.escalation import RANK, Step
from evalpipe.alerts.rules import Severity, bounded_key
from evalpipe.alerts.silence import fits
from evalpipe.scorecard.notify_rules import NotifyRules, RouteRule

SOON: Final = timedelta(0)
WAIT: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Standing:
    """An alert as far as telling people goes.

    Attributes:
        alert_id: of it.
        severity: now; it may rise while the alert fires.
        firing: else it has resolved.
        fired_at: of the newest episode; aware UTC.
        labels: what routes, silences and inhibition match; unknown ones are "".
        acked: somebody has taken it, at this severity.
        dry_run: nobody is told.
        judges: the versions of the judges that its value comes from.
    """

    alert_id: str
    severity: Severity
    firing: bool
    fired_at: datetime
    labels: Mapping[str, str]
    acked: bool = False
    dry_run: bool = False
    judges: frozenset[str] = frozenset()

    @property
    def rank(self) -> int:
        """The higher, the more severe."""
        return RANK[self.severity]


@dataclass(frozen=True, slots=True)
class Route:
    """Some alerts, and how they are told; see ``RouteRule``. ``channels`` is None for every channel."""

    name: str
    match: Mapping[str, str] = field(default_factory=dict)
    severities: frozenset[Severity] = frozenset()
    channels: tuple[str, ...] | None = None
    goes_on: bool = False
    group_by: tuple[str, ...] = ("service", "environment", "variant")
    group_wait: timedelta | None = None
    group_interval: timedelta = timedelta(minutes=5)
    repeat_interval: timedelta = timedelta(hours=4)

    def takes(self, alert: Standing) -> bool:
        """Whether the alert is one of its."""
        return (not self.severities or alert.severity in self.severities) and fits(self.match, alert.labels)

    def wait(self, severity: Severity) -> timedelta:
        """How long a new group gathers."""
        if self.group_wait is not None:
            return self.group_wait
        return SOON if severity in {"SEV1", "SEV2"} else WAIT

    def key(self, alert: Standing) -> str:
        """The group of an alert; readable, and the same as long as route and labels are."""
        parts = ",".join(f"{name}={alert.labels.get(name, '')}" for name in self.group_by)
        return bounded_key(f"{self.name}{{{parts}}}")


DEFAULT: Final = Route("default")
"""What no route takes is told to every channel: nobody being told is the worst."""


@dataclass(frozen=True, slots=True)
class Inhibition:
    """While a source fires, targets with the same labels ``equal`` are not told."""

    source: Mapping[str, str]
    target: Mapping[str, str]
    equal: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """Everything that somebody may set."""

    routes: tuple[Route, ...] = ()
    escalate: tuple[Step, ...] = (Step(),)
    inhibit: tuple[Inhibition, ...] = ()

    def of(self, alert: Standing) -> list[Route]:
        """The routes of an alert; never none."""
        found: list[Route] = []
        for route in self.routes:
            if route.takes(alert):
                found.append(route)
                if not route.goes_on:
                    break
        return found or [DEFAULT]

    def named(self, name: str) -> Route:
        """A route by its name; of one that is gone, the default's intervals."""
        return next((route for route in self.routes if route.name == name), DEFAULT)


def routing_of(rules: NotifyRules) -> Routing:
    """The pure rules of what a file declares."""
    return Routing(
        routes=tuple(_route(rule) for rule in rules.routes),
        escalate=tuple(
            Step(rule.after, _channels(rule.channels), frozenset(rule.severities or ())) for rule in rules.escalate
        ),
        inhibit=tuple(Inhibition(dict(rule.source), dict(rule.target), tuple(rule.equal)) for rule in rules.inhibit),
    )


def _route(rule: RouteRule) -> Route:
    return Route(
        name=rule.name,
        match=dict(rule.match),
        severities=frozenset(rule.severities or ()),
        channels=_channels(rule.channels),
        goes_on=rule.goes_on,
        group_by=tuple(rule.group_by),
        group_wait=rule.group_wait,
        group_interval=rule.group_interval,
        repeat_interval=rule.repeat_interval,
    )


def _channels(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
