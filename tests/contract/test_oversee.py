"""Alerts about judges, on a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update
from stages import AT, World, at_once, records

from evalpipe.alerts.routing import Route, Routing
from evalpipe.channels.base import Delivery
from evalpipe.cli.judge_list import judges_of
from evalpipe.judges.config import judge_config
from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED, to_cloudevent
from evalpipe.pipeline.notify import Notify
from evalpipe.pipeline.oversee import Oversee
from evalpipe.settings import Settings
from evalpipe.store import judge_states as judge_states_store
from evalpipe.store.tables import (
    alerts,
    incidents,
    judge_calls,
    judge_health,
    judge_spend,
    judge_states,
    outbox,
    scores,
    work,
)

JUDGE = "fake:demo"
AT_ONCE = Routing((Route("all", group_by=("alert_id",), group_wait=timedelta(0), group_interval=timedelta(0)),))
"""Each alert by itself, and nothing waits."""


class Channel:
    """Keeps nothing: the outbox has it all."""

    def render(self, notification: Any) -> bytes:
        """As a webhook has it."""
        return to_cloudevent(notification)

    def send(self, body: bytes, *, event_id: str, at: Any) -> Delivery:
        """It is never asked to."""
        raise NotImplementedError


class Post:
    """An overseer with two channels, and what came of it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.world = World(url, folder)
        self.caps: dict[str, float] = {}
        self.judge = JUDGE

    def look(self, **later: float) -> list[tuple[str, str]]:
        """Look once, as a process that has just started; rules with what became of their alerts."""
        now = self.world.clock.pass_(**(later or {"seconds": 15}))
        found = Oversee(
            self.world.store,
            self.world.cards,
            {"one": Channel(), "two": Channel()},
            source="/test",
            config_of=lambda model: judge_config(Settings(judge=self.judge), model),
            caps=self.caps,
        )(now)
        Notify(self.world.store, {"one": Channel(), "two": Channel()}, source="/test", routing=AT_ONCE)(now)
        return [(change.rule, change.after) for change in found]

    def breaker(self, state: str, judge: str = JUDGE) -> None:
        """Put a judge into a state."""
        values = {"state": state, "reason": "no credit", "cause": "credit", "since_at": AT, "detail": {}}
        with self.world.store.begin() as tx:
            tx.connection.execute(judge_states.delete().where(judge_states.c.judge == judge))
            tx.connection.execute(insert(judge_states), {"judge": judge, **values})

    def until(self, at: datetime) -> None:
        """Until when the judge is left alone."""
        with self.world.store.begin() as tx:
            tx.connection.execute(update(judge_states).values(until_at=at))

    def told(self, type_: str) -> list[dict[str, Any]]:
        """What the channels are owed, one of each pair."""
        rows = self.world.rows(outbox, type=type_)
        assert [row["channel"] for row in rows].count("one") == [row["channel"] for row in rows].count("two")
        assert len({row["event_id"] for row in rows}) == len(rows)
        return [json.loads(row["body"])["data"] for row in rows if row["channel"] == "one"]


@pytest.fixture
def post(migrated_url: str, tmp_path: Path) -> Iterator[Post]:
    """An overseer on an empty database."""
    made = Post(migrated_url, tmp_path)
    yield made
    made.world.close()


def test_nothing_is_told_of_judges_that_do_well(post: Post) -> None:
    """And nothing is written."""
    post.breaker("closed")
    assert post.look() == []
    assert post.world.count(alerts) == 0


def test_a_stopped_judge_is_told_once_and_resolves_by_itself(post: Post) -> None:
    """Severity 2 with an incident; whoever looks again, and after a restart, tells nothing new."""
    post.breaker("stopped")
    assert post.look() == [("judge-stopped", "firing")]
    for _ in range(3):
        assert post.look() == []
    (alert,) = post.world.rows(alerts)
    assert (alert["severity"], alert["status"], alert["variant"], alert["scorecard"]) == ("SEV2", "firing", JUDGE, "")
    (data,) = post.told(ALERT_FIRING)
    assert (data["judge"], data["rule"], data["alert_id"]) == (JUDGE, "judge-stopped", "judges/judge-stopped/fake:demo")
    assert "fake:demo is stopped: no credit" in data["reason"]
    (incident,) = post.world.rows(incidents)
    assert (incident["severity"], incident["title"]) == ("SEV2", "fake:demo: judge-stopped")
    assert incident["resolved_at"] is None
    post.breaker("closed")
    assert post.look() == [("judge-stopped", "resolved")]
    (incident,) = post.world.rows(incidents)
    assert incident["resolved_at"] == post.world.clock()
    assert [entry["text"][:11] for entry in incident["timeline"]] == ["judge fake:", "it is over:"]
    assert post.look() == []
    assert [data["reason"][:11] for data in post.told(ALERT_RESOLVED)] == ["it is over:"]
    post.breaker("stopped")
    assert post.look() == [("judge-stopped", "firing")]
    assert (len(post.told(ALERT_FIRING)), post.world.count(incidents)) == (2, 2)


