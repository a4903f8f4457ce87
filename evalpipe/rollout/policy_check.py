"""Running the tests that a policy carries, by the fold that decides in production."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median
from typing import Any

from evalpipe.rollout.backtest import Rehearsed, comparison, rehearse
from evalpipe.rollout.decision import Decision
from evalpipe.rollout.from_policy import plan_of
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.streams import START, Streamed, streamed
from evalpipe.scorecard.policy_test import PolicyExpectation, PolicyTest
from evalpipe.scorecard.rollout import RolloutPolicy


@dataclass(slots=True)
class PolicyResult:
    """What came of one test.

    Attributes:
        test: as written.
        runs: how many were made.
        met: in how many of them the decision came in time.
        decisions: what came of the runs, as ``rollback by quality (harm_proven)``.
        canary: canary values until the decision, in the runs that met it.
    """

    test: PolicyTest
    runs: int = 0
    met: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    canary: list[int] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the runs that met the expectation."""
        return self.met / self.runs if self.runs else 0.0

    @property
    def passed(self) -> bool:
        """Whether that is what is expected."""
        expect = self.test.expect
        least = expect.at_least if expect.at_least is not None else None if expect.at_most is not None else 1.0
        enough = least is None or self.share >= least
        return enough and (expect.at_most is None or self.share <= expect.at_most)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "test": self.test.name,
            "passed": self.passed,
            "expected": in_words(self.test.expect),
            "runs": self.runs,
            "met": self.met,
            "share": self.share,
            "median_canary": median(self.canary) if self.canary else None,
            "decisions": dict(self.decisions.most_common()),
        }

    def told(self) -> str:
        """What was expected, and what came."""
        came = ", ".join(f"{n:,} {what}" for what, n in self.decisions.most_common(4))
        after = f", after {median(self.canary):,.0f} canary values (median)" if self.canary else ""
        return f"expected {in_words(self.test.expect)}; it came in {self.met:,} of {self.runs:,} runs{after}: {came}"


def in_words(expect: PolicyExpectation) -> str:
    """An expectation as a sentence's part."""
    words: str = expect.decision
    words += f" by {expect.gate}" if expect.gate else ""
    words += f" ({expect.cause})" if expect.cause else ""
    if isinstance(expect.within, timedelta):
        words += f" within {expect.within}"
    elif expect.within is not None:
        words += f" within {expect.within:,} canary values"
    if expect.at_least is not None:
        words += f" in at least {expect.at_least:.4g} of the runs"
    if expect.at_most is not None:
        words += f" in at most {expect.at_most:.4g} of the runs"
    return words


def run_policy_test(policy: RolloutPolicy, test: PolicyTest) -> Iterator[PolicyResult]:
    """The result after each run; the last is that of the test.

    The policy judges one comparison, as in a backtest: gates on criteria of which the test has no stream are left out,
    and the ramp is not climbed.
    """
    plan = plan_of(policy, rollout_id="test", service="test", steps=False)
    result = PolicyResult(test)
    for run in range(test.repeat):
        stream = streamed(test, run)
        part = comparison(plan, stream.criteria, pairs=stream.pairs, expires="max_duration" in policy.model_fields_set)
        rehearsed = None if part is None else rehearse(part, stream.evidence, START)
        _count(result, rehearsed, stream, part)
        yield result


def _count(result: PolicyResult, rehearsed: Rehearsed | None, stream: Streamed, plan: RolloutPlan | None) -> None:
    result.runs += 1
    if rehearsed is None or plan is None:
        result.decisions["nothing: no gate reads these criteria"] += 1
        return
    expect = result.test.expect
    standing = rehearsed.decision
    result.decisions[_what(standing)] += 1
    if expect.decision == "hold":
        turned = [entry for entry in rehearsed.log if entry.action != "hold"]
        result.met += not turned and _fits(expect, standing)
        return
    for decision in rehearsed.log:
        if _fits(expect, decision):
            place = decision.evidence_seq
            n = int(stream.canary[place]) if place >= 0 else 0
            if _in_time(expect, decision, n):
                result.met += 1
                result.canary.append(n)
            return


def _fits(expect: PolicyExpectation, decision: Decision) -> bool:
    return (
        decision.action == expect.decision
        and expect.gate in ("", decision.gate, decision.gate.rpartition(" ")[0])
        and expect.cause in ("", decision.cause)
    )


def _in_time(expect: PolicyExpectation, decision: Decision, canary: int) -> bool:
    if isinstance(expect.within, timedelta):
        return decision.decided_at - START <= expect.within
    return expect.within is None or canary <= expect.within


def _what(decision: Decision) -> str:
    return f"{decision.action}{f' by {decision.gate}' if decision.gate else ''} ({decision.cause})"
