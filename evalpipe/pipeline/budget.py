"""What tasks may cost at the most, and what they did: between the tasks of judges and the purse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from evalpipe.errors import ConfigError, JudgeUnavailable
from evalpipe.judges.base import Prompt
from evalpipe.pipeline.judging import MONEY_COMES_BACK, Ended, Shed, Task
from evalpipe.scorers.calls import Outcome, Plan
from evalpipe.store import purse
from evalpipe.store.purse import Want
from evalpipe.store.sql import Transaction

LESS_URGENT = 5
"""Work of this priority or more is thinned when money is short: neither safety nor a running rollout waits for it."""
REPAIR_CHARS = 1_600
"""Bound, in bytes, on what the second question after an answer that is no grade says on top of the first."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The caps that hold, and what a call can cost.

    Attributes:
        caps: US dollars a UTC day by scope of the purse.
        worst_case: US dollars that one call to a judge can cost at the most.
    """

    caps: Mapping[str, float] = field(default_factory=dict)
    worst_case: Callable[[str, Prompt], float] = lambda _model, _prompt: 0.0

    def admit(self, tx: Transaction, tasks: Sequence[Task], now: datetime) -> list[Task]:
        """The tasks with their worst cases reserved; those that cannot be paid for are to be shed, or to wait.

        What has no known price ends without a call: it was owed by a scorecard that is no longer there to be checked.
        """
        if not self.caps:
            return list(tasks)
        wants, found = [], []
        priced: list[Task] = []
        for task in tasks:
            try:
                wants += self.wants([task])
                priced.append(task)
            except ConfigError as error:
                priced.append(replace(task, plan=None, error=error))
        told = purse.reserve(tx, wants, self.caps, now)
        for task in priced:
            work_id = task.works[0].work_id
            if (why := told.refused.get(work_id)) is not None:
                found.append(replace(task, plan=None, error=Shed(why)))
            elif (why := told.waiting.get(work_id)) is not None:
                found.append(replace(task, plan=None, wait=(now + MONEY_COMES_BACK, why)))
            else:
                kept = tuple(replace(w, weight=w.weight / told.kept.get(w.work_id, 1.0)) for w in task.works)
                found.append(replace(task, works=kept) if told.kept else task)
        return found

    def wants(self, tasks: Sequence[Task]) -> list[Want]:
        """What the tasks that ask somebody may cost.

        Raises:
            ConfigError: nobody knows a judge's price.
        """
        found = []
        for task in tasks:
            if task.plan is not None:
                first, *others = task.works
                scopes = purse.scopes(first.scorecard, self._worst(task.plan, task.known, task.share))
                urgent = first.priority < LESS_URGENT
                found.append(Want(first.work_id, scopes, urgent, tuple(item.work_id for item in others)))
        return found

    def lost(self, outcome: Outcome) -> dict[str, float]:
        """By judge: the worst case of calls whose answers never reached us, though the provider may bill them."""
        usd: dict[str, float] = defaultdict(float)
        for call, error in outcome.failed:
            if isinstance(error, JudgeUnavailable) and error.may_be_billed:
                with suppress(ConfigError):  # nobody knows the price: no cap is kept for this judge
                    usd[call.judge] += self.worst_case(call.model, call.prompt)
        return usd

    def _worst(self, plan: Plan, known: Mapping[str, object], share: float) -> dict[str, float]:
        """By judge: every call that may be made, each with the one that mends its answer; in a batch there is none."""
        usd: dict[str, float] = defaultdict(float)
        for call in plan.all_calls:
            if call.key not in known:
                usd[call.judge] += share * self.worst_case(call.model, call.prompt)
                if share == 1.0:
                    mending = replace(call.prompt, user=call.prompt.user + " " * REPAIR_CHARS)
                    usd[call.judge] += self.worst_case(call.model, mending)
        return usd


def paid(ended: Sequence[Ended]) -> dict[str, dict[str, float]]:
    """US dollars that tasks cost, by the work that holds the money and by scope."""
    found = {}
    for e in ended:
        usd: dict[str, float] = defaultdict(float, e.wasted)
        for vote in e.outcome.votes:
            if vote.grade.answer is not None:
                usd[vote.call.judge] += vote.grade.answer.cost_usd or 0.0
        first = e.task.works[0]
        found[first.work_id] = purse.scopes(first.scorecard, usd) if usd else {}
    return found
