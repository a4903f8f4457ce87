"""Store → OpenTelemetry: an event ``gen_ai.evaluation.result`` for each score, where an endpoint is configured.

OTLP over HTTP in its JSON encoding, at least once; names follow OpenTelemetry's GenAI conventions. An endpoint that is
away costs nothing but time: what is owed waits in the database for a day.
"""

from __future__ import annotations

import logging
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import orjson

from evalpipe.channels.http import Request, check_url, send
from evalpipe.store import exports
from evalpipe.store.sql import Store

EVENT: Final = "gen_ai.evaluation.result"
BATCH: Final = 500
TIMEOUT_S: Final = 10.0
MOST: Final = 20
"""Batches in one run: the next goes on."""
PAUSE: Final = timedelta(seconds=10)
"""After an answer that says: later."""
_TOO_LARGE: Final = 413
_LATER: Final = frozenset({429, 502, 503, 504, 401, 403, 404})
_INFO: Final = 9
_TRACE_DIGITS: Final = 32

log = logging.getLogger("evalpipe")


@dataclass(frozen=True, slots=True)
class Exported:
    """What one run did: scores that were taken, and that were refused for good."""

    sent: int = 0
    refused: int = 0


class Export:
    """The stage, with what it needs.

    Args:
        store: where scores are.
        endpoint: base URL; ``/v1/logs`` is added. "" for none: then nothing is done.
        headers: sent with each request; their values are secrets.

    Raises:
        ConfigError: the endpoint is no URL.
    """

    def __init__(self, store: Store, endpoint: str, headers: Mapping[str, str]) -> None:
        self._store = store
        self._url = check_url(endpoint, "EVALPIPE_OTLP_ENDPOINT").rstrip("/") + "/v1/logs" if endpoint else ""
        self._headers = headers

    def __call__(self, now: datetime) -> Exported:
        """Send what is owed, batch by batch, until nothing is left or the endpoint says no."""
        total = Exported()
        if not self._url:
            return total
        if gone := self._store.patiently(lambda tx: exports.give_up(tx, now)):
            log.warning("%d scores were owed to %s for %s and are given up", gone, self._url, exports.KEPT)
        started_s = time.monotonic()
        for _ in range(MOST):
            # A slow endpoint may take minutes for a run: a lease that began with it would be over before its request.
            at = now + timedelta(seconds=int(time.monotonic() - started_s))
            rows = self._store.patiently(partial(exports.claim, now=at, limit=BATCH))
            if not rows:
                break
            sent, refused, more = self._send(rows, at)
            total = Exported(total.sent + sent, total.refused + refused)
            if not more:
                break
        return total

    def _send(self, rows: Sequence[Any], now: datetime) -> tuple[int, int, bool]:
        """Sent, refused, and whether to go on."""
        keys = [exports.key_of(row) for row in rows]
        headers = {"content-type": "application/json", "user-agent": "evalpipe", **self._headers}
        request = Request("POST", self._url, orjson.dumps(logs_of(rows, now)), headers)
        told = send(request, timeout_s=TIMEOUT_S, at=now, secrets=self._headers.values())
        if told.ok:
            self._store.patiently(lambda tx: exports.done(tx, keys))
            return len(keys), 0, True
        if told.status == _TOO_LARGE and len(rows) > 1:
            half = len(rows) // 2
            parts = [self._send(part, now) for part in (rows[:half], rows[half:])]
            return sum(part[0] for part in parts), sum(part[1] for part in parts), all(part[2] for part in parts)
        # OTLP: of the errors only these ask for another try; a body that cannot be read never will be. A redirect, a
        # wrong key and a wrong path are mended by people.
        if told.status is not None and not (300 <= told.status < 400) and told.status not in _LATER:
            log.warning("%d scores are refused by %s: %s", len(keys), self._url, told.error)
            self._store.patiently(lambda tx: exports.done(tx, keys))
            return 0, len(keys), True
        pause = timedelta(seconds=told.retry_after_s) if told.retry_after_s is not None else PAUSE
        log.warning("scores wait for %s: %s", self._url, told.error)
        self._store.patiently(lambda tx: exports.later(tx, keys, now + pause))
        return 0, 0, False


def logs_of(rows: Sequence[Any], now: datetime) -> dict[str, Any]:
    """An ExportLogsServiceRequest in OTLP's JSON encoding, one resource for each service and environment.

    Args:
        rows: claimed scores.
        now: when they were observed.
    """
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        places.setdefault((row.service, row.environment), []).append(_event(row, now))
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": _pairs({"service.name": service, "deployment.environment.name": place})},
                "scopeLogs": [{"scope": {"name": "evalpipe"}, "logRecords": events}],
            }
            for (service, place), events in places.items()
        ]
    }


def _event(row: Any, now: datetime) -> dict[str, Any]:
    attributes = {
        "event.name": EVENT,
        "gen_ai.evaluation.name": row.criterion,
        "gen_ai.evaluation.score.value": row.value,
        "gen_ai.evaluation.score.label": row.label,
        "gen_ai.evaluation.explanation": row.explanation,
        "error.type": "evaluation_failed" if row.status == "error" else "",
        "evalpipe.record.id": row.record_id,
        "evalpipe.status": row.status,
        "evalpipe.scorecard": row.scorecard,
        "evalpipe.scorer": row.scorer,
        "evalpipe.epoch": row.epoch,
        "evalpipe.weight": row.weight,
        "evalpipe.feature": row.feature,
        "evalpipe.variant": row.variant,
        "evalpipe.release": row.release_id,
    }
    event: dict[str, Any] = {
        "timeUnixNano": str(round(row.captured_at.timestamp() * 1e9)),
        "observedTimeUnixNano": str(round(now.timestamp() * 1e9)),
        "severityNumber": _INFO,
        "eventName": EVENT,
        "attributes": _pairs(attributes),
    }
    trace_id = row.trace_id or ""
    if len(trace_id) == _TRACE_DIGITS and all(c in string.hexdigits for c in trace_id):
        event["traceId"] = trace_id.lower()  # else it is no trace of OpenTelemetry's
    return event


def _pairs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Attributes, without those that are unknown."""
    found: list[dict[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, float | int):
            found.append({"key": key, "value": {"doubleValue": float(value)}})
        elif value:
            found.append({"key": key, "value": {"stringValue": value}})
    return found
