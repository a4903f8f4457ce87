"""From claimed works to tasks: what each needs to be asked, of whom, and whether that can be done and paid for now."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from evalpipe.errors import ConfigError, JudgeUnavailable, PermanentError
from evalpipe.judges.base import Grade
from evalpipe.judges.desk import Desk
from evalpipe.record import Record
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.calls import Outcome, Plan
from evalpipe.scorers.grader import Grader
from evalpipe.scorers.judged import Question, partner_of
from evalpipe.store import intake, judge_states, votes, works
from evalpipe.store.judge_states import JudgeState
from evalpipe.store.sql import Transaction
from evalpipe.store.works import Work

PATIENCE = timedelta(minutes=10)
"""How long a shadow's answer waits for the served record that it is compared with."""
LOOK_AGAIN = timedelta(seconds=15)
"""When what cannot be done now is looked at again, unless a breaker names a time."""
STOPPED_FOR_GOOD = timedelta(minutes=5)
"""When work is looked at again that needs a second judge whom a human stopped; it is due at once if one resumes it."""
MONEY_COMES_BACK = timedelta(seconds=20)
"""When work is looked at again whose money is held for calls under way."""


class Shed(Exception):  # noqa: N818 - not an error: it is what a cap is for
    """The work is left out, for want of money."""


@dataclass(frozen=True, slots=True)
class Task:
    """Works that one plan grades: a criterion of a record, or several that share a call.

    Attributes:
        works: as claimed; their criteria are the plan's.
        record: None where its payload is gone.
        plan: None where nothing can be asked.
        known: grades by the key of a call, and by criterion.
        error: why the works end without a call.
        wait: why they are given back, and until when; no attempt is counted.
        share: of its price that a call costs: less than 1 in a batch, where no answer is asked for once more.
    """

    works: tuple[Work, ...]
    record: Record | None = None
    plan: Plan | None = None
    known: Mapping[str, Mapping[str, Grade]] = field(default_factory=dict)
    error: Exception | None = None
    wait: tuple[datetime, str] | None = None
    share: float = 1.0

    @property
    def judges(self) -> set[str]:
        """Versions of the judges that the plan may ask."""
        if self.plan is None:
            return set()
        return {call.judge for call in (self.plan.all_calls if self.plan.away is None else self.plan.calls)}


