"""``openai.OpenAI`` and ``AsyncOpenAI``, Azure's and every compatible server's too.

Chat completions, responses, and the older text completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from evalpipe.hook.integrations.reading import items, lean, parameters
from evalpipe.hook.integrations.streams import Pieces, Route, uncaptured

if TYPE_CHECKING:
    from evalpipe.hook.call import Call

PARAMETERS: Final = frozenset(
    {"model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "seed", "n",
     "stop", "tool_choice", "parallel_tool_calls", "presence_penalty", "frequency_penalty", "reasoning_effort",
     "verbosity", "service_tier", "truncation", "previous_response_id"}
)  # fmt: skip
ENDED: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Events that carry the whole response."""
TEXTS: Final = frozenset({"response.output_text.delta", "response.refusal.delta"})
"""Events that carry text for the user."""
TOKENS: Final = TEXTS | {"response.function_call_arguments.delta", "response.custom_tool_call_input.delta"}
"""Events by which the first token comes."""


def read_chat(call: Call, body: Mapping[str, Any]) -> None:
    """The request of a chat completion."""
    if call.capturing:
        call.messages = lean(items(body.get("messages")))
        _read_common(call, body, body.get("response_format"))


def read_text(call: Call, body: Mapping[str, Any]) -> None:
    """The request of a text completion; of several prompts the first."""
    if call.capturing:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
            prompt = prompt[0]
        if isinstance(prompt, str):
            call.messages = [{"role": "user", "content": prompt}]
        _read_common(call, body, None)


def read_responses(call: Call, body: Mapping[str, Any]) -> None:
    """The request of a response: instructions become the system message."""
    if body.get("background"):
        uncaptured(call)  # its answer comes with another request, if at all
    if not call.capturing:
        return
    given = body.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else lean(items(given))
    if isinstance(body.get("instructions"), str):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    call.messages = messages
    text = body.get("text")
    reasoning = body.get("reasoning")
    if isinstance(reasoning, Mapping) and isinstance(reasoning.get("effort"), str):
        body = {**body, "reasoning_effort": reasoning["effort"]}
    _read_common(call, body, text.get("format") if isinstance(text, Mapping) else None)


def _read_common(call: Call, body: Mapping[str, Any], form: Any) -> None:
    found = parameters(body, PARAMETERS)
    if isinstance(form, Mapping):
        found["response_format"] = str(form.get("type", ""))
    if body.get("stream") is True:
        found["stream"] = True
    call.parameters = found
    if isinstance(body.get("tools"), list | tuple):
        call.tools = body["tools"]


def read_completion(call: Call, completion: Any) -> None:
    """The response of a chat completion; of several choices the first is what is recorded."""
    _read_head(call, completion)
    _read_usage(call, completion.usage)
    if not completion.choices:
        return
    choice = completion.choices[0]
    message = choice.message
    call.finish_reason = choice.finish_reason or ""
    call.output = message.content or getattr(getattr(message, "audio", None), "transcript", "") or ""
    if refusal := getattr(message, "refusal", None):
        call.output, call.finish_reason = call.output or refusal, "refusal"
    if call.capturing and (calls := message.tool_calls):
        call.tool_calls = [_tool_call(one) for one in calls]


def read_text_completion(call: Call, completion: Any) -> None:
    """The response of a text completion."""
    _read_head(call, completion)
    _read_usage(call, completion.usage)
    if completion.choices:
        call.output = completion.choices[0].text or ""
        call.finish_reason = completion.choices[0].finish_reason or ""


def read_response(call: Call, response: Any) -> None:
    """The response object: its text, its function calls, why it ended."""
    _read_head(call, response)
    if usage := getattr(response, "usage", None):
        call.input_tokens = usage.input_tokens
        call.output_tokens = usage.output_tokens
        _read_details(call, usage.input_tokens_details, usage.output_tokens_details)
    call.output = response.output_text
    incomplete = getattr(response, "incomplete_details", None)
    call.finish_reason = (incomplete and incomplete.reason) or response.status or ""
    if problem := getattr(response, "error", None):
        call.error = f"{problem.code}: {problem.message}"
    if not call.output:
        parts = [part for item in response.output if item.type == "message" for part in item.content]
        if refused := next((part.refusal for part in parts if part.type == "refusal"), ""):
            call.output, call.finish_reason = refused, "refusal"
    if call.capturing and (calls := [one for one in map(_item_call, response.output) if one]):
        call.tool_calls = calls


def _read_head(call: Call, answer: Any) -> None:
    """Who answered."""
    call.model = answer.model or ""
    if call.capturing:
        attributes = call.attributes
        for name, key in (("id", "response_id"), ("system_fingerprint",) * 2, ("service_tier",) * 2):
            if isinstance(value := getattr(answer, name, None), str):
                attributes[key] = value


