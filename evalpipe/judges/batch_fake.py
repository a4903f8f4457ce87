"""Batches of the fake judge: files in the folder for temporary ones, so that all workers of a machine see them.

A batch has ended as soon as it was handed in. Rules and acts hold for each prompt of it; one that hangs expires.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final

import orjson

from evalpipe.errors import EvalpipeError
from evalpipe.judges.base import Judge, Prompt
from evalpipe.judges.batches import Progress, Result, batchers, halved
from evalpipe.judges.fake import FakeJudge

KEPT_S: Final = 2 * 86_400.0
"""Older batches are deleted."""


@batchers.register("fake")
class FakeBatches:
    """Batches without a provider."""

    most_requests: ClassVar[int] = 1_000
    most_bytes: ClassVar[int] = 50_000_000
    asks_first: ClassVar[bool] = False

    def __init__(self, judge: Judge) -> None:
        assert isinstance(judge, FakeJudge)
        self._judge = judge
        self._folder = Path(tempfile.gettempdir()) / f"evalpipe-fake-batches-{os.getuid()}"

    def line(self, custom_id: str, prompt: Prompt) -> bytes:
        """See ``Batcher.line``."""
        return orjson.dumps({"custom_id": custom_id, "prompt": asdict(prompt)}, default=dict)

    async def submit(self, batch_id: str, lines: Sequence[bytes]) -> str:
        """See ``Batcher.submit``."""
        await asyncio.to_thread(self._write, batch_id, lines)
        return batch_id

    async def find(self, batch_id: str, n: int, since: datetime, known: Collection[str]) -> str:
        """See ``Batcher.find``."""
        return batch_id if await asyncio.to_thread(self._path(batch_id).exists) else ""

    async def look(self, provider_id: str) -> Progress:
        """See ``Batcher.look``."""
        if await asyncio.to_thread(self._path(provider_id).exists):
            return Progress("ended")
        return Progress("failed", "there is no such batch on this machine")

    async def results(self, provider_id: str) -> list[Result]:
        """See ``Batcher.results``."""
        raw = await asyncio.to_thread(self._path(provider_id).read_bytes)
        return [self._result(orjson.loads(line)) for line in raw.splitlines()]

    async def cancel(self, provider_id: str) -> None:
        """See ``Batcher.cancel``."""
        await asyncio.to_thread(self._path(provider_id).unlink, missing_ok=True)

    def _result(self, line: dict[str, object]) -> Result:
        prompt = line["prompt"]
        assert isinstance(prompt, dict)
        custom_id = str(line["custom_id"])
        try:
            return Result(custom_id, halved(self._judge.answer_at_once(Prompt(**prompt))))
        except EvalpipeError as error:
            return Result(custom_id, reason=str(error))

    def _path(self, batch_id: str) -> Path:
        return self._folder / f"{batch_id}.jsonl"

    def _write(self, batch_id: str, lines: Sequence[bytes]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for old in self._folder.glob("*"):
            if old.stat().st_mtime < time.time() - KEPT_S:
                old.unlink(missing_ok=True)
        part = self._folder / f"{batch_id}.part"
        part.touch(mode=0o600)
        part.write_bytes(b"\n".join(lines))
        part.replace(self._path(batch_id))
