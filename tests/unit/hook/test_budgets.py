"""Leases: what is spent over all processes stays within the stated bound, whatever comes between."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import given, settings

from evalpipe.hook.budgets import AHEAD, ASK_AGAIN_S, IDLE_S, MAX_ACCOUNTS, Budgets, Spent, micro_usd
from evalpipe.hook.connection import Connection
from evalpipe.hook.document import MICRO, parse
from evalpipe.record import Release

NOON = 1_763_812_800.0
"""A whole day's, hour's and minute's beginning is near: windows are easy to leave."""
BUDGET = {"name": "user-day", "per": "user", "limit": 1000, "unit": "tokens", "window": "day", "lease": 0.1}
OPEN: list[Connection] = []


def budgets_of(given):
    """Compiled budgets, as they come from a control document."""
    return parse(json.dumps({"schema": 1, "revision": 1, "published_at": NOON, "budgets": given})).budgets


def a_call(user="ann", feature="chat", segment="", environment="production", variant="baseline"):
    """As much of a call as budgets look at."""
    release = Release("bot", variant=variant, environment=environment)
    return SimpleNamespace(user_id=user, feature=feature, segment=segment, release=release, reserved=None)


class Site:
    """One process, in virtual time: what it asks Redis for goes to a real one."""

    def __init__(self, client, *given: dict[str, object]) -> None:
        self.connection = connected(client)
        self.wakes: list[None] = []
        self.budgets = Budgets("bot", lambda: self.wakes.append(None))
        self.budgets.adopt(budgets_of(given))

    def begin(self, now=NOON, user="ann", age_s=0.0, reachable=True, **named):
        """A call that was admitted, or None."""
        call = a_call(user, **named)
        refused = self.budgets.reserve(call, now, now, age_s, reachable=reachable)
        assert (refused is None) == (call.reserved is not None)
        return None if refused else call

    def end(self, call, tokens, now=NOON, usd=None, **guessed):
        """The call took so much."""
        self.budgets.settle(call, Spent(tokens, micro_usd(usd), **guessed), now, now)

    def spend(self, tokens, now=NOON, **named):
        """Whether a call of so many tokens was admitted."""
        call = self.begin(now, **named)
        if call is not None:
            self.end(call, tokens, now)
        return call is not None

    def exchange(self, now=NOON, *, last=False):
        """What the thread does."""
        self.budgets.exchange(self.connection, now, now, last=last)


def connected(client):
    """The hook's own connection to the server of ``client``."""
    to = client.connection_pool.connection_kwargs
    url = f"redis://:{to.get('password') or ''}@{to['host']}:{to['port']}/{to.get('db') or 0}"
    url = url if to.get("password") else url.replace(":@", "")
    OPEN.append(Connection(url, connect_timeout_s=5.0, timeout_s=5.0))
    return OPEN[-1]


@pytest.fixture
def client(redis_url):
    """A client of the test's empty Redis."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
    close_all()


def close_all():
    """Close the connections of all sites."""
    while OPEN:
        OPEN.pop().close()


def leased(client):
    """What all counters in Redis add up to."""
    return sum(int(client.get(key)) for key in client.scan_iter("evalpipe.budget:bot:*"))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    processes=st.integers(1, 5),
    limit=st.sampled_from([50, 1000, 20_000]),
    lease=st.sampled_from([0.001, 0.02, 0.3, 1.0]),
    typical=st.sampled_from([1, 30, 400]),
    steady=st.booleans(),
)
def test_what_is_spent_stays_within_the_stated_bound(redis_server_url, seed, processes, limit, lease, typical, steady):
    """Processes begin, end, book, idle and stop in any order, and replies are lost.

    What each process may have run ahead is what it might when it last did, by what it had been told was left.
    """
    chance = random.Random(seed)
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushdb()
        sites = [Site(client, {**BUDGET, "limit": limit, "lease": lease}) for _ in range(processes)]
        under_way, spent, beyond, now = [], 0, 0, NOON
        ahead, least = dict.fromkeys(range(processes), 0), max(1, int(lease * limit))
        for _ in range(250):
            now += chance.choice([0.0, 0.0, 0.01, 0.3, 2.0, 12.0])
            place = chance.randrange(processes)
            site = sites[place]
            match chance.randrange(8):
                case 0 | 1 | 2:
                    if (call := site.begin(now)) is not None:
                        account, estimate = call.reserved[0]
                        under_way.append((site, call, estimate))
                        if account.used > account.leased:
                            ahead[place] = max(least, account.left // AHEAD, estimate)
                case 3 | 4 if under_way:
                    site, call, estimate = under_way.pop(chance.randrange(len(under_way)))
                    tokens = typical if steady else chance.randrange(2 * typical)
                    site.end(call, tokens, now)
                    spent += tokens
                    beyond += max(0, tokens - estimate)
                case 5 if chance.random() < 0.1:
                    with suppress(ConnectionError):  # if there was anything to book
                        site.budgets.exchange(LosesTheReply(site.connection), now, now)
                case 6 if chance.random() < 0.1:
                    site.exchange(now, last=not any(s is site for s, _, _ in under_way))
                case _:
                    site.exchange(now)
            reserved = sum(estimate for _, _, estimate in under_way)
            assert spent + reserved <= limit + sum(ahead.values()) + beyond
        close_all()


class LosesTheReply:
    """A Redis whose connection breaks after it has carried out what was asked."""

    def __init__(self, connection) -> None:
        self.connection = connection

    def run(self, script, keys, args):
        """As the connection's."""
        self.connection.run(script, keys, args)
        raise ConnectionError


