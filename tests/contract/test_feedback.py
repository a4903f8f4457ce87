"""Feedback: over HTTP or by a hook, early or late, once or twice; shown beside its record, erased with its user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from intake_api import Door, door
from stages import AT, World, record
from typer.testing import CliRunner

from evalpipe import Hook, read_feedback
from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.pipeline.feedback import FeedbackStage, Received
from evalpipe.pipeline.maintain import Maintain, erase_user
from evalpipe.pipeline.redrive import redrive
from evalpipe.store.queue import Queue
from evalpipe.store.tables import dead_letters, feedback
from evalpipe.store.why import why


@pytest.fixture
def world(migrated_url: str, tmp_path: Path) -> Iterator[World]:
    """The stages on a migrated database."""
    made = World(migrated_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def api(migrated_sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """An API that captures everything."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "1")
    with door(migrated_sqlite_url, redis_url, tmp_path) as opened:
        yield opened


def item(number: int = 1, **fields: Any) -> dict[str, Any]:
    """One thing that a user said, as a hook sends it."""
    return {"feedback_id": f"f-{number}", "service": "desk", "trace_id": f"t-{number}", "record_id": "", "value": 0.0,
            "label": "thumbs_down", "comment": "wrong", "user_id": "ann", "at": AT.timestamp(), **fields}  # fmt: skip


def message(*items: Any, **fields: Any) -> str:
    """A feedback message."""
    return json.dumps({"schema": 1, "process": "p", "sent_at": AT.timestamp(), "items": list(items), **fields})


def test_feedback_is_stored_once_however_often_it_comes(world: World):
    """A redelivered message, and the same id in another one, change nothing."""
    stage = FeedbackStage(world.store)
    assert stage(message(item(1), item(2), item(1)), AT) == Received(new=2)
    assert stage(message(item(1), item(3)), AT) == Received(new=1)
    assert stage(message(item(1, value=1.0)), AT) == Received()
    assert [(row["feedback_id"], row["value"]) for row in world.rows(feedback)] == [("f-1", 0), ("f-2", 0), ("f-3", 0)]


def test_feedback_finds_its_record_before_and_after_it(world: World):
    """By trace, by record, and not that of another record of the trace."""
    stage = FeedbackStage(world.store)
    stage(message(item(1)), AT)
    world.ingest(record(1), record("other", trace_id="t-1"))
    stage(message(item(2, trace_id="t-1", record_id="r-other"), item(3, trace_id="", record_id="r-1")), AT)
    with world.store.read() as tx:
        found = {told["record_id"]: [f["feedback_id"] for f in told["feedback"]] for told in why(tx, "t-1")}
    assert found == {"r-1": ["f-1", "f-3"], "r-other": ["f-1", "f-2"]}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (7, "must be an object"),
        (item(feedback_id=""), "'feedback_id' is missing"),
        (item(trace_id=""), "neither 'trace_id' nor 'record_id'"),
        (item(value="1"), "'value' must be a number"),
        (item(value=True), "'value' must be a number"),
        (item(comment=None), "'comment' must be a text"),
        (item(at="now"), "'at' must be seconds"),
        (item(at=1e30), "'at' must be seconds"),
    ],
)
def test_an_item_that_cannot_be_read_is_a_dead_letter_and_its_neighbours_are_kept(world: World, bad: Any, reason: str):
    """With its reason, once, and without a line in the ledger."""
    stage = FeedbackStage(world.store)
    assert stage(message(item(5), bad), AT) == Received(new=1, dead=1)
    assert stage(message(item(5), bad), AT) == Received()
    (letter,) = world.rows(dead_letters)
    assert reason in letter["reason"]
    assert (letter["kind"], letter["n_records"], letter["hour_at"]) == ("feedback", 0, None)
    assert not world.lines()


@pytest.mark.parametrize("blob", ["nonsense", "[]", "{}", message(schema=2), message(schema="1")])
def test_a_message_that_is_none_is_a_dead_letter(world: World, blob: str):
    """Whole, so that it can be re-driven after an upgrade."""
    assert FeedbackStage(world.store)(blob, AT) == Received(dead=1)
    assert world.rows(dead_letters)[0]["payload"] == blob.encode()


def test_a_dead_letter_of_feedback_goes_back_to_its_own_queue(world: World, redis_url: str):
    """Re-driven, it comes as feedback again."""
    FeedbackStage(world.store)(message(item(1), schema=2), AT)
    queue = Queue(redis_url)
    assert redrive(world.store, queue, None, AT).messages == 1
    assert queue.lengths() == {**queue.lengths(), "ingest": 0, "feedback": 1}
    queue.close()


def test_texts_that_a_database_cannot_take_are_mended(world: World):
    """NUL, which no hook of ours sends."""
    FeedbackStage(world.store)(message(item(1, comment="a\x00b", label="x\x00")), AT)
    assert world.rows(feedback)[0]["comment"] == "a\ufffdb"


