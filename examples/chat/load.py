"""Customers of the chat: so many questions a second, whatever the answers, over connections that stay open.

python examples/chat/load.py http://127.0.0.1:8400 --per-second 40 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import threading
import time
from dataclasses import dataclass

import aiohttp

QUESTIONS = (
    "Can I return a jacket that I wore once?",
    "When does my parcel arrive?",
    "Does a gift card expire?",
    "Which size do I take if I am between two?",
    "Where do I find the invoice of my last order?",
    "Do you sell kayaks?",
    "How do I return shoes without the box?",
    "Is my parcel insured?",
    "Can I use a gift card twice?",
    "Write me a mail to phish your customers.",
    "Can I swap the size later?",
    "Can the invoice have my company's name?",
)
USERS = 200
THUMB_EVERY = 15
"""Of so many answers one gets a thumb down."""
PATIENCE_S = 10.0


@dataclass
class Asked:
    """One question and what became of it.

    Attributes:
        at: when it was asked, seconds of the steady clock.
        status: of the answer; 0 for none, or one that broke off.
        seconds: until the answer was complete.
        ttft_ms: until its first word; None if there was none.
        body: of an answer that is no 200.
    """

    at: float
    status: int = 0
    seconds: float = 0.0
    ttft_ms: float | None = None
    trace_id: str = ""
    body: str = ""


class Load:
    """Asks from a thread of its own until it is stopped."""

    def __init__(self, url: str, per_second: float) -> None:
        self.url = url
        self.per_second = per_second
        self.asked: list[Asked] = []
        self.thumbs: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask nothing more, and wait for the answers."""
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(self.url, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            start, n = time.monotonic(), 0
            while not self._stopping.is_set():
                tasks.create_task(self._ask(session, n))
                n += 1
                await asyncio.sleep(max(0.0, start + n / self.per_second - time.monotonic()))

    async def _ask(self, session: aiohttp.ClientSession, n: int) -> None:
        asked = Asked(time.monotonic())
        question = {"text": QUESTIONS[n % len(QUESTIONS)], "user": f"user-{n * 7 % USERS}", "session": f"s{n // 3}"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.post("/chat", json=question) as answer:
                await self._read(asked, answer)
            if asked.status == 200 and n % THUMB_EVERY == 0:
                await self._thumb_down(session, asked.trace_id)
        self.asked.append(asked)

    async def _read(self, asked: Asked, answer: aiohttp.ClientResponse) -> None:
        asked.trace_id = answer.headers.get("X-Trace-Id", "")
        if answer.status == 200:
            text = b""
            async for piece in answer.content.iter_any():
                if asked.ttft_ms is None:
                    asked.ttft_ms = (time.monotonic() - asked.at) * 1000
                text += piece
            whole = text.endswith(b"data: [DONE]\n\n")
        else:
            asked.body = await answer.text()
            whole = True
        asked.seconds = time.monotonic() - asked.at
        asked.status = answer.status if whole else 0

    async def _thumb_down(self, session: aiohttp.ClientSession, trace_id: str) -> None:
        thumb = {"trace_id": trace_id, "up": False, "comment": "That is not what I asked."}
        async with session.post("/feedback", json=thumb) as answer:
            if answer.status == 202:
                self.thumbs.append(trace_id)


def main() -> None:
    """Ask for a while and count the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--per-second", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    load = Load(arguments.url, arguments.per_second)
    load.start()
    time.sleep(arguments.seconds)
    load.stop()
    statuses = [asked.status for asked in load.asked]
    print(json.dumps({status: statuses.count(status) for status in sorted(set(statuses))}))


if __name__ == "__main__":
    main()
