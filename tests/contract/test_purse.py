"""The purse on PostgreSQL and SQLite: caps hold whoever claims, and what is reserved comes back."""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update
from stages import AT, World, at_once, records
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.judges.desk import Call
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.maintain import Maintain
from evalpipe.stats.thinning import decide
from evalpipe.store import judge_states, purse, works
from evalpipe.store.purse import Reserved, Scopes, Want
from evalpipe.store.queue import Queue
from evalpipe.store.spend import day_of
from evalpipe.store.sql import Store
from evalpipe.store.tables import judge_calls, judge_spend, scores, work
from evalpipe.store.works import Work
from evalpipe.wiring import Wiring

ALL, CARD, JUDGE = "all", "scorecard:support", "judge:openai:small"
TODAY = day_of(AT)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on a migrated database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


def owe(store: Store, n: int, *, start: int = 0, priority: int = 5) -> list[str]:
    """So many works; their ids."""
    owed = [Work(f"r-{start + i}", "support", "v1", "grounded", "desk", AT, 1.0, priority) for i in range(n)]
    with store.begin() as tx:
        works.add_work(tx, owed, AT)
    return [w.work_id for w in owed]


def wants(ids: Sequence[str], usd: float, *, urgent: bool = False) -> list[Want]:
    """The same want for each work."""
    return [Want(i, purse.scopes("support", {"openai:small": usd}), urgent) for i in ids]


def reserve(store: Store, found: Sequence[Want], caps: Scopes, at: datetime = AT) -> Reserved:
    """Reserve in a transaction of its own."""
    with store.begin() as tx:
        return purse.reserve(tx, found, caps, at)


def settle(store: Store, ids: Sequence[str], usd: float, at: datetime = AT, *, ours: bool = True) -> None:
    """End works that cost so much each."""
    paid = {i: purse.scopes("support", {"openai:small": usd}) if usd else {} for i in ids}
    with store.begin() as tx:
        purse.settle(tx, paid, set(ids) if ours else set(), at)


def spend(store: Store, scope: str = ALL, day: str = TODAY) -> tuple[float, float]:
    """What was spent and what is reserved, in dollars; rounded as far as floats are."""
    query = select(judge_spend.c.spent_usd, judge_spend.c.reserved_usd).where(
        judge_spend.c.day == day, judge_spend.c.scope == scope
    )
    with store.read() as tx:
        row = tx.connection.execute(query).first()
    return (round(row.spent_usd, 9), round(row.reserved_usd, 9)) if row else (0.0, 0.0)


def keep(store: Store, share: float, scope: str = ALL) -> None:
    """Set the share of less urgent work by hand."""
    with store.begin() as tx:
        tx.connection.execute(update(judge_spend).where(judge_spend.c.scope == scope).values(keep=share))


# ------------------------------------------------------------------------------------------------------------- caps


def test_what_was_spent_is_refused_and_what_is_only_held_waits(store: Store) -> None:
    """In the order given; the reason names the cap, and only money that is gone ends a work."""
    ids = owe(store, 4)
    settle(store, ids[:1], 2.5)
    found = reserve(store, wants(ids[1:], 1.0), {CARD: 5.0, ALL: 100.0})
    assert found.refused == {}
    assert found.waiting == {
        ids[2]: "calls under way hold what is left of the cap of 5 USD a day of scorecard support",
        ids[3]: "calls under way hold what is left of the cap of 5 USD a day of scorecard support",
    }
    settle(store, [ids[1]], 1.0)
    found = reserve(store, wants(ids[2:3], 1.0), {CARD: 5.0})
    assert found.refused == {
        ids[2]: "the cap of 5 USD a day of scorecard support is used up, but for what is kept for urgent work"
    }
    assert spend(store, CARD) == spend(store, JUDGE) == spend(store) == (3.5, 0.0)


