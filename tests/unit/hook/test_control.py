"""What a hook does with the control document: who is refused, who gets which arm, what is captured, what calls cost."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from stopwatch import assert_quick

from evalpipe.errors import BudgetExceeded, KillSwitchEngaged
from evalpipe.hook.assignment import assign
from evalpipe.hook.control import Control
from evalpipe.hook.document import DocumentError, parse, parse_prices
from evalpipe.record import Release

SWITCH = {"name": "stop-agent", "feature": "agent", "engaged": True, "reason": "cost x40", "incident": "https://inc/1"}
BUDGET = {
    "name": "user-day",
    "per": "user",
    "limit": 100,
    "unit": "tokens",
    "window": "day",
    "lease": 0.5,
    "fail": "closed",
}
"""Fails closed because here is no Redis, and where that cannot be reached an open one lets calls pass."""
ROLLOUT = {"name": "refund-prompt", "weights": {"baseline": 80, "canary": 20}, "sample": 0.5}
PRICES = json.dumps({"version": "1", "models": {"gpt-6-luna": [0.2, 0.8, 0.1], "o9": [1, 2]}}).encode()


def a_document(revision=1, published_at=1.0, **parts):
    """The text of a control document."""
    return json.dumps({"schema": 1, "revision": revision, "published_at": published_at, **parts}).encode()


def a_control(document=None, fail="open", prices=None, known=None):
    """A control that read ``document``, without a thread."""
    options = SimpleNamespace(release=Release("bot"), redis_url="", fail=fail, prices=prices or {})
    control = Control(options, known)
    if document is not None:
        assert control._read(document, PRICES)
    return control


def a_call(feature="agent", segment="", variant="baseline", environment="production", **fields):
    """As much of a call as the control looks at."""
    fields = {
        "user_id": "ann",
        "model": "",
        "output": "",
        "cost_usd": None,
        "reserved": None,
        "nested": False,
        **fields,
    }
    fields = {"input_tokens": None, "output_tokens": None, "cached_tokens": None, **fields}
    release = Release("bot", variant=variant, environment=environment)
    return SimpleNamespace(feature=feature, segment=segment, release=release, **fields)


def grow_old(control, seconds):
    """As if the control plane had not been heard of for so long."""
    control.heard_at = time.monotonic() - seconds


def test_an_engaged_switch_refuses_its_calls_with_reason_and_incident():
    """What is raised says what a person on call needs; other features pass."""
    control = a_control(a_document(switches=[SWITCH]))
    assert control.active
    refused = control.refuse(a_call())
    assert isinstance(refused, KillSwitchEngaged)
    assert (refused.name, refused.feature) == ("stop-agent", "agent")
    assert (refused.reason, refused.incident) == ("cost x40", "https://inc/1")
    assert control.refuse(a_call("chat")) is None


@pytest.mark.parametrize("field", ["feature", "segment", "variant", "environment"])
def test_a_switch_matches_on_feature_segment_variant_and_environment(field):
    """An empty text matches all; anything else must be equal."""
    control = a_control(a_document(switches=[{"name": "stop", "engaged": True, field: "x"}]))
    assert control.refuse(a_call(**{field: "x"})) is not None
    assert control.refuse(a_call(**{field: "y"})) is None
    everything = a_control(a_document(switches=[{"name": "stop", "engaged": True}]))
    assert everything.refuse(a_call(**{field: "y"})) is not None


def test_nothing_can_refuse_where_no_switch_is_engaged_and_no_budget_set():
    """Then calls need not even ask."""
    assert not a_control().active
    assert not a_control(a_document()).active
    assert not a_control(a_document(switches=[{**SWITCH, "engaged": False}], rollouts=[ROLLOUT])).active
    assert a_control(a_document(switches=[{**SWITCH, "engaged": False, "fail": "closed"}])).active
    assert a_control(a_document(budgets=[BUDGET])).active


def test_before_the_first_document_the_hooks_own_fail_mode_holds():
    """Open passes, and costs nothing; closed refuses until the control plane is heard of."""
    assert a_control().refuse(a_call()) is None
    control = a_control(fail="closed")
    assert control.active
    assert isinstance(control.refuse(a_call()), KillSwitchEngaged)
    assert control._read(a_document(), None)
    assert not control.active
    assert control.refuse(a_call()) is None


def test_beyond_its_maximum_staleness_an_open_switch_lets_calls_pass_and_a_closed_one_refuses():
    """Engaged or not; until then what is known holds."""
    for engaged in (True, False):
        for fail, refuses in (("open", False), ("closed", True)):
            switch = {**SWITCH, "engaged": engaged, "fail": fail, "max_staleness_s": 60}
            control = a_control(a_document(switches=[switch]))
            grow_old(control, 59)
            assert (control.refuse(a_call()) is not None) == engaged
            grow_old(control, 61)
            assert (control.refuse(a_call()) is not None) == refuses
            assert control.refuse(a_call("chat")) is None


def test_a_budget_that_is_used_up_says_what_was_allowed_and_until_when():
    """Reserved before the call, settled after it."""
    budget = {**BUDGET, "reason": "fair use", "incident": "https://inc/2"}
    control = a_control(a_document(budgets=[budget]))
    call = a_call(input_tokens=90, output_tokens=30)
    assert control.refuse(call) is None
    assert call.reserved
    control.settle(call)
    assert call.reserved is None
    refused = control.refuse(a_call())
    assert isinstance(refused, BudgetExceeded)
    assert (refused.name, refused.feature, refused.reason) == ("user-day", "agent", "fair use")
    assert (refused.limit, refused.unit, refused.window) == (100, "tokens", "day")
    assert refused.resets_at > datetime.now(UTC)
    assert refused.resets_at.timestamp() % 86_400 == 0
    assert control.refuse(a_call(user_id="bob")) is None


def test_a_budget_that_is_not_used_up_does_not_say_that_it_is():
    """Calls that are too far ahead, or refused because nothing was heard, may try again in a second."""
    control = a_control(a_document(budgets=[{**BUDGET, "incident": "https://inc/2"}]))
    found = []
    for reachable, age_s in ((True, 0), (False, 0), (False, 301)):
        control._reachable = reachable
        grow_old(control, age_s)
        refused = next(filter(None, (control.refuse(a_call()) for _ in range(60))))
        assert isinstance(refused, BudgetExceeded)
        assert "used up" not in str(refused)
        assert refused.reason in str(refused)
        assert str(refused).endswith("(https://inc/2)")
        assert 0 < (refused.resets_at - datetime.now(UTC)).total_seconds() <= 1
        found.append(refused.reason)
    assert "ahead" in found[0]
    assert "cannot be reached" in found[1]
    assert "has not been heard of for 301 s, and this budget fails closed" in found[2]


@pytest.mark.parametrize("unit", ["tokens", "usd"])
def test_calls_that_answer_and_tell_no_usage_use_a_budget_up(unit):
    """Streams without usage, and those that were left: by the length of what they answered, at the model's price."""
    limit = 100 if unit == "tokens" else 80e-6  # of a model whose tokens cost 0.8 millionths
    control = a_control(a_document(budgets=[{**BUDGET, "unit": unit, "limit": limit, "lease": 0.01}]))
    made = 0
    while (refused := control.refuse(call := a_call(model="gpt-6-luna"))) is None:
        call.output = "x" * 48
        control.settle(call)
        made += 1
        assert made < 20
    assert isinstance(refused, BudgetExceeded)


