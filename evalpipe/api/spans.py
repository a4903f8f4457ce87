"""From OpenTelemetry's GenAI spans to calls, by the newest conventions and the older ones that are still sent. Pure.

A span of a model call becomes a call; spans of tools and of retrieval in the same request are told with the call that
they belong to; what a call does not say of its user, session, feature or release is taken from the spans around it.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from evalpipe.api import names, parts
from evalpipe.api.attributes import any_of, number_of, text_of, whole_of
from evalpipe.api.traces import Span, Trees
from evalpipe.record import MAX_NAME, Release

CALLS: Final = frozenset({"chat", "text_completion", "generate_content", "completion"})
"""Operations that are model calls; embeddings, agents and workflows are not."""
EARLIEST_S: Final = 946_684_800.0
LATEST_S: Final = 4_102_444_800.0
"""A span that ended before 2000 or after 2100 has a clock that says nothing."""
AHEAD_S: Final = 3600.0
"""Clocks may be so far off; a call that ended later than that ended when it was told."""


@dataclass(slots=True)
class SpanCall:
    """A model call as the hook reports it.

    Attributes:
        at: when it ended, seconds since 1970.
        fields: further fields of ``evalpipe.hook.Call``.
    """

    span: Span
    record_id: str
    release: Release
    feature: str
    segment: str
    session_id: str
    user_id: str
    unit: str
    at: float
    latency_ms: float | None
    fields: dict[str, Any]


@dataclass(slots=True)
class Read:
    """What a request's spans are.

    Attributes:
        calls: the model calls.
        attached: spans of tools and retrieval that are told with a call.
        ignored: spans of anything else, and of evalpipe's own judges.
        rejected: model calls that cannot be used, with the reason.
    """

    calls: list[SpanCall] = field(default_factory=list)
    attached: int = 0
    ignored: int = 0
    rejected: list[str] = field(default_factory=list)


def read(spans: Sequence[Span], now_s: float | None = None) -> Read:
    """The calls in a request's spans, which came at ``now_s``: by default now."""
    trees, done = Trees(spans), Read()
    now_s = time.time() if now_s is None else now_s
    beside: list[Span] = []
    for span in spans:
        kind = _operation(span)
        if kind == "" or _is_ours(trees, span):
            done.ignored += 1
        elif kind in {"execute_tool", "retrieval"}:
            beside.append(span)
        elif reason := _unusable(span):
            done.rejected.append(reason)
        else:
            _take(done, trees, span, now_s)
    if beside:
        by_trace: dict[str, list[SpanCall]] = defaultdict(list)
        for call in done.calls:
            by_trace[call.span.trace_id].append(call)
        found = {trace_id: _Found(trees, calls) for trace_id, calls in by_trace.items()}
        for span in sorted(beside, key=lambda s: s.start_ns):
            attached = span.trace_id in found and _attach(trees, span, found[span.trace_id])
            done.attached += attached
            done.ignored += not attached
    return done


def _take(done: Read, trees: Trees, span: Span, now_s: float) -> None:
    try:
        done.calls.append(_call(trees, span, now_s))
    except (RecursionError, ValueError, TypeError, AttributeError) as error:
        # One span that nobody thought of must not cost the others of its request.
        done.rejected.append(f"span {span.name[:80]!r} cannot be read: {type(error).__name__}: {str(error)[:80]}")


def record_id(trace_id: str, span_id: str) -> str:
    """Names the record of a span: however often the span is exported, it is one record."""
    return hashlib.sha256(f"{trace_id}:{span_id}".encode()).hexdigest()[:32]


def _operation(span: Span) -> str:
    """``chat`` for any model call, ``execute_tool``, ``retrieval``, or "" for what is of no interest."""
    found = span.attributes
    name = str(found.get("gen_ai.operation.name") or found.get("llm.request.type") or "")
    if not name and (found.get("gen_ai.tool.name") or found.get("traceloop.span.kind") == "tool"):
        return "execute_tool"
    if name in {"execute_tool", "retrieval"}:
        return name
    # The oldest instrumentations named no operation; a model that was asked is a call.
    asked = not name and ("gen_ai.request.model" in found or "gen_ai.response.model" in found)
    named = name in CALLS and any(n.startswith("gen_ai.") for n in found)
    return "chat" if named or asked else ""


def _is_ours(trees: Trees, span: Span) -> bool:
    """Whether evalpipe itself made the call: a judge must not be judged."""
    marked = any(one.attributes.get("evalpipe.judge") for one in trees.around(span))
    return marked or bool(span.resource.get("evalpipe.judge")) or span.resource.get("service.name") == "evalpipe"