def test_the_last_fifth_of_a_cap_is_for_urgent_work(store: Store) -> None:
    """Less urgent work stops at 80 %, urgent work at all of it."""
    ids = owe(store, 30)
    found = reserve(store, wants(ids[:10], 1.0), {ALL: 10.0})
    assert len(found.waiting) == 2
    found = reserve(store, wants(ids[10:20], 1.0, urgent=True), {ALL: 10.0})
    assert len(found.waiting) == 8
    assert spend(store) == (0.0, 10.0)
    settle(store, [*ids[:8], *ids[10:12]], 1.0)
    found = reserve(store, wants(ids[20:21], 1.0, urgent=True), {ALL: 10.0})
    assert found.refused == {ids[20]: "the cap of 10 USD a day of all judges is used up"}


def test_a_scope_without_a_cap_is_booked_and_never_reserved(store: Store) -> None:
    """So that a cap that is set later knows the day."""
    ids = owe(store, 2)
    reserve(store, wants(ids, 1.0), {JUDGE: 5.0})
    assert (spend(store), spend(store, CARD), spend(store, JUDGE)) == ((0.0, 0.0), (0.0, 0.0), (0.0, 2.0))
    settle(store, ids, 0.25)
    assert spend(store) == spend(store, CARD) == spend(store, JUDGE) == (0.5, 0.0)
    assert reserve(store, wants(ids, 1.0), {}) == Reserved()


def test_what_costs_nothing_is_never_refused(store: Store) -> None:
    """A model of one's own is free, also on a day when the money is gone."""
    ids = owe(store, 2)
    settle(store, ids[:1], 9.0)
    assert reserve(store, wants(ids[1:], 0.0), {ALL: 5.0}) == Reserved()


def test_no_cap_is_exceeded_by_workers_that_claim_at_once(store: Store) -> None:
    """Four workers, three caps, costs up to the worst case: never beyond, and all comes back."""
    caps = {ALL: 3.0, CARD: 2.5, JUDGE: 2.0}
    ids = owe(store, 200)
    seen: list[tuple[float, float]] = []
    refused: list[str] = []
    lock = threading.Lock()

    def worker(number: int) -> None:
        chance = random.Random(number)
        mine = ids[number::4]
        while mine:
            some, mine = mine[:5], mine[5:]
            found = reserve(store, wants(some, 0.05, urgent=number == 0), caps)
            held = [i for i in some if i not in found.refused and i not in found.waiting]
            with lock:
                seen.append(spend(store, JUDGE))
                refused.extend(found.refused)
            settle(store, held, chance.uniform(0.02, 0.05))

    at_once(*(lambda number=n: worker(number) for n in range(4)))
    assert refused
    assert max(spent + reserved for spent, reserved in seen) <= 2.0 + 1e-9
    for scope in caps:
        spent, reserved = spend(store, scope)
        assert 1.5 < spent <= 2.0 + 1e-9
        assert reserved == 0.0


def test_two_workers_that_begin_a_day_at_once_both_get_their_money(store: Store) -> None:
    """Neither waits for the other for ever, whatever scopes are there already."""
    ids = owe(store, 40)
    settle(store, ids[:1], 0.001)
    runs = [lambda i=i: reserve(store, wants(ids[i : i + 10], 0.1), {ALL: 99.0, CARD: 99.0}) for i in range(0, 40, 10)]
    assert at_once(*runs) == [Reserved()] * 4
    assert spend(store) == (0.001, 4.0)


# ------------------------------------------------------------------------------------------------ what is given back


