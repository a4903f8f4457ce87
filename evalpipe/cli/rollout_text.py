"""A rollout in the terminal: gates with their intervals against the margin, evidence against what is needed, steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer

from evalpipe.cli.tables import cell, show
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.scorecard.values import format_duration

BAR: Final = 10
"""Characters of a bar of evidence."""
GAUGE: Final = 21
"""Characters of an interval, an odd number: no change is in the middle, the margin three fifths towards an end."""
VERIFIED: Final = {
    "waiting": "the meters have yet to show that its calls ended",
    "verified": "the meters show that its calls have ended",
    "ineffective": "the meters still count its calls",
    "unknown": "no meter tells whether its calls have ended",
}
"""What became of a rollback."""
SHOWN: Final = 10
"""Decisions that are shown, the newest."""


def tell(found: Mapping[str, Any]) -> None:
    """All of a rollout, as ``pipeline.rollout_view.view`` gives it."""
    plan = RolloutPlan.from_dict(found["plan"])
    typer.echo(f"{found['rollout_id']}  {_place(found)}: {found['canary']} against {found['baseline']}")
    typer.echo(f"{standing(found)}; started {cell(found['started_at'])} by {found['actor']}{_because(found['reason'])}")
    if found["decision"]:
        newest = found["decision"]
        typer.echo(f"{newest['action'].upper()} since {cell(newest['decided_at'])}: {newest['reason']}")
    else:
        typer.echo("Nothing has been decided yet: no evidence has arrived.")
    if found["steps"]:
        typer.echo("\nramp  " + "  ".join(_step(step) for step in found["steps"]))
    tell_gates(found["gates"])
    _tell_log(found)
    if any(not order["folded_at"] for order in found["orders"]):
        typer.echo("An order waits for the next evaluation.")
    if not plan.weights and plan.steps:
        typer.echo("It sets no weights itself: whoever moves the traffic follows these steps.")


def tell_gates(gates: Sequence[Mapping[str, Any]]) -> None:
    """Each gate: how the canary differs, and how much of the evidence needed there is."""
    rows = [
        {
            "gate": gate["gate"] + (" (dry run)" if gate["dry_run"] else ""),
            "role": gate["role"],
            "change": change(gate["estimate"], gate),
            "interval": span(gate),
            "margin": change(gate["margin"], gate),
            "harm": _evidence(gate["max_e_value"], gate["threshold"]),
            "no harm": _evidence(gate["max_safe_e_value"], gate["safe_threshold"]),
            "n_base": gate["n_baseline"],
            "n_canary": gate["n_canary"],
        }
        for gate in gates
    ]
    if not rows:
        return
    typer.echo("")
    show(rows, list(rows[0]), less=["no harm", "role", "n_base", "margin"])
    typer.echo(
        "interval: │ is no change, ┃ the margin, ● the estimate. harm, no harm: evidence against what proves it."
    )


def tell_plan(plan: RolloutPlan) -> None:
    """What a rollout will do, before it begins."""
    typer.echo(f"{plan.rollout_id}: {plan.canary} against {plan.baseline} in {plan.service!r}")
    if plan.shadow is not None:
        typer.echo(
            f"shadow first, for at least {format_duration(plan.shadow.min_duration)} and {plan.shadow.min_pairs} pairs"
        )
    ramp = [
        f"{step.percent:g}% for {format_duration(step.bake)} and {step.min_canary} records, until "
        + ("no harm is proven" if step.enough == "non_inferior" else "no harm is seen")
        for step in plan.steps
    ]
    for number, line in enumerate(ramp, 1):
        typer.echo(f"  step {number}: {line}")
    moves = f"sets the weights {plan.weights!r}" if plan.weights else "sets no weights: others move the traffic"
    typer.echo(f"{moves}; ends after {format_duration(plan.max_duration)} at the latest")
    rows = [
        {
            "gate": gate.name,
            "kind": gate.kind,
            "role": gate.role + (" (dry run)" if gate.dry_run else ""),
            "margin": f"{gate.direction} {gate.margin:.1%}"
            if gate.relative
            else f"{gate.direction} {gate.margin:g} pts",
            "alpha": f"{gate.alpha:.4g}",
            "advance_alpha": f"{gate.advance_alpha:.4g}",
            "min_canary": gate.min_canary,
            "severity": gate.severity,
        }
        for gate in plan.gates
    ]
    show(rows, list(rows[0]), less=["severity", "advance_alpha"])
    spent = sum(
        gate.alpha for gate in plan.gates if gate.role == "guardrail" and not gate.dry_run and gate.kind != "ratio"
    )
    typer.echo(
        f"A healthy canary is rolled back with a probability of {spent:.2%} at the most, however often one looks."
    )


def standing(found: Mapping[str, Any]) -> str:
    """Phase and share of the traffic, in words."""
    percent, frozen = found["percent"], found.get("frozen_until")
    words: list[str] = [found["phase"].replace("_", " ")]
    if frozen is not None:
        words.append(f"frozen until {cell(frozen)}")
    if percent is not None:
        words.append(f"{percent:g} % of the traffic")
    if found["verified"]:
        words.append(VERIFIED.get(found["verified"], found["verified"]))
    return ", ".join(words)


def place_in_ramp(row: Mapping[str, Any]) -> str:
    """Step of how many, "" without a ramp."""
    steps = len(row["plan"]["steps"])
    return f"{min(row['step'] + 1, steps)}/{steps}" if steps else ""


def change(value: float | None, gate: Mapping[str, Any]) -> str:
    """A change with its sign, in per cent of the baseline or in points."""
    if value is None:
        return "?"
    return f"{value:+.1%}" if gate["relative"] else f"{value:+.4f}"


def bar(value: float | None, threshold: float | None, width: int = BAR) -> str:
    """Evidence on its way to the threshold; it grows by factors, so the bar is of logarithms."""
    if not value or not threshold or threshold <= 1.0:
        return "·" * width
    full = min(width, max(0, int(width * math.log(max(value, 1.0)) / math.log(threshold))))
    return "█" * full + "·" * (width - full)


def span(gate: Mapping[str, Any]) -> str:
    """The interval on a scale on which the margin is at three fifths of the way from the middle to an end."""
    low, high = gate["interval"]["low"], gate["interval"]["high"]
    marks = [" "] * GAUGE
    middle = GAUGE // 2

    def at(value: float) -> int:
        scale: float = abs(gate["margin"])
        return max(0, min(GAUGE - 1, middle + round(value / scale * 0.6 * middle)))

    if low is not None or high is not None:
        start, end = (0 if low is None else at(low)), (GAUGE - 1 if high is None else at(high))
        marks[start : end + 1] = "─" * (end - start + 1)
    marks[middle], marks[at(gate["margin"])] = "│", "┃"
    if gate["estimate"] is not None:
        marks[at(gate["estimate"])] = "●"
    return "".join(marks)


def _evidence(value: float | None, threshold: float | None) -> str:
    if value is None or threshold is None:
        return ""
    return f"{bar(value, threshold)} {value:.3g}/{threshold:.4g}"


def _tell_log(found: Mapping[str, Any]) -> None:
    if not found["decisions"]:
        return
    typer.echo("\ndecisions, newest first")
    for decision in found["decisions"][:SHOWN]:
        typer.echo(
            f"  {decision['seq']:>3} {cell(decision['decided_at'])} {decision['action']:<8} {decision['reason']}"
        )
    if (left := found["decision_seq"] - SHOWN) > 0:
        typer.echo(f"  and {left} before: evalpipe decisions --rollout {found['rollout_id']}")


def _step(step: Mapping[str, Any]) -> str:
    mark = {"done": "✓", "now": "▶", "ended": "✗", "ahead": " "}[step["state"]]
    return f"{mark}{step['percent']:g}%"


def _place(found: Mapping[str, Any]) -> str:
    return f"{found['service']} in {found['environment']}" if found["environment"] else str(found["service"])


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
