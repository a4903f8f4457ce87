"""``anthropic.Anthropic`` and ``AsyncAnthropic`` (also on Bedrock, Vertex and Foundry): messages, beta ones too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from evalpipe.hook.integrations.reading import items, lean, parameters
from evalpipe.hook.integrations.streams import Pieces, Route

if TYPE_CHECKING:
    from evalpipe.hook.call import Call

PARAMETERS: Final = frozenset(
    {"model", "temperature", "top_p", "top_k", "max_tokens", "stop_sequences", "tool_choice", "thinking",
     "service_tier", "speed"}
)  # fmt: skip
TOOL_USES: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
"""Content blocks by which tools are called."""


def read_request(call: Call, body: Mapping[str, Any]) -> None:
    """The request: ``system`` becomes the first message."""
    if not call.capturing:
        return
    messages = lean(items(body.get("messages")))
    if isinstance(body.get("system"), str | list):
        messages.insert(0, {"role": "system", "content": body["system"]})
    call.messages = messages
    found = parameters(body, PARAMETERS)
    output = body.get("output_config")
    if isinstance(output, Mapping):
        if isinstance(output.get("effort"), str):
            found["reasoning_effort"] = output["effort"]
        if isinstance(output.get("format"), Mapping):
            found["response_format"] = str(output["format"].get("type", ""))
    if body.get("stream") is True:
        found["stream"] = True
    call.parameters = found
    if isinstance(body.get("tools"), list | tuple):
        call.tools = body["tools"]


def read_message(call: Call, message: Any) -> None:
    """The response."""
    _read_head(call, message)
    call.finish_reason = message.stop_reason or ""
    call.output = "".join(block.text for block in message.content if block.type == "text")
    if call.capturing and (calls := [block for block in message.content if block.type in TOOL_USES]):
        call.tool_calls = [{"id": one.id, "name": one.name, "arguments": one.input} for one in calls]


def _read_head(call: Call, message: Any) -> None:
    call.model = message.model or ""
    if call.capturing and isinstance(message.id, str):
        call.attributes["response_id"] = message.id
    if usage := message.usage:
        _read_usage(call, usage)


def _read_usage(call: Call, usage: Any) -> None:
    """Input tokens are all of them: read from the cache, written to it, and neither."""
    read = usage.cache_read_input_tokens or 0
    written = usage.cache_creation_input_tokens or 0
    if (given := usage.input_tokens) is not None:
        call.input_tokens = given + read + written
        call.cached_tokens = read
    call.output_tokens = usage.output_tokens
    if call.capturing:
        if written:
            call.attributes["cache_write_tokens"] = written
        if reasoning := getattr(getattr(usage, "output_tokens_details", None), "thinking_tokens", None):
            call.attributes["reasoning_tokens"] = reasoning
        if isinstance(tier := getattr(usage, "service_tier", None), str):
            call.attributes["service_tier"] = tier


class MessageReader:
    """Events of a message."""

    def __init__(self, call: Call, pieces: Pieces) -> None:
        self._call = call
        self._pieces = pieces
        self._text: list[str] = []
        self._tools: dict[int, tuple[dict[str, Any], list[str]]] = {}

    def read(self, event: Any) -> None:
        """Text, tool uses, stop reason, and usage, which comes in two parts."""
        call = self._call
        kind = event.type
        if kind == "content_block_delta":
            self._read_delta(event)
        elif kind == "message_start":
            _read_head(call, event.message)
        elif kind == "content_block_start":
            block = event.content_block
            if block.type in TOOL_USES:
                call.first_token()
                if call.capturing:
                    self._tools[event.index] = ({"id": block.id, "name": block.name}, [])
        elif kind == "message_delta":
            call.finish_reason = event.delta.stop_reason or ""
            if event.usage:
                # Counts are totals; the input's may be left out, and the cache's with it.
                _read_usage(call, event.usage)

    def _read_delta(self, event: Any) -> None:
        delta = event.delta
        if delta.type == "text_delta":
            if delta.text:
                self._call.first_token()
                self._pieces.add(self._text, delta.text)
        elif delta.type == "input_json_delta" and event.index in self._tools:
            self._pieces.add(self._tools[event.index][1], delta.partial_json)

    def finish(self) -> None:
        """Put the pieces together."""
        self._call.output = "".join(self._text)
        if self._tools:
            self._call.tool_calls = [
                {**made, "arguments": "".join(arguments)} for _, (made, arguments) in sorted(self._tools.items())
            ]


ROUTES: Final = {"/v1/messages": Route(read_request, read_message, MessageReader)}
"""By path of the request."""
