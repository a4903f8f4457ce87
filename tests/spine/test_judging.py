"""Judges that fail, stop, cost money, err and move: end to end, with real services and a real HTTP server as judge."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from judge_server import INPUT_TOKENS, OUTPUT_TOKENS, JudgeServer, lenient, works
from spine_fleet import PATIENCE_S, Fleet, talk, wait_until
from sqlalchemy import Table, select, update
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED
from evalpipe.receiver import Receiver
from evalpipe.signing import new_secret
from evalpipe.store.tables import (
    alerts,
    decisions,
    grades,
    judge_health,
    judge_spend,
    judge_states,
    outbox,
    records,
    rollouts,
    scores,
    work,
)
from evalpipe.wiring import now

DECIDES = "ingest,measure,feedback,evaluate,oversee,deliver,maintain,publish"
JUDGES = "judge,anchors"
CALL_USD = (INPUT_TOKENS + OUTPUT_TOKENS) / 1e6
"""Of an answer of a judge with ``usd_per_mtok=1``."""

ROLLOUT = "rollout: {gates: [{criterion: grounded, min_canary: 20}]}"
CALM = {"EVALPIPE_VISIBILITY_TIMEOUT_S": "60", "EVALPIPE_LEASE_S": "60", "EVALPIPE_DRAIN_S": "1"}
"""Nobody is killed, and one process serves all stages in turn."""
NewFleet = Callable[..., Fleet]


@pytest.fixture
def new_fleet(make_fleet: Callable[..., Fleet], redis_url: str) -> NewFleet:
    """Makes fleets that are calm."""

    def make(database_url: str, **environ: str) -> Fleet:
        return make_fleet(redis_url, database_url, **(CALM | environ))

    return make


def card(fleet: Fleet, judge: str = "", more: str = "") -> None:
    """Have the fleet use a scorecard with one judged criterion; to be called before it is started."""
    criterion = f'{{kind: boolean, rubric: "Does the answer promise only what the policy says?"{judge}}}'
    text = f"""
name: support
match: {{service: support-desk}}
criteria:
  - {{name: grounded, judge: {criterion}}}
{more}
"""
    (fleet.settings.scorecards / "support.yaml").write_text(text)


def start(fleet: Fleet) -> None:
    """One worker for everything, and the beat."""
    fleet.start("worker", "worker", "--queues", f"{DECIDES},{JUDGES}", "--processes", "1")
    fleet.start("beat", "beat")


def ask(fleet: Fleet, n: int, prefix: str, output: str = "Within 30 days.", variant: str = "baseline") -> None:
    """Let customers ask, and deliver what was captured."""
    hook = fleet.hook(variant)
    talk(hook, n, output=f"{output} [{prefix}]", prefix=prefix)
    assert hook.shutdown(30)


def rows(fleet: Fleet, table: Table, **where: Any) -> list[dict[str, Any]]:
    """Rows of a table."""
    query = select(table).where(*(table.c[name] == value for name, value in where.items()))
    with fleet.store.read() as tx:
        return [dict(row) for row in tx.connection.execute(query).mappings()]


def of_prefix(fleet: Fleet, prefix: str) -> list[dict[str, Any]]:
    """The scores of records that were asked for with this prefix."""
    query = select(scores).join(records, records.c.record_id == scores.c.record_id)
    with fleet.store.read() as tx:
        found = tx.connection.execute(query.where(records.c.session_id.startswith(f"{prefix}-"))).mappings()
        return [dict(row) for row in found]


def oversee(fleet: Fleet) -> None:
    """Have a worker look at the judges now, instead of at the beat's next 15 s."""
    with Celery(broker=fleet.settings.redis_url) as app:
        app.send_task("evalpipe.oversee", queue="evalpipe.oversee")


def firing(fleet: Fleet, rule: str) -> list[str]:
    """The judges of which an alert of this rule fires."""
    return [row["variant"] for row in rows(fleet, alerts, rule=rule, status="firing")]


def told(consumer: Receiver, type_: str, rule: str) -> list[dict[str, Any]]:
    """What a consumer was told of a rule's alerts."""
    return [e["data"] for e in list(consumer.events) if e["type"] == type_ and e["data"]["rule"] == rule]


