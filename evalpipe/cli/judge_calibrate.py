"""``evalpipe judge calibrate``: how far the judge agrees with people, and what that makes of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalpipe.cli.asking import Asking, Questions, ToGrade, progress
from evalpipe.cli.tables import as_json
from evalpipe.cli.trouble import opened
from evalpipe.errors import ConfigError, JudgeUnavailable
from evalpipe.score import Status
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.model import JudgeSpec, Scorecard
from evalpipe.settings import Settings
from evalpipe.wiring import Wiring, now

if TYPE_CHECKING:
    from evalpipe.pipeline.labelled_records import LabelledRecord
    from evalpipe.scorers.calibration import Report
    from evalpipe.scorers.calls import Graded
    from evalpipe.store.calibrations import Both
    from evalpipe.store.sql import Transaction

FEW = 10
"""An older epoch with fewer labelled records is not reported."""


def calibrate(
    scorecard: Annotated[str, typer.Option(help="Only criteria of this scorecard.")] = "",
    criterion: Annotated[str, typer.Option(help="Only this criterion.")] = "",
    on: Annotated[
        Path | None, typer.Option(help="JSONL of records with labels, graded now, instead of the store's labels.")
    ] = None,
    judge: Annotated[str, typer.Option(help="With --on: grade with this judge, `provider:model`, instead.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="With --on: only the first so many records; 0 takes all.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page, too.")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep it: from now on it corrects what is reported of this epoch.")
    ] = False,
    machine: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure how far the judge agrees with people: agreement, kappa, alpha, sensitivity, bias, cost.

    Without `--on`, the labels in the store are compared with the scores in the store, for each epoch:

        evalpipe judge calibrate --criterion grounded --html calibration.html --save

    With `--on`, labelled records are graded here and now. A line is a record as `evalpipe scorecard try` reads it, and
    its labels by criterion, or by criterion and annotator:

        {"input": "May I return it?", "output": "Yes, within 30 days.", "context": "Within 30 days.",
         "labels": {"grounded": "pass", "helpful": {"anna": 3, "ben": 2}}}

        evalpipe judge calibrate --scorecard support-bot --on labelled.jsonl --judge openai:gpt-6-luna

    What is kept corrects `evalpipe estimates`, `evalpipe plot` and `/v1/series`, next to the raw value; decisions and
    rollouts go by the raw one, since the same judge grades both sides. The labelled records must be a random sample.
    """
    if on is None and (judge or limit):
        raise ConfigError("--judge and --limit go with --on: the store's records are graded already")
    asking = Asking()
    if on is None:
        reports = _from_store(scorecard, criterion)
    else:
        reports = _from_file(on, scorecard, criterion, judge, limit, asking)
    if save and not asking.stopped:
        _save(reports)
    if html is not None:
        from evalpipe.cli.calibration_page import page

        try:
            html.write_text(page(reports), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{html} cannot be written: {error.strerror}") from None
    if machine:
        typer.echo(as_json([report.to_json() for report in reports]))
    else:
        _show(reports, html, kept=_kept(reports, save=save, stopped=asking.stopped))
    if asking.stopped:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(calibrate)


def _show(reports: Sequence[Report], html: Path | None, *, kept: str) -> None:
    from evalpipe.cli.calibration_text import text

    for report in reports:
        typer.echo(text(report) + "\n")
    if html is not None:
        typer.echo(f"{html} written")
    typer.echo(kept)


def _kept(reports: Sequence[Report], *, save: bool, stopped: str) -> str:
    if stopped:
        return "Not kept: not everything was graded."
    if not any(report.labelled.n for report in reports):
        return "Not kept: there is nothing to compare."
    if save:
        return "Kept: estimates of these epochs are corrected from now on, beside the raw ones."
    if any(report.corrected.method for report in reports) or any(report.raw is None for report in reports):
        return "Not kept: add --save to correct the estimates of these epochs."
    return "Not kept."


def _save(reports: Sequence[Report]) -> None:
    from evalpipe.store import calibrations

    with closing(opened()) as wiring, wiring.store.begin() as tx:
        for report in reports:
            if report.labelled.n:
                calibrations.save(tx, report.calibration())


def _from_store(scorecard: str, criterion: str) -> list[Report]:
    from evalpipe.store import calibrations

    with closing(opened()) as wiring, wiring.store.read() as tx:
        wanted = [
            (card, name)
            for card, name in calibrations.labelled_criteria(tx)
            if scorecard in {"", card} and criterion in {"", name}
        ]
        reports = [report for card, name in wanted for report in _of_criterion(tx, card, name)]
    if not reports:
        if (settings := Settings.from_env()).scorecards.exists():
            _check_criterion(criterion, [c for c in Wiring(settings).scorecards if scorecard in {"", c.name}])
        what = " / ".join(part for part in (scorecard, criterion) if part)
        raise ConfigError(
            f"no record {f'of {what} ' if what else ''}has both a label and a score: label some with 'evalpipe label', "
            "or grade a labelled file with --on FILE"
        )
    return reports


def _of_criterion(tx: Transaction, scorecard: str, criterion: str) -> list[Report]:
    from evalpipe.scorers.calibration import About, assess
    from evalpipe.store import calibrations
    from evalpipe.store.estimates import read_whole

    reports: list[Report] = []
    for epoch, both in calibrations.read_both(tx, scorecard, criterion).items():
        if reports and len(both) < FEW:
            continue
        kind, grades = _known(tx, both, criterion)
        whole = read_whole(tx, scorecard, criterion, epoch)
        about = About(
            scorecard,
            criterion,
            epoch,
            both[-1].judge_version,
            kind=kind,
            grades=grades,
            population=whole.rollup,
            orders=calibrations.read_orders(tx, scorecard, criterion, epoch) if kind == "pairwise" else (),
            escalated=whole.escalated,
            disagreement=whole.disagreement,
        )
        reports.append(assess(both, about, now()))
    return reports


def _known(tx: Transaction, both: Sequence[Both], criterion: str) -> tuple[str, Mapping[str, float]]:
    """Kind and grades of the criterion as it was when these scores were made."""
    from pydantic import ValidationError

    from evalpipe.scorers.judged import values
    from evalpipe.store.intake import scorecard_body

    body = scorecard_body(tx, both[-1].scorecard_version)
    try:
        found = Scorecard.from_body(body) if body else None
    except ValidationError:  # written by another version of this code
        found = None
    named = next((c for c in found.criteria if c.name == criterion), None) if found else None
    spec = named.judge if named else None
    return (spec.kind, values(spec)) if spec else ("", {})


def _from_file(path: Path, scorecard: str, criterion: str, judge: str, limit: int, asking: Asking) -> list[Report]:
    card = _card(scorecard, path)
    rows = _read(path, card, limit)
    labelled = {name for row in rows for name in row.labels}
    _check_criterion(criterion, [card])
    wanted = [c for c in card.criteria if c.name in labelled and criterion in {"", c.name}]
    if not wanted:
        raise ConfigError(f"{path}: no record has a label of {criterion or 'a judged criterion'} of {card.name}")
    if pairs := next((c.name for c in wanted if c.judge is not None and c.judge.kind == "pairwise"), ""):
        raise ConfigError(f"{pairs} compares pairs, which a file does not have: label them in the store")
    questions = Questions(card, judge)
    calls: dict[str, list[Criterion]] = {}
    for one in wanted:
        calls.setdefault(card.together(one.name)[0].name, []).append(one)
    reports: list[Report] = []
    for group in calls.values():
        if not asking.stopped:
            reports += _graded_now(path, card, group, rows, questions, asking)
    return reports


def _check_criterion(name: str, cards: Sequence[Scorecard]) -> None:
    """Refuse the name of a criterion that no judge grades, before it looks as if nothing had been labelled."""
    judged = list(dict.fromkeys(c.name for card in cards for c in card.criteria if c.is_judged))
    if name and cards and name not in judged:
        of = f" in {', '.join(card.name for card in cards)}"
        raise ConfigError(
            f"--criterion {name!r}: there is no such judged criterion{of}; there are: {', '.join(judged) or 'none'}"
        )


def _card(name: str, path: Path) -> Scorecard:
    cards = {card.name: card for card in Wiring().scorecards}
    if name in cards:
        return cards[name]
    if not name and len(cards) == 1:
        return next(iter(cards.values()))
    there = ", ".join(cards)
    if name:
        raise ConfigError(f"--scorecard {name!r}: there is no such scorecard; there are: {there}")
    raise ConfigError(f"name the scorecard that {path} is labelled for with --scorecard; there are: {there}")


def _read(path: Path, card: Scorecard, limit: int) -> list[LabelledRecord]:
    from evalpipe.pipeline.labelled_records import read_labelled_file

    rows = read_labelled_file(path, card)
    return rows[:limit] if limit else rows


def _graded_now(
    path: Path,
    card: Scorecard,
    group: Sequence[Criterion],
    rows: Sequence[LabelledRecord],
    questions: Questions,
    asking: Asking,
) -> list[Report]:
    """A report of each of ``group``, whose criteria are graded in one call, as production grades them."""
    from evalpipe.scorers.judged import skip_reason

    question = questions.of(group[0].name)
    asked = [
        (criterion.name, row)
        for row in rows
        for criterion in group
        if criterion.name in row.labels and skip_reason(question.specs[criterion.name], row.record) is None
    ]
    with progress(f"grading {', '.join(c.name for c in group)}", len(asked), quiet=False) as step:
        items = [ToGrade(question, name, row.record, row.record.record_id) for name, row in asked]
        grades, versions = asking.ask_all(items, step=step)
    given = [grade for grade in grades if grade is not None and not isinstance(grade, JudgeUnavailable)]
    version = given[0].version if given else "+".join(versions)
    answers: dict[str, dict[int, Any]] = {criterion.name: {} for criterion in group}
    for (name, row), grade in zip(asked, grades, strict=True):
        answers[name][id(row)] = grade
    return [_report(path, card, c, question.specs[c.name], rows, answers[c.name], version) for c in group]


def _report(
    path: Path,
    card: Scorecard,
    criterion: Criterion,
    spec: JudgeSpec,
    rows: Sequence[LabelledRecord],
    answers: Mapping[int, Any],
    version: str,
) -> Report:
    from evalpipe.scorers.calibration import About, assess
    from evalpipe.scorers.judged import values
    from evalpipe.scorers.plan import epoch_of

    asked = [answer for answer in answers.values() if answer is not None]
    _tell_failures([str(a) if isinstance(a, JudgeUnavailable) else _failure(a) for a in asked])
    epoch = epoch_of(card, criterion.model_copy(update={"judge": spec}), version)
    mine = [row for row in rows if criterion.name in row.labels]
    both = [_both(row, criterion.name, answers.get(id(row)), epoch, version, card.version) for row in mine]
    about = About(card.name, criterion.name, epoch, version, path.name, spec.kind, values(spec))
    return assess(both, about, now())


def _failure(graded: Graded) -> str:
    return graded.grade.explanation if graded.grade.status is Status.ERROR else ""


def _tell_failures(failures: Sequence[str]) -> None:
    told = [failure for failure in failures if failure]
    if told:
        typer.echo(f"evalpipe: {len(told)} of {len(failures)} records got no grade, the first: {told[0]}", err=True)


def _both(row: LabelledRecord, criterion: str, answer: Any, epoch: str, version: str, card_version: str) -> Both:
    """What people and the judge say; without an answer the record was skipped."""
    from evalpipe.store.calibrations import Both

    record = row.record
    status, value, label, cost = ("skipped" if answer is None else "error"), None, "", None
    if answer is not None and not isinstance(answer, JudgeUnavailable):
        status, value, label = answer.grade.status.value, answer.grade.value, answer.grade.label
        # Of several votes only the grade is known here.
        cost = answer.grade.answer.cost_usd if answer.grade.answer and not answer.escalated else None
    return Both(
        record.record_id, epoch, version, card_version, record.captured_at, status, value, label, record.weight, cost,
        people=row.labels[criterion], record=record,
    )  # fmt: skip
