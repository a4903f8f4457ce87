"""``evalpipe judge anchors``: the records by which a judge is watched, and how each judge stands."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.wiring import Wiring, now

if TYPE_CHECKING:
    from evalpipe.pipeline.anchors import Ran
    from evalpipe.pipeline.labelling import Asked
    from evalpipe.record import Record
    from evalpipe.store.anchors import New

app = typer.Typer(
    no_args_is_help=True,
    help="Anchors: frozen records with grades that people agree on. Each judge grades them again and again, so that "
    "'the judge moved' can be told from 'the product moved'.",
)

OnlyScorecard = Annotated[str, typer.Option(help="Only of this scorecard.", show_default=False)]
OnlyCriterion = Annotated[str, typer.Option(help="Only of this criterion.", show_default=False)]
Actor = Annotated[str, typer.Option(help="Who does this; you, by default.", show_default=False)]


@app.command()
def add(
    criterion: Annotated[str, typer.Option(help="The judged criterion.", show_default=False)],
    scorecard: Annotated[str, typer.Option(help="Its scorecard, where several have one of that name.")] = "",
    n: Annotated[int, typer.Option("--n", help="So many records at the most.", min=1, max=1000)] = 50,
    file: Annotated[
        Path | None,
        typer.Option("--from", help="JSONL of records with labels instead of the store's.", show_default=False),
    ] = None,
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Freeze copies of labelled records as anchors: those on which everybody who labelled them agrees.

    From the store the labels take turns, so that anchors of each grade are there: with passes alone nobody would see a
    judge become lenient. 50 anchors show a judge that moves on 10 % of them within a few runs; fewer than 20 show
    little. Each change of the set begins a new reference, so add them at once:

        evalpipe judge anchors add --criterion grounded --n 50

    A line of a file is a record as `evalpipe scorecard try` reads it, with its labels:

        {"input": "May I return it?", "output": "Yes, within 30 days.", "labels": {"grounded": "pass"}}

    The copies outlive the retention of records; `evalpipe erase` removes a user's anchors with the rest.
    """
    from evalpipe.store import anchors

    with closing(opened()) as wiring:
        asked, by = _asked(wiring, criterion, scorecard), actor or whoami()
        found = _of_file(file, asked, n, by) if file is not None else _of_labels(wiring, asked, n, by)
        with wiring.store.begin() as tx:
            new = anchors.add(tx, found, now())
            total = anchors.counts(tx).get((asked.scorecard.name, asked.criterion.name), 0)
    place = f"{asked.scorecard.name}/{asked.criterion.name}"
    if machine:
        typer.echo(as_json({"scorecard": asked.scorecard.name, "criterion": asked.criterion.name, "added": new,
                            "known": len(found) - new, "anchors": total}))  # fmt: skip
        return
    by_label = ", ".join(f"{sum(one.label == label for one in found)} {label}" for label in _labels(found))
    typer.echo(f"{new} anchors added to {place} ({by_label or 'none found'}); it has {total}")


@app.command("list")
def list_(
    scorecard: OnlyScorecard = "",
    criterion: OnlyCriterion = "",
    retired: Annotated[bool, typer.Option("--retired", help="Also those that were retired.")] = False,
    machine: Json = False,
) -> None:
    """The anchors with people's label and what the judge said last.

    Example: `evalpipe judge anchors list --criterion grounded`
    """
    from evalpipe.store import anchors

    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = anchors.listing(tx, retired=retired, scorecard=scorecard, criterion=criterion)
    columns = ["anchor_id", "scorecard", "criterion", "label", "judged", "graded_at", "record_id", "source"]
    if retired:
        columns.append("retired_at")
    show(rows, columns, less=["source", "record_id", "graded_at"], machine=machine)