@pytest.mark.parametrize("seed", range(2))
def test_whatever_the_order_nothing_stays_reserved(store: Store, seed: int) -> None:
    """Claims, ends, claims anew after a worker died, stalled workers and recounts, over midnight."""
    chance = random.Random(seed)
    ids = owe(store, 12)
    at, paid = AT.replace(hour=23, minute=50), 0.0
    for _ in range(60):
        at += timedelta(seconds=30)
        some = chance.sample(ids, 3)
        act = chance.choice(["claim", "claim", "end", "stalled", "recount"])
        if act == "claim":
            reserve(store, wants(some, chance.choice([0.0, 0.013, 0.7])), {ALL: 50.0, JUDGE: 9.0}, at)
        elif act == "recount":
            before = spend(store), spend(store, day=day_of(at))
            with store.begin() as tx:
                purse.recount(tx, at)
            assert (spend(store), spend(store, day=day_of(at))) == before
        else:
            cost = chance.choice([0.0, 0.011])
            settle(store, some, cost, at, ours=act == "end")
            paid += 3 * cost
    settle(store, ids, 0.0, at)
    days = {TODAY, day_of(at)}
    assert len(days) == 2
    assert [spend(store, scope, day)[1] for scope in (ALL, JUDGE) for day in days] == [0.0] * 4
    assert sum(spend(store, day=day)[0] for day in days) == pytest.approx(paid)
    with store.read() as tx:
        assert not tx.connection.scalar(select(func.count()).where(work.c.held != ""))


def test_a_call_that_ends_after_midnight_is_paid_by_the_day_that_reserved_it(store: Store) -> None:
    """The new day's cap is for the new day's calls."""
    ids = owe(store, 1)
    late = datetime(2026, 3, 1, 23, 59, 50, tzinfo=UTC)
    reserve(store, wants(ids, 1.0), {ALL: 5.0}, late)
    settle(store, ids, 0.4, late + timedelta(seconds=20))
    assert spend(store) == (0.4, 0.0)
    assert spend(store, day="2026-03-02") == (0.0, 0.0)


def test_what_a_dead_worker_held_comes_back_when_its_work_is_claimed_anew(store: Store) -> None:
    """Held once, however often the worker dies."""
    ids = owe(store, 1)
    for _ in range(3):
        assert reserve(store, wants(ids, 4.0), {ALL: 5.0}).refused == {}
        assert spend(store) == (0.0, 4.0)


def test_a_stalled_worker_pays_and_leaves_the_hold_of_whoever_took_over(store: Store) -> None:
    """Its fence has moved on: what it asked was paid all the same."""
    ids = owe(store, 1)
    reserve(store, wants(ids, 1.0), {ALL: 5.0})
    settle(store, ids, 0.5, ours=False)
    assert spend(store) == (0.5, 1.0)
    settle(store, ids, 0.25)
    assert spend(store) == (0.75, 0.0)


def test_what_work_that_was_deleted_held_comes_back_by_a_recount(store: Store) -> None:
    """Nothing leaks for ever."""
    ids = owe(store, 3)
    reserve(store, wants(ids, 1.0), {ALL: 5.0, CARD: 5.0})
    with store.begin() as tx:
        tx.connection.execute(delete(work).where(work.c.work_id == ids[0]))
        tx.connection.execute(update(work).where(work.c.work_id == ids[1]).values(state="batched", batch_id="b-1"))
    with store.begin() as tx:
        purse.recount(tx, AT)
    assert spend(store) == spend(store, CARD) == (0.0, 2.0)


def test_upkeep_recounts_what_is_held_sets_the_pace_and_forgets_old_calls(store: Store, redis_url: str) -> None:
    """All three are owed to the same stage: without it nothing of them happens."""
    ids = owe(store, 2)
    caps = {ALL: 5.0}
    reserve(store, wants(ids, 1.0), caps)
    settle(store, ids[:1], 0.5)
    call = Call(AT - judge_states.KEPT - timedelta(hours=1), "fake:judge", "support", "ok", None, 1.0)
    with store.begin() as tx:
        judge_states.add_calls(tx, [call], call.at)
        tx.connection.execute(delete(work).where(work.c.work_id == ids[1]))
        tx.connection.execute(update(judge_spend).values(keep=0.25))
    assert spend(store) == (0.5, 1.0)
    Maintain(store, Queue(redis_url), timedelta(days=90), caps)(AT)
    assert spend(store) == (0.5, 0.0)
    with store.read() as tx:
        assert tx.connection.scalars(select(judge_spend.c.keep).where(judge_spend.c.scope == ALL)).one() == 1.0
        assert tx.connection.scalar(select(func.count()).select_from(judge_calls)) == 0


