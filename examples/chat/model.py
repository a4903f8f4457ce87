"""A model server for the demo: OpenAI's chat completions, streamed, on this machine and without any model in it.

It answers a question about the example's shop with a fixed sentence, a few words at a time and at the pace of a real
model. Text and pace follow from the question alone, so that every run sees the same. Questions that nobody should
answer are refused.

    python examples/chat/model.py --port 8401
"""

from __future__ import annotations

import argparse
import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

MODEL = "larkfield-chat-small"
ANSWERS = {
    "return": "You can return an unworn item within 30 days, and the label is free.",
    "parcel": "Parcels arrive within three working days, and you get a link to follow yours when it leaves us.",
    "gift": "A gift card never expires, and you can use it for several orders.",
    "size": "If you are between two sizes take the larger one; changing it later costs you nothing.",
    "invoice": "You find the invoice of each order in your account, under orders, as soon as it has left us.",
    "phish": "I'm sorry, but I can't help with that.",
}
OTHERWISE = "I do not know that, so I hand you over to a colleague, who answers within the hour."
FIRST_MS = (60, 160)
"""Between these the first word comes."""
WORD_MS = (6, 12)
"""And each further one after the one before it."""
CHUNK = 4
"""Words that are sent at a time."""

app = FastAPI()


@app.get("/v1/models")
async def models() -> dict[str, Any]:
    """What there is; the demo asks until the server is up."""
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "evalpipe"}]}


@app.post("/v1/chat/completions")
async def complete(request: dict[str, Any]) -> Response:
    """A chat completion, streamed or whole."""
    texts = [str(message["content"]) for message in request["messages"]]
    words = answer(texts[-1]).split(" ")
    if "one short sentence" in texts[0]:
        words = words[:8]
    usage = {"prompt_tokens": sum(map(tokens, texts)), "completion_tokens": len(words) + 1}
    usage["total_tokens"] = sum(usage.values())
    paces = [within(limits, texts[-1]) / 1000 for limits in (FIRST_MS, WORD_MS)]
    head = {"id": f"chat-{zlib.crc32(texts[-1].encode()):08x}", "created": 0, "model": MODEL}
    if request.get("stream"):
        return StreamingResponse(stream(head, words, usage, paces), media_type="text/event-stream")
    await asyncio.sleep(paces[0] + paces[1] * len(words))
    message = {"role": "assistant", "content": " ".join(words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})


async def stream(
    head: dict[str, Any], words: list[str], usage: dict[str, int], paces: list[float]
) -> AsyncIterator[str]:
    """Server-sent events as OpenAI sends them: chunks of words, the finish reason, the usage, the end."""
    head = {**head, "object": "chat.completion.chunk"}
    first, between = paces
    await asyncio.sleep(first)
    for n in range(0, len(words), CHUNK):
        if n:
            await asyncio.sleep(between * CHUNK)
        delta = {"content": (" " if n else "") + " ".join(words[n : n + CHUNK])}
        yield event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield event({**head, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def answer(question: str) -> str:
    """What is said to it."""
    return next((text for word, text in ANSWERS.items() if word in question.lower()), OTHERWISE)


def within(limits: tuple[int, int], question: str) -> float:
    """A number between the two, the same for the same question."""
    low, high = limits
    return low + (high - low) * (zlib.crc32(question.encode()) % 1000) / 1000


def tokens(text: str) -> int:
    """About as many as a tokenizer would count."""
    return 1 + len(text) // 4


def event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8401)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning", access_log=False)
