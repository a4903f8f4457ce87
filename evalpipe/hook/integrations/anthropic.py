"""``anthropic.Anthropic`` and ``AsyncAnthropic`` (also on Bedrock and Vertex): messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from evalpipe.hook.integrations import replace_method, scalars

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

PARAMETERS: Final = ("model", "temperature", "top_p", "top_k", "max_tokens", "service_tier")


def instrument(hook: Hook, client: Any, feature: str | None) -> None:
    """Record ``client.messages.create``."""
    replace_method(hook, client.messages, "create", feature, read_request, read_message)


def read_request(call: Call, kwargs: Mapping[str, Any]) -> None:
    """The request: ``system`` becomes the first message."""
    if not call.sampled:
        return
    messages = list(kwargs.get("messages", ()))
    if isinstance(kwargs.get("system"), str | list):
        messages.insert(0, {"role": "system", "content": kwargs["system"]})
    call.messages = messages
    call.parameters = scalars(kwargs, PARAMETERS)
    if isinstance(kwargs.get("tools"), list | tuple):
        call.tools = kwargs["tools"]


def read_message(call: Call, message: Any) -> None:
    """The response. Input tokens are all of them: read from the cache, written to it, and neither."""
    if usage := getattr(message, "usage", None):
        cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        call.input_tokens = usage.input_tokens + cached
        call.output_tokens = usage.output_tokens
    if not call.sampled:
        return
    call.model = message.model or ""
    call.finish_reason = message.stop_reason or ""
    call.output = "".join(block.text for block in message.content if block.type == "text")
    calls = [block for block in message.content if block.type == "tool_use"]
    if calls:
        call.tool_calls = [{"id": one.id, "name": one.name, "arguments": one.input} for one in calls]