def test_a_call_that_failed_before_it_answered_spends_nothing_and_one_of_an_unknown_price_what_is_usual():
    """And whatever is known is not guessed."""
    control = a_control(a_document(budgets=[{**BUDGET, "per": "service", "unit": "usd", "limit": 1.0}]))

    def used(**fields):
        call = a_call(**fields)
        assert control.refuse(call) is None
        ((account, estimate),) = call.reserved
        before = account.used - estimate
        control.settle(call)
        return account.used - before

    assert used(error="overloaded") == 0
    assert used(cost_usd=0.05, output="x" * 4000) == 50_000
    assert used(output="x" * 4000, model="unheard-of") == 50_000
    assert used(output={"no": "text"}) == 0
    assert used(output="x" * 4000, nested=True) == 0, "the call inside of it has spent it"
    assert used(output="x" * 4000, input_tokens=10, model="unheard-of") == 0


def test_a_call_that_a_switch_refuses_reserves_nothing():
    """Switches come first."""
    control = a_control(a_document(switches=[SWITCH], budgets=[BUDGET]))
    call = a_call()
    assert isinstance(control.refuse(call), KillSwitchEngaged)
    assert call.reserved is None


def test_whatever_the_application_sets_as_usage_is_settled_without_an_exception():
    """Texts, negative numbers, infinities, objects."""
    control = a_control(a_document(budgets=[BUDGET, {**BUDGET, "name": "usd", "unit": "usd"}]))
    for odd in ("12", -1, float("inf"), float("nan"), object(), [1]):
        call = a_call(input_tokens=odd, output_tokens=odd, cached_tokens=odd, cost_usd=odd, model=odd)
        assert control.refuse(call) is None
        control.settle(call)
    usage = {"input_tokens": "a", "output_tokens": 1, "cached_tokens": "b"}
    assert control.cost("o9", **usage) is None
    control.settle(a_call(model="o9", **usage))


