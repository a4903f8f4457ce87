"""Everything that can be read: scores, series, ledger, rollouts, decisions, alerts, incidents, one record's story."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from sqlalchemy import Select, select, tuple_

from evalpipe.api import answers
from evalpipe.api.access import bearer
from evalpipe.api.problems import Failure, refuse
from evalpipe.api.queries import (
    DecisionsQuery,
    LedgerQuery,
    MeterQuery,
    NewestQuery,
    RolloutsQuery,
    ScoresQuery,
    SeriesQuery,
    Tx,
    read_cursor,
    write_cursor,
)
from evalpipe.pipeline.rollout_view import listed
from evalpipe.rollup import Rollup
from evalpipe.stats.mean_interval import interval_of
from evalpipe.store import alerting, calibrations, feedback, ledgers, outbox, rollouts, tables
from evalpipe.store.calibrations import Calibration
from evalpipe.store.metered import read_meters, read_processes
from evalpipe.store.points import Line, points
from evalpipe.store.series import query_scores
from evalpipe.store.why import dead_letters_with, why
from evalpipe.wiring import Wiring, now

router = APIRouter(
    prefix="/v1",
    dependencies=[Security(bearer)],
    responses={
        401: {"model": Failure, "description": "No key, or a wrong one."},
        422: {"model": Failure, "description": "A parameter cannot be used."},
        503: {"model": Failure, "description": "The database or Redis does not answer."},
    },
)


@router.get("/scores", tags=["scores"])
def get_scores(tx: Tx, query: Annotated[ScoresQuery, Query()]) -> answers.Scores:
    """Scores, newest capture first, page by page.

    Judged scores come later than the capture of their record, so a page that was read once may gain rows. To take
    everything out, `evalpipe scores --parquet FILE` and `evalpipe.read_scores(...)` are quicker.
    """
    found = tx.connection.execute(_page(query)).mappings().all()
    page = found[: query.limit]
    more = len(found) > query.limit
    return answers.Scores(
        scores=[answers.ScoreAnswer.model_validate(dict(row)) for row in page],
        next=write_cursor(tuple(page[-1][c.name] for c in _ORDER)) if more else None,
    )


_ORDER = tuple(tables.scores.c[n] for n in ("captured_at", "record_id", "criterion", "scorecard_version", "epoch"))


def _page(query: ScoresQuery) -> Select[Any]:
    statement = query_scores(since=query.since, until=query.until).order_by(None)
    for name, value in query.where(*ScoresQuery.FILTERS).items():
        statement = statement.where(tables.scores.c[name] == value)
    if query.cursor is not None:
        try:
            place = read_cursor(query.cursor)
        except ValueError as error:
            problem = {"loc": ("query", "cursor"), "msg": str(error), "input": query.cursor, "type": "value_error"}
            raise RequestValidationError([problem]) from None
        statement = statement.where(tuple_(*_ORDER) < place)
    return statement.order_by(*(column.desc() for column in _ORDER)).limit(query.limit + 1)


@router.get("/series", tags=["scores"])
def get_series(tx: Tx, query: Annotated[SeriesQuery, Query()]) -> answers.SeriesList:
    """A criterion's mean over time with its 95 % interval, for each service, environment, variant and epoch.

    Releases and features are taken together; epochs never are, because their scores cannot be compared. `mean` is raw:
    as the judge says. `corrected_mean` is what people would have said, by the newest calibration of the epoch
    (`evalpipe judge calibrate --save`); its interval includes the judge's error. Decisions go by the raw values.
    """
    where = query.where("service", "environment", "variant", "feature", "scorecard", "criterion", "arm")
    found = points(tx, query.since, query.until, query.bucket, _KEY, **where)
    known = calibrations.newest(tx, {line.key[-1] for line in found})
    series = [_series(line, known.get((line.key[3], line.key[4], line.key[5]))) for line in found]
    return answers.SeriesList(bucket_s=int(query.bucket.total_seconds()), series=series)


_KEY = ("service", "environment", "variant", "scorecard", "criterion", "epoch")


def _series(line: Line, calibration: Calibration | None) -> answers.SeriesAnswer:
    every = zip(line.starts, line.rollups(), line.quantile(0.5), line.quantile(0.99), strict=True)
    return answers.SeriesAnswer(
        **dict(zip(_KEY, line.key, strict=True)),
        calibrated_at=calibration.at if calibration else None,
        calibration_n=calibration.n if calibration else None,
        points=[_point(*one, calibration) for one in every],
    )


def _point(
    start: datetime, rollup: Rollup, p50: float | None, p99: float | None, calibration: Calibration | None
) -> answers.Point:
    interval, corrected = interval_of(rollup), calibrations.correct(rollup, calibration)
    return answers.Point(
        at=start,
        n_scored=rollup.n_scored,
        n_skipped=rollup.n_skipped,
        n_abstained=rollup.n_abstained,
        n_error=rollup.n_error,
        mean=rollup.mean,
        p50=p50,
        p99=p99,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n_effective=interval.n_effective if interval else None,
        corrected_mean=corrected.mean,
        corrected_low=corrected.low,
        corrected_high=corrected.high,
        correction=corrected.method,
        correction_reason=corrected.reason,
        cost_usd=rollup.cost_usd,
    )


@router.get("/ledger", tags=["ledger"])
def get_ledger(tx: Tx, request: Request, query: Annotated[LedgerQuery, Query()]) -> answers.LedgerAnswer:
    """How much was really evaluated: every sampled record is somewhere in here.

    observed = sampled + not sampled; sampled = scored + skipped + abstained + error + dead + shed + lost + in flight.
    Each term is counted by itself, so a difference is news: at rest it is 0.
    """
    wiring: Wiring = request.app.state.wiring
    lines = ledgers.read(tx, wiring.queue.queued(), now(), since=ledgers.hour_of(query.since))
    shown = [
        answers.LedgerLine.model_validate(line.as_dict()) for line in lines if query.service in {None, line.service}
    ]
    difference = sum(abs(line.difference) for line in shown)
    return answers.LedgerAnswer(lines=shown, difference=difference, lag_s=ledgers.LAG.total_seconds())


@router.get("/meter", tags=["ledger"])
def get_meter(tx: Tx, query: Annotated[MeterQuery, Query()]) -> answers.MeterList:
    """What hooks counted on 100 % of the calls, by release and feature, in whole hours."""
    where = query.where("service", "environment", "variant", "feature")
    found = read_meters(tx, since=query.since, **where)
    return answers.MeterList(meters=[answers.MeterAnswer.model_validate(metered.as_dict()) for metered in found])


@router.get("/processes", tags=["ledger"])
def get_processes(tx: Tx, query: Annotated[LedgerQuery, Query()]) -> answers.Processes:
    """The processes that hooks run in: which are there, which ended, and which fell silent."""
    rows = read_processes(tx, since=query.since, now=now(), service=query.service or "")
    return answers.Processes(processes=[answers.ProcessAnswer.model_validate(row) for row in rows])


@router.get("/rollouts", tags=["decisions"])
def get_rollouts(tx: Tx, query: Annotated[RolloutsQuery, Query()]) -> answers.Rollouts:
    """Rollouts, newest first, each with its newest decision."""
    table = tables.rollouts
    statement = select(*(c for c in table.c if c.name != "state")).order_by(table.c.started_at.desc())
    for name, value in query.where("service", "environment", "phase").items():
        statement = statement.where(table.c[name] == value)
    if query.variant is not None:
        statement = statement.where((table.c.canary == query.variant) | (table.c.baseline == query.variant))
    rows = tx.connection.execute(statement.limit(query.limit)).mappings().all()
    return answers.Rollouts(rollouts=[answers.RolloutAnswer.model_validate(row) for row in listed(tx, rows)])


@router.get("/decisions", tags=["decisions"])
def get_decisions(tx: Tx, query: Annotated[DecisionsQuery, Query()]) -> answers.Decisions:
    """Decisions about canaries with the evidence, newest first; webhooks carry the same."""
    rows = rollouts.list_decisions(tx, rollout_id=query.rollout, limit=query.limit)
    return answers.Decisions(decisions=[answers.DecisionAnswer.model_validate(row) for row in reversed(rows)])


@router.get("/incidents", tags=["alerts"])
def get_incidents(tx: Tx, query: Annotated[NewestQuery, Query()]) -> answers.Incidents:
    """What alerts and rollbacks opened, newest first."""
    rows = alerting.list_incidents(tx, query.limit)
    return answers.Incidents(incidents=[answers.IncidentAnswer.model_validate(row) for row in rows])


@router.get("/deliveries", tags=["decisions"])
def get_deliveries(tx: Tx, query: Annotated[NewestQuery, Query()]) -> answers.Deliveries:
    """Notifications, newest first: delivered, waiting or given up, with the last error."""
    rows = outbox.listing(tx, query.limit)
    return answers.Deliveries(deliveries=[answers.DeliveryAnswer.model_validate(row) for row in rows])


@router.get(
    "/records/{trace_id}", tags=["ledger"], responses={404: {"model": Failure, "description": "Not in the store."}}
)
def get_records(
    tx: Tx, trace_id: Annotated[str, Path(description="A trace id, or the id of one record.")]
) -> answers.Why:
    """What happened to one trace: scored how and by whom, counted in which rollout, or why not."""
    found = why(tx, trace_id)
    letters = [] if found else dead_letters_with(tx, trace_id)
    waiting = [] if found else feedback.waiting(tx, trace_id)
    if not found and not letters and not waiting:
        raise refuse(
            404,
            "no record of this trace is in the store",
            where="path.trace_id",
            value=trace_id,
            advice="it was not sampled (the hook decides by the trace id), or shed, or it waits in the queue or was "
            "removed by retention: /v1/ledger counts each",
        )
    return answers.Why(
        records=[answers.RecordAnswer.model_validate(record) for record in found],
        dead_letters=[answers.DeadLetterAnswer.model_validate(letter) for letter in letters],
        feedback=[answers.FeedbackAnswer.model_validate(row) for row in waiting],
    )