# ------------------------------------------------------------------------------------------------------------ thinning


def test_less_urgent_work_is_thinned_once_and_weighs_more(store: Store) -> None:
    """A quarter is kept, by hash; what was kept stays kept, and urgent work is never thinned."""
    ids = owe(store, 400)
    reserve(store, wants(ids[:1], 0.001), {ALL: 100.0})
    settle(store, ids[:1], 0.001)
    keep(store, 0.25)
    found = reserve(store, wants(ids, 0.01), {ALL: 100.0})
    assert found.kept == dict.fromkeys([i for i in ids if decide(i, 0.25)], 0.25)
    assert set(found.refused) == set(ids) - found.kept.keys()
    assert 60 < len(found.kept) < 140
    assert set(found.refused.values()) == {"thinned: 0.25 of such work is judged, so that the money lasts the day"}
    with store.read() as tx:
        weights = {row.work_id: row.weight for row in tx.connection.execute(select(work))}
    assert weights == {i: 4.0 if i in found.kept else 1.0 for i in ids}
    keep(store, 0.01)
    again = reserve(store, wants(list(found.kept), 0.01), {ALL: 100.0})
    assert again == Reserved()
    assert reserve(store, wants(list(found.refused), 0.01, urgent=True), {ALL: 100.0}).refused == {}


def test_the_scarcest_scope_decides_and_works_that_share_a_call_go_together(store: Store) -> None:
    """One share for all scopes of a work, one choice for all works of a call."""
    ids = owe(store, 90)
    caps = {ALL: 100.0, JUDGE: 100.0}
    reserve(store, wants(ids[:1], 0.001), caps)
    keep(store, 0.5)
    keep(store, 0.2, JUDGE)
    scopes = purse.scopes("support", {"openai:small": 0.01})
    groups = [Want(a, scopes, others=(b, c)) for a, b, c in zip(ids[::3], ids[1::3], ids[2::3], strict=True)]
    found = reserve(store, groups, caps)
    kept = [g for g in groups if g.work_id not in found.refused]
    assert [g for g in groups if decide(min(g.all_ids), 0.2)] == kept
    assert found.kept == {i: 0.2 for g in kept for i in g.all_ids}


def pace(store: Store, caps: Scopes, at: datetime) -> float:
    """Set the share of less urgent work; what it is."""
    with store.begin() as tx:
        purse.pace(tx, caps, at)
        there = judge_spend.c.day == day_of(at), judge_spend.c.scope == ALL
        return float(tx.connection.scalars(select(judge_spend.c.keep).where(*there)).one())


