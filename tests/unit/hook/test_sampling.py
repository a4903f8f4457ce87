"""Sampling: by trace or session, uniform, nested, the same everywhere, and with the probability that was in force."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.hook.sampling import (
    ADAPT_S,
    DEFAULT_RATE,
    MAX_CELLS,
    MAX_STRATA,
    SPAN,
    Keep,
    Rate,
    Sampler,
    Sampling,
    position,
)
from evalpipe.record import Release

IDS = {
    "counted up in decimal": [str(n) for n in range(40_000)],
    "counted up in hex": [f"{n:032x}" for n in range(40_000)],
    "with a prefix and a count": [f"req-2026-01-01-{n:06d}" for n in range(40_000)],
    "every 64th": [f"{n * 64:016x}" for n in range(40_000)],
    "of the hook itself": [f"6f1d2a3b4c5d6e7f{n:016x}" for n in range(40_000)],
}
BASELINE = Release("shop", prompt="v7")
CANARY = Release("shop", variant="canary", prompt="v8")


def call_of(
    trace_id="t",
    release=BASELINE,
    feature="",
    segment="",
    session_id="",
    user_id="",
    unit="",
    flags=(),
    finish_reason="",
):
    """What the sampler reads of a call, as the hook's call has it before its decision."""
    return SimpleNamespace(
        trace_id=trace_id, release=release, feature=feature, segment=segment, session_id=session_id,
        user_id=user_id, unit=unit,
        flags=frozenset(flags), finish_reason=finish_reason,
        sampled=False, capturing=False, probability=1.0, rate_probability=None, stratum="", reason="rate",
    )  # fmt: skip


def decided(sampler, trace_id, **fields):
    """A call after its decision."""
    call = call_of(trace_id, **fields)
    sampler.decide(call)
    return call


def id_at(low, high, prefix="trace"):
    """A trace id whose position is in that range of [0, 1)."""
    return next(i for n in range(10**6) if low <= position(i := f"{prefix}-{n}") / SPAN < high)


EARLY, LATE = id_at(0.0, 0.001), id_at(0.9, 1.0)


def probability(sampler, **fields):
    """That of such calls: of one that lies so early that any rate captures it."""
    return decided(sampler, EARLY, **fields).probability


@pytest.mark.parametrize("name", IDS)
def test_positions_are_uniform_for_ids_as_applications_make_them(name):
    """Chi-square over 64 bins, and the share below 1 %, 2 % and 5 %, as a fair draw would give."""
    positions = [position(trace_id) for trace_id in IDS[name]]
    bins = [0] * 64
    for value in positions:
        bins[value * 64 // SPAN] += 1
    expected = len(positions) / 64
    assert sum((count - expected) ** 2 / expected for count in bins) < 125  # 99.999 % of chi-square with 63 degrees
    for rate in (0.01, 0.02, 0.05):
        share = sum(value < rate * SPAN for value in positions) / len(positions)
        assert abs(share - rate) < 5 * (rate * (1 - rate) / len(positions)) ** 0.5


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["trace", "session"]))
def test_a_smaller_sample_lies_inside_a_larger_one(trace_id, session_id, one, other, by):
    """What is kept at 1 % is kept at 5 %, and the probability that is recorded is the rate."""
    low, high = sorted((one, other))
    in_small = decided(Sampler(Sampling(low, by=by)), trace_id, session_id=session_id)
    in_large = decided(Sampler(Sampling(high, by=by)), trace_id, session_id=session_id)
    assert in_large.sampled or not in_small.sampled
    if in_small.sampled:
        assert in_small.probability == pytest.approx(low, abs=1e-9)


