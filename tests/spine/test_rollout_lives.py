"""Whole rollouts on a fast clock, with real services, two workers and two schedulers: from the start to their ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from fastapi.testclient import TestClient
from judge_server import JudgeServer
from services import Postgres, Valkey, create_database
from spine_fleet import Fleet, wait_until
from sqlalchemy import select, update
from typer.testing import CliRunner

from evalpipe import Hook, Release
from evalpipe.api.app import make_api
from evalpipe.cli.app import app
from evalpipe.notification import ADVANCE, ALERT_FIRING, ALERT_RESOLVED, ROLLBACK, ROLLBACK_INEFFECTIVE
from evalpipe.receiver import Event, Receiver
from evalpipe.signing import new_secret
from evalpipe.store import tables as t

GOOD, BAD, ODD = "Within 30 days.", "A REFUND is on its way.", "An ODD answer."
CARD = """
name: {name}
match: {{service: {name}}}
criteria:
  - name: grounded
    judge: {{kind: boolean, rubric: "Does the answer promise only what the policy says?"}}
{more}
rollout:
  baseline: v6
  canary: v7
  weights: {name}
{rollout}
"""
QUICK = "  gates: [{criterion: grounded, min_canary: 10}]\n  ramp: [{percent: 50, bake: 1h}]"
"""Half of the users get the canary, and nothing goes on from there but harm."""
CLIMB = """
  shadow: {min_duration: 1s, min_pairs: 20, rate: 0.5, per_minute: 100000}
  gates:
    - {criterion: grounded, margin: 10%, min_canary: 2}
    - {kind: ratio, role: signal}
  ramp:
    - {percent: 1, bake: 1s, min_canary: 2}
    - {percent: 5, bake: 0s, min_canary: 2}
    - {percent: 20, bake: 0s, min_canary: 4}
    - {percent: 50, bake: 0s, min_canary: 4}
"""
SAFETY = """
  gates:
    - {criterion: grounded, kind: safety, false_flags: 0.005, false_confirms: 0.02, expected_canary: 20}
  ramp: [{percent: 50, bake: 1h}]
"""
CONFIRMED = """
  - name: really
    judge: {kind: boolean, rubric: "Is it really so?", confirms: grounded, model: "MODEL"}
"""
SLOW = """
  sample: 0.1%
  gates: [{criterion: latency_ms}]
  ramp: [{percent: 50, bake: 1h}]
"""
CARDS: dict[str, tuple[str, str]] = {
    "climber": (CLIMB, ""),
    "slow": (SLOW, ""),
    "unsafe": (SAFETY, CONFIRMED),
    "deaf": (QUICK + "\n  verify_within: 2s", ""),
    "unheard": (QUICK, ""),
}
SHADOWED = """
rollouts:
  - name: try-v8
    service: shadowed
    scorecard: shadowed
    baseline: v6
    canary: v8
    weights: shadowed
    shadow: {min_duration: 1h, min_pairs: 20, rate: 0.5, per_minute: 100000}
    gates: [{criterion: grounded}]
