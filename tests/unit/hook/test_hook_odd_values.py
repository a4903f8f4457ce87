"""Whatever an application sets on a call: it goes on, every call is counted, and the others are recorded."""

from __future__ import annotations

import asyncio
import math
import threading
from datetime import UTC, datetime

import pytest

from evalpipe import Keep, KillSwitchEngaged, Sampling
from evalpipe.hook.call import current


class Explosive:
    """An object that raises at every touch."""

    def __str__(self, *_: object) -> str:
        raise RuntimeError

    __repr__ = __bool__ = __eq__ = __hash__ = __iter__ = __len__ = __str__  # type: ignore[assignment]


@pytest.mark.parametrize("release", [None, "canary", {"variant": "canary"}, {"nonsense": 1}, 7, Explosive()])
def test_whatever_is_set_as_the_release_the_call_is_counted(hook, queue, release):
    """A mapping is taken as what differs; anything else leaves the hook's own."""
    with hook.call("a") as call:
        call.output = "odd"
        call.release = release
    with hook.call("a") as call:
        call.output = "even"
    assert hook.flush()
    assert {record.output for record in queue.records()} == {"odd", "even"}
    assert sum(row["calls"] for row in queue.rows()) == 2
    variants = {record.release.variant for record in queue.records()}
    canary = type(release) is dict and release == {"variant": "canary"}
    assert variants == ({"canary", "baseline"} if canary else {"baseline"})


@pytest.mark.parametrize("feature", [None, ["a"], {"a": 1}, 7, Explosive(), "x" * 10_000])
def test_whatever_is_set_as_the_feature_the_call_is_counted(hook, queue, feature):
    """As a text, and a short one: it is a key of the meter."""
    with hook.call("a") as call:
        call.feature = feature
    assert hook.flush()
    (row,) = queue.rows()
    assert row["calls"] == 1
    assert len(row["feature"]) <= 200


@pytest.mark.parametrize(
    "at", [math.nan, math.inf, -1.0, 1.8e12, "2026-01-01", datetime(2026, 1, 1, tzinfo=UTC), True, Explosive()]
)
def test_a_time_that_cannot_be_is_now(hook, queue, at):
    """Milliseconds instead of seconds must not put a row into the year 58862."""
    hook.report("a", at=at, output="x")
    assert hook.flush()
    (record,) = queue.records()
    assert abs(record.captured_at.timestamp() - datetime.now(UTC).timestamp()) < 60
    assert queue.rows()[0]["calls"] == 1


def test_no_error_is_no_failure(hook, queue):
    """None means that nothing went wrong, as "" does."""
    with hook.call("a") as call:
        call.error = None
    hook.report("a", error=None)
    hook.flush()
    (row,) = queue.rows()
    assert (row["calls"], row["errors"]) == (2, 0)


def test_tool_calls_of_none_can_be_added_to(hook, queue):
    """The provider's "no tools" is None."""
    with hook.call("a") as call:
        call.tool_calls = None
        call.add("tool_calls", {"name": "search"})
        call.flag(Explosive())
    hook.flush()
    (record,) = queue.records()
    assert list(record.tool_calls) == [{"name": "search"}]


def test_a_context_used_twice_leaks_nobody_into_what_comes_after(hook):
    """Nor does a call that was ended inside of its block."""
    context = hook.context("a", user_id="alice")
    for _ in range(2):
        with context:
            assert current() is context
        assert current() is None
    with hook.call("a", user_id="bob") as call:
        call.end()
    assert current() is None
    assert hook.call("b").user_id == ""


def test_a_record_kept_at_the_end_is_as_it_was_sent(make_hook, redis_url, queue):
    """Also the dicts in the list: the application may go on with them."""
    hook = make_hook(redis_url=redis_url, sample_rate=None, sampling=Sampling(0.0, keep=Keep(errors=True)))
    messages = [{"role": "user", "content": "as sent"}]
    with hook.call("a") as call:
        call.messages = messages
        messages[0]["content"] = "changed later"
        messages.append({"role": "assistant", "content": "more"})
        call.error = "it failed"
    hook.flush()
    (record,) = queue.records()
    assert list(record.messages) == [{"role": "user", "content": "as sent"}]


def test_what_was_sampled_elsewhere_is_not_decided_again(make_hook, redis_url, queue):
    """A sender's 1 % sample weighs 100, also where this hook keeps all errors; odd probabilities are no decision."""
    hook = make_hook(redis_url=redis_url, sample_rate=None, sampling=Sampling(0.0, keep=Keep(errors=True)))
    hook.report("a", trace_id="t", probability=0.01, error="it failed")
    for probability in (0.0, -1.0, 2.0, math.nan, "0.5"):
        hook.report("a", probability=probability)
    hook.flush()
    (record,) = queue.records()
    assert (record.trace_id, record.weight, record.stratum) == ("t", 100.0, "")


def test_contexts_are_no_traffic_for_floors(make_hook):
    """A floor follows the calls."""
    hook = make_hook(sample_rate=None, sampling=Sampling(0.01, floor_per_minute=5.0))
    for _ in range(60):
        with hook.context("a"), hook.call():
            pass
    (cell,) = [cell for cell in hook._sampler._cells.values() if cell.feature == "a"]
    assert cell.traffic.calls == 60


def test_every_refused_call_is_counted(make_hook, redis_url, queue):
    """However many there are between two looks of the thread that ships."""
    hook = make_hook(redis_url=redis_url)
    for _ in range(20_000):
        hook._process.meter.blocked.append((hook.release, "a", datetime.now(UTC).timestamp(), "budget"))
    hook.flush()
    assert sum(row["blocked"]["budget"] for row in queue.rows()) == 20_000


def test_a_second_thread_that_could_not_be_started_is_started_later(make_hook, redis_url, monkeypatch):
    """Without it an engaged kill switch would pass for ever."""
    hook = make_hook(redis_url=redis_url)
    real, refused = threading.Thread.start, []

    def start(thread):
        if thread.name == "evalpipe-control" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(2):
        with hook.call("a"):
            pass
    assert refused
    assert hook._process.control._thread is not None
    assert hook._process.running


def test_a_refusal_that_passes_through_is_no_failure_of_the_call_around_it(hook, queue):
    """A budget that works must not page anybody for errors."""
    with pytest.raises(KillSwitchEngaged), hook.call("outer"):
        raise KillSwitchEngaged(name="stop", feature="inner", reason="cost")
    hook.flush()
    (row,) = queue.rows()
    assert (row["calls"], row["errors"]) == (1, 0)


def test_a_call_that_is_cancelled_has_not_failed(hook, queue):
    """Nobody waits for it any more; streams and tools have the same rule."""

    async def run():
        with hook.call("a"):
            await asyncio.sleep(10.0)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(run(), 0.01))
    hook.flush()
    (record,) = queue.records()
    assert (record.error, record.attributes["cancelled"], queue.rows()[0]["errors"]) == ("", True, 0)


def test_an_exception_that_cannot_be_printed_is_recorded_by_its_type(hook, queue):
    """And arrives as it was."""

    class UnprintableError(Exception):
        __str__ = Explosive.__str__

    with pytest.raises(UnprintableError), hook.call("a"):
        raise UnprintableError
    hook.flush()
    assert [record.error for record in queue.records()] == ["UnprintableError"]
