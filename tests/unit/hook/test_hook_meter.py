"""The meter: every call once, cumulative, in the form that workers read."""

from __future__ import annotations

import json
import threading

from hypothesis import given
from hypothesis import strategies as st

from evalpipe import refusal
from evalpipe.hook.buffer import Entry
from evalpipe.hook.meter import MAX_ROWS, SCREENED_CHARS, Meter
from evalpipe.hook.row import SHED
from evalpipe.record import Release
from evalpipe.sketch import Sketch

BASELINE = Release(service="svc")
CANARY = Release(service="svc", variant="canary", prompt="p8")
HOUR = 1_767_225_600


def message(meter, sequence=1):
    """The meter's message, parsed."""
    text = meter.message(hook="0.1.0", process="host:1:ab", seq=sequence, sent_at=HOUR + 9.0, started_at=HOUR + 1.0)
    return json.loads(text)


def no_price(*_: object):
    """A model without a price."""
    return


def seen(release=BASELINE, feature="", at=HOUR + 1.0, *, sampled=False, latency_ms=1.0, failed=False, tokens=(1, 1, 0),
         cost=None, ttft_ms=None, model="", reason="", head="", user=""):  # fmt: skip
    """An observation as calls leave it."""
    return (release, feature, at, sampled, latency_ms, failed, *tokens, cost, ttft_ms, model, reason, head, user)


def test_the_message_has_the_form_that_workers_read():
    """Version, process, sequence and times; one row for each release, feature and hour; latencies as a sketch."""
    meter = Meter(no_price, BASELINE)
    refusal = "I'm sorry, but I can't help with that."
    meter.pending.append(seen(CANARY, "refunds", HOUR + 5.0, sampled=True, latency_ms=250.0, tokens=(10, 21, 4),
                              cost=0.5, ttft_ms=50.0, reason="stop", head=refusal))  # fmt: skip
    meter.pending.append(seen(CANARY, "refunds", HOUR + 6.0, latency_ms=350.0, failed=True, tokens=(None,) * 3))
    meter.pending.append(seen(BASELINE, "refunds", HOUR + 3600.0, latency_ms=None, tokens=(None,) * 3))
    meter.blocked.append((CANARY, "refunds", HOUR + 7.0, "kill_switch"))
    meter.enqueued([Entry(CANARY, "refunds", HOUR + 5.0, 0, {})])
    body = message(meter)
    rows = {(row["release"].get("variant", "baseline"), row["hour"]): row for row in body.pop("rows")}
    assert body == {"schema": 1, "hook": "0.1.0", "process": "host:1:ab", "seq": 1,
                    "sent_at": HOUR + 9.0, "started_at": HOUR + 1.0}  # fmt: skip
    assert set(rows) == {("canary", HOUR), ("baseline", HOUR + 3600)}
    row = rows["canary", HOUR]
    latency = Sketch.from_wire(row.pop("latency"))
    assert (latency.count, latency.low, latency.high) == (2, 250.0, 350.0)
    ttft, tpot = Sketch.from_wire(row.pop("ttft")), Sketch.from_wire(row.pop("tpot"))
    assert (ttft.count, ttft.high, tpot.count, tpot.high) == (1, 50.0, 1, 10.0)
    assert row == {
        "service": "svc", "release": {"service": "svc", "variant": "canary", "prompt": "p8"}, "feature": "refunds",
        "hour": HOUR, "calls": 2, "errors": 1, "sampled": 1, "not_sampled": 1, "enqueued": 1,
        "shed": {"buffer": 0, "queue": 0, "oversized": 0, "failed": 0},
        "input_tokens": 10, "output_tokens": 21, "cached_tokens": 4, "cost_usd": 0.5, "unpriced": 0,
        "cost_squares": 0.25, "users": {},
        "screened": 1, "refusals": 1,
        "blocked": {"kill_switch": 1}, "finish_reasons": {"stop": 1},
    }  # fmt: skip
    assert Sketch.from_wire(rows["baseline", HOUR + 3600]["latency"]).count == 0


@given(
    st.lists(st.tuples(st.sampled_from([BASELINE, CANARY]), st.sampled_from("ab"), st.integers(0, 9000), st.booleans()))
)
def test_every_observation_is_in_exactly_one_row_and_counts_are_cumulative(calls):
    """Whatever the order and mixture; a second message repeats what the first said and adds to it."""
    meter = Meter(no_price, BASELINE)
    for number, (release, feature, at, sampled) in enumerate(calls):
        meter.pending.append(seen(release, feature, float(HOUR + at), sampled=sampled))
        if number % 3 == 0:
            message(meter)
    rows = message(meter)["rows"]
    assert sum(row["calls"] for row in rows) == len(calls)
    assert sum(row["sampled"] for row in rows) == sum(call[3] for call in calls)
    assert all(row["calls"] == row["sampled"] + row["not_sampled"] for row in rows)
    for row in rows:
        variant = row["release"].get("variant", "baseline")
        of_row = [c for c in calls if (c[0].variant, c[1], (HOUR + c[2]) // 3600 * 3600) == (
            variant, row["feature"], row["hour"])]  # fmt: skip
        assert row["calls"] == len(of_row)