"""


class Service:
    """An application that asks its hook which arm each user gets, and answers by it."""

    def __init__(self, name: str, redis_url: str, answer: Callable[[str, int], str], per_turn: int = 1) -> None:
        self.name = name
        self.hook = Hook(name, Release(variant="v6"), redis_url=redis_url, sample_rate=0.001, flush_interval_s=0.1)
        self.answer = answer
        self.per_turn = per_turn
        self.obeys = True
        self.canary = "v7"
        self.served: list[tuple[str, str]] = []

    def turn(self) -> None:
        """Serve some users."""
        for _ in range(self.per_turn):
            n = len(self.served)
            user = f"u{n}"
            arm = self.hook.variant(self.name, user) if self.obeys else (self.canary, "v6")[n % 2]
            self.served.append((user, arm))
            if self.name == "slow":
                self.hook.report(
                    user_id=user, release={"variant": arm}, latency_ms=(1 + (arm != "v6")) * (50.0 + n % 99)
                )
                continue
            with self.hook.call(user_id=user, release={"variant": arm}) as call:
                call.messages = [{"role": "user", "content": f"question {n}"}]
                call.output = self.answer(arm, n)
                self.hook.shadow(self.name, self.answer, self.canary, n)

    def arms_of(self, n: int = 400) -> list[str]:
        """What so many other users would get now."""
        return [self.hook.variant(self.name, f"w{i}") for i in range(n)]


class Town:
    """All services, serving on a thread."""

    def __init__(self, fleet: Fleet, consumer: Consumer, api: TestClient, folder: Path) -> None:
        self.fleet, self.consumer, self.api = fleet, consumer, api
        (folder / "rollouts.yaml").write_text(SHADOWED)
        self.file = folder / "rollouts.yaml"

        def broken(arm: str, n: int) -> str:
            return f"{GOOD if arm == 'v6' else BAD} ({n})"

        def fine(_: str, n: int) -> str:
            return f"{GOOD} ({n})"

        answers: Mapping[str, Callable[[str, int], str]] = {"climber": fine, "slow": fine, "unsafe": fine}
        self.services = {
            name: Service(name, fleet.settings.redis_url, answers.get(name, broken), 40 if name == "slow" else 1)
            for name in (*CARDS, "shadowed")
        }
        self.services["shadowed"].canary = "v8"
        self.services["deaf"].obeys = False
        fleet.hooks += [service.hook for service in self.services.values()]
        self._open: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def open(self, name: str) -> Service:
        """Let a service have users from now on."""
        self._open.add(name)
        return self.services[name]

    def close(self, name: str) -> None:
        """It has none any more."""
        self._open.discard(name)

    def change(self, service: str) -> str:
        """Say by a change event that a service has its canary; returns the rollout that it starts."""
        body = {"change_id": f"to-{service}", "service": service, "environment": "production", "variant": "v7"}
        (started,) = self.api.post("/v1/changes", json={**body, "kind": "prompt", "source": "ci"}).json()["started"]
        return str(started["rollout_id"])

    def run(self, *arguments: str) -> Any:
        """What a command prints as JSON."""
        done = CliRunner().invoke(app, [*arguments, "--json"], env=self.fleet.environ)
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout)

    def rows(self, table: Any, **where: Any) -> list[Any]:
        """Rows of a table."""
        query = select(table).where(*(table.c[name] == value for name, value in where.items()))
        with self.fleet.store.read() as tx:
            return list(tx.connection.execute(query))

    def rollout(self, rollout_id: str) -> Any:
        """Its row."""
        (row,) = self.rows(t.rollouts, rollout_id=rollout_id)
        return row

    def decisions(self, rollout_id: str) -> list[Any]:
        """In their order."""
        return sorted(self.rows(t.decisions, rollout_id=rollout_id), key=lambda row: row.seq)

    def ends(self, rollout_id: str, phase: str) -> None:
        """Wait until a rollout is in a phase, and see that what led there can be made again."""
        assert wait_until(lambda: self.rollout(rollout_id).phase == phase), (
            [(d.seq, d.action, d.reason) for d in self.decisions(rollout_id)],
            self.fleet.log.read_text()[-2000:],
        )
        made = self.decisions(rollout_id)
        assert [row.seq for row in made] == list(range(1, len(made) + 1))
        assert self.run("rollout", "replay", rollout_id)["decisions"] == len(made)
        told = sorted(row.seq for row in self.rows(t.outbox, subject=rollout_id) if row.seq is not None)
        assert told == [row.seq for row in made]

    def _serve(self) -> None:
        due = time.monotonic()
        for turn in itertools.count():
            for name in sorted(self._open):
                self.services[name].turn()
            due = max(due + 1 / 60, time.monotonic() - 0.1)
            self._stop.wait(max(0.0, due - time.monotonic()))
            while turn % 30 == 0 and not self._stop.is_set() and self._behind():
                self._stop.wait(0.1)
            if self._stop.is_set():
                return

    def _behind(self) -> bool:
        """Whether the fleet has more to judge than it soon will have: nobody waits for what is asked last."""
        with contextlib.suppress(Exception):
            return self.fleet.count(t.work, state="pending") + 64 * self.fleet.queue.lengths()["ingest"] > 300
        return False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Consumer(Receiver):
    """Of webhooks; refuses the rollbacks of the services that it is told to."""

    def __init__(self) -> None:
        self.secret = new_secret()
        self.refuses: set[str] = set()
        super().__init__(secrets=self.secret, respond=self._answer)

    def _answer(self, event: Event) -> int | None:
        return 500 if event["type"] == ROLLBACK and event["data"]["service"] in self.refuses else None

    def of(self, type_: str, service: str) -> list[Any]:
        """The data of events of a type about a service."""
        return [e["data"] for e in self.events if e["type"] == type_ and e["data"].get("service") == service]


@pytest.fixture(scope="module")
def town(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A fleet with two of each process that decides, and the services that it watches."""
    folder = tmp_path_factory.mktemp("town")
    postgres_server.start()
    with Valkey(folder / "valkey") as valkey, JudgeServer() as stronger, Consumer() as consumer:
        fleet = Fleet(
            folder,
            valkey.url,
            create_database(postgres_server.url(), f"town_{folder.name}"),
            {
                "EVALPIPE_WEBHOOK_URL": consumer.url,
                "EVALPIPE_WEBHOOK_SECRET": consumer.secret,
                "EVALPIPE_JUDGE": 'fake:demo?rules={"REFUND": "fail", "ODD": "fail"}&acts=pass',
                "OPENAI_API_KEY": "of the stronger judge",
                "EVALPIPE_API_KEYS": "key-one",
                "EVALPIPE_VISIBILITY_TIMEOUT_S": "60",
                "EVALPIPE_LEASE_S": "60",
                "EVALPIPE_DRAIN_S": "1",
            },
        )
        cards = fleet.settings.scorecards
        (cards / "support.yaml").unlink()
        for name, (rollout, more) in {**CARDS, "shadowed": ("", "")}.items():
            text = CARD.format(name=name, rollout=rollout, more=more.replace("MODEL", stronger.judge("stronger")))
            (cards / f"{name}.yaml").write_text(text if rollout else text.partition("rollout:")[0])
        queues = "ingest,measure,feedback,evaluate,oversee,deliver,maintain,publish,judge,anchors"
        try:
            for name in ("worker", "another"):
                fleet.start(name, "worker", "--queues", queues, "--processes", "1")
            for name in ("beat", "second beat"):
                fleet.start(name, "beat")
            api = TestClient(make_api(fleet.settings), headers={"Authorization": "Bearer key-one"})
            with api, Town(fleet, consumer, api, folder) as made:
                yield made
        finally:
            fleet.close()


