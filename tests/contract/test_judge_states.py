"""What judges' calls come to in the store, and breakers that the whole fleet shares, on both databases."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from stages import at_once
from typer.testing import CliRunner, Result

from evalpipe.api.metrics import families
from evalpipe.api.scrape import Seen
from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.judges.base import Answer
from evalpipe.judges.desk import Call
from evalpipe.store import judge_states
from evalpipe.store.judge_states import JudgeState, usable
from evalpipe.store.sql import Store

AT = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
JUDGE = "openai:m@judge:8000"


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """An empty store of each kind."""
    store = Store(migrated_url)
    yield store
    store.close()


def call(outcome: str, at: datetime = AT, judge: str = JUDGE, account: str = "support") -> Call:
    """A call of a tenth of a second; an answer costs a thousandth of a dollar."""
    answer = None
    if outcome == "answered":
        answer = Answer("{}", "m", input_tokens=1000, cached_tokens=800, output_tokens=50, cost_usd=0.001)
    return Call(at, judge, account, outcome, answer, 100.0, "" if answer else f"it was {outcome}")


def add(store: Store, *outcomes: str, at: datetime = AT) -> dict[str, JudgeState]:
    """Calls of one judge that ended; the states that changed."""
    with store.begin() as tx:
        return judge_states.add_calls(tx, [call(outcome, at) for outcome in outcomes], at)


def state(store: Store, judge: str = JUDGE) -> JudgeState:
    """What the store has of a judge."""
    with store.read() as tx:
        return judge_states.read(tx).get(judge, JudgeState())


def test_calls_add_up_by_judge_scorecard_and_outcome(store: Store) -> None:
    """Over minutes and commits, with what they took."""
    add(store, "answered", "timeout", "answered")
    add(store, "answered", at=AT + MINUTE)
    with store.begin() as tx:
        judge_states.add_calls(tx, [call("answered", account="other")], AT)
    with store.read() as tx:
        rows = judge_states.calls_since(tx, AT - MINUTE)
    assert [(r.judge, r.scorecard, r.outcome, r.n) for r in rows] == [
        (JUDGE, "other", "answered", 1), (JUDGE, "support", "answered", 3), (JUDGE, "support", "timeout", 1),
    ]  # fmt: skip
    of = rows[1]
    assert (of.input_tokens, of.cached_tokens, of.output_tokens, of.nano_usd, of.latency_ms) == (
        3000, 2400, 150, 3_000_000, 300,
    )  # fmt: skip


def test_a_judge_that_answers_has_no_row(store: Store) -> None:
    """Breakers cost nothing where there is nothing to break."""
    add(store, *["answered"] * 50)
    with store.read() as tx:
        assert judge_states.read(tx) == {}


def test_no_calls_are_no_trouble(store: Store) -> None:
    """A commit of grades that were all known."""
    assert add(store) == {}


def test_a_share_of_failures_opens_it_for_the_whole_fleet(store: Store) -> None:
    """The calls of two workers count together; only the one that opens it is told so."""
    assert add(store, *["answered"] * 45, *["timeout"] * 4) == {}
    changed = add(store, *["answered"] * 45, "server", *["timeout"] * 5, at=AT + MINUTE)
    assert changed.keys() == {JUDGE}
    found = state(store)
    assert found == changed[JUDGE]
    assert (found.state, found.cause) == ("open", "timeout")
    assert found.reason == "10 of 100 calls had no answer (9 timeout, 1 server); the last: it was timeout"
    assert not usable(found, AT + MINUTE)


def test_old_minutes_do_not_count(store: Store) -> None:
    """What was eleven minutes ago is over; what was six minutes ago is the window before."""
    add(store, *["timeout", "answered"] * 4, at=AT)
    add(store, *["answered"] * 60, *["timeout", "answered"] * 3, at=AT + 11 * MINUTE)
    add(store, *["timeout", "answered"] * 2, at=AT + 12 * MINUTE)
    assert state(store).state == "closed"
    add(store, *["answered"] * 60, *["timeout", "answered"] * 5, at=AT + 17 * MINUTE)
    assert state(store).state == "open"


def test_an_outage_runs_its_course(store: Store) -> None:
    """Dead, open, probed in vain, open for longer, probed, closed; and what was before does not open it again."""
    add(store, *["unreachable"] * 5)
    assert add(store, *["unreachable"] * 3)[JUDGE].state == "open"
    at = AT + timedelta(seconds=61)
    assert usable(state(store), at)
    assert add(store, "unreachable", at=at)[JUDGE].state == "open"
    assert not usable(state(store), at + timedelta(seconds=61))
    at += timedelta(seconds=121)
    assert add(store, *["answered"] * 3, at=at)[JUDGE].state == "half_open"
    assert add(store, *["answered"] * 2, at=at)[JUDGE].state == "closed"
    assert add(store, *["answered"] * 20, "timeout", at=at + MINUTE) == {}
    assert state(store).state == "closed"


def test_a_rejection_stops_it_and_a_probe_starts_it(store: Store) -> None:
    """The provider's words are kept for whoever is paged; they may have any characters."""
    with store.begin() as tx:
        bad = Call(AT, JUDGE, "support", "credit", None, 10.0, "HTTP 429: no credit \x00 left")
        judge_states.add_calls(tx, [call("answered"), bad], AT)
    found = state(store)
    assert (found.state, found.cause, found.since_at) == ("stopped", "credit", AT)
    assert found.reason.startswith("HTTP 429: no credit")
    assert not usable(found, AT + 9 * MINUTE)
    at = AT + 11 * MINUTE
    assert usable(found, at)
    assert add(store, "answered", at=at)[JUDGE].state == "closed"