@given(st.text())
def test_a_decision_is_position_against_rate(trace_id):
    """The written-out hash of the hot path is ``position``, for any text, half surrogate pairs included."""
    assert decided(Sampler(0.5), trace_id).sampled == (position(trace_id) < SPAN // 2)
    assert decided(Sampler(0.5), f"\ud800{trace_id}").sampled == (position(f"\ud800{trace_id}") < SPAN // 2)


@given(st.text(min_size=1))
def test_rates_zero_and_one_keep_nothing_and_everything(trace_id):
    """The ends of the scale are exact."""
    everything = decided(Sampler(1.0), trace_id)
    assert everything.sampled
    assert everything.probability == 1.0
    assert not decided(Sampler(0.0), trace_id).sampled


def test_the_decision_is_the_same_in_another_process():
    """No process-wide random seed takes part."""
    code = "from evalpipe.hook.sampling import position; print([position(f'trace-{n}') for n in range(50)])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str([position(f"trace-{n}") for n in range(50)])


def test_positions_are_what_other_languages_must_compute():
    """Fixed values, so that a change of the hash is seen: it would break a rollout in progress."""
    assert position("4bf92f3577b34da6a3ce929d0e0e4736") == 2_214_643_956
    assert position("Größe") == 3_440_282_501
    assert position("") == 0


def test_a_variant_can_have_its_own_rate():
    """The short form: the canary is captured fully beside a sampled baseline; others get the default."""
    sampler = Sampler({"canary": 1.0, "baseline": 0.02})
    assert probability(sampler, release=CANARY) == 1.0
    assert probability(sampler, release=BASELINE) == pytest.approx(0.02)
    assert probability(sampler, release=Release("shop", variant="shadow")) == pytest.approx(DEFAULT_RATE)


def test_the_first_rate_that_fits_counts():
    """By feature, segment, environment, variant and version; what none fits gets the general rate."""
    sampler = Sampler(
        Sampling(
            0.01,
            rates=[
                Rate(1.0, release={"prompt": "v8"}),
                Rate(0.5, feature="agent", segment="pro"),
                Rate(0.2, feature="agent"),
                Rate(0.1, environment="staging"),
            ],
        )
    )
    assert probability(sampler, release=CANARY, feature="agent") == 1.0
    assert probability(sampler, feature="agent", segment="pro") == pytest.approx(0.5)
    assert probability(sampler, feature="agent", segment="free") == pytest.approx(0.2)
    assert probability(sampler, release=Release("shop", environment="staging")) == pytest.approx(0.1)
    assert probability(sampler) == pytest.approx(0.01)


def test_the_record_says_stratum_and_reason():
    """The stratum is the application's class of traffic; the reason is the rate."""
    call = decided(Sampler(1.0), "t", segment="pro")
    assert (call.stratum, call.reason, call.capturing) == ("pro", "rate", True)
    other = decided(Sampler(0.0), "t", segment="pro")
    assert (other.sampled, other.capturing) == (False, False)


def test_whole_conversations_are_in_or_out():
    """By session: all traces of one are decided alike; without a session the trace decides."""
    sampler = Sampler(Sampling(0.3, by="session"))
    for session in range(50):
        answers = {decided(sampler, f"t-{n}", session_id=f"s-{session}").sampled for n in range(20)}
        assert len(answers) == 1
    assert {decided(sampler, f"t-{n}").sampled for n in range(50)} == {True, False}


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "0.5", True, None, {"canary": 2}])
def test_a_rate_that_is_none_is_refused_at_start_up(rate):
    """The message names the value."""
    with pytest.raises(ConfigError, match="sample rate"):
        Sampler(rate)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sampling(by="user"), "by=.*'user'"),
        (lambda: Sampling(floor_per_minute=-1), "floor_per_minute=.*-1"),
        (lambda: Sampling(rates=[0.5]), "rates=.*0.5"),
        (lambda: Sampling(keep=True), "keep=.*True"),
        (lambda: Rate(2, feature="agent"), "agent.*from 0 to 1, not 2"),
        (lambda: Rate(0.5, feature=7), "feature=.*7"),
        (lambda: Rate(0.5, release={"promt": "v8"}), "'promt' must be one of model, prompt"),
        (lambda: Keep(cost_above_usd="1"), "cost_above_usd=.*'1'"),
        (lambda: Keep(latency_above_ms=float("nan")), "latency_above_ms=.*nan"),
        (lambda: Keep(per_minute=0), "per_minute=.*above 0"),
        (lambda: Keep(flags=[1]), "flags=.*1"),
    ],
)
def test_what_cannot_work_is_refused_with_its_name_and_value(make, said):
    """At construction, before any call."""
    with pytest.raises(ConfigError, match=said):
        make()


