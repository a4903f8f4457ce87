"""What Argo reads, byte by byte, and how it stays small and strict."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from evalpipe.api.canaries import MOST_BYTES, Hook, body_of, question_of
from evalpipe.pipeline.canary_answer import CanaryAnswer, short

NUMBERS: dict[str, Any] = {
    "gate": "helpful", "kind": "quality", "estimate": -0.0112345678, "interval": {"low": -0.041, "high": 0.019,
    "level": 0.95}, "margin": -0.05, "max_e_value": 3.14159, "threshold": 400.0, "n_baseline": 405, "n_canary": 412,
}  # fmt: skip
GOLDEN = (
    '{"data":{"decision":"advance","step":5.0,"rollout":"bot-v7","phase":"running","policy":"bot@1a2b",'
    '"decision_id":"dec_bot-v7_2","reason":"on from 5 % to 20 %","evidence":[{"gate":"helpful","change":-0.01123,'
    '"interval":[-0.041,0.019],"margin":-0.05,"e_value":3.142,"threshold":400.0,"n_baseline":405,"n_canary":412}],'
    '"data_through":"2026-11-22T03:30:00+00:00"}}'
)


def answer(**fields: Any) -> CanaryAnswer:
    """An advance of the step of 5 per cent."""
    return CanaryAnswer(**{
        "decision": "advance", "reason": "on from 5 % to 20 %", "rollout_id": "bot-v7", "phase": "running", "step": 5.0,
        "policy": "bot@1a2b", "decision_id": "dec_bot-v7_2", "evidence": (short(NUMBERS),),
        "data_through": datetime(2026, 11, 22, 3, 30, tzinfo=UTC), **fields,
    })  # fmt: skip


def test_the_body_is_what_the_templates_condition_reads():
    """``result.decision`` under ``{$.data}``; another order or name would break who reads it."""
    assert body_of(answer()).decode() == GOLDEN


def test_the_body_is_json_as_go_reads_it_whatever_the_numbers():
    """NaN would make Argo take the body for a text; it is unknown, and so is infinity."""
    odd = {**NUMBERS, "estimate": float("nan"), "max_e_value": float("inf"), "interval": {"low": None, "high": None}}
    (found,) = json.loads(body_of(answer(evidence=(short(odd),))), parse_constant=pytest.fail)["data"]["evidence"]
    assert (found["change"], found["e_value"], found["interval"]) == (None, None, [None, None])


@pytest.mark.parametrize(("gates", "reason"), [(40, "short"), (0, "ü" * 5_000), (40, "long " * 2_000)])
def test_the_body_fits_whatever_there_is_to_say(gates: int, reason: str):
    """Gates go first, then the end of the reason; the decision stays."""
    body = body_of(answer(evidence=tuple(short(NUMBERS) for _ in range(gates)), reason=reason))
    assert len(body) <= MOST_BYTES
    assert json.loads(body)["data"]["decision"] == "advance"


def test_a_hook_is_about_the_canary_that_its_metadata_name():
    """Without them the Canary's name is the service; before the rollout its checksum is that of the one before."""
    body = Hook.model_validate({"name": "bot", "namespace": "prod", "checksum": "c1", "more": 1})
    asked = question_of("rollback", body)
    assert (asked.name, asked.service, asked.deployment, asked.step) == ("canary", "bot", "prod/bot/c1", None)
    assert question_of("confirm-rollout", body).deployment == ""
    named = Hook.model_validate({"name": "bot", "metadata": {"canary": "bot-v7", "service": "s", "environment": "e"}})
    asked = question_of("rollback", named)
    assert (asked.name, asked.service, asked.environment) == ("bot-v7", "s", "e")
