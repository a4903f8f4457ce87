"""Evidence → decisions: fold what has arrived for each rollout, and commit what follows.

State, log, decisions, incident, outbox rows and weights are one transaction: so a decision is never made without being
told, nor told without being made. Two evaluators at once do no harm: the second finds the rollout locked and leaves it
to the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from evalpipe.errors import ConfigError
from evalpipe.incidents.incident import open_from_decision
from evalpipe.notification import ADVANCE, HOLD, ROLLBACK
from evalpipe.pipeline.steering import Before, follow
from evalpipe.pipeline.telling import Telling, open_incident
from evalpipe.pipeline.trust import VersionOf, judge_health, told
from evalpipe.rollout.decision import Decision
from evalpipe.rollout.fold import fold_into, replay
from evalpipe.rollout.inputs import Batch, Evidence, MeterReading, Override
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import VERSION, RolloutState
from evalpipe.score import Status
from evalpipe.scorecard.model import Scorecard
from evalpipe.store import rollout_evidence, rollout_log, rollout_meter, rollouts
from evalpipe.store.rollout_evidence import Reading
from evalpipe.store.sql import Store, Transaction, is_passing

LATE_AFTER: Final = timedelta(minutes=2)
"""A score that is later than this is closed as an error, so that one stuck judge call cannot hold a rollout."""
IDLE: Final = timedelta(seconds=30)
"""A rollout with nothing new is looked at this often: judges fail, and arms fall silent, without a record."""
SOONEST: Final = timedelta(seconds=1)
BATCH: Final = 2_000
"""Records folded in one transaction."""

log = logging.getLogger("evalpipe")

_TYPES: Final = {"rollback": ROLLBACK, "advance": ADVANCE, "hold": HOLD}


class _SupersededError(Exception):
    """The rollout ended while it was being folded: nothing of this fold may stand."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What waits to be folded into a rollout.

    Attributes:
        ready: the evidence that is complete, in order.
        read: all that was read, for what judges gave it.
        waits_since: arrival of the oldest record that waits for a score; None if none does.
        folded: by criterion: the newest place that is complete.
        more: whether there may be more at once.
    """

    orders: Sequence[Mapping[str, Any]]
    meter: tuple[MeterReading, ...]
    meter_rows: Sequence[Any]
    ready: tuple[Evidence, ...]
    read: Sequence[Reading]
    waits_since: datetime | None
    folded: Mapping[str, int]
    more: bool

    @property
    def news(self) -> bool:
        """Whether there is anything."""
        return bool(self.orders or self.meter or self.ready)


class FoldRollouts:
    """Folds every rollout that may have something to fold.

    Args:
        store: where evidence is read, and all that follows is written.
        scorecards: that rollouts are of.
        telling: who hears of decisions.
        late_after: how long the fold waits for a score.
        publish: tells the hooks of a service, after the commit that moved its weights.
        version_of: names the judges that scorecards mean, to find out which of them are stopped.
    """

    def __init__(
        self,
        store: Store,
        scorecards: Sequence[Scorecard],
        telling: Telling,
        *,
        late_after: timedelta = LATE_AFTER,
        publish: Callable[[str, datetime], object] | None = None,
        version_of: VersionOf | None = None,
    ) -> None:
        self._store = store
        self._scorecards = scorecards
        self._telling = telling
        self._late_after = late_after
        self._publish = publish
        self._version_of = version_of

    def __call__(self, now: datetime) -> list[Decision]:
        """Fold what has arrived, at ``now``; returns the decisions made."""
        decisions: list[Decision] = []
        for rollout_id in self._store.patiently(lambda tx: rollouts.due(tx, now)):
            try:
                decisions += self._fold_all(rollout_id, now)
            except _SupersededError:
                log.info("rollout %s was superseded", rollout_id)
            except ConfigError as error:
                log.error("no decisions: %s", error)  # noqa: TRY400 - the message says it all
            except Exception as error:
                if isinstance(error, DBAPIError) and is_passing(error):
                    raise  # nobody's trouble alone
                # One rollout's trouble: the others, the alerts and the rollbacks go on. The doctor names it.
                log.exception("no decisions on rollout %s", rollout_id)
        return decisions

    def _fold_all(self, rollout_id: str, now: datetime) -> list[Decision]:
        decisions: list[Decision] = []
        more = True
        while more:
            made, steered, more = self._store.patiently(partial(self._fold, rollout_id=rollout_id, now=now))
            decisions += made
            if steered and self._publish is not None:
                self._publish(steered, now)
        return decisions

    def _fold(self, tx: Transaction, rollout_id: str, now: datetime) -> tuple[tuple[Decision, ...], str, bool]:
        """Fold one batch of a rollout: its decisions, the service to publish to if any, and whether there is more."""
        row = rollouts.lock(tx, rollout_id)
        if row is None:
            return (), "", False
        if row.phase == rollouts.SUPERSEDED:
            _void_orders(tx, rollout_id, now)
            return (), "", False
        plan = RolloutPlan.from_dict(row.plan)
        card = self._card(row)
        found = self._read(tx, row, plan, now)
        if not found.news and now < row.due_at:
            return (), "", False
        state = state_of(tx, plan, row)
        before = Before.of(plan, state)
        health = told_before = state.health
        if row.phase in rollouts.LIVE:
            health = judge_health(tx, card, plan.criteria, found.read, found.waits_since, now, self._version_of)
        overrides = tuple(
            Override(o["action"], o["actor"], o["reason"], o["at"], o["expires_at"]) for o in found.orders
        )
        # Of a batch that was cut silence must not be judged by the clock: what came since then waits to be read.
        at = max(state.clock, found.ready[-1].at) if found.more else now
        batch = Batch(at, health, overrides, found.meter, found.ready)
        decisions = fold_into(plan, state, batch)
        due_at = min(now + IDLE, max(state.due, now + SOONEST))
        if not (found.news or decisions or health != told_before or state.phase != before.phase):
            rollouts.put_off(tx, rollout_id, due_at)
            return (), "", False
        rollout_log.append(tx, rollout_id, row.inputs_n + 1, batch)
        self._save(tx, row, plan, before, state, found, due_at, now)
        for decision in decisions:
            self._decide(tx, decision, row, now)
        steered = follow(tx, row, plan, before, state, decisions, now)
        return decisions, row.service if steered else "", found.more and state.phase in rollouts.LIVE

    def _read(self, tx: Transaction, row: Any, plan: RolloutPlan, now: datetime) -> _Found:
        orders = rollouts.orders(tx, row.rollout_id)
        if row.phase not in rollouts.LIVE:
            return _Found(orders, (), (), (), (), None, {}, more=False)
        meter, meter_rows = rollout_meter.waiting(tx, row.rollout_id, now)
        before = {criterion: row.folded.get(criterion, 0) for criterion in plan.criteria}
        # Of the plan, not of a scorecard: a process that does not know it yet must not take an answer for not owed.
        confirms = {gate.confirm: gate.criterion for gate in plan.gates if gate.confirm}
        read = rollout_evidence.readings(tx, row.rollout_id, before, row.scorecard, BATCH, confirms=confirms)
        ready = {
            # What confirms is asked once the first grade is there: it has as much time again.
            name: rollout_evidence.complete(found, now - self._late_after, self._late_after * (name in confirms))
            for name, found in read.items()
        }
        waits = [found[len(ready[name])].at for name, found in read.items() if len(ready[name]) < len(found)]
        folded = {name: done[-1].seq if done else before[name] for name, done in ready.items()}
        return _Found(
            orders,
            meter,
            meter_rows,
            tuple(sorted((evidence_of(r) for done in ready.values() for r in done), key=_place)),
            [reading for found in read.values() for reading in found],
            min(waits, default=None),
            folded,
            more=any(len(done) >= BATCH for done in ready.values()),
        )

    def _save(
        self,
        tx: Transaction,
        row: Any,
        plan: RolloutPlan,
        before: Before,
        state: RolloutState,
        found: _Found,
        due_at: datetime,
        now: datetime,
    ) -> None:
        values: dict[str, Any] = {
            "state": state.to_state(plan),
            "inputs_n": row.inputs_n + 1,
            "decision_seq": state.decision_seq,
            "phase": state.phase,
            "step": state.step,
            "percent": state.percent(plan),
            "due_at": due_at,
        }
        if row.phase in rollouts.LIVE:
            folded = {**row.folded, **found.folded}
            values |= {"folded": folded, "folded_seq": min(found.folded.values(), default=row.evidence_seq)}
        if state.rolled_back and not before.rolled_back:
            values |= {"rolled_back_at": now, "verified": "waiting", "verified_at": None, "canary_seen_at": None}
            values |= {"canary_late_at": None}
        elif before.rolled_back and not state.rolled_back:
            values |= {"verified": ""}
        # First: whoever supersedes the rollout has its row, and takes the controls' lock after it, as here.
        if not rollouts.save(tx, row, values, now):
            raise _SupersededError(row.rollout_id)
        rollouts.close_orders(tx, [order["order_id"] for order in found.orders], now)
        rollout_meter.forget(tx, found.meter_rows)

    def _card(self, row: Any) -> Scorecard | None:
        """The rollout's scorecard: its own version, else that of its name."""
        named = [card for card in self._scorecards if card.name == row.scorecard]
        return next((card for card in named if card.version == row.scorecard_version), next(iter(named), None))

    def _decide(self, tx: Transaction, decision: Decision, row: Any, now: datetime) -> None:
        rollouts.add_decision(
            tx,
            {
                "decision_id": decision.decision_id,
                **{name: getattr(decision, name) for name in _COLUMNS},
                "evidence": decision.to_dict(),
                "decided_at": now,
            },
        )
        data = {"environment": row.environment, "decided_at": now.isoformat(), **told_of(decision)}
        shown = data["evidence"][0].get("criterion") if data["evidence"] else None
        if shown and (judge := told(tx, row.scorecard, shown)) is not None:
            data["judge_health"] = judge
        self._telling.tell(tx, (decision.decision_id,), _TYPES[decision.action], decision.rollout_id, data, now)
        if decision.action == "rollback":
            open_incident(tx, open_from_decision(decision))


