"""A record as people write one: in the tests of scorecards and, a line each, in JSONL files.

Nothing is required: what is left out is unknown, as it is in a record of production.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

from evalpipe.record import Record, Release
from evalpipe.scorecard.criterion import Text, Written

WRITTEN_AT: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""The capture time of every written record: it was never captured, and scoring it must not depend on the day."""


class Document(Written):
    """One retrieved document."""

    id: str = Field(default="", description="How an answer cites it; its place in the list (1, 2, ...) if left out.")
    text: str = Field(description="What it says.")
    score: float | None = Field(default=None, description="The retriever's score.")


class ToolCall(Written):
    """One call that the model asked for."""

    name: Text = Field(description="The tool.")
    arguments: dict[str, Any] | str = Field(
        default_factory=dict, description="An object, or the text as the model wrote it."
    )


class Message(Written):
    """One message of the input."""

    role: Text = Field(description="`system`, `user`, `assistant` or `tool`.")
    content: str | list[Any] = Field(default="", description="Text, or typed parts.")


def _documents(value: Any) -> Any:
    items = [value] if isinstance(value, str | Mapping) else value
    return [{"text": item} if isinstance(item, str) else item for item in items] if isinstance(items, list) else items


_DOCUMENT: Final = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text"],
    "properties": {"id": {"type": "string"}, "text": {"type": "string"}, "score": {"type": "number"}},
}
_ONE_DOCUMENT: Final = {"anyOf": [{"type": "string"}, _DOCUMENT]}
Documents = Annotated[
    list[Document],
    BeforeValidator(_documents),
    WithJsonSchema({"anyOf": [*_ONE_DOCUMENT["anyOf"], {"type": "array", "items": _ONE_DOCUMENT}]}),
]


class WrittenRecord(Written):
    """An interaction in short form."""

    id: str = Field(default="", description="Names the record in what is printed; its line or test if left out.")
    input: str | None = Field(default=None, description="What the user asked: short for one user message.")
    messages: list[Message] = Field(default_factory=list, description="The input as sent, instead of `input`.")
    output: str = Field(default="", description="What the model answered.")
    context: Documents = Field(
        default_factory=list, description="What was retrieved: a text, or a list of texts or {id, text, score}."
    )
    tools: list[Any] = Field(default_factory=list, description="Names or schemas of the tools offered.")
    tool_calls: list[ToolCall] = Field(default_factory=list, description="The calls that the model asked for.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="The request's parameters, such as temperature."
    )
    service: str = Field(default="", description="The service of the release.")
    variant: str = Field(default="baseline", description="The variant of the release.")
    environment: str = Field(default="production", description="The environment of the release.")
    feature: str = Field(default="", description="The product feature.")
    session_id: str = Field(default="", description="The conversation.")
    user_id: str = Field(default="", description="The user's pseudonymous key.")
    model: str = Field(default="", description="The model that answered.")
    input_tokens: int | None = Field(default=None, ge=0, description="Tokens of the input.")
    output_tokens: int | None = Field(default=None, ge=0, description="Tokens of the output.")
    cost_usd: float | None = Field(default=None, ge=0, description="What the call cost.")
    latency_ms: float | None = Field(default=None, ge=0, description="How long it took.")
    finish_reason: str = Field(default="", description="As the provider gave it, for example `stop` or `length`.")
    error: str = Field(default="", description="Class and message of the error of a failed call.")
    attributes: dict[str, Any] = Field(default_factory=dict, description="Further strings, numbers and booleans.")

    def record(self, name: str) -> Record:
        """The record; ``name`` stands for the id where none was written."""
        record_id = self.id or name
        asked = [{"role": "user", "content": self.input}] if self.input is not None else []
        return Record(
            record_id=record_id,
            trace_id=record_id,
            captured_at=WRITTEN_AT,
            release=Release(service=self.service, variant=self.variant, environment=self.environment, model=self.model),
            feature=self.feature,
            session_id=self.session_id,
            user_id=self.user_id,
            unit=self.session_id or self.user_id or record_id,
            messages=asked or [message.model_dump() for message in self.messages],
            output=self.output,
            context=[
                {**d.model_dump(exclude_none=True), "id": d.id or str(place)}
                for place, d in enumerate(self.context, start=1)
            ],
            tools=self.tools,
            tool_calls=[call.model_dump() for call in self.tool_calls],
            parameters=self.parameters,
            model=self.model,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cost_usd=self.cost_usd,
            latency_ms=self.latency_ms,
            finish_reason=self.finish_reason,
            error=self.error,
            attributes=self.attributes,
        )