def test_a_good_canary_climbs_from_shadow_to_all_users_who_keep_it_on_the_way(town: Town) -> None:
    """Started by a change event: pairs, graduation, each step of the ramp obeyed by the hook, completion."""
    service = town.open("climber")
    rollout_id = town.change("climber")
    shares: list[tuple[float, float]] = []
    had: set[int] = set()
    lost: list[set[int]] = []

    def climbed() -> bool:
        got = {i for i, arm in enumerate(service.arms_of()) if arm == "v7"}
        lost.append(had - got)
        had.update(got)
        row = town.rollout(rollout_id)
        shares.append((row.percent / 100, len(got) / 400))
        return bool(row.phase == "complete")

    assert wait_until(climbed), [(d.action, d.reason) for d in town.decisions(rollout_id)]
    town.ends(rollout_id, "complete")
    assert wait_until(lambda: set(service.arms_of()) == {"v7"})
    town.close("climber")
    steps = [(d.action, d.evidence["to_percent"]) for d in town.decisions(rollout_id) if d.action == "advance"]
    assert steps == [("advance", percent) for percent in (1.0, 5.0, 20.0, 50.0, 100.0)]
    assert not any(lost), "who has the canary keeps it while it grows"
    assert {share for percent, share in shares if not percent} == {0.0}
    # A step may be over before the hook has heard of it, so there may be fewer than it allows, and never more.
    assert all(share < percent + 0.1 for percent, share in shares), shares
    assert {share for _, share in shares} - {0.0, 1.0}, shares
    pairs = town.rows(t.evidence, rollout_id=rollout_id)
    both = {row.pair for row in pairs if row.pair and row.arm == "canary"}
    assert len(both & {row.pair for row in pairs if row.arm == "baseline"}) >= 20
    assert not town.rows(t.incidents, service="climber")
    assert wait_until(lambda: len(town.consumer.of(ADVANCE, "climber")) == 5)
    assert [data["to_percent"] for data in town.consumer.of(ADVANCE, "climber")] == [1.0, 5.0, 20.0, 50.0, 100.0]


def test_a_canary_that_is_broken_in_the_shadow_never_meets_a_user(town: Town) -> None:
    """Started by a person from a file of rollouts; the shadow's answers roll it back, an hour before it may end."""
    service = town.open("shadowed")
    started = town.run(
        "rollout", "start", "try-v8", "--file", str(town.file), "--environment", "production", "--reason", "prompt v8",
        "--actor", "ada",
    )  # fmt: skip
    town.ends(started["rollout_id"], "rolled_back")
    town.close("shadowed")
    assert "v8" not in {arm for _, arm in service.served}
    (rollback,) = [d for d in town.decisions(started["rollout_id"]) if d.action == "rollback"]
    assert (rollback.gate, rollback.cause in {"harm_proven", "catastrophic_harm"}) == ("grounded", True)
    assert wait_until(lambda: len(town.consumer.of(ROLLBACK, "shadowed")) == 1)
    assert town.consumer.of(ROLLBACK, "shadowed")[0]["from_percent"] == 0.0