KEEPS = (
    (Keep(errors=True), {"error": True}, "error"),
    (Keep(cost_above_usd=0.5), {"cost_usd": 0.6}, "cost"),
    (Keep(), {"flags": ["thumbs"]}, "flag"),
    (Keep(flags=["loop"]), {"flags": ["loop"]}, "flag"),
    (Keep(flags=False), {"flags": ["feedback"]}, "feedback"),
    (Keep(latency_above_ms=100), {"latency_ms": 101.0}, "latency"),
    (Keep(finish_reasons=["content_filter"]), {"finish_reason": "content_filter"}, "finish_reason"),
)
OTHERS = (
    (Keep(), {"error": True}),
    (Keep(cost_above_usd=0.5), {"cost_usd": 0.5}),
    (Keep(cost_above_usd=0.5), {"cost_usd": None}),
    (Keep(flags=["loop"]), {"flags": ["thumbs"]}),
    (Keep(flags=False), {"flags": ["thumbs"]}),
    (Keep(feedback=False, flags=False), {"flags": ["feedback"]}),
    (Keep(latency_above_ms=100), {"latency_ms": 99.0}),
    (Keep(finish_reasons=["content_filter"]), {"finish_reason": "stop"}),
)


def ended(sampler, trace_id, error=False, cost_usd=None, latency_ms=None, **fields):
    """A call after its end."""
    call = decided(sampler, trace_id, segment="pro", **fields)
    assert call.capturing
    assert sampler.keep(call, error, cost_usd, latency_ms) is call.sampled
    return call


@pytest.mark.parametrize(("keep", "facts", "rule"), KEEPS)
def test_a_rule_keeps_all_calls_that_satisfy_it_at_probability_one(keep, facts, rule):
    """Captured by their rate or not: all of them lie in one stratum. Only where the rule alone keeps one, it is why."""
    sampler = Sampler(Sampling(0.02, keep=keep))
    by_rule, by_rate = ended(sampler, LATE, **facts), ended(sampler, EARLY, **facts)
    assert (by_rule.sampled, by_rule.probability, by_rule.stratum) == (True, 1.0, f"keep:{rule}")
    assert (by_rate.sampled, by_rate.probability, by_rate.stratum) == (True, 1.0, f"keep:{rule}")
    assert (by_rule.reason, by_rate.reason) == (f"keep:{rule}", "rate")
    assert (by_rule.rate_probability, by_rate.rate_probability) == (None, pytest.approx(0.02))


@pytest.mark.parametrize(("keep", "facts"), OTHERS)
def test_what_satisfies_no_rule_stays_as_its_rate_decided(keep, facts):
    """Neither kept nor given another probability."""
    sampler = Sampler(Sampling(0.02, keep=keep))
    assert not ended(sampler, LATE, **facts).sampled
    early = ended(sampler, EARLY, **facts)
    assert (early.probability, early.stratum, early.reason) == (pytest.approx(0.02), "pro", "rate")


def test_without_rules_nothing_is_captured_for_its_end():
    """A call that is not sampled costs no copies."""
    assert not Sampler(0.02).tail
    assert not decided(Sampler(0.02), LATE).capturing


def test_in_a_storm_of_errors_a_share_is_kept_with_its_probability():
    """200 errors a second against a bound of 600 a minute: 5 % from the next interval on, nested; then all again."""
    sampler = Sampler(Sampling(0.0, keep=Keep(errors=True, per_minute=600)))
    for n in range(1000):
        assert ended(sampler, f"storm-{n}", error=True).probability == 1.0
    sampler.adapt(ADAPT_S)
    calls = [ended(sampler, f"later-{n}", error=True) for n in range(1000)]
    kept = [c for c in calls if c.sampled]
    assert {round(c.probability, 6) for c in kept} == {0.05}
    assert [c.sampled for c in calls] == [position(c.trace_id) < 0.05 * SPAN for c in calls]
    for _ in range(60):
        sampler.adapt(ADAPT_S)
    assert ended(sampler, LATE, error=True).probability == 1.0


