"""From claimed works to tasks: what each needs to be asked, of whom, and whether that can be done and paid for now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from evalpipe.errors import ConfigError, PermanentError
from evalpipe.judges.base import Grade
from evalpipe.judges.desk import Desk
from evalpipe.record import Record
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.grader import Grader, Outcome, Plan
from evalpipe.scorers.judged import Question, partner_of
from evalpipe.store import intake, judge_states, works
from evalpipe.store.judge_states import JudgeState
from evalpipe.store.sql import Transaction
from evalpipe.store.works import Work

PATIENCE = timedelta(minutes=10)
"""How long a shadow's answer waits for the served record that it is compared with."""
LOOK_AGAIN = timedelta(seconds=15)
"""When what cannot be done now is looked at again, unless a breaker names a time."""
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
        return {call.version.rpartition("/")[0] for call in self.plan.all_calls} if self.plan is not None else set()


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
        wasted: US dollars by judge for answers that came to nothing.
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
        tasks = []
        for group in self._groups(claimed):
            task = self._task(group, found.get(group[0].record_id), partners, look)
            look.probing.update(task.judges)
            tasks.append(task)
        keys = [call.key for task in tasks if task.plan is not None for call in task.plan.all_calls]
        known = works.known_grades(tx, keys)
        return [_with_known(task, known) for task in tasks] if known else tasks

    def siblings(self, tx: Transaction, claimed: Sequence[Work], now: datetime, lease: timedelta) -> list[Work]:
        """What the end of a claim cut off: works that share a call with the last one's."""
        if not claimed:
            return []
        last = claimed[-1]
        if last.scorecard_version not in self.cards:
            self._read_card(tx, last.scorecard_version)
        card = self.cards.get(last.scorecard_version)
        with suppress(KeyError):
            if card is not None and len(card.together(last.criterion)) > 1:
                return works.claim(tx, 100, now, lease, lane=last.lane, record_id=last.record_id)
        return []

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
        return [tuple(group) for group in groups.values()]

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
        question = self._question(card, first.criterion)
        partner = partners.get(partner_of(record))
        if question.spec.kind == "pairwise" and partner is None and record.captured_at > look.now - PATIENCE:
            raise _Later(look.now + LOOK_AGAIN, "waits for the served record that it shadows")
        step = self._step(question, look)
        return self._grader.plan(question, record, first.work_id, step=step, partner=partner, account=first.scorecard)

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

        Raises:
            _Later: there is none now.
        """
        spec = question.spec
        if look.asked:
            return spec.ladder.index([look.asked])
        whys: list[_Later] = []
        for step, models in enumerate(spec.ladder):
            asked = [*models, *([spec.escalate.to] if spec.escalate is not None else [])]
            versions = [self._desk.judge(model).version for model in asked]
            why = next((w for v in versions if (w := _unusable(look.states.get(v), v, look))), None)
            if why is None:
                return step
            whys.append(why)
        raise min(whys, key=lambda later: later.until)


@dataclass(frozen=True, slots=True)
class _Look:
    """What tells whether a judge can be asked now; ``asked`` is the one that has been, as scorecards write it."""

    states: Mapping[str, JudgeState]
    now: datetime
    probing: Counter[str]
    asked: str


class _Later(Exception):  # noqa: N818 - not an error: nothing can be done before then
    def __init__(self, until: datetime, why: str) -> None:
        super().__init__(why)
        self.until = until
        self.why = why


def _unusable(state: JudgeState | None, version: str, look: _Look) -> _Later | None:
    """When to look again and why, if the judge cannot be asked now."""
    if state is None or state.state == "closed":
        return None
    if judge_states.usable(state, look.now) and look.probing[version] < judge_states.probes(state):
        return None
    again = max(state.until_at or look.now, look.now + LOOK_AGAIN)
    return _Later(again, f"judge {version} is {state.state}: {state.reason}")


def _with_known(task: Task, known: Mapping[str, Mapping[str, Grade]]) -> Task:
    if task.plan is None:
        return task
    mine = {call.key: known[call.key] for call in task.plan.all_calls if call.key in known}
    if len(task.plan.specs) > 1:
        mine = {key: grades for key, grades in mine.items() if task.plan.specs.keys() <= grades.keys()}
    return replace(task, known=mine) if mine else task
