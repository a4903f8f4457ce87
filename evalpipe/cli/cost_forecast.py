"""What a scorecard would cost: the prompts for yesterday's records, rendered and priced, and sent to nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from math import prod, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.errors import ConfigError
from evalpipe.judges.config import judge_config
from evalpipe.judges.prices import BATCH_FACTOR, Usage, require_price
from evalpipe.record import Record
from evalpipe.scorecard.diff import compare
from evalpipe.scorecard.model import Criterion, JudgeSpec, Scorecard
from evalpipe.scorers.calls import Plan, Planned
from evalpipe.scorers.grader import Grader
from evalpipe.scorers.judged import Question, partner_of, skip_reason
from evalpipe.store import intake, judge_costs
from evalpipe.store.judge_costs import Told, Took
from evalpipe.store.sql import Transaction
from evalpipe.wiring import Wiring

SAMPLE: Final = 200
"""Records whose prompts are rendered."""
DAY: Final = timedelta(hours=24)
ENOUGH: Final = timedelta(hours=1)
"""Nothing is scaled up to a month from less."""
CHARS_PER_TOKEN: Final = 4.0
"""Of a judge that has no grades yet: as is usual in English."""
OUTPUT_TOKENS: Final = 80.0
"""Of an answer to one criterion, from a judge that has no grades yet."""
ESCALATED: Final = 0.2
"""Share of grades that a cascade's second judge is asked for, where nothing is known of the criterion."""
Z95: Final = 1.96

Costs = Mapping[str, NDArray[np.float64]]
"""US dollars by criterion, for each record of the sample."""