def _unusable(span: Span) -> str:
    if len(span.trace_id) != 32 or not span.trace_id.strip("0") or not _is_hex(span.trace_id):
        return f"span {span.name!r} has no trace id of 32 hex digits but {span.trace_id[:40]!r}"
    if len(span.span_id) != 16 or not span.span_id.strip("0") or not _is_hex(span.span_id):
        return f"span {span.name!r} has no span id of 16 hex digits but {span.span_id[:40]!r}"
    if not EARLIEST_S <= span.end_ns / 1e9 <= LATEST_S:
        return f"span {span.name!r} has not ended, or its clock is wrong: endTimeUnixNano is {span.end_ns}"
    return ""


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdef" for c in text)


def _call(trees: Trees, span: Span, now_s: float) -> SpanCall:
    ended_s = span.end_ns / 1e9
    feature = trees.first(span, "evalpipe.feature") or trees.first(span, "gen_ai.agent.name")
    return SpanCall(
        span=span,
        record_id=record_id(span.trace_id, span.span_id),
        release=_release(trees, span),
        feature=feature or trees.first(span, "gen_ai.prompt.name"),
        segment=trees.first(span, "evalpipe.segment"),
        session_id=trees.first(span, *names.SESSION),
        user_id=trees.first(span, *names.USER),
        unit=trees.first(span, "evalpipe.unit"),
        at=ended_s if ended_s <= now_s + AHEAD_S else now_s,
        latency_ms=max(0.0, (span.end_ns - span.start_ns) / 1e6) if span.start_ns else None,
        fields=_fields(span),
    )


def _release(trees: Trees, span: Span) -> Release:
    versions = {name: trees.first(span, f"evalpipe.release.{name}") for name in names.VERSIONS}
    if not versions["prompt"] and (version := trees.first(span, "gen_ai.prompt.version")):
        name = trees.first(span, "gen_ai.prompt.name")
        versions["prompt"] = f"{name}@{version}" if name else version
    given = {
        "service": text_of(span.resource, ("service.name",)) or "unknown_service",
        "variant": trees.first(span, "evalpipe.variant"),
        "environment": trees.first(span, "deployment.environment.name", "deployment.environment"),
        **versions,
    }
    return Release(**{name: value[:MAX_NAME] for name, value in given.items() if value})


def _fields(span: Span) -> dict[str, Any]:
    """The fields of a call that only its own span tells."""
    told = _with_events(span)
    said = _answer(span, told)
    cached, taken = whole_of(told, names.CACHED_TOKENS), whole_of(told, names.INPUT_TOKENS)
    if cached is not None and taken is not None and cached > taken:
        taken += cached  # from an instrumentation that counts them apart
    first_s = number_of(told, names.FIRST_TOKEN)
    fields: dict[str, Any] = {
        "messages": _messages(span, told),
        "output": said.text,
        "tool_calls": said.tool_calls,
        "tools": parts.definitions(told.get("gen_ai.tool.definitions") or _functions(told)),
        "parameters": {name: v for name, any_ in names.PARAMETERS.items() if (v := any_of(told, any_)) is not None},
        "model": text_of(told, ("gen_ai.response.model", "gen_ai.request.model")),
        "finish_reason": _finish_reason(told) or said.finish_reason,
        "error": _error(span, told),
        "input_tokens": taken,
        "output_tokens": whole_of(told, names.OUTPUT_TOKENS),
        "cached_tokens": cached,
        "cost_usd": number_of(told, ("gen_ai.usage.cost", "gen_ai.usage.cost_usd")),
        "ttft_ms": None if first_s is None else first_s * 1000.0,
        "attributes": {"span_id": span.span_id, **_kept(span, told)},
    }
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}


def _with_events(span: Span) -> Mapping[str, Any]:
    """The span's attributes, and those of events that stand for some of them."""
    events = ("gen_ai.client.inference.operation.details", "gen_ai.content.prompt", "gen_ai.content.completion")
    found: dict[str, Any] = {}
    for event in span.events:
        if event.name in events:
            found.update(event.attributes)
    return {**found, **span.attributes}


