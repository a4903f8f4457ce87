"""A model's plain answer to a prompt, as an application gets it: nothing is graded here.

Through the providers' official libraries, with the settings as they are given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalpipe.errors import EvalpipeError, JudgeUnavailable
from evalpipe.judges.sdk import LOOP_GUARD

TIMEOUT_S = 60.0
MAX_TOKENS = 512
"""Of an answer, where the settings have no bound; Anthropic's API needs one."""


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """What came back.

    Attributes:
        text: of the answer.
        model, fingerprint: as the provider returned them; "" where it returns none.
        finish: why it ended, in the provider's word.
        output_tokens: None if unknown.
        logprob: mean log-probability of the tokens; None where none were given.
        latency_ms: wall time.
    """

    text: str
    model: str
    fingerprint: str
    finish: str
    output_tokens: int | None
    logprob: float | None
    latency_ms: float


class PlainModel:
    """One model behind one endpoint; its connections live on the loop that first uses them.

    Args:
        protocol: ``openai`` or ``anthropic``.
        name: of the model.
        base_url: "" for the provider's own.
        api_key: the name of the environment variable with the key; "" for the provider's usual one.
    """

    def __init__(self, protocol: str, name: str, base_url: str = "", api_key: str = "") -> None:
        self._protocol = protocol
        self._name = name
        self._base_url = base_url
        self._api_key = api_key
        self._client: Any = None
        self._key = ""

    async def ask(
        self, text: str, *, system: str = "", settings: Mapping[str, Any] | None = None, logprobs: bool = False
    ) -> PlainAnswer:
        """The model's answer.

        Raises:
            JudgeUnavailable: it does not answer, or refuses us; the message says why.
        """
        started = time.monotonic()
        try:
            if self._client is None:
                self._client = self._open()
            ask = self._ask_openai if self._protocol == "openai" else self._ask_anthropic
            given = await ask(text, system, dict(settings or {}), logprobs)
        except EvalpipeError:
            raise
        except Exception as error:  # noqa: BLE001 - the libraries raise their own and those of what they stand on
            told = str(error)
            if self._key:
                told = told.replace(self._key, "***")  # a gateway may quote it
            told = " ".join("".join(c if c.isprintable() else " " for c in told[:2_000]).split())[:300]
            message = f"{self._protocol}:{self._name} gave no answer: {type(error).__name__}: {told}"
            raise JudgeUnavailable(message, cause="unreachable") from None  # what it stands on may quote the key too
        return PlainAnswer(**given, latency_ms=(time.monotonic() - started) * 1000)

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _open(self) -> Any:
        """The library's client."""
        options: dict[str, Any] = {"max_retries": 1, "timeout": TIMEOUT_S, "default_headers": LOOP_GUARD}
        if self._base_url:
            options["base_url"] = self._base_url
        usual = "OPENAI_API_KEY" if self._protocol == "openai" else "ANTHROPIC_API_KEY"
        variable = self._api_key or usual
        key = self._key = os.environ.get(variable, "")
        if not key and (self._api_key or not self._base_url):
            message = f"no key for {self._protocol}:{self._name}: set the environment variable {variable}"
            raise JudgeUnavailable(message, cause="unreachable")
        options["api_key"] = key or "none"
        if self._protocol == "openai":
            from openai import AsyncOpenAI

            return AsyncOpenAI(**options)
        from anthropic import AsyncAnthropic

        return AsyncAnthropic(**options, open_telemetry=False)

    async def _ask_openai(self, text: str, system: str, settings: dict[str, Any], logprobs: bool) -> dict[str, Any]:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        more = {"logprobs": True} if logprobs else {}
        body = {"model": self._name, "messages": messages, **more, **settings}
        answer = _document(await self._client.post("/chat/completions", body=body, cast_to=object))
        choice = answer["choices"][0]
        message = choice["message"]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        return {
            "text": str(message.get("content") or message.get("refusal") or ""),
            "model": str(answer.get("model") or ""),
            "fingerprint": str(answer.get("system_fingerprint") or ""),
            "finish": str(choice.get("finish_reason") or ""),
            "output_tokens": _amount((answer.get("usage") or {}).get("completion_tokens")),
            "logprob": sum(t["logprob"] for t in tokens) / len(tokens) if tokens else None,
        }

    async def _ask_anthropic(self, text: str, system: str, settings: dict[str, Any], logprobs: bool) -> dict[str, Any]:
        del logprobs  # it gives none
        body = {"model": self._name, "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": text}]}
        if system:
            body["system"] = system
        answer = _document(await self._client.post("/v1/messages", body=body | settings, cast_to=object))
        return {
            "text": "".join(part["text"] for part in answer["content"] if part.get("type") == "text"),
            "model": str(answer.get("model") or ""),
            "fingerprint": "",
            "finish": str(answer.get("stop_reason") or ""),
            "output_tokens": _amount((answer.get("usage") or {}).get("output_tokens")),
            "logprob": None,
        }


def _document(answer: Any) -> dict[str, Any]:
    """The JSON object that was answered."""
    if not isinstance(answer, dict):
        raise TypeError(f"no JSON object but {str(answer)[:100]!r}; a gateway that only streams cannot be asked")
    return answer


def _amount(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
