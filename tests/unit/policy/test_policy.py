"""What people write of a rollout becomes a plan: defaults, alpha, files."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError, ScorecardError
from evalpipe.rollout.from_policy import plan_of, split
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.scorecard.default_gates import WITHOUT_SCORECARD, policy_of
from evalpipe.scorecard.load import load_scorecard, read_scorecards
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.policy import load_policy, load_rollouts
from evalpipe.scorecard.rollout import Gate, RolloutPolicy
from evalpipe.scorers.base import heuristics
from evalpipe.stats.moments import Calibration

SCORECARDS = Path(__file__).parents[3] / "scorecards"
BOOLEAN = {"kind": "boolean", "rubric": "Is it good?"}


def plan(steps=True, **policy):
    """The plan of a policy."""
    return plan_of(RolloutPolicy.model_validate(policy), rollout_id="r", service="s", steps=steps)


def card(rollout=None, **judges):
    """A scorecard with judged criteria and two heuristics."""
    criteria = [{"name": name, **spec} for name, spec in judges.items()]
    criteria += [
        {"name": "answers", "heuristic": "refusal"},
        {"name": "short", "heuristic": "length", "params": {"max": 9}},
    ]
    return Scorecard.model_validate({"name": "desk", "criteria": criteria, "rollout": rollout or {}})


def test_without_gates_the_users_rules_hold():
    """Quality -5 %, p99 +20 %, confirmed safety, cost +15 % roll back; refusals, format and the ratio hold."""
    gates = {gate.name: gate for gate in plan().gates}
    told = {name: (g.kind, g.direction, g.margin) for name, g in gates.items() if g.role == "guardrail"}
    assert told == {
        "quality": ("quality", "drop", 0.05),
        "latency_ms": ("latency", "rise", 0.2),
        "safety": ("safety", "rise", 0.05),
        "cost_usd": ("cost", "rise", 0.15),
    }
    signals = {name for name, gate in gates.items() if gate.role == "signal"}
    assert signals == {"refusal drop", "refusal rise", "format drop", "format rise", "ratio"}
    assert {gate.severity for gate in gates.values() if gate.kind == "safety"} == {"SEV1"}


def test_the_default_ramp_asks_for_proof_before_everybody_gets_the_canary():
    """1, 5, 20, 50 and then 100 %: the small steps go on where no harm is seen."""
    steps = plan().steps
    assert [(step.percent, step.enough) for step in steps] == [
        (1, "no_harm"), (5, "no_harm"), (20, "no_harm"), (50, "non_inferior")
    ]  # fmt: skip
    assert plan(steps=False).steps == ()
    own = plan(ramp=["10%", {"percent": 60, "bake": "2h", "enough": "no_harm"}]).steps
    assert [(step.percent, step.bake, step.enough) for step in own] == [
        (10, timedelta(minutes=30), "no_harm"), (60, timedelta(hours=2), "no_harm")
    ]  # fmt: skip


def test_traffic_is_moved_only_where_that_is_written():
    """A rollout that others steer has no steps, also after a trip through the database."""
    assert not RolloutPolicy().steps
    written = RolloutPolicy.model_validate({"ramp": [1, 5, 20, 50, 100]})
    kept = RolloutPolicy.model_validate_json(json.dumps(written.model_dump(mode="json", exclude_defaults=True)))
    assert written.steps
    assert kept.steps
    assert RolloutPolicy(weights="prompt").steps


def test_guardrails_share_the_total_alpha():
    """By their shares, after what some have of their own; signals and dry runs take none of it."""
    gates = [
        Gate(criterion="a"), Gate(criterion="b", share=2), Gate(criterion="c", alpha=0.004),
        Gate(criterion="d", role="signal"), Gate(criterion="e", dry_run=True),
    ]  # fmt: skip
    assert split(gates, 0.01) == pytest.approx([0.002, 0.004, 0.004, 0.0025, 0.0025])


@given(
    st.lists(
        st.tuples(st.sampled_from(["guardrail", "objective", "signal"]), st.floats(0.1, 10), st.booleans()),
        min_size=1, max_size=9,
    ),
    st.floats(0.001, 0.1),
)  # fmt: skip
def test_all_guardrails_together_never_have_more_than_the_total(gates, total):
    """The union bound over all gates of the plan that can roll back, both directions included."""
    written = [
        {"criterion": f"c{place}", "role": role, "share": share, "direction": "both" if both else "drop"}
        for place, (role, share, both) in enumerate(gates)
    ]
    made = plan(gates=written, alpha=total).gates
    assert sum(gate.alpha for gate in made if gate.role == "guardrail") <= total * (1 + 1e-9)


def test_both_directions_are_two_gates_with_half_the_alpha():
    """A name each, so that a reason says which."""
    made = plan(gates=[{"criterion": "refusal", "kind": "rate", "direction": "both", "margin": "0.02 points"}]).gates
    assert [(g.name, g.direction, g.alpha, g.margin, g.relative) for g in made] == [
        ("refusal drop", "drop", 0.005, 0.02, False), ("refusal rise", "rise", 0.005, 0.02, False)
    ]  # fmt: skip


def test_a_plan_survives_its_trip_through_the_database():
    """With everything that can be written."""
    made = plan(
        gates=[
            {"criterion": "q", "control": "short", "max_weights": [1, 8], "no_data": "rollback", "catastrophic": 3},
            {"criterion": "s", "kind": "safety", "confirm": "t", "flag_at": 0.2, "false_flags": 0.001,
             "false_confirms": 0.01, "expected_canary": 900},
            {"kind": "ratio", "role": "signal", "split": 0.5},
        ],
        shadow={"min_duration": "1d", "rate": "20%", "per_minute": 30}, segments={"by": "language"}, weights="w",
        sample="50%", max_duration="3d", verify_within="1m",
    )  # fmt: skip
    assert RolloutPlan.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert (made.shadow.rate, made.shadow.per_minute, made.sample) == (0.2, 30, 0.5)


def test_what_is_known_of_the_baseline_goes_into_the_gates():
    """By criterion."""
    known = {"quality": Calibration(0.9, 0.04, 500)}
    made = plan_of(RolloutPolicy(), rollout_id="r", service="s", calibrations=known)
    assert {gate.name: gate.calibration for gate in made.gates}["quality"] == known["quality"]


def test_a_margin_that_is_the_default_of_its_kind_does_not_change_the_version():
    """5 % of a score, 15 % of cost; another one does."""

    def version(**gate):
        return card({"gates": [gate]}, tone={"judge": BOOLEAN}).version

    assert version(criterion="tone") == version(criterion="tone", margin="5%")
    assert version(criterion="cost_usd") == version(criterion="cost_usd", margin="15%")
    assert version(criterion="cost_usd") != version(criterion="cost_usd", margin="5%")
    written = card({"gates": [{"criterion": "cost_usd", "margin": "5%"}]}, tone={"judge": BOOLEAN})
    assert Scorecard.from_body(json.loads(json.dumps(written.body()))).rollout == written.rollout


def test_the_default_gates_of_a_scorecard_follow_its_criteria():
    """The heaviest judged criterion is quality, priority 0 is safety, and refusals are a signal."""
    found = policy_of(
        card(
            tone={"judge": BOOLEAN},
            right={"judge": BOOLEAN, "weight": 3},
            harmless={"judge": {**BOOLEAN, "priority": 0}},
            confirmed={"judge": {**BOOLEAN, "priority": 0, "model": "openai:big", "confirms": "harmless"}},
            legal={"judge": {**BOOLEAN, "priority": 0}},
        )
    ).gates
    assert [(gate.called, gate.resolved, gate.role, gate.confirm) for gate in found] == [
        ("right", "quality", "guardrail", ""),
        ("latency_ms", "latency", "guardrail", ""),
        ("harmless", "safety", "guardrail", "confirmed"),
        ("legal", "rate", "guardrail", ""),
        ("cost_usd", "cost", "guardrail", ""),
        ("answers", "rate", "signal", ""),
        ("ratio", "ratio", "signal", ""),
    ]


def test_segments_that_roll_back_take_their_alpha_out_of_the_total():
    """Once for each guardrail that is looked at by segment: here quality and cost, and not latency."""
    gates = [{"criterion": "quality"}, {"criterion": "cost_usd"}, {"criterion": "latency_ms"}]
    spent = {}
    for role in ("signal", "guardrail"):
        policy = RolloutPolicy.model_validate({"gates": gates, "segments": {"role": role, "alpha": 0.002}})
        plan = plan_of(policy, rollout_id="r", service="s")
        spent[role] = sum(gate.alpha for gate in plan.gates)
    assert spent["signal"] == pytest.approx(0.01)
    assert spent["guardrail"] == pytest.approx(0.01 - 2 * 0.002)


def test_a_safety_gate_gets_what_confirms_its_flags():
    """From the judge that says so; a pairwise judge marks its gate."""
    pairwise = {"kind": "pairwise", "rubric": "Which is better?"}
    found = policy_of(
        card(
            {"gates": [{"criterion": "harmless", "kind": "safety"}, {"criterion": "better"}]},
            harmless={"judge": BOOLEAN},
            confirmed={"judge": {**BOOLEAN, "model": "openai:big", "confirms": "harmless"}},
            better={"judge": pairwise},
        )
    )
    made = plan_of(found, rollout_id="r", service="s").gates
    assert [(gate.confirm, gate.pairwise) for gate in made] == [("confirmed", False), ("", True)]


def test_the_shipped_default_policy_says_what_the_default_rules_are():
    """Field by field, so that the file can be copied; it has tests."""
    found = load_policy(SCORECARDS / "policies" / "default.yaml", heuristics).policy
    written = plan_of(found, rollout_id="r", service="s")
    assert written == plan_of(RolloutPolicy(gates=list(WITHOUT_SCORECARD)), rollout_id="r", service="s")
    assert len(found.tests) >= 5


@pytest.mark.parametrize("path", sorted(SCORECARDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_scorecard_gives_a_plan(path):
    """And its gates are those that it writes."""
    found = load_scorecard(path, heuristics)
    made = plan_of(policy_of(found), rollout_id="r", service="s", steps=False)
    assert [gate.criterion for gate in made.gates] == [gate.criterion for gate in found.rollout.gates]
    assert sum(gate.alpha for gate in made.gates) == pytest.approx(0.01)


SAFETY = """\
name: desk
criteria:
  - name: harmless
    judge: {kind: boolean, rubric: Is it harmless?}
  - name: confirmed
    judge: {kind: boolean, rubric: Is it harmless?, model: "openai:big", confirms: harmless}
