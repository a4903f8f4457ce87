"""One captured model interaction, and its form on the wire.

Standard library only: the hook (in the application) and the workers share this module. A batch travels as one JSON text
with a schema version. Workers read the versions of hooks two minors older and ignore unknown keys: upgrade them first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final

from evalpipe.batch import AFTERTHOUGHT, LEAST_PROBABILITY, MAX_BATCH, SCHEMA, encode_batch
from evalpipe.errors import RecordError
from evalpipe.release import FIELDS as _RELEASE_FIELDS
from evalpipe.release import Release

__all__ = ("AFTERTHOUGHT", "LEAST_PROBABILITY", "MAX_BATCH", "MAX_ID", "MAX_NAME", "OLDEST_SCHEMA", "SCHEMA", "Batch",
           "Record", "Reject", "Release", "decode_batch", "encode_batch", "from_wire", "text_of",
           "to_wire")  # fmt: skip

OLDEST_SCHEMA: Final = max(1, SCHEMA - 2)
"""Oldest wire form that this code still reads."""


@dataclass(frozen=True, slots=True)
class Record:
    """One captured model interaction, redacted, as it left the application.

    Attributes:
        record_id: unique; the same in every redelivery.
        trace_id: the application's trace; all records of a trace share the sampling decision.
        captured_at: when the call ended, aware UTC.
        feature: the product feature, for example ``refund-answers``; "" where the application names none.
        session_id: the conversation; "" if unknown.
        user_id: the application's user key (pseudonymous by the application's choice); "" if unknown.
        unit: the unit of assignment: one score a unit enters a test. Session, else user, else trace.
        segment: the application's own class of traffic: a plan, a language, a tenant; "" where it names none.
        messages: the input as sent: dicts with ``role`` and ``content``.
        output: the text that the user saw.
        context: retrieved documents: dicts with ``id``, ``text`` and perhaps ``score``.
        tools: names or schemas of the tools offered.
        tool_calls: dicts with ``name`` and ``arguments``.
        parameters: model requested, temperature, top_p, max_tokens, seed and the like.
        model: the model that answered, as returned.
        input_tokens, output_tokens: usage; None if unknown.
        cached_tokens: the part of the input tokens that the provider read from its cache.
        cost_usd: money; None if unknown.
        latency_ms: wall time of the call at the caller.
        ttft_ms: time to the first token of a stream, at the caller.
        finish_reason: as the provider gave it.
        error: exception class and message of a failed call; "" if it did not fail.
        probability: inclusion probability of this record, from 1e-9 to 1.
        rate_probability: by its rate alone, where an always-keep rule made ``probability`` greater; else None.
        stratum: the class of calls that shared this probability; "" where all did.
        reason: why it was kept: ``rate``, ``rollout:`` and the name of the rollout whose arm it belongs to (with
            ``:shadow`` behind it if it was drawn for the shadow phase), ``keep:`` and the rule that keeps all such
            calls, or ``feedback``.
        attributes: further strings, numbers and booleans of the application.
    """

    record_id: str
    trace_id: str
    captured_at: datetime
    release: Release
    feature: str = ""
    session_id: str = ""
    user_id: str = ""
    unit: str = ""
    segment: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    output: str = ""
    context: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Any] = ()
    tool_calls: Sequence[Mapping[str, Any]] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    finish_reason: str = ""
    error: str = ""
    probability: float = 1.0
    rate_probability: float | None = None
    stratum: str = ""
    reason: str = "rate"
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_text(self) -> str:
        """The last user message as text ("" if there is none): what most criteria mean by the input."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return text_of(message.get("content"))
        return ""

    @property
    def weight(self) -> float:
        """Inverse of the inclusion probability; 0 for what was kept because of what became known after its decision.

        Such a record is there to be read: whether a call gets feedback has to do with its quality, so no estimate may
        count it.
        """
        return 0.0 if self.reason == AFTERTHOUGHT else 1.0 / self.probability


@dataclass(frozen=True, slots=True)
class Reject:
    """One entry of a batch that is not a record, kept with the reason."""

    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one message carries.

    ``process_id`` and ``sequence`` name the message: a gap in the sequence of a process is a lost message.
    """

    process_id: str
    sequence: int
    sent_at: datetime
    hook_version: str
    records: Sequence[Record]
    rejects: Sequence[Reject] = ()


def text_of(content: Any) -> str:
    """The text of a message's content, which is a string or a list of typed parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        parts = (p if isinstance(p, str) else p.get("text") for p in content if isinstance(p, str | Mapping))
        return "\n".join(p for p in parts if isinstance(p, str))
    return ""


def to_wire(record: Record) -> dict[str, Any]:
    """``record`` as a JSON-ready dict, without the fields that hold their default."""
    wire: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        value = getattr(record, name)
        if value != default:
            wire[name] = value
    wire["captured_at"] = record.captured_at.timestamp()
    release = record.release
    wire["release"] = {n: v for n in _RELEASE_FIELDS if (v := getattr(release, n)) != _RELEASE_DEFAULTS[n]}
    return wire


def from_wire(wire: Any) -> Record:
    """The record in ``wire``.

    Raises:
        RecordError: a required field is missing, or a field has the wrong type or range; the message names it.
    """
    if not isinstance(wire, dict):
        raise RecordError(f"a record must be an object, not {type(wire).__name__}")
    values: dict[str, Any] = {name: wire[name] for name in _DEFAULTS if name in wire}
    _check(values)
    values["captured_at"] = _instant(wire.get("captured_at"), "captured_at")
    values["release"] = _release(wire.get("release"))
    return Record(**values)