def _read_usage(call: Call, usage: Any) -> None:
    if usage:
        call.input_tokens = usage.prompt_tokens
        call.output_tokens = usage.completion_tokens
        _read_details(
            call, getattr(usage, "prompt_tokens_details", None), getattr(usage, "completion_tokens_details", None)
        )


def _read_details(call: Call, given: Any, made: Any) -> None:
    if given:
        call.cached_tokens = getattr(given, "cached_tokens", None)
    if made and call.capturing and (reasoning := getattr(made, "reasoning_tokens", None)):
        call.attributes["reasoning_tokens"] = reasoning


def _tool_call(one: Any) -> dict[str, Any]:
    """A call of a function, or of a custom tool, whose argument is plain text."""
    if function := getattr(one, "function", None):
        return {"id": one.id, "name": function.name, "arguments": function.arguments}
    return {"id": one.id, "name": one.custom.name, "arguments": one.custom.input}


def _item_call(item: Any) -> dict[str, Any] | None:
    if item.type == "function_call":
        return {"id": item.call_id, "name": item.name, "arguments": item.arguments}
    if item.type == "custom_tool_call":
        return {"id": item.call_id, "name": item.name, "arguments": item.input}
    if item.type.endswith("_call"):  # a tool that the provider runs: web search, code interpreter, MCP
        name = getattr(item, "name", None) or item.type.removesuffix("_call")
        return {"id": item.id, "name": name, "arguments": getattr(item, "arguments", None) or ""}
    return None


class ChatReader:
    """Chunks of a chat or text completion."""

    def __init__(self, call: Call, pieces: Pieces) -> None:
        self._call = call
        self._pieces = pieces
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._tools: dict[int, tuple[dict[str, Any], list[str]]] = {}

    def read(self, chunk: Any) -> None:
        """Text, refusal, tool calls and finish reason of the first choice; model; usage, which comes last."""
        call = self._call
        if not call.model:
            _read_head(call, chunk)
        if usage := chunk.usage:
            _read_usage(call, usage)
        for choice in chunk.choices:
            if choice.index == 0:
                self._read_choice(choice)

    def _read_choice(self, choice: Any) -> None:
        call = self._call
        if reason := choice.finish_reason:
            call.finish_reason = reason
        delta = getattr(choice, "delta", None)
        if delta is None:
            if text := getattr(choice, "text", ""):
                call.first_token()
                self._pieces.add(self._text, text)
            return
        if delta.content:
            call.first_token()
            self._pieces.add(self._text, delta.content)
        elif delta.tool_calls:
            call.first_token()
            if call.capturing:
                self._read_tool_calls(delta.tool_calls)
        elif refusal := getattr(delta, "refusal", None):
            call.first_token()
            self._pieces.add(self._refusal, refusal)

    def _read_tool_calls(self, deltas: Sequence[Any]) -> None:
        for delta in deltas:
            made, arguments = self._tools.setdefault(delta.index, ({"id": "", "name": ""}, []))
            made["id"] = delta.id or made["id"]
            if function := delta.function:
                made["name"] = function.name or made["name"]
                if function.arguments:
                    self._pieces.add(arguments, function.arguments)

    def finish(self) -> None:
        """Put the pieces together."""
        call = self._call
        call.output = "".join(self._text)
        if self._refusal:
            call.output = call.output or "".join(self._refusal)
            call.finish_reason = "refusal"
        if self._tools:
            call.tool_calls = [
                {**made, "arguments": "".join(arguments)} for _, (made, arguments) in sorted(self._tools.items())
            ]


class ResponseReader:
    """Events of a response; the last one has all, the others are for streams that end before it."""

    def __init__(self, call: Call, pieces: Pieces) -> None:
        self._call = call
        self._pieces = pieces
        self._text: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._whole = False

    def read(self, event: Any) -> None:
        """Text as it comes, finished tool calls, and the whole response."""
        call = self._call
        kind = event.type
        if kind in TOKENS:
            call.first_token()
            if kind in TEXTS:
                self._pieces.add(self._text, event.delta)
        elif kind in ENDED:
            self._whole = True
            read_response(call, event.response)
        elif kind == "response.created":
            _read_head(call, event.response)
        elif kind == "response.output_item.done":
            if call.capturing and (made := _item_call(event.item)):
                self._calls.append(made)
        elif kind == "error":
            call.error = f"{event.code}: {event.message}"

    def finish(self) -> None:
        """What is there of a response that did not end."""
        if not self._whole:
            self._call.output = "".join(self._text)
            if self._calls:
                self._call.tool_calls = self._calls


ROUTES: Final = {
    "/chat/completions": Route(read_chat, read_completion, ChatReader),
    "/responses": Route(read_responses, read_response, ResponseReader),
    "/completions": Route(read_text, read_text_completion, ChatReader),
}
"""By path of the request."""
