"""What the judges over the providers' official libraries share: one client for each loop, and one reading of errors.

The libraries own requests, headers and errors; attempts are ours (``max_retries=0``), so that they are counted, and so
are the wire (``transport``) and the reading of what it brings, which costs a fraction of their typed responses.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import orjson

from evalpipe.errors import EvalpipeError, JudgeRejected, JudgeUnavailable
from evalpipe.judges.attempts import attempt, refusal
from evalpipe.judges.base import Answer, Finish, JudgeConfig, Prompt
from evalpipe.judges.config import Options, version_of
from evalpipe.judges.prices import Usage, cost_usd
from evalpipe.judges.transport import Reply, Wire

T = TypeVar("T")
LOOP_GUARD = {"x-evalpipe-judge": "1"}
"""Every request of a judge says so: a gateway that records calls for evalpipe must not have judges judged."""


class SdkJudge:
    """Base of the judges that speak through an official library.

    A sibling says how to open the client (``_open``, with the base of the library's errors), what to send where
    (``body``, ``path``) and how to read what comes back (``read``).
    """

    path: ClassVar[str]
    """Of the endpoint, below the base URL."""
    price_list: ClassVar[str]
    """Whose prices its calls have."""
    gives_logprobs: ClassVar[bool] = False

    def __init__(self, config: JudgeConfig, options: Options, *, base_url_variable: str) -> None:
        self._config = config
        self._usd_per_mtok = options.usd_per_mtok
        # The provider's own variable moves the endpoint too, so it must show in the version; its key may go there.
        self._base_url = config.base_url or os.environ.get(base_url_variable, "")
        self.version = version_of(config, options, self._base_url)
        self._client: Any = None
        self._wire: Wire
        self._sdk_error: type[Exception]

    async def ask(self, prompt: Prompt) -> Answer:
        """The model's answer; see ``Judge.ask``."""
        self._connect()
        return await attempt(self.version, self._config, lambda: self._once(prompt))

    async def use(self, call: Callable[[Any], Awaitable[T]], timeout_s: float) -> T:
        """What ``call`` makes of the library's client, for what is no question; with its errors as ours, tried once.

        Raises:
            JudgeUnavailable: it takes longer than ``timeout_s``, or as ``ask``.
            JudgeRejected, PermanentError: as ``ask``.
        """
        import aiohttp
        import httpx2

        client = self._connect().with_options(default_headers=LOOP_GUARD)
        try:
            async with asyncio.timeout(timeout_s):
                return await call(client)
        except TimeoutError:
            message = f"judge {self.version} did not answer within {timeout_s:g} s"
            raise JudgeUnavailable(message, cause="timeout") from None
        except (self._sdk_error, aiohttp.ClientError, httpx2.HTTPError, OSError) as error:
            raise self._meaning(error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await self._wire.aclose()
            await client.close()

    def _connect(self) -> Any:
        if self._client is None:
            self._client, self._sdk_error = self._open()
            self._wire = Wire(self._client, LOOP_GUARD)
        return self._client

    def _open(self) -> tuple[Any, type[Exception]]:
        raise NotImplementedError

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The request."""
        raise NotImplementedError

    def read(self, body: Mapping[str, Any]) -> Answer:
        """The answer in a response.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: it is none.
        """
        raise NotImplementedError

    def _answer(self, body: Mapping[str, Any], usage: Usage, *, text: str, finish: Finish, **more: Any) -> Answer:
        """The answer, with what all endpoints tell in one way, and its price."""
        model = str(body.get("model") or self._config.model)
        return Answer(
            text=text,
            model=model,
            finish=finish,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cache_read_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=cost_usd(
                usage,
                provider=self.price_list,
                models=(model, self._config.model),
                base_url=self._base_url,
                per_mtok=self._usd_per_mtok,
            ),
            request_id=str(body.get("id") or ""),
            **more,
        )

    async def _post(self, prompt: Prompt) -> bytes:
        return await self._send(self.path, self.body(prompt))

    async def _send(self, path: str, body: Mapping[str, Any]) -> Reply:
        return await self._wire.post(path, body)

    async def _once(self, prompt: Prompt) -> Answer:
        import aiohttp
        import httpx2

        try:
            raw = await self._post(prompt)
        except (self._sdk_error, aiohttp.ClientError, httpx2.HTTPError, OSError) as error:
            raise self._meaning(error) from error
        try:
            answer = self.read(_parsed(raw))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            message = f"judge {self.version} sent a body that is no answer: {raw[:200]!r}"
            raise JudgeUnavailable(message, cause="server", may_be_billed=True) from error
        named = raw.request_id if isinstance(raw, Reply) else ""
        return replace(answer, request_id=named) if named else answer

    def _meaning(self, error: Exception) -> EvalpipeError:
        status = getattr(error, "status_code", None)
        response = getattr(error, "response", None)
        if isinstance(status, int) and response is not None and status >= 400:
            # Anthropic's library calls it error_code.
            names = (getattr(error, name, None) for name in ("error_code", "code", "type"))
            code = str(next((name for name in names if name), ""))
            return refusal(self.version, status, str(error), response.headers, code)
        # What is left never reached a model: the libraries' connection errors, and those of the transport below them.
        cause = error.__cause__ or error
        return JudgeUnavailable(f"judge {self.version} cannot be reached: {type(error).__name__}: {cause}")

    def _no_key(self, variable: str) -> JudgeRejected:
        return JudgeRejected(
            f"judge {self.version} has no key: set EVALPIPE_JUDGE_API_KEY or {variable}, "
            "or name a local endpoint by provider:model@http://..."
        )


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw)  # takes half characters, as models cut them, which are made storable later


def count(value: Any) -> int:
    """A token count as providers send it: a number, null or nothing."""
    return int(value or 0)
