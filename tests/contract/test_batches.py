"""The lane ``batch``: work that waits for a provider's batch, with the fake judge and the real clients."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from batch_provider import Provider, Trouble, serve
from sqlalchemy import update
from stages import World, assert_rollups_are_the_sums_of_the_scores, at_once, record, records
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.judges.base import Prompt
from evalpipe.judges.batch_fake import FakeBatches
from evalpipe.judges.batches import batchers
from evalpipe.judges.config import judge_config
from evalpipe.judges.desk import Call, Desk
from evalpipe.judges.prices import require_price, worst_case_usd
from evalpipe.pipeline.batch import BatchStage, Ran
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.judge import JudgeStage
from evalpipe.pipeline.maintain import erase_user
from evalpipe.store import judge_batches as judge_store
from evalpipe.store import judge_states, progress, purse, works
from evalpipe.store.tables import grades, judge_batches, judge_calls, judge_spend, scores, work

CARD = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
  - {name: grounded, judge: {kind: boolean, rubric: "Is it grounded?", lane: batch}}
"""
FAKE = 'fake:demo?rules={"REFUND": "fail"}&acts=pass&usd_per_mtok=10/40'
PRICED = "usd_per_mtok=10/40"
FULL_USD = 0.014
"""What the server's tokens cost outside a batch."""
PROVIDERS = {
    "openai": f"openai:gpt-5@{{url}}/v1?{PRICED}",
    "openai-responses": f"openai-responses:gpt-5@{{url}}/v1?{PRICED}",
    "anthropic": f"anthropic:claude-5@{{url}}?{PRICED}",
}


class Worker:
    """One process that runs the stage on a loop of its own, as often as it is asked to."""

    def __init__(self, world: World, *, budget: Budget | None = None, attempts: int = 5) -> None:
        self.commits = 0
        self._runner = asyncio.Runner()
        self.desk = Desk(world.open_judge, clock=world.clock)
        self.stage = BatchStage(world.store, self.desk, attempts=attempts, clock=world.clock, budget=budget)

    def run(self, on_commit: Callable[[], None] = lambda: None) -> Ran:
        """One run."""
        return self._runner.run(self.stage.run(on_commit))

    def close(self) -> None:
        """End the process in good order."""
        self._runner.run(self.desk.aclose())
        self._runner.close()


class Batched(World):
    """A world whose judged criterion is in the lane ``batch``."""

    def __init__(self, url: str, folder: Path, **options: Any) -> None:
        super().__init__(url, folder, **{"card": CARD, "judge": FAKE, **options})
        self.workers: list[Worker] = []

    def worker(self, **options: Any) -> Worker:
        """Another worker."""
        self.workers.append(Worker(self, **options))
        return self.workers[-1]

    def judge_now(self) -> None:
        """Run the other lane, in a process of its own that ends in good order."""

        async def run() -> None:
            desk = Desk(self.open_judge, clock=self.clock)
            options: dict[str, Any] = {"concurrency": 8, "lease": timedelta(seconds=60), "attempts": 5}
            await JudgeStage(self.store, desk, clock=self.clock, **options).drain(20, lambda: None)
            await desk.aclose()

        asyncio.run(run())

    def states(self) -> dict[str, int]:
        """How many works are in each state and lane."""
        found: dict[str, int] = {}
        for row in self.rows(work):
            name = f"{row['state']} {row['lane']}"
            found[name] = found.get(name, 0) + 1
        return found

    def progress(self) -> tuple[float, int]:
        """What health looks at: the age of the oldest record without its score, and how many calls are owed."""
        with self.store.read() as tx:
            found = progress.read(tx, self.clock())
        return found.oldest_unscored_s, found.owed

    def balances(self) -> bool:
        """Whether every line of the ledger adds up."""
        return all(line.difference == 0 for line in self.lines().values())

    def close(self) -> None:
        """Close everything."""
        for worker in self.workers:
            worker.close()
        super().close()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake provider's batches are this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A server of both protocols."""
    with serve() as server:
        yield server


@pytest.fixture
def make(migrated_sqlite_url: str, tmp_path: Path) -> Iterator[Callable[..., Batched]]:
    """Makes a world on SQLite."""
    made: list[Batched] = []

    def world(**options: Any) -> Batched:
        made.append(Batched(migrated_sqlite_url, tmp_path, **options))
        return made[-1]

    yield world
    for one in made:
        one.close()


