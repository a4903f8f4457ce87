"""Anthropic's message batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

import orjson

from evalpipe.errors import JudgeUnavailable
from evalpipe.judges.anthropic import AnthropicJudge
from evalpipe.judges.base import Judge, Prompt
from evalpipe.judges.batches import CALL_S, CLOCKS_S, TRANSFER_S, Progress, Result, batchers, read_result


@batchers.register("anthropic")
class AnthropicBatches:
    """Batches of messages."""

    most_requests: ClassVar[int] = 100_000
    most_bytes: ClassVar[int] = 256_000_000
    asks_first: ClassVar[bool] = False

    def __init__(self, judge: Judge) -> None:
        assert isinstance(judge, AnthropicJudge)
        self._judge = judge

    def line(self, custom_id: str, prompt: Prompt) -> bytes:
        """See ``Batcher.line``."""
        return orjson.dumps({"custom_id": custom_id, "params": self._judge.body(prompt)}, default=dict)

    async def submit(self, batch_id: str, lines: Sequence[bytes]) -> str:
        """See ``Batcher.submit``: our id is in those of the requests."""
        requests = [orjson.loads(line) for line in lines]

        async def call(client: Any) -> str:
            create = client.messages.batches.create
            return str((await create(requests=requests, timeout=TRANSFER_S)).id)

        return await self._judge.use(call, TRANSFER_S)

    async def find(self, batch_id: str, n: int, since: datetime, known: Collection[str]) -> str:
        """See ``Batcher.find``: a batch shows whose it is when it has ended, by its first answer."""

        async def call(client: Any) -> str:
            running = ""
            async for batch in client.messages.batches.list(limit=100):
                if batch.created_at < since - timedelta(seconds=CLOCKS_S):
                    break
                counts = batch.request_counts
                total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                if batch.id in known or total != n:
                    continue
                if batch.processing_status != "ended":
                    running = running or batch.id
                elif any(result.custom_id.startswith(f"{batch_id}-") for result in await _read(client, batch.id)):
                    return str(batch.id)
            if running:
                raise JudgeUnavailable(f"batch {running} may be the one: it shows when it has ended", cause="server")
            return ""

        return await self._judge.use(call, TRANSFER_S)

    async def look(self, provider_id: str) -> Progress:
        """See ``Batcher.look``."""

        async def call(client: Any) -> Any:
            return await client.messages.batches.retrieve(provider_id)

        batch = await self._judge.use(call, CALL_S)
        if batch.processing_status != "ended":
            return Progress("running")
        if batch.archived_at is not None or not batch.results_url:
            return Progress("failed", "the batch has been archived: its answers are gone")
        return Progress("ended")

    async def results(self, provider_id: str) -> list[Result]:
        """See ``Batcher.results``."""
        found = await self._judge.use(lambda client: _read(client, provider_id), TRANSFER_S)
        return [self._result(item) for item in found]

    async def cancel(self, provider_id: str) -> None:
        """See ``Batcher.cancel``."""

        async def call(client: Any) -> None:
            await client.messages.batches.cancel(provider_id)

        await self._judge.use(call, CALL_S)

    def _result(self, item: Any) -> Result:
        custom_id, result = str(item.custom_id), item.result
        if result.type == "succeeded":
            return read_result(self._judge, custom_id, result.message.to_dict(mode="json"))
        if result.type == "errored":
            error = result.error.error
            return Result(custom_id, reason=f"{error.type}: {error.message}"[:500])
        return Result(custom_id, reason=f"the provider let it be {result.type}")


async def _read(client: Any, provider_id: str) -> list[Any]:
    found = await client.messages.batches.results(provider_id, timeout=TRANSFER_S)
    try:
        return [item async for item in found]
    except ValueError as error:
        raise JudgeUnavailable(f"batch {provider_id} has answers that are no JSON: {error}", cause="server") from error
