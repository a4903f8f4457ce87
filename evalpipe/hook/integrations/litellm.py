"""LiteLLM, as a library and as a proxy: ``litellm.callbacks = [EvalpipeLogger(hook)]``.

LiteLLM calls back when a call is over, in a thread or task of its own: calls are reported, and cannot be refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from litellm.integrations.custom_logger import CustomLogger

from evalpipe.hook.call import INERT, current
from evalpipe.hook.integrations.reading import items, lean, parameters
from evalpipe.hook.observing import failure

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

JUDGE: Final = "x-evalpipe-judge"
"""Header or metadata of a judge's own requests, which are not recorded: a judge must not be judged."""
MAX_WAITING: Final = 10_000
"""Calls under way whose surroundings are remembered at the most."""
PARAMETERS: Final = frozenset(
    {"temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "seed", "n", "stop", "tool_choice",
     "reasoning_effort", "service_tier", "presence_penalty", "frequency_penalty", "stream"}
)  # fmt: skip
CHATS: Final = frozenset({"completion", "acompletion", "text_completion", "atext_completion", "responses",
                          "aresponses", "anthropic_messages"})  # fmt: skip
"""Kinds of LiteLLM calls that are model interactions; embeddings, images and the like are not."""


class EvalpipeLogger(CustomLogger):
    """A LiteLLM callback that records calls, failed and streamed ones too.

    ``metadata`` of the request may name ``feature``, ``session_id``, ``user_id``, ``trace_id`` and ``segment``.

    Args:
        hook: records the calls.
        feature: what the calls are for, where metadata do not say it.
    """

    def __init__(self, hook: Hook, *, feature: str | None = None) -> None:
        super().__init__()
        self._hook = hook
        self._feature = feature
        self._around: dict[str, Call] = {}

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
        """In the application's own thread or task: the only place where the call around this one is known."""
        try:
            sent = (kwargs.get("additional_args") or {}).get("complete_input_dict")
            outer = INERT if isinstance(sent, Mapping) and _is_judge(sent.get("extra_headers")) else current()
            if outer is not None:
                while len(self._around) >= MAX_WAITING:
                    self._around.pop(next(iter(self._around)), None)
                self._around[str(kwargs.get("litellm_call_id"))] = outer
        except Exception:  # noqa: BLE001 - LiteLLM would log it with a traceback, for every call
            return

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call ended well."""
        self._report(kwargs, response_obj, start_time, end_time)

    def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call failed."""
        self._report(kwargs, None, start_time, end_time)

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """As ``log_success_event``."""
        self._report(kwargs, response_obj, start_time, end_time)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """As ``log_failure_event``."""
        self._report(kwargs, None, start_time, end_time)

    def _report(self, kwargs: Mapping[str, Any], answer: Any, start: Any, end: Any) -> None:
        try:
            outer = self._around.pop(str(kwargs.get("litellm_call_id")), None)
            if kwargs.get("call_type", "completion") not in CHATS or (outer is not None and outer.inert):
                return
            metadata = _metadata(kwargs)
            if metadata is not None:
                self._hook.report(**self._names(kwargs, metadata, outer), **_fields(kwargs, answer, start, end))
        except Exception:  # noqa: BLE001 - LiteLLM would log it with a traceback, for every call
            return

    def _names(self, kwargs: Mapping[str, Any], metadata: Mapping[str, Any], outer: Call | None) -> dict[str, Any]:
        """Whose call it is, from metadata, else from the call around it, else from LiteLLM."""

        def name(key: str, otherwise: Any = None) -> str | None:
            value = metadata.get(key) or (getattr(outer, key) if outer is not None else None) or otherwise
            return str(value) if value else None

        payload = kwargs.get("standard_logging_object") or {}
        session = name("session_id", (kwargs.get("litellm_params") or {}).get("litellm_session_id"))
        trace = payload.get("trace_id")
        names = {
            "feature": name("feature", self._feature),
            # LiteLLM takes the session for the trace where there is one.
            "trace_id": name("trace_id", kwargs.get("litellm_call_id") if trace in {None, session} else trace),
            "session_id": session,
            "user_id": name("user_id", payload.get("end_user") or kwargs.get("user")),
            "segment": name("segment"),
        }
        return names if outer is None else {**names, "release": outer.release}


def _metadata(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the request says of itself, its headers included; None if it is a judge's."""
    about = kwargs.get("litellm_params") or {}
    metadata = about.get("metadata") or {}
    said = (metadata, metadata.get("requester_metadata"))
    headers = (about.get("proxy_server_request") or {}).get("headers")
    if any(map(_is_judge, (headers, *said))):
        return None
    return {name: value for one in said if isinstance(one, Mapping) for name, value in one.items()}


def _is_judge(names: Any) -> bool:
    return isinstance(names, Mapping) and any(str(name).lower() == JUDGE for name in names)


def _fields(kwargs: Mapping[str, Any], answer: Any, start: Any, end: Any) -> dict[str, Any]:
    payload = kwargs.get("standard_logging_object") or {}
    asked = {**(kwargs.get("optional_params") or {}), **(payload.get("model_parameters") or {})}
    fields: dict[str, Any] = {
        "record_id": kwargs.get("litellm_call_id"),
        "messages": _messages(kwargs),
        "parameters": {"model": kwargs.get("model"), **parameters(asked, PARAMETERS)},
        "cost_usd": payload.get("response_cost") or kwargs.get("response_cost"),
        "provider": payload.get("custom_llm_provider") or kwargs.get("custom_llm_provider") or "",
    }
    if isinstance(asked.get("tools"), list):
        fields["tools"] = asked["tools"]
    if isinstance(start, datetime) and isinstance(end, datetime):
        fields["at"] = end.timestamp()
        fields["latency_ms"] = (end - start).total_seconds() * 1000.0
        first = kwargs.get("completion_start_time")
        if asked.get("stream") or kwargs.get("stream"):
            fields["ttft_ms"] = (first - start).total_seconds() * 1000.0 if isinstance(first, datetime) else None
    if answer is None:
        problem = kwargs.get("exception")
        known = isinstance(problem, BaseException)
        fields.update(failure(problem) if known else {"error": str(payload.get("error_str") or "failed")})
    else:
        fields.update(_answer(answer))
    return fields


def _messages(kwargs: Mapping[str, Any]) -> list[Any]:
    given = kwargs.get("messages") or kwargs.get("input")
    return [{"role": "user", "content": given}] if isinstance(given, str) else lean(items(given))


def _answer(answer: Any) -> dict[str, Any]:
    """A response as LiteLLM makes it of every provider's: OpenAI's chat completion."""
    found: dict[str, Any] = {"model": str(getattr(answer, "model", None) or "")}
    if usage := getattr(answer, "usage", None):
        found["input_tokens"] = getattr(usage, "prompt_tokens", None)
        found["output_tokens"] = getattr(usage, "completion_tokens", None)
        found["cached_tokens"] = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    if choices := getattr(answer, "choices", None):
        message = getattr(choices[0], "message", None)
        found["finish_reason"] = str(getattr(choices[0], "finish_reason", None) or "")
        found["output"] = getattr(message, "content", None) or getattr(choices[0], "text", None) or ""
        if calls := getattr(message, "tool_calls", None):
            found["tool_calls"] = [
                {"id": one.id, "name": one.function.name, "arguments": one.function.arguments} for one in calls
            ]
    elif isinstance(text := getattr(answer, "output_text", None), str):
        found["output"] = text
    if isinstance(answered := getattr(answer, "id", None), str):
        found["response_id"] = answered
    return found