def test_the_pace_follows_the_need_and_goes_on_over_midnight(store: Store) -> None:
    """Five times what the cap pays for: its share falls by halves to what fits, and the next day begins there."""
    caps = {ALL: 10.0}
    ids = owe(store, 1)
    at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    reserve(store, wants(ids, 1.0), caps, at)
    settle(store, ids, 0.5, at)
    with store.begin() as tx:  # half of the worst cases comes true; an even day has spent so much by now
        tx.connection.execute(update(judge_spend).values(wanted_usd=0.0, spent_usd=4.9, granted_usd=9.8))
    worst = 5 * 8.0 / 86_400 / 0.5  # USD a second that less urgent work asks for
    shares = []
    for minute in range(240):
        now = at + timedelta(minutes=minute)
        shares.append(pace(store, caps, now))
        assert pace(store, caps, now + timedelta(seconds=10)) == shares[-1]  # too early: changes nothing
        with store.begin() as tx:
            paid = 60 * worst * shares[-1]
            tx.connection.execute(
                update(judge_spend).values(
                    wanted_usd=judge_spend.c.wanted_usd + worst * 60,
                    granted_usd=judge_spend.c.granted_usd + paid,
                    spent_usd=judge_spend.c.spent_usd + paid / 2,
                )
            )
    assert shares[:3] == [1.0, 1.0, 1.0]
    assert min(b / a for a, b in itertools.pairwise(shares)) >= 0.5
    assert shares[-1] == pytest.approx(0.13, rel=0.1)  # what is left of an even day, and 0.8 of it is spent
    assert pace(store, {ALL: 500.0}, at + timedelta(hours=4)) == 1.0
    assert pace(store, caps, at + timedelta(hours=4, minutes=1)) == 0.5
    reserve(store, wants(ids, 0.01), caps, at + timedelta(hours=12))
    with store.read() as tx:
        row = tx.connection.execute(select(judge_spend).where(judge_spend.c.day == "2026-03-02")).one()
    assert row.keep == 0.5
    assert row.pace["wanted_rates"]["slow"] == pytest.approx(worst, rel=0.05)
    assert row.pace["real"] == pytest.approx(0.5)


def test_nothing_is_thinned_before_it_is_known_what_calls_cost(store: Store) -> None:
    """Worst cases that fill the cap may be ten times too much; and 200 records in one go are no day of them."""
    caps = {ALL: 2.0}
    at = datetime(2026, 3, 1, 14, 0, tzinfo=UTC)
    ids = owe(store, 200)
    found = reserve(store, wants(ids, 0.008), caps, at)
    assert not found.refused
    assert pace(store, caps, at) == pace(store, caps, at + timedelta(minutes=1)) == 1.0
    settle(store, ids[:100], 0.001, at)
    later = [pace(store, caps, at + timedelta(minutes=m)) for m in range(2, 8)]
    settle(store, ids[100:], 0.001, at)
    later += [pace(store, caps, at + timedelta(minutes=m)) for m in range(8, 60)]
    assert set(later) == {1.0}


def test_a_day_of_five_times_too_much_work_is_judged_to_its_end(migrated_sqlite_url: str) -> None:
    """By day and night, with an hour of ten times as much, and worst cases of nine times what calls cost."""
    store = Store(migrated_sqlite_url)
    day, chance, n = datetime(2026, 3, 1, tzinfo=UTC), random.Random(1), 0
    weights: dict[str, float] = {}
    judged: dict[str, datetime] = {}
    caps = {ALL: 144 * 20 * 0.001 / 5 / 0.8}
    for step in range(144):
        now = day + timedelta(minutes=10 * step)
        shape = (1 + 0.8 * math.sin(2 * math.pi * (step / 144 - 1 / 3))) * (10 if 84 <= step < 90 else 1)
        ids = owe(store, round(20 * shape), start=n)
        n += len(ids)
        while ids:  # who waits for what others hold asks again
            found = reserve(store, [Want(i, {ALL: 0.009}) for i in ids], caps, now)
            kept = [i for i in ids if i not in found.refused and i not in found.waiting]
            weights.update(dict.fromkeys(set(ids) - found.refused.keys() - weights.keys(), 1.0))
            weights.update({i: 1 / p for i, p in found.kept.items()})
            judged.update(dict.fromkeys(kept, now))
            with store.begin() as tx:
                purse.settle(tx, {i: {ALL: chance.uniform(0.0005, 0.0015)} for i in kept}, set(kept), now)
            ids = list(found.waiting)
        pace(store, caps, now + timedelta(minutes=5))
    spent, reserved = spend(store, day="2026-03-01")
    assert reserved == 0.0
    assert 0.75 * caps[ALL] <= spent <= 0.8 * caps[ALL]
    assert max(judged.values()) >= day + timedelta(hours=23)
    assert sum(weights[i] for i in judged) == pytest.approx(n, rel=0.1)
    store.close()


# ---------------------------------------------------------------------------------------- with the stages: the ledger


