"""OpenAI, and every endpoint that speaks its chat completions: vLLM, Ollama, llama.cpp, gateways.

``OpenAIFamily`` is what the judges over OpenAI's other endpoints share with this one.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field

from evalpipe.judges.base import Answer, Finish, JudgeConfig, Prompt, Token, judges
from evalpipe.judges.config import Options, read_options
from evalpipe.judges.prices import Usage
from evalpipe.judges.sdk import SdkJudge, count

TOP_LOGPROBS: Final = 20
"""Alternatives that are asked for at each token: as many as OpenAI's API gives."""
FEWER_LOGPROBS: Final = 5
"""What older servers allow."""
BREAKPOINT: Final = {"prompt_cache_breakpoint": {"mode": "explicit"}}
"""Behind the rubric: the record after it never comes again, and writing it to the cache would cost a quarter more."""

_FINISH: Mapping[str, Finish] = {"length": "truncated", "content_filter": "refused"}
_DROPPABLE = ("prompt_cache", "temperature", "seed")
_REFUSALS = frozenset({400, 403, 422})
Without = frozenset[str]
"""What a model turned out to refuse: ``top_logprobs`` (so many of them), ``logprobs`` and the like."""


class OpenAIFamily(SdkJudge):
    """Base of the judges over OpenAI's library: its client, and what a model refuses is left out from then on."""

    gives_logprobs: ClassVar[bool] = True
    price_list: ClassVar[str] = "openai"
    base_url_variable: ClassVar[str] = "OPENAI_BASE_URL"

    def __init__(self, config: JudgeConfig, options: Options) -> None:
        super().__init__(config, options, base_url_variable=self.base_url_variable)
        self._without: Without = frozenset()
        host = urlsplit(self._base_url).hostname or "api.openai.com"
        self._own_host = host == "api.openai.com" or host.endswith(".openai.com")

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The request."""
        return self._build(prompt, self._without)

    def _build(self, prompt: Prompt, without: Without) -> dict[str, Any]:
        raise NotImplementedError

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
        from openai import APIStatusError

        without = self._without
        while True:
            body = self._build(prompt, without)
            try:
                raw = await self._send(self.path, body)
            except APIStatusError as error:
                refused = _refused(error, body, without)
                if refused is None:
                    raise
                without |= {refused}
            else:
                # Only what helped is remembered: a refusal may quote the record, which says what it likes.
                self._without |= without
                return raw

    def _caching(self, prompt: Prompt, without: Without) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the request and the rubric's part say of the cache: nothing to servers that are not OpenAI's own."""
        if not self._own_host or "prompt_cache" in without:
            return {}, {}
        rubric = hashlib.sha256(prompt.system.encode("utf-8", "replace")).hexdigest()[:32]
        if not _takes_breakpoints(self._config.model):
            return {"prompt_cache_key": rubric}, {}
        return {"prompt_cache_key": rubric, "prompt_cache_options": {"mode": "explicit"}}, BREAKPOINT


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
class OpenAIJudge(OpenAIFamily):
    """Chat completions with a strict JSON Schema."""

    path: ClassVar[str] = "/chat/completions"

    def __init__(self, config: JudgeConfig) -> None:
        self._options = read_options(config, OpenAIOptions)
        super().__init__(config, self._options)
        # OpenAI's newer models refuse the old name, compatible servers may not know the new one.
        self._bound = "max_completion_tokens" if self._own_host else "max_tokens"

    def _build(self, prompt: Prompt, without: Without) -> dict[str, Any]:
        options = self._options
        caching, mark = self._caching(prompt, without)
        rubric: Any = [{"type": "text", "text": prompt.system, **mark}] if mark else prompt.system
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": "system", "content": rubric}, {"role": "user", "content": prompt.user}],
            self._bound: options.max_tokens or prompt.max_tokens,
            **caching,
        }
        if options.structured == "json_schema":
            schema = {"name": "grade", "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif options.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        if prompt.logprobs and "logprobs" not in without:
            body |= {"logprobs": True, "top_logprobs": top_logprobs(without)}
        extras = {"temperature": options.temperature, "seed": options.seed, "reasoning_effort": options.effort}
        return body | {name: v for name, v in extras.items() if v is not None and name not in without}

    def read(self, body: Mapping[str, Any]) -> Answer:
        """The first choice."""
        choice = body["choices"][0]
        message = choice["message"]
        used = body.get("usage") or {}
        details = used.get("prompt_tokens_details") or {}
        usage = Usage(
            input_tokens=count(used.get("prompt_tokens")),
            cache_read_tokens=count(details.get("cached_tokens")),
            cache_write_tokens=count(details.get("cache_write_tokens")),
            output_tokens=count(used.get("completion_tokens")),
        )
        refused = message.get("refusal")
        return self._answer(
            body,
            usage,
            text=str(refused or message.get("content") or ""),
            finish="refused" if refused else _FINISH.get(choice.get("finish_reason"), "complete"),
            fingerprint=str(body.get("system_fingerprint") or ""),
            tokens=read_tokens((choice.get("logprobs") or {}).get("content")),
        )


def read_tokens(found: Any) -> tuple[Token, ...]:
    """The tokens of an answer as OpenAI's endpoints list them; () where they are none: the answer is good without.

    A character may lie across two tokens: it counts as text of the one that ends it, so that all of them together are
    the answer.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    tokens = []
    try:
        for item in found or ():
            raw = item.get("bytes")
            text = str(item["token"]) if raw is None else decode(bytes(raw))
            alternatives = {str(top["token"]): float(top["logprob"]) for top in item.get("top_logprobs") or ()}
            alternatives.setdefault(str(item["token"]), float(item["logprob"]))
            tokens.append(Token(text, alternatives))
    except (TypeError, ValueError, LookupError, AttributeError):
        return ()
    return tuple(tokens)


def top_logprobs(without: Without) -> int:
    """How many alternatives to ask for."""
    return FEWER_LOGPROBS if "top_logprobs" in without else TOP_LOGPROBS


def _refused(error: Any, body: Mapping[str, Any], without: Without) -> str | None:
    """The parameter of ours that a refusal is about, by its field or, where that does not tell, by its words."""
    if error.status_code not in _REFUSALS:
        return None
    told = str(error.message if error.param in {None, "", "include"} else error.param)
    if "top_logprobs" in body and "logprobs" in told:
        return "logprobs" if "top_logprobs" in without or "top_logprobs" not in told else "top_logprobs"
    droppable = (name for name in _DROPPABLE if any(sent.startswith(name) for sent in body))
    return next((name for name in droppable if re.search(rf"\b{name}", told)), None)


def _takes_breakpoints(model: str) -> bool:
    """Whether the rubric's end can be marked for the cache: gpt-5.6 and later."""
    found = re.match(r"gpt-(\d+)(?:\.(\d+))?", model)
    return found is not None and (int(found[1]), int(found[2] or 0)) >= (5, 6)