@app.command()
def run(
    scorecard: OnlyScorecard = "",
    criterion: OnlyCriterion = "",
    machine: Json = False,
) -> None:
    """Grade the anchors now, here, whatever the clock says. Workers do it by themselves (EVALPIPE_ANCHORS_EVERY_S).

    The calls are paid for: the first time four runs, which make the reference, later one of up to 50 anchors for each
    criterion. Exit code 1 if a judge is suspect.

    Example: `evalpipe judge anchors run --criterion grounded`
    """
    with closing(opened()) as wiring:
        done = asyncio.run(_run(wiring, scorecard, criterion))
    if not done and not machine:
        raise ConfigError(
            "nothing was graded: there are no anchors (see 'evalpipe judge anchors add'), the judge is not configured "
            "or stopped, or a worker is grading them just now (see 'evalpipe judge anchors health')"
        )
    rows = [dataclasses.asdict(ran) for ran in done]
    columns = ["scorecard", "criterion", "judge", "state", "runs", "n", "failed", "cost_usd", "reason"]
    show(rows, columns, less=["runs", "failed", "scorecard"], machine=machine)
    if any(ran.state == "suspect" for ran in done):
        raise typer.Exit(1)


@app.command()
def retire(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of anchors; see `list`.", show_default=False)] = None,
    scorecard: OnlyScorecard = "",
    criterion: OnlyCriterion = "",
    machine: Json = False,
) -> None:
    """Take anchors out of the set, by their ids or all of a criterion. What was graded stays.

    The set that is left begins a new reference. A suspect judge stays suspect: see `accept`.

    Example: `evalpipe judge anchors retire anc_0123456789abcdef0123`
    """
    from evalpipe.store import anchors

    if not ids and not (scorecard or criterion):
        raise ConfigError("which anchors? give their ids, or --scorecard and --criterion for all of one")
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        n = anchors.retire(tx, now(), ids=ids or (), scorecard=scorecard, criterion=criterion)
    if machine:
        typer.echo(as_json({"retired": n}))
    else:
        typer.echo(f"{n} anchors retired")
    if ids and n < len(ids):
        raise ConfigError(f"{len(ids) - n} of these ids are unknown or retired: see 'evalpipe judge anchors list'")


@app.command()
def health(
    scorecard: OnlyScorecard = "",
    criterion: OnlyCriterion = "",
    everything: Annotated[bool, typer.Option("--all", help="Also judges and prompts of the past.")] = False,
    machine: Json = False,
) -> None:
    """Whether each judge still grades its anchors as it did at first. `--json` has the test's numbers.

    unknown: the reference is not complete. healthy: it has not moved, or by less than 0.05 on average. suspect: it has
    moved; rollouts that it grades can only hold, until somebody accepts its new behaviour.

    Example: `evalpipe judge anchors health`
    """
    from evalpipe.store import anchors

    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = [row for row in anchors.health(tx, scorecard=scorecard, criterion=criterion)
                if everything or row["current"]]  # fmt: skip
    shown = [_health(row) for row in rows]
    if not machine:
        shown = [{**row, "e_value": "" if row["e_value"] is None else f"{row['e_value']:.3g}"} for row in shown]
    columns = ["scorecard", "criterion", "judge_version", "state", "anchors", "comparisons", "e_value", "tested_at",
               "reason"]  # fmt: skip
    show(shown, columns, less=["comparisons", "e_value", "scorecard"], machine=machine)


