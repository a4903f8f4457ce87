"""Store → decision → outbox: fold the new evidence of each rollout, evaluate each alert rule, and commit what follows.

State, decision, incident and outbox rows are one transaction: so a decision is never made without being told, nor told
without being made. Two evaluators at once do no harm: the second finds the rollout locked and leaves it to the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from evalpipe.alerts.rules import Observation, ThresholdRule
from evalpipe.alerts.state import Transition
from evalpipe.channels.base import Channel
from evalpipe.errors import ConfigError
from evalpipe.incidents.incident import open_from_decision
from evalpipe.notification import ADVANCE, HOLD, ROLLBACK
from evalpipe.pipeline.telling import Telling, Words, open_incident
from evalpipe.pipeline.trust import VersionOf, attribution, judge_health, told
from evalpipe.rollout.analysis import Evidence
from evalpipe.rollout.decision import Decision
from evalpipe.rollout.fold import step
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.rollup import Rollup
from evalpipe.score import Status
from evalpipe.scorecard.model import AlertRule, Scorecard
from evalpipe.store import alerting, controls, meter_minutes, rollouts, series
from evalpipe.store.rollouts import Reading
from evalpipe.store.sql import Store, Transaction

LATE_AFTER = timedelta(minutes=2)
"""A score that is later than this is closed as an error, so that one stuck judge call cannot hold a rollout."""
IDLE = timedelta(seconds=30)
"""A rollout without new evidence is looked at this often, so that silence is noticed."""
FIRES_AT_LEAST = timedelta(minutes=1)
"""Rules are evaluated with each commit of scores, twice a second at times; so soon a firing is not taken back."""
BATCH = 2_000
"""Records folded in one transaction."""

log = logging.getLogger("evalpipe")

_TYPES = {"rollback": ROLLBACK, "advance": ADVANCE, "hold": HOLD}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one round decided."""

    decisions: tuple[Decision, ...] = ()
    transitions: tuple[Transition, ...] = ()