CENT = "fake:demo?acts=pass&usd_per_mtok=10/40"


@pytest.fixture
def world(migrated_url: str, tmp_path: Path) -> Iterator[World]:
    """The stages on a migrated database, with a judge that costs about half a cent a call."""
    made = World(migrated_url, tmp_path, judge=CENT)
    yield made
    made.close()


def spent_by(world: World, *, cap: float, usd: float = 0.005) -> None:
    """Judge what is owed under a cap, at a worst case of half a cent a call, until nothing waits."""
    for _ in range(20):
        world.drain(budget=Budget({CARD: cap}, lambda _model, _prompt: usd / 2))
        if not world.count(work, state="pending"):
            return
        world.clock.pass_(seconds=6)
    raise AssertionError("work waits for ever")


def test_money_that_runs_out_leaves_a_ledger_that_balances(world: World) -> None:
    """Every record is scored or shed, nothing stays reserved, and safety is judged although money is short."""
    world.meter(sampled=30, calls=30, enqueued=30)
    world.ingest(*records(30))
    with world.store.begin() as tx:
        tx.connection.execute(update(work).where(work.c.criterion == "grounded").values(priority=1))
    world.drain(budget=Budget({CARD: 0.10}, lambda _model, _prompt: 0.0025))
    spent_by(world, cap=0.10)
    line = world.lines()["support"]
    assert line.in_flight == 0
    assert line.difference == 0
    assert line.scored + line.shed == line.sampled == 30
    assert spend(world.store, CARD)[0] <= 0.10
    assert spend(world.store, CARD)[1] == 0.0
    done = {c: world.count(work, state="done", criterion=c) for c in ("grounded", "polite")}
    assert done["grounded"] == 30 > done["polite"]


def test_a_record_of_which_nothing_was_judged_is_shed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole it was scored by its heuristics; without any it is shed, and `why` says so."""
    world.ingest(*records(3))
    with world.store.begin() as tx:
        tx.connection.execute(delete(scores))
    spent_by(world, cap=0.0)
    line = world.lines()["support"]
    assert (line.shed, line.scored, line.difference) == (3, 0, 0)
    assert world.lines()[""].shed == 3
    monkeypatch.setenv("COLUMNS", "200")
    with closing(Wiring(world.settings)) as wiring:
        monkeypatch.setattr("evalpipe.cli.read.opened", lambda: wiring)
        told = CliRunner().invoke(app, ["why", "t-1"]).output
    assert "outcome shed" in told
    assert (
        "polite: was not judged, to save money: the cap of 0 USD a day of scorecard support is less than one such"
        in told
    )


def test_thinned_scores_weigh_what_was_left_out(world: World) -> None:
    """A quarter is judged and weighs four times as much."""
    world.ingest(*records(1))
    spent_by(world, cap=100.0)
    keep(world.store, 0.25, CARD)
    world.ingest(*records(40, start=1))
    spent_by(world, cap=100.0)
    kept = [row for row in world.rows(scores, criterion="polite") if row["record_id"] != "r-0"]
    assert {row["weight"] for row in kept} == {4.0}
    owed = [row for row in world.rows(work, criterion="polite") if row["record_id"] != "r-0"]
    assert {row["record_id"] for row in kept} == {row["record_id"] for row in owed if decide(row["work_id"], 0.25)}
    assert {row["state"] for row in owed} == {"done", "shed"}


def test_work_in_a_providers_batch_is_in_flight(world: World) -> None:
    """Counted once, also where the same record owes work that was not sent."""
    world.meter(sampled=4, calls=4, enqueued=4)
    world.ingest(*records(4))
    with world.store.begin() as tx:
        mine = work.c.criterion == "polite", work.c.record_id != "r-3"
        tx.connection.execute(update(work).where(*mine).values(state="batched", batch_id="b-1"))
    line = world.lines()["support"]
    assert (line.in_flight, line.difference) == (4, 0)
