"""``openai.OpenAI`` and ``AsyncOpenAI`` (Azure's and every compatible server's too): chat completions, responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from evalpipe.hook.integrations import replace_method, scalars

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

PARAMETERS: Final = ("model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "max_output_tokens",
                     "seed", "n", "stop", "tool_choice", "presence_penalty", "frequency_penalty",
                     "reasoning_effort")  # fmt: skip


def instrument(hook: Hook, client: Any, feature: str | None) -> None:
    """Record ``client.chat.completions.create``, and ``client.responses.create`` where the library has it."""
    replace_method(hook, client.chat.completions, "create", feature, read_chat, read_completion)
    if hasattr(client, "responses"):
        replace_method(hook, client.responses, "create", feature, read_responses, read_response)


def read_chat(call: Call, kwargs: Mapping[str, Any]) -> None:
    """The request of a chat completion."""
    if call.sampled:
        call.messages = kwargs.get("messages", ())
        _read_common(call, kwargs)


def read_completion(call: Call, completion: Any) -> None:
    """The response of a chat completion; of several choices the first is what is recorded."""
    if usage := getattr(completion, "usage", None):
        call.input_tokens = usage.prompt_tokens
        call.output_tokens = usage.completion_tokens
    if not call.sampled:
        return
    call.model = completion.model or ""
    if not completion.choices:
        return
    choice = completion.choices[0]
    call.finish_reason = choice.finish_reason or ""
    refusal = getattr(choice.message, "refusal", None)
    call.output = choice.message.content or refusal or ""
    if refusal:
        call.finish_reason = "refusal"
    if calls := choice.message.tool_calls:
        call.tool_calls = [
            {"id": one.id, "name": one.function.name, "arguments": one.function.arguments}
            for one in calls
            if getattr(one, "function", None)
        ]


def read_responses(call: Call, kwargs: Mapping[str, Any]) -> None:
    """The request of a response: instructions become the system message."""
    if not call.sampled:
        return
    given = kwargs.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or ())
    if isinstance(kwargs.get("instructions"), str):
        messages.insert(0, {"role": "system", "content": kwargs["instructions"]})
    call.messages = messages
    _read_common(call, kwargs)


def read_response(call: Call, response: Any) -> None:
    """The response object: its text, its function calls, why it ended."""
    if usage := getattr(response, "usage", None):
        call.input_tokens = usage.input_tokens
        call.output_tokens = usage.output_tokens
    if not call.sampled:
        return
    call.model = response.model or ""
    call.output = response.output_text
    incomplete = getattr(response, "incomplete_details", None)
    call.finish_reason = (incomplete and incomplete.reason) or response.status or ""
    refused = [
        part.refusal
        for item in response.output
        if item.type == "message"
        for part in item.content
        if part.type == "refusal"
    ]
    if refused and not call.output:
        call.output = refused[0]
        call.finish_reason = "refusal"
    calls = [item for item in response.output if item.type == "function_call"]
    if calls:
        call.tool_calls = [{"id": one.call_id, "name": one.name, "arguments": one.arguments} for one in calls]


def _read_common(call: Call, kwargs: Mapping[str, Any]) -> None:
    call.parameters = scalars(kwargs, PARAMETERS)
    if isinstance(kwargs.get("tools"), list | tuple):
        call.tools = kwargs["tools"]