def test_two_overseers_at_once_tell_it_once(post: Post) -> None:
    """Of two judges in trouble."""
    post.breaker("stopped")
    post.breaker("open", "fake:other")
    done = at_once(lambda: post.look(seconds=1), lambda: post.look(seconds=1))
    assert sorted([*done[0], *done[1]]) == [("judge-failing", "firing"), ("judge-stopped", "firing")]
    assert len(post.told(ALERT_FIRING)) == 2
    assert post.world.count(incidents) == 1


def test_a_failing_judge_opens_no_incident_and_does_not_flap(post: Post) -> None:
    """Severity 3; a breaker that closes and opens again within two minutes is one alert."""
    post.breaker("open")
    assert post.look() == [("judge-failing", "firing")]
    assert post.world.count(incidents) == 0
    for state in ("half_open", "closed", "open", "closed"):
        post.breaker(state)
        assert post.look(seconds=60) == []
    assert post.look(minutes=2) == [("judge-failing", "resolved")]


def test_an_open_breaker_that_nobody_waits_for_is_no_failure_for_ever(post: Post) -> None:
    """Its time is over, no work waits and no call came: the next call will tell, and until then nobody is alarmed."""
    post.breaker("open")
    post.until(AT + timedelta(minutes=1))
    assert post.look() == [("judge-failing", "firing")]
    post.world.ingest(*records(3))
    with post.world.store.begin() as tx:
        tx.connection.execute(
            update(work).values(reason=f"{judge_states_store.waiting_for(JUDGE)}open", state="pending")
        )
    assert post.look(minutes=10) == []
    (alert,) = post.world.rows(alerts)
    assert alert["summary"].endswith("it is tried again by itself")
    call = {"minute_at": post.world.clock(), "judge": JUDGE, "scorecard": "", "outcome": "server", "n": 1}
    with post.world.store.begin() as tx:
        tx.connection.execute(update(work).values(reason=""))
        tx.connection.execute(insert(judge_calls), call)
    assert post.look(minutes=4) == []
    assert post.look(minutes=2) == []
    (alert,) = post.world.rows(alerts)
    assert "may be tried again, and nobody has asked it since; this has ended" in alert["summary"]
    assert post.look(minutes=3) == [("judge-failing", "resolved")]
    (data,) = post.told(ALERT_RESOLVED)
    idle = "since 2026-03-01 10:01 UTC it may be tried again, and nobody has asked it since"
    assert data["reason"] == f"it is over: judge fake:demo failed: no credit; {idle}"
    assert post.look() == []
    post.until(post.world.clock() + timedelta(minutes=2))
    assert post.look() == [("judge-failing", "firing")]


def test_a_judge_that_may_be_tried_again_is_listed_as_one_that_waits_for_a_call(post: Post) -> None:
    """And not as open until a time that is past."""
    post.breaker("open")
    post.until(AT + timedelta(minutes=1))
    found = []
    with post.world.store.read() as tx:
        for at in (AT, AT + timedelta(minutes=2)):
            found += [(row["state"], row["until_at"], row["waits_for_call"]) for row in judges_of(tx, at)]
    assert found == [("open", AT + timedelta(minutes=1), False), ("half_open", None, True)]


