"""Anthropic's messages API, and endpoints that speak it.

It takes none of ``temperature``, ``top_p`` and ``top_k`` any more (anthropic 2.12: its typed methods and their types
know no such words), and gives no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from evalpipe.judges.base import Answer, Finish, JudgeConfig, Prompt, judges
from evalpipe.judges.config import Options, read_options
from evalpipe.judges.prices import Usage
from evalpipe.judges.sdk import SdkJudge, count

_FINISH: Mapping[str, Finish] = {
    "max_tokens": "truncated",
    "model_context_window_exceeded": "truncated",
    "refusal": "refused",
}


class AnthropicOptions(Options):
    """Options of the judge ``anthropic``."""

    unversioned: ClassVar[frozenset[str]] = Options.unversioned | {"cache_ttl"}

    structured: Literal["json_schema", "none"] = Field(
        default="json_schema", description="How the form of the answer is asked for; compatible servers may know none."
    )
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="How much work the model puts into the grade."
    )
    max_tokens: int | None = Field(default=None, ge=16, description="Bound on the answer, thinking included.")
    cache_ttl: Literal["5m", "1h"] = Field(
        default="5m", description="How long the rubric stays cached after its last use; 1h costs more to write."
    )


@judges.register("anthropic")
class AnthropicJudge(SdkJudge):
    """Messages with a JSON Schema; the rubric is marked for the provider's cache."""

    path: ClassVar[str] = "/v1/messages"
    price_list: ClassVar[str] = "anthropic"
    base_url_variable: ClassVar[str] = "ANTHROPIC_BASE_URL"

    def __init__(self, config: JudgeConfig) -> None:
        self._options = read_options(config, AnthropicOptions)
        super().__init__(config, self._options, base_url_variable=self.base_url_variable)

    def _open(self) -> tuple[Any, type[Exception]]:
        from anthropic import AnthropicError, AsyncAnthropic, DefaultAioHttpClient

        client = AsyncAnthropic(
            api_key=self._config.api_key or ("none" if self._config.base_url else None),
            base_url=self._base_url or None,
            max_retries=0,
            timeout=self._config.timeout_s,
            http_client=DefaultAioHttpClient(),
            open_telemetry=False,  # the judged text goes to the judge and nowhere else
        )
        if client.api_key is None and client.auth_token is None and client.credentials is None:
            raise self._no_key("ANTHROPIC_API_KEY")
        return client, AnthropicError

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The request."""
        cache = {"type": "ephemeral"} | ({"ttl": "1h"} if self._options.cache_ttl == "1h" else {})
        output: dict[str, Any] = {}
        if self._options.structured == "json_schema":
            output["format"] = {"type": "json_schema", "schema": prompt.schema}
        if self._options.effort is not None:
            output["effort"] = self._options.effort
        body: dict[str, Any] = {
            "model": self._config.model,
            "max_tokens": self._options.max_tokens or prompt.max_tokens,
            "system": [{"type": "text", "text": prompt.system, "cache_control": cache}],
            "messages": [{"role": "user", "content": prompt.user}],
        }
        if output:
            body["output_config"] = output
        return body

    def read(self, body: Mapping[str, Any]) -> Answer:
        """The text blocks as one answer."""
        text = "".join(block["text"] for block in body["content"] if block.get("type") == "text")
        used = body.get("usage") or {}
        read, written = count(used.get("cache_read_input_tokens")), count(used.get("cache_creation_input_tokens"))
        usage = Usage(
            # Anthropic counts cached tokens beside the input, the contract counts them within.
            input_tokens=count(used.get("input_tokens")) + read + written,
            cache_read_tokens=read,
            cache_write_tokens=written,
            cache_write_1h_tokens=count((used.get("cache_creation") or {}).get("ephemeral_1h_input_tokens")),
            output_tokens=count(used.get("output_tokens")),
        )
        return self._answer(
            body,
            usage,
            text=text or str((body.get("stop_details") or {}).get("explanation") or ""),
            finish=_FINISH.get(str(body.get("stop_reason")), "complete"),
        )
