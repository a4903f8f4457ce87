"""Calls that happened already, other releases for one call, segments, and what users said."""

from __future__ import annotations

import time

import pytest

from evalpipe import Release
from evalpipe.hook.feedback import MAX_WAITING, FeedbackBuffer
from evalpipe.hook.recent import MAX_CALL_BYTES, MAX_CALLS
from evalpipe.hook.sampling import Keep, Sampling


def test_a_call_that_happened_already_is_reported_as_it_was(hook, queue):
    """With its own end, id and latency; what a call has no field for becomes an attribute."""
    at = time.time() - 7200.0
    hook.report(
        "refunds", trace_id="t1", record_id="r1", at=at, latency_ms=80.0, ttft_ms=20.0, output="Yes.",
        messages=[{"role": "user", "content": "May I?"}], model="m", input_tokens=3, cached_tokens=2, shop="north",
    )  # fmt: skip
    hook.flush()
    (record,) = queue.records()
    assert (record.record_id, record.trace_id, record.captured_at.timestamp()) == ("r1", "t1", pytest.approx(at))
    assert (record.latency_ms, record.ttft_ms, record.cached_tokens, record.output) == (80.0, 20.0, 2, "Yes.")
    assert record.input_text == "May I?"
    assert record.attributes == {"shop": "north"}
    (row,) = queue.rows()
    assert (row["hour"], row["calls"], row["cached_tokens"]) == (int(at // 3600) * 3600, 1, 2)


def test_what_was_sampled_elsewhere_is_captured_with_the_probability_told(make_hook, redis_url, queue):
    """The sender's decision holds, whatever the rate here."""
    hook = make_hook(redis_url=redis_url, sample_rate=0.0)
    hook.report("refunds", trace_id="t1", probability=0.25, output="Yes.")
    hook.report("refunds", trace_id="t2", output="No.")
    hook.flush()
    (record,) = queue.records()
    assert (record.trace_id, record.probability, record.weight) == ("t1", 0.25, 4.0)


def test_a_call_may_have_a_release_that_differs_in_a_few_fields(hook, queue):
    """What is given replaces the inherited fields, also for calls inside; the release stays one object."""
    with hook.call("a", release={"variant": "canary", "prompt": "p8"}) as outer, hook.call("b") as inner:
        assert inner.release is outer.release
    with hook.call("c", release={"variant": "canary", "prompt": "p8"}) as again:
        assert again.release is outer.release
    with hook.call("d", release=Release(service="other")) as other:
        assert other.release.service == "other"
    hook.flush()
    variants = [(r.release.service, r.release.variant, r.release.prompt) for r in queue.records()]
    canary = ("support-bot", "canary", "p8")
    assert sorted(variants) == sorted([canary, canary, canary, ("other", "baseline", "")])


def test_a_release_that_cannot_be_one_leaves_the_inherited_one(hook, queue):
    """The application's mistake costs neither the call nor its place in the counts."""
    with hook.call("a", release={"no_such_field": "x"}) as call:
        call.output = "fine"
    hook.flush()
    (record,) = queue.records()
    assert (record.output, record.release) == ("fine", hook.release)


def test_a_segment_is_inherited_and_recorded(hook, queue):
    """The class of traffic goes with every call inside."""
    with hook.context("chat", segment="enterprise"), hook.call() as call:
        call.output = "x"
    hook.flush()
    (record,) = queue.records()
    assert (record.segment, record.feature) == ("enterprise", "chat")


def test_feedback_goes_out_redacted_and_is_counted(hook, queue):
    """A message of its own; a comment is redacted; a value that is no number is unknown."""
    hook.feedback("t1", 0.0, label="thumbs_down", comment="wrong, write to bob@example.com", user_id="u1")
    hook.feedback("t2", "great", feedback_id="f2")
    hook.flush()
    first, second = queue.feedback()
    assert (first["trace_id"], first["value"], first["label"], first["user_id"]) == ("t1", 0.0, "thumbs_down", "u1")
    assert (first["comment"], first["service"]) == ("wrong, write to [email]", "support-bot")
    assert (second["feedback_id"], second["value"]) == ("f2", None)
    assert queue.meter()["feedback"] == {"given": 2, "enqueued": 2, "shed": 0}


def test_feedback_that_cannot_wait_any_longer_is_shed_and_counted():
    """The oldest make room; given = enqueued + shed + waiting at every moment."""
    buffer = FeedbackBuffer()
    for number in range(MAX_WAITING + 5):
        buffer.put(trace_id=str(number))
    assert (len(buffer), buffer.given, buffer.shed) == (MAX_WAITING, MAX_WAITING + 5, 5)
    items = buffer.next()
    buffer.put(trace_id="makes room while a message is on its way")
    buffer.settle(items, accepted=True)
    assert buffer.given == buffer.enqueued + buffer.shed + len(buffer)
    assert buffer.shed == 6


def test_feedback_keeps_the_record_of_a_call_that_was_not_sampled(make_hook, redis_url, queue):
    """There is something to read, and it weighs nothing; the ledger counts it as sampled."""
    hook = make_hook(redis_url=redis_url, sample_rate=None, sampling=Sampling(0.0, keep=Keep()))
    messages = [{"role": "user", "content": "May I?"}]
    with hook.call("refunds", trace_id="t1") as call:
        call.messages = messages
        call.output = "No."
    messages.append({"role": "assistant", "content": "No."})
    with hook.call("refunds", trace_id="t2") as call:
        call.output = "Yes."
    hook.feedback("t1", 0.0)
    hook.feedback("t1", 0.0)
    hook.flush()
    (record,) = queue.records()
    assert (record.trace_id, record.reason, record.weight, record.output) == ("t1", "feedback", 0.0, "No.")
    assert [message["role"] for message in record.messages] == ["user"]
    (row,) = queue.rows()
    assert (row["calls"], row["sampled"], row["not_sampled"], row["enqueued"]) == (2, 1, 1, 1)
    assert len(queue.feedback()) == 2


def test_calls_that_wait_for_feedback_are_bounded(make_hook):
    """By number, and no single one may be large."""
    hook = make_hook(sample_rate=None, sampling=Sampling(0.0, keep=Keep()))
    for number in range(MAX_CALLS + 10):
        with hook.call(trace_id=str(number)) as call:
            call.output = "x"
    with hook.call(trace_id="large") as call:
        call.output = "x" * (MAX_CALL_BYTES + 1)
    recent = hook._process.recent
    now = time.time()
    assert [len(recent.take(trace_id, "", now)) for trace_id in ("0", "large", str(MAX_CALLS + 9))] == [0, 0, 1]
    assert [len(recent.take("20", "", at)) for at in (now + 3600.0, now)] == [0, 1]


def test_the_last_meter_message_of_a_process_says_goodbye(make_hook, redis_url, queue):
    """So that one that fell silent without it is known to have crashed."""
    hook = make_hook(redis_url=redis_url)
    with hook.call("a"):
        pass
    hook.flush()
    assert queue.meter()["ended"] is False
    hook.shutdown()
    assert queue.meter()["ended"] is True
    assert queue.meter()["seq"] == 2