@dataclass(frozen=True, slots=True)
class Again:
    """How works are given back that are to be tried again.

    Attributes:
        due_at: not before.
        reason: is kept with them.
        refund: the attempt does not count.
        lane: that they go to; "" for the one that they are in.
    """

    due_at: datetime
    reason: str
    refund: bool = False
    lane: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that ended: with grades, with the error that ended the attempt, or given back.

    Attributes:
        again: how it is given back, where that does not follow from the task and the error.
        wasted: US dollars by judge for answers that came to nothing, or never came and may be billed.
    """

    task: Task
    outcome: Outcome
    again: Again | None = None
    wasted: Mapping[str, float] = field(default_factory=dict)


class Tasks:
    """Makes tasks; one per worker process.

    Args:
        desk: who asks the judges.
        grader: makes the plans.
        attempts: how often work is tried.
    """

    def __init__(self, desk: Desk, grader: Grader, *, attempts: int) -> None:
        self._desk = desk
        self._grader = grader
        self._attempts = attempts
        self.cards: dict[str, Scorecard] = {}
        self._questions: dict[tuple[str, str], Question] = {}

    def make(
        self, tx: Transaction, claimed: Sequence[Work], now: datetime, under_way: Counter[str], *, model: str = ""
    ) -> list[Task]:
        """The tasks of claimed works, in their order.

        Args:
            tx: the transaction of the claim.
            claimed: works of one lane.
            now: aware UTC.
            under_way: tasks by judge version that this process has not ended yet.
            model: as scorecards write it: the one that has been asked, whatever its state is now.
        """
        for version in sorted({w.scorecard_version for w in claimed} - self.cards.keys()):
            self._read_card(tx, version)
        found = intake.payloads(tx, sorted({w.record_id for w in claimed}))
        partners = intake.payloads(tx, sorted({partner_of(record) for record in found.values()} - {""}))
        states = judge_states.read(tx)
        look = _Look(states, now, under_way.copy(), model)
        groups = self._groups(claimed)
        order = list(range(len(groups)))
        if any(state.state != "closed" for state in states.values()):
            # Who is a probe is left to chance: were it always the first, one request that the provider refuses could
            # be the only one that it is ever asked.
            random.shuffle(order)
        made: dict[int, Task] = {}
        for place in order:
            group = groups[place]
            made[place] = self._task(group, found.get(group[0].record_id), partners, look)
            look.probing.update(made[place].judges)
        tasks = [made[place] for place in range(len(groups))]
        for (version, criteria), later in look.idle.items():
            works.put_off(tx, version, criteria, later.until, later.why, now, claimed[0].lane)
        return self._with_known(tx, tasks)

    def siblings(self, tx: Transaction, claimed: Sequence[Work], now: datetime, lease: timedelta) -> list[Work]:
        """What the claim left out of works that share a call with claimed ones: they must not be asked twice."""
        for version in sorted({w.scorecard_version for w in claimed} - self.cards.keys()):
            self._read_card(tx, version)
        missing: set[str] = set()
        for item in claimed:
            card = self.cards.get(item.scorecard_version)
            with suppress(KeyError):
                if card is not None and len(together := card.together(item.criterion)) > 1:
                    missing.update(replace(item, criterion=c.name).work_id for c in together)
        missing -= {w.work_id for w in claimed} if missing else set()
        if not missing:
            return []
        return works.claim(tx, len(missing), now, lease, lane=claimed[0].lane, work_ids=sorted(missing))

    def _with_known(self, tx: Transaction, tasks: Sequence[Task]) -> list[Task]:
        """The tasks, with what need not be asked for: it is known of an equal question, or the work's own vote."""
        plans = [task.plan for task in tasks if task.plan is not None]
        known = votes.known_grades(tx, [call.key for plan in plans for call in plan.all_calls])
        several = [task for task in tasks if task.plan is not None and len(task.plan.all_calls) > 1]
        failed = votes.failed_votes(tx, [item.work_id for task in several for item in task.works])
        return [_with_known(task, known, failed) for task in tasks] if known or failed else list(tasks)

    def _read_card(self, tx: Transaction, version: str) -> None:
        body = intake.scorecard_body(tx, version)
        # One that an older code wrote and this one cannot read must not stop the work of all others.
        with suppress(ValueError):
            self.cards[version] = Scorecard.from_body(body or {})

    def _groups(self, claimed: Sequence[Work]) -> list[tuple[Work, ...]]:
        groups: dict[tuple[str, str, str], list[Work]] = {}
        for item in claimed:
            card = self.cards.get(item.scorecard_version)
            word = ""
            if card is not None:
                with suppress(KeyError):
                    word = card.together(item.criterion)[0].name
            key = item.record_id, item.scorecard_version, word or item.criterion
            groups.setdefault(key, []).append(item)
        # The one that was tried most counts for all of them.
        return [tuple(sorted(group, key=lambda w: -w.attempts)) for group in groups.values()]

    def _task(
        self,
        group: tuple[Work, ...],
        record: Record | None,
        partners: Mapping[str, Record],
        look: _Look,
    ) -> Task:
        try:
            return Task(group, record, self._plan(group[0], record, partners, look))
        except _Later as later:
            return Task(group, record, wait=(later.until, later.why))
        except (ConfigError, PermanentError) as error:
            return Task(group, record, error=error)

    def _plan(self, first: Work, record: Record | None, partners: Mapping[str, Record], look: _Look) -> Plan:
        """What is to be asked.

        Raises:
            ConfigError, PermanentError: the work ends without a call.
            _Later: nothing can be asked now.
        """
        if first.attempts > self._attempts:
            started = f"started {first.attempts} times and never ended"
            raise PermanentError(f"{started}: its workers died, or lost their lease")
        card = self.cards.get(first.scorecard_version)
        if card is None:
            raise PermanentError(f"this code cannot read scorecard {first.scorecard}@{first.scorecard_version}")
        if record is None:
            raise PermanentError("the record's payload has been erased or cannot be read")
        try:
            question = self._question(card, first.criterion)
        except KeyError:
            missing = f"scorecard {first.scorecard}@{first.scorecard_version} has no criterion {first.criterion!r}"
            raise PermanentError(missing) from None
        partner = partners.get(partner_of(record))
        if question.spec.kind == "pairwise" and partner is None and record.captured_at > look.now - PATIENCE:
            raise _Later(look.now + LOOK_AGAIN, "waits for the served record that it shadows")
        try:
            step = self._step(question, look)
        except _Later as later:
            if later.for_all:
                look.idle[first.scorecard_version, tuple(question.specs)] = later
            raise
        made = self._grader.plan(question, record, first.work_id, step=step, partner=partner, account=first.scorecard)
        return made if look.asked else _with_away(made, look)

    def _question(self, card: Scorecard, criterion: str) -> Question:
        """What is asked for a criterion, and for all that share its call: also those that this record does not owe.

        The question is part of the epoch, so it must not change with what a record lacks.
        """
        together = card.together(criterion)
        key = card.version, together[0].name
        if key not in self._questions:
            self._questions[key] = Question({c.name: c.judge for c in together if c.judge is not None})
        return self._questions[key]

    def _step(self, question: Question, look: _Look) -> int:
        """The first step of the ladder whose judges can all be asked, or the one of the judge that has been.

        The second judge of a cascade is not waited for here: few records need it.

        Raises:
            _Later: there is none now.
        """
        spec = question.spec
        if look.asked:
            return spec.ladder.index([look.asked])
        whys: list[_Later] = []
        for step, models in enumerate(spec.ladder):
            asked = [*models, *([spec.escalate.to] if spec.escalate is not None else [])]
            try:
                versions = [self._desk.judge(model).version for model in asked][: len(models)]
            except ConfigError:
                if step == 0:
                    raise
                continue  # nobody to turn to: that ends no work that only has to wait
            why = next((w for v in versions if (w := _unusable(look.states.get(v), v, look))), None)
            if why is None:
                return step
            whys.append(why)
        first = min(whys, key=lambda later: later.until)
        raise _Later(first.until, first.why, for_all=all(why.for_all for why in whys))


