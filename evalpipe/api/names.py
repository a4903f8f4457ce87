"""Names of the attributes that a call is read from: the conventions have changed, and all of them are still sent."""

from __future__ import annotations

from typing import Final

VERSIONS: Final = ("model", "prompt", "retrieval", "index", "tool_schema", "data_pipeline")
SESSION: Final = ("gen_ai.conversation.id", "session.id", "traceloop.association.properties.session_id")
USER: Final = ("user.id", "enduser.id", "enduser.pseudo.id", "traceloop.association.properties.user_id")
INPUT_TOKENS: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens")
OUTPUT_TOKENS: Final = (
    "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens",
)  # fmt: skip
CACHED_TOKENS: Final = (
    "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens", "gen_ai.usage.cached_input_tokens",
)  # fmt: skip
FIRST_TOKEN: Final = (
    "gen_ai.response.time_to_first_chunk", "gen_ai.response.time_to_first_token", "gen_ai.server.time_to_first_token",
)  # fmt: skip
PARAMETERS: Final = {
    "model": ("gen_ai.request.model",),
    "temperature": ("gen_ai.request.temperature",),
    "top_p": ("gen_ai.request.top_p",),
    "top_k": ("gen_ai.request.top_k",),
    "max_tokens": ("gen_ai.request.max_tokens", "llm.request.max_tokens"),
    "seed": ("gen_ai.request.seed", "gen_ai.openai.request.seed"),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", "llm.frequency_penalty"),
    "presence_penalty": ("gen_ai.request.presence_penalty", "llm.presence_penalty"),
    "stop": ("gen_ai.request.stop_sequences", "llm.chat.stop_sequences"),
    "n": ("gen_ai.request.choice.count",),
    "stream": ("gen_ai.request.stream", "llm.is_streaming"),
}
ROLES: Final = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
KEPT: Final = {
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "response_id": ("gen_ai.response.id",),
    "service_version": ("service.version",),
}
