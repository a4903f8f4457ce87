"""Shadows: the canary beside the served call, never felt by it, within its budget, and every one of them counted."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time

import pytest
from stopwatch import assert_quick

from evalpipe.errors import KillSwitchEngaged
from evalpipe.hook.sampling import SPAN, position
from evalpipe.hook.shadow import MAX_UNDER_WAY, Shadow, _Budget

ALWAYS = (1.0, 60_000.0)
"""Every trace, a thousand a second."""


def settled(shadow, seconds=60.0):
    """The counts when nothing is under way any more."""
    deadline = time.monotonic() + seconds
    while (stats := shadow.stats()).under_way and time.monotonic() < deadline:
        time.sleep(0.005)
    assert stats.asked == stats.not_drawn + stats.under_way + stats.done + stats.failed + sum(stats.dropped.values())
    return stats


def ask(shadow, hook, function, *args: object, rate=1.0, per_minute=60_000.0, **kwargs):
    """Ask for a shadow as ``hook.shadow("prompt", function, ...)`` does."""
    call = hook.current_call()
    shadow.submit("prompt", None if call.inert else call, rate, per_minute, function, args, kwargs)


def records_of(hook, queue):
    """What arrived: the served records, and those of shadows."""
    assert hook.flush()
    records = queue.records()
    return tuple(
        [record for record in records if (record.release.variant == "shadow") is shadow] for shadow in (False, True)
    )


@pytest.fixture
def shadow(hook):
    """Shadows beside the calls of ``hook``."""
    return Shadow(hook)


def test_what_a_shadow_calls_is_of_the_served_calls_trace_under_its_own_variant(hook, queue, shadow):
    """Trace, session, user, unit, segment and feature are the served call's; the attributes say whose shadow it is."""

    @hook.observe(feature="answer")
    def canary(question):
        return f"short answer to {question}"

    with hook.call("chat", session_id="s", user_id="u", unit="n", segment="gold", release={"prompt": "v6"}) as call:
        call.output = "the long answer"
        ask(shadow, hook, canary, "why?")
    assert settled(shadow).done == 1
    (served,), (beside,) = records_of(hook, queue)
    assert beside.output == "short answer to why?"
    assert (beside.trace_id, beside.session_id, beside.user_id) == (served.trace_id, "s", "u")
    assert (beside.unit, beside.segment, beside.feature) == ("n", "gold", "answer")
    assert (beside.release.variant, beside.release.prompt) == ("shadow", "v6")
    assert beside.attributes == {"shadow": "prompt", "shadow_of": served.record_id}


def test_a_function_in_which_the_hook_sees_no_call_is_recorded_as_one(hook, queue, shadow):
    """Input, output, latency and error of the function itself."""

    def canary(messages):
        messages[0]["content"] += "!"
        return "yes"

    def broken(question):
        raise ValueError(f"no answer to {question}")

    with hook.context("chat", session_id="s"):
        ask(shadow, hook, canary, messages=[{"role": "user", "content": "may I"}])
        ask(shadow, hook, broken, "why")
    stats = settled(shadow)
    assert (stats.done, stats.failed) == (1, 1)
    served, shadows = records_of(hook, queue)
    good, bad = sorted(shadows, key=lambda record: record.error)
    assert served == []
    assert (good.output, good.feature, good.session_id, good.error) == ("yes", "chat", "s", "")
    assert good.latency_ms >= 0.0
    assert bad.error == "ValueError: no answer to why"
    assert list(bad.messages) == [{"role": "user", "content": "why"}]
    assert good.attributes == bad.attributes == {"shadow": "prompt"}


def test_the_canary_gets_its_arguments_as_they_were(hook, shadow):
    """Messages that the application goes on with are copied, with all that is inside; other objects are handed over."""
    seen = []
    go = threading.Event()
    client = object()

    def canary(*args: object, **kwargs: object):
        go.wait(60)
        seen.append((args, kwargs))

    messages = [{"role": "user", "content": ["hello", {"text": "there"}]}]
    options = {"stop": ["."], "client": client, "pair": ([1],)}
    with hook.call():
        ask(shadow, hook, canary, messages, options=options)
        messages[0]["content"][1]["text"] = "changed"
        messages.append({"role": "assistant", "content": "later"})
        options["stop"].append("!")
        options["pair"][0].append(2)
    go.set()
    assert settled(shadow).done == 1
    assert seen == [
        (([{"role": "user", "content": ["hello", {"text": "there"}]}],),
         {"options": {"stop": ["."], "client": client, "pair": ([1],)}})
    ]  # fmt: skip


