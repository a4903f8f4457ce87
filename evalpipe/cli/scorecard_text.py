"""What ``evalpipe scorecard show`` and ``diff`` print for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalpipe.cli import tables
from evalpipe.cli.scorecard_diff import Change
from evalpipe.rollout.from_policy import split
from evalpipe.scorecard.default_gates import policy_of
from evalpipe.scorecard.diff import Diff
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.plain import (
    alert_in_words,
    criterion_in_words,
    gate_in_words,
    judging_in_words,
    match_in_words,
    rollout_in_words,
    sampling_in_words,
)
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.stats.agreement import Estimate


def show_card(card: Scorecard, console: Console) -> None:
    """A scorecard in plain words."""
    console.print(f"[bold]{card.name}[/bold]  version {card.version}  {escape(str(card.path))}", soft_wrap=True)
    if card.description:
        console.print(escape(card.description.strip()))
    if card.owner:
        console.print(f"owner: {escape(card.owner)}")
    told = [
        f"applies to {match_in_words(card.match)}",
        sampling_in_words(card.sampling),
        judging_in_words(card.judging),
    ]
    console.print(escape("; ".join(part for part in told if part)))
    table = Table(title="criteria", title_justify="left")
    for column in ("name", "scored by", "definition", "for"):
        table.add_column(column, overflow="fold")
    for c in card.criteria:
        table.add_row(c.name, escape(criterion_in_words(c)), c.definition_hash, escape(c.description.strip()))
    console.print(table)
    for rule in card.alerts:
        console.print(f"alert [bold]{rule.name}[/bold]: {escape(alert_in_words(rule))}")
    if card.rollout is not None:
        show_rollout(policy_of(card), console)
    console.print(f"tests: {len(card.tests)}")


def show_rollout(policy: RolloutPolicy, console: Console) -> None:
    """A policy in plain words, its gates with what each gets of the total alpha."""
    console.print(f"rollout: {escape(rollout_in_words(policy))}", soft_wrap=True, highlight=False)
    for gate, alpha in zip(policy.gates, split(policy.gates, policy.alpha), strict=True):
        words = gate_in_words(gate, alpha, gate.advance_alpha or policy.advance_alpha)
        console.print(f"  gate on {escape(words)}", highlight=False)


def show_words(found: Diff) -> None:
    """What changes between the files, and which series start again."""
    if found.before == found.after:
        typer.echo(f"version {found.before} stays as it is")
    else:
        typer.echo(f"version {found.before} -> {found.after}")
    for change in found.changes or ["nothing changes but comments and layout"]:
        typer.echo(f"  {change}")
    if found.new_epochs:
        typer.echo(
            f"new epoch: {', '.join(found.new_epochs)}. Scores from before and after are not compared: "
            "alerts and rollouts on it start with an empty window"
        )
    elif found.before != found.after:
        typer.echo("no series starts again: what makes the scores is as it was")


def show_changes(changes: Sequence[Change], path: Path, console: Console, worst: int) -> None:
    """For people: a table, then the flips, the worst first."""
    if not changes:
        console.print(f"on {escape(str(path))}: nothing is scored anew", soft_wrap=True, highlight=False)
        return
    console.print(f"on {escape(str(path))}:", soft_wrap=True, highlight=False)
    columns = (
        "criterion",
        "records",
        "flips",
        "mean",
        "labelled",
        "agrees_before",
        "agrees_after",
        "p",
        "usd_per_1000",
    )
    tables.show([_cells(change) for change in changes], columns, less=("usd_per_1000", "mean", "p"))
    for change in changes:
        _show_flips(change, console, worst)


def _cells(change: Change) -> dict[str, Any]:
    return {
        "criterion": change.criterion,
        "records": change.records,
        "flips": len(change.flips),
        "mean": f"{_number(change.mean_before)} -> {_number(change.mean_after)}",
        "labelled": change.labelled,
        "agrees_before": _share(change.before),
        "agrees_after": _share(change.after),
        "p": f"{change.p:.2g}" if change.labelled else "-",
        "usd_per_1000": f"{_number(change.cost_before, 4)} -> {_number(change.cost_after, 4)}"
        if change.judged
        else "-",
    }


def _show_flips(change: Change, console: Console, worst: int) -> None:
    if change.labelled:
        console.print(
            f"{change.criterion}: with the edit {change.won} grades agree with people that did not, and {change.lost} "
            f"do not any more; by chance alone p = {change.p:.2g}",
            soft_wrap=True,
            highlight=False,
        )
    for flip in change.flips[:worst]:
        people = f" (people: {flip.people})" if flip.people else ""
        line = f"{change.criterion}  {flip.record_id}  {flip.before.word} -> {flip.after.word}{people}"
        console.print(escape(line), soft_wrap=True, highlight=False)
        for what, side in (("before", flip.before), ("after", flip.after)):
            if side.score.explanation:
                console.print(escape(f"    {what}: {side.score.explanation}"), soft_wrap=True, highlight=False)
    if len(change.flips) > worst:
        console.print(f"    ... and {len(change.flips) - worst} more: --worst {len(change.flips)}, or --json")


def _share(of: Estimate) -> str:
    if of.value is None or of.low is None or of.high is None:
        return "-"
    return f"{of.value:.0%} ({of.low:.0%} to {of.high:.0%})"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
