"""From a call that ended to the entry that waits to be shipped. Runs in the calling thread, so it only copies."""

from __future__ import annotations

import logging
from typing import Any

from evalpipe.hook.buffer import Entry
from evalpipe.hook.call import UNFROZEN, Call
from evalpipe.hook.freezing import TooLarge, freeze

log = logging.getLogger("evalpipe")


def capture(
    call: Call, latency_ms: float | None, error: BaseException | None, now: float, limit: int
) -> tuple[Entry, str]:
    """The entry of a sampled call, and why it must be shed: ``oversized``, ``failed``, or "" if it need not be.

    Args:
        call: what the application filled in.
        latency_ms: wall time; None if it is not known.
        error: what the application's code raised, if anything.
        now: seconds since 1970.
        limit: bytes the record may take.
    """
    entry = Entry(call.release, call.feature, now, 0, {})
    try:
        if error is not None and not call.error:
            call.error = f"{type(error).__name__}: {error}"
        entry.fields, entry.size = _fields(call, latency_ms, limit)
    except TooLarge:
        return entry, "oversized"
    except Exception as problem:  # noqa: BLE001 - the application's objects may do anything
        log.debug("evalpipe: a record could not be copied: %r", problem)
        return entry, "failed"
    if call.failed:
        return entry, "failed"
    return entry, "oversized" if call.oversized or entry.size > limit else ""


def _fields(call: Call, latency_ms: float | None, limit: int) -> tuple[dict[str, Any], int]:
    """The record's fields, frozen, and their size in bytes."""
    fields: dict[str, Any] = {
        "record_id": call.record_id,
        "trace_id": call.trace_id,
        "session_id": call.session_id,
        "user_id": call.user_id,
        "unit": call.unit or call.session_id or call.user_id or call.trace_id,
        "segment": call.segment,
        "probability": call.probability,
        "rate_probability": call.rate_probability,
        "stratum": call.stratum,
        "reason": call.reason,
        "latency_ms": call.latency_ms if latency_ms is None else latency_ms,
        "ttft_ms": call.ttft_ms,
        "input_tokens": call.input_tokens,
        "output_tokens": call.output_tokens,
        "cached_tokens": call.cached_tokens,
        "cost_usd": call.cost_usd,
        "model": call.model,
        "finish_reason": call.finish_reason,
        "error": call.error,
    }
    size = 1024
    for name, (value, took) in call.kept.items():
        if took == UNFROZEN:
            value, took = freeze(value, limit)  # noqa: PLW2901 - only now it is known that the call is kept
        fields[name] = value
        size += took
    call.kept = {}
    fields["output"], took = freeze(call.output, limit)
    size += took + call.error.__sizeof__()
    attributes = call.own_attributes or {}
    if call.parent_id:
        attributes = {**attributes, "parent_record_id": call.parent_id}
    if call.flags:
        attributes = {**attributes, "flags": sorted(call.flags)}
    if attributes:
        fields["attributes"], took = freeze(attributes, limit)
        size += took
    return fields, size
