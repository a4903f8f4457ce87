"""OpenAI, and every endpoint that speaks its chat completions: vLLM, Ollama, llama.cpp, gateways."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from evalpipe.judges.base import Answer, Finish, JudgeConfig, Prompt, judges
from evalpipe.judges.config import Options, read_options
from evalpipe.judges.prices import Usage, cost_usd
from evalpipe.judges.sdk import SdkJudge, count

_FINISH: Mapping[str, Finish] = {"length": "truncated", "content_filter": "refused"}
_MAY_DROP = frozenset({"temperature", "seed"})


class OpenAIOptions(Options):
    """Options of the judge ``openai``."""

    structured: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema", description="How the form of the answer is asked for; older servers know less."
    )
    temperature: float | None = Field(
        default=0.0, ge=0, le=2, description="null sends none; dropped by itself where the model refuses it."
    )
    seed: int | None = Field(default=None, description="For servers that sample reproducibly.")
    effort: str | None = Field(
        default=None, description="How long a reasoning model thinks: none, low, medium, high ..."
    )
    max_tokens: int | None = Field(default=None, ge=16, description="Bound on the answer, thinking included.")


@judges.register("openai")
class OpenAIJudge(SdkJudge):
    """Chat completions with a strict JSON Schema."""

    path: ClassVar[str] = "/chat/completions"

    def __init__(self, config: JudgeConfig) -> None:
        self._options = read_options(config, OpenAIOptions)
        super().__init__(config, self._options, base_url_variable="OPENAI_BASE_URL")
        self._dropped: set[str] = set()
        host = urlsplit(self._base_url).hostname or "api.openai.com"
        # OpenAI's newer models refuse the old name, compatible servers may not know the new one.
        self._bound = "max_completion_tokens" if host.endswith("openai.com") else "max_tokens"

    def _open(self) -> tuple[Any, type[Exception]]:
        from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAIError

        own = not self._config.base_url
        key = self._config.api_key or (os.environ.get("OPENAI_API_KEY", "") if own else "none")
        if not key:
            raise self._no_key("OPENAI_API_KEY")
        client = AsyncOpenAI(
            api_key=key,
            base_url=self._base_url or None,
            max_retries=0,
            timeout=self._config.timeout_s,
            http_client=DefaultAioHttpClient(),
        )
        return client, OpenAIError

    async def _post(self, prompt: Prompt) -> bytes:
        from openai import BadRequestError

        body = self.body(prompt)
        while True:
            try:
                return await self._send(self.path, body)
            except BadRequestError as error:
                if error.param not in _MAY_DROP or error.param not in body:
                    raise
                self._dropped.add(error.param)
                del body[error.param]

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The request."""
        options = self._options
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            self._bound: options.max_tokens or prompt.max_tokens,
        }
        if options.structured == "json_schema":
            schema = {"name": "grade", "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif options.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        extras = {"temperature": options.temperature, "seed": options.seed, "reasoning_effort": options.effort}
        body.update({name: v for name, v in extras.items() if v is not None and name not in self._dropped})
        return body

    def read(self, body: Mapping[str, Any]) -> Answer:
        """The first choice."""
        choice = body["choices"][0]
        message = choice["message"]
        used = body.get("usage") or {}
        usage = Usage(
            input_tokens=count(used.get("prompt_tokens")),
            cache_read_tokens=count((used.get("prompt_tokens_details") or {}).get("cached_tokens")),
            output_tokens=count(used.get("completion_tokens")),
        )
        refused = message.get("refusal")
        model = str(body.get("model") or self._config.model)
        return Answer(
            text=str(refused or message.get("content") or ""),
            model=model,
            finish="refused" if refused else _FINISH.get(choice.get("finish_reason"), "complete"),
            fingerprint=str(body.get("system_fingerprint") or ""),
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cache_read_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=cost_usd(
                usage,
                provider="openai",
                models=(model, self._config.model),
                base_url=self._base_url,
                per_mtok=self._options.usd_per_mtok,
            ),
        )
