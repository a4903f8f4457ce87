"""What a score costs: microseconds of CPU in the engine and the fold, size of the state, a million scores replayed."""

from __future__ import annotations

import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from decisions.figures import Row
from evalpipe.rollout.fold import fold_into
from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.inputs import Batch, Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.stats.matched_block import MatchedBlock

PART = "engine-cost"
ABOUT = "Microseconds of CPU a score (median of rounds), with equal arms, so that no rollback ends it."
START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = "gates: [{criterion: quality, margin: 5%}]\n"


def rows(*, quick: bool) -> Iterator[Row]:
    """The part's lines."""
    n, rounds = (5_000, 2) if quick else (100_000, 5)
    scores, nine = _evidence(n, 2), _evidence(n, 10)
    yield _us("matched-block engine, 1:1", n, rounds, lambda: _engine(scores), 5.0)
    yield _us("matched-block engine, 9:1", n, rounds, lambda: _engine(nine), 5.0)
    yield _us("the quality gate: both tests, interval, units, weights", n, rounds, lambda: _gate(scores), None)
    yield _us("fold() with that gate: order, hash, decisions", n, rounds, lambda: _fold(scores), None)
    yield from _size(n)
    million = 20_000 if quick else 1_000_000
    for rollouts in (1, 1_000):
        yield _replay(million, rollouts)


def _evidence(n: int, every: int) -> list[Evidence]:
    rng = random.Random(1)
    values = rng.choices((0.0, 0.25, 0.5, 0.75, 1.0), (0.0202, 0.0398, 0.0887, 0.2224, 0.6289), k=n)
    return [
        Evidence(
            i, START + timedelta(seconds=i), "canary" if i % every == every - 1 else "baseline", f"u{i}", "quality", x
        )
        for i, x in enumerate(values)
    ]


def _plan() -> RolloutPlan:
    return RolloutPlan(
        "bench", "service", "baseline", "canary", (Gate("quality", "quality"),), max_duration=timedelta(days=9999)
    )


def _engine(evidence: list[Evidence]) -> None:
    add = MatchedBlock().add
    for entry in evidence:
        add(entry.arm, entry.value or 0.0)


def _gate(evidence: list[Evidence]) -> MeanGate:
    plan = _plan()
    gate = MeanGate(plan.gates[0], plan)
    for entry in evidence:
        gate.take(entry)
    return gate


def _fold(evidence: list[Evidence]) -> RolloutState:
    plan = _plan()
    state = RolloutState.start(plan, START)
    for i in range(0, len(evidence), 500):
        part = tuple(evidence[i : i + 500])
        fold_into(plan, state, Batch(part[-1].at, evidence=part))
    return state


def _us(name: str, n: int, rounds: int, work: Callable[[], Any], target: float | None) -> Row:
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        spent.append((time.process_time() - began) / n * 1e6)
    value = statistics.median(spent)
    return _row(name, "cpu", value, "us", target, f"{min(spent):.2f} - {max(spent):.2f}")


def _size(n: int) -> Iterator[Row]:
    """State and memory after a tenth of the scores and after all."""
    evidence, plan = _evidence(n, 2), _plan()
    gate = MeanGate(plan.gates[0], plan)
    sizes, memory = [], []
    tracemalloc.start()
    for i, entry in enumerate(evidence, 1):
        gate.take(entry)
        if i in {n // 10, n // 2, n}:
            memory.append(tracemalloc.get_traced_memory()[0])
            sizes.append(len(json.dumps(gate.to_state())))
    tracemalloc.stop()
    told = " / ".join(f"{size / 1024:.0f}" for size in sizes)
    yield _row("state of the gate as JSON (a tenth / half / all)", "size", sizes[-1] / 1024, "KiB", None, told)
    grown = (memory[-1] - memory[1]) / 1024
    yield _row("memory grown over the second half", "grown", grown, "KiB", 64.0, f"{n // 2:,} scores")


def _replay(n: int, rollouts: int) -> Row:
    """`evalpipe backtest` on a CSV file, from the start of the process to its end."""
    with tempfile.TemporaryDirectory(prefix="evalpipe-bench-") as folder:
        scores, policy = Path(folder) / "scores.csv", Path(folder) / "policy.yaml"
        policy.write_text(POLICY)
        _write(scores, n, rollouts)
        command = [
            sys.executable,
            "-m",
            "evalpipe",
            "backtest",
            "--policy",
            str(policy),
            "--scores",
            str(scores),
            "--json",
        ]
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"PYTHONPATH": _root()})
        took = time.perf_counter() - began
        lines = done.stdout.decode().strip()
        found = json.loads(lines) if lines.startswith("[") else [json.loads(line) for line in lines.splitlines()]
    wrong = sum(entry["decision"] == "rollback" for entry in found)
    return _row(
        f"evalpipe backtest, {n:,} scores, {rollouts:,} rollout{'s'[: rollouts > 1]}", "wall", took, "s", 10.0,
        f"{len(found):,} told, {wrong} back",
    )  # fmt: skip


def _write(path: Path, n: int, rollouts: int) -> None:
    rng = random.Random(2)
    values = rng.choices((0.0, 0.25, 0.5, 0.75, 1.0), (0.0202, 0.0398, 0.0887, 0.2224, 0.6289), k=n)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["rollout", "seq", "at", "arm", "unit", "criterion", "value", "weight"])
        for i, value in enumerate(values):
            arm = "canary" if (i // rollouts) % 2 else "baseline"
            out.writerow([f"r{i % rollouts}", i // rollouts, 1.7e9 + i // rollouts, arm, f"u{i}", "quality", value, 1])


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])


def _row(name: str, figure: str, value: float, unit: str, target: float | None, note: str) -> Row:
    met = None if target is None else value <= target
    return Row(PART, name, figure, value, None, "" if target is None else f"<= {target:g}", met, unit, note)
