"""LangChain and LangGraph: ``model.invoke(..., config={"callbacks": [EvalpipeCallback(hook)]})``.

Every model call becomes a record of the trace that its root run is. What a retriever found is the context of the model
calls that follow in that trace; tools that ran belong to the call around them, where there is one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from evalpipe.errors import CallRefused
from evalpipe.hook.call import current
from evalpipe.hook.integrations.reading import lean
from evalpipe.hook.observing import documents, failure

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

MAX_RUNS: Final = 10_000
"""Runs that are remembered at the most; of those that never end the oldest are forgotten."""
ROLES: Final = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}
"""LangChain's names of roles that others call differently."""
PARAMETERS: Final = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "seed", "stop",
                     "tool_choice", "reasoning_effort", "service_tier", "stream")  # fmt: skip


class _Run:
    """A run that has not ended."""

    __slots__ = ("arguments", "call", "found", "name", "root")

    def __init__(self, root: str, found: list[Any]) -> None:
        self.root = root
        self.found = found
        """What retrievers found in the trace; shared by all runs of it."""
        self.call: Call | None = None
        """The model's own call, or the one that a tool or retriever is part of."""
        self.name = ""
        self.arguments: Any = None


def _quiet(method: Callable[..., None]) -> Callable[..., None]:
    """Nothing gets out but a refusal, which is only raised where the application asked for it."""

    @functools.wraps(method)
    def quiet(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except CallRefused:
            raise
        except Exception:  # noqa: BLE001 - another version's shapes must not break the application's run
            return

    return quiet


class EvalpipeCallback(BaseCallbackHandler):
    """A callback handler that records model calls; for one invocation, or for all of an object's.

    ``metadata`` of the run may name ``session_id`` (or ``thread_id``), ``user_id``, ``feature`` and ``segment``.

    Args:
        hook: records the calls.
        feature: what the calls are for, where neither metadata nor a call around them says it.
        enforce: whether kill switches and budgets stop calls: their exceptions then reach the application.
    """

    run_inline = True  # it takes microseconds and never waits; and it must see the context of the run

    def __init__(self, hook: Hook, *, feature: str | None = None, enforce: bool = False) -> None:
        self._hook = hook
        self._feature = feature
        self._enforce = enforce
        self._runs: dict[UUID, _Run] = {}
        self.raise_error = enforce

    @_quiet
    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **_: Any
    ) -> None:
        """Part of a trace."""
        self._begin(run_id, parent_run_id)

    @_quiet
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        """Nothing of its own to record."""
        self._runs.pop(run_id, None)

    @_quiet
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """As above."""
        self._runs.pop(run_id, None)

    @_quiet
    def on_chat_model_start(
        self, serialized: Any, messages: Sequence[Sequence[Any]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """A model call begins."""
        call = self._call(run_id, kwargs)
        if call.capturing:
            call.messages = lean([_message(one) for one in messages[0]])

    @_quiet
    def on_llm_start(self, serialized: Any, prompts: Sequence[str], *, run_id: UUID, **kwargs: Any) -> None:
        """A call of a model that completes text begins."""
        call = self._call(run_id, kwargs)
        if call.capturing:
            call.messages = [{"role": "user", "content": prompts[0]}]

    @_quiet
    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **_: Any) -> None:
        """The first one with content gives the TTFT."""
        run = self._runs.get(run_id)
        if run and run.call and (token or getattr(getattr(chunk, "message", None), "tool_call_chunks", None)):
            run.call.first_token()

    @_quiet
    def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
        """A model call ended."""
        run = self._runs.pop(run_id, None)
        if run and run.call:
            try:
                _read_result(run.call, response)
            finally:
                run.call.end()

    @_quiet
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A model call failed."""
        run = self._runs.pop(run_id, None)
        if run and run.call:
            run.call.end(error)

    @_quiet
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **_: Any
    ) -> None:
        """Part of the call around it, if any."""
        self._begin(run_id, parent_run_id).call = current()

    @_quiet
    def on_retriever_end(self, found: Sequence[Any], *, run_id: UUID, **_: Any) -> None:
        """What was found is context."""
        run = self._runs.pop(run_id, None)
        if run:
            more = documents(list(found))
            run.found += more
            if run.call is not None and run.call.capturing:
                run.call.context = [*run.call.context, *more]

    @_quiet
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """Nothing was found."""
        self._runs.pop(run_id, None)

    @_quiet
    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None,
        inputs: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Part of the call around it, if any."""
        run = self._begin(run_id, parent_run_id)
        run.call = current()
        run.name = str(kwargs.get("name") or (serialized or {}).get("name", ""))
        run.arguments = input_str if inputs is None else inputs

    @_quiet
    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """What the tool said."""
        self._tool(run_id, result=getattr(output, "content", output))

    @_quiet
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """What went wrong."""
        self._tool(run_id, **failure(error))

    def _tool(self, run_id: UUID, **outcome: Any) -> None:
        run = self._runs.pop(run_id, None)
        if run and run.call is not None and run.call.capturing:
            run.call.add("tool_calls", {"name": run.name, "arguments": run.arguments, **outcome})

    def _begin(self, run_id: UUID, parent_run_id: UUID | None) -> _Run:
        parent = self._runs.get(parent_run_id) if parent_run_id else None
        run = _Run(parent.root, parent.found) if parent else _Run((parent_run_id or run_id).hex, [])
        while len(self._runs) >= MAX_RUNS:
            self._runs.pop(next(iter(self._runs)), None)
        self._runs[run_id] = run
        return run

    def _call(self, run_id: UUID, kwargs: Mapping[str, Any]) -> Call:
        """Begin the call of a model's run."""
        run = self._begin(run_id, kwargs.get("parent_run_id"))
        metadata = kwargs.get("metadata") or {}
        outer = current()
        run.call = call = self._hook.call(
            metadata.get("feature") or (self._feature if outer is None or not outer.feature else None),
            trace_id=run.root if outer is None else None,
            session_id=_text(metadata.get("session_id") or metadata.get("thread_id")),
            user_id=_text(metadata.get("user_id")),
            segment=_text(metadata.get("segment")),
            enforce=self._enforce,
        ).start()
        if call.capturing:
            given = kwargs.get("invocation_params") or {}
            found = {name: given[name] for name in PARAMETERS if given.get(name) is not None}
            model = given.get("model") or given.get("model_name") or metadata.get("ls_model_name")
            call.parameters = {"model": model, **found} if model else found
            if tools := given.get("tools"):
                call.tools = tools
            if run.found:
                call.context = run.found
        return call


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _message(message: Any) -> Any:
    """A message as the providers write it."""
    role = getattr(message, "role", None) or ROLES.get(message.type, message.type)
    said = {"role": role, "content": message.content}
    if calls := getattr(message, "tool_calls", None):
        said["tool_calls"] = [_tool_call(one) for one in calls]
    if call_id := getattr(message, "tool_call_id", None):
        said["tool_call_id"] = call_id
    return said


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": call.get("id"), "name": call.get("name"), "arguments": call.get("args")}


def _read_result(call: Call, result: Any) -> None:
    """The first generation: text, tool calls, usage, model and finish reason, wherever the integration put them."""
    generation = result.generations[0][0]
    message = getattr(generation, "message", None)
    call.output = str(generation.text)
    about = {**(result.llm_output or {}), **(generation.generation_info or {})}
    about.update(getattr(message, "response_metadata", None) or {})
    call.model = str(about.get("model_name") or about.get("model") or "")
    call.finish_reason = str(about.get("finish_reason") or about.get("stop_reason") or "")
    if usage := getattr(message, "usage_metadata", None):
        call.input_tokens, call.output_tokens = usage.get("input_tokens"), usage.get("output_tokens")
        call.cached_tokens = (usage.get("input_token_details") or {}).get("cache_read")
    elif usage := about.get("token_usage") or about.get("usage"):
        call.input_tokens, call.output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if call.capturing:
        if calls := getattr(message, "tool_calls", None):
            call.tool_calls = [_tool_call(one) for one in calls]
        for name, key in (("id", "response_id"), ("system_fingerprint",) * 2):
            if isinstance(about.get(name), str):
                call.attributes[key] = about[name]