class Evaluate:
    """The stage, with what it needs.

    Args:
        store: where evidence is read, and state and outbox are written.
        scorecards: whose alert rules are evaluated.
        channels: every notification goes to each.
        source: CloudEvents' ``source``.
        late_after: how long the fold waits for a score.
        publish: tells the hooks of a service, after the commit that took a canary's weight away.
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
        self._version_of = version_of
        self._late_after = late_after
        self._publish = publish

    def __call__(self, now: datetime) -> Evaluated:
        """Fold what has arrived for every rollout, then evaluate every alert rule, at ``now``."""
        decisions: list[Decision] = []
        for rollout_id in self._store.patiently(rollouts.list_running):
            try:
                decisions += self._fold_all(rollout_id, now)
            except ConfigError as error:
                log.error("no decisions: %s", error)  # noqa: TRY400 - one rollout's trouble; the others go on
        transitions = [
            t for card in self._scorecards for rule in card.alerts for t in self._evaluate_rule(card, rule, now)
        ]
        return Evaluated(tuple(decisions), tuple(transitions))

    def _fold_all(self, rollout_id: str, now: datetime) -> list[Decision]:
        decisions: list[Decision] = []
        more = True
        while more:
            made, more = self._store.patiently(partial(self._fold, rollout_id=rollout_id, now=now))
            decisions += made
            for decision in made:
                if decision.action == "rollback" and self._publish is not None:
                    self._publish(decision.service, now)
        return decisions

    def _fold(self, tx: Transaction, rollout_id: str, now: datetime) -> tuple[tuple[Decision, ...], bool]:
        """Fold one batch of a rollout; says whether there may be more at once."""
        row = rollouts.lock(tx, rollout_id)
        if row is None or row.phase != "running":
            return (), False
        plan = RolloutPlan.from_dict(row.plan)
        state = RolloutState.from_state(plan, row.state) if row.state else RolloutState.start(plan, row.started_at)
        criteria = list(dict.fromkeys(gate.criterion for gate in plan.gates))
        found = rollouts.readings(tx, rollout_id, row.folded_seq, criteria, row.scorecard, BATCH)
        ready = complete(found, now - self._late_after)
        if not ready and now - row.updated_at < IDLE:
            return (), False
        health = judge_health(tx, self._card(row), criteria, found, ready, now, self._version_of)
        state, decisions = step(plan, state, [evidence_of(reading) for reading in ready], now, health)
        folded = ready[-1].seq if ready else row.folded_seq
        values = {
            "state": state.to_state(plan),
            "folded_seq": folded,
            "decision_seq": state.decision_seq,
            "phase": "rolled_back" if state.rolled_back else "running",
        }
        rollouts.save(tx, rollout_id, values, now)
        for decision in decisions:
            self._decide(tx, decision, row.scorecard, now)
            if decision.action == "rollback":
                controls.roll_back(tx, row.service, row.environment, row.canary, reason=decision.reason, now=now)
        return decisions, len(ready) == len(found) and folded - row.folded_seq >= BATCH and not state.rolled_back

    def _card(self, row: Any) -> Scorecard | None:
        """The rollout's scorecard: its own version, else that of its name."""
        named = [card for card in self._scorecards if card.name == row.scorecard]
        return next((card for card in named if card.version == row.scorecard_version), next(iter(named), None))

    def _decide(self, tx: Transaction, decision: Decision, scorecard: str, now: datetime) -> None:
        decision_id = f"dec_{decision.rollout_id}_{decision.seq}"
        rollouts.add_decision(
            tx,
            {
                "decision_id": decision_id,
                "rollout_id": decision.rollout_id,
                "seq": decision.seq,
                "action": decision.action,
                "reason": decision.reason,
                "evidence": decision.to_dict(),
                "inputs_hash": decision.inputs_hash,
                "decided_at": now,
            },
        )
        data = {"decision_id": decision_id, "decided_at": now.isoformat(), **_told(decision)}
        if data["evidence"] and (judge := told(tx, scorecard, data["evidence"][0]["criterion"])) is not None:
            data["judge_health"] = judge
        self._telling.tell(tx, (decision_id,), _TYPES[decision.action], decision.rollout_id, data, now)
        if decision.action == "rollback":
            open_incident(tx, open_from_decision(decision))

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


def complete(readings: Sequence[Reading], late_before: datetime) -> list[Reading]:
    """The readings up to the first record that still waits for a score, in order; late ones are closed as errors.

    Order is that of arrival, never that in which judges answer: a judge that is slow on bad answers must not make them
    count later.
    """
    ready: list[Reading] = []
    for reading in readings:
        if reading.status is not None:
            ready.append(reading)
        elif reading.at <= late_before:
            ready.append(rollouts.closed(reading))
        else:
            return [r for r in ready if r.seq < reading.seq]
    return ready


def evidence_of(reading: Reading) -> Evidence:
    """A reading as the fold takes it."""
    assert reading.status is not None
    return Evidence(
        seq=reading.seq,
        at=reading.captured_at,
        arm="canary" if reading.arm == "canary" else "baseline",
        unit=reading.unit,
        criterion=reading.criterion,
        value=reading.value,
        weight=reading.weight,
        status=Status(reading.status),
        epoch=reading.epoch,
    )


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


def _told(decision: Decision) -> dict[str, Any]:
    """What a webhook says of a decision: the deciding gate's numbers on top, then every gate as evidence."""
    gates = decision.evidence.get("gates", {})
    deciding = sorted(gates.values(), key=lambda gate: gate["gate"] != decision.gate)
    return {
        "rollout_id": decision.rollout_id,
        "service": decision.service,
        "seq": decision.seq,
        "action": decision.action,
        "latched": decision.action == "rollback",
        "baseline": decision.evidence["baseline"],
        "canary": decision.evidence["canary"],
        "cause": decision.cause,
        "gate": decision.gate,
        "severity": decision.severity,
        "reason": decision.reason,
        "inputs_hash": decision.inputs_hash,
        "evidence_seq": decision.evidence_seq,
        "evidence": deciding,
    }
