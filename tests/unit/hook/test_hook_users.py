"""The heaviest users of a row: bounded, exact since a user came in, and never missing one who is heavy."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from evalpipe.hook.row import USERS, Users


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1_000)), max_size=400))
def test_who_has_more_than_its_part_is_there_and_nothing_is_told_twice(calls):
    """Space-Saving's guarantee, whatever the order; what is told of a user is no more than it did."""
    users, done, weights = Users(), {}, {}
    for number, (user, tokens) in enumerate(calls):
        users.add(f"u{user}", tokens, 0.0, number)
        name = f"u{user}"
        before = done.get(name, (0, 0))
        done[name] = before[0] + 1, before[1] + tokens
        weights[name] = weights.get(name, 0) + tokens + 1
    told = users.to_wire()
    assert len(told) <= USERS
    for user, (came, n, tokens, _) in told.items():
        assert n <= done[user][0]
        assert tokens <= done[user][1]
        assert came <= len(calls)
    whole = sum(weights.values())
    assert {user for user, weight in weights.items() if weight > whole / USERS} <= set(told)


def test_money_counts_as_tokens_do():
    """A user of a dear model is heavy with few tokens."""
    users, rng = Users(), random.Random(3)
    for number in range(5_000):
        users.add(f"u{rng.randrange(1_000)}", 100, 0.0005, number)
        if number % 50 == 0:
            users.add("agent", 1, 2.0, number)
    assert users.to_wire()["agent"][1:] == [100, 100, 200.0]