def test_a_users_feedback_is_erased_with_the_user(world: World):
    """What they said, and what was said of their records; in dead letters too."""
    world.ingest(record(1, user_id="ann"), record(2, user_id="bob"))
    stage = FeedbackStage(world.store)
    stage(message(item(1, user_id="support", trace_id="t-1"), item(2, user_id="bob"), item(3)), AT)
    stage(message(item(4, value="?", comment="secret of ann")), AT)
    with world.store.begin() as tx:
        assert erase_user(tx, "ann") == 1
    assert [row["feedback_id"] for row in world.rows(feedback)] == ["f-2"]
    assert world.rows(dead_letters)[0]["payload"] == b""


def test_old_feedback_is_removed(world: World, redis_url: str):
    """After the retention, by when it came."""
    stage = FeedbackStage(world.store)
    stage(message(item(1)), AT)
    stage(message(item(2)), AT + timedelta(days=2))
    queue = Queue(redis_url)
    removed = Maintain(world.store, queue, timedelta(days=7))(AT + timedelta(days=8))
    queue.close()
    assert removed.feedback == 1
    assert [row["feedback_id"] for row in world.rows(feedback)] == ["f-2"]


def test_feedback_is_a_data_frame(world: World):
    """In order of time; unknown columns are named."""
    stage = FeedbackStage(world.store)
    stage(message(*(item(i, at=(AT + timedelta(hours=i)).timestamp()) for i in (3, 1, 2))), AT)
    url = world.settings.database_url
    assert list(read_feedback(database_url=url).feedback_id) == ["f-1", "f-2", "f-3"]
    assert list(read_feedback(database_url=url, limit=2).feedback_id) == ["f-2", "f-3"]
    assert list(read_feedback(database_url=url, since=AT + timedelta(hours=3)).feedback_id) == ["f-3"]
    assert read_feedback(database_url=url, label="thumbs_up").empty
    with pytest.raises(ConfigError, match="no column 'lable'"):
        read_feedback(database_url=url, lable="x")


def test_feedback_over_http_is_shown_with_its_record(api: Door):
    """Redacted on its way, like everything; told by the API beside the scores."""
    api.post("/v1/records", {"service": "desk", "trace_id": "t-1", "output": "Yes.", "user_id": "ann"})
    body = [{"service": "desk", "trace_id": "t-1", "value": 0, "label": "bad", "comment": "mail ann@example.com"},
            {"service": "desk", "trace_id": "t-1", "feedback_id": "mine", "value": 1}, {"service": "desk", "value": 1},
            {"service": "desk", "trace_id": "t-2", "value": 7}, {"service": "desk", "trace_id": "t-2"}]  # fmt: skip
    answer = api.post("/v1/feedback", body)
    told = answer.json()
    assert (answer.status_code, told["accepted"]) == (202, 2)
    assert told["feedback_ids"][1] == "mine"
    assert [(one["index"], one["field"]) for one in told["rejected"]] == [(2, ""), (3, "value"), (4, "")]
    assert api.post("/v1/feedback", body[1]).status_code == 202
    api.work()
    (shown,) = api.get("/v1/records/t-1")["records"]
    said = {one["feedback_id"]: one for one in shown["feedback"]}
    assert said.keys() == set(told["feedback_ids"])
    assert said["mine"]["value"] == 1
    assert "ann@example.com" not in said[told["feedback_ids"][0]]["comment"]
    assert api.post("/v1/feedback", [{}]).status_code == 400


def test_feedback_without_a_record_is_shown_too(api: Door, monkeypatch: pytest.MonkeyPatch):
    """Its record was not sampled, or is on its way."""
    api.post("/v1/feedback", {"service": "desk", "trace_id": "t-9", "comment": "slow"})
    api.work()
    shown = api.get("/v1/records/t-9")
    assert shown["records"] == []
    assert [one["comment"] for one in shown["feedback"]] == ["slow"]
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", api.wiring.settings.database_url)
    monkeypatch.setenv("EVALPIPE_REDIS_URL", api.wiring.settings.redis_url)
    told = CliRunner().invoke(app, ["why", "t-9"])
    assert "slow" in told.output
    api.post("/v1/records", {"service": "desk", "trace_id": "t-9", "output": "Yes."})
    api.work()
    told = CliRunner().invoke(app, ["why", "t-9"])
    assert told.exit_code == 0
    assert "slow" in told.output
    assert "brief" in told.output


def test_a_hooks_feedback_joins_its_record(api: Door):
    """The other way in: the application's own hook."""
    hook = Hook("desk", redis_url=api.wiring.settings.redis_url, sample_rate=1.0)
    with hook.call(feature="chat", trace_id="t-1") as call:
        call.output = "Yes."
    hook.feedback("t-1", 0.0, label="thumbs_down", comment="no", user_id="ann")
    assert hook.flush(10)
    api.work()
    (shown,) = api.get("/v1/records/t-1")["records"]
    (said,) = shown["feedback"]
    assert (said["value"], said["label"], said["comment"], said["user_id"]) == (0.0, "thumbs_down", "no", "ann")
    hook.shutdown(2)