def state_of(tx: Transaction, plan: RolloutPlan, row: Any) -> RolloutState:
    """The state of a rollout; where another version of this code wrote it, made again from the log.

    Raises:
        ConfigError: the plan has changed, or the log does not lead to what was decided: its decisions stand, and this
            code makes no more.
    """
    if not row.state:
        return RolloutState.start(plan, row.started_at)
    if row.state["version"] == VERSION:
        return RolloutState.from_state(plan, row.state)
    state, _ = replay(plan, row.started_at, rollout_log.inputs(tx, row.rollout_id))
    if (state.phase, state.step, state.decision_seq) != (row.phase, row.step, row.decision_seq):
        raise ConfigError(
            f"rollout {plan.rollout_id!r}: played again by this version its log ends {state.phase} after "
            f"{state.decision_seq} decisions, not {row.phase} after {row.decision_seq}; start a new rollout, which "
            "supersedes it"
        )
    log.info("rollout %s: state made again from %d batches of its log", plan.rollout_id, row.inputs_n)
    return state


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
        pair=reading.pair,
        segment=reading.segment,
    )


def told_of(decision: Decision) -> dict[str, Any]:
    """What a webhook says of a decision: the deciding gate's numbers on top, then every gate as evidence."""
    gates = decision.evidence.get("gates", {})
    deciding = sorted(gates.values(), key=lambda gate: gate["gate"] != decision.gate)
    return {
        "decision_id": decision.decision_id,
        **{name: getattr(decision, name) for name in _TOLD},
        "expires_at": None if decision.expires_at is None else decision.expires_at.isoformat(),
        "latched": decision.action == "rollback",
        "baseline": decision.evidence["baseline"],
        "canary": decision.evidence["canary"],
        "evidence": deciding,
    }


_COLUMNS: Final = (
    "rollout_id", "seq", "action", "cause", "gate", "phase", "reason", "actor", "expires_at", "inputs_hash",
)  # fmt: skip
_TOLD: Final = (
    "rollout_id", "service", "seq", "action", "cause", "gate", "severity", "phase", "from_percent", "to_percent",
    "actor", "reason", "inputs_hash", "evidence_seq",
)  # fmt: skip


def _place(evidence: Evidence) -> tuple[int, str]:
    return evidence.seq, evidence.criterion


def _void_orders(tx: Transaction, rollout_id: str, now: datetime) -> None:
    rollouts.close_orders(tx, [order["order_id"] for order in rollouts.orders(tx, rollout_id)], now)