def decode_batch(text: str | bytes, loads: Callable[[str | bytes], Any] = json.loads) -> Batch:
    """The batch in a message's text. A bad record becomes a ``Reject``, and the rest of the batch is kept.

    Args:
        text: what ``encode_batch`` wrote, now or two minors ago.
        loads: a JSON parser; workers pass a faster one.

    Raises:
        RecordError: the text is not JSON, not a batch, or of a schema that this code does not read.
    """
    try:
        body = loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"the batch is not JSON: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("records"), list):
        raise RecordError("the batch has no list 'records'")
    schema = body.get("schema")
    if not isinstance(schema, int) or not OLDEST_SCHEMA <= schema <= SCHEMA:
        raise RecordError(
            f"the batch has schema {schema!r}; this worker reads {OLDEST_SCHEMA} to {SCHEMA}: "
            "upgrade the workers before the hooks, then re-drive the dead letters"
        )
    sequence = body.get("seq", 0)
    if not isinstance(sequence, int):
        raise RecordError(f"the batch's 'seq' must be a whole number, not {sequence!r}")
    process_id = str(body.get("process", ""))
    if len(process_id) > MAX_NAME:
        raise RecordError(f"the batch's 'process' has {len(process_id)} characters, more than {MAX_NAME}")
    records, rejects = [], []
    for wire in body["records"]:
        try:
            records.append(from_wire(wire))
        except RecordError as error:
            rejects.append(Reject(str(error), json.dumps(wire, ensure_ascii=False)))
    return Batch(
        process_id=process_id,
        sequence=sequence,
        sent_at=_instant(body.get("sent_at"), "sent_at"),
        hook_version=str(body.get("hook", "")),
        records=records,
        rejects=rejects,
    )


_RELEASE_DEFAULTS: Final = {name: getattr(Release(), name) for name in _RELEASE_FIELDS}


def _default_of(name: str) -> Any:
    spec = next(f for f in fields(Record) if f.name == name)
    if spec.default is not MISSING:
        return spec.default
    return spec.default_factory() if spec.default_factory is not MISSING else MISSING


_DEFAULTS: Final = {f.name: _default_of(f.name) for f in fields(Record) if f.name not in {"captured_at", "release"}}
_TEXT: Final = ("record_id", "trace_id", "feature", "session_id", "user_id", "unit", "segment", "output", "model",
                "finish_reason", "error", "stratum", "reason")  # fmt: skip
MAX_ID: Final = 512
MAX_NAME: Final = 200
"""Characters of what is a key in the database: PostgreSQL takes no index entry of more than 2,700 bytes, and no NUL."""
_MOST: Final = {
    **dict.fromkeys(("record_id", "trace_id", "session_id", "user_id", "unit"), MAX_ID),
    **dict.fromkeys(("feature", "segment", "stratum", "reason"), MAX_NAME),
}
_OBJECTS: Final = ("messages", "context", "tool_calls")
_TYPES: Final[tuple[tuple[str, type | tuple[type, ...]], ...]] = (
    *((name, str) for name in _TEXT),
    *((name, (list, tuple)) for name in ("messages", "context", "tools", "tool_calls")),
    *((name, dict) for name in ("parameters", "attributes")),
    *(
        (name, (int, float, type(None)))
        for name in (
            "input_tokens",
            "output_tokens",
            "cached_tokens",
            "cost_usd",
            "latency_ms",
            "ttft_ms",
            "rate_probability",
        )
    ),
    ("probability", (int, float)),
)


def _check_key(name: str, value: str, most: int) -> None:
    if "\x00" in value:
        raise RecordError(f"record field {name!r} has a NUL character: {value[:80]!r}")
    if len(value) > most:
        raise RecordError(f"record field {name!r} has {len(value)} characters, more than {most}")


def _check(values: dict[str, Any]) -> None:
    for name, kinds in _TYPES:
        if name in values and not isinstance(values[name], kinds):
            raise RecordError(f"record field {name!r} has the wrong type: {type(values[name]).__name__}")
    for name, most in _MOST.items():
        _check_key(name, values.get(name, ""), most)
    for name in _OBJECTS:
        if bad := [item for item in values.get(name, ()) if not isinstance(item, dict)]:
            raise RecordError(f"record field {name!r} must hold objects, not {type(bad[0]).__name__}")
    for name in ("record_id", "trace_id"):
        if not values.get(name):
            raise RecordError(f"record field {name!r} is missing")
    probability = values.get("probability", 1.0)
    if not LEAST_PROBABILITY <= probability <= 1.0:
        raise RecordError(f"record field 'probability' must be from {LEAST_PROBABILITY} to 1, not {probability!r}")


def _instant(value: Any, name: str) -> datetime:
    if not isinstance(value, int | float):
        raise RecordError(f"field {name!r} must be seconds since 1970, not {value!r}")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise RecordError(f"field {name!r} is no instant: {value!r}") from error


def _release(wire: Any) -> Release:
    if not isinstance(wire, dict):
        raise RecordError(f"record field 'release' must be an object, not {type(wire).__name__}")
    values = {name: wire[name] for name in _RELEASE_FIELDS if name in wire}
    if bad := [name for name, value in values.items() if not isinstance(value, str) or "\x00" in value]:
        raise RecordError(f"release field {bad[0]!r} must be text without NUL characters, not {values[bad[0]]!r}")
    if bad := [name for name, value in values.items() if len(value) > MAX_NAME]:
        length = len(values[bad[0]])
        raise RecordError(f"release field {bad[0]!r} has {length} characters, more than {MAX_NAME}")
    if not values.get("service"):
        raise RecordError("release field 'service' is missing")
    return Release(**values)