def test_a_process_that_uses_its_budget_up_is_refused_and_the_next_window_is_free(client):
    """One process, no concurrency, calls of equal size: exactly the limit is spent in each window."""
    site = Site(client, BUDGET)
    for day in range(2):
        now = NOON + 86_400 * day
        spent = 0
        for _ in range(30):
            spent += 50 * site.spend(50, now)
            site.exchange(now)
        assert spent == 1000
        assert leased(client) == 1000 * (day + 1)
    assert not site.spend(50, NOON + 86_400)
    assert site.spend(50, NOON + 86_400, user="bob")


def test_the_first_call_of_an_account_needs_no_lease_and_wakes_the_thread(client):
    """It is admitted at once, and debited as soon as the thread runs."""
    site = Site(client, BUDGET)
    call = site.begin()
    assert call is not None
    assert len(site.wakes) == 1
    site.exchange()
    assert leased(client) == 101
    site.end(call, 70)
    site.exchange()
    assert leased(client) == 170


def test_a_budget_that_others_have_used_up_refuses_from_the_second_call_on(client):
    """The first call runs ahead; then Redis has said that nothing is left."""
    one, other = Site(client, BUDGET), Site(client, BUDGET)
    for _ in range(30):
        one.spend(50)
        one.exchange()
    assert other.spend(50)
    other.exchange()
    assert not other.spend(50)
    assert leased(client) == 1050


def test_what_an_idle_process_leased_goes_back_and_others_can_spend_it(client):
    """After ten idle seconds, and when the process ends."""
    idle, busy = Site(client, {**BUDGET, "lease": 0.5}), Site(client, {**BUDGET, "lease": 0.5})
    idle.spend(10)
    idle.exchange()
    assert leased(client) == 510
    spent = 0
    for number in range(20):
        spent += 50 * busy.spend(50, NOON + number / 100)
        busy.exchange(NOON + number / 100)
    assert spent < 990
    idle.exchange(NOON + IDLE_S + 1)
    for number in range(30):
        now = NOON + IDLE_S + 1 + number * ASK_AGAIN_S
        spent += 20 * busy.spend(20, now)
        busy.exchange(now)
    assert 990 - 50 < spent <= 990
    busy.exchange(NOON + 60, last=True)
    assert leased(client) == spent + 10


def test_estimates_follow_what_calls_really_take(client):
    """Reservations are the mean of recent calls; what was reserved and not taken is free again."""
    site = Site(client, {**BUDGET, "limit": 100_000})
    for _ in range(10):
        site.spend(400)
    site.exchange()
    call = site.begin()
    ((account, estimate),) = call.reserved
    assert (estimate, account.used) == (400, 4400)
    site.end(call, 70)
    assert account.used == 4070
    assert site.begin().reserved[0][1] == 370


def test_calls_that_do_not_enforce_are_debited_and_never_refused(client):
    """They spend from the same accounts; enforced ones then find nothing left."""
    site = Site(client, BUDGET)
    for _ in range(30):
        site.end(a_call(), 50)
        site.exchange()
    assert leased(client) == 1500
    assert not site.spend(50)


def test_a_call_of_which_nothing_is_known_or_guessed_has_spent_nothing(client):
    """Neither counted nor part of the mean; what it had reserved is free again."""
    site = Site(client, BUDGET)
    call = site.begin()
    account = call.reserved[0][0]
    site.end(call, None)
    assert account.used == 0


