"""What requests may ask: parameters with their meaning, and a transaction to answer in."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Literal

from fastapi import Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from sqlalchemy import text

from evalpipe.api.problems import refuse
from evalpipe.controls import ControlError
from evalpipe.scorecard.values import Duration, parse_duration
from evalpipe.store.sql import Store, Transaction
from evalpipe.wiring import now

TIMEOUT_MS = 20_000
"""PostgreSQL ends a query of the API after this long: a careless question must not load the database for hours."""
MOST_POINTS = 2_000
"""Points of one series in one answer."""
_STATUSES: Final = {"invalid": 422, "missing": 404, "latched": 409}


@contextmanager
def reading(store: Store) -> Iterator[Transaction]:
    """A transaction that reads, with a bound on its time."""
    with store.read() as tx:
        yield _bounded(tx)


@contextmanager
def writing(store: Store) -> Iterator[Transaction]:
    """A transaction that changes something, with the same bound; what people did wrong is told with its status."""
    try:
        with store.begin() as tx:
            yield _bounded(tx)
    except ControlError as error:
        raise refuse(
            _STATUSES[error.cause], error.what, where=error.where, value=error.value, advice=error.advice
        ) from None


def _bounded(tx: Transaction) -> Transaction:
    if tx.is_postgresql:
        tx.connection.execute(text(f"SET LOCAL statement_timeout = {TIMEOUT_MS}"))
    return tx


def _transaction(request: Request) -> Iterator[Transaction]:
    with reading(request.app.state.wiring.store) as tx:
        yield tx


# "function": the connection is back in the pool before the answer is sent, however slowly it is taken.
Tx = Annotated[Transaction, Depends(_transaction, scope="function")]
"""A parameter of an endpoint: a transaction that reads."""


def parse_when(value: Any) -> datetime:
    """The instant that ``24h`` (so long ago) or ``2026-11-22T03:00:00Z`` means.

    Raises:
        ValueError: it is neither; the message says what to write.
    """
    if isinstance(value, datetime):
        return value
    if isinstance(value, str):
        try:
            return now() - parse_duration(value)
        except (ValueError, OverflowError):
            pass
        try:
            # A "+" that nobody quoted arrives as a space.
            at = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
        except ValueError:
            at = None
        if at is not None and at.tzinfo is not None and 1970 <= at.year < 9999:
            return at
    raise ValueError("is not a time; write so long ago as 15m, 24h or 7d, or an instant as 2026-11-22T03:00:00Z")


def _a_day_ago() -> datetime:
    return now() - timedelta(days=1)


When = Annotated[
    datetime,
    BeforeValidator(parse_when),
    WithJsonSchema({"type": "string", "examples": ["15m", "24h", "2026-11-22T03:00:00Z"]}),
]
"""An instant, as so long ago or in ISO 8601 with its offset."""


class Asked(BaseModel):
    """Base of all parameters: a name that is not known is an error, not a filter that does nothing."""

    model_config = ConfigDict(extra="forbid")


class Period(Asked):
    """From when to when, by the time of capture."""

    since: When = Field(
        default_factory=_a_day_ago,
        description="From here on: so long ago (`15m`, `24h`, `7d`), or an instant (`2026-11-22T03:00:00Z`).",
    )
    until: When | None = Field(default=None, description="Up to here, not included. Now, if it is not given.")

    @model_validator(mode="after")
    def _in_order(self) -> Period:
        if self.until is not None and self.until <= self.since:
            raise ValueError(f"until ({self.until.isoformat()}) must be after since ({self.since.isoformat()})")
        return self


class Place(Asked):
    """Where the traffic came from."""

    service: str | None = Field(default=None, description="Only this service.")
    environment: str | None = Field(default=None, description="Only this environment, for example `production`.")
    variant: str | None = Field(default=None, description="Only this variant, for example `canary`.")

    def where(self, *names: str) -> dict[str, str]:
        """Those of the filters ``names`` that were given."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ScoresQuery(Period, Place):
    """Which scores."""

    FILTERS: ClassVar = ("service", "environment", "variant", "feature", "scorecard", "criterion", "status")

    feature: str | None = Field(default=None, description="Only this feature.")
    scorecard: str | None = Field(default=None, description="Only criteria of this scorecard.")
    criterion: str | None = Field(default=None, description="Only this criterion. Makes the answer much quicker.")
    status: Literal["scored", "skipped", "error", "abstained"] | None = Field(
        default=None, description="Only scores that came out so. Only `scored` has a value."
    )
    limit: int = Field(default=100, ge=1, le=1000, description="So many at the most.")
    cursor: str | None = Field(default=None, description="`next` of the page before; with the same filters.")


class SeriesQuery(Period, Place):
    """Which series, in which steps."""

    criterion: str = Field(description="The criterion, for example `grounded`.")
    scorecard: str | None = Field(default=None, description="Only criteria of this scorecard.")
    feature: str | None = Field(default=None, description="Only this feature; otherwise features are taken together.")
    arm: Literal["served", "shadow"] = Field(
        default="served", description="`shadow`: the answers of shadows instead, which nobody saw."
    )
    bucket: Duration = Field(
        default=timedelta(minutes=5),
        description="Width of a point in whole minutes, for example `1m`, `5m`, `1h`, `1d`. Minutes are kept for two "
        "weeks (`EVALPIPE_ROLLUP_MINUTE_DAYS`): of what is older only whole hours and days can be shown.",
    )

    @model_validator(mode="after")
    def _not_too_many(self) -> SeriesQuery:
        width_s = self.bucket.total_seconds()
        if width_s < 60 or width_s % 60:
            raise ValueError("bucket must be whole minutes: rollups are kept by the minute")
        points = ((self.until or now()) - self.since).total_seconds() / width_s
        if points > MOST_POINTS:
            raise ValueError(
                f"that is {points:.0f} points for each series, more than {MOST_POINTS}: make bucket larger"
            )
        return self


class LedgerQuery(Asked):
    """Which lines of the ledger."""

    since: When = Field(default_factory=_a_day_ago, description="From this hour on: so long ago, or an instant.")
    service: str | None = Field(default=None, description="Only this service.")


class MeterQuery(Place):
    """Which meters."""

    since: When = Field(default_factory=_a_day_ago, description="From this hour on: so long ago, or an instant.")
    feature: str | None = Field(default=None, description="Only this feature.")


class RolloutsQuery(Place):
    """Which rollouts."""

    phase: str | None = Field(
        default=None, description="Only rollouts in this phase, for example `running` or `rolled_back`."
    )
    limit: int = Field(default=100, ge=1, le=1000, description="The newest so many.")


class DecisionsQuery(Asked):
    """Which decisions."""

    rollout: str | None = Field(default=None, description="Only decisions of this rollout.")
    limit: int = Field(default=100, ge=1, le=1000, description="The newest so many.")


class AlertsQuery(Place):
    """Which alerts."""

    status: Literal["inactive", "pending", "firing", "resolved"] | None = Field(
        default=None, description="Only alerts in this state."
    )


class NewestQuery(Asked):
    """How many."""

    limit: int = Field(default=100, ge=1, le=1000, description="The newest so many.")


def write_cursor(values: tuple[Any, ...]) -> str:
    """The place of a row in its order, as an opaque text."""
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(plain, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, str, str, str, str]:
    """The place of the last score of a page.

    Raises:
        ValueError: not a cursor of this API.
    """
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        at, record_id, criterion, version, epoch = values
        return parse_when(at), str(record_id), str(criterion), str(version), str(epoch)
    except (ValueError, TypeError, binascii.Error):
        raise ValueError("is not a cursor of this API: take `next` of the page before") from None