def test_the_same_traces_are_shadowed_everywhere_and_a_smaller_share_lies_inside_a_larger_one(hook, shadow):
    """By the position of the trace id, as sampling does."""
    ran = {0.1: set(), 0.3: set()}
    lock = threading.Lock()

    def canary(rate, trace_id):
        with lock:
            ran[rate].add(trace_id)

    ids = [f"trace-{n}" for n in range(300)]
    for trace_id in ids:
        with hook.context(trace_id=trace_id):
            for rate in ran:
                ask(shadow, hook, canary, rate, trace_id, rate=rate, per_minute=1e9)
        settled(shadow)
    stats = settled(shadow)
    assert ran[0.1] == {trace_id for trace_id in ids if position(trace_id) < 0.1 * SPAN}
    assert ran[0.1] < ran[0.3]
    assert stats.asked == 600
    assert stats.done == len(ran[0.1]) + len(ran[0.3])


def test_over_its_budget_a_shadow_is_dropped_and_counted(hook, shadow):
    """Sixty a minute: six at once, then one a second; a name of its own has a budget of its own."""
    ran = []
    with hook.call():
        for _ in range(50):
            ask(shadow, hook, ran.append, 1, per_minute=60)
        shadow.submit("other", None, 1.0, 60, ran.append, [1], {})
        shadow.submit("none", None, 1.0, 0, ran.append, [1], {})
    stats = settled(shadow)
    assert (stats.done, stats.dropped["budget"]) == (7, 45)
    assert len(ran) == 7


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1000])
def test_a_budget_is_kept_in_every_minute(per_minute):
    """Whoever asks all the time gets what is due, and in no minute more than a tenth beyond it."""
    budget = _Budget()
    taken = [tick / 20 for tick in range(20 * 600) if budget.take(per_minute, 100.0 + tick / 20)]
    assert len(taken) == pytest.approx(10 * per_minute, abs=max(1, per_minute * 0.1) + 1)
    assert max(sum(start <= at < start + 60 for at in taken) for start in taken[:: max(1, len(taken) // 50)]) <= (
        per_minute + max(1, per_minute // 10) + 1
    )


def test_slow_canaries_are_bounded_in_number_and_the_caller_does_not_wait(hook, shadow):
    """Two run, thirty wait, the rest is dropped at once."""
    go = threading.Event()
    running = []

    def canary():
        running.append(threading.current_thread())
        go.wait(60)

    start = time.perf_counter()
    with hook.call():
        for _ in range(100):
            ask(shadow, hook, canary)
    assert_quick(time.perf_counter() - start, 1.0)
    stats = shadow.stats()
    assert (stats.under_way, stats.dropped["busy"]) == (MAX_UNDER_WAY, 100 - MAX_UNDER_WAY)
    assert len(set(running)) <= 2
    while len(running) < 2:
        time.sleep(0.005)
    assert all(thread.daemon for thread in running)
    go.set()
    assert settled(shadow).done == MAX_UNDER_WAY
    assert len(set(running)) == 2


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit, RecursionError, GeneratorExit])
def test_whatever_a_canary_raises_ends_it_and_nothing_else(hook, shadow, raised):
    """The next ones run all the same."""

    def canary(kind):
        raise kind("on purpose")

    with hook.call():
        for _ in range(4):
            ask(shadow, hook, canary, raised)
        ask(shadow, hook, len, "fine")
    stats = settled(shadow)
    assert (stats.done, stats.failed) == (1, 4)


def test_a_refused_canary_is_dropped_in_silence(hook, queue, shadow):
    """A kill switch or a budget that stops its call: no record, no error, counted as refused."""

    def canary():
        raise KillSwitchEngaged(name="stop", feature="chat", reason="cost x40")

    with hook.call("chat"):
        ask(shadow, hook, canary)
    stats = settled(shadow)
    assert (stats.failed, stats.dropped["refused"]) == (0, 1)
    assert records_of(hook, queue)[1] == []


def test_calls_of_a_canary_are_always_enforced(hook, shadow):
    """Also where the application did not ask for that: nobody waits for a shadow."""
    seen = []
    with hook.call("chat", enforce=False) as served:
        ask(shadow, hook, lambda: seen.append(hook.call().enforced))
        assert not served.enforced
    settled(shadow)
    assert seen == [True]


def test_a_coroutine_function_runs_in_the_loop_of_the_served_call(hook, queue, shadow):
    """As an asynchronous client needs it; the handler does not wait, and its context variables are there."""
    user = contextvars.ContextVar("user")
    seen = []

    async def canary(question):
        await asyncio.sleep(0.05)
        seen.append((asyncio.get_running_loop(), user.get()))
        return f"answer to {question}"

    async def handler():
        user.set("ada")
        with hook.call("chat") as call:
            call.output = "served"
            start = time.perf_counter()
            ask(shadow, hook, canary, "why")
            ask(shadow, hook, lambda: canary("how"))  # a plain function around it
            assert_quick(time.perf_counter() - start, 0.05)
        user.set("bob")
        await asyncio.to_thread(settled, shadow)
        return asyncio.get_running_loop()

    loop = asyncio.run(handler())
    assert seen == [(loop, "ada")] * 2
    assert sorted(record.output for record in records_of(hook, queue)[1]) == ["answer to how", "answer to why"]


def test_a_coroutine_function_in_a_plain_application_runs_in_a_loop_of_its_own(hook, shadow):
    """Many at once, on one thread."""
    threads = set()

    async def canary():
        await asyncio.sleep(0.05)
        threads.add(threading.current_thread())

    start = time.perf_counter()
    with hook.call("chat"):
        for _ in range(20):
            ask(shadow, hook, canary)
    assert settled(shadow).done == 20
    assert_quick(time.perf_counter() - start, 20 * 0.05)
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_a_loop_that_ends_takes_its_shadows_with_it(hook, shadow):
    """The application's end is not delayed, and nothing is left under way."""

    async def canary():
        await asyncio.sleep(60)

    async def handler():
        with hook.call("chat"):
            ask(shadow, hook, canary)
        await asyncio.sleep(0)

    start = time.perf_counter()
    asyncio.run(handler())
    assert_quick(time.perf_counter() - start, 5)
    assert settled(shadow).failed == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_that_a_canary_returns_is_read_to_its_end(hook, shadow, asynchronous):
    """Nobody else would read it, and only its end makes the record."""
    read = []

    def words():
        for n in range(3):
            read.append(n)
            yield n

    async def words_later():
        for n in range(3):
            read.append(n)
            yield n

    async def canary():
        return words_later()

    with hook.call("chat"):
        ask(shadow, hook, canary if asynchronous else words)
    assert settled(shadow).done == 1
    assert read == [0, 1, 2]


def test_nothing_is_felt_where_a_thread_cannot_be_had(hook, shadow, monkeypatch):
    """The system's limit is reached: the shadow is dropped, and counted as failed."""

    def fail(_self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with hook.call("chat"):
        ask(shadow, hook, len, "x")
    monkeypatch.undo()
    assert shadow.stats().dropped["failed"] == 1
    with hook.call("chat"):
        ask(shadow, hook, len, "x")
    assert settled(shadow).done == 1


def test_outside_of_any_call_a_shadow_has_a_trace_of_its_own(hook, queue, shadow):
    """There is no served call; half of them are drawn at a rate of a half."""
    for _ in range(60):
        ask(shadow, hook, str, "x", rate=0.5)
        settled(shadow)
    stats = settled(shadow)
    assert 10 <= stats.done <= 50
    assert stats.done + stats.not_drawn == 60
    _, shadows = records_of(hook, queue)
    assert len({record.trace_id for record in shadows}) == stats.done


def test_the_control_plane_says_what_is_shadowed_and_how_often(make_hook, redis_url, queue):
    """As an application uses it: no shadow without a rollout; then by its rate, until a kill switch stops shadows."""

    def publish(revision, **switch: object):
        rollout = {"name": "prompt", "environment": "", "features": [], "weights": {"canary": 5, "baseline": 95},
                   "sample": 1.0, "shadow": {"rate": 1.0, "per_minute": 6000}}  # fmt: skip
        document = {"schema": 1, "revision": revision, "service": "support-bot", "published_at": time.time(),
                    "budgets": [], "rollouts": [rollout], "rates": [], "prices": "",
                    "switches": [switch] if switch else []}  # fmt: skip
        fields = {"revision": revision, "document": json.dumps(document)}
        queue.client.hset("evalpipe.control:support-bot", mapping=fields)

    def until(condition):
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            serve()
            time.sleep(0.05)
        assert condition()

    def canary():
        with hook.call() as call:
            call.output = "from the canary"
            ran.append(call.release.variant)

    def serve():
        with hook.call("chat"):
            hook.shadow("prompt", canary)
            hook.shadow("no such rollout", canary)

    ran = []
    hook = make_hook(redis_url=redis_url)
    serve()
    assert ran == []
    publish(1)
    until(lambda: len(ran) > 2)
    assert set(ran) == {"shadow"}
    publish(2, name="stop-shadows", feature="", segment="", variant="shadow", environment="", engaged=True,
            reason="too dear", incident="", fail="open", max_staleness_s=300)  # fmt: skip
    shadow = hook._process.shadow(hook)
    until(lambda: shadow.stats().dropped["refused"] > 2)
    before = len(ran)
    serve()
    assert settled(shadow).failed == 0
    assert len(ran) == before