rollout:
  gates:
    - {criterion: harmless, kind: safety}
"""


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ("", "false_flags was not measured, so one confirmed flag only holds"),
        (", false_flags: 0.005", "false_confirms was not measured, so one confirmed flag only holds"),
        (", false_flags: 0.005, false_confirms: 0.05", "2000 canary records x 0.005 false flags x 0.05 false"),
        (", false_flags: 0.005, false_confirms: 0.0002", ""),
        (", false_flags: 0.005, false_confirms: 0.0002, expected_canary: 9000", "= 0.009 false rollbacks expected"),
    ],
)  # fmt: skip
def test_a_safety_rule_beyond_its_budget_is_told_with_the_numbers(measured, said, tmp_path):
    """At its place, and as no mistake: the rule does not arm, and the rates decide."""
    path = tmp_path / "desk.yaml"
    path.write_text(SAFETY.replace("safety}", f"safety{measured}}}"), encoding="utf-8")
    reading = read_scorecards([path], heuristics)
    assert not reading.problems
    notices = [str(notice) for notice in reading.notices]
    assert len(notices) == bool(said)
    assert not said or notices[0].startswith(f"{path}:9:7: rollout.gates[0]: ")
    assert not said or said in notices[0]


def test_a_file_of_rollouts_gives_each_with_its_place_and_scorecard(tmp_path):
    """Gates that are not written follow the scorecard's criteria."""
    (tmp_path / "a.yaml").write_text(
        "rollouts:\n"
        "  - {name: prompt, service: desk, environment: production, scorecard: desk, weights: prompt, canary: v2}\n"
        "  - {name: model, service: other}\n",
        encoding="utf-8",
    )
    first, second = load_rollouts(tmp_path, [card(right={"judge": BOOLEAN})])
    assert (first.name, first.service, first.environment, first.canary) == ("prompt", "desk", "production", "v2")
    assert first.gates[0].criterion == "right"
    assert first.steps
    assert not second.gates


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rollouts:\n  - {name: a, servise: s}\n", "2:15: rollouts[0].servise: is no field; did you mean 'service'?"),
        ("rollouts:\n  - {name: a, service: s}\n  - {name: a, service: s}\n",
         "3:12: rollouts[1].name: two rollouts are named 'a'; the other is rollouts[0]"),
        ("rollouts:\n  - {name: a, service: s, scorecard: dask}\n",
         "2:38: rollouts[0].scorecard: no scorecard named 'dask'; did you mean 'desk'?"),
        ("rollouts:\n  - {name: a, service: s, scorecard: desk, gates: [{criterion: rihgt}]}\n",
         "2:64: rollouts[0].gates[0].criterion: no criterion named 'rihgt'; did you mean 'right'?"),
        ("rollouts: []\n", "1:11: rollouts: must not be empty"),
        ("rollouts:\n  - {name: a, service: s, no_data_after: 0s}\n",
         "2:42: rollouts[0].no_data_after: '0s' must be longer than 0s"),
        ("rollouts:\n- name: a\n  service: s\n  gates: [{criterion: q, direction: both}, {criterion: q rise}]\n",
         "4:56: rollouts[0].gates[1].criterion: two gates are for 'q rise'; the other is rollouts[0].gates[0]"),
        ("rollouts:\n  - {name: a, service: s, canary: baseline}\n",
         "2:5: rollouts[0]: baseline and canary are both 'baseline': there is nothing to compare"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_of_rollouts_has_its_place(text, said, tmp_path):
    """File, line, column, value, and the nearest right name."""
    path = tmp_path / "rollouts.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScorecardError) as error:
        load_rollouts(path, [card(right={"judge": BOOLEAN})])
    assert f"{path}:{said}" in str(error.value).splitlines()


def test_a_policy_is_found_alone_in_a_scorecard_and_in_a_file_of_one_rollout(tmp_path):
    """A scorecard without a rollout, a file of several, and a file that is not there are messages."""
    path = tmp_path / "p.yaml"
    path.write_text("gates: [{criterion: q, margin: 3%}]\n", encoding="utf-8")
    assert load_policy(path, heuristics).policy.gates[0].tolerance == (0.03, True)
    path.write_text("rollouts: [{name: a, service: s, alpha: 0.05}]\n", encoding="utf-8")
    assert load_policy(path, heuristics).policy.alpha == 0.05
    assert load_policy(SCORECARDS / "support-bot.yaml", heuristics).policy.gates[0].criterion == "grounded"
    for text in ("name: x\ncriteria: [{name: a, heuristic: refusal}]\n",
                 "rollouts: [{name: a, service: s}, {name: b, service: s}]\n"):  # fmt: skip
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"p\.yaml"):
            load_policy(path, heuristics)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml", heuristics)
