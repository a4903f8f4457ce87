"""Store → decisions and alerts → outbox: fold the new evidence of each rollout, and evaluate each alert rule.

What follows is committed with what it follows from; see ``fold_rollout`` and ``verify_rollback`` for rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evalpipe.alerts.rules import Observation, ThresholdRule
from evalpipe.alerts.state import Transition
from evalpipe.channels.base import Channel
from evalpipe.pipeline.fold_rollout import LATE_AFTER, FoldRollouts
from evalpipe.pipeline.telling import Telling, Words
from evalpipe.pipeline.trust import VersionOf, attribution
from evalpipe.pipeline.verify_rollback import VerifyRollbacks
from evalpipe.rollout.decision import Decision
from evalpipe.rollup import Rollup
from evalpipe.scorecard.model import AlertRule, Scorecard
from evalpipe.store import alerting, meter_minutes, series
from evalpipe.store.sql import Store, Transaction

FIRES_AT_LEAST = timedelta(minutes=1)
"""Rules are evaluated with each commit of scores, twice a second at times; so soon a firing is not taken back."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one round decided.

    Attributes:
        decisions: of rollouts.
        transitions: of alerts.
        verified: rollouts whose rollback turned out to have taken effect, or not.
    """

    decisions: tuple[Decision, ...] = ()
    transitions: tuple[Transition, ...] = ()
    verified: tuple[str, ...] = ()

    @property
    def told(self) -> bool:
        """Whether there is something to deliver."""
        return bool(self.decisions or self.transitions or self.verified)


class Evaluate:
    """The stage, with what it needs.

    Args:
        store: where evidence is read, and state and outbox are written.
        scorecards: whose alert rules are evaluated.
        channels: every notification goes to each.
        source: CloudEvents' ``source``.
        late_after: how long the fold waits for a score.
        publish: tells the hooks of a service, after the commit that moved a canary's weight.
        version_of: names the judges that scorecards mean, to find out which of them are stopped.
    """

    def __init__(
        self,
        store: Store,
        scorecards: Sequence[Scorecard],
        channels: Mapping[str, Channel],
        *,
        source: str,
        late_after: timedelta = LATE_AFTER,
        publish: Callable[[str, datetime], object] | None = None,
        version_of: VersionOf | None = None,
    ) -> None:
        self._store = store
        self._scorecards = scorecards
        self._telling = Telling(channels, source)
        self._fold = FoldRollouts(
            store, scorecards, self._telling, late_after=late_after, publish=publish, version_of=version_of
        )
        self._verify = VerifyRollbacks(store, self._telling)

    def __call__(self, now: datetime) -> Evaluated:
        """Fold what has arrived for every rollout, then look at rollbacks and evaluate every alert rule, at ``now``."""
        decisions = self._fold(now)
        verified = self._verify(now)
        transitions = [
            t for card in self._scorecards for rule in card.alerts for t in self._evaluate_rule(card, rule, now)
        ]
        return Evaluated(tuple(decisions), tuple(transitions), tuple(verified))

    def _evaluate_rule(self, card: Scorecard, written: AlertRule, now: datetime) -> list[Transition]:
        rule = threshold_rule(written)

        def run(tx: Transaction) -> list[Transition]:
            found = []
            for (service, environment, variant), seen in observations(tx, card, rule, now).items():
                alert_id = f"{service}/{environment}/{variant}/{card.name}/{rule.name}"
                place = {"service": service, "environment": environment, "variant": variant}
                keys = {"scorecard": card.name, "rule": rule.name, **place, "severity": rule.severity}
                about, words = f"{service}/{variant}", self._words(tx, card, rule, place)
                transition = self._telling.advance(tx, alert_id, keys, rule, seen, about=about, words=words)
                if transition is not None:
                    found.append(transition)
            return found

        return self._store.patiently(run)

    def _words(self, tx: Transaction, card: Scorecard, rule: ThresholdRule, place: Mapping[str, str]) -> Words:
        """A rule's own reason; where a judged series crossed its line, also whether the judge moved."""

        def say(transition: Transition) -> tuple[str, dict[str, Any]]:
            if rule.aggregation == "meter" or transition.after != "firing" or transition.value is None:
                return transition.reason, {}
            at, gap = transition.at, transition.value - rule.threshold
            found = attribution(tx, card, rule.criterion, gap, at, since=at - rule.window, **place)
            if found is None or gap == 0 or (gap < 0) != (rule.comparison == "below"):
                return transition.reason, {}
            return f"{transition.reason}; {found.words}", {"moved": found.origin}

        return say


def threshold_rule(written: AlertRule) -> ThresholdRule:
    """The pure rule of what a scorecard declares."""
    line = written.line
    below = line.below is not None
    threshold = line.below if line.below is not None else line.above
    assert threshold is not None
    return ThresholdRule(
        name=written.name,
        criterion=written.watched,
        comparison="below" if below else "above",
        threshold=threshold,
        window=written.window,
        min_sample=written.min_sample,
        for_=written.for_,
        keep_firing_for=written.keep_firing_for,
        severity=written.severity,
        no_data=written.no_data,
        aggregation="mean" if written.meter is None else "meter",
        fires_at_least=FIRES_AT_LEAST,
    )


def observations(
    tx: Transaction, card: Scorecard, rule: ThresholdRule, now: datetime
) -> dict[tuple[str, str, str], Observation]:
    """What the rule sees at each service, environment and variant, also where it has an alert and nothing is left."""
    if rule.aggregation == "meter":
        found = {
            place: Observation(seen.value(rule.criterion), seen.size(rule.criterion), now)
            for place, seen in meter_minutes.read(tx, now, rule.window, card.match.fits_place).items()
        }
    else:
        found = {
            place: Observation(rollup.mean, rollup.n_scored, now)
            for place, rollup in windows(tx, card.name, rule, now).items()
        }
    for row in alerting.list_alerts(tx):
        if row["scorecard"] == card.name and row["rule"] == rule.name:
            found.setdefault((row["service"], row["environment"], row["variant"]), Observation(None, 0, now))
    return found


def windows(tx: Transaction, scorecard: str, rule: ThresholdRule, now: datetime) -> dict[tuple[str, str, str], Rollup]:
    """The rule's window for each service, environment and variant, in the newest epoch of each: never across epochs."""
    found = series.read_sums(tx, now - rule.window, scorecard=scorecard, criterion=rule.criterion)
    newest = {(s.service, s.environment, s.variant): s.epoch for _, s, rollup in found if rollup.n_scored}
    merged: dict[tuple[str, str, str], Rollup] = {}
    for _, s, rollup in found:
        place = s.service, s.environment, s.variant
        if s.epoch == newest.get(place):
            merged.setdefault(place, Rollup()).merge(rollup)
    return merged