def test_a_human_stops_and_resumes(store: Store) -> None:
    """A judge that was never seen too: it may be about to be used."""
    with store.begin() as tx:
        judge_states.stop(tx, JUDGE, "too costly", "ada", AT)
    found = state(store)
    assert (found.state, found.cause, found.reason, found.until_at) == ("stopped", "human", "ada: too costly", None)
    assert add(store, *["answered"] * 30, at=AT + MINUTE) == {}
    assert state(store).state == "stopped"
    with store.begin() as tx:
        judge_states.resume(tx, JUDGE, "paid", "ada", AT + 2 * MINUTE)
    assert state(store).state == "closed"
    assert state(store).reason == "ada: paid"


def test_judges_do_not_know_of_one_another(store: Store) -> None:
    """One provider's outage stops its judges alone."""
    with store.begin() as tx:
        calls = [*[call("timeout")] * 8, *[call("answered", judge="anthropic:m")] * 8]
        assert judge_states.add_calls(tx, calls, AT).keys() == {JUDGE}


def test_many_workers_at_once_lose_no_call_and_do_not_fight(store: Store) -> None:
    """Four workers commit mixed calls of three judges ten times each."""
    judges = ["a:1", "b:2", "c:3"]

    def work(number: int) -> None:
        for turn in range(10):
            at = AT + timedelta(seconds=turn)
            outcomes = ["answered"] * 6 + ["timeout", "throttled", "malformed"]
            order = judges[number % 3 :] + judges[: number % 3]
            calls = [call(outcome, at, judge) for judge in order for outcome in outcomes]
            store.patiently(partial(judge_states.add_calls, calls=calls, now=at))

    at_once(*(partial(work, number) for number in range(4)))
    with store.read() as tx:
        rows = judge_states.calls_since(tx, AT - MINUTE)
    assert {(r.judge, r.outcome): r.n for r in rows} == {
        (judge, outcome): n
        for judge in judges
        for outcome, n in {"answered": 240, "timeout": 40, "throttled": 40, "malformed": 40}.items()
    }


def test_a_judge_whose_row_is_held_is_left_alone(migrated_postgres_url: str) -> None:
    """Whoever commits meanwhile does not wait for it: its calls count, and its breaker moves with the next ones."""
    store = Store(migrated_postgres_url)
    add(store, "timeout")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.begin() as tx:
            judge_states.stop(tx, JUDGE, "thinking", "ada", AT)
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        # judge_calls' rows are other ones: only the breaker's is held.
        assert add(store, *["timeout"] * 20) == {}
    finally:
        done.set()
        thread.join(60)
    assert state(store).state == "stopped"
    with store.read() as tx:
        assert sum(row.n for row in judge_states.calls_since(tx, AT - MINUTE)) == 21
    store.close()


def test_upkeep_removes_what_is_older_than_its_retention(store: Store) -> None:
    """Minutes, and judges that closed before; what is stopped stays."""
    add(store, *["timeout"] * 8)
    add(store, *["answered"] * 5, at=AT + 2 * MINUTE)
    with store.begin() as tx:
        judge_states.stop(tx, "anthropic:m", "no more", "ada", AT)
        assert judge_states.clean(tx, AT + MINUTE) == 1
    assert state(store).state == "closed"
    with store.begin() as tx:
        assert judge_states.clean(tx, AT + 10 * MINUTE) == 1
        assert judge_states.read(tx).keys() == {"anthropic:m"}