@pytest.fixture
def world(migrated_url: str, tmp_path: Path) -> Iterator[Batched]:
    """One on each kind of database, judged by the fake judge."""
    made = Batched(migrated_url, tmp_path)
    yield made
    made.close()


def n_of(world: World, **where: Any) -> int:
    """How many works."""
    return world.count(work, **where)


def test_every_batch_api_belongs_to_a_judge() -> None:
    """Registered under the judge's name, found by folder."""
    assert list(batchers) == ["anthropic", "fake", "openai", "openai-responses"]


def test_work_that_nobody_sends_shows_in_health(world: Batched) -> None:
    """Waiting for a batch is no trouble; waiting for a worker is."""
    world.ingest(record(0))
    world.clock.pass_(minutes=59)
    assert world.progress() == (0.0, 1)
    world.clock.pass_(minutes=1)
    assert world.progress() == (3600.0, 1)


def test_a_whole_life(world: Batched) -> None:
    """Claimed by nobody else, in flight while it waits, graded at half the price; the ledger balances throughout."""
    world.ingest(*records(58), *(record(i, output="REFUND now") for i in (58, 59)))
    assert world.drain().graded == 0
    worker = world.worker()
    assert worker.run() == Ran(sent=60)
    assert world.states() == {"batched batch": 60}
    assert world.lines()["support"].in_flight == 60
    assert world.balances()
    assert world.progress() == (0.0, 60)
    [batch] = world.rows(judge_batches)
    assert (batch["state"], batch["n"], batch["provider_id"]) == ("submitted", 60, batch["batch_id"])
    assert worker.run() == Ran()
    world.clock.pass_(seconds=31)
    commits: list[int] = []
    assert worker.run(lambda: commits.append(1)) == Ran(graded=60)
    assert commits == [1]
    assert world.states() == {"done batch": 60}
    assert n_of(world, batch_id="") == 60
    found = world.rows(scores, criterion="grounded")
    assert sorted(row["value"] for row in found) == [0.0] * 2 + [1.0] * 58
    given = world.rows(grades)
    asked = [10e-6 * row["input_tokens"] + 40e-6 * row["output_tokens"] for row in given]
    assert [row["cost_usd"] for row in given] == pytest.approx([usd / 2 for usd in asked])
    assert {(row["attempts"], row["model"], row["reused"]) for row in given} == {(1, "demo", 0)}
    assert world.lines()["support"].scored == 60
    assert world.balances()
    assert_rollups_are_the_sums_of_the_scores(world.store)
    [batch] = world.rows(judge_batches)
    assert (batch["state"], batch["n_graded"], batch["n_returned"]) == ("ended", 60, 0)
    assert batch["cost_usd"] == pytest.approx(sum(asked) / 2)
    [calls] = world.rows(judge_calls)
    assert (calls["n"], calls["scorecard"], calls["outcome"]) == (60, "support", "answered")


