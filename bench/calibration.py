"""How well the correction for a judge's error works, and how a judge does on pairs that people compared.

    python bench/calibration.py [--json] [--quick] [--judge provider:model] [--pairs 20]

1. Coverage: 95 % intervals that should hold the true pass rate (or mean), of simulated judges. `raw` is the interval of
   the judge's grades alone.
2. With --judge: LLMBar (Zeng et al. 2023, arXiv 2310.07641), pairs of answers with the one that people prefer, graded
   as kind `pairwise` in both orders. The data is read from ../shared/data/llmbar; without it this part is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from evalpipe.stats.agreement import share
from evalpipe.stats.bias import by_position
from evalpipe.stats.correction import Labelled, prediction_powered, rogan_gladen
from evalpipe.stats.mean_interval import mean_interval

LLMBAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "llmbar"
SETS = ("natural", "adversarial_manual", "adversarial_gptout")
JUDGES = ((0.9, 0.9, 0.7), (0.95, 0.8, 0.9), (0.85, 0.95, 0.85), (0.7, 0.8, 0.5), (0.9, 0.995, 0.8))
"""Sensitivity, specificity, true pass rate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="fewer runs, to see that it works")
    parser.add_argument("--judge", default="", help="grade pairs with this judge, too")
    parser.add_argument("--pairs", type=int, default=20, help="so many of each of the three sets")
    options = parser.parse_args()
    runs = 200 if options.quick else 4000
    found: dict[str, Any] = {"runs": runs, "coverage": coverage(runs), "pairs": []}
    if options.judge and LLMBAR.exists():
        found["judge"] = options.judge
        found["pairs"] = [asyncio.run(graded(options.judge, name, options.pairs)) for name in SETS]
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'judge':<38}{'labels':>8}{'raw':>8}{'corrected':>11}{'width':>8}   ({runs} runs)")
    for row in found["coverage"]:
        print(f"{row['judge']:<38}{row['labels']:>8}{row['raw']:>8.1%}{row['corrected']:>11.1%}{row['width']:>8.3f}")
    if not options.judge:
        print("\nPairs that people compared: left out without --judge.")
    elif not LLMBAR.exists():
        print(f"\nPairs that people compared: left out, {LLMBAR} is not there.")
    for row in found["pairs"]:
        value, low, high = row["agreed"]
        print(
            f"{row['set']:<20} n {row['n']:>3}  prefers as people do {value:.0%} [{low:.0%} to {high:.0%}]"
            f"  flips {row['flipped']:.0%}  first wins {row['first']}  ties {row['ties']}  {row['seconds']:.0f} s"
        )


def coverage(runs: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = []
    for sensitivity, specificity, rate in JUDGES:
        for n in (60, 150, 400):
            told = f"sens {sensitivity:g} spec {specificity:g} rate {rate:g}"
            rows.append(_row(told, n, [_pass_rate(rng, sensitivity, specificity, rate, n) for _ in range(runs)]))
    return rows + [
        _row("five grades, too kind by 0.06", n, [_mean(rng, n) for _ in range(runs)]) for n in (60, 150, 400)
    ]


def _row(told: str, n: int, runs: list[tuple[bool, bool | None, float]]) -> dict[str, Any]:
    given = [(inside, width) for _, inside, width in runs if inside is not None]
    return {
        "judge": told,
        "labels": n,
        "raw": sum(raw for raw, _, _ in runs) / len(runs),
        "corrected": sum(inside for inside, _ in given) / len(given),
        "refused": 1 - len(given) / len(runs),
        "width": sum(width for _, width in given) / len(given),
    }


def _pass_rate(
    rng: Any, sensitivity: float, specificity: float, rate: float, n: int
) -> tuple[bool, bool | None, float]:
    people = rng.random(n) < rate
    judge = np.where(people, rng.random(n) < sensitivity, rng.random(n) >= specificity)
    k = rng.binomial(2000, rate * sensitivity + (1 - rate) * (1 - specificity))
    raw = mean_interval(2000, 2000, k, k)
    fixed = rogan_gladen(raw, Labelled.of(zip(people.astype(float), judge.astype(float), np.ones(n), strict=True)))
    return _inside(raw, fixed, rate)


def _mean(rng: Any, n: int) -> tuple[bool, bool | None, float]:
    def grades(size: int) -> tuple[Any, Any]:
        people = rng.choice(5, size, p=[0.05, 0.1, 0.15, 0.3, 0.4])
        return people / 4, np.minimum(people + (rng.random(size) < 0.4), 4) / 4

    people, judge = grades(n)
    _, others = grades(2000)
    raw = mean_interval(2000, 2000, others.sum(), (others**2).sum())
    fixed = prediction_powered(raw, Labelled.of(zip(people, judge, np.ones(n), strict=True)), whole=2000.0)
    return _inside(raw, fixed, 0.725)


def _inside(raw: Any, fixed: Any, truth: float) -> tuple[bool, bool | None, float]:
    held = None if fixed.mean is None else fixed.low <= truth <= fixed.high
    return raw.low <= truth <= raw.high, held, 0.0 if fixed.mean is None else fixed.high - fixed.low


async def graded(judge: str, name: str, n: int) -> dict[str, Any]:
    """A judge on one of the sets, one pair after the other: local models answer one at a time."""
    from evalpipe.judges.config import open_judge, parse_judge
    from evalpipe.judges.desk import Desk
    from evalpipe.scorecard.criterion import JudgeSpec
    from evalpipe.scorecard.written import WrittenRecord
    from evalpipe.scorers.grader import Grader
    from evalpipe.scorers.judged import Question
    from evalpipe.wiring import now

    rows = json.loads((LLMBAR / f"{name}.json").read_text(encoding="utf-8"))
    rows = random.Random(1).sample(rows, min(n, len(rows)))
    spec = JudgeSpec(kind="pairwise", rubric="Which answer follows the instruction in INPUT better?", model=judge)
    desk = Desk(lambda model: open_judge(parse_judge(model)), clock=now)
    grader, question = Grader(desk), Question({"better": spec})
    right, ties, orders, started = 0, 0, [], time.perf_counter()
    for i, row in enumerate(rows):
        one, two = (
            WrittenRecord(input=row["input"], output=row[f"output_{k}"]).record(f"{name}-{i}-{k}") for k in (1, 2)
        )
        outcome = await grader.run(grader.plan(question, one, f"{name}-{i}", partner=two), attempts_left=2)
        grade = outcome.graded["better"].grade if outcome.error is None else None
        if grade is None or grade.value is None:
            continue
        ties += grade.value == 0.5
        right += (grade.value > 0.5) == (row["label"] == 1) and grade.value != 0.5
        by_role = {vote.call.role: vote.grade.value for vote in outcome.votes}
        orders.append((by_role["first"], by_role["swapped"]))
    await desk.aclose()
    agreed, position = share(right, len(orders)), by_position(orders)
    return {
        "set": name,
        "n": len(orders),
        "unanswered": len(rows) - len(orders),
        "agreed": [agreed.value or 0.0, agreed.low or 0.0, agreed.high or 0.0],
        "ties": ties,
        "flipped": (position.flipped.value or 0.0) if position else 0.0,
        "first": None if position is None or position.first.value is None else round(position.first.value, 2),
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    main()
