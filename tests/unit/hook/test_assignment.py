"""Arms: sticky, the same as flagd's own evaluation gives, and nobody leaves a canary that grows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from evalpipe.hook.assignment import assign

UNITS = [f"user-{number}" for number in range(3000)]
UNITS += ["ü", "日本語の顧客", "a" * 23, "b" * 24, "c" * 255, "d" * 256, "e" * 70_000, " ", "0", "true", "😀" * 9]


def flagd(name, weights):
    """An evaluator that has the flag of the rollout ``name`` as it is served, with ``baseline`` as its default."""
    arms = [[arm, weight] for arm, weight in weights]
    targeting = {"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "targetingKey"}]}, *arms]}
    core = FlagdCore()
    core.set_flags(
        {
            "flags": {
                name: {
                    "state": "ENABLED",
                    "variants": {arm: arm for arm, _ in weights} | {"baseline": "baseline"},
                    "defaultVariant": "baseline",
                    "targeting": targeting,
                }
            }
        }
    )
    return lambda unit: core.resolve_string_value(name, "?", EvaluationContext(targeting_key=unit)).value


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("refund-prompt", [("canary", 5), ("baseline", 95)]),
        ("refund-prompt", [("canary", 0), ("baseline", 100)]),
        ("refund-prompt", [("canary", 100), ("baseline", 0)]),
        ("a", [("canary", 1), ("baseline", 999_999)]),
        ("größe", [("canary", 1), ("second", 2), ("third", 4), ("baseline", 3)]),
        ("x" * 64, [("canary", 1_073_741_823), ("baseline", 1_073_741_824)]),
    ],
)
def test_every_unit_gets_the_arm_that_flagd_gives_it(name, weights):
    """Thousands of units, several weights, texts of all lengths that CBOR encodes differently."""
    resolve = flagd(name, weights)
    for unit in UNITS:
        assert assign(name, unit, weights) == resolve(unit), unit


def test_as_the_canary_grows_nobody_leaves_it_and_its_share_is_its_weight():
    """Steps of a rollout: whoever was in the canary stays there, up to everybody."""
    arms = {}
    for weight in (0, 1, 5, 25, 50, 100):
        weights = [("canary", weight), ("baseline", 100 - weight)]
        arms[weight] = {unit for unit in UNITS if assign("refund-prompt", unit, weights) == "canary"}
        assert abs(len(arms[weight]) / len(UNITS) - weight / 100) < 0.03
    for smaller, larger in pairwise(arms.values()):
        assert smaller <= larger
    assert arms[100] == set(UNITS)


def test_two_rollouts_assign_independently():
    """A unit that is in one rollout's canary is not therefore in another's."""
    weights = [("canary", 50), ("baseline", 50)]
    both = sum(assign("one", unit, weights) == assign("two", unit, weights) == "canary" for unit in UNITS)
    assert 0.2 < both / len(UNITS) < 0.3


def test_what_cannot_be_hashed_or_has_no_weights_has_no_arm():
    """Half a surrogate pair, which flagd cannot encode either; and weights that add up to nothing."""
    assert assign("refund-prompt", "\ud800", [("canary", 100), ("baseline", 0)]) is None
    assert flagd("refund-prompt", [("canary", 100), ("baseline", 0)])("\ud800") == "baseline"
    assert assign("refund-prompt", "user-1", []) is None