def test_a_few_wait_for_company(world: Batched) -> None:
    """Five minutes at the most; what is urgent never was in this lane."""
    world.ingest(*records(3))
    worker = world.worker()
    assert worker.run() == Ran()
    assert world.progress() == (0.0, 3)
    world.clock.pass_(minutes=4, seconds=59)
    assert worker.run() == Ran()
    world.clock.pass_(seconds=1)
    assert worker.run() == Ran(sent=3)


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_real_clients_send_what_the_judge_would_send(
    make: Callable[..., Batched], provider: Provider, name: str
) -> None:
    """Files, batches and results; OpenAI's judges ask one question first, to learn what the model takes."""
    provider.picky = name != "anthropic"
    world = make(judge=PROVIDERS[name].format(url=provider.url))
    world.ingest(*records(8), record(8, output="REFUND now"), record(9))
    worker = world.worker()
    world.clock.pass_(minutes=5)
    alone = 0 if name == "anthropic" else 1
    assert worker.run() == Ran(sent=10 - alone)
    assert len(provider.asked) == 2 * alone  # refused for its temperature, and again without
    provider.running = True
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran()
    assert world.states()["batched batch"] == 10 - alone
    provider.running = False
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran(graded=10 - alone)
    assert world.states() == {"done batch": 10}
    assert sorted(row["cost_usd"] for row in world.rows(grades)) == pytest.approx(
        [FULL_USD / 2] * (10 - alone) + [FULL_USD] * alone
    )
    assert sorted(row["value"] for row in world.rows(scores, criterion="grounded")) == [0.0] + [1.0] * 9
    assert [row["quotation"] for row in world.rows(grades) if row["value"] == 0.0] == ["REFUND"]
    ids = [line["custom_id"] for line in provider.requests]
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 64
    assert provider.guarded
    assert world.balances()
    assert_rollups_are_the_sums_of_the_scores(world.store)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_batch_whose_maker_was_told_nothing_is_found(
    make: Callable[..., Batched], provider: Provider, name: str
) -> None:
    """A crash between the provider's and our commit: another worker finds it, and nothing is asked twice."""
    world = make(judge=PROVIDERS[name].format(url=provider.url))
    world.ingest(*records(60))
    provider.drops = provider.running = True
    before = world.worker()
    assert before.run() == Ran()
    provider.drops = False
    n = len(provider.requests)
    assert n == 60 - len(provider.asked)
    assert world.states()["batched batch"] == n
    after = world.worker()
    assert after.run() == Ran()
    world.clock.pass_(minutes=20)
    assert after.run() == Ran()  # at Anthropic it may be the one: it shows when it has ended
    provider.running = False
    world.clock.pass_(minutes=11)
    assert after.run().graded == n
    assert len(provider.batches) == 1
    assert world.states() == {"done batch": 60}
    assert world.balances()


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_batch_that_was_never_handed_in_is_given_back(
    make: Callable[..., Batched], provider: Provider, name: str
) -> None:
    """After a quarter of an hour, without an attempt counted, and then it is sent."""
    world = make(judge=PROVIDERS[name].format(url=provider.url))
    world.ingest(*records(60))
    provider.trouble = Trouble(500, "server")
    worker = world.worker()
    assert worker.run() == Ran()
    n = world.states()["batched batch"]
    assert world.balances()
    provider.trouble = None
    world.clock.pass_(minutes=2)
    assert worker.run() == Ran()
    world.clock.pass_(minutes=14)
    assert worker.run() == Ran(returned=n)
    assert {row["attempts"] for row in world.rows(work, state="pending")} == {0}
    assert {row["state"] for row in world.rows(judge_batches)} == {"failed"}
    world.clock.pass_(seconds=16)
    assert worker.run() == Ran(sent=n)
    assert world.balances()


def test_works_that_a_batch_brought_no_grade_for_are_sent_once_more_and_then_judged_now(
    make: Callable[..., Batched], provider: Provider
) -> None:
    """Refused, expired, lost or no grade: the others are graded, and at last these are, too."""
    world = make(judge=PROVIDERS["anthropic"].format(url=provider.url))
    bad = [record(f"bad-{i}", output=f"{word} {i}") for i, word in enumerate(("BROKEN", "LATE", "LOST", "GARBAGE"))]
    world.ingest(*records(56), *bad)
    worker = world.worker()
    worker.run()
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran(graded=56, returned=4)
    assert world.states() == {"done batch": 56, "pending batch": 4}
    reasons = {row["record_id"]: row["reason"] for row in world.rows(work, state="pending")}
    assert reasons["r-bad-0"] == "invalid_request_error: it was told to fail"
    assert reasons["r-bad-1"] == "the provider let it be expired"
    assert reasons["r-bad-2"] == "the batch has no answer for it"
    assert reasons["r-bad-3"].startswith("the judge's answer is not JSON")
    assert world.balances()
    [batch] = world.rows(judge_batches)
    assert batch["cost_usd"] == pytest.approx(57 * FULL_USD / 2)  # what is no grade was paid for
    outcomes = {row["outcome"]: row["n"] for row in world.rows(judge_calls)}
    assert outcomes == {"answered": 56, "malformed": 1}
    world.clock.pass_(minutes=10)
    assert worker.run() == Ran(sent=4)
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran(returned=4)
    assert world.states() == {"done batch": 56, "pending now": 4}
    assert {row["attempts"] for row in world.rows(work, state="pending")} == {2}
    world.judge_now()
    assert world.states() == {"done batch": 56, "done now": 4}
    assert world.lines()["support"].error == 4
    assert world.balances()