@dataclass(frozen=True, slots=True)
class _Look:
    """What tells whether a judge can be asked now; ``asked`` is the one that has been, as scorecards write it.

    ``idle`` are criteria, by scorecard version and names, for which nobody can be asked whatever the record is.
    """

    states: Mapping[str, JudgeState]
    now: datetime
    probing: Counter[str]
    asked: str
    idle: dict[tuple[str, tuple[str, ...]], _Later] = field(default_factory=dict)


class _Later(Exception):  # noqa: N818 - not an error: nothing can be done before then
    """``for_all``: whatever the record is."""

    def __init__(self, until: datetime, why: str, *, for_all: bool = False) -> None:
        super().__init__(why)
        self.until = until
        self.why = why
        self.for_all = for_all


def _unusable(state: JudgeState | None, version: str, look: _Look) -> _Later | None:
    """When to look again and why, if the judge cannot be asked now."""
    if state is None or state.state == "closed":
        return None
    usable = judge_states.usable(state, look.now)
    if usable and look.probing[version] < judge_states.probes(state):
        return None
    again = max(state.until_at or look.now, look.now + LOOK_AGAIN)
    return _Later(again, f"{judge_states.waiting_for(version)}{state.state}: {state.reason}", for_all=not usable)


def _with_away(plan: Plan, look: _Look) -> Plan:
    """The plan, with why its second judge cannot be asked now."""
    judge = plan.second.judge if plan.second is not None else ""
    why = _unusable(look.states.get(judge), judge, look)
    if why is None:
        return plan
    wait = why.until - look.now
    if why.for_all and look.states[judge].until_at is None:
        wait = STOPPED_FOR_GOOD
    return replace(plan, away=JudgeUnavailable(why.why, retry_after_s=wait.total_seconds(), cause="paused"))


def _with_known(
    task: Task,
    known: Mapping[str, Mapping[str, Grade]],
    failed: Mapping[str, Mapping[str, Mapping[str, Grade]]],
) -> Task:
    if task.plan is None:
        return task
    owed = {item.criterion for item in task.works}
    mine: dict[str, dict[str, Grade]] = {}
    for call in task.plan.all_calls:
        own = [failed[item.work_id].get(call.key, {}) for item in task.works if item.work_id in failed]
        found = dict(known.get(call.key, {}))
        for grades in own:
            found.update(grades)
        # Alone in its call, a criterion's name is no part of the question.
        if found and (len(task.plan.specs) == 1 or owed <= found.keys()):
            mine[call.key] = found
    return replace(task, known=mine) if mine else task