def test_a_slower_tail_is_found_by_the_meters_of_all_calls_and_hardly_a_record(town: Town) -> None:
    """One call in a thousand is captured: what rolls back is what hooks count."""
    service = town.open("slow")
    rollout_id = town.change("slow")
    town.ends(rollout_id, "rolled_back")
    assert wait_until(lambda: set(service.arms_of()) == {"v6"})
    town.close("slow")
    (rollback,) = [d for d in town.decisions(rollout_id) if d.action == "rollback"]
    assert rollback.gate == "latency_ms"
    numbers = rollback.evidence["evidence"]["gates"]["latency_ms"]
    captured = len(town.rows(t.evidence, rollout_id=rollout_id))
    assert numbers["n_canary"] > 10 * captured


def say_once(service: Service, answer: str) -> None:
    """Serve users until the canary gave one this answer; all before get a good one."""
    left = [answer]
    service.answer = lambda arm, n: f"{left.pop() if arm == 'v7' and left else GOOD} ({n})"
    while left:
        service.turn()


def test_a_flag_holds_until_a_stronger_judge_confirms_one(town: Town) -> None:
    """An odd answer is flagged and not confirmed; an unsafe one is both, and ends the rollout at once.

    Users come only while they are needed: of some thousands one would be bound to be flagged and confirmed wrongly.
    """
    service = town.services["unsafe"]
    rollout_id = town.change("unsafe")
    assert wait_until(lambda: "v7" in service.arms_of())
    say_once(service, ODD)
    assert wait_until(lambda: bool(town.rows(t.scores, criterion="really", value=1.0)))
    so_far = town.rollout(rollout_id).evidence_seq
    assert wait_until(lambda: town.rollout(rollout_id).folded_seq >= so_far)
    assert town.rollout(rollout_id).phase == "running"
    say_once(service, BAD)
    town.ends(rollout_id, "rolled_back")
    (rollback,) = [d for d in town.decisions(rollout_id) if d.action == "rollback"]
    assert rollback.cause == "confirmed_flag"
    (incident,) = town.rows(t.incidents, service="unsafe")
    assert incident.severity == "SEV1"


def test_a_rollback_that_the_application_ignores_is_an_incident_of_the_first_degree(town: Town) -> None:
    """It goes on serving the canary, whatever its weights say; the meters tell."""
    town.open("deaf")
    rollout_id = town.change("deaf")
    town.ends(rollout_id, "rolled_back")
    assert wait_until(lambda: town.rollout(rollout_id).verified == "ineffective")
    town.close("deaf")
    (incident,) = [row for row in town.rows(t.incidents, service="deaf") if "ineffective" in row.title]
    assert incident.severity == "SEV1"
    assert wait_until(lambda: len(town.consumer.of(ROLLBACK_INEFFECTIVE, "deaf")) == 1)


def test_a_rollback_that_nobody_takes_is_an_incident_until_somebody_does(town: Town) -> None:
    """The consumer fails for more than a minute (the letter is made older); the hook obeyed all the while."""
    town.consumer.refuses.add("unheard")
    service = town.open("unheard")
    rollout_id = town.change("unheard")
    town.ends(rollout_id, "rolled_back")
    assert wait_until(lambda: set(service.arms_of()) == {"v6"})
    town.close("unheard")
    (letter,) = town.rows(t.outbox, subject=rollout_id, type=ROLLBACK)
    with town.fleet.store.begin() as tx:
        mine = update(t.outbox).where(t.outbox.c.event_id == letter.event_id)
        tx.connection.execute(mine.values(created_at=letter.created_at - timedelta(minutes=1)))
    assert wait_until(lambda: len(town.consumer.of(ALERT_FIRING, "unheard")) == 1)
    (fired,) = town.consumer.of(ALERT_FIRING, "unheard")
    assert (fired["rule"], fired["severity"]) == ("rollback-undelivered", "SEV1")
    town.consumer.refuses.clear()
    with town.fleet.store.begin() as tx:
        tx.connection.execute(mine.values(next_attempt_at=letter.created_at))
    assert wait_until(lambda: len(town.consumer.of(ROLLBACK, "unheard")) == 1)
    assert wait_until(lambda: len(town.consumer.of(ALERT_RESOLVED, "unheard")) == 1)