@pytest.mark.parametrize(("code", "attempts"), [("invalid_json_line", 1), ("token_limit_exceeded", 0)])
def test_a_batch_that_fails_as_a_whole_gives_its_works_back(
    make: Callable[..., Batched], provider: Provider, code: str, attempts: int
) -> None:
    """With the provider's reason; a full queue at the provider costs no attempt."""
    provider.fails = code
    world = make(judge=PROVIDERS["openai"].format(url=provider.url))
    world.ingest(*records(60))
    worker = world.worker()
    worker.run()
    world.clock.pass_(seconds=31)
    assert worker.run().returned == 59
    waiting = world.rows(work, state="pending")
    assert {(row["lane"], row["attempts"], row["reason"]) for row in waiting} == {
        ("batch", attempts, f"{code}: too much")
    }
    assert world.balances()
    provider.fails = ""
    world.clock.pass_(minutes=10)
    worker.run()
    world.clock.pass_(seconds=31)
    worker.run()
    assert world.states() == {"done batch": 60}


def test_a_batch_that_does_not_end_is_abandoned(make: Callable[..., Batched], provider: Provider) -> None:
    """After 26 hours it is cancelled, and its works are judged now."""
    provider.running = True
    world = make(judge=PROVIDERS["anthropic"].format(url=provider.url))
    world.ingest(*records(50))
    worker = world.worker()
    worker.run()
    world.clock.pass_(hours=25, minutes=59)
    assert worker.run() == Ran()
    world.clock.pass_(minutes=11)
    assert worker.run() == Ran(returned=50)
    assert provider.cancelled == list(provider.batches)
    assert world.states() == {"pending now": 50}
    [batch] = world.rows(judge_batches)
    assert (batch["state"], batch["n_returned"]) == ("abandoned", 50)
    assert batch["reason"] == "the batch had not ended after 26 hours"
    world.judge_now()
    assert world.states() == {"done now": 50}
    assert world.balances()


