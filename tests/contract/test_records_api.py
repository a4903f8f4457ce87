"""``POST /v1/records``: for applications in any language, with the same meter, sampling, redaction and ledger."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from intake_api import Door, door
from services import Valkey

from evalpipe.api import records as module
from evalpipe.hook.sampling import position
from evalpipe.store.tables import meters, records


@pytest.fixture
def api(migrated_sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """An API that captures everything."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "1")
    with door(migrated_sqlite_url, redis_url, tmp_path) as opened:
        yield opened


def sent(**fields: Any) -> dict[str, Any]:
    """A record as another language sends it."""
    return {"service": "desk", "messages": [{"role": "user", "content": "May I?"}], "output": "Yes.", **fields}


def test_a_record_arrives_with_every_field(api: Door):
    """What is sent is what is stored, redacted."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=6)
    whole = sent(
        release={"variant": "canary", "environment": "staging", "model": "m-1", "prompt": "p", "retrieval": "r",
                 "index": "i", "tool_schema": "t", "data_pipeline": "d"},
        feature="refunds", segment="gold", record_id="r-1", trace_id="t-1", session_id="s-1", user_id="u-1", unit="x",
        at=at.isoformat(), latency_ms=900.5, ttft_ms=100, output="Write to ann@example.com.",
        context=[{"id": "d1", "text": "30 days", "score": 0.9}], tools=[{"name": "lookup"}],
        tool_calls=[{"name": "lookup", "arguments": {"order": 7}}], parameters={"model": "m", "temperature": 0.2},
        model="m-2", input_tokens=12, output_tokens=6, cached_tokens=4, cost_usd=0.01, finish_reason="stop",
        error="", attributes={"plan": "gold"},
    )  # fmt: skip
    answer = api.post("/v1/records", whole)
    assert answer.status_code == 202
    assert answer.json() == {"accepted": 1, "sampled": 1, "duplicates": 0, "rejected": []}
    api.work()
    (wire,) = api.payloads()
    assert wire["record_id"] == "r-1"
    assert wire["trace_id"] == "t-1"
    assert wire["captured_at"] == at.timestamp()
    assert wire["release"] == {"service": "desk", **whole["release"]}
    assert "ann@example.com" not in wire["output"]
    for name in ("feature", "segment", "session_id", "user_id", "unit", "latency_ms", "ttft_ms", "context", "tools",
                 "tool_calls", "parameters", "model", "input_tokens", "output_tokens", "cached_tokens", "cost_usd",
                 "finish_reason", "attributes", "messages"):  # fmt: skip
        assert wire[name] == whole[name], name


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps([sent(), sent()]).encode(), "application/json"),
        (b"\n".join(json.dumps(sent()).encode() for _ in range(2)) + b"\n\n", "application/x-ndjson"),
    ],
    ids=["array", "ndjson"],
)
def test_many_records_come_as_an_array_or_as_lines(api: Door, body: bytes, kind: str):
    """Packed, if the sender likes."""
    answer = api.post("/v1/records", gzip.compress(body), content_type=kind, content_encoding="gzip")
    assert (answer.status_code, answer.json()["accepted"]) == (202, 2)
    api.work()
    assert len(api.rows(records)) == 2


def test_half_an_emoji_does_not_cost_a_record(api: Door):
    """JavaScript sends it where a text was cut."""
    assert api.post("/v1/records", b'{"service": "desk", "output": "Yes \\ud83d"}').json()["accepted"] == 1
    api.work()
    assert api.payloads()[0]["output"] == "Yes ?"


def test_good_records_are_taken_and_each_bad_one_says_why(api: Door):
    """Index and field name the mistake; a field that is not known is one."""
    lines = [
        json.dumps(sent()), "{", json.dumps(sent(latency_ms=-1)), json.dumps(sent(outptu="x")), json.dumps([1]),
        json.dumps(sent(messages=["hi"])), json.dumps(sent(service="")), json.dumps(sent(at="2099-01-01T00:00:00Z")),
        json.dumps(sent(sampled=True)), json.dumps(sent(release={"varaint": "x"})), json.dumps(sent()),
        json.dumps(sent(output="x" * 300_000)), json.dumps(sent(at="2026-03-01T10:00:00+00:00")),
        json.dumps(sent(feature="x" * 201)), json.dumps(sent(user_id="x" * 513)),
        '{"service": "desk", "attributes": ' + '{"a":' * 260 + "1" + "}" * 261, "[" * 2000,
    ]  # fmt: skip
    answer = api.post("/v1/records", "\n".join(lines).encode(), content_type="application/x-ndjson")
    told = answer.json()
    assert (answer.status_code, told["accepted"], told["sampled"]) == (202, 2, 2)
    assert [(one["index"], one["field"]) for one in told["rejected"]] == [
        (1, ""), (2, "latency_ms"), (3, "outptu"), (4, ""), (5, "messages.0"), (6, "service"), (7, ""), (8, ""),
        (9, "release.varaint"), (11, ""), (12, ""), (13, "feature"), (14, "user_id"), (15, ""), (16, ""),
    ]  # fmt: skip
    assert "probability" in told["rejected"][7]["error"]
    assert "262144" in told["rejected"][9]["error"]
    assert "7 days ago" in told["rejected"][10]["error"]
    assert "nested more than 64 deep" in told["rejected"][13]["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"nonsense", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\n\n", "application/x-ndjson", 400),
        (b"{}", "text/plain", 415),
        (json.dumps([sent()] * (module.MAX_RECORDS + 1)).encode(), "application/json", 413),
        (b"{}\n" * 1_000_000, "application/x-ndjson", 413),
        (b"[" + b"{}," * 1_000_000 + b"{}]", "application/json", 413),
        (b"[" * 2000, "application/json", 400),
    ],
    ids=["garbage", "nothing", "none", "no lines", "text", "too many", "a million lines", "a million items", "deep"],
)
def test_a_body_that_is_none_is_refused_with_advice(api: Door, body: bytes, kind: str, status: int):
    """As every error of this API."""
    answer = api.post("/v1/records", body, content_type=kind)
    assert answer.status_code == status
    assert answer.json()["error"]["advice"]


def test_a_request_without_a_good_record_is_a_bad_request(api: Door):
    """In the same shape as a good one."""
    answer = api.post("/v1/records", [{"output": "x"}, 7])
    assert answer.status_code == 400
    assert [one["index"] for one in answer.json()["rejected"]] == [0, 1]


def test_a_record_that_is_sent_again_counts_nothing_twice(api: Door):
    """Its record_id says that it is the same, within one request and over requests."""
    body = [sent(record_id="r-1"), sent(record_id="r-2"), sent(record_id="r-1")]
    assert api.post("/v1/records", body).json() == {"accepted": 2, "sampled": 2, "duplicates": 1, "rejected": []}
    again = api.post("/v1/records", body)
    assert (again.status_code, again.json()["accepted"], again.json()["duplicates"]) == (202, 0, 3)
    api.work()
    ledger = api.ledger()
    assert (ledger["observed"], ledger["scored"], ledger["difference"]) == (2, 2, 0)


def test_the_server_samples_by_the_hooks_rule_unless_the_sender_did(
    migrated_sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A sender that sampled gives its probability: each of its records stands for 1/probability."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "0.1")
    with door(migrated_sqlite_url, redis_url, tmp_path) as api:
        plain = [sent(trace_id=f"t-{i}") for i in range(200)]
        expected = {one["trace_id"] for one in plain if position(one["trace_id"]) < 0.1 * 2**32}
        told = api.post("/v1/records", plain).json()
        assert (told["accepted"], told["sampled"]) == (200, len(expected))
        kept = [sent(trace_id=f"k-{i}", sampled=True, probability=0.25) for i in range(3)]
        assert api.post("/v1/records", kept).json()["sampled"] == 3
        api.work()
        found = {row["trace_id"]: round(row["probability"], 6) for row in api.rows(records)}
        assert found == {**dict.fromkeys(expected, 0.1), "k-0": 0.25, "k-1": 0.25, "k-2": 0.25}
        ledger = api.ledger()
    assert (ledger["observed"], ledger["sampled"], ledger["difference"]) == (203, len(expected) + 3, 0)


def test_the_meter_counts_by_release_and_feature(api: Door):
    """Tokens, errors and money of all of them."""
    api.post("/v1/records", [sent(feature="a", input_tokens=3, cost_usd=0.5), sent(feature="a", error="E: x"),
                             sent(feature="b", release={"variant": "canary"}), sent(service="other")])  # fmt: skip
    api.work()
    rows = {(row["service"], row["feature"]): row for row in api.rows(meters)}
    assert rows["desk", "a"]["calls"] == 2
    assert rows["desk", "a"]["errors"] == 1
    assert rows["desk", "a"]["input_tokens"] == 3
    assert rows["desk", "a"]["cost_usd"] == pytest.approx(0.5)
    assert rows.keys() == {("desk", "a"), ("desk", "b"), ("other", "")}


def test_while_redis_is_away_nothing_is_taken(
    migrated_sqlite_url: str, valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """503 with Retry-After; later the same is taken."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "1")
    with door(migrated_sqlite_url, valkey.url, tmp_path) as api:
        valkey.stop()
        answer = api.post("/v1/records", sent(record_id="r-1"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "nothing was taken" in answer.json()["error"]["what"]
        valkey.start()
        time.sleep(1.1)
        assert api.post("/v1/records", sent(record_id="r-1")).json()["accepted"] == 1


def test_a_full_queue_takes_nothing(api: Door, monkeypatch: pytest.MonkeyPatch):
    """The bound of the queue holds for those who come over HTTP too, and they are told."""
    monkeypatch.setattr("evalpipe.api.taps.MAX_MESSAGES", 1)
    api.wiring.queue.client.lpush("evalpipe.ingest", b"{}")
    answer = api.post("/v1/records", sent())
    assert answer.status_code == 503
    assert "bound" in answer.json()["error"]["what"]
    api.wiring.queue.client.delete("evalpipe.ingest")


def test_while_half_of_the_buffer_waits_nothing_is_taken(
    migrated_sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The sender keeps what the API could only shed."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "1")
    monkeypatch.setenv("EVALPIPE_FLUSH_INTERVAL_S", "60")
    monkeypatch.setattr("evalpipe.api.taps.BUFFER_SIZE", 4)
    with door(migrated_sqlite_url, redis_url, tmp_path) as api:
        assert api.post("/v1/records", [sent() for _ in range(3)]).status_code == 202
        assert api.post("/v1/records", sent()).status_code == 503
        api.work()
        assert api.post("/v1/records", sent()).status_code == 202
        api.work()
        assert api.ledger()["scored"] == 4


def test_more_services_than_hooks_share_one(api: Door, monkeypatch: pytest.MonkeyPatch):
    """Each still has its own rows."""
    monkeypatch.setattr("evalpipe.api.taps.MAX_SERVICES", 1)
    assert api.post("/v1/records", [sent(service=f"s-{i}") for i in range(4)]).json()["accepted"] == 4
    api.work()
    assert {row["service"] for row in api.rows(meters)} == {f"s-{i}" for i in range(4)}


def test_both_ways_in_are_described(api: Door):
    """A client can be generated."""
    paths = api.get("/openapi.json")["paths"]
    for path in ("/v1/traces", "/v1/records", "/v1/feedback"):
        assert paths[path]["post"]["requestBody"]["required"]
    one = paths["/v1/records"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"][0]
    assert one["properties"]["release"]["properties"]["variant"]["default"] == "baseline"
