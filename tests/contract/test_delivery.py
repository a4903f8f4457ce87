"""The outbox and its deliverer: order, leases, overtaking, disabled channels, and the alarm when nobody hears."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from recording import Recorder, always
from services import Postgres
from sqlalchemy import select
from stages import AT, Clock, at_once

from evalpipe.channels.base import ChannelConfig, Delivery
from evalpipe.channels.schedule import URGENT_S
from evalpipe.channels.stdout import Stdout
from evalpipe.channels.unleash import Unleash, UnleashConfig
from evalpipe.channels.webhook import Webhook, WebhookConfig
from evalpipe.errors import ConfigError
from evalpipe.notification import ADVANCE, ALERT_FIRING, ALERT_RESOLVED, HOLD, ROLLBACK, Notification
from evalpipe.pipeline.deliver import LEASE, Deliver, Sent
from evalpipe.pipeline.notify import Notify
from evalpipe.pipeline.undelivered import Undelivered
from evalpipe.signing import new_secret, verify_signature
from evalpipe.store import endpoints, outbox
from evalpipe.store.outbox import Lane
from evalpipe.store.sql import Store
from evalpipe.store.tables import alerts, deliveries, incidents
from evalpipe.store.tables import endpoints as endpoints_table
from evalpipe.store.tables import outbox as outbox_table

FAILED = Delivery(ok=False, status=503, error="HTTP 503", recoverable=True)
GONE = Delivery(ok=False, status=410, error="HTTP 410 Gone", recoverable=False, disable=True)
SECRET = new_secret()


class Fake:
    """A channel that keeps what it is sent; ``results`` are what the next sends give, then all is well."""

    def __init__(self, *results: Delivery) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.results = list(results)

    def render(self, notification: Any) -> bytes:
        """Its type."""
        return str(notification.type).encode()

    def send(self, body: bytes, *, event_id: str, at: Any) -> Delivery:
        """Keep it."""
        self.sent.append((event_id, body))
        return self.results.pop(0) if self.results else Delivery(ok=True, status=200)

    @property
    def ids(self) -> list[str]:
        """The events in the order they came."""
        return [event_id for event_id, _ in self.sent]


class Bench:
    """One database with a clock that the test moves."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.clock = Clock()

    def post(
        self, event_id: str, type_: str = ALERT_FIRING, channel: str = "one", subject: str = "s", **data: Any
    ) -> None:
        """Owe one notification now."""
        with self.store.begin() as tx:
            outbox.post(
                tx, Notification(event_id, type_, subject, self.clock(), data, "/t"), channel, event_id.encode()
            )

    def decide(self, channels: dict[str, Any], type_: str, seq: int, rollout: str = "ro", **data: Any) -> None:
        """Owe a decision to channels as they render it."""
        told = {"seq": seq, "service": "desk", "decision_id": f"dec_ro_{seq}", "from_percent": 5, "reason": "r", **data}
        with self.store.begin() as tx:
            for name, channel in channels.items():
                note = Notification(f"evt_{rollout[2:]}{seq}_{name}", type_, rollout, self.clock(), told, "/t")
                outbox.post(tx, note, name, channel.render(note))

    def deliver(self, **channels: Any) -> Deliver:
        """The stage."""
        return Deliver(self.store, channels, self.clock)

    def rows(self, table: Any = outbox_table) -> list[dict[str, Any]]:
        """All of a table by its key."""
        with self.store.read() as tx:
            return [dict(row) for row in tx.connection.execute(select(table).order_by(*table.primary_key)).mappings()]

    def states(self) -> dict[str, str]:
        """The state of each letter."""
        return {row["event_id"]: row["state"] for row in self.rows()}


@pytest.fixture
def bench(migrated_url: str) -> Iterator[Bench]:
    """Over each database."""
    made = Bench(migrated_url)
    yield made
    made.store.close()


