"""What a rollout is decided on, in the order in which it was folded: evidence, meter readings, overrides, health, time.

A rollout's log keeps these as they were folded, so a replay sees the same inputs in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple

from evalpipe.score import Status
from evalpipe.stats.matching import Arm


class Evidence(NamedTuple):
    """One score as a rollout sees it.

    Attributes:
        seq: place in the rollout's order, which is that of arrival and not of the judges' answers; with ``criterion``
            unique.
        at: when the record was captured, aware UTC.
        arm: which release answered.
        unit: user or conversation; one score of each enters a test.
        criterion: what was scored, or one of ``evalpipe.scorecard.rollout.MEASURED``.
        value: in [0, 1] (USD or ms for ``MEASURED``); None unless the status is scored.
        weight: 1 / inclusion probability.
        status: how the score came out.
        epoch: scorecard and judge version; scores of different epochs are never compared.
        pair: shadow only: names the input that both arms answered.
        segment: of traffic; "" where the plan watches none.
        suspect: the judge was under suspicion when it answered; such a score is counted and set aside.
    """

    seq: int
    at: datetime
    arm: Arm
    unit: str
    criterion: str
    value: float | None
    weight: float = 1.0
    status: Status = Status.SCORED
    epoch: str = ""
    pair: str = ""
    segment: str = ""
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class MeterReading:
    """What the meters counted of one arm since the reading before: all of its calls.

    Attributes:
        at: until when, aware UTC.
        arm: which release answered.
        calls: how many there were.
        latency, ttft: how many by bin of ``evalpipe.sketch``.
    """

    at: datetime
    arm: Arm
    calls: int
    latency: Mapping[int, int] = field(default_factory=dict)
    ttft: Mapping[int, int] = field(default_factory=dict)


OverrideAction = Literal["advance", "rollback", "freeze", "resume", "abort"]


@dataclass(frozen=True, slots=True)
class Override:
    """What a person ordered; it is a decision in the same log.

    Attributes:
        action: advance one step, roll back, freeze (nothing advances until ``expires_at``), resume (ends a freeze,
            lifts the latch of a rollback), abort (ends the rollout; traffic goes back to the baseline).
        actor, reason: who, and why.
        at: when, aware UTC.
        expires_at: until when it holds, aware UTC; a freeze ends then, another order is void if it was not folded by
            then.
    """

    action: OverrideAction
    actor: str
    reason: str
    at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the judges can be relied on just now.

    Attributes:
        judge: ``outage`` if grades do not come, ``suspect`` if they cannot be trusted.
        detail: why, for the reason of a decision.
    """

    judge: Literal["ok", "outage", "suspect"] = "ok"
    detail: str = ""


HEALTHY: Final = Health()


@dataclass(frozen=True, slots=True)
class Batch:
    """What is folded at once: one row of the rollout's log.

    Overrides come first, then meter readings, then the evidence; each criterion's evidence in the order of its ``seq``.

    Attributes:
        now: the clock, aware UTC; while more evidence waits, the capture time of the last of this batch, so that what
            waits is not taken for silence.
        health: of the judges that gave this evidence.
    """

    now: datetime
    health: Health = HEALTHY
    overrides: tuple[Override, ...] = ()
    meter: tuple[MeterReading, ...] = ()
    evidence: tuple[Evidence, ...] = ()