@dataclass(frozen=True, slots=True)
class Line:
    """A criterion before and after, in US dollars; None where it is not there.

    Attributes:
        change: added, removed, changed, or "".
        low_usd, high_usd: around ``after_usd``: 95 % for the choice of the records and for their number, with and
            without ``paid_to_reckoned``. How days differ is not known.
    """

    criterion: str
    change: str
    before_usd: float | None
    after_usd: float | None
    low_usd: float | None
    high_usd: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a change of a scorecard costs.

    Attributes:
        days: that the figures are for; None where less than an hour is known: then for the records of ``hours`` alone.
        days_from_at: when there will be figures for days; None where there are.
        changes: in words.
        records_per_day: that either version matches.
        sampled: records whose prompts were rendered.
        hours: that were looked at, up to 24.
        lines: by criterion.
        total: of them.
        paid_to_reckoned: what the version in force really cost, over what it costs by this reckoning: repairs and
            retries raise it, thinning and questions that were asked before lower it. It is in all numbers; None where
            nothing was paid.
        cap_usd: what the scorecard's own cap allows in these days; None without one, and without days.
        assumed: what could not be measured, in words.
    """

    scorecard: str
    days: float | None
    days_from_at: datetime | None
    changes: Sequence[str]
    records_per_day: float
    sampled: int
    hours: float
    lines: Sequence[Line]
    total: Line
    paid_to_reckoned: float | None
    cap_usd: float | None
    assumed: Sequence[str]


@dataclass(slots=True)
class _Measured:
    """What is known of judges, by version: characters and tokens of graded prompts, and what calls came to."""

    chars: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    criteria: dict[str, int] = field(default_factory=dict)
    cached: dict[str, float] = field(default_factory=dict)

    def add(self, judge: str, chars: int, took: Took, criteria: int) -> None:
        # A record that owes some criteria of a call only has their shares of it.
        read = round(took.input_tokens * criteria / took.criteria)
        for sums, n in ((self.chars, chars), (self.tokens, read), (self.answered, took.output_tokens),
                        (self.criteria, took.criteria)):  # fmt: skip
            sums[judge] = sums.get(judge, 0) + n

    def usage(self, judge: str, chars: int, criteria: int) -> Usage:
        ratio = self.chars[judge] / self.tokens[judge] if self.tokens.get(judge) else CHARS_PER_TOKEN
        each = self.answered[judge] / self.criteria[judge] if self.criteria.get(judge) else OUTPUT_TOKENS
        tokens = chars / ratio
        return Usage(
            input_tokens=round(tokens),
            cache_read_tokens=round(tokens * self.cached.get(judge, 0.0)),
            output_tokens=round(each * criteria),
        )


def forecast(tx: Transaction, wiring: Wiring, after: Scorecard, now: datetime, days: float) -> Forecast:
    """The cost of ``after`` instead of the scorecard of its name that is in force.

    Raises:
        ConfigError: no judge is configured, a price is unknown, or no record is there to render prompts for.
    """
    since = now - DAY
    first = judge_costs.first_record_at(tx)
    hours = max(1 / 60, min(24.0, (now - first).total_seconds() / 3600)) if first is not None else 24.0
    body = judge_costs.body_in_force(tx, after.name)
    before = Scorecard.from_body(body) if body is not None else None
    cards = [card for card in (before, after) if card is not None]
    found = judge_costs.sample(tx, lambda row: any(card.match.fits_place(row) for card in cards), since, SAMPLE)
    records = list(intake.payloads(tx, found.ids).values())
    if not records:
        raise ConfigError(
            f"no record of the last 24 hours fits {after.name!r}, so there is nothing to reckon its cost by: send some "
            "traffic first ('evalpipe ledger' shows what arrived), or look at its 'match'"
        )
    pricing = _Pricing(tx, wiring, records, after.name, since)
    if before is not None:
        pricing.measure(before)
    waits = first is not None and now - first < ENOUGH
    scale = found.n / len(records) * (1.0 if waits else 24.0 / hours * days)
    old = pricing.costs(before) if before is not None else {}
    new = pricing.costs(after)
    paid = sum(calls.cost_usd for calls in judge_costs.read_calls(tx, since) if calls.scorecard == after.name)
    reckoned = float(sum(costs.sum() for costs in old.values())) * found.n / len(records)
    ratio = paid / reckoned if paid > 0.0 and reckoned > 0.0 else None
    lines = _lines(before, after, old, new, _Scale(scale, ratio, found.n))
    none = np.zeros(len(records))
    old_total = sum(old.values(), none) if before is not None else None
    total = _line("in all", "", old_total, sum(new.values(), none), _Scale(scale, ratio, found.n))
    return Forecast(
        scorecard=after.name,
        days=None if waits else days,
        days_from_at=first + ENOUGH if first is not None and waits else None,
        changes=compare(before, after).changes if before is not None else ["it is new: nothing was scored by it yet"],
        records_per_day=found.n * 24.0 / hours,
        sampled=len(records),
        hours=hours,
        lines=lines,
        total=total,
        paid_to_reckoned=ratio,
        cap_usd=None if waits or after.judging.usd_per_day is None else after.judging.usd_per_day * days,
        assumed=pricing.assumed,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """From the records of the sample to the days of the forecast."""

    times: float
    ratio: float | None
    n: int

    def usd(self, costs: NDArray[np.float64]) -> float:
        return float(costs.sum()) * self.times * (self.ratio or 1.0)

    def range(self, costs: NDArray[np.float64]) -> tuple[float, float]:
        """95 % for the choice of the records and for how many there are; with and without what was paid for others."""
        usd, m = float(costs.sum()) * self.times, len(costs)
        relative = float(costs.std(ddof=1) / costs.mean()) if m > 1 and usd else 0.0
        error = Z95 * sqrt(relative**2 / m + 1 / self.n)
        ends = usd, usd * (self.ratio or 1.0)
        return max(0.0, min(ends) * (1 - error)), max(ends) * (1 + error)


class _Pricing:
    """Prices scorecards on the records of a sample."""

    def __init__(
        self, tx: Transaction, wiring: Wiring, records: Sequence[Record], scorecard: str, since: datetime
    ) -> None:
        self._wiring = wiring
        self._grader = Grader(wiring.desk)
        self._records = records
        self._partners = intake.payloads(tx, sorted({partner_of(record) for record in records} - {""}))
        self._tokens = judge_costs.read_tokens(tx, [record.record_id for record in records])
        self._told = judge_costs.read_told(tx, scorecard, since)
        self._measured = _Measured()
        self._escalating: dict[str, JudgeSpec] = {}
        self.assumed: list[str] = []
        self._price = cache(lambda model: require_price(judge_config(wiring.settings, model)))
        sums: dict[str, list[int]] = {}
        for calls in judge_costs.read_calls(tx, since):
            both = sums.setdefault(calls.judge, [0, 0])
            both[0] += calls.input_tokens
            both[1] += calls.cached_tokens
        self._measured.cached = {judge: cached / n for judge, (n, cached) in sums.items() if n}

    def measure(self, card: Scorecard) -> None:
        """Compare the prompts of the scorecard in force with the tokens that its grades took."""
        self._escalating = {c.name: c.judge for c in card.criteria if c.judge is not None}
        for group in _groups(card):
            question = Question({c.name: c.judge for c in group if c.judge is not None})
            for record in self._records:
                if card.matches(record) and _owing(group, record):
                    for call in self._plan(question, record).all_calls:
                        took = self._tokens.get((record.record_id, call.version, call.vote))
                        if took is not None:
                            self._measured.add(_judge(call), _chars(call), took, len(group))

    def costs(self, card: Scorecard) -> dict[str, NDArray[np.float64]]:
        """What each judged criterion costs on each record."""
        found: dict[str, NDArray[np.float64]] = {}
        for group in _groups(card):
            question = Question({c.name: c.judge for c in group if c.judge is not None})
            escalated = self._escalated(group)
            found.update({c.name: np.zeros(len(self._records)) for c in group})
            for place, record in enumerate(self._records):
                owing = _owing(group, record) if card.matches(record) else []
                if not owing:
                    continue
                rollout = record.reason.startswith("rollout:")
                usd = self._usd(self._plan(question, record), escalated, len(group))
                usd *= 1.0 if rollout else card.sampling.judge
                usd *= BATCH_FACTOR if question.spec.lane == "batch" and not rollout else 1.0
                for criterion in owing:
                    found[criterion.name][place] = usd / len(owing)
        return found

    def _plan(self, question: Question, record: Record) -> Plan:
        # Where the served answer is gone, the shadow's own is about as long.
        partner = self._partners.get(partner_of(record), record)
        return self._grader.plan(question, record, record.record_id, partner=partner)

    def _usd(self, plan: Plan, escalated: float, criteria: int) -> float:
        usd = sum(self._call_usd(call, criteria) for call in plan.calls)
        return usd + (escalated * self._call_usd(plan.second, criteria) if plan.second is not None else 0.0)

    def _call_usd(self, call: Planned, criteria: int) -> float:
        judge = _judge(call)
        if judge not in self._measured.tokens:
            note = (f"{judge} has graded none of these records: {CHARS_PER_TOKEN:g} characters a token and "
                    f"{OUTPUT_TOKENS:g} tokens an answer are assumed")  # fmt: skip
            if note not in self.assumed:
                self.assumed.append(note)
        return self._price(call.model).usd(self._measured.usage(judge, _chars(call), criteria))

    def _escalated(self, group: Sequence[Criterion]) -> float:
        """The share of records that the second judge of these criteria is asked about."""
        return 1.0 - prod(1.0 - self._escalated_alone(c.name, c.judge) for c in group if c.judge is not None)

    def _escalated_alone(self, name: str, spec: JudgeSpec) -> float:
        told = self._told.get(name)
        if spec.escalate is None:
            return 0.0
        if told is None or not told.n:
            self.assumed.append(f"{name}: that {ESCALATED:.0%} goes to the second judge is assumed")
            return ESCALATED
        before = self._escalating.get(name)
        if before is not None and before.escalate == spec.escalate and before.ladder == spec.ladder:
            return told.escalated / told.n
        self.assumed.append(f"{name}: what goes to the second judge is taken from how its scores came out")
        return _would_escalate(spec, told)


def _would_escalate(spec: JudgeSpec, told: Told) -> float:
    when = spec.escalate.when if spec.escalate is not None else []
    return ((told.unsure if "unsure" in when else 0) + (told.failed if "fail" in when else 0)) / told.n


def _lines(before: Scorecard | None, after: Scorecard, old: Costs, new: Costs, scale: _Scale) -> list[Line]:
    was = {c.name: c for c in before.criteria} if before is not None else {}
    lines = []
    for name in dict.fromkeys([*new, *old]):
        change = "added" if name not in old else "removed" if name not in new else ""
        if not change and was[name] != after.criterion(name):
            change = "changed"
        lines.append(_line(name, change, old.get(name), new.get(name), scale))
    return lines


def _line(
    name: str, change: str, before: NDArray[np.float64] | None, after: NDArray[np.float64] | None, scale: _Scale
) -> Line:
    was = None if before is None else scale.usd(before)
    if after is None:
        return Line(name, change, was, None, None, None)
    return Line(name, change, was, scale.usd(after), *scale.range(after))


def _groups(card: Scorecard) -> list[list[Criterion]]:
    """Judged criteria, those of one call together."""
    groups = {card.together(c.name)[0].name: card.together(c.name) for c in card.criteria if c.judge is not None}
    return list(groups.values())


def _owing(group: Sequence[Criterion], record: Record) -> list[Criterion]:
    return [c for c in group if c.judge is not None and skip_reason(c.judge, record) is None]


def _judge(call: Planned) -> str:
    return call.version.rpartition("/")[0]


def _chars(call: Planned) -> int:
    return len(call.prompt.system) + len(call.prompt.user)