def test_rows_are_forgotten_only_when_their_hour_is_long_over_and_nothing_of_it_waits():
    """Messages and memory stay small in a process that runs for months; the totals keep all."""
    meter = Meter(no_price, BASELINE)
    meter.pending.append(seen(feature="a"))
    meter.pending.append(seen(feature="b", sampled=True))
    message(meter)
    meter.forget(HOUR + 3600.0 + 60.0)
    assert len(message(meter)["rows"]) == 2
    meter.forget(HOUR + 3600.0 + 3600.0)
    assert len(message(meter)["rows"]) == 2
    meter.forget(HOUR + 4 * 3600.0)
    assert [row["feature"] for row in message(meter)["rows"]] == ["b"]
    meter.shed(Entry(BASELINE, "b", HOUR + 1.0, 0, {}), "buffer")
    meter.totals()
    meter.forget(HOUR + 5 * 3600.0)
    meter.forget(HOUR + 7 * 3600.0)
    assert message(meter)["rows"] == []
    totals = meter.totals()
    assert (totals["calls"], totals["sampled"], totals["buffer"]) == (2, 1, 1)
    assert set(SHED) <= set(totals)


def test_odd_numbers_of_the_application_spoil_nothing():
    """Tokens that are no whole number, and costs that are no finite one, are left out; the call is counted."""
    meter = Meter(no_price, BASELINE)
    for odd in ("12", 1.5, float("nan"), None, [], True):
        meter.pending.append(seen(tokens=(odd,) * 3, cost=float("inf"), model=odd, reason=odd))
    (row,) = message(meter)["rows"]
    assert (row["calls"], row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (6, 0, 0, 0.0)


def test_what_the_application_does_not_price_is_priced_by_the_list():
    """By model and tokens; a cost that the application gave wins, and a model without a price costs nothing."""
    meter = Meter(lambda model, n_in, n_out, _: 0.001 * n_in + 0.002 * n_out if model == "known" else None, BASELINE)
    meter.pending.append(seen(model="known", tokens=(10, 5, 0)))
    meter.pending.append(seen(model="known", tokens=(10, 5, 0), cost=1.0))
    meter.pending.append(seen(model="unknown", tokens=(10, 5, 0)))
    (row,) = message(meter)["rows"]
    assert (row["cost_usd"], row["unpriced"]) == (0.02 + 1.0, 1)


def test_finish_reasons_beyond_a_bound_share_one_line():
    """A provider that makes reasons up cannot make the message grow."""
    meter = Meter(no_price, BASELINE)
    for number in range(100):
        meter.pending.append(seen(reason=f"reason-{number}"))
    (row,) = message(meter)["rows"]
    assert len(row["finish_reasons"]) == 17
    assert sum(row["finish_reasons"].values()) == 100
    assert row["finish_reasons"]["(other)"] == 84


def test_a_record_kept_by_later_feedback_moves_from_not_sampled_to_sampled():
    """The call is counted once, and its record has a place in the ledger."""
    meter = Meter(no_price, BASELINE)
    meter.pending.append(seen())
    meter.kept(BASELINE, "", HOUR + 1.0)
    (row,) = message(meter)["rows"]
    assert (row["calls"], row["sampled"], row["not_sampled"]) == (1, 1, 0)


def test_a_call_that_is_reported_after_its_row_was_forgotten_finds_its_row_again():
    """Counts are cumulative: a row that began again at nothing would overwrite what the store has."""
    meter = Meter(no_price, BASELINE)
    for _ in range(5):
        meter.pending.append(seen())
    message(meter)
    for hours in (2, 4):
        meter.forget(HOUR + hours * 3600.0)
    assert message(meter)["rows"] == []
    meter.pending.append(seen())
    (row,) = message(meter)["rows"]
    assert row["calls"] == meter.totals()["calls"] == 6


def test_rows_are_bounded_whatever_tells_them_apart():
    """Features, releases, hours: beyond the bound they share rows, and every call is counted."""
    meter = Meter(no_price, BASELINE)
    for number in range(3 * MAX_ROWS):
        meter.pending.append(seen(Release(service="svc", prompt=str(number)), str(number)))
    rows = message(meter)["rows"]
    assert len(rows) <= MAX_ROWS + 1
    assert sum(row["calls"] for row in rows) == 3 * MAX_ROWS
    for number in range(3 * MAX_ROWS):
        meter.pending.append(seen(Release(service="svc", variant=str(number), retrieval=str(number)), "(other)"))
    rows = message(meter)["rows"]
    assert len(rows) <= 2 * MAX_ROWS + 1
    assert sum(row["calls"] for row in rows) == 6 * MAX_ROWS


def test_as_much_of_an_answer_waits_as_the_screen_looks_at():
    """Less would miss refusals on the meter that workers see on records."""
    assert SCREENED_CHARS == refusal.SCREENED_CHARS


def test_what_is_no_word_of_a_provider_is_no_finish_reason():
    """It leaves the process in the clear: an application may have put a text there."""
    meter = Meter(no_price, BASELINE)
    for reason in ("stop", "write to bob@example.com", "bob@example.com", "x" * 65):
        meter.pending.append(seen(reason=reason))
    (row,) = message(meter)["rows"]
    assert row["finish_reasons"] == {"stop": 1, "(other)": 3}


def test_costs_that_cannot_be_are_left_out():
    """A sum that is infinite would be no JSON, and no message after it could be read."""
    meter = Meter(no_price, BASELINE)
    for cost in (1e308, 1e308, -1.0, float("nan"), 0.5):
        meter.pending.append(seen(cost=cost))
    (row,) = message(meter)["rows"]
    assert (row["calls"], row["cost_usd"]) == (5, 0.5)


def test_counting_what_was_shed_waits_for_nobody():
    """The calling thread does it, while another one adds up."""
    meter = Meter(no_price, BASELINE)
    with meter._lock:
        thread = threading.Thread(target=lambda: meter.shed(Entry(BASELINE, "", HOUR + 1.0, 0, None), "buffer"))
        thread.start()
        thread.join(5.0)
        assert not thread.is_alive()
    assert meter.totals()["buffer"] == 1
