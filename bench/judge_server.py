"""A judge that grades after a fixed time and counts: OpenAI's chat completions on a raw socket, in its own process.

    python bench/judge_server.py

Prints its port, and serves until its standard input closes. ``POST /bench`` with a JSON object sets the keywords of
``Manner`` and begins to count anew; ``GET /bench`` tells the counts. What is asked is a record when its text holds
``rec-`` and eight digits: requests are counted by record too.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

GRADE = {"explanation": "The answer promises only what the policy says.", "quotation": "", "grade": "pass"}
CHOSEN = {"label": "pass", "choice": "pass", "explanation": GRADE["explanation"], "reasons": GRADE["explanation"]}
"""What the peers' tools ask for."""
USAGE = {"prompt_tokens": 620, "completion_tokens": 31, "total_tokens": 651}
ERRORS = (429, 500, "malformed", "hang")
WORDS = {200: "OK", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(slots=True)
class Manner:
    """How the judge behaves.

    Attributes:
        latency_s: time to each answer.
        slow_share: share of calls that take ``slow_times`` as long.
        fail_share: share of calls that fail, in four ways by turns.
        doomed_share: share of records for which every call fails.
        seed: of the choice.
    """

    latency_s: float = 0.3
    slow_share: float = 0.0
    slow_times: float = 20.0
    fail_share: float = 0.0
    doomed_share: float = 0.0
    seed: int = 7


@dataclass(slots=True)
class Counts:
    """What was seen since the last change of manner."""

    requests: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    in_flight: int = 0
    changed_at: float = 0.0
    call_s: float = 0.0
    call_s_at_last: float = 0.0
    most_in_flight: int = 0
    connections: int = 0
    busy_s: float = 0.0
    sample: str = ""
    kinds: Counter[str] = field(default_factory=Counter)
    by_record: Counter[bytes] = field(default_factory=Counter)


def reply(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} {WORDS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def completion(message: dict[str, Any]) -> bytes:
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_790_000_000, "model": "judge-1-2026-06"}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return reply(200, json.dumps({**whole, "choices": [choice], "usage": USAGE}).encode())


@functools.cache
def called(tool: bytes) -> bytes:
    function = {"name": tool.decode(), "arguments": json.dumps(CHOSEN)}
    return completion({"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]})


FINE = completion({"content": json.dumps(GRADE)})
LABELLED = completion({"content": json.dumps({name: CHOSEN[name] for name in ("label", "explanation")})})
REPLIES = {
    "malformed": completion({"content": "Lovely weather today."}),
    **{str(n): reply(n, json.dumps({"error": {"message": f"it is {n}", "type": "x"}}).encode()) for n in (429, 500)},
}


class Judge:
    """Manner and counts, shared by the connections."""

    def __init__(self) -> None:
        self.behave({})

    def behave(self, manner: dict[str, Any]) -> None:
        """Be so from now on, and count anew."""
        self.manner, self.counts = Manner(**manner), Counts(busy_s=_cpu_s())
        self._random = random.Random(self.manner.seed)
        self._failed = 0

    def tell(self) -> dict[str, Any]:
        """The counts."""
        c = self.counts
        most = max(c.by_record.values(), default=0)
        return {
            "requests": c.requests,
            "first_at": c.first_at,
            "last_at": c.last_at,
            "most_in_flight": c.most_in_flight,
            "mean_in_flight": c.call_s_at_last / max(c.last_at - c.first_at, 1e-9),
            "connections": c.connections,
            "records": len(c.by_record),
            "most_for_a_record": most,
            "kinds": dict(c.kinds),
            "sample": c.sample,
            "cpu_s": _cpu_s() - c.busy_s,
        }

    def move(self, c: Counts, by: int) -> float:
        """One more or less in flight; the time now."""
        now = time.monotonic()
        c.call_s += c.in_flight * (now - c.changed_at)
        c.in_flight, c.changed_at = c.in_flight + by, now
        return now

    def answer(self, body: bytes) -> tuple[float, bytes | None]:
        """Seconds to wait, and the reply; None never to reply."""
        c, manner = self.counts, self.manner
        c.requests += 1
        c.last_at = self.move(c, 1)
        c.first_at, c.call_s_at_last = c.first_at or c.last_at, c.call_s
        c.most_in_flight = max(c.most_in_flight, c.in_flight)
        at = body.rfind(b"rec-")
        record = body[at + 4 : at + 12] if at >= 0 else b""
        c.sample = c.sample or body.decode()
        c.by_record[record] += 1
        latency_s = manner.latency_s
        if manner.slow_share and self._random.random() < manner.slow_share:
            c.kinds["slow"] += 1
            latency_s *= manner.slow_times
        if manner.fail_share and (self._random.random() < manner.fail_share or self._doomed(record)):
            kind = str(ERRORS[self._failed % 4])
            self._failed += 1
            c.kinds[kind] += 1
            return latency_s, REPLIES.get(kind)
        c.kinds["fine"] += 1
        if b'"tool_choice"' in body:
            return latency_s, called(body.partition(b'"tool_choice"')[2].partition(b'"name"')[2].split(b'"')[1])
        return latency_s, LABELLED if b'"label"' in body else FINE

    def _doomed(self, record: bytes) -> bool:
        return record.isdigit() and int(record) % 1000 < self.manner.doomed_share * 1000


class Connection(asyncio.Protocol):
    """One client's; one request at a time."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._buffer = bytearray()
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """One more."""
        self._transport: Any = transport
        self._judge.counts.connections += 1

    def data_received(self, data: bytes) -> None:
        """A part of a request, or all of it."""
        self._buffer += data
        if not self._wanted:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            found = head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]
            self._wanted = end + 4 + int(found or 0)
        if len(self._buffer) < self._wanted:
            return
        head, _, body = bytes(self._buffer[: self._wanted]).partition(b"\r\n\r\n")
        del self._buffer[: self._wanted]
        self._wanted = 0
        if b" /bench " in head.split(b"\r\n", 1)[0]:
            if head.startswith(b"POST"):
                self._judge.behave(json.loads(body))
            self._transport.write(reply(200, json.dumps(self._judge.tell()).encode()))
            return
        wait_s, answer = self._judge.answer(body)
        counts = self._judge.counts
        asyncio.get_running_loop().call_later(min(wait_s, 3600.0), self._end, counts, answer)

    def _end(self, counts: Counts, answer: bytes | None) -> None:
        self._judge.move(counts, -1)
        if answer is not None and not self._transport.is_closing():
            self._transport.write(answer)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main() -> None:
    judge = Judge()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(judge), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