def judge(*words: str) -> Result:
    """A command of `evalpipe judge`."""
    return CliRunner().invoke(app, ["judge", *words])


@pytest.fixture
def cli_store(store: Store, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the commands find: a good judge, and one that is dead, of today."""
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", migrated_url)
    monkeypatch.setenv("COLUMNS", "200")
    at = datetime.now(UTC)
    with store.begin() as tx:
        calls = [*[call("answered", at)] * 6, call("malformed", at), call("throttled", at)]
        calls += [call("timeout", at, "openai:dead")] * 8
        judge_states.add_calls(tx, calls, at)
    return store


@pytest.mark.usefixtures("cli_store")
def test_the_list_says_what_each_judge_did_and_whether_it_is_asked() -> None:
    """State with its reason, calls, what failed and how, latency, tokens and cost."""
    found = judge("list")
    assert found.exit_code == 0
    dead, good = [line for line in found.output.splitlines() if "openai:" in line]
    assert re.search(r"openai:dead +open .* 8 +timeout 100\.0%.* it was timeout", dead)
    assert re.search(rf"{JUDGE} +closed +8 +malformed 12\.5%, throttled 12\.5% +100 +6300 +0\.006", good)
    rows = {row["judge"]: row for row in json.loads(judge("list", "--json").output)}
    assert rows["openai:dead"]["state"] == "open"
    assert rows["openai:dead"]["cause"] == "timeout"
    assert rows["openai:dead"]["latency_ms"] is None
    assert rows[JUDGE]["errors"] == {"malformed": 0.125, "throttled": 0.125}
    assert (rows[JUDGE]["calls"], rows[JUDGE]["tokens"]) == (8, 6300)


def test_a_judge_is_stopped_and_resumed_by_its_name_or_the_beginning(cli_store: Store) -> None:
    """Who and why are kept, and shown."""
    stopped = judge("stop", "openai:m", "--reason", "too costly", "--actor", "ada")
    assert stopped.output == f"{JUDGE} is asked nothing until somebody resumes it. Workers follow within seconds.\n"
    assert state(cli_store).reason == "ada: too costly"
    resumed = json.loads(judge("resume", JUDGE, "--reason", "paid", "--actor", "ada", "--json").output)
    assert resumed == {"judge": JUDGE, "state": "closed", "reason": "ada: paid"}
    assert judge("resume", "openai:dead", "--reason", "restarted it").exit_code == 0
    assert state(cli_store, "openai:dead").state == "closed"


@pytest.mark.usefixtures("cli_store")
def test_a_mistyped_judge_is_no_success() -> None:
    """The nearest is named, and nothing is changed; so it is with a beginning that two have."""
    wrong = judge("stop", "openai:daed", "--reason", "typing")
    assert "did you mean 'openai:dead'" in str(wrong.exception)
    both = judge("stop", "openai", "--reason", "all of them")
    assert "several judges begin with 'openai': openai:dead, openai:m@judge:8000" in str(both.exception)
    assert isinstance(wrong.exception, ConfigError)
    assert isinstance(both.exception, ConfigError)


def test_metrics_tell_judges_apart(store: Store) -> None:
    """Calls by outcome, latency, tokens, cost and state; one that nothing was ever wrong with is closed."""
    with store.begin() as tx:
        judge_states.add_calls(tx, [call("answered", account="other"), call("answered"), call("malformed")], AT)
        judge_states.add_calls(tx, [call("key", judge="openai:shut")], AT)
    seen = Seen(AT, database=True)
    with store.read() as tx:
        seen.judge_calls = judge_states.calls_since(tx, AT - MINUTE)
        seen.judges = judge_states.read(tx)
    told = {
        (sample.name.removeprefix("evalpipe_judge_"), *sample.labels.values()): sample.value
        for family in families(seen)
        for sample in family.samples
        if sample.name.startswith("evalpipe_judge_")
    }
    assert told["calls_total", JUDGE, "answered"] == 2
    assert told["calls_total", JUDGE, "malformed"] == 1
    assert told["calls_total", "openai:shut", "key"] == 1
    assert told["latency_seconds_total", JUDGE, "answered"] == pytest.approx(0.2)
    assert [told["tokens_total", JUDGE, kind] for kind in ("input", "cached", "output")] == [2000, 1600, 100]
    assert told["call_cost_usd_total", JUDGE, "support"] == pytest.approx(0.001)
    assert told["state", JUDGE, "closed"] == 1
    assert [told["state", "openai:shut", name] for name in ("closed", "open", "half_open", "stopped")] == [0, 0, 0, 1]
