"""The retry schedule: pure, so its properties are checked over all of its inputs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from evalpipe.channels.schedule import JITTER, STANDARD_S, URGENT_S, next_attempt

AT = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)


def _attempts(*, urgent):
    """The times of all attempts, in seconds after the first, where each fails at once."""
    now, times = AT, [0.0]
    while (then := next_attempt(len(times), now, urgent=urgent, event_id="evt_1")) is not None:
        now = then
        times.append((now - AT).total_seconds())
    return times


def test_the_standard_schedule_is_the_specifications():
    """Ten attempts over 75:35:05, and up to a tenth more by the spread."""
    times = _attempts(urgent=False)
    total_s = timedelta(hours=75, minutes=35, seconds=5).total_seconds()
    assert len(times) == 10
    assert total_s <= times[-1] <= total_s * (1 + JITTER)


def test_a_rollback_is_told_often_in_its_first_minutes():
    """Eight attempts within two and a half minutes, then on as any other for three days."""
    times = _attempts(urgent=True)
    assert sum(t <= 155 for t in times) == 8
    assert len(times) == 16
    assert times[-1] >= sum(URGENT_S)
    assert URGENT_S[7:] == STANDARD_S[1:]


@given(st.booleans(), st.integers(1, 20), st.none() | st.floats(0, 1e9), st.text(max_size=8))
def test_an_attempt_is_later_than_now_and_the_same_each_time(urgent, attempts, retry_after_s, event_id):
    """Pure: the same failure has the same answer, in every worker."""
    first, again = (
        next_attempt(attempts, AT, urgent=urgent, retry_after_s=retry_after_s, event_id=event_id) for _ in range(2)
    )
    assert first == again
    assert first is None or first > AT


@given(st.integers(1, 9), st.floats(0, 86_400))
def test_a_receiver_that_asks_for_time_gets_it(attempts, retry_after_s):
    """For everything that is not a rollback."""
    then = next_attempt(attempts, AT, retry_after_s=retry_after_s)
    assert then is not None
    assert then >= AT + timedelta(seconds=retry_after_s)


@given(st.integers(1, 7), st.floats(0, 86_400))
def test_no_receiver_can_put_a_rollback_off_for_long(attempts, retry_after_s):
    """A minute and the spread at the most while the rollback is fresh."""
    then = next_attempt(attempts, AT, urgent=True, retry_after_s=retry_after_s)
    assert then is not None
    assert then <= AT + timedelta(seconds=60 * (1 + JITTER))


def test_events_that_failed_together_do_not_return_together():
    """The spread depends on the event."""
    assert len({next_attempt(3, AT, event_id=f"evt_{n}") for n in range(50)}) == 50