def test_a_call_whose_usage_is_guessed_is_debited_what_is_usual_or_the_guess_if_that_is_more(client):
    """Guesses are no part of the mean: a long answer once would make every guess a long one."""
    site = Site(client, {**BUDGET, "limit": 100_000})
    site.spend(400)
    for guess, debited in ((100, 400), (1000, 1000), (100, 400)):
        call = site.begin()
        account, estimate = call.reserved[0]
        before = account.used - estimate
        site.end(call, None, guessed_tokens=guess, guessed_micro_usd=7)
        assert account.used - before == debited


def test_a_burst_of_a_fresh_users_calls_is_not_refused(client):
    """Eight calls at once of 3,000 tokens, a budget of 200,000, leases of 4,000: an eighth of it may run ahead."""
    site = Site(client, {**BUDGET, "limit": 200_000, "lease": 0.02})
    for number in range(5):
        site.spend(3000, user=f"other-{number}")
    site.exchange()
    burst = [site.begin(user="fresh") for _ in range(10)]
    assert [call is not None for call in burst] == [True] * 8 + [False] * 2
    for call in burst[:8]:
        site.end(call, 3000)
    site.exchange()
    assert [site.begin(user="fresh") is not None for _ in range(8)] == [True] * 8


def test_calls_run_no_further_ahead_than_a_lease_when_little_is_left_or_redis_is_away(client):
    """What a fresh process may run ahead before Redis has answered, and after it said that 99 of 1000 are left."""
    fresh, away, busy, late = (Site(client, {**BUDGET, "fail": "closed"}) for _ in range(4))
    assert sum(fresh.begin() is not None for _ in range(300)) == 125
    assert sum(away.begin(reachable=False) is not None for _ in range(300)) == 100
    for _ in range(7):
        busy.end(a_call(), 100)
    busy.exchange()
    assert leased(client) == 800
    late.begin()
    late.exchange()
    assert sum(late.begin() is not None for _ in range(300)) == 200


def test_a_shadow_spends_nothing_of_the_served_users_budget(client):
    """Nobody asked for it; but whoever pays for the service or the feature pays for it."""
    budgets = [{**BUDGET, "name": per, "per": per} for per in ("user", "feature", "service")]
    site = Site(client, *budgets)
    call = site.begin(variant="shadow")
    assert [account.budget.per for account, _ in call.reserved] == ["feature", "service"]
    site.end(call, 400)
    site.exchange(last=True)
    assert leased(client) == 800


def test_money_is_counted_in_millionths(client):
    """A budget of one dollar a minute, at 30 cents a call; the next minute is another window."""
    site = Site(client, {**BUDGET, "limit": 1.0, "unit": "usd", "window": "minute", "lease": 0.01})
    made = 0
    for _ in range(10):
        if (call := site.begin()) is not None:
            made += 1
            site.end(call, 5, usd=0.3)
        site.exchange()
    assert made == 3
    assert leased(client) == MICRO
    assert site.begin(NOON + 60) is not None


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ("user", {"user": "ann", "feature": "x"}, {"user": "bob"}),
        ("feature", {"user": "bob", "feature": "chat"}, {"feature": "x"}),
        ("segment", {"segment": "free", "user": "bob"}, {"segment": "paid"}),
        ("service", {"user": "bob", "feature": "x", "segment": "paid"}, None),
    ],
)
def test_accounts_are_by_user_feature_segment_or_one_for_the_service(client, per, same, other):
    """What shares the key shares the account; others have their own."""
    site = Site(client, {**BUDGET, "per": per, "limit": 10, "lease": 1.0})
    assert site.spend(10, segment="free")
    site.exchange()
    assert not site.spend(10, **same)
    assert other is None or site.spend(10, **other)


def test_what_a_budget_does_not_match_or_has_no_key_for_is_not_its_business(client):
    """Other features, segments and environments, and calls without a user."""
    only = {"feature": "chat", "segment": "free", "environment": "production"}
    site = Site(client, {**BUDGET, **only, "limit": 10})
    assert site.spend(100, segment="free")
    site.exchange()
    assert not site.spend(1, segment="free")
    assert site.spend(1, segment="paid")
    assert site.spend(1, segment="free", feature="x")
    assert site.spend(1, segment="free", environment="staging")
    assert site.spend(1, segment="free", user="")


def test_users_may_have_numbers_for_names(client):
    """An account is the same by its number and by the number's text."""
    site = Site(client, {**BUDGET, "limit": 10, "lease": 1.0})
    assert site.spend(10, user=42)
    site.exchange()
    assert leased(client) > 0
    assert not site.spend(10, user="42")


def test_a_call_that_was_under_way_at_a_fork_is_debited_in_the_child_that_ends_it(client):
    """What the parent had reserved for it is the parent's."""
    parent, child = Site(client, BUDGET), Site(client, BUDGET)
    call = parent.begin()
    child.end(call, 70)
    child.exchange(last=True)
    assert leased(client) == 70


