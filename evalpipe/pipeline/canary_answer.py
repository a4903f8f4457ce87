"""What whoever moves a canary's traffic may do now: advance, hold or roll back, out of what is stored of its rollout.

Precedence is rollback, then hold, then advance; what is not known holds. Asking changes nothing about a decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, Final, Literal

from evalpipe.errors import ConfigError
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.store import canaries, changes, rollouts
from evalpipe.store.changes import DEPLOYMENT, LEAVE, Change
from evalpipe.store.sql import Transaction

BACK: Final = ("rolled_back", "aborted", "expired")
"""Phases that ended at the baseline: no canary may have traffic."""
REPEATED: Final = timedelta(seconds=8)
"""A leave is repeated for so long: the answer may have been lost, and the deployer asks again."""
DECISIONS: Final = 20
"""Newest decisions looked through for the one that an answer rests on."""
MOST_REASON: Final = 400

Action = Literal["advance", "hold", "rollback"]


@dataclass(frozen=True, slots=True)
class Question:
    """Whom a deployer asks about.

    Attributes:
        name: a rollout's id, or the canary's variant.
        service, environment: of the variant; needed where several have one of that name.
        deployment: names this attempt to deploy, where the variant's name is used for one release after the other: a
            rollout that had ended when the deployment was first asked about is none of its business.
        step: percent that the deployer gives the canary and would like to leave; None asks for all of the traffic.
    """

    name: str
    service: str = ""
    environment: str = ""
    deployment: str = ""
    step: float | None = None

    @property
    def key(self) -> str:
        """The deployment among all others."""
        return f"{self.service}/{self.environment}/{self.name}/{self.deployment}"


@dataclass(frozen=True, slots=True)
class CanaryAnswer:
    """What may be done.

    Attributes:
        decision: go on, stay, or take the canary out of traffic.
        rollout_id, phase: what it rests on; "" where there is no rollout yet.
        step: percent that it is about; None where it is about all of the traffic.
        policy: scorecard and version, or the hash of the plan.
        decision_id: the decision that it rests on; "" before the first.
        reason: in words.
        evidence: the gates' numbers, rounded.
        data_through: everything that arrived until then was looked at; None before the first evidence.
        steps_left: steps of the ramp that the rollout has left behind.
        stopped: nothing may move, whatever was decided before: it is frozen, or somebody ordered it to stop.
    """

    decision: Action
    reason: str
    rollout_id: str = ""
    phase: str = ""
    step: float | None = None
    policy: str = ""
    decision_id: str = ""
    evidence: tuple[dict[str, Any], ...] = ()
    data_through: datetime | None = None
    steps_left: int = 0
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "decision": self.decision,
            "step": self.step,
            "rollout": self.rollout_id,
            "phase": self.phase,
            "policy": self.policy,
            "decision_id": self.decision_id,
            "reason": self.reason,
            "evidence": list(self.evidence),
            "data_through": None if self.data_through is None else self.data_through.isoformat(),
        }


class UnknownCanaryError(ConfigError):
    """Neither a rollout nor a release is called so."""


def answer(tx: Transaction, question: Question, now: datetime) -> CanaryAnswer:
    """What may be done now. Notes when a deployment was first asked about, so it needs a transaction that writes.

    Raises:
        UnknownCanaryError: nothing is called so.
        ConfigError: several services have a canary of that name, and none is given.
    """
    row = find(tx, question, now)
    if row is None:
        return CanaryAnswer("hold", f"no rollout of {question.name!r} has begun: no record of it has arrived yet",
                            step=question.step)  # fmt: skip
    known = Known(
        row,
        tuple(rollouts.list_decisions(tx, rollout_id=row["rollout_id"], limit=DECISIONS)),
        tuple(rollouts.orders(tx, row["rollout_id"], waiting=True)) if row["n_orders"] else (),
        reused=not question.deployment and _is_reused(tx, question, row),
    )
    return answer_of(known, question.step, now)


def find(tx: Transaction, question: Question, now: datetime) -> dict[str, Any] | None:
    """The rollout that a question is about; None where it has not begun.

    Raises:
        UnknownCanaryError, ConfigError: as ``answer``.
    """
    if (row := rollouts.get(tx, question.name)) is not None:
        return row
    trials = canaries.trials(tx, question.name, service=question.service, environment=question.environment or None)
    places = sorted({(trial.service, trial.environment) for trial in trials})
    if len(places) > 1:
        there = ", ".join(f"service {service!r} environment {environment!r}" for service, environment in places)
        raise ConfigError(f"several canaries are called {question.name!r} ({there}): say which one you mean")
    if question.deployment:
        since = changes.add(tx, Change(f"{DEPLOYMENT}:{question.key}", now, question.service, question.environment,
                                       question.name, DEPLOYMENT))[0].at  # fmt: skip
        trials = [t for t in trials if t.phase in rollouts.LIVE or (t.decided_at is not None and t.decided_at >= since)]
    elif not trials and not canaries.is_known(tx, question.name, question.service):
        where = f" of service {question.service!r}" if question.service else ""
        raise UnknownCanaryError(f"there is no rollout, and no release{where}, that is called {question.name!r}")
    return rollouts.get(tx, trials[0].rollout_id) if trials else None


@dataclass(frozen=True, slots=True)
class Known:
    """What is stored of a rollout.

    Attributes:
        row: as ``rollouts.get`` gives it.
        decisions: its newest ones, oldest of them first.
        waiting: orders of people that were not decided on yet.
        reused: other rollouts had a canary of the same name, and nothing says which one is meant.
    """

    row: Mapping[str, Any]
    decisions: tuple[Mapping[str, Any], ...]
    waiting: tuple[Mapping[str, Any], ...] = ()
    reused: bool = False


def answer_of(known: Known, step: float | None, now: datetime) -> CanaryAnswer:
    """What follows from it at ``now`` for a deployer that would like to leave ``step`` per cent."""
    row, decisions = known.row, known.decisions
    plan = RolloutPlan.from_dict(row["plan"])
    state, trouble = state_of(row, plan)
    stop = trouble or _stop(row, state, known.waiting, now)
    action, why = _action(row, plan, state, step, reused=known.reused)
    action, why = ("hold", stop) if stop else (action, why)
    newest = _rests_on(action, row["phase"], decisions)
    reason = why or _reason(action, newest)
    version = row["scorecard_version"]
    return CanaryAnswer(
        decision=action,
        reason=reason if len(reason) <= MOST_REASON else reason[: MOST_REASON - 1] + "…",
        rollout_id=row["rollout_id"],
        phase=row["phase"],
        step=row["percent"] if step is None else step,
        policy=f"{row['scorecard']}@{version}" if row["scorecard"] and version else f"plan@{plan.plan_hash}",
        decision_id=newest["decision_id"] if newest else "",
        evidence=() if state is None else tuple(short(gate.numbers()) for gate in state.gates.values()),
        data_through=state.clock if state is not None else None,
        steps_left=row["step"],
        stopped=bool(stop),
    )


def _rests_on(action: Action, phase: str, decisions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The decision that an answer rests on: the one that led here, and not one of an earlier step or a lifted latch."""
    newest = next(reversed(decisions), None)
    if action == "rollback":
        ended = takewhile(lambda decision: decision["phase"] == phase, reversed(decisions))
        return next(reversed(list(ended)), newest)
    if action == "advance":
        return next((decision for decision in reversed(decisions) if decision["action"] == "advance"), newest)
    return newest


