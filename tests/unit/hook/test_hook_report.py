"""Calls that happened already, other releases for one call, segments, and what users said."""

from __future__ import annotations

import json
import time

import pytest

from evalpipe import Release
from evalpipe.hook.feedback import (
    MAX_CHARS,
    MAX_ID_CHARS,
    MAX_ITEMS,
    MAX_LABEL_CHARS,
    MAX_WAITING,
    FeedbackBuffer,
    encoded,
    message,
)
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


class Unprintable:
    """An object of the application that cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("not this one")


def test_feedback_that_cannot_be_encoded_is_shed_and_holds_nothing_up(make_hook, redis_url, queue, caplog):
    """The application's redaction raises, exits, or returns no text: that one is lost; the log says no word of it."""

    def odd(text):
        if text == "exit":
            raise SystemExit
        if text.startswith("secret"):
            raise ValueError(text)
        return None if text == "none" else text

    hook = make_hook(redis_url=redis_url, redact=odd)
    for comment in ("first", "secret word", "exit", "none", "last"):
        hook.feedback("t", 1.0, comment=comment)
    assert hook.flush()
    assert [item["comment"] for item in queue.feedback()] == ["first", "last"]
    assert queue.meter()["feedback"] == {"given": 5, "enqueued": 2, "shed": 3}
    assert "feedback was shed" in caplog.text
    assert "secret word" not in caplog.text
    assert "cannot be written" not in caplog.text


def test_feedback_of_any_kind_of_value_is_taken(hook, queue):
    """A number that no float holds is unknown; what cannot be read is empty; half a character is none."""
    for value in (10**400, float("nan"), "good", True, 2):
        hook.feedback("t", value)
    hook.feedback("t", comment=Unprintable(), label=5, user_id=None)
    hook.feedback("t", comment="\ud800\x00")
    assert hook.flush()
    *items, odd, broken = queue.feedback()
    assert [item["value"] for item in items] == [None, None, None, 1.0, 2.0]
    assert (odd["comment"], odd["label"], odd["user_id"]) == ("", "5", "")
    assert "\x00" not in broken["comment"]


def test_a_flush_takes_all_feedback_with_it(hook, queue):
    """However much waits: as many messages as it takes, and the meter after them."""
    for number in range(MAX_WAITING):
        hook._process.feedback.put(feedback_id=str(number), trace_id="t")
    assert hook.flush()
    assert [item["feedback_id"] for item in queue.feedback()] == [str(number) for number in range(MAX_WAITING)]
    assert len(queue.blobs("evalpipe.feedback")) == MAX_WAITING // MAX_ITEMS
    assert queue.meter()["feedback"] == {"given": MAX_WAITING, "enqueued": MAX_WAITING, "shed": 0}


def test_a_flush_says_when_feedback_is_left_behind(make_hook):
    """Nothing listens where this hook writes."""
    hook = make_hook()
    hook.feedback("t", 1.0)
    assert hook.flush() is False
    assert hook.shutdown() is False


def test_the_last_message_of_a_process_accounts_for_all_feedback(make_hook, redis_url, queue):
    """Without a flush before."""
    hook = make_hook(redis_url=redis_url, flush_interval_s=3600.0)
    for number in range(3 * MAX_ITEMS):
        hook.feedback(str(number), 1.0)
    assert hook.shutdown(10.0)
    meter = queue.meter()
    assert meter["ended"] is True
    assert meter["feedback"] == {"given": 3 * MAX_ITEMS, "enqueued": 3 * MAX_ITEMS, "shed": 0}


def test_feedback_that_nobody_sends_any_more_is_shed_at_the_end():
    """So that the last message's counts add up."""
    buffer = FeedbackBuffer()
    buffer.put(trace_id="t")
    before = buffer.changes
    buffer.give_up()
    assert (buffer.given, buffer.enqueued, buffer.shed, len(buffer)) == (1, 0, 1, 0)
    assert buffer.changes > before


