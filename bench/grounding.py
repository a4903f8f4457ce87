"""How well heuristics tell the demo's releases apart, and right answers from wrong ones: area under the ROC curve.

    python bench/grounding.py [--json]

The recording is examples/support_desk/conversations.jsonl, the policy of each question is its context. `arms` is the
chance that an answer of the baseline scores higher than one of the canary; `right` that an answer labelled right scores
higher than one labelled wrong, and `right, baseline` the same among the answers of the baseline. 0.5 is chance. Skipped
answers are left out and counted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from evalpipe.record import Record, Release
from evalpipe.scorers.base import heuristics

DESK = Path(__file__).parent.parent / "examples" / "support_desk"
CASES = (
    ("citation", {}),
    ("citation", {"style": "anywhere"}),
    ("grounding", {}),
    ("grounding", {"claims_weight": 1.0}),
    ("grounding", {"claims_weight": 0.0}),
    ("grounding", {"trust_input": False}),
    ("length", {"max": 40}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    options = parser.parse_args()
    rows = measure()
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'heuristic':<34}{'n':>5}{'skipped':>9}{'arms':>7}{'right':>7}{'right, baseline':>17}   means")
    for row in rows:
        areas = "".join(f"{row[k]:>{w}.2f}" for k, w in (("arms", 7), ("right", 7), ("right_baseline", 17)))
        means = f"   baseline {row['mean_baseline']:.2f}, canary {row['mean_canary']:.2f}"
        print(f"{row['heuristic']:<34}{row['n']:>5}{row['skipped']:>9}{areas}{means}")


def measure() -> list[dict]:
    rows = read("conversations.jsonl")
    right = {row["conversation_id"]: bool(row["correct"]) for row in read("labels.jsonl")}
    result = []
    for name, params in CASES:
        heuristic = heuristics.get(name)
        made = heuristic(heuristic.Params(**params))
        scores = [(row, made.score(record(row)).value) for row in rows]
        scored = [(row, value) for row, value in scores if value is not None]
        arm = [(value, row["release"] == "baseline") for row, value in scored]
        labelled = [(row, value) for row, value in scored if row["conversation_id"] in right]
        truth = [(value, right[row["conversation_id"]]) for row, value in labelled]
        own = [(value, right[row["conversation_id"]]) for row, value in labelled if row["release"] == "baseline"]
        written = " ".join(f"{key}={value}" for key, value in params.items())
        result.append({
            "heuristic": f"{name} {written}".strip(),
            "n": len(rows),
            "skipped": len(rows) - len(scored),
            "arms": area(arm),
            "right": area(truth),
            "right_baseline": area(own),
            "mean_baseline": mean(arm, lambda is_baseline: is_baseline),
            "mean_canary": mean(arm, lambda is_baseline: not is_baseline),
        })  # fmt: skip
    return result


def area(pairs: list[tuple[float, bool]]) -> float:
    """The chance that a true pair's value is above a false one's; ties count half."""
    yes, no = ([value for value, is_true in pairs if is_true == wanted] for wanted in (True, False))
    if not yes or not no:
        return float("nan")
    return sum((a > b) + (a == b) / 2 for a, b in product(yes, no)) / (len(yes) * len(no))


def mean(pairs: list[tuple[float, bool]], wanted: Callable[[bool], bool]) -> float:
    values = [value for value, is_true in pairs if wanted(is_true)]
    return sum(values) / len(values) if values else float("nan")


def record(row: dict) -> Record:
    text = (DESK / "policies" / f"{row['policy']}.md").read_text(encoding="utf-8").split("---\n", 2)[2].strip()
    return Record(
        record_id=row["conversation_id"],
        trace_id=row["conversation_id"],
        captured_at=datetime(2026, 11, 22, tzinfo=UTC),
        release=Release(service="support-desk", variant=row["release"]),
        messages=row["messages"],
        context=[{"id": row["policy"], "text": text}],
        output=row["answer"],
        finish_reason=row["finish_reason"],
    )


def read(name: str) -> list[dict]:
    path = DESK / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
