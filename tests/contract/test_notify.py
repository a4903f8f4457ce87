"""Alerts are told to people through the real outbox: grouped, once, in one transaction with what is remembered."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from notify_desk import AT, NotifyDesk, Slip
from sqlalchemy import func, insert, select

from evalpipe.alerts.escalation import Step
from evalpipe.alerts.routing import Route, Routing
from evalpipe.channels.alertmanager import Alertmanager, AlertmanagerConfig
from evalpipe.controls import ControlError
from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED, MAX_BYTES, to_cloudevent
from evalpipe.pipeline import alert_view
from evalpipe.store import notices, outbox, silences
from evalpipe.store.silences import Wanted
from evalpipe.store.tables import alerts
from evalpipe.store.tables import notices as notices_table
from evalpipe.store.tables import outbox as outbox_table

HOUR = timedelta(hours=1)


@pytest.fixture
def make_desk(migrated_url: str) -> Iterator[Callable[..., NotifyDesk]]:
    """Makes desks on one database."""
    made: list[NotifyDesk] = []

    def make(*names: str, **options: Any) -> NotifyDesk:
        made.append(NotifyDesk(migrated_url, names or ("chat",), **options))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


@pytest.fixture
def desk(make_desk: Callable[..., NotifyDesk]) -> NotifyDesk:
    """One with a channel and the default routing."""
    return make_desk()


def test_an_alert_is_told_to_every_channel_with_all_that_people_need(make_desk: Callable[..., NotifyDesk]):
    """The shape of before at the top, the group and its alerts below; the end has the same key."""
    desk = make_desk("chat", "pager")
    alert_id = desk.fire("too-low")
    assert [n.cause for n in desk.tell()] == ["first"]
    (told,) = desk.letters("pager")
    assert desk.letters("chat") == [told]
    assert told["type"] == ALERT_FIRING
    assert told["subject"] == told["group_key"] == "default{service=desk,environment=prod,variant=v7}"
    expected = {
        "alert_id": alert_id, "rule": "too-low", "scorecard": "support", "criterion": "grounded", "state": "firing",
        "status": "firing", "cause": "first", "severity": "SEV2", "service": "desk", "environment": "prod",
        "variant": "v7", "value": 0.7, "n": 120, "threshold": 0.8, "reason": "too-low: 0.70 is below 0.80",
        "summary": "too-low: 0.70 is below 0.80", "title": "SEV2 desk/prod/v7: too-low", "n_alerts": 1,
        "fired_at": AT.isoformat(), "started_at": AT.isoformat(), "respond_by": (AT + HOUR).isoformat(),
        "labels": {"team": "care"}, "escalation": 0, "acked_by": "",
        "url": "https://evals.example/alerts#desk%2Fprod%2Fv7%2Fsupport%2Ftoo-low",
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    (listed,) = told["alerts"]
    assert (listed["status"], listed["explanation"]["share"]["estimate"]) == ("firing", 0.4)
    assert desk.tell(minutes=10) == []
    desk.resolve("too-low")
    assert [n.cause for n in desk.tell()] == ["resolved"]
    ended = desk.letters("pager")[-1]
    assert (ended["type"], ended["status"], ended["severity"]) == (ALERT_RESOLVED, "resolved", "SEV2")
    assert (ended["dedup_key"], ended["title"]) == (told["dedup_key"], "resolved: SEV2 desk/prod/v7: too-low")
    assert ended["alerts"][0]["resolved_at"] == desk.now.isoformat()
    assert desk.tell(hours=9) == []
    with desk.store.read() as tx:
        assert notices.groups(tx) == {}
        log = [(r.number, r.cause, r.channels) for r in tx.connection.execute(select(notices_table))]
    assert log == [(1, "first", ["chat", "pager"]), (2, "resolved", ["chat", "pager"])]


def test_a_dry_run_and_what_resolves_while_it_gathers_are_never_told(desk: NotifyDesk):
    """And an alert of SEV3 gathers for half a minute, over a restart too."""
    desk.fire("tried", "SEV1", dry_run=1)
    desk.fire("brief", "SEV3")
    assert desk.tell() == []
    desk.resolve("brief", "SEV3")
    assert desk.tell(seconds=20) == []
    desk.fire("slow", "SEV3")
    assert desk.tell() == []
    desk.stage = desk.notifier()
    assert [n.firing for n in desk.tell(seconds=30)] == [(desk.fire("slow", "SEV3"),)]
    assert len(desk.letters()) == 1


def test_nothing_is_told_twice_nor_lost_where_the_notifier_dies(desk: NotifyDesk, monkeypatch: pytest.MonkeyPatch):
    """Between the letters and the memory: then nothing was told, and the next one tells it."""
    desk.fire("too-low")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(notices, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            desk.tell()
    assert desk.letters() == []
    assert len(desk.tell()) == 1
    assert desk.notifier()(desk.now) == []
    assert len(desk.letters()) == 1


def test_two_notifiers_at_once_tell_everything_once(desk: NotifyDesk):
    """Each alert and channel has one letter, and the log no gap."""
    for n in range(6):
        desk.fire("too-low", variant=f"v{n}")
    stages = [desk.notifier() for _ in range(4)]
    gate = threading.Barrier(len(stages))
    told: list[int] = []

    def run(stage: Any) -> None:
        gate.wait()
        told.append(len(stage(desk.now)))

    threads = [threading.Thread(target=run, args=(stage,)) for stage in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(told) == 6
    assert len(desk.letters()) == 6
    with desk.store.read() as tx:
        assert tx.connection.scalar(select(func.count()).select_from(notices_table)) == 6


def test_an_acknowledgement_ends_repeats_and_escalation_and_stands_in_the_incident(
    make_desk: Callable[..., NotifyDesk],
):
    """By id, by rule or by group; void when the severity rises or it fires anew."""
    routing = Routing((Route("all", channels=("chat",)),), (Step(timedelta(minutes=15), ("boss",)),))
    desk = make_desk("chat", "boss", routing=routing)
    alert_id = desk.fire("too-low")
    desk.tell()
    assert [n.cause for n in desk.tell(minutes=15)] == ["escalated"]
    (escalated,) = desk.letters("boss")
    assert (escalated["cause"], escalated["escalation"]) == ("escalated", 1)
    assert escalated["summary"].startswith("nobody has acknowledged this in time: ")
    who = {"actor": "ada", "reason": "rolling back", "now": desk.now}
    with desk.store.begin() as tx:
        assert alert_view.acknowledge(tx, "too-low", **who) == [alert_id]
    assert [n.cause for n in desk.tell(seconds=1)] == ["acknowledged"]
    assert desk.letters("chat")[-1]["summary"] == "ada has taken this: too-low: 0.70 is below 0.80"
    assert desk.tell(hours=9) == []
    assert desk.timeline(alert_id, AT) == [
        "nobody has acknowledged too-low in time; told to chat, boss",
        "ada acknowledged too-low: rolling back",
    ]
    with desk.store.read() as tx:
        shown = alert_view.view(tx, alert_id, desk.now)
    assert shown is not None
    assert (shown["acked"], shown["acked_by"], shown["escalation"], shown["respond_by"]) == (True, "ada", 1, None)
    assert "ada acknowledged too-low: rolling back" in [entry["text"] for entry in shown["timeline"]]
    desk.change("too-low", "SEV1")
    assert [n.cause for n in desk.tell(seconds=1)] == ["raised"]
    assert desk.letters("chat")[-1]["acked_by"] == "ada"
    assert [n.cause for n in desk.tell(minutes=15)] == ["escalated"]
    with desk.store.begin() as tx:
        ((dedup_key, group),) = notices.groups(tx).items()
        assert alert_view.acknowledge(tx, dedup_key, **who) == [alert_id]
        assert alert_view.acknowledge(tx, group.key, **who) == [alert_id]
        with pytest.raises(ControlError, match="did you mean 'too-low'"):
            alert_view.acknowledge(tx, "too-lo", **who)
    desk.resolve("too-low", "SEV1")
    assert [n.channels for n in desk.tell(hours=1)] == [("chat", "boss")]
    with desk.store.begin() as tx, pytest.raises(ControlError, match="does not fire"):
        alert_view.acknowledge(tx, alert_id, **who)


def test_a_silence_mutes_from_now_until_its_end_and_is_never_deleted(desk: NotifyDesk):
    """What it mutes is noted on the alert; when it is ended, what still fires is told."""
    wanted = Wanted({"rule": "too-*", "team": "care"}, "ada", "load test", 2 * HOUR)
    with desk.store.begin() as tx:
        silence = silences.add(tx, wanted, desk.now)
    alert_id = desk.fire("too-low", "SEV1")
    assert desk.tell() == []
    with desk.store.read() as tx:
        (shown,) = alert_view.listed(tx)
    assert (shown["muted_by"], shown["respond_by"]) == (silence["silence_id"], None)
    with desk.store.begin() as tx:
        silences.end(tx, silence["silence_id"], author="bob", reason="over", now=desk.now)
    assert [n.firing for n in desk.tell(minutes=1)] == [(alert_id,)]
    with desk.store.begin() as tx:
        assert [(s["state"], s["ended_by"]) for s in silences.listing(tx, desk.now)] == [("ended", "bob")]
        assert silences.listing(tx, desk.now, only_active=True) == []
        with pytest.raises(ControlError, match="it is over since"):
            silences.end(tx, silence["silence_id"], author="bob", reason="", now=desk.now)
        silences.add(tx, wanted, desk.now)
    assert desk.tell(hours=1) == []
    assert [n.firing for n in desk.tell(hours=1)] == [(alert_id,)], "it expires by itself"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matchers": {"rule": "*"}}, "mute every alert"),
        ({"matchers": {}}, "mute every alert"),
        ({"reason": " "}, "needs a reason"),
        ({"author": ""}, "nobody stands for it"),
        ({"lasts": timedelta(days=31)}, "at most 30 days"),
        ({"lasts": timedelta(0)}, "more than 0 s"),
    ],
)
@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_a_silence_without_limit_or_author_is_refused(desk: NotifyDesk, changes: dict[str, Any], words: str):
    """It would be a rule that somebody forgot."""
    fields = {"matchers": {"rule": "a"}, "author": "ada", "reason": "x", "lasts": HOUR, **changes}
    with desk.store.begin() as tx, pytest.raises(ControlError, match=words):
        silences.add(tx, Wanted(**fields), desk.now)


def test_a_sev1_and_a_judge_mute_what_follows_from_them(desk: NotifyDesk):
    """The SEV3 of the service, and the alerts whose values come from a judge that is stopped."""
    desk.fire("cost", "SEV1")
    minor = desk.fire("slow", "SEV3")
    judge = {"alert_id": "judges/judge-stopped/openai:x", "scorecard": "", "service": "", "environment": "",
             "kind": "judge", "labels": {}}  # fmt: skip
    desk.fire("judge-stopped", "SEV2", **{**judge, "variant": "openai:x"})
    graded = desk.fire("ungrounded", "SEV2", service="other", labels={"judge": "openai:w, openai:x"})
    told = {id_ for notice in desk.tell(minutes=1) for id_ in notice.firing}
    assert told == {"desk/prod/v7/support/cost", "judges/judge-stopped/openai:x"}
    with desk.store.read() as tx:
        by = {row.alert_id: row.muted_by for row in tx.connection.execute(select(alerts))}
    assert (by[minor], by[graded]) == ("desk/prod/v7/support/cost", "judges/judge-stopped/openai:x")
    desk.resolve("cost", "SEV1")
    assert minor in {id_ for notice in desk.tell(minutes=6) for id_ in notice.firing}


def test_a_large_group_stays_within_what_receivers_take(desk: NotifyDesk):
    """Twenty alerts are listed at the most; examples go first, then explanations, then alerts."""
    long = [{"record_id": f"r-{i}", "value": 0.0, "explanation": "é" * 2_000} for i in range(10)]
    for n in range(30):
        desk.fire(f"rule-{n:02}", "SEV1" if n == 7 else "SEV2", explanation={"criterion": "g", "examples": long})
    (notice,) = desk.tell()
    assert len(notice.firing) == 30
    (told,) = desk.letters()
    assert (told["n_alerts"], told["rule"], told["alerts"][0]["rule"]) == (30, "rule-07", "rule-07")
    assert 1 <= len(told["alerts"]) <= 20
    with desk.store.read() as tx:
        (body,) = tx.connection.scalars(select(outbox_table.c.body))
    assert len(body) <= MAX_BYTES


def test_a_channel_that_has_a_state_for_each_alert_is_told_of_all_of_them(desk: NotifyDesk):
    """Of a large group too: what Alertmanager was never told the end of would fire there for a day."""

    class Whole(Slip):
        whole = True

    desk.channels |= {"whole": Whole(), "am": Alertmanager(AlertmanagerConfig(url="http://am:9093"))}
    desk.stage = desk.notifier()
    for n in range(30):
        desk.fire(f"rule-{n:02}")
    desk.tell()
    (told,) = desk.letters("whole")
    assert len(told["alerts"]) == told["n_alerts"] == 30
    assert [bool(alert["explanation"]) for alert in told["alerts"]] == [True] * 20 + [False] * 10
    for n in range(30):
        desk.resolve(f"rule-{n:02}")
    desk.tell(minutes=6)
    with desk.store.read() as tx:
        query = select(outbox_table.c.body).where(outbox_table.c.channel == "am")
        fired, ended = (json.loads(body) for body in tx.connection.scalars(query.order_by(outbox_table.c.created_at)))
    assert {alert["labels"]["alertname"] for alert in fired} == {f"rule-{n:02}" for n in range(30)}
    over = {alert["labels"]["alertname"] for alert in ended if alert["labels"]["sev"] == "2" and "endsAt" in alert}
    assert len(over) == 30


def test_a_channel_that_cannot_render_a_notice_keeps_no_other_from_hearing(desk: NotifyDesk, caplog: Any):
    """Everybody else is told, once."""

    class Broken(Slip):
        def render(self, notification: Any) -> bytes:
            raise KeyError(notification.type)

    desk.channels = {"broken": Broken(), **desk.channels}
    desk.stage = desk.notifier()
    desk.fire("too-low")
    assert len(desk.tell()) == 1
    assert [told["rule"] for told in desk.letters()] == ["too-low"]
    assert "channel broken cannot render" in caplog.text
    assert desk.tell(minutes=1) == []


def test_a_quiet_installation_is_only_read(desk: NotifyDesk, monkeypatch: pytest.MonkeyPatch):
    """Every two seconds, beside what writes: nobody waits for it."""
    desk.fire("too-low")
    desk.tell()
    monkeypatch.setattr(desk.store, "patiently", lambda _: pytest.fail("it wrote"))
    assert desk.tell(minutes=1) == []


def test_decisions_pass_whatever_is_silenced(desk: NotifyDesk):
    """They are posted by their own stages; a silence has nothing to do with them."""
    from evalpipe.notification import ROLLBACK, Notification

    with desk.store.begin() as tx:
        silences.add(tx, Wanted({"service": "desk"}, "ada", "x", HOUR), desk.now)
        note = Notification("evt_1", ROLLBACK, "r-1", desk.now, {"seq": 1, "service": "desk"}, "/t")
        outbox.post(tx, note, "chat", to_cloudevent(note))
    desk.fire("too-low", "SEV1")
    desk.tell()
    assert [told["type"] for told in desk.letters()] == [ROLLBACK]


def test_the_log_is_forgotten_with_everything_else(desk: NotifyDesk):
    """Notices that are older than the retention."""
    row = {"group_key": "g", "since": AT, "number": 1, "at": AT, "cause": "first", "channels": [], "alerts": []}
    with desk.store.begin() as tx:
        tx.connection.execute(insert(notices_table).values(**row))
        notices.remove_old(tx, AT)
        assert tx.connection.scalar(select(func.count()).select_from(notices_table)) == 1
        notices.remove_old(tx, AT + HOUR)
        assert tx.connection.scalar(select(func.count()).select_from(notices_table)) == 0
