"""Injected faults with real services: afterwards every record is scored once or explained, and the ledger balances."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis
from services import Postgres, Valkey
from spine_fleet import Fleet, talk, wait_until

from evalpipe.pipeline.redrive import redrive
from evalpipe.store.tables import dead_letters, records, scores, work
from evalpipe.wiring import now


def all_scored(fleet: Fleet, n: int) -> bool:
    """Whether ``n`` records were scored, each once, and the ledger says so."""
    whole = fleet.whole()
    return fleet.at_rest() and whole.scored == n and fleet.count(scores) == 3 * n and not fleet.scored_twice()


def test_a_worker_killed_in_the_middle_of_batches_costs_nothing(
    make_fleet: Callable[..., Fleet], redis_url: str, database_url: str
) -> None:
    """Kill -9 of both workers, twice, while batches are under way: all is redelivered, nothing counts twice."""
    fleet = make_fleet(redis_url, database_url, EVALPIPE_JUDGE="fake:demo?acts=pass&latency_ms=100")
    fleet.start_all()
    hook = fleet.hook(flush_interval_s=0.05)
    for round_ in range(3):
        talk(hook, 150, prefix=f"r{round_}")
        assert wait_until(lambda n=round_: fleet.count(records) > 150 * n)
        if round_ < 2:
            for name, queues in (
                ("worker", "ingest,measure,feedback,evaluate,deliver,maintain,publish"),
                ("judge", "judge"),
            ):
                fleet.kill(name)
                fleet.start(name, "worker", "--queues", queues, "--processes", "1")
    assert hook.shutdown(30)
    # The broker library can lose a message that it has popped and not yet marked; the ledger must say so.
    assert wait_until(lambda: fleet.at_rest() and fleet.whole().scored + fleet.whole().lost == 450), fleet.lines()
    assert fleet.count(scores) == 3 * fleet.whole().scored
    assert fleet.scored_twice() == 0


@pytest.mark.parametrize("persist", [True, False], ids=["with its file", "empty"])
def test_a_redis_restart_loses_nothing_silently(
    make_fleet: Callable[..., Fleet], valkey: Valkey, sqlite_url: str, persist: bool
) -> None:
    """With persistence all is scored; without it what was queued is counted as lost."""
    fleet = make_fleet(valkey.url, sqlite_url)
    hook = fleet.hook()
    talk(hook, 100, prefix="before")
    assert hook.flush(30)
    valkey.kill()
    talk(hook, 50, prefix="while")
    valkey.start(persist=persist)
    fleet.start_all()
    talk(hook, 50, prefix="after")
    assert wait_until(lambda: hook.flush(2))
    assert hook.shutdown(30)

    expected = 200 if persist else 100
    assert wait_until(lambda: fleet.at_rest() and fleet.whole().scored == expected), fleet.lines()
    whole = fleet.whole()
    assert (whole.sampled, whole.lost, whole.shed) == (200, 200 - expected, 0)
    assert fleet.scored_twice() == 0


def test_a_database_that_is_away_is_waited_for(
    make_fleet: Callable[..., Fleet], redis_url: str, postgres: Postgres, postgres_url: str
) -> None:
    """PostgreSQL down for longer than leases last in the middle of traffic: everything is scored afterwards."""
    fleet = make_fleet(redis_url, postgres_url)
    fleet.start_all()
    hook = fleet.hook()
    talk(hook, 100, prefix="before")
    assert wait_until(lambda: fleet.count(records) == 100)
    postgres.kill()
    talk(hook, 100, prefix="while")
    time.sleep(8)
    postgres.start()
    talk(hook, 100, prefix="after")
    assert hook.shutdown(30)
    assert wait_until(lambda: all_scored(fleet, 300)), fleet.lines()


@pytest.mark.parametrize("acts", ["500", "429", "hang"])
def test_a_judge_that_fails_gives_no_scores_and_its_work_can_be_redriven(
    make_fleet: Callable[..., Fleet], redis_url: str, sqlite_url: str, acts: str
) -> None:
    """After its attempts the work is dead, with the reason; once the judge is back it is graded."""
    fleet = make_fleet(
        redis_url,
        sqlite_url,
        EVALPIPE_JUDGE=f"fake:demo?acts={acts}",
        EVALPIPE_ATTEMPTS="1",
        EVALPIPE_JUDGE_TIMEOUT_S="0.5",
    )
    fleet.start_all()
    hook = fleet.hook()
    talk(hook, 7)  # with one more the breaker would open, and the work would wait
    assert hook.shutdown(30)
    assert wait_until(lambda: fleet.at_rest() and fleet.whole().dead == 7), fleet.lines()
    assert fleet.count(scores, criterion="grounded") == 0
    assert fleet.count(work, state="dead") == 7

    fleet.kill("judge")
    fleet.environ["EVALPIPE_JUDGE"] = "fake:demo?acts=pass"
    fleet.start("judge", "worker", "--queues", "judge", "--processes", "1")
    assert redrive(fleet.store, fleet.queue, None, now()).work == 7
    assert wait_until(lambda: all_scored(fleet, 7)), fleet.lines()
    assert fleet.whole().dead == 0


def test_garbage_from_a_judge_is_an_error_and_never_a_score(
    make_fleet: Callable[..., Fleet], redis_url: str, sqlite_url: str
) -> None:
    """What is not a grade is kept raw, with status error."""
    fleet = make_fleet(redis_url, sqlite_url, EVALPIPE_JUDGE="fake:demo?acts=garbage")
    fleet.start_all()
    hook = fleet.hook()
    talk(hook, 20)
    assert hook.shutdown(30)
    assert wait_until(lambda: fleet.at_rest() and fleet.whole().error == 20), fleet.lines()
    assert fleet.count(scores, criterion="grounded", status="error") == 20
    assert fleet.count(scores, criterion="grounded", status="scored") == 0


def test_poison_in_the_queue_stops_nothing_and_is_kept(
    make_fleet: Callable[..., Fleet], redis_url: str, sqlite_url: str
) -> None:
    """Bytes that are no message, messages that are no task, batches that are no batch: each is kept with its reason."""
    fleet = make_fleet(redis_url, sqlite_url)
    hook = fleet.hook()
    talk(hook, 10, prefix="before")
    assert hook.flush(30)
    with redis.Redis.from_url(redis_url) as client:
        good = client.lindex("evalpipe.ingest", 0)
        for poison in (b"\xff\xfe not json", b"[]", b'{"body": "x"}', good.replace(b'\\\\\\"schema\\\\\\": 1', b"?"),
                       good.replace(b'\\\\\\"schema\\\\\\":1', b'\\\\\\"schema\\\\\\":99'),
                       good.replace(b"utf-8", b"utf-99")):  # fmt: skip
            client.lpush("evalpipe.ingest", poison)
    fleet.start_all()
    talk(hook, 10, prefix="after")
    assert hook.shutdown(30)
    assert wait_until(lambda: fleet.whole().scored == 20 and fleet.count(dead_letters) >= 5), fleet.lines()
    assert fleet.count(records) == 20