def test_a_budget_in_usd_counts_what_the_price_list_says_where_the_application_gives_no_cost():
    """A million input tokens of this model are 20 cents."""
    control = a_control(a_document(budgets=[{**BUDGET, "unit": "usd", "limit": 0.2}]))
    control.settle(a_call(model="gpt-6-luna", input_tokens=1_000_000))
    assert isinstance(control.refuse(a_call()), BudgetExceeded)
    control.settle(a_call(model="gpt-6-luna", input_tokens=1_000_000, cost_usd=0.0, user_id="bob"))
    assert control.refuse(a_call(user_id="bob")) is None


@pytest.mark.parametrize(
    ("model", "tokens", "usd"),
    [
        ("gpt-6-luna", (1_000_000, 1_000_000, None), 1.0),
        ("gpt-6-luna", (1_000_000, None, 500_000), 0.15),
        ("gpt-6-luna", (1_000_000, None, 5_000_000), 0.1),
        ("openai/gpt-6-luna", (None, 1_000_000, None), 0.8),
        ("gpt-6-luna-2026-03-01", (1_000_000, None, None), 0.2),
        ("gpt-6-luna-20260301", (1_000_000, None, None), 0.2),
        ("gpt-6-luna-latest", (1_000_000, None, None), 0.2),
        ("o9", (1_000_000, 0, 1_000_000), 1.0),
        ("gpt-6-luna-mini", (1_000_000, None, None), None),
        ("gpt-6-luna-2", (1_000_000, None, None), None),
        ("gpt-6-luna", (None, None, None), None),
        ("", (1, 1, None), None),
    ],
)
def test_a_call_costs_what_the_prices_of_its_model_say(model, tokens, usd):
    """By its name, without provider, date or ``latest``; of another model nothing is guessed."""
    assert a_control(a_document()).cost(model, *tokens) == (None if usd is None else pytest.approx(usd))


def test_prices_that_the_application_gave_win():
    """Before and after the control plane's arrive."""
    control = a_control(prices={"gpt-6-luna": (10.0, 20.0)})
    assert control.cost("gpt-6-luna", 1_000_000, 0, None) == 10.0
    assert control.cost("o9", 1_000_000, 0, None) is None
    assert control._read(a_document(), PRICES)
    assert control.cost("gpt-6-luna", 1_000_000, 0, 1_000_000) == 10.0
    assert control.cost("o9", 1_000_000, 0, None) == 1.0


