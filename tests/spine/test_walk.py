"""The walk of one record, end to end, with real services."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from spine_fleet import PATIENCE_S, Fleet, talk, wait_until
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.notification import HOLD, ROLLBACK
from evalpipe.receiver import Receiver
from evalpipe.signing import new_secret
from evalpipe.store import alerting, rollouts
from evalpipe.store.outbox import listing
from evalpipe.store.tables import deliveries, grades, growths, outbox, records, scores


def test_a_bad_canary_is_rolled_back_by_a_signed_webhook(
    make_fleet: Callable[..., Fleet], redis_url: str, database_url: str
) -> None:
    """From the hook to the consumer: every stage does its part, once, and the ledger balances."""
    secret = new_secret()
    with Receiver(secrets=secret) as consumer:
        fleet = make_fleet(redis_url, database_url, EVALPIPE_WEBHOOK_URL=consumer.url, EVALPIPE_WEBHOOK_SECRET=secret)
        fleet.start_all()
        baseline, canary = fleet.hook("baseline"), fleet.hook("canary")
        for i in range(80):
            talk(baseline, 1, prefix=f"b{i}")
            talk(canary, 1, output="A REFUND is on its way", prefix=f"c{i}")
            time.sleep(0.01)

        assert consumer.wait_for(lambda events: any(e["type"] == ROLLBACK for e in events), PATIENCE_S)
        for hook in fleet.hooks:
            assert hook.shutdown(30)
        assert wait_until(fleet.at_rest), fleet.lines()

        whole = fleet.whole()
        assert (whole.observed, whole.sampled, whole.scored) == (160, 160, 160)
        assert fleet.count(records) == 160
        assert fleet.count(scores) == 3 * 160
        assert fleet.count(grades) == 160
        assert fleet.scored_twice() == 0
        rollback = next(e for e in consumer.events if e["type"] == ROLLBACK)["data"]
        assert (rollback["action"], rollback["latched"], rollback["canary"]) == ("rollback", True, "canary")
        assert rollback["evidence"][0]["criterion"] == "grounded"
        with fleet.store.read() as tx:
            made = rollouts.list_decisions(tx)
            assert [d["action"] for d in made].count("rollback") == 1
            assert made[-1]["seq"] == rollback["seq"]
        assert wait_until(lambda: firing(fleet) == {"canary"})
        with fleet.store.read() as tx:
            assert {i["source"] for i in alerting.list_incidents(tx)} == {"alert", "rollback"}
        assert wait_until(
            lambda: fleet.count(growths) == 0 and fleet.count(outbox, state="delivered") == fleet.count(outbox)
        )
        assert fleet.count(deliveries, ok=1) == fleet.count(outbox)
        # A rollback goes first, so the hold decided before it may come late: the consumer ignores it by its seq.
        taken = {event["id"] for event in consumer.events}
        with fleet.store.read() as tx:
            assert {letter["type"] for letter in listing(tx) if letter["event_id"] not in taken} <= {HOLD}


def firing(fleet: Fleet) -> set[str]:
    """The variants of which an alert fires."""
    with fleet.store.read() as tx:
        return {alert["variant"] for alert in alerting.list_alerts(tx) if alert["status"] == "firing"}


def test_two_equal_releases_are_not_rolled_back(
    make_fleet: Callable[..., Fleet], redis_url: str, sqlite_url: str
) -> None:
    """The same quality in both arms, with some failures in each: no rollback, and no alert."""
    fleet = make_fleet(redis_url, sqlite_url)
    fleet.start_all()
    for variant in ("baseline", "canary"):
        fleet.hook(variant)
    for i in range(100):
        for hook in fleet.hooks:
            talk(hook, 1, output="a REFUND is on its way" if i % 10 == 9 else "You can return it.", prefix=f"{i}")
        time.sleep(0.01)
    assert all(hook.shutdown(30) for hook in fleet.hooks)

    assert wait_until(fleet.at_rest), fleet.lines()
    assert fleet.whole().scored == 200
    # Decisions and alerts follow the scores: only what they say of all 200 counts.
    assert wait_until(lambda: fleet.folded() and fleet.alert_statuses() == {"inactive"}), fleet.alert_statuses()
    with fleet.store.read() as tx:
        assert "rollback" not in {d["action"] for d in rollouts.list_decisions(tx)}


@pytest.fixture
def settled(make_fleet: Callable[..., Fleet], redis_url: str, sqlite_url: str) -> Fleet:
    """A fleet that has scored some records and is at rest, for commands to look at."""
    fleet = make_fleet(redis_url, sqlite_url)
    fleet.start_all()
    hook = fleet.hook()
    talk(hook, 20)
    talk(hook, 5, output="a REFUND is on its way", prefix="bad")
    assert hook.shutdown(30)
    assert wait_until(fleet.at_rest), fleet.lines()
    return fleet


def run(fleet: Fleet, *arguments: str, code: int = 0) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, arguments, env=fleet.environ)
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_commands_tell_what_happened(settled: Fleet, tmp_path: Any) -> None:
    """Ledger, scores, why, plot, doctor, erase and rescore work on a store with scores in it."""
    lines = json.loads(run(settled, "ledger", "--json"))
    assert {(line["scorecard"], line["scored"], line["difference"]) for line in lines} == {
        ("", 25, 0),
        ("support", 25, 0),
    }
    assert "balances" in run(settled, "ledger")
    rows = json.loads(run(settled, "scores", "--criterion", "grounded", "--json"))
    assert (len(rows), sum(row["value"] for row in rows)) == (25, 20)
    told = run(settled, "why", rows[0]["record_id"])
    assert "grounded: scored 1.000 pass" in told
    assert "is not in the store" in run(settled, "why", "nothing", code=1)
    run(settled, "scores", "--csv", str(tmp_path / "s.csv"), "--parquet", str(tmp_path / "s.parquet"))
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 3 * 25
    run(settled, "plot", "grounded", "--png", str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "grounded" in run(settled, "plot", "grounded")
    assert "[BAD]" not in run(settled, "doctor")

    erased = run(settled, "erase", "--user", "user-1", "--yes")
    assert erased.startswith("4 records erased")
    assert json.loads(run(settled, "ledger", "--json"))[0]["scored"] == 25

    card = tmp_path / "scorecards" / "support.yaml"
    card.write_text(card.read_text().replace("max: 2000", "max: 10"))
    done = json.loads(run(settled, "rescore", "support", "--json"))
    assert (done["rescored"], done["owed"]) == (21, 21)
    assert wait_until(settled.at_rest), settled.lines()
    again = json.loads(run(settled, "rescore", "support", "--json"))
    assert (again["rescored"], again["known"]) == (0, 21)
    lines = json.loads(run(settled, "ledger", "--json"))
    assert sorted(line["scored"] for line in lines) == [21, 25, 25]