def test_feedback_waits_cut_to_what_will_be_sent():
    """Neither a long comment nor a long id is held."""
    buffer = FeedbackBuffer()
    buffer.put(trace_id="t" * 9999, comment="c" * 9999, label="l" * 9999, user_id="u" * 9999)
    (item,) = buffer.next()
    assert [len(item[name]) for name in ("trace_id", "comment", "label", "user_id")] == [
        MAX_ID_CHARS, MAX_CHARS, MAX_LABEL_CHARS, MAX_ID_CHARS]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "metadata_only", "sent"),
    [
        ("thumbs_down", True, "thumbs_down"),
        ("thumbs down", True, ""),
        ("x" * 65, True, ""),
        ("bob@example.com", True, "[email]"),
        ("asked by bob@example.com", False, "asked by [email]"),
    ],
)
def test_a_label_is_redacted_and_where_no_text_may_leave_it_is_one_word(make_hook, redis_url, queue, label,
                                                                        metadata_only, sent):  # fmt: skip
    """As names of models are; a comment never leaves there."""
    hook = make_hook(redis_url=redis_url, capture="metadata" if metadata_only else "full")
    hook.feedback("t", 0.0, label=label, comment="anything")
    assert hook.flush()
    (item,) = queue.feedback()
    assert (item["label"], item["comment"]) == (sent, "" if metadata_only else "anything")


def test_a_feedback_message_is_one_json_text():
    """Of a header and the items, whatever is in them."""
    buffer = FeedbackBuffer()
    buffer.put(trace_id="t", comment='"]},\\ \u2028')
    texts, failed, why = encoded(buffer.next(), str, metadata_only=False)
    body = json.loads(message(texts, process="p", sent_at=1.5))
    assert (failed, why, body["schema"], body["process"], body["sent_at"]) == ([], "", 1, "p", 1.5)
    assert body["items"][0]["comment"] == '"]},\\ \u2028'


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


def test_a_call_waits_for_feedback_as_it_was_when_it_ended(make_hook, redis_url, queue):
    """What the application does afterwards with what it gave, or with the call, is not part of the record."""
    hook = make_hook(redis_url=redis_url, sample_rate=None, sampling=Sampling(0.0, keep=Keep()))
    part = {"type": "text", "text": "as sent"}
    answer = {"text": "as said"}
    with hook.call("refunds", trace_id="t1", user_id="u1") as call:
        call.messages = [{"role": "user", "content": [part]}]
        call.output = answer
        call.attributes["plan"] = "free"
    part["text"] = answer["text"] = "another user's"
    call.attributes["plan"] = "paid"
    call.output, call.user_id, call.error = "another", "u2", "late"
    assert call.output == "another"
    hook.feedback("t1", 0.0)
    assert hook.flush()
    (record,) = queue.records()
    assert record.messages[0]["content"] == [{"type": "text", "text": "as sent"}]
    assert (record.output, record.attributes) == ('{"text": "as said"}', {"plan": "free"})
    assert (record.user_id, record.error, record.feature, record.reason) == ("u1", "", "refunds", "feedback")


@pytest.mark.parametrize("name", ["messages", "context", "output", "attributes", "tools"])
def test_a_large_call_does_not_wait_for_feedback_wherever_it_is_large(make_hook, name):
    """In any field, however deep, and in several together."""
    hook = make_hook(sample_rate=None, sampling=Sampling(0.0, keep=Keep()))
    half = "x" * (MAX_CALL_BYTES // 2 + 1)
    for values in ({name: [{"a": {"b": [half, half]}}]}, {name: [half], "parameters": {"stop": half}}):
        with hook.call(trace_id="large") as call:
            for field, value in values.items():
                setattr(call, field, {"v": value} if field == "attributes" else value)
    with hook.call(trace_id="small") as call:
        call.output = half
    recent = hook._process.recent
    assert [len(recent.take(trace_id, "", time.time())) for trace_id in ("large", "small")] == [0, 1]
    assert recent._bytes == 0


def test_a_record_id_alone_finds_the_call_that_feedback_is_about(make_hook, redis_url, queue):
    """The trace need not be known; where it is said, it must be the right one."""
    hook = make_hook(redis_url=redis_url, sample_rate=None, sampling=Sampling(0.0, keep=Keep()))
    ids = []
    for number in range(3):
        with hook.call(trace_id="t") as call:
            call.output = str(number)
        ids.append(call.record_id)
    hook.feedback("other", 0.0, record_id=ids[0])
    hook.feedback("", 0.0)
    hook.feedback("", 0.0, record_id="unknown")
    hook.feedback("", 0.0, record_id=ids[1])
    hook.feedback(None, 0.0, record_id=ids[2])
    assert hook.flush()
    assert [record.record_id for record in queue.records()] == ids[1:]


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
