"""A small chat application as it would run in production: FastAPI, answers that stream, gunicorn with forked workers.

What is evalpipe's is marked with its number; the rest would be there without it.

    EVALPIPE_REDIS_URL=redis://... CHAT_MODEL_URL=http://127.0.0.1:8401/v1 \
        gunicorn --chdir examples/chat --preload --workers 3 --worker-class uvicorn_worker.UvicornWorker app:app
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from evalpipe import Hook, Release
from evalpipe.errors import CallRefused

MODEL = "larkfield-chat-small"
PROMPTS = {
    "baseline": ("shop@v6", "You answer customers of the online shop Larkfield. Be exact."),
    "canary": ("shop@v7", "You answer customers of the online shop Larkfield. Say it in one short sentence."),
}

# 1. The hook, made once; and the client, wrapped once. From here on every call is metered, some are captured, and a
#    kill switch or a budget stops them.
hook = Hook("chat", Release(model=MODEL), sample_rate=0.2, prices={MODEL: (0.15, 0.60)})
client = hook.wrap(
    openai.AsyncOpenAI(
        base_url=os.environ.get("CHAT_MODEL_URL", "http://127.0.0.1:8401/v1"), api_key="local", max_retries=0
    ),
    feature="chat",
    enforce=True,
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """7. uvicorn ends a process by a signal, and no atexit function runs: say goodbye here, so that nothing is left."""
    yield
    await asyncio.to_thread(hook.shutdown)


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    """What a customer writes."""

    text: str
    user: str
    session: str


class Thumb(BaseModel):
    """What a customer thinks of an answer."""

    trace_id: str
    up: bool
    comment: str = ""


@app.get("/healthz")
async def healthy() -> dict[str, str]:
    """For the load balancer."""
    return {"status": "ok"}


@app.post("/chat")
async def chat(question: Question) -> Response:
    """Stream the answer; the trace id in the header is what a thumb refers to."""
    # 2. Who gets which prompt is decided by the rollout's weights: always the same for a user.
    arm = hook.variant("shop-prompt", unit=question.user)
    prompt, text = PROMPTS[arm]
    trace_id = uuid.uuid4().hex
    request = ask(text, question.text)
    # 3. What belongs together: calls in here are of this trace, session, user and release.
    with hook.context(
        trace_id=trace_id,
        session_id=question.session,
        user_id=question.user,
        unit=question.user,
        release={"variant": arm, "prompt": prompt},
    ):
        answer = await client.chat.completions.create(**request)
        # 4. The next prompt answers a few of the questions too, for nobody but the scorecard.
        if arm == "baseline":
            hook.shadow("shop-prompt", client.chat.completions.create, **ask(PROMPTS["canary"][1], question.text))
    return StreamingResponse(events(answer), media_type="text/event-stream", headers={"X-Trace-Id": trace_id})


@app.exception_handler(CallRefused)
async def refused(_: Request, stop: CallRefused) -> JSONResponse:
    """5. A call that was stopped is no mistake of the application: say so, and why, at once."""
    body = {"error": "stopped", "reason": stop.reason, "incident": stop.incident}
    return JSONResponse(body, status_code=503, headers={"Retry-After": "30"})


@app.post("/feedback", status_code=202)
async def feedback(thumb: Thumb) -> dict[str, str]:
    """6. A thumb joins the record of its answer, if that was captured, however late it comes."""
    label = "thumbs_up" if thumb.up else "thumbs_down"
    hook.feedback(thumb.trace_id, 1.0 if thumb.up else 0.0, label=label, comment=thumb.comment)
    return {"status": "taken"}


def ask(prompt: str, question: str) -> dict[str, Any]:
    """The request to the model."""
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": prompt}, {"role": "user", "content": question}],
        "temperature": 0.3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def events(answer: openai.AsyncStream[Any]) -> AsyncIterator[str]:
    """The answer's words as server-sent events."""
    async with answer:
        async for chunk in answer:
            if chunk.choices and chunk.choices[0].delta.content:
                yield f"data: {json.dumps(chunk.choices[0].delta.content)}\n\n"
    yield "data: [DONE]\n\n"
