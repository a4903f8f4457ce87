"""Scores as OpenTelemetry events: each at least once, in OTLP's own schema, whatever the endpoint does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from evalpipe.errors import ConfigError
from evalpipe.pipeline.export import PAUSE, Export
from evalpipe.score import failed, scored
from evalpipe.store import exports, series
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store

AT = datetime(2026, 3, 1, 10, tzinfo=UTC)


class Collector:
    """An OTLP endpoint on a real socket.

    Attributes:
        status, retry_after: of its answers.
        most: log records of a request; more are too large.
        requests: bodies that it took, with path and headers.
    """

    def __init__(self) -> None:
        self.status = 200
        self.retry_after = ""
        self.most = 1_000
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    def events(self) -> list[dict[str, Any]]:
        """All log records of all requests, after a trip through OpenTelemetry's own schema."""
        found = []
        for _, _, body in self.requests:
            message = json_format.Parse(json.dumps(_bytes(body)), ExportLogsServiceRequest())
            for resource in message.resource_logs:
                place = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_logs:
                    for record in scope.log_records:
                        values = {a.key: a.value.string_value or a.value.double_value for a in record.attributes}
                        found.append({"event": record.event_name, "trace": record.trace_id.hex(), **place, **values})
        return found


def _bytes(body: Any) -> Any:
    """OTLP's JSON has ids as hex, which the generic reader of protobuf takes for base64."""
    from base64 import b64encode

    for resource in body["resourceLogs"]:
        for scope in resource["scopeLogs"]:
            for record in scope["logRecords"]:
                if "traceId" in record:
                    record["traceId"] = b64encode(bytes.fromhex(record["traceId"])).decode()
    return body


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One, on a port of its own."""
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            too_large = sum(len(s["logRecords"]) for r in body["resourceLogs"] for s in r["scopeLogs"]) > made.most
            status = 413 if too_large else made.status
            if status == 200:
                made.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(status)
            if made.retry_after:
                self.send_header("Retry-After", made.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A database whose scores are owed."""
    made = Store(migrated_url, exports=True)
    yield made
    made.close()


def write(store: Store, n: int = 3, *, start: int = 0) -> None:
    """Some scores, the last of them an error."""
    of = Series("support", "refunds", "production", "baseline", "rel_1", "support-bot", "grounded", "e1")
    entries = [
        Entry(
            record_id=f"r{start + i}",
            scorecard_version="v1",
            series=of,
            captured_at=AT,
            score=failed("no grade") if i == n - 1 else scored(0.75, "pass", "it is grounded"),
            weight=50.0,
            scorer="openai:m/p1",
        )
        for i in range(n)
    ]
    with store.begin() as tx:
        series.add_scores(tx, entries, AT)


def test_each_score_is_sent_once_as_an_evaluation_event(store: Store, collector: Collector) -> None:
    """With OpenTelemetry's names, the endpoint's headers, and nothing left behind."""
    write(store)
    export = Export(store, collector.url, {"authorization": "Bearer secret-token"})
    assert export(AT).sent == 3
    assert export(AT).sent == 0
    (path, headers, _) = collector.requests[0]
    assert path == "/v1/logs"
    assert headers["authorization"] == "Bearer secret-token"
    events = collector.events()
    assert {e["event"] for e in events} == {"gen_ai.evaluation.result"}
    good = next(e for e in events if e["evalpipe.record.id"] == "r0")
    assert good["gen_ai.evaluation.name"] == "grounded"
    assert good["gen_ai.evaluation.score.value"] == 0.75
    assert good["gen_ai.evaluation.score.label"] == "pass"
    assert good["service.name"] == "support"
    bad = next(e for e in events if e["evalpipe.record.id"] == "r2")
    assert bad["error.type"] == "evaluation_failed"
    assert "gen_ai.evaluation.score.value" not in bad


def test_a_score_that_was_written_twice_is_owed_once(store: Store, collector: Collector) -> None:
    """A redelivery changes nothing here either."""
    write(store)
    write(store)
    assert Export(store, collector.url, {})(AT).sent == 3


def test_an_endpoint_that_is_away_costs_time_and_no_score(store: Store, collector: Collector) -> None:
    """It is asked again when it said, and what it refuses for good is not sent for ever."""
    write(store)
    export = Export(store, collector.url, {})
    collector.status, collector.retry_after = 429, "30"
    assert export(AT).sent == 0
    collector.status, collector.retry_after = 200, ""
    assert export(AT + timedelta(seconds=29)).sent == 0
    assert export(AT + timedelta(seconds=30)).sent == 3
    write(store, start=10)
    collector.status = 503
    assert export(AT + timedelta(minutes=2)).sent == 0
    collector.status = 400
    assert export(AT + timedelta(minutes=2) + PAUSE).refused == 3
    with store.read() as tx:
        assert exports.waiting(tx) == (0, None)


def test_a_batch_that_is_too_large_is_sent_in_parts(store: Store, collector: Collector) -> None:
    """Only what is too large by itself is refused."""
    write(store, 9)
    collector.most = 2
    assert Export(store, collector.url, {})(AT).sent == 9
    assert len(collector.events()) == 9
    write(store, 2, start=20)
    collector.most = 0
    assert Export(store, collector.url, {})(AT).refused == 2


def test_a_redirect_loses_no_score(store: Store, collector: Collector) -> None:
    """As a wrong path does not: people mend it."""
    write(store)
    collector.status = 308
    export = Export(store, collector.url, {})
    assert (export(AT).sent, export(AT).refused) == (0, 0)
    collector.status = 200
    assert export(AT + PAUSE).sent == 3


def test_what_nobody_takes_for_a_day_is_given_up(
    store: Store, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a bound the table would only grow; it is said aloud."""
    write(store)
    assert Export(store, collector.url, {})(AT + timedelta(days=1, seconds=1)).sent == 0
    assert "given up" in caplog.text


def test_without_an_endpoint_nothing_is_owed(migrated_url: str) -> None:
    """Nobody pays for what nobody asked for."""
    with closing(Store(migrated_url)) as store:
        write(store)
        with store.read() as tx:
            assert exports.waiting(tx) == (0, None)
        assert Export(store, "", {})(AT).sent == 0
    with pytest.raises(ConfigError, match="EVALPIPE_OTLP_ENDPOINT"):
        Export(store, "collector:4318", {})