def test_a_unit_gets_the_arm_of_the_weights_and_the_baseline_where_there_are_none():
    """No document, no such rollout, no unit, another environment: the baseline."""
    assert a_control().variant("refund-prompt", "user-1", "production") == "baseline"
    control = a_control(a_document(rollouts=[ROLLOUT]))
    arms = [control.variant("refund-prompt", f"user-{n}", "production") for n in range(2000)]
    assert 300 < arms.count("canary") < 500
    assert arms == [
        assign("refund-prompt", f"user-{n}", [("canary", 20), ("baseline", 80)]) for n in range(2000)
    ]  # whatever the order in the document
    assert control.variant("refund-prompt", "", "production") == "baseline"
    assert control.variant("other", "user-1", "production") == "baseline"
    rolled_back = a_control(a_document(rollouts=[{**ROLLOUT, "weights": {"canary": 0, "baseline": 100}}]))
    assert {rolled_back.variant("refund-prompt", f"user-{n}", "production") for n in range(200)} == {"baseline"}


def test_an_environments_own_rollout_comes_before_the_one_for_all():
    """Weights and shadow are of the environment that asks."""
    own = {**ROLLOUT, "environment": "staging", "weights": {"canary": 100, "baseline": 0}}
    shadow = {"rate": 0.1, "per_minute": 60}
    control = a_control(a_document(rollouts=[{**ROLLOUT, "shadow": shadow}, own]))
    assert {control.variant("refund-prompt", f"user-{n}", "staging") for n in range(50)} == {"canary"}
    assert len({control.variant("refund-prompt", f"user-{n}", "production") for n in range(50)}) == 2
    assert control.shadow("refund-prompt", "production") == (0.1, 60)
    assert control.shadow("refund-prompt", "staging") is None
    assert control.shadow("other", "production") is None


def test_arms_are_captured_at_rates_that_make_them_of_one_size():
    """The rollouts' arms come first, then the rates that were set; each with its reason."""
    rate = {"feature": "chat", "variant": "", "environment": "", "rate": 0.1}
    rollout = {**ROLLOUT, "features": ["agent", "chat"], "environment": "production"}
    heard = []
    control = a_control()
    control.on_rates(heard.append)
    assert heard == []
    control._read(a_document(rollouts=[rollout], rates=[rate]), None)
    assert heard == [
        [
            ("agent", "canary", "production", 0.5, "rollout:refund-prompt"),
            ("agent", "baseline", "production", 0.125, "rollout:refund-prompt"),
            ("chat", "canary", "production", 0.5, "rollout:refund-prompt"),
            ("chat", "baseline", "production", 0.125, "rollout:refund-prompt"),
            ("chat", "", "", 0.1, "rate"),
        ]
    ]
    control.on_rates(heard.append)
    assert len(heard) == 2


@pytest.mark.parametrize(
    ("weights", "sample", "rates"),
    [
        ({"canary": 0, "baseline": 100}, 1.0, []),
        ({"canary": 100, "baseline": 0}, 1.0, []),
        ({"canary": 5, "baseline": 95}, 1.0, [("canary", 1.0), ("baseline", 5 / 95)]),
        ({"canary": 80, "baseline": 20}, 1.0, [("canary", 1.0), ("baseline", 1.0)]),
    ],
)
def test_a_rollout_with_one_arm_sets_no_rates_and_a_large_canary_leaves_the_baseline_whole(weights, sample, rates):
    """Latched rollback is weight 0; nothing is compared then."""
    document = parse(a_document(rollouts=[{**ROLLOUT, "weights": weights, "sample": sample}]))
    assert [(variant, rate) for _, variant, _, rate, _ in document.rates] == rates