def test_without_a_batch_api_the_works_are_judged_now(
    make: Callable[..., Batched], provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """An endpoint that only speaks the protocol of the judge; the log says so once."""
    provider.trouble = Trouble(404, "not_found", "no such path")
    world = make(judge=PROVIDERS["openai"].format(url=provider.url))
    world.ingest(*records(60))
    worker = world.worker()
    worker.run()
    assert world.states() == {"done batch": 1, "pending now": 59}
    world.clock.pass_(seconds=5)
    world.ingest(*records(60, start=60))
    world.clock.pass_(minutes=5)
    worker.run()
    assert world.states() == {"done batch": 1, "pending now": 119}
    assert caplog.text.count("is judged now, at full price") == 1
    assert {row["attempts"] for row in world.rows(work, state="pending")} == {0}
    world.judge_now()
    assert n_of(world, state="done") == 120
    assert world.balances()


def test_a_provider_without_batches_is_known_without_asking(make: Callable[..., Batched], provider: Provider) -> None:
    """OpenAI's decisions take none."""
    world = make(judge=f"openai-decisions:gpt-5@{provider.url}/v1?{PRICED}")
    world.ingest(*records(50))
    world.worker().run()
    assert world.states() == {"pending now": 50}
    assert {row["reason"] for row in world.rows(work)} == {"no batch: its provider has no batch API"}


def test_caps_hold_half_the_worst_case_while_a_batch_runs(world: Batched) -> None:
    """In the transaction of the claim; recounting keeps it, and what is left is given back with the grades."""
    config = judge_config(world.settings)
    price = require_price(config)
    seen: list[float] = []

    def worst(_: str, prompt: Prompt) -> float:
        seen.append(worst_case_usd(prompt, price))
        return seen[-1]

    world.ingest(*records(60))
    worker = world.worker(budget=Budget({purse.ALL: 100.0}, worst))
    worker.run()
    assert len(seen) == 60
    [row] = world.rows(judge_spend)
    assert row["reserved_usd"] == pytest.approx(sum(seen) / 2)
    world.clock.pass_(hours=1)
    with world.store.begin() as tx:
        purse.recount(tx, world.clock())
    assert world.rows(judge_spend)[0]["reserved_usd"] == pytest.approx(sum(seen) / 2)
    worker.run()
    spent = {row["scope"]: row for row in world.rows(judge_spend)}
    assert spent[purse.ALL]["reserved_usd"] == pytest.approx(0.0, abs=1e-9)
    assert spent[purse.ALL]["spent_usd"] == pytest.approx(sum(row["cost_usd"] for row in world.rows(grades)))
    assert n_of(world, held="") == 60


def test_what_the_caps_refuse_is_shed(world: Batched) -> None:
    """It ends with the reason, and the rest is sent."""
    world.ingest(*records(60))
    worker = world.worker(budget=Budget({purse.ALL: 1.0}, lambda _model, _prompt: 0.04))
    worker.run()
    states = world.states()
    assert 0 < states["batched batch"] < 60
    assert world.balances()
    for _ in range(2):
        world.clock.pass_(minutes=6)
        worker.run()
    assert "batched batch" not in world.states()
    assert world.balances()
    [row] = [row for row in world.rows(judge_spend) if row["scope"] == purse.ALL]
    assert row["spent_usd"] <= 1.0


def test_two_workers_at_once_send_and_grade_nothing_twice(world: Batched) -> None:
    """Each work is in one batch, and each answer counts once."""
    world.ingest(*records(80))
    first, second = world.worker(), world.worker()
    ran = at_once(first.run, second.run)
    assert sum(r.sent for r in ran) == 80
    world.clock.pass_(seconds=31)
    ran = at_once(first.run, second.run)
    assert sum(r.graded for r in ran) == 80
    assert world.count(grades) == 80
    assert world.lines()["support"].scored == 80
    assert world.balances()
    assert_rollups_are_the_sums_of_the_scores(world.store)


def test_a_worker_that_dies_while_it_picks_up_leaves_the_rest_to_another(
    world: Batched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it committed is not counted again."""
    monkeypatch.setattr("evalpipe.pipeline.batch.CHUNK", 40)
    world.ingest(*records(60))
    first, second = world.worker(), world.worker()
    assert first.run() == Ran(sent=60)

    def die() -> None:
        raise RuntimeError("killed")

    world.clock.pass_(seconds=31)
    with pytest.raises(RuntimeError, match="killed"):
        first.run(die)
    assert world.states() == {"done batch": 40, "batched batch": 20}
    assert world.balances()
    assert second.run() == Ran()
    world.clock.pass_(minutes=16)
    assert second.run() == Ran(graded=20)
    assert world.lines()["support"].scored == 60
    assert sum(row["n"] for row in world.rows(judge_calls)) == 60
    [batch] = world.rows(judge_batches)
    assert (batch["n_graded"], batch["state"]) == (60, "ended")
    assert batch["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in world.rows(grades)))


def test_a_known_grade_is_not_asked_for_again(world: Batched) -> None:
    """Nor twice in one batch: the second one waits, and is known then."""
    same: dict[str, Any] = {"messages": [{"role": "user", "content": "the same"}]}
    world.ingest(*(record(i, **same) for i in range(50)))
    worker = world.worker()
    assert worker.run() == Ran(sent=1)
    world.clock.pass_(hours=1, minutes=5)
    assert worker.run() == Ran(graded=1)
    assert world.states() == {"done batch": 50}
    assert {row["reused"] for row in world.rows(grades)} == {0, 1}
    assert sum(row["cost_usd"] > 0 for row in world.rows(grades)) == 1
    assert world.balances()


def test_a_shared_call_is_one_request(make: Callable[..., Batched]) -> None:
    """Both criteria get their grade of one answer, and share its price."""
    card = CARD.replace("lane: batch}}", "lane: batch, together: a}}") + (
        '  - {name: polite, judge: {kind: boolean, rubric: "Is it polite?", lane: batch, together: a}}\n'
    )
    world = make(card=card)
    world.ingest(*records(40))
    worker = world.worker()
    assert worker.run() == Ran(sent=40)
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran(graded=80)
    assert world.count(scores, criterion="polite") == world.count(scores, criterion="grounded") == 40
    [batch] = world.rows(judge_batches)
    assert batch["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in world.rows(grades)))
    assert world.balances()


def test_a_large_claim_is_split(make: Callable[..., Batched], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the provider's bounds on requests and on bytes."""
    monkeypatch.setattr(FakeBatches, "most_requests", 20)
    world = make()
    world.ingest(*records(50))
    worker = world.worker()
    worker.run()
    assert sorted(row["n"] for row in world.rows(judge_batches)) == [10, 20, 20]
    monkeypatch.setattr(FakeBatches, "most_bytes", 1)
    world.ingest(*records(50, start=50))
    assert worker.run().sent == 50
    assert world.count(judge_batches) == 53
    world.clock.pass_(seconds=31)
    assert worker.run().graded == 100


def test_a_stopped_judge_is_sent_nothing(world: Batched) -> None:
    """Its work waits, and no attempt is burnt."""
    world.ingest(*records(60))
    judge = world.open_judge("default")
    assert judge is not None
    with world.store.begin() as tx:
        judge_states.stop(tx, judge.version, "too costly", "ada", world.clock())
    worker = world.worker()
    assert worker.run() == Ran()
    assert world.states() == {"pending batch": 60}
    assert {row["attempts"] for row in world.rows(work)} == {0}
    with world.store.begin() as tx:
        judge_states.resume(tx, judge.version, "paid", "ada", world.clock())
    world.clock.pass_(minutes=6)
    assert worker.run() == Ran(sent=60)


def test_a_refused_key_stops_the_judge(make: Callable[..., Batched], provider: Provider) -> None:
    """As a refused call would; the works wait."""
    provider.trouble = Trouble(401, "authentication_error")
    world = make(judge=PROVIDERS["anthropic"].format(url=provider.url))
    world.ingest(*records(50))
    worker = world.worker()
    assert worker.run() == Ran(returned=50)
    with world.store.read() as tx:
        [state] = judge_states.read(tx).values()
    assert (state.state, state.cause) == ("stopped", "key")
    assert world.states() == {"pending batch": 50}
    world.clock.pass_(minutes=6)
    assert worker.run() == Ran()


def test_a_batch_that_is_forbidden_to_a_judge_that_answers_is_judged_now(
    make: Callable[..., Batched], provider: Provider
) -> None:
    """Something on the way dislikes the batch, or the key may make none: it is not handed in again without end."""
    provider.trouble = Trouble(403, "permission_error")
    world = make(judge=PROVIDERS["anthropic"].format(url=provider.url))
    world.ingest(*records(50))
    judge = world.open_judge("default")
    assert judge is not None
    with world.store.begin() as tx:
        judge_states.add_calls(tx, [Call(world.clock(), judge.version, "", "answered", None, 1.0)], world.clock())
    worker = world.worker()
    assert worker.run() == Ran(returned=50)
    assert world.states() == {"pending batch": 50}
    world.clock.pass_(minutes=11)
    assert worker.run() == Ran(returned=50)
    assert world.states() == {"pending now": 50}


def test_an_erased_record_is_quoted_nowhere(world: Batched) -> None:
    """Its payload is gone: nobody can read the answer against it, so its work ends as that of erased records does."""
    world.ingest(*records(49), record(49, user_id="ada", output="REFUND to ada"))
    worker = world.worker()
    worker.run()
    with world.store.begin() as tx:
        assert erase_user(tx, "ada") == 1
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran(graded=49, returned=1)
    assert world.states() == {"done batch": 49, "dead batch": 1}
    assert world.count(grades) == 49
    [dead] = world.rows(work, state="dead")
    assert "erased" in dead["reason"]
    assert world.lines()["support"].dead == 1
    [batch] = world.rows(judge_batches)
    assert batch["cost_usd"] > sum(row["cost_usd"] for row in world.rows(grades))
    assert world.balances()


def test_another_judge_behind_the_same_word_is_not_credited(make: Callable[..., Batched]) -> None:
    """The default judge was changed while a batch was out: its works are owed to the new one."""
    world = make()
    world.ingest(*records(50))
    world.worker().run()
    other = make(judge="fake:other?acts=pass")
    world.clock.pass_(seconds=31)
    other.clock = world.clock
    worker = Worker(other)
    assert worker.run() == Ran(returned=50)
    worker.close()
    [batch] = world.rows(judge_batches)
    assert batch["state"] == "abandoned"
    assert world.states() == {"pending batch": 50}


def test_with_one_attempt_there_is_one_left_for_the_other_lane(make: Callable[..., Batched]) -> None:
    """However few attempts are allowed, an expired request is not the end."""
    world = make(judge='fake:demo?rules={"LATE": "hang"}&acts=pass')
    world.ingest(*records(49), record(49, output="LATE"))
    worker = world.worker(attempts=1)
    worker.run()
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran(graded=49, returned=1)
    [late] = world.rows(work, state="pending")
    assert (late["lane"], late["attempts"]) == ("now", 0)


def test_late_answers_of_a_batch_that_was_given_up_change_nothing(world: Batched) -> None:
    """The works belong to whoever claimed them next."""
    world.ingest(*records(50))
    worker = world.worker()
    worker.run()
    with world.store.begin() as tx:
        tx.connection.execute(update(work).values(state="pending", batch_id="", lane="now", fence=work.c.fence + 1))
    assert world.drain().graded == 50
    world.clock.pass_(seconds=31)
    assert worker.run() == Ran()
    assert world.count(grades) == 50
    with world.store.begin() as tx:
        assert works.in_batch(tx, world.rows(judge_batches)[0]["batch_id"], None, 10) == []


def test_a_worker_that_dies_when_it_has_handed_a_batch_in_leaves_it_to_another(
    world: Batched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the provider's answer and our commit: a quarter of an hour later it is found, and sent no second time."""
    submit, n = FakeBatches.submit, 0

    async def die(self: FakeBatches, batch_id: str, lines: Sequence[bytes]) -> str:
        nonlocal n
        n += 1
        await submit(self, batch_id, lines)
        raise RuntimeError("killed")

    monkeypatch.setattr(FakeBatches, "submit", die)
    world.ingest(*records(50))
    with pytest.raises(RuntimeError, match="killed"):
        world.worker().run()
    assert world.states() == {"batched batch": 50}
    assert world.balances()
    after = world.worker()
    world.clock.pass_(minutes=14)
    assert after.run() == Ran()
    world.clock.pass_(minutes=1)
    assert after.run() == Ran(graded=50)
    assert n == 1
    assert world.balances()


def test_a_batch_that_was_given_up_while_it_was_handed_in_is_cancelled(
    make: Callable[..., Batched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker stood still for too long: nobody would pick it up."""
    world = make()
    submit = FakeBatches.submit

    async def late(self: FakeBatches, batch_id: str, lines: Sequence[bytes]) -> str:
        provider_id = await submit(self, batch_id, lines)
        with world.store.begin() as tx:
            judge_store.close(tx, batch_id, "failed", "given up", world.clock())
        return provider_id

    monkeypatch.setattr(FakeBatches, "submit", late)
    world.ingest(*records(50))
    world.worker().run()
    assert list(Path(tempfile.gettempdir()).glob("evalpipe-fake-batches-*/*")) == []
    assert [row["state"] for row in world.rows(judge_batches)] == ["failed"]


def test_the_command_line_lists_batches(
    migrated_sqlite_url: str, make: Callable[..., Batched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a table and as JSON; and says why there are none."""
    for name, value in {"EVALPIPE_DATABASE_URL": migrated_sqlite_url, "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    runner = CliRunner()

    def run(*words: str) -> str:
        result = runner.invoke(app, ["judge", "batches", *words])
        assert result.exit_code == 0, result.output
        return result.output

    assert "lane: batch" in run()
    world = make()
    world.ingest(*records(50))
    world.worker().run()
    [found] = json.loads(run("--json"))
    told: Mapping[str, Any] = {"state": "submitted", "n": 50, "n_waiting": 50, "n_graded": 0, "cost_usd": 0.0}
    assert {name: found[name] for name in told} == told
    assert found["batch_id"] in run()


def test_polls_are_further_apart_the_older_a_batch_is(make: Callable[..., Batched], provider: Provider) -> None:
    """From half a minute to ten minutes: a tenth of its age."""
    provider.running = True
    world = make(judge=PROVIDERS["anthropic"].format(url=provider.url))
    world.ingest(*records(50))
    worker = world.worker()
    waits = []
    worker.run()
    for _ in range(3):
        [row] = world.rows(judge_batches)
        waits.append(row["next_poll_at"] - world.clock())
        world.clock.pass_(hours=1)
        worker.run()
    assert waits == [timedelta(seconds=30), timedelta(minutes=6), timedelta(minutes=10)]
