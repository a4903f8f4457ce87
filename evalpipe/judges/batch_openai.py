"""OpenAI's batch API: a file of requests goes in, files of answers and of errors come out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, ClassVar, Final

import orjson

from evalpipe.judges.base import Judge, Prompt
from evalpipe.judges.batches import CALL_S, CLOCKS_S, TRANSFER_S, Progress, Result, batchers, read_result
from evalpipe.judges.openai import OpenAIFamily

OURS: Final = "evalpipe_batch"
"""The key of our own id in a batch's metadata."""
KEPT_S: Final = 3 * 86_400
"""What was sent and what was answered may be deleted by the provider after so long: by then it has been picked up."""
_RUNNING: Final = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
_PASSING: Final = frozenset({"token_limit_exceeded", "rate_limit_exceeded"})
"""Errors of a batch that the queue of the account had no room for."""


@batchers.register("openai")
@batchers.register("openai-responses")
class OpenAIBatches:
    """Batches of chat completions or responses."""

    most_requests: ClassVar[int] = 50_000
    most_bytes: ClassVar[int] = 200_000_000
    asks_first: ClassVar[bool] = True

    def __init__(self, judge: Judge) -> None:
        assert isinstance(judge, OpenAIFamily)
        self._judge = judge
        self._endpoint = f"/v1{judge.path}"

    def line(self, custom_id: str, prompt: Prompt) -> bytes:
        """See ``Batcher.line``."""
        request = {"custom_id": custom_id, "method": "POST", "url": self._endpoint, "body": self._judge.body(prompt)}
        return orjson.dumps(request, default=dict)

    async def submit(self, batch_id: str, lines: Sequence[bytes]) -> str:
        """See ``Batcher.submit``."""

        async def call(client: Any) -> str:
            file = await client.files.create(
                file=(f"{batch_id}.jsonl", b"\n".join(lines) + b"\n"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": KEPT_S},
                timeout=TRANSFER_S,
            )
            batch = await client.batches.create(
                input_file_id=file.id,
                endpoint=self._endpoint,
                completion_window="24h",
                metadata={OURS: batch_id},
                output_expires_after={"anchor": "created_at", "seconds": KEPT_S},
            )
            return str(batch.id)

        return await self._judge.use(call, TRANSFER_S)

    async def find(self, batch_id: str, n: int, since: datetime, known: Collection[str]) -> str:
        """See ``Batcher.find``: by the metadata."""

        async def call(client: Any) -> str:
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get(OURS) == batch_id:
                    return str(batch.id)
                if batch.created_at < since.timestamp() - CLOCKS_S:
                    break
            return ""

        return await self._judge.use(call, CALL_S)

    async def look(self, provider_id: str) -> Progress:
        """See ``Batcher.look``."""
        batch = await self._judge.use(lambda client: _retrieve(client, provider_id), CALL_S)
        if batch.status in _RUNNING:
            return Progress("running")
        errors = (batch.errors.data if batch.errors else None) or []
        told = "; ".join(f"{error.code}: {error.message}" for error in errors[:3])[:500]
        if batch.status == "failed" or not (batch.output_file_id or batch.error_file_id):
            passing = any(error.code in _PASSING for error in errors)
            return Progress("failed", told or f"the batch {batch.status}, with no answers", passing)
        return Progress("ended", "" if batch.status == "completed" else f"the batch {batch.status}")

    async def results(self, provider_id: str) -> list[Result]:
        """See ``Batcher.results``."""

        async def call(client: Any) -> list[bytes]:
            batch = await _retrieve(client, provider_id)
            files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
            return [(await client.files.content(file, timeout=TRANSFER_S)).content for file in files]

        return [result for raw in await self._judge.use(call, TRANSFER_S) for result in self._read(raw)]

    async def cancel(self, provider_id: str) -> None:
        """See ``Batcher.cancel``."""
        await self._judge.use(lambda client: client.batches.cancel(provider_id), CALL_S)

    def _read(self, raw: bytes) -> Iterator[Result]:
        for text in raw.splitlines():
            try:
                line = orjson.loads(text)
                custom_id = str(line["custom_id"])
            except (ValueError, LookupError, TypeError):
                continue  # nobody knows whose it is: that one counts as unanswered
            response = line.get("response") or {}
            body = response.get("body") or {}
            if line.get("error") or response.get("status_code") != HTTPStatus.OK:
                yield Result(custom_id, reason=_told(line.get("error") or body.get("error"), response))
            else:
                yield read_result(self._judge, custom_id, body, str(response.get("request_id") or ""))


async def _retrieve(client: Any, provider_id: str) -> Any:
    return await client.batches.retrieve(provider_id)


def _told(error: Any, response: Mapping[str, Any]) -> str:
    found = error if isinstance(error, Mapping) else {}
    words = f"{found.get('code') or found.get('type') or 'error'}: {found.get('message') or 'no reason given'}"
    return f"HTTP {response['status_code']}: {words}"[:500] if response.get("status_code") else words[:500]
