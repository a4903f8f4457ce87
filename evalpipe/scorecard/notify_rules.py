"""Who hears of alerts, as people write it: the ``notify:`` of a file of ``alerts:``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from evalpipe.scorecard.criterion import Name, Text, Written
from evalpipe.scorecard.values import Duration

Severities = list[Literal["SEV1", "SEV2", "SEV3", "SEV4"]]
Matchers = dict[Name, str]
"""Globs by label: `service: support-*`. A label that an alert does not have counts as empty."""


class RouteRule(Written):
    """Some alerts, the channels that hear of them, and how they are gathered."""

    name: Name = Field(description="Names the route; what was told is remembered under it.")
    match: Matchers = Field(
        default_factory=dict,
        description="Globs by label (rule, kind, severity, service, environment, variant, feature, release_id, "
        "scorecard, and the rule's own labels); all must fit. Empty fits every alert.",
    )
    severities: Severities | None = Field(default=None, min_length=1, description="Only these; all, if not given.")
    channels: list[Text] | None = Field(
        default=None, description="Who hears of it, by name: every channel, if not given; `[]` tells nobody."
    )
    goes_on: bool = Field(
        default=False, description="Routes below may have these alerts too; else the first that fits has them alone."
    )
    group_by: list[Name] = Field(
        default=["service", "environment", "variant"],
        description="Alerts that agree in these labels are told together; `[]` puts all of the route in one group.",
    )
    group_wait: Duration | None = Field(
        default=None,
        description="How long a new group gathers before it is first told; 0s for SEV1 and SEV2 and 30s for SEV3 and "
        "SEV4, if not given.",
    )
    group_interval: Duration = Field(
        default=timedelta(minutes=5),
        description="How long after a notice what came to the group waits, and that it is over. A higher severity and "
        "a new SEV1 do not wait.",
    )
    repeat_interval: Duration = Field(
        default=timedelta(hours=4),
        description="How often a group that still fires is told again, until it is acknowledged.",
    )


class EscalateRule(Written):
    """Who hears of an alert that nobody acknowledged."""

    after: Duration | None = Field(
        default=None,
        description="So long after it was told; the response time, if not given: 15m, 1h, 4h or 24h by severity.",
    )
    channels: list[Text] | None = Field(default=None, description="Who hears of it: every channel, if not given.")
    severities: Severities | None = Field(default=None, min_length=1, description="Only these; all, if not given.")


class InhibitRule(Written):
    """Alerts that make others superfluous."""

    source: Matchers = Field(min_length=1, description="While an alert with these labels fires (globs) ...")
    target: Matchers = Field(min_length=1, description="... those with these labels are not told ...")
    equal: list[Name] = Field(
        min_length=1,
        description="... where these labels are the same. A label that is empty or missing is the same as none.",
    )


class NotifyRules(Written):
    """What stands under ``notify:``."""

    routes: list[RouteRule] = Field(
        default_factory=list,
        description="The first that fits has the alert. What none fits is told to every channel.",
    )
    escalate: list[EscalateRule] = Field(
        default_factory=lambda: [EscalateRule()], description="One after the other, until somebody acknowledges."
    )
    inhibit: list[InhibitRule] = Field(
        default_factory=list, description="Beside what is built in: SEV1 mutes SEV3 and SEV4, judges mute their scores."
    )


def notify_problems(rules: NotifyRules, channels: Collection[str]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """What does not agree with itself or with the channels that there are: the place below ``notify``, and what.

    Args:
        rules: as written.
        channels: the names that are configured.
    """
    seen: set[str] = set()
    for place, route in enumerate(rules.routes):
        if route.name in seen:
            yield ("routes", place, "name"), f"two routes are named {route.name!r}; rename one of them"
        seen.add(route.name)
        if route.repeat_interval < route.group_interval:
            yield ("routes", place, "repeat_interval"), "repeat_interval must not be shorter than group_interval"
    named = [("routes", place, route.channels) for place, route in enumerate(rules.routes)]
    named += [("escalate", place, step.channels) for place, step in enumerate(rules.escalate)]
    for part, place, names in named:
        for index, name in enumerate(names or ()):
            if name not in channels:
                there = ", ".join(sorted(channels)) or "none is configured"
                yield (part, place, "channels", index), f"there is no channel {name!r}; there are: {there}"