def test_in_a_storm_the_probability_is_the_larger_of_rule_and_rate():
    """A call that its rate captured at 50 % is not counted as one of 5 %."""
    sampler = Sampler(Sampling(0.5, keep=Keep(errors=True, per_minute=600)))
    for n in range(1000):
        ended(sampler, f"storm-{n}", error=True)
    sampler.adapt(ADAPT_S)
    assert ended(sampler, EARLY, error=True).probability == pytest.approx(0.5)
    assert not ended(sampler, LATE, error=True).sampled


def drive(sampler, per_second, seconds=120):
    """That many calls a second of each segment, with the shipping thread's beat; those captured in the last minute."""
    captured = dict.fromkeys(per_second, 0)
    for second in range(seconds):
        for segment, count in per_second.items():
            for n in range(count if count >= 1 else second % round(1 / count) == 0):
                call = decided(sampler, f"{segment}-{second}-{n}", segment=segment)
                captured[segment] += call.sampled and second >= seconds - 60
        sampler.adapt(1.0)
    return captured


def test_a_floor_raises_the_rate_of_small_strata_only():
    """At 1 % and a floor of 6 a minute: 60 calls a second need none, 1 a second needs 10 %, one in 20 s needs all."""
    sampler = Sampler(Sampling(0.01, floor_per_minute=6))
    captured = drive(sampler, {"free": 60, "pro": 1, "internal": 0.05})
    assert probability(sampler, segment="free") == pytest.approx(0.01, abs=1e-6)
    assert probability(sampler, segment="pro") == pytest.approx(0.1, rel=0.05)
    assert probability(sampler, segment="internal") == 1.0
    assert captured["internal"] == 3
    assert 1 <= captured["pro"] <= 14


def test_a_floor_outlives_a_new_release_and_new_rates():
    """It belongs to the traffic, not to the release that serves it."""
    sampler = Sampler(Sampling(0.01, floor_per_minute=6))
    drive(sampler, {"pro": 1})
    sampler.override([("other", "", "", 0.5, "rate")])
    assert probability(sampler, segment="pro", release=Release("shop", prompt="v9")) == pytest.approx(0.1, rel=0.05)


def test_a_floor_lifts_neither_a_rate_of_zero_nor_an_arm_of_a_rollout():
    """Zero means none; and arms must stay at the rates that make them equal."""
    sampler = Sampler(Sampling(0.01, rates=[Rate(0.0, feature="health")], floor_per_minute=600))
    sampler.override([("", "baseline", "staging", 0.05, "rollout:refund")])
    staging = Release("shop", environment="staging")
    for _ in range(30):
        decided(sampler, LATE, feature="health")
        decided(sampler, LATE, release=staging)
        decided(sampler, LATE)
        sampler.adapt(1.0)
    assert not decided(sampler, EARLY, feature="health").sampled
    assert probability(sampler, release=staging) == pytest.approx(0.05)
    assert probability(sampler) == 1.0


def test_the_control_planes_rates_come_first_and_can_be_taken_back():
    """The canary is judged fully, with a baseline of equal size; then the application's own rates again."""
    sampler = Sampler(Sampling(0.02))
    assert probability(sampler) == pytest.approx(0.02)
    sampler.override([("", "canary", "", 1.0, "rollout:r"), ("", "baseline", "production", 0.0526, "rollout:r")])
    arm = decided(sampler, LATE, release=CANARY)
    assert (arm.probability, arm.reason) == (1.0, "rollout:r")
    assert probability(sampler) == pytest.approx(0.0526)
    sampler.override([])
    assert probability(sampler) == pytest.approx(0.02)