@app.command()
def accept(
    judge: Annotated[str, typer.Option(help="The judge's version, or how it begins.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why its new behaviour is right; kept forever.", show_default=False)],
    scorecard: OnlyScorecard = "",
    criterion: OnlyCriterion = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Accept how a suspect judge grades now: its next run is the new reference, and decisions go on.

    Look first: `evalpipe judge anchors list` shows what it says against people's labels, and
    `evalpipe judge calibrate` how far they agree.

    Example: `evalpipe judge anchors accept --judge openai:gpt-6-luna --reason "stricter, and right: 47 of 50"`
    """
    from evalpipe.store import anchors
    from evalpipe.store.anchors import Key

    if not reason.strip():
        raise ConfigError("--reason: say why; it is kept")
    by = actor or whoami()
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        rows = anchors.health(tx, scorecard=scorecard, criterion=criterion)
        found = [row for row in rows if row["state"] == "suspect" and row["judge_version"].startswith(judge)]
        keys = [Key(row["scorecard"], row["criterion"], row["judge_version"]) for row in found]
        anchors.accept(tx, keys, actor=by, reason=reason, now=now())
    if not keys:
        suspects = ", ".join(sorted({row["judge_version"] for row in rows if row["state"] == "suspect"})) or "none"
        raise ConfigError(f"no judge that begins with {judge!r} is suspect; suspect: {suspects}")
    if machine:
        typer.echo(as_json([dataclasses.asdict(key) for key in keys]))
        return
    for key in keys:
        typer.echo(f"{key.judge} on {key.scorecard}/{key.criterion}: accepted by {by}; the next run is its reference")


def add_to(app_: typer.Typer) -> None:
    """Add this module's commands."""
    app_.add_typer(app, name="anchors")


async def _run(wiring: Wiring, scorecard: str, criterion: str) -> list[Ran]:
    try:
        return await wiring.anchors(scorecard=scorecard, criterion=criterion, force=True)
    finally:
        await wiring.close_judges()


def _asked(wiring: Wiring, criterion: str, scorecard: str) -> Asked:
    from evalpipe.pipeline.labelling import LabelError, find

    try:
        asked = find(wiring.scorecards, criterion, scorecard)
    except LabelError as error:
        advice = f" ({error.advice})" if error.advice else ""
        raise ConfigError(f"--{error.field}: {error}{advice}") from None
    if asked.spec.kind == "pairwise":
        raise ConfigError(f"--criterion: {criterion!r} compares two answers, and an anchor is one")
    return asked


def _of_labels(wiring: Wiring, asked: Asked, n: int, actor: str) -> list[New]:
    from evalpipe.store import anchors, intake
    from evalpipe.store.anchors import New

    card, name = asked.scorecard.name, asked.criterion.name
    with wiring.store.read() as tx:
        chosen = anchors.agreed(tx, card, name, n)
        read = intake.payloads(tx, [record_id for record_id, _, _ in chosen])
    if not chosen:
        raise ConfigError(
            f"no record of {card}/{name} has labels on which all agree, other than the anchors that are there: label "
            "some with 'evalpipe label', or give a file with --from"
        )
    return [New(card, name, label, value, read[i], "labels", actor) for i, label, value in chosen if i in read]


def _of_file(file: Path, asked: Asked, n: int, actor: str) -> list[New]:
    from evalpipe.pipeline.labelled_records import read_labelled_file
    from evalpipe.store.anchors import ABSTAINED, New

    card, name = asked.scorecard, asked.criterion.name
    found: list[New] = []
    for one in read_labelled_file(file, card):
        said = set(one.labels.get(name, {}).values())
        if len(said) == 1:
            label, value = next(iter(said))
            if label != ABSTAINED and value is not None:
                found.append(New(card.name, name, label, value, _of_service(one.record), file.name, actor))
    if not found:
        raise ConfigError(f"{file}: no record in it has a label of {name!r} on which all agree")
    return found[:n]


def _of_service(record: Record) -> Record:
    """The record, of some service: one that was written need not name any, and a stored one must."""
    from evalpipe.record import Release

    of = record.release
    release = Release("anchors", of.variant, of.environment, of.model)
    return record if of.service else replace(record, release=release)


def _labels(found: list[New]) -> list[str]:
    return sorted({one.label for one in found})


def _health(row: dict[str, Any]) -> dict[str, Any]:
    from evalpipe.stats.judge_shift import JudgeShift

    test = JudgeShift.from_state(row.pop("test").get("shift", {}))
    row.pop("lease_until")
    numbers = {
        "anchors": row.pop("n"),
        "comparisons": test.comparisons,
        "e_value": test.e_value if test.comparisons else None,
        "max_e_value": test.max_e_value,
        "moved": test.movement.size,
        "shift": test.movement.shift,
        "direction": test.movement.direction,
        "agreement_at_first": test.agreement,
    }
    return {**row, **numbers}