def test_of_two_rates_that_fit_the_one_that_says_more_comes_first():
    """Whatever their order in the document; and arms of rollouts before all of them."""
    everywhere, of_chat, in_staging = {"rate": 0.1}, {"feature": "chat", "rate": 0.2}, {"environment": "staging"}
    rates = [everywhere, of_chat, {**of_chat, **in_staging, "rate": 0.3}]
    own = {**ROLLOUT, **in_staging, "sample": 0.9, "weights": {"canary": 50, "baseline": 50}}
    found = parse(a_document(rates=rates, rollouts=[ROLLOUT, own])).rates
    assert [rate for _, _, _, rate, _ in found] == [0.9, 0.9, 0.5, 0.125, 0.3, 0.2, 0.1]


def test_a_listener_that_raises_does_not_keep_the_document_from_coming_into_force(caplog):
    """It is said, and the switch is engaged."""
    control = a_control()
    control.on_rates(lambda _: 1 / 0)
    assert control._read(a_document(switches=[SWITCH]), None)
    assert control.active
    assert "sampling rates" in caplog.text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "must be an object"),
        (b"{}", "document.schema"),
        (a_document().replace(b'"schema": 1', b'"schema": 2'), "newer than 1"),
        (a_document(revision="1"), "document.revision"),
        (a_document(switches={}), "document.switches must be a list"),
        (a_document(switches=[3]), "switches[0] must be an object"),
        (a_document(switches=[{**SWITCH, "name": ""}]), "switches[0].name"),
        (a_document(switches=[{**SWITCH, "engaged": 1}]), "switches[0].engaged"),
        (a_document(switches=[{**SWITCH, "feature": None}]), "switches[0].feature"),
        (a_document(switches=[{**SWITCH, "fail": "shut"}]), "switches[0].fail must be one of open, closed, not 'shut'"),
        (a_document(switches=[{**SWITCH, "max_staleness_s": -1}]), "max_staleness_s"),
    ],
)
def test_a_document_that_cannot_be_read_is_ignored_whole_and_says_where(text, told, caplog):
    """The last good one stays in force."""
    with pytest.raises(DocumentError) as caught:
        parse(text)
    assert told in str(caught.value)
    control = a_control(a_document(switches=[SWITCH]))
    assert not control._read(text, None)
    assert control.refuse(a_call()) is not None
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"budgets": [{**BUDGET, "limit": float("nan")}]}, "budgets[0].limit"),
        ({"budgets": [{**BUDGET, "unit": "eur"}]}, "budgets[0].unit"),
        ({"budgets": [{**BUDGET, "window": "week"}]}, "budgets[0].window"),
        ({"budgets": [{**BUDGET, "per": "team"}]}, "budgets[0].per"),
        ({"budgets": [{**BUDGET, "lease": 2}]}, "budgets[0].lease"),
        ({"rollouts": [{**ROLLOUT, "weights": []}]}, "rollouts[0].weights"),
        ({"rollouts": [{**ROLLOUT, "weights": {"canary": 0.5}}]}, "rollouts[0].weights"),
        ({"rollouts": [{**ROLLOUT, "weights": {"canary": 0}}]}, "rollouts[0].weights"),
        ({"rollouts": [{**ROLLOUT, "features": "chat"}]}, "rollouts[0].features"),
        ({"rollouts": [{**ROLLOUT, "shadow": {"rate": 2, "per_minute": 1}}]}, "rollouts[0].shadow.rate"),
        ({"rates": [{"rate": 1.5}]}, "rates[0].rate"),
        ({"rates": {}}, "rates must be a list"),
    ],
)
def test_an_entry_that_cannot_be_read_is_left_out_and_holds_no_switch_back(parts, told, caplog):
    """Nor the entries beside it; it is said once, for as long as it is the same."""
    good = {
        "budgets": [{**BUDGET, "name": "good"}],
        "rollouts": [{**ROLLOUT, "name": "good"}],
        "rates": [{"rate": 0.3}],
    }
    parts = {name: [*given, *good[name]] if isinstance(given, list) else given for name, given in parts.items()}
    control = a_control()
    for revision in (1, 2):
        assert control._read(a_document(revision, switches=[SWITCH], **{**good, **parts}), PRICES)
    assert isinstance(control.refuse(a_call()), KillSwitchEngaged)
    assert [budget.name for budget in control.document.budgets] == ["good"]
    assert list(control.document.rollouts) == ["good"]
    assert [rate for *_, rate, reason in control.document.rates if reason == "rate"] == [0.3] * (
        parts.get("rates") != {}
    )
    (logged,) = caplog.messages
    assert told in logged
    assert "left out of control document 1" in logged


