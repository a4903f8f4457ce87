"""Trying a call again, and telling apart what a provider's refusal means."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from evalpipe.errors import EvalpipeError, JudgeRejected, JudgeUnavailable, PermanentError
from evalpipe.judges.base import Answer, JudgeConfig

MAX_WAIT_S: Final = 20.0
"""The longest pause between two attempts. A provider that asks for more gets its work back to the queue instead."""
FIRST_WAIT_S: Final = 0.5
"""The longest pause after the first failure; it doubles with each further one."""

_TRY_AGAIN: Final = frozenset({408, 409, 425, 429})
_THROTTLED: Final = frozenset({429, 529})
"""529 is Anthropic's word for overloaded."""
_MAY_MEAN_CREDIT: Final = frozenset({400, 402, 403, 429})
_TIMED_OUT: Final = frozenset({408, 504})
_HINTS: Final = {
    "key": "check the key",
    "forbidden": "the key may not use this model, or something on the way refuses this one request",
    "credit": "the account has no credit, or reached its spend limit",
    "gone": "check the model's name and the base URL; models retire",
}
_GONE: Final = frozenset({"model_not_found", "model_not_available", "model_decommissioned", "model_deprecated"})
"""Codes of OpenAI and of those who speak its protocol, with 400, 403 and 404."""
_NO_CREDIT: Final = ("insufficient_quota", "billing", "credit_balance_exhausted")
_SPENT: Final = ("spend_limit_exceeded", "spend_limit_reached", "usage_limit_exceeded")
"""Ends of codes: OpenAI's of a project or an organization, Anthropic's of a contract or a tier."""
_ON_HOLD: Final = frozenset({"organization_on_hold", "account_deactivated", "invalid_api_key"})


async def attempt(version: str, config: JudgeConfig, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The first answer that ``call`` gives, with the count of attempts and the time of the successful one.

    Waits between attempts for as long as the provider asked, or for a random part of a doubling bound ("full jitter"),
    so that many workers do not come back together.

    Raises:
        JudgeUnavailable: every attempt failed or timed out, or the provider asks for a longer wait than ``MAX_WAIT_S``.
        PermanentError: as ``call`` raised it; not tried again.
    """
    number = 1
    while True:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(config.timeout_s):
                answer = await call()
            return replace(answer, attempts=number, latency_ms=(time.perf_counter() - started) * 1000.0)
        except TimeoutError:
            failure = JudgeUnavailable(f"judge {version} did not answer within {config.timeout_s:g} s", cause="timeout")
        except JudgeUnavailable as error:
            failure = error
        hint = failure.retry_after_s
        if number >= config.attempts or (hint is not None and hint > MAX_WAIT_S):
            raise JudgeUnavailable(
                f"{failure} (attempt {number} of {config.attempts})",
                retry_after_s=hint,
                cause=failure.cause,
                may_be_billed=failure.may_be_billed,
            ) from failure
        await asyncio.sleep(_pause_s(number, hint))
        number += 1


def refusal(version: str, status: int, message: str, headers: Mapping[str, str], code: str = "") -> EvalpipeError:
    """The exception that an HTTP status of a provider means.

    Args:
        version: the judge's.
        status: 400 to 599.
        message: the provider's.
        headers: of the response, with lower-case look-up.
        code: the provider's own error code, which tells "too fast" from "no credit" where both are 429.
    """
    text = f"judge {version}: HTTP {status}: {message[:500]}"
    cause = _rejection(status, code, message)
    if cause:
        return JudgeRejected(f"{text}; {_HINTS[cause]}", cause=cause)
    if _is_too_large(status, message):
        return PermanentError(text)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN:
        cause = "throttled" if status in _THROTTLED else "timeout" if status in _TIMED_OUT else "server"
        return JudgeUnavailable(text, retry_after_s=retry_after_s(headers), cause=cause)
    return PermanentError(text)


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait as ``retry-after-ms`` or ``retry-after`` (seconds or a date, RFC 9110) asks, or None."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if 0.0 <= wait < 1e9:
            return wait
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())


def _rejection(status: int, code: str, message: str) -> str:
    """Why the provider refuses us: ``key``, ``credit``, ``gone`` or ``forbidden``; "" if it does not."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ""
    # Anthropic tells one that has no credit by words alone, with a 400; where others mean it, there is a code.
    if code.startswith(_NO_CREDIT) or code.endswith(_SPENT) or "credit balance is too low" in message:
        return "credit" if status in _MAY_MEAN_CREDIT else ""
    if status == HTTPStatus.PAYMENT_REQUIRED:
        return "credit"
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE} or (code in _GONE and status < HTTPStatus.CONFLICT):
        return "gone"
    if status == HTTPStatus.UNAUTHORIZED or code in _ON_HOLD:
        return "key"
    # A model that the key may not use, or a filter of a gateway that dislikes what this one record says.
    return "forbidden" if status == HTTPStatus.FORBIDDEN else ""


def _is_too_large(status: int, message: str) -> bool:
    """OpenAI answers a request of more tokens than a minute has like one that came too early, code and all."""
    return status == HTTPStatus.TOO_MANY_REQUESTS and "Request too large" in message


def _pause_s(number: int, hint: float | None) -> float:
    spread = min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** (number - 1))
    if hint is None:
        return random.uniform(0.0, spread)  # noqa: S311 - spreads load, guards nothing
    return hint + random.uniform(0.0, 0.1 * spread)  # noqa: S311