@pytest.mark.parametrize("field", ["unit", "session_id", "user_id"])
def test_the_arms_of_a_rollout_are_captured_by_unit_and_its_shadows_by_trace(field):
    """One score of a unit counts: of both arms it must be the first, not of one the first and of the other any."""
    sampler = Sampler(Sampling(0.02))
    sampler.override([("", "canary", "", 1.0, "rollout:r"), ("", "baseline", "", 0.05, "rollout:r")])
    inside, outside = {field: EARLY}, {field: LATE}
    assert all(decided(sampler, f"turn-{n}", **inside).sampled for n in range(50))
    assert not any(decided(sampler, f"turn-{n}", **outside).sampled for n in range(50))
    assert decided(sampler, LATE, **{field: 7}).sampled == (position("7") < 0.05 * SPAN)
    sampler.override([("", "baseline", "", 0.05, "rollout:r:shadow")])
    assert decided(sampler, EARLY, **outside).sampled
    assert not decided(sampler, LATE, **inside).sampled


def test_what_a_rule_keeps_of_an_arm_lies_around_what_its_rate_captured():
    """Also in a storm of errors: the larger of two probabilities holds only where samples are nested."""
    sampler = Sampler(Sampling(0.02, keep=Keep(errors=True, per_minute=60)))
    sampler.override([("", "baseline", "", 0.05, "rollout:r")])
    for n in range(600):
        ended(sampler, f"t-{n}", unit=f"u-{n}", error=True)
    sampler.adapt(ADAPT_S)
    share = ended(sampler, "t", unit=EARLY, error=True).probability
    assert 0.0 < share < 1.0
    for n in range(2_000):
        call = ended(sampler, f"trace-{n}", unit=f"user-{n}", error=True)
        assert call.sampled == (position(f"user-{n}") < max(share, 0.05) * SPAN)


def test_an_error_in_an_arm_of_a_rollout_is_still_of_the_rollout():
    """What the arm's rate captured enters the test, error or not; what only the rule kept says so, and must not."""
    sampler = Sampler(Sampling(0.02, keep=Keep(errors=True)))
    sampler.override([("", "baseline", "", 0.05, "rollout:r")])
    by_rate, by_rule = ended(sampler, EARLY, error=True), ended(sampler, LATE, error=True)
    assert (by_rate.reason, by_rate.probability) == ("rollout:r", 1.0)
    assert (by_rule.reason, by_rule.probability) == ("keep:error", 1.0)


def test_a_release_that_took_anothers_address_gets_its_own_rate():
    """Cells are found by identity: while one is remembered, its release lives, so no other can have its id."""
    sampler = Sampler(Sampling(0.01, rates=[Rate(0.5, variant="canary")]))
    for n in range(5000):
        variant = "canary" if n % 2 else "baseline"
        found = probability(sampler, release=Release("shop", variant=variant, prompt=str(n)))
        assert found == pytest.approx(0.5 if n % 2 else 0.01)


def test_memory_is_bounded_whatever_the_application_names():
    """A release made anew for each call, and segments without end."""
    sampler = Sampler(Sampling(0.01, floor_per_minute=1))
    for n, segment in product(range(3), range(MAX_STRATA)):
        decided(sampler, "t", release=Release("shop", prompt=str(n)), segment=f"{n}-{segment}")
    assert len(sampler._cells) <= MAX_CELLS
    assert len(sampler._strata) <= MAX_STRATA + 1


def horvitz_thompson(sampler, calls):
    """Estimated number of calls, and of errors among them, in strata of very different rates."""
    total = errors = 0.0
    for trace_id, segment, failed in calls:
        call = call_of(trace_id, segment=segment)
        sampler.decide(call)
        if sampler.keep(call, failed, None):
            total += 1.0 / call.probability
            errors += failed / call.probability
    return total, errors


def test_weights_give_back_what_was_not_captured():
    """Sums of 1 / probability: calls within 3 %, and errors, which are half of what is kept, exactly."""
    calls = [(f"x-{n}", "pro" if n % 10 == 0 else "free", n % 25 == 0) for n in range(100_000)]
    sampler = Sampler(Sampling(0.03, rates=[Rate(0.2, segment="pro")], keep=Keep(errors=True, per_minute=1e9)))
    total, errors = horvitz_thompson(sampler, calls)
    assert total == pytest.approx(100_000, rel=0.03)
    assert errors == 4000