def test_a_suspect_judge_is_named_with_what_it_grades(post: Post) -> None:
    """One alert for each criterion; only the judge that grades now counts."""
    row = {
        "scorecard": "support", "judge_version": "fake:demo/abc", "state": "suspect", "reason": "it moved by 0.20",
        "test": {}, "since_at": AT, "tested_at": AT, "stale_at": AT + timedelta(hours=2), "accepted": [],
    }  # fmt: skip
    rows = [{**row, "criterion": "grounded"}, {**row, "criterion": "polite"}]
    old = {**rows[0], "judge_version": "fake:old/abc", "tested_at": AT - timedelta(days=9)}
    with post.world.store.begin() as tx:
        tx.connection.execute(insert(judge_health), [*rows, old])
    assert post.look() == [("judge-suspect", "firing")] * 2
    assert sorted(data["criterion"] for data in post.told(ALERT_FIRING)) == ["grounded", "polite"]
    assert all("fake:demo/abc is suspect on support/" in data["reason"] for data in post.told(ALERT_FIRING))
    assert [row["severity"] for row in post.world.rows(incidents)] == ["SEV2", "SEV2"]
    with post.world.store.begin() as tx:
        tx.connection.execute(update(judge_health).values(state="healthy"))
    assert post.look() == [("judge-suspect", "resolved")] * 2
    assert sorted(data["criterion"] for data in post.told(ALERT_RESOLVED)) == ["grounded", "polite"]


def test_a_model_that_is_going_to_be_switched_off_is_told_weeks_before(post: Post) -> None:
    """Until another one is configured."""
    post.judge = "fake:demo?retires=2026-03-20"
    assert post.look() == [("judge-retiring", "firing")]
    (data,) = post.told(ALERT_FIRING)
    assert "fake:demo retires in 19 days, on 2026-03-20" in data["reason"]
    post.judge = "fake:next"
    assert post.look() == [("judge-retiring", "resolved")]


def test_a_fallback_in_use_is_told_with_the_step_of_the_ladder(post: Post) -> None:
    """It is over some minutes after its last score."""
    row = {
        "record_id": "r-1", "criterion": "grounded", "scorecard_version": "v", "epoch": "e", "scorecard": "support",
        "captured_at": AT, "scored_at": AT, "status": "scored", "value": 1.0, "weight": 1.0, "step": 1,
        "scorer": "fake:other/abc",
    }  # fmt: skip
    with post.world.store.begin() as tx:
        tx.connection.execute(insert(scores), [row, {**row, "record_id": "r-2", "step": 0, "scorer": "fake:demo/abc"}])
    assert post.look() == [("judge-fallback", "firing")]
    (data,) = post.told(ALERT_FIRING)
    assert data["judge"] == "fake:other/abc"
    assert "gave 1 scores of support/grounded" in data["reason"]
    assert "step 1 of the ladder" in data["reason"]
    with post.world.store.begin() as tx:
        tx.connection.execute(insert(scores), {**row, "record_id": "r-3"})
    assert post.look() == []
    assert "gave 2 scores of support/grounded" in post.world.rows(alerts)[0]["summary"]
    assert post.look(minutes=5) == []
    assert post.look(minutes=5) == [("judge-fallback", "resolved")]


def test_money_that_runs_short_is_told_before_it_is_used_up(post: Post) -> None:
    """Of each scope that has a cap; the next day it is over."""
    post.caps = {"all": 10.0, "scorecard:support": 100.0, "judge:fake:demo": 1.0}

    def spend(**usd: float) -> None:
        with post.world.store.begin() as tx:
            tx.connection.execute(judge_spend.delete())
            rows = [{"day": AT.date().isoformat(), "scope": scope, "spent_usd": v - 0.5, "reserved_usd": 0.5,
                     "pace": {}} for scope, v in usd.items()]  # fmt: skip
            tx.connection.execute(insert(judge_spend), rows)

    spend(**{"all": 9.1, "scorecard:support": 50.0})
    assert post.look() == [("judge-cap-near", "firing")]
    assert "the cap of 10 USD a day of all runs short" in post.told(ALERT_FIRING)[0]["reason"]
    spend(**{"all": 10.0, "scorecard:support": 50.0})
    assert post.look() == [("judge-cap-exhausted", "firing"), ("judge-cap-near", "resolved")]
    assert post.look(hours=20) == [("judge-cap-exhausted", "resolved")]


@pytest.mark.parametrize("where", ["alerting.open_incident", "alerting.save_alert"])
def test_an_alert_and_its_incident_are_one_transaction(post: Post, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """If any of it fails nothing has happened; afterwards it happens."""
    post.breaker("stopped")
    tables = ("alerts", "incidents", "outbox")
    with monkeypatch.context() as patch:
        patch.setattr(f"evalpipe.store.{where}", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            post.look()
    everything = post.world.everything()
    assert [everything[name] for name in tables] == [[], [], []]
    assert post.look() == [("judge-stopped", "firing")]