def test_fields_that_a_later_release_adds_do_no_harm():
    """Within a schema the document may grow."""
    document = parse(a_document(switches=[{**SWITCH, "colour": "red"}], more=[1]))
    assert [switch.name for switch in document.switches] == ["stop-agent"]


@pytest.mark.parametrize(
    "text", [b"[]", b'{"models":[]}', b'{"models":{"x":[1]}}', b'{"models":{"x":["1",2]}}', b'{"models":{"x":[-1,2]}}']
)
def test_prices_that_are_none_are_left_out_and_those_before_stay(text, caplog):
    """The document that they came with is in force all the same."""
    with pytest.raises(DocumentError, match=r"prices"):
        parse_prices(text)
    control = a_control(a_document())
    assert control._read(a_document(2, switches=[SWITCH]), text)
    assert control.refuse(a_call()) is not None
    assert control.cost("o9", 1_000_000, 0, None) == 1.0
    assert "prices" in caplog.text


def test_a_document_older_in_revision_and_time_releases_nothing(caplog):
    """A Redis that was restored from a copy; but a control plane that begins anew is followed."""
    control = a_control(a_document(revision=7, published_at=100.0, switches=[SWITCH]))
    assert not control._read(a_document(revision=6, published_at=90.0), None)
    assert control.active
    assert "6 is ignored, 7 is in force" in caplog.text
    assert control._read(a_document(revision=1, published_at=110.0), None)
    assert not control.active


def test_what_a_parent_knew_holds_in_the_child_and_its_leases_do_not():
    """A forked process obeys before it has heard anything itself."""
    parent = a_control(a_document(switches=[SWITCH], budgets=[BUDGET], rollouts=[ROLLOUT]))
    parent.settle(a_call("chat", input_tokens=500))
    child = a_control(known=parent)
    heard = []
    child.on_rates(heard.append)
    assert heard
    assert child.active
    assert isinstance(child.refuse(a_call()), KillSwitchEngaged)
    assert isinstance(parent.refuse(a_call("chat")), BudgetExceeded)
    assert child.refuse(a_call("chat")) is None
    assert child.cost("o9", 1_000_000, 0, None) == 1.0


def test_without_redis_there_is_no_thread_and_stopping_is_no_wait():
    """A hook that is off."""
    control = a_control()
    control.start()
    start = time.monotonic()
    control.stop(5.0)
    assert_quick(time.monotonic() - start, 0.5)


def test_shadows_are_all_captured_at_the_rate_they_run_at():
    """So the rate is their inclusion probability, beside arms of equal size where both have traffic."""
    shadow = {"rate": 0.1, "per_minute": 60}
    alone = {**ROLLOUT, "weights": {"canary": 0, "baseline": 100}, "shadow": shadow}
    (rollout,) = parse(a_document(rollouts=[alone])).rollouts[ROLLOUT["name"]]
    rate = rollout.environment, 0.1, f"rollout:{rollout.name}:shadow"
    assert rollout.rates() == [("", "baseline", *rate), ("", "shadow", *rate)]
    (both,) = parse(a_document(rollouts=[{**ROLLOUT, "shadow": shadow}])).rollouts[ROLLOUT["name"]]
    assert [arm for _, arm, *_ in both.rates()] == ["canary", "baseline", "shadow"]