def _reason(action: Action, decision: Mapping[str, Any] | None) -> str:
    """In words; what led to a step is no reason to stay there, so it is said to be past."""
    if decision is None:
        return "nothing has been decided yet"
    past = action == "hold" and decision["action"] != "hold"
    return f"nothing decided since: {decision['reason']}" if past else str(decision["reason"])


def leave(tx: Transaction, question: Question, found: CanaryAnswer, now: datetime) -> bool:
    """Whether a deployer that does not say how much traffic it gives may give the canary more, once.

    ``found`` is the answer about all of the traffic. A deployment gets one leave for each step that the rollout has
    come to: the first without evidence, because a canary without traffic has none.
    """
    if found.decision == "advance":
        return True
    if found.stopped or found.decision == "rollback" or found.phase not in {"", "running"}:
        return False
    changes.lock(tx, question.key)
    for number in range(found.steps_left + 1):
        given = Change(f"{LEAVE}:{question.key}:{number}", now, question.service, question.environment, question.name,
                       LEAVE, rollout_id=found.rollout_id)  # fmt: skip
        kept, is_new = changes.add(tx, given)
        if is_new or timedelta(0) <= now - kept.at < REPEATED:
            return True
    return False


def short(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A gate's numbers as a deployer's log has room for."""
    interval = numbers.get("interval") or {}
    return {
        "gate": numbers["gate"],
        "change": _rounded(numbers["estimate"]),
        "interval": [_rounded(interval.get("low")), _rounded(interval.get("high"))],
        "margin": _rounded(numbers["margin"]),
        "e_value": _rounded(numbers["max_e_value"]),
        "threshold": _rounded(numbers["threshold"]),
        "n_baseline": numbers["n_baseline"],
        "n_canary": numbers["n_canary"],
    }


def state_of(row: Mapping[str, Any], plan: RolloutPlan) -> tuple[RolloutState | None, str]:
    """The state, None before the first evidence; and why it cannot be read, which is no reason not to answer."""
    try:
        return (RolloutState.from_state(plan, row["state"]) if row["state"] else None), ""
    except ConfigError as error:
        return None, "" if row["phase"] in BACK else str(error)


def _stop(
    row: Mapping[str, Any], state: RolloutState | None, waiting: Sequence[Mapping[str, Any]], now: datetime
) -> str:
    """Why nothing may move, whatever was decided before; "" if nothing speaks against it."""
    if row["phase"] in BACK:
        return ""
    for order in waiting:
        if order["action"] in {"rollback", "abort", "freeze"} and order["expires_at"] > now:
            return f"{order['actor']} ordered: {order['action']} ({order['reason']}); it waits to be carried out"
    if state is not None and state.frozen_until is not None and state.frozen_until > now:
        return f"frozen until {state.frozen_until:%Y-%m-%d %H:%M} UTC"
    return ""


def _action(
    row: Mapping[str, Any], plan: RolloutPlan, state: RolloutState | None, step: float | None, *, reused: bool
) -> tuple[Action, str]:
    """What may be done, and why where no decision says so."""
    phase, action, why = row["phase"], "hold", ""
    if phase in BACK:
        return "rollback", ""
    if phase == "superseded":
        why = f"a newer release of {row['canary']!r} has taken the place of this one"
    elif phase == "shadow":
        why = "it is in its shadow phase: no user gets the canary's answer yet"
    elif phase == "complete" and reused:
        why = (
            f"several releases were called {row['canary']!r}, and the newest rollout of one is complete: name the "
            "rollout's id, or the deployment, to say that it is this one"
        )
    elif phase == "complete" or (phase == "running" and state is not None and state.watching):
        action = "advance"
    elif phase == "running" and plan.steps and step is not None:
        current = plan.steps[row["step"]].percent
        if current > step:
            action = "advance"
        elif current < step:
            why = f"the rollout is at {current:g} %, so the canary should get that, not {step:g} %"
    return ("advance" if action == "advance" else "hold"), why


def _is_reused(tx: Transaction, question: Question, row: Mapping[str, Any]) -> bool:
    if question.name == row["rollout_id"]:
        return False
    found = canaries.trials(tx, row["canary"], service=row["service"], environment=row["environment"])
    return len(found) > 1


def _rounded(value: Any) -> Any:
    """Four digits are enough for people, and few bytes; what is no number is unknown."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