def run(fleet: Fleet, *arguments: str) -> Any:
    """What a command says, with ``--json``."""
    done = CliRunner().invoke(app, [*arguments, "--json"], env=fleet.environ, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_with_a_tenth_of_the_calls_failing_every_record_is_scored_or_explained(
    new_fleet: NewFleet, sqlite_url: str
) -> None:
    """429, 500, no grade, no JSON and silence in turn: no call beyond the attempts, nothing twice."""
    faults = ("429", "malformed", "500", "hang", "garbage")

    def fault(number: int, _model: str, shown: str) -> str:
        if "(13)" in shown:
            return "malformed"
        if "(31)" in shown:
            return "500"
        return faults[number // 10 % len(faults)] if number % 10 == 0 else ""

    with JudgeServer() as server:
        server.fault = fault
        fleet = new_fleet(
            sqlite_url,
            EVALPIPE_JUDGE=server.judge("main"),
            EVALPIPE_ATTEMPTS="2",
            EVALPIPE_JUDGE_TIMEOUT_S="3",
        )
        card(fleet)
        start(fleet)
        ask(fleet, 120, "s")
        assert wait_until(lambda: fleet.at_rest() and fleet.whole().sampled == 120), fleet.lines()

        whole = fleet.whole()
        assert whole.scored + whole.error + whole.dead == 120
        assert whole.scored >= 115
        assert {fault for fault in faults if server.outcomes[fault] >= 2} == set(faults)
        assert max(server.calls.values()) == 2
        assert len(server.calls) == 120
        assert fleet.scored_twice() == 0
        assert fleet.count(scores, status="scored") == whole.scored
        errors = rows(fleet, grades, status="error")
        assert len(errors) == whole.error >= 1
        assert all(row["cause"] == "malformed" and row["raw"] and row["explanation"] for row in errors), errors
        dead = rows(fleet, work, state="dead")
        assert len(dead) == whole.dead >= 1
        assert all("HTTP" in row["reason"] or "answer" in row["reason"] for row in dead), dead


def test_a_judge_worker_killed_with_calls_in_flight_leaves_no_vote_twice_and_no_money_held(
    new_fleet: NewFleet, postgres_url: str
) -> None:
    """Kill -9 under a panel of two with two votes each: all is scored once, and what was held comes back."""
    with JudgeServer(latency_s=0.3) as server:
        one, two = server.judge("one", "usd_per_mtok=1&usd_per_day=400"), server.judge("two", "usd_per_mtok=1")
        fleet = new_fleet(
            postgres_url,
            EVALPIPE_JUDGE=one,
            EVALPIPE_JUDGE_USD_PER_DAY="1000",
            EVALPIPE_JUDGE_CONCURRENCY="8",
            EVALPIPE_LEASE_S="3",
        )
        card(fleet, f', panel: ["{one}", "{two}"], votes: 2', "judging: {usd_per_day: 500}")
        for name, queues in (("worker", DECIDES), ("judge", JUDGES)):
            fleet.start(name, "worker", "--queues", queues, "--processes", "1")
        fleet.start("beat", "beat")
        ask(fleet, 30, "s")
        assert wait_until(lambda: fleet.count(grades) > 0)
        server.latency_s = 600
        assert wait_until(lambda: server.in_flight >= 8)
        fleet.kill("judge")
        server.latency_s = 0.3
        assert rows(fleet, judge_spend, scope="all")[0]["reserved_usd"] > 0
        fleet.start("judge", "worker", "--queues", JUDGES, "--processes", "1")
        assert wait_until(lambda: fleet.at_rest() and fleet.whole().scored == 30), fleet.lines()

        assert fleet.count(scores, status="scored") == 30
        assert fleet.scored_twice() == 0
        votes = rows(fleet, grades)
        assert len(votes) == 4 * 30
        assert {(row["judge_version"].rpartition("/")[0], row["vote"]) for row in votes} == {
            (server.version(model), vote) for model in ("one", "two") for vote in (0, 1)
        }
        assert server.total > 4 * 30
        assert max(server.calls.values()) <= 2 * 2
        spent = {row["scope"]: row for row in rows(fleet, judge_spend)}
        assert {row["reserved_usd"] for row in spent.values()} == {0.0}
        for scope, calls in {"all": 120, "scorecard:support": 120, f"judge:{server.version('one')}": 60}.items():
            assert spent[scope]["spent_usd"] == pytest.approx(calls * CALL_USD)


def test_while_a_provider_is_down_the_ladder_s_next_step_scores_in_another_epoch(
    new_fleet: NewFleet, sqlite_url: str
) -> None:
    """Somebody is told, and that it is over; then the first step grades again, in the epoch that it had."""
    secret = new_secret()
    with Receiver(secrets=secret) as consumer, JudgeServer() as server:
        fleet = new_fleet(
            sqlite_url,
            EVALPIPE_JUDGE=server.judge("main"),
            EVALPIPE_JUDGE_CONCURRENCY="8",
            EVALPIPE_WEBHOOK_URL=consumer.url,
            EVALPIPE_WEBHOOK_SECRET=secret,
        )
        card(fleet, f', fallback: ["{server.judge("spare")}"]')
        start(fleet)
        ask(fleet, 10, "before")
        assert wait_until(lambda: fleet.count(scores, step=0, status="scored") == 10)

        server.fault = lambda _number, model, _shown: "500" if model == "main" else ""
        ask(fleet, 30, "while")
        assert wait_until(lambda: len(of_prefix(fleet, "while")) == 30)
        assert {row["step"] for row in of_prefix(fleet, "while")} == {1}
        before, during = ({row["epoch"] for row in of_prefix(fleet, prefix)} for prefix in ("before", "while"))
        assert len(before) == len(during) == 1
        assert before != during
        oversee(fleet)
        assert consumer.wait_for(lambda _: bool(told(consumer, ALERT_FIRING, "judge-failing")), PATIENCE_S)
        assert told(consumer, ALERT_FIRING, "judge-failing")[0]["judge"] == server.version("main")

        server.fault = works
        pass_time(fleet)
        ask(fleet, 20, "after")
        assert wait_until(lambda: len(of_prefix(fleet, "after")) == 20)
        assert wait_until(
            lambda: [row["state"] for row in rows(fleet, judge_states, judge=server.version("main"))] == ["closed"]
        )
        ask(fleet, 10, "later")
        assert wait_until(lambda: len(of_prefix(fleet, "later")) == 10)
        assert {(row["step"], row["epoch"]) for row in of_prefix(fleet, "later")} == {(0, *before)}
        oversee(fleet)
        assert wait_until(lambda: pass_time(fleet))
        oversee(fleet)
        assert consumer.wait_for(lambda _: bool(told(consumer, ALERT_RESOLVED, "judge-failing")), PATIENCE_S)
        assert fleet.scored_twice() == 0
        assert wait_until(fleet.at_rest), fleet.lines()


def pass_time(fleet: Fleet) -> bool:
    """Let five minutes pass for open breakers and for alerts that are clear; says whether there is such an alert."""
    with fleet.store.begin() as tx:
        tx.connection.execute(update(judge_states).where(judge_states.c.until_at.is_not(None)).values(until_at=now()))
        clear = False
        for row in tx.connection.execute(select(alerts).where(alerts.c.status == "firing")).mappings():
            if row["state"]["clear_since"] is not None:
                earlier = datetime.fromisoformat(row["state"]["clear_since"]) - timedelta(minutes=5)
                state = {**row["state"], "clear_since": earlier.isoformat()}
                tx.connection.execute(update(alerts).where(alerts.c.alert_id == row["alert_id"]).values(state=state))
                clear = True
    return clear


def test_a_wrong_key_stops_the_judge_and_burns_no_attempt(new_fleet: NewFleet, sqlite_url: str) -> None:
    """A few calls find out, the alert names the judge, the work waits; resumed with the right key, all is scored."""
    with JudgeServer(latency_s=0.2) as server:
        server.keys = frozenset({"the old key"})
        fleet = new_fleet(
            sqlite_url,
            EVALPIPE_JUDGE=server.judge("main"),
            EVALPIPE_JUDGE_API_KEY="the new key",
            EVALPIPE_JUDGE_CONCURRENCY="4",
            EVALPIPE_ATTEMPTS="1",
        )
        card(fleet)
        start(fleet)
        ask(fleet, 30, "s")
        judge = server.version("main")
        assert wait_until(lambda: [row["state"] for row in rows(fleet, judge_states, judge=judge)] == ["stopped"])
        oversee(fleet)
        assert wait_until(lambda: firing(fleet, "judge-stopped") == [judge])
        assert wait_until(lambda: ["HTTP 401" in row["reason"] for row in rows(fleet, work)] == [True] * 30)
        assert fleet.count(work, state="pending", attempts=0) == 30
        assert server.total <= 2 * 4
        assert fleet.count(scores) == 0
        assert "the new key" not in str(rows(fleet, work) + rows(fleet, judge_states) + rows(fleet, alerts))

        server.keys = frozenset({"the new key"})
        assert run(fleet, "judge", "resume", judge, "--reason", "the key is right now")["state"] == "closed"
        assert wait_until(lambda: fleet.at_rest() and fleet.whole().scored == 30), rows(fleet, work)[0]
        assert fleet.count(work, state="done", attempts=1) == 30
        oversee(fleet)
        assert wait_until(lambda: not firing(fleet, "judge-stopped"))


def test_a_cap_of_money_sheds_what_is_not_urgent_and_a_rollout_goes_on(new_fleet: NewFleet, sqlite_url: str) -> None:
    """No call goes over the cap, the ledger counts what was shed, and what is kept for rollouts judges both arms."""
    cap = 80 * CALL_USD
    with JudgeServer() as server:
        fleet = new_fleet(
            sqlite_url,
            EVALPIPE_JUDGE=server.judge("main", "usd_per_mtok=1"),
            EVALPIPE_JUDGE_CONCURRENCY="2",
        )
        card(
            fleet,
            more=f"judging: {{usd_per_day: {cap}}}\nrollout: {{gates: [{{criterion: grounded, min_canary: 20}}]}}",
        )
        start(fleet)
        ask(fleet, 90, "s")
        assert wait_until(lambda: hurried(fleet) and fleet.whole().scored > 0), fleet.lines()
        less_urgent = server.total
        assert 40 < less_urgent <= 64
        assert fleet.whole().scored == less_urgent

        ask(fleet, 1, "start", variant="canary")
        assert wait_until(lambda: len(of_prefix(fleet, "start")) == 1 and fleet.count(rollouts) == 1)
        for variant in ("baseline", "canary"):
            ask(fleet, 3, variant, variant=variant)
        assert wait_until(lambda: hurried(fleet) and fleet.whole().sampled == 97), fleet.lines()
        assert [len(of_prefix(fleet, variant)) for variant in ("baseline", "canary")] == [3, 3]

        assert server.total * CALL_USD <= cap
        spent = {row["scope"]: row for row in rows(fleet, judge_spend)}["scorecard:support"]
        assert spent["spent_usd"] == pytest.approx(server.total * CALL_USD)
        assert spent["reserved_usd"] == 0.0
        lines = run(fleet, "ledger")
        assert {line["scorecard"] for line in lines} == {"", "support"}
        for name in ("", "support"):
            mine = [line for line in lines if line["scorecard"] == name]
            assert sum(line["scored"] for line in mine) == less_urgent + 7
            assert sum(line["shed"] for line in mine) == 90 - less_urgent
            assert {line["difference"] for line in mine} == {0}


def hurried(fleet: Fleet) -> bool:
    """Let the time pass that works wait for money; says whether none is owed any more."""
    with fleet.store.begin() as tx:
        tx.connection.execute(update(work).where(work.c.state == "pending").values(due_at=now()))
    return fleet.at_rest() and fleet.count(work, state="pending") == 0


def test_labels_of_people_correct_what_is_reported(new_fleet: NewFleet, sqlite_url: str, tmp_path: Path) -> None:
    """From files to estimates: raw stays as the judge says, corrected is what people would have said."""
    fleet = new_fleet(sqlite_url)
    fleet.start("worker", "worker", "--queues", f"{DECIDES},{JUDGES}", "--processes", "1")
    ask(fleet, 80, "good")
    ask(fleet, 40, "bad", output="a REFUND is on its way")
    assert wait_until(lambda: fleet.at_rest() and fleet.whole().scored == 120), fleet.lines()
    passed = [row["record_id"] for row in rows(fleet, scores, criterion="grounded", value=1.0)]
    failed = [row["record_id"] for row in rows(fleet, scores, criterion="grounded", value=0.0)]
    # People find 10 of 40 that it passes bad, and 2 of 20 that it fails good.
    said = [*zip(passed[:40], ["pass"] * 30 + ["fail"] * 10, strict=True)]
    said += [*zip(failed[:20], ["fail"] * 18 + ["pass"] * 2, strict=True)]
    write_labels(tmp_path / "labels.csv", said)

    [imported] = run(fleet, "label", "import", str(tmp_path / "labels.csv"), "--annotator", "ada@example.com")
    assert not imported["problems"]
    assert run(fleet, "estimates", "--criterion", "grounded")[0]["corrected_mean"] is None
    [report] = run(fleet, "judge", "calibrate", "--criterion", "grounded", "--save")
    assert "fake:demo" in json.dumps(report)
    [row] = run(fleet, "estimates", "--criterion", "grounded")
    assert row["raw_mean"] == pytest.approx(80 / 120)
    sensitivity, specificity = 30 / 32, 18 / 28
    told = (80 / 120 + specificity - 1) / (sensitivity + specificity - 1)
    assert row["correction"] == "rogan-gladen"
    assert row["corrected_mean"] == pytest.approx(told, abs=0.02)
    assert row["corrected_low"] < row["corrected_mean"] < row["corrected_high"]
    assert row["corrected_high"] - row["corrected_low"] > row["raw_high"] - row["raw_low"]
    assert row["calibration_n"] == 60


def write_labels(path: Path, said: Sequence[tuple[str, str]]) -> None:
    """A file of labels of ``grounded``."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["record_id", "criterion", "label"])
        table.writerows([record_id, "grounded", label] for record_id, label in said)


def test_a_judge_that_moves_is_suspect_and_rollouts_hold_until_somebody_accepts_it(
    new_fleet: NewFleet, sqlite_url: str, tmp_path: Path
) -> None:
    """Anchors tell it: the same name, stricter grades; the alert names the judge, and nothing is decided meanwhile."""
    secret = new_secret()
    with Receiver(secrets=secret) as consumer, JudgeServer(latency_s=0.005) as server:
        fleet = new_fleet(
            sqlite_url,
            EVALPIPE_JUDGE=server.judge("main"),
            EVALPIPE_ANCHORS_EVERY_S="1",
            EVALPIPE_WEBHOOK_URL=consumer.url,
            EVALPIPE_WEBHOOK_SECRET=secret,
        )
        card(fleet, more=ROLLOUT)
        add_anchors(fleet, tmp_path / "anchors.jsonl")
        start(fleet)
        judge = server.version("main")
        assert wait_until(lambda: health(fleet) == ["healthy"])

        server.grade = lambda shown: "fail" if "Probably" in shown else lenient(shown)
        assert wait_until(lambda: health(fleet) == ["suspect"])
        assert consumer.wait_for(lambda _: bool(told(consumer, ALERT_FIRING, "judge-suspect")), PATIENCE_S)
        assert judge in told(consumer, ALERT_FIRING, "judge-suspect")[0]["reason"]
        ask_both(fleet, "meanwhile")
        assert wait_until(lambda: fleet.at_rest() and fleet.whole().scored == 80 and fleet.folded()), fleet.lines()
        made = rows(fleet, decisions)
        assert {row["action"] for row in made} == {"hold"}
        assert made[-1]["evidence"]["cause"] == "judge_suspect"
        assert judge in made[-1]["reason"]

        reason = "stricter, and right"
        run(fleet, "judge", "anchors", "accept", "--judge", judge, "--reason", reason, "--actor", "ada@example.com")
        assert wait_until(lambda: health(fleet) == ["healthy"])
        oversee(fleet)
        assert consumer.wait_for(lambda _: bool(told(consumer, ALERT_RESOLVED, "judge-suspect")), PATIENCE_S)
        [row] = rows(fleet, judge_health)
        assert reason in json.dumps(row["accepted"], default=str)
        ask_both(fleet, "then")
        assert wait_until(lambda: "rollback" in {row["action"] for row in rows(fleet, decisions)})
        assert wait_until(lambda: not rows(fleet, outbox, state="pending"))


def ask_both(fleet: Fleet, prefix: str) -> None:
    """Forty good answers of the baseline, and bad ones of the canary, side by side."""
    baseline, canary = fleet.hook("baseline"), fleet.hook("canary")
    for i in range(40):
        talk(baseline, 1, output=f"Within 30 days. [{prefix} {i}]", prefix=f"{prefix}-b{i}")
        talk(canary, 1, output=f"a REFUND is on its way [{prefix} {i}]", prefix=f"{prefix}-c{i}")
        time.sleep(0.02)
    assert baseline.shutdown(30)
    assert canary.shutdown(30)


def health(fleet: Fleet) -> list[str]:
    """How the judges stand."""
    return [row["state"] for row in rows(fleet, judge_health)]


def add_anchors(fleet: Fleet, path: Path) -> None:
    """Forty records on which people agree; ten of them might be graded otherwise."""
    said = [("Within 30 days", "pass")] * 20 + [("Probably, yes", "pass")] * 10 + [("a REFUND comes", "fail")] * 10
    lines = [
        json.dumps({"input": f"May I return it? ({i})", "output": f"{output} ({i})", "labels": {"grounded": label}})
        for i, (output, label) in enumerate(said)
    ]
    path.write_text("\n".join(lines))
    assert run(fleet, "judge", "anchors", "add", "--criterion", "grounded", "--from", str(path))["added"] == 40