@pytest.fixture
def lite(migrated_sqlite_url: str) -> Iterator[Bench]:
    """Over SQLite, for what does not depend on the database."""
    made = Bench(migrated_sqlite_url)
    yield made
    made.store.close()


# ---------------------------------------------------------------------------------------------------------- claiming


def test_a_notification_is_owed_once_and_one_without_a_body_not_at_all(bench: Bench) -> None:
    """The bytes that are sent are those of the first time."""
    bench.post("a")
    bench.post("a", HOLD)
    with bench.store.begin() as tx:
        outbox.post(tx, Notification("b", HOLD, "s", AT, {}, "/t"), "one", b"")
        letter = outbox.claim(tx, Lane("one", False), AT, LEASE)
    assert letter is not None
    assert (letter.event_id, letter.type, letter.attempts, letter.body) == ("a", ALERT_FIRING, 1, b"a")
    assert list(bench.states()) == ["a"]


def test_letters_of_a_channel_keep_their_order_and_a_rollback_overtakes_them(bench: Bench) -> None:
    """One at a time; the rollbacks' lane does not wait for the other."""
    for seq, event_id in enumerate(["a", "b", "c"], start=1):
        bench.post(event_id, ADVANCE, seq=seq)
    bench.post("r", ROLLBACK, seq=4)
    with bench.store.begin() as tx:
        assert outbox.due(tx, AT) == [Lane("one", True), Lane("one", False)]
        first = outbox.claim(tx, Lane("one", False), AT, LEASE)
        assert first is not None
        assert first.event_id == "a"
        assert outbox.claim(tx, Lane("one", False), AT, LEASE) is None
        urgent = outbox.claim(tx, Lane("one", True), AT, LEASE)
        assert urgent is not None
        assert urgent.event_id == "r"
        outbox.record_attempt(tx, first, AT, Delivery(ok=True), None)
        second = outbox.claim(tx, Lane("one", False), AT, LEASE)
        assert second is not None
        assert second.event_id == "b"


def test_a_letter_that_waits_for_its_next_attempt_does_not_hold_up_the_later_ones(lite: Bench) -> None:
    """Receivers put late ones aside by their number."""
    lite.post("a", ADVANCE, seq=1)
    lite.post("b", ADVANCE, seq=2)
    channel = Fake(FAILED)
    lite.deliver(one=channel)()
    assert channel.ids == ["a", "b"]
    assert lite.states() == {"a": "pending", "b": "delivered"}


def test_a_channel_that_raises_holds_up_no_other_and_tells_no_secret(bench: Bench) -> None:
    """As one does that was configured as another kind while a letter waited: the letter keeps to its schedule."""

    class Broken(Fake):
        def send(self, body: bytes, *, event_id: str, at: Any) -> Delivery:
            super().send(body, event_id=event_id, at=at)
            raise KeyError("https://hooks.example/secret")

    broken, well = Broken(), Fake()
    for event_id in ("a", "b"):
        bench.post(event_id, channel="broken", subject=event_id)
        bench.post(f"{event_id}2", channel="well", subject=event_id)
    deliver = bench.deliver(broken=broken, well=well)
    assert deliver() == Sent(delivered=2, failed=2)
    assert deliver() == Sent()
    assert (broken.ids, well.ids) == (["a", "b"], ["a2", "b2"])
    tried = bench.rows(deliveries)
    assert {row["error"] for row in tried if not row["ok"]} == {
        "the channel 'broken' cannot send this: it raised KeyError"
    }
    bench.clock.at += timedelta(seconds=10)
    assert deliver().failed == 2