def test_a_call_that_one_budget_refuses_reserves_in_none(client):
    """Two budgets, of which the second is used up: the first has the whole of it left."""
    site = Site(client, {**BUDGET, "per": "service"}, {**BUDGET, "name": "small", "limit": 10})
    assert site.spend(10)
    site.exchange()
    before = leased(client)
    for _ in range(50):
        assert not site.spend(10)
    site.exchange()
    assert leased(client) == before
    assert site.spend(10, user="bob")


def test_without_redis_open_passes_and_closed_spends_its_lease_and_no_more(client):
    """Unreachable, within the maximum staleness; an account that is known to be used up stays refused."""
    ahead = {}
    for fail in ("open", "closed"):
        site = Site(client, {**BUDGET, "fail": fail, "name": fail})
        assert site.spend(10)
        site.exchange()
        ahead[fail] = sum(site.begin(reachable=False, age_s=5.0) is not None for _ in range(50))
    assert ahead == {"open": 50, "closed": 20}
    site = Site(client, {**BUDGET, "limit": 10})
    site.spend(100)
    site.exchange()
    assert site.begin(reachable=False, age_s=299.0) is None


def test_beyond_the_maximum_staleness_open_passes_all_and_closed_refuses_all(client):
    """Even what is used up, and even what has a lease."""
    for fail, passes in (("open", True), ("closed", False)):
        site = Site(client, {**BUDGET, "fail": fail, "limit": 10, "name": fail})
        assert site.spend(10)
        site.exchange()
        assert (site.begin(reachable=False, age_s=301.0) is not None) == passes
        assert (site.begin(reachable=False, age_s=301.0, user="bob") is not None) == passes


def test_after_redis_lost_its_memory_everybody_debits_anew_what_it_spent(client):
    """An empty Redis does not give the budget away a second time."""
    sites = [Site(client, BUDGET) for _ in range(2)]
    for _ in range(10):
        for site in sites:
            site.spend(45)
            site.exchange()
    assert leased(client) == 1000
    client.flushdb()
    for site in sites:
        site.exchange(NOON + 1)
        site.exchange(NOON + 1)
    assert leased(client) >= 900
    spent = 0
    for number in range(20):
        spent += sum(45 * site.spend(45, NOON + 1 + number) for site in sites)
        for site in sites:
            site.exchange(NOON + 1 + number)
    assert spent <= 200


def test_accounts_are_bounded_and_those_that_are_closed_lose_nothing(client):
    """One user more than there is room for: the one not seen for longest is booked and forgotten, even in flight."""
    site = Site(client, {**BUDGET, "lease": 0.01})
    early = site.begin(user="early")
    for number in range(MAX_ACCOUNTS + 5):
        site.end(a_call(f"user-{number}"), 3)
    assert len(site.budgets) == MAX_ACCOUNTS
    site.end(early, 40)
    site.exchange(last=True)
    assert leased(client) == 3 * (MAX_ACCOUNTS + 5) + 40


def test_accounts_of_past_windows_are_forgotten_and_counters_expire(client):
    """A minute later nothing is left in the process; in Redis a counter lives a minute longer than its window."""
    site = Site(client, {**BUDGET, "window": "minute"})
    site.spend(50)
    site.exchange()
    (key,) = client.scan_iter("evalpipe.budget:bot:*")
    assert 60_000 < client.pttl(key) <= 120_000
    late = site.begin()
    site.exchange(NOON + 71)
    assert len(site.budgets) == 0
    site.end(late, 500, NOON + 71)
    site.exchange(NOON + 71)
    assert leased(client) <= 200


def test_a_new_document_raises_a_limit_at_once_and_a_removed_budget_gives_its_leases_back(client):
    """Accounts go on where they count the same."""
    site = Site(client, BUDGET)
    for _ in range(25):
        site.spend(50)
        site.exchange()
    assert not site.spend(50)
    site.budgets.adopt(budgets_of([{**BUDGET, "limit": 2000}]))
    assert site.spend(50)
    site.exchange()
    site.budgets.adopt(budgets_of([{**BUDGET, "name": "other"}]))
    assert len(site.budgets) == 0
    site.exchange()
    assert leased(client) == 1050


def test_threads_of_one_process_lose_no_unit(client):
    """Eight threads, thousands of calls: what was used is what was spent."""
    import threading

    site = Site(client, {**BUDGET, "limit": 10_000_000})

    def work():
        for _ in range(500):
            site.spend(7)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    site.exchange(last=True)
    assert leased(client) == 8 * 500 * 7