def _messages(span: Span, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if system := told.get("gen_ai.system_instructions"):
        listed = parts.parsed(system)
        whole = {"role": "system", "parts": listed} if isinstance(listed, list) else listed
        found = parts.messages([whole], "system")
    for source in (told.get("gen_ai.input.messages"), told.get("gen_ai.prompt")):
        if source:
            return found + parts.messages(source)
    if flat := parts.indexed(told, "gen_ai.prompt."):
        return found + parts.messages(flat)
    return found + [message for event in span.events if event.name in names.ROLES
                    for message in parts.messages([_of_event(event.attributes, names.ROLES[event.name])])]  # fmt: skip


def _answer(span: Span, told: Mapping[str, Any]) -> parts.Answer:
    for source in (told.get("gen_ai.output.messages"), told.get("gen_ai.completion")):
        if source:
            return parts.answer(source)
    if flat := parts.indexed(told, "gen_ai.completion."):
        return parts.answer(flat)
    choices = [event.attributes for event in span.events if event.name == "gen_ai.choice"]
    return parts.answer([_of_event(choices[0], "assistant")]) if choices else parts.Answer()


def _of_event(attributes: Mapping[str, Any], role: str) -> dict[str, Any]:
    """A message as an event: its fields flat, or as JSON in one attribute."""
    whole = parts.parsed(attributes.get("gen_ai.event.content"))
    found = dict(whole) if isinstance(whole, Mapping) else {}
    fields = ("role", "content", "name", "id", "tool_calls", "message", "finish_reason", "parts")
    found |= {name: parts.parsed(attributes[name]) if name in {"tool_calls", "message", "parts"} else attributes[name]
              for name in fields if attributes.get(name) is not None}  # fmt: skip
    return {"role": role, **found}


def _functions(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = parts.indexed(told, "llm.request.functions.")
    return [{name: parts.parsed(value) for name, value in one.items()} for one in found]


def _finish_reason(told: Mapping[str, Any]) -> str:
    found = parts.parsed(told.get("gen_ai.response.finish_reasons"))
    first = next(iter(found), "") if isinstance(found, list) else found
    return first if isinstance(first, str) else ""


def _error(span: Span, told: Mapping[str, Any]) -> str:
    """Class and message of a failure, as far as they are told."""
    kind, message = text_of(told, ("error.type",)), span.message
    for event in span.events:
        if event.name == "exception" and (span.failed or kind):
            kind = kind or text_of(event.attributes, ("exception.type",))
            message = message or text_of(event.attributes, ("exception.message",))
    if not span.failed and not kind:
        return ""
    kind = kind or "Error"
    return f"{kind}: {message}" if message and not message.startswith(f"{kind}:") else message or kind


def _kept(span: Span, told: Mapping[str, Any]) -> dict[str, str]:
    both = {**span.resource, **told}
    return {name: found for name, any_ in names.KEPT.items() if (found := text_of(both, any_))}


class _Found:
    """The calls of a trace: by the tools they asked for, and by the spans they lie within, in order of their start."""

    def __init__(self, trees: Trees, calls: Sequence[SpanCall]) -> None:
        self.by_tool: dict[str, SpanCall] = {}
        self.within: dict[str, list[SpanCall]] = defaultdict(list)
        self._asked: dict[int, dict[str, dict[str, Any]]] = {}
        for call in sorted(calls, key=_start):
            self.by_tool |= {str(asked["id"]): call for asked in call.fields.get("tool_calls", ()) if asked.get("id")}
            for span_id in {call.span.span_id, *(one.parent_id for one in trees.around(call.span))} - {""}:
                self.within[span_id].append(call)

    def asked(self, call: SpanCall) -> dict[str, dict[str, Any]]:
        """The tool calls of a call, by their ids."""
        found = self._asked.get(id(call))
        if found is None:
            told = reversed(call.fields.get("tool_calls", ()))
            found = self._asked[id(call)] = {one["id"]: one for one in told if isinstance(one.get("id"), str)}
        return found


def _attach(trees: Trees, span: Span, found: _Found) -> bool:
    """Tell a tool's or a retrieval's span with its call; False if neither its id nor its parents lead to one."""
    parents = (one.parent_id for one in trees.around(span))
    near = next((found.within[parent] for parent in parents if parent in found.within), [])
    if _operation(span) == "retrieval":
        if near:
            # What was found is read by the next call.
            call = near[min(bisect_left(near, span.start_ns, key=_start), len(near) - 1)]
            documents = parts.documents(span.attributes.get("gen_ai.retrieval.documents"))
            call.fields.setdefault("context", []).extend(documents)
        return bool(near)
    call_id = text_of(span.attributes, ("gen_ai.tool.call.id",))
    last = near[max(bisect_right(near, span.start_ns, key=_start) - 1, 0)] if near else None
    asking = found.by_tool.get(call_id, last)
    if asking is not None:
        _add_tool(asking.fields.setdefault("tool_calls", []), found.asked(asking), span, call_id)
    return asking is not None


def _start(call: SpanCall) -> int:
    return call.span.start_ns


def _add_tool(calls: list[dict[str, Any]], by_id: dict[str, dict[str, Any]], span: Span, call_id: str) -> None:
    found = span.attributes
    told = {
        "id": call_id,
        "name": text_of(found, ("gen_ai.tool.name", "traceloop.entity.name")) or span.name,
        "arguments": parts.parsed(any_of(found, ("gen_ai.tool.call.arguments", "traceloop.entity.input"))),
        "result": parts.parsed(any_of(found, ("gen_ai.tool.call.result", "traceloop.entity.output"))),
        "error": _error(span, found),
    }
    told = {name: value for name, value in told.items() if value not in (None, "")}
    if call_id and (call := by_id.get(call_id)) is not None:
        call.update({**told, **call})
        return
    calls.append(told)
    if call_id:
        by_id[call_id] = told