@pytest.mark.parametrize("by_episode", [False, True])
def test_an_end_that_is_told_late_does_not_end_the_next_episode(bench: Bench, by_episode: bool) -> None:
    """Unless the other side has a name for each episode: there the old one would fire for ever."""

    class Ordered(Fake):
        in_order = True

    channel = Ordered(FAILED, FAILED)
    channel.by_episode = by_episode  # type: ignore[attr-defined]
    deliver = bench.deliver(one=channel)
    bench.post("end", ALERT_RESOLVED)
    assert deliver().failed == 1
    bench.clock.at += timedelta(seconds=1)
    bench.post("next", ALERT_FIRING)
    assert deliver() == Sent(delivered=1, failed=1)
    bench.clock.at += timedelta(hours=1)
    deliver()
    assert channel.ids == ["end", "end", "next", *(["end"] if by_episode else [])]
    assert bench.states()["end"] == ("delivered" if by_episode else "overtaken")


def test_two_deliverers_at_once_send_each_letter_once_and_in_order(bench: Bench) -> None:
    """Four of them, over three channels and three rollouts."""
    for i in range(45):
        bench.post(f"e{i:02}", ADVANCE, channel=f"c{i % 3}", subject=f"s{i % 9 // 3}", seq=i)
    channels = {f"c{i}": Fake() for i in range(3)}
    at_once(*[bench.deliver(**channels)] * 4)
    while "pending" in bench.states().values():
        bench.deliver(**channels)()
    for name, channel in channels.items():
        assert sorted(channel.ids) == [f"e{i:02}" for i in range(45) if f"c{i % 3}" == name]
        for subject in range(3):
            mine = [e for e in channel.ids if int(e[1:]) % 9 // 3 == subject]
            assert mine == sorted(mine)


def test_a_receiver_that_hangs_delays_neither_others_nor_its_own_rollback(lite: Bench) -> None:
    """An alert hangs on one channel while a rollback is decided for both."""
    asked, let_go = threading.Event(), threading.Event()

    def slowly(seen: Any) -> Any:
        if b"alert" in seen.body:
            asked.set()
            let_go.wait(60)
        return 204, {}, b""

    with Recorder(slowly) as slow, Recorder() as quick:
        channels = {
            name: Webhook(WebhookConfig(url=server.url, secrets=(SECRET,)))
            for name, server in {"slow": slow, "quick": quick}.items()
        }
        note = Notification("evt_alert", ALERT_FIRING, "alert", AT, {}, "/t")
        with lite.store.begin() as tx:
            outbox.post(tx, note, "slow", channels["slow"].render(note))
        running = threading.Thread(target=lite.deliver(**channels))
        running.start()
        assert asked.wait(60)
        lite.decide(channels, ROLLBACK, 1)
        assert quick.wait_for(1)
        assert slow.wait_for(2)
        let_go.set()
        running.join(60)
    assert set(lite.states().values()) == {"delivered"}


def test_the_schedule_of_a_rollback_is_kept_in_the_database(bench: Bench) -> None:
    """1, 2, 5, 10, 20, 40 and 60 seconds after a failure, whoever restarts; the delays grow by a tenth at the most."""
    channel = Fake(*[FAILED] * 100)
    bench.post("r", ROLLBACK)
    for attempt, delay_s in enumerate(URGENT_S[:8], start=1):
        bench.deliver(one=channel)()
        assert len(channel.sent) == attempt
        bench.clock.pass_(seconds=delay_s * 0.99)
        bench.deliver(one=channel)()
        assert len(channel.sent) == attempt
        bench.clock.pass_(seconds=delay_s * 0.12)
    assert URGENT_S[:8] == (1, 2, 5, 10, 20, 40, 60, 300)


# -------------------------------------------------------------------------------------------------------- overtaking


def unleash(url: str, **fields: Any) -> Unleash:
    """A channel that acts."""
    values = {"url": url, "token": "token-1", "service": "desk", "feature": "f", "strategy_id": "s-1", **fields}
    return Unleash(UnleashConfig.model_validate(values))


def acts(server: Recorder) -> list[str]:
    """What was asked of Unleash, in words: the share, or off."""
    return [
        seen.json[0]["value"] if seen.method == "PATCH" else seen.path.rpartition("/")[2]
        for seen in server.seen
        if not seen.path.endswith("/on")
    ]


def test_a_late_advance_never_undoes_a_rollback(bench: Bench) -> None:
    """The advance failed first; once the rollback is there it is not tried again."""
    with Recorder(always(503)) as server:
        channels = {"flag": unleash(server.url)}
        bench.decide(channels, ADVANCE, 1, to_percent=20)
        bench.deliver(**channels)()
        server.answering = always(200)
        bench.decide(channels, ROLLBACK, 2, to_percent=0)
        bench.deliver(**channels)()
        bench.clock.pass_(hours=1)
        bench.deliver(**channels)()
        bench.deliver(**channels)()
    rows = {row["event_id"]: row for row in bench.rows()}
    assert acts(server)[:2] == ["20", "off"]
    assert acts(server)[-1] == "off"
    assert (rows["evt_1_flag"]["state"], rows["evt_2_flag"]["state"]) == ("overtaken", "delivered")
    assert rows["evt_1_flag"]["reason"] == "overtaken by decision 2 of rollout ro"
    assert rows["evt_1_flag"]["attempts"] == 1


def test_an_advance_that_hangs_past_the_rollback_is_made_up_for(lite: Bench) -> None:
    """The rollback went out while the advance was under way, so it goes out once more after it."""
    begun, go_on = threading.Event(), threading.Event()

    def answering(seen: Any) -> Any:
        if seen.method == "PATCH":
            begun.set()
            go_on.wait(60)
        return 200, {}, b""

    with Recorder(answering) as server:
        channels = {"flag": unleash(server.url)}
        lite.decide(channels, ADVANCE, 1, to_percent=20)
        running = threading.Thread(target=lite.deliver(**channels))
        running.start()
        assert begun.wait(60)
        lite.decide(channels, ROLLBACK, 2)
        assert server.wait_for(2)
        go_on.set()
        running.join(60)
        lite.deliver(**channels)()
    assert acts(server) == ["20", "off", "off"]
    assert lite.states() == {"evt_1_flag": "delivered", "evt_2_flag": "delivered"}
    assert [row["attempts"] for row in lite.rows()] == [1, 2]


def test_of_several_waiting_steps_only_the_newest_is_set_and_a_webhook_gets_all(bench: Bench) -> None:
    """A flag needs the last word; whoever keeps a log needs every one."""
    with Recorder(always(200)) as server:
        channels = {"flag": unleash(server.url), "log": Fake()}
        for seq, percent in enumerate([5, 20, 50], start=1):
            bench.decide(channels, ADVANCE, seq, from_percent=1, to_percent=percent)
        bench.decide(channels, HOLD, 4, from_percent=50, to_percent=50)
        bench.deliver(**channels)()
    assert acts(server) == ["50"]
    assert channels["log"].ids == ["evt_1_log", "evt_2_log", "evt_3_log", "evt_4_log"]
    assert [row["state"] for row in bench.rows() if row["channel"] == "flag"] == ["overtaken", "overtaken", "delivered"]


def test_a_flag_follows_the_newest_rollout_but_no_other_rollouts_step_costs_a_rollback(lite: Bench) -> None:
    """A step of a rollout that was superseded is left out; a rollback that could not be delivered is not."""
    with Recorder(always(503)) as server:
        channels = {"flag": unleash(server.url)}
        lite.decide(channels, ADVANCE, 8, rollout="ro-old", to_percent=50)
        lite.clock.pass_(seconds=1)
        lite.decide(channels, ROLLBACK, 9, rollout="ro-bad")
        lite.deliver(**channels)()
        server.answering = always(200)
        server.seen.clear()
        lite.clock.pass_(seconds=1)
        lite.decide(channels, ADVANCE, 1, rollout="ro-new", to_percent=1)
        lite.clock.pass_(minutes=9)
        lite.deliver(**channels)()
    assert sorted(acts(server)) == ["1", "off"]
    assert [row["state"] for row in lite.rows()] == ["delivered", "delivered", "overtaken"]


# ------------------------------------------------------------------------------------------------- health of channels


def test_a_receiver_that_is_gone_gets_nothing_more_and_somebody_is_told(bench: Bench) -> None:
    """410 disables at once: what waits and what comes is kept as given up; the other channels say so, once."""
    gone, other = Fake(GONE), Fake()
    watch = Undelivered(bench.store, {"one": gone, "other": other}, source="/t")
    for event_id in "abc":
        bench.post(event_id)
    bench.deliver(one=gone, other=other)()
    bench.deliver(one=gone, other=other)()
    assert gone.ids == ["a"]
    assert bench.states() == {"a": "dead", "b": "dead", "c": "dead"}
    assert {t.after for t in watch(bench.clock())} == {"firing"}
    assert watch(bench.clock.pass_(seconds=5)) == []
    Notify(bench.store, {"one": gone, "other": other}, source="/t")(bench.clock())
    bench.deliver(one=gone, other=other)()
    assert (gone.ids, [body for _, body in other.sent]) == (["a"], [ALERT_FIRING.encode()])
    (incident,) = bench.rows(incidents)
    assert (incident["severity"], incident["resolved_at"]) == ("SEV2", None)
    (alert,) = bench.rows(alerts)
    assert "nothing is sent to channel one since" in alert["summary"]
    assert "HTTP 410 Gone" in alert["summary"]


def test_a_channel_is_enabled_by_hand_with_a_name_and_a_reason(bench: Bench) -> None:
    """What was given up is sent again by hand, in order."""
    channel = Fake(GONE)
    watch = Undelivered(bench.store, {"one": channel}, source="/t")
    for event_id in "ab":
        bench.post(event_id, subject=event_id)
    bench.deliver(one=channel)()
    bench.deliver(one=channel)()
    watch(bench.clock())
    bench.deliver(one=channel)()
    with bench.store.begin() as tx, pytest.raises(ConfigError, match="--actor and --reason"):
        endpoints.enable(tx, "one", actor="", reason="fixed", now=bench.clock())
    with bench.store.begin() as tx:
        endpoints.enable(tx, "one", actor="ada", reason="a new address", now=bench.clock())
        with pytest.raises(ConfigError, match="no channel 'one' is disabled"):
            endpoints.enable(tx, "one", actor="ada", reason="again", now=bench.clock())
        ids = outbox.missed(tx, AT, "one")
        assert ids[:2] == ["a", "b"]
        assert outbox.redeliver(tx, ids, bench.clock()) == len(ids)
    assert [t.after for t in watch(bench.clock.pass_(seconds=1))] == ["resolved"]
    bench.deliver(one=channel)()
    assert channel.ids[:3] == ["a", "a", "b"]
    (incident,) = bench.rows(incidents)
    assert incident["timeline"][-1]["text"] == "enabled again by ada: a new address"


def test_the_alarm_about_a_disabled_channel_ends_when_it_is_configured_no_more(lite: Bench) -> None:
    """Nobody could enable it."""
    lite.post("a")
    lite.deliver(one=Fake(GONE))()
    assert [t.after for t in Undelivered(lite.store, {"one": Fake()}, source="/t")(lite.clock())] == ["firing"]
    (ended,) = Undelivered(lite.store, {"two": Fake()}, source="/t")(lite.clock.pass_(seconds=1))
    assert (ended.after, ended.reason) == ("resolved", "it is not configured any more")


def test_five_days_of_failures_disable_a_channel_and_a_redelivery_that_goes_through_enables_it(bench: Bench) -> None:
    """One success in between begins the count anew."""
    channel = Fake(FAILED)
    deliver = bench.deliver(one=channel)

    def fail(days: float) -> None:
        bench.clock.pass_(days=days)
        channel.results = [FAILED] * 50
        bench.post(f"e{bench.clock():%d%H%M}", subject=f"{bench.clock()}")
        deliver()
        channel.results = []

    fail(0)
    fail(4)
    deliver()
    bench.post("well", subject="w")
    deliver()
    fail(2)
    fail(4.9)
    assert all(row["disabled_at"] is None for row in bench.rows(endpoints_table))
    fail(0.2)
    (row,) = bench.rows(endpoints_table)
    assert row["disabled_at"] == bench.clock()
    assert "every attempt has failed since" in row["reason"]
    sent = len(channel.sent)
    bench.post("z")
    deliver()
    assert (len(channel.sent), bench.states()["z"]) == (sent, "dead")
    with bench.store.begin() as tx:
        outbox.redeliver(tx, ["z"], bench.clock())
    deliver()
    (row,) = bench.rows(endpoints_table)
    assert (bench.states()["z"], row["disabled_at"], row["actor"]) == ("delivered", None, "evalpipe")


# ------------------------------------------------------------------------------------------------ rollback undelivered


def test_a_rollback_that_nobody_has_after_a_minute_is_an_incident_of_the_first_degree_once(bench: Bench) -> None:
    """Whoever restarts, and however many look; over when any channel has it."""
    down, alive = Fake(*[FAILED] * 50), Fake()
    channels = {"down": down}

    def watch(also: Any = None) -> Any:
        return Undelivered(bench.store, channels | ({"alive": also} if also else {}), source="/t")

    bench.decide(channels, ROLLBACK, 3)
    bench.deliver(**channels)()
    assert watch()(bench.clock.pass_(seconds=59)) == []
    told = at_once(*[lambda: watch(alive)(bench.clock.at + timedelta(seconds=2))] * 3)
    assert [t.after for found in told for t in found] == ["firing"]
    assert watch(alive)(bench.clock.pass_(seconds=30)) == []
    (incident,) = bench.rows(incidents)
    assert (incident["severity"], incident["title"]) == ("SEV1", "dec_ro_3: rollback-undelivered")
    Notify(bench.store, {"down": down, "alive": alive}, source="/t")(bench.clock())
    bench.deliver(down=down, alive=alive)()
    assert [body for _, body in alive.sent] == [ALERT_FIRING.encode()]
    down.results = []
    bench.clock.pass_(minutes=10)
    bench.deliver(down=down, alive=alive)()
    assert [t.after for t in watch(alive)(bench.clock.pass_(seconds=1))] == ["resolved"]
    assert watch(alive)(bench.clock.pass_(seconds=1)) == []
    (incident,) = bench.rows(incidents)
    assert incident["resolved_at"] is not None


def test_a_rollback_that_one_of_several_channels_has_not_is_an_incident_that_names_it(lite: Bench) -> None:
    """A pager that has it does not help the deployer that has not; a log on standard output counts for nothing."""
    down, alive, log = Fake(*[FAILED] * 9), Fake(), Stdout(ChannelConfig())
    channels = {"down": down, "alive": alive, "log": log}
    watch = Undelivered(lite.store, channels, source="/t")
    lite.decide(channels, ROLLBACK, 1)
    lite.deliver(down=down, alive=alive)()
    (fired,) = watch(lite.clock.pass_(minutes=2))
    assert (fired.after, fired.reason[:22]) == ("firing", "not delivered to down:")
    down.results = []
    lite.deliver(down=down, alive=alive)()
    assert [t.after for t in watch(lite.clock.pass_(seconds=1))] == ["resolved"]


def test_a_channel_that_is_disabled_or_gone_is_missed_only_where_no_other_has_the_rollback(lite: Bench) -> None:
    """Else each rollback would be the incident of a channel that nobody uses any more."""
    gone, alive = Fake(GONE), Fake()
    channels = {"gone": gone, "alive": alive, "old": Fake(*[FAILED] * 9)}
    lite.decide(channels, ROLLBACK, 1)
    lite.deliver(**channels)()
    watch = Undelivered(lite.store, {"gone": gone, "alive": alive}, source="/t")
    (fired,) = watch(lite.clock.pass_(minutes=2))
    assert "nothing is sent to channel gone" in fired.reason


def test_the_end_of_a_rollout_is_as_urgent_as_a_rollback(bench: Bench) -> None:
    """Aborted or expired: somebody has to take the canary out of traffic then too. Other holds are not."""
    channel = Fake(*[FAILED] * 9)
    for event_id, shares in {"bakes": (5.0, 5.0), "shadow": (0.0, 0.0), "expired": (5.0, 0.0)}.items():
        bench.post(event_id, HOLD, from_percent=shares[0], to_percent=shares[1])
    bench.deliver(one=channel)()
    rows = {row["event_id"]: row for row in bench.rows(outbox_table)}
    assert [name for name, row in rows.items() if row["urgent"]] == ["expired"]
    assert rows["expired"]["next_attempt_at"] <= bench.clock() + timedelta(seconds=1.1)
    watch = Undelivered(bench.store, {"one": channel}, source="/t")
    (fired,) = watch(bench.clock.pass_(minutes=2))
    assert "is to be taken out of traffic" in fired.reason


def test_a_rollback_owed_to_a_disabled_channel_alone_is_an_incident_too(lite: Bench) -> None:
    """And a later decision that somebody has ends it."""
    channel = Fake(GONE)
    watch = Undelivered(lite.store, {"one": channel}, source="/t")
    lite.post("a")
    lite.deliver(one=channel)()
    watch(lite.clock())
    lite.decide({"one": channel}, ROLLBACK, 1)
    lite.deliver(one=channel)()
    assert [t.after for t in watch(lite.clock.pass_(minutes=2))] == ["firing"]
    assert sorted(row["severity"] for row in lite.rows(incidents)) == ["SEV1", "SEV2"]
    with lite.store.begin() as tx:
        endpoints.enable(tx, "one", actor="ada", reason="mended", now=lite.clock())
    lite.decide({"one": channel}, ADVANCE, 2)
    lite.deliver(one=channel)()
    assert [t.after for t in watch(lite.clock.pass_(seconds=1))] == ["resolved", "resolved"]


def test_where_no_channel_is_there_nobody_is_alarmed(lite: Bench) -> None:
    """Hooks obey the control plane without any."""
    assert Undelivered(lite.store, {}, source="/t")(lite.clock()) == []


# ------------------------------------------------------------------------------------------------- over real HTTP


@pytest.mark.parametrize(
    ("answering", "within_s", "status"),
    [
        (always(500, b"oh"), 1.2, 500),
        (always(429, b"slow", retry_after="30"), 33, 429),
        (always(302, location="/elsewhere"), 1.2, 302),
        (lambda _: None, 1.2, None),
    ],
    ids=["500", "429 with Retry-After", "a redirect", "closes early"],
)
def test_a_consumer_in_trouble_gets_the_same_bytes_under_the_same_id_again(
    lite: Bench, answering: Any, within_s: float, status: int | None
) -> None:
    """At the time that the schedule says, or the consumer; every attempt is in the log, and signed anew."""
    lite.clock.at = datetime.now(UTC)
    with Recorder(answering) as server:
        channels = {"hook": Webhook(WebhookConfig(url=server.url, secrets=(SECRET,)))}
        lite.decide(channels, ROLLBACK, 1)
        lite.deliver(**channels)()
        (row,) = lite.rows()
        due_s = (row["next_attempt_at"] - lite.clock()).total_seconds()
        assert within_s * 0.8 <= due_s <= within_s
        server.answering = always(204)
        lite.clock.pass_(seconds=due_s)
        lite.deliver(**channels)()
    first, second = server.seen
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    for seen in server.seen:
        assert verify_signature(seen.body, seen.headers, SECRET)["data"]["seq"] == 1
    assert [(row["attempt"], row["status"], row["ok"]) for row in lite.rows(deliveries)] == [
        (1, status, 0),
        (2, 204, 1),
    ]


def test_a_consumer_that_answers_too_late_is_tried_again(lite: Bench) -> None:
    """It may have acted: it knows the id."""
    with Recorder(lambda _: time.sleep(0.5) or (204, {}, b"")) as server:
        channels = {"hook": Webhook(WebhookConfig(url=server.url, secrets=(SECRET,), timeout_s=0.2))}
        lite.decide(channels, ROLLBACK, 1)
        assert lite.deliver(**channels)().failed == 1
        server.answering = always(204)
        lite.clock.pass_(seconds=2)
        channels = {"hook": Webhook(WebhookConfig(url=server.url, secrets=(SECRET,)))}
        assert lite.deliver(**channels)().delivered == 1
    assert (
        "no answer within 0.2 s" in lite.rows(deliveries)[0]["error"] or "Timeout" in lite.rows(deliveries)[0]["error"]
    )


def test_a_database_that_fails_over_between_sending_and_recording_costs_time_and_nothing_else(
    postgres: Postgres, migrated_postgres_url: str
) -> None:
    """The deliverer waits for it, records what it did, and sends nothing twice."""
    bench = Bench(migrated_postgres_url)

    class Failover(Fake):
        def send(self, body: bytes, *, event_id: str, at: Any) -> Delivery:
            if not self.sent:
                postgres.kill()
                threading.Timer(1.0, postgres.start).start()
            return super().send(body, event_id=event_id, at=at)

    channel = Failover()
    bench.post("r", ROLLBACK, seq=2)
    bench.post("s", ROLLBACK, subject="other", seq=1)
    assert bench.deliver(one=channel)().delivered == 2
    assert sorted(channel.ids) == ["r", "s"]
    assert set(bench.states().values()) == {"delivered"}
    bench.store.close()


def test_a_secret_is_changed_without_losing_a_delivery(lite: Bench) -> None:
    """Old, both, new on the sender's side; the receiver changes while both sign."""
    old, new = new_secret(), new_secret()
    steps = [((old,), old), ((new, old), old), ((new, old), new), ((new,), new)]
    lite.clock.at = datetime.now(UTC)
    with Recorder() as server:
        for seq, (secrets, held) in enumerate(steps, start=1):
            channels = {"hook": Webhook(WebhookConfig(url=server.url, secrets=secrets))}
            lite.decide(channels, ADVANCE, seq)
            lite.deliver(**channels)()
            seen = server.seen[-1]
            assert verify_signature(seen.body, seen.headers, held)["data"]["seq"] == seq
    assert [len(seen.headers["webhook-signature"].split()) for seen in server.seen] == [1, 2, 2, 1]


def test_no_secret_gets_into_the_log_of_deliveries(lite: Bench) -> None:
    """Not even from a receiver that answers with what it was sent."""
    for channel in (
        lambda url: unleash(url, token="token-very-secret"),
        lambda url: Webhook(WebhookConfig(url=url.replace("//", "//ada:token-very-secret@"), secrets=(SECRET,))),
    ):
        shown = [SECRET, "token-very-secret\x00"][len(lite.rows()) == 0 :]
        with Recorder(lambda s, shown=shown: (500, {}, f"{s.headers} {shown}".encode())) as server:
            made = {"c": channel(server.url)}
            lite.decide(made, ROLLBACK, len(lite.rows()) + 1)
            lite.deliver(**made)()
            assert server.seen
    errors = " ".join(row["error"] for row in lite.rows(deliveries)) + " ".join(row["reason"] for row in lite.rows())
    assert "HTTP 500" in errors
    assert "very-secret" not in errors
    assert SECRET not in errors
    assert base64.b64encode(b"ada:token-very-secret").decode() not in errors
