"""OpenAI's responses API, and endpoints that speak it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from evalpipe.errors import JudgeUnavailable
from evalpipe.judges.base import Answer, Finish, JudgeConfig, Prompt, judges
from evalpipe.judges.config import Options, read_options
from evalpipe.judges.openai import OpenAIFamily, Without, read_tokens, top_logprobs
from evalpipe.judges.prices import Usage
from evalpipe.judges.sdk import count

_INCOMPLETE: Mapping[str, Finish] = {"max_output_tokens": "truncated", "content_filter": "refused"}
_POLICY = frozenset({"bio_policy", "misalignment_policy_violation", "invalid_prompt"})
"""Errors that are about what was asked, and would come again."""


class ResponsesOptions(Options):
    """Options of the judge ``openai-responses``."""

    structured: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema", description="How the form of the answer is asked for; older servers know less."
    )
    temperature: float | None = Field(
        default=0.0, ge=0, le=2, description="null sends none; dropped by itself where the model refuses it."
    )
    effort: str | None = Field(
        default=None, description="How long a reasoning model thinks: none, low, medium, high ..."
    )
    max_tokens: int | None = Field(default=None, ge=16, description="Bound on the answer, thinking included.")


@judges.register("openai-responses")
class OpenAIResponsesJudge(OpenAIFamily):
    """Responses with a strict JSON Schema; the provider is told to keep none."""

    path: ClassVar[str] = "/responses"

    def __init__(self, config: JudgeConfig) -> None:
        self._options = read_options(config, ResponsesOptions)
        super().__init__(config, self._options)

    def _build(self, prompt: Prompt, without: Without) -> dict[str, Any]:
        options = self._options
        caching, mark = self._caching(prompt, without)
        body: dict[str, Any] = {
            "model": self._config.model,
            "max_output_tokens": options.max_tokens or prompt.max_tokens,
            "store": False,
            **caching,
        }
        if mark:  # a part of the input can be marked for the cache, the instructions cannot
            rubric = {"type": "input_text", "text": prompt.system, **mark}
            body["input"] = [{"role": "system", "content": [rubric]}, {"role": "user", "content": prompt.user}]
        else:
            body |= {"instructions": prompt.system, "input": prompt.user}
        if options.structured == "json_schema":
            form = {"type": "json_schema", "name": "grade", "strict": True, "schema": prompt.schema}
            body["text"] = {"format": form}
        elif options.structured == "json_object":
            body["text"] = {"format": {"type": "json_object"}}
        if prompt.logprobs and "logprobs" not in without:
            body |= {"include": ["message.output_text.logprobs"], "top_logprobs": top_logprobs(without)}
        if options.temperature is not None and "temperature" not in without:
            body["temperature"] = options.temperature
        if options.effort is not None:
            body["reasoning"] = {"effort": options.effort}
        return body

    def read(self, body: Mapping[str, Any]) -> Answer:
        """The messages of the output as one answer; thinking and commentary are left out.

        Raises:
            JudgeUnavailable: the model failed, which comes with status 200 here.
            ValueError, LookupError, TypeError, AttributeError: it is no answer.
        """
        failed = self._failure(body)
        messages = [item for item in body["output"] if item.get("type") == "message"]
        parts = [part for item in messages if item.get("phase") != "commentary" for part in item["content"]]
        refusals = [str(part["refusal"]) for part in parts if part.get("type") == "refusal"]
        texts = [part for part in parts if part.get("type") == "output_text"]
        finish: Finish = "refused" if refusals or failed else "complete"
        if body.get("status") == "incomplete":
            finish = _INCOMPLETE.get(str((body.get("incomplete_details") or {}).get("reason")), "truncated")
        elif not parts and not failed:
            raise ValueError("it has no message")
        return self._answer(
            body,
            _usage(body),
            text="".join(refusals) or "".join(str(part["text"]) for part in texts) or failed,
            finish=finish,
            tokens=read_tokens([token for part in texts for token in part.get("logprobs") or ()]),
        )

    def _failure(self, body: Mapping[str, Any]) -> str:
        """The words of a refusal for what was asked; "" if nothing failed."""
        if body.get("status") != "failed":
            return ""
        error = body.get("error") or {}
        code, words = str(error.get("code") or ""), str(error.get("message") or "no reason given")
        if code in _POLICY:
            return words
        cause = "throttled" if code == "rate_limit_exceeded" else "server"
        raise JudgeUnavailable(f"judge {self.version} failed: {code}: {words[:500]}", cause=cause)


def _usage(body: Mapping[str, Any]) -> Usage:
    used = body.get("usage") or {}
    details = used.get("input_tokens_details") or {}
    return Usage(
        input_tokens=count(used.get("input_tokens")),
        cache_read_tokens=count(details.get("cached_tokens")),
        cache_write_tokens=count(details.get("cache_write_tokens")),
        output_tokens=count(used.get("output_tokens")),
    )
