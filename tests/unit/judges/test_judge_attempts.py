"""Hints to wait, and what a provider's refusal means."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from evalpipe.errors import JudgeRejected, JudgeUnavailable, PermanentError
from evalpipe.judges.attempts import refusal, retry_after_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:10 GMT"}, 10.0),
        ({"retry-after": "Wed, 31 Dec 2025 23:59:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_the_providers_hint_is_read_in_each_of_its_forms(headers: dict[str, str], wait: float | None) -> None:
    """Seconds, milliseconds or a date; what cannot be read is no hint."""
    assert retry_after_s(headers, NOW) == wait


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (429, "rate_limit_exceeded", "slow down, see account/billing", JudgeUnavailable),
        (429, "insufficient_quota", "you exceeded your quota", JudgeRejected),
        (500, "", "billing is broken", JudgeUnavailable),
        (529, "overloaded_error", "overloaded", JudgeUnavailable),
        (408, "", "timeout", JudgeUnavailable),
        (400, "", "Your credit balance is too low", JudgeRejected),
        (400, "context_length_exceeded", "too long: a text about billing", PermanentError),
        (401, "", "no such key", JudgeRejected),
        (404, "model_not_found", "no such model", JudgeRejected),
        (413, "", "too large", PermanentError),
    ],
)
def test_a_refusal_is_read_as_what_it_asks_of_us(status: int, code: str, message: str, kind: type[Exception]) -> None:
    """Try later, call a human, or give up on this one request."""
    assert type(refusal("openai:m", status, message, {}, code)) is kind


@pytest.mark.parametrize(
    ("status", "code", "message", "cause"),
    [
        (400, "model_not_found", "no such model", "gone"),
        (400, "model_decommissioned", "it was switched off", "gone"),
        (403, "model_not_found", "the project may not use it", "gone"),
        (404, "", "not found", "gone"),
        (410, "", "gone", "gone"),
        (401, "invalid_api_key", "no such key", "key"),
        (403, "", "forbidden", "forbidden"),
        (400, "organization_on_hold", "on hold", "key"),
        (402, "", "pay", "credit"),
        (429, "credit_balance_exhausted", "no credits left", "credit"),
        (429, "project_spend_limit_exceeded", "the project spent it", "credit"),
        (429, "organization_usage_limit_exceeded", "the organization spent it", "credit"),
        (429, "contract_spend_limit_reached", "the contract's limit", "credit"),
        (429, "billing_not_active", "check your billing", "credit"),
        (400, "billing_hard_limit_reached", "the hard limit", "credit"),
        (429, "ramp_limit_exceeded", "grows too fast", "throttled"),
        (429, "rate_limit_exceeded", "too many tokens in this minute", "throttled"),
        (529, "overloaded_error", "overloaded", "throttled"),
        (503, "billing", "billing is down", "server"),
        (504, "", "gateway timeout", "timeout"),
        (408, "", "timeout", "timeout"),
    ],
)
def test_causes_are_told_apart(status: int, code: str, message: str, cause: str) -> None:
    """The codes that providers send say whether to wait, to mend a key, to pay, or to choose another model."""
    found = refusal("openai:m", status, message, {}, code)
    assert isinstance(found, JudgeRejected | JudgeUnavailable)
    assert found.cause == cause


def test_a_request_that_never_fits_into_a_minute_is_not_tried_again() -> None:
    """OpenAI throttles it like any other, but waiting does not help."""
    said = "Request too large for gpt-x on tokens per min (TPM): Limit 10000, Requested 12000."
    assert type(refusal("openai:m", 429, said, {}, "rate_limit_exceeded")) is PermanentError
