"""One application of `bench/hook.py`: makes model calls under one SDK and tells what they cost.

    python bench/hook_app.py none|evalpipe|otel|langfuse|opik URL RATE

Runs in the bench's own virtual environment and imports its own SDK only. Takes one JSON order a line, answers with one
JSON line, and leaves as any program does when there are no more.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "small-chat-2026-06"
SYSTEM = (
    "You answer customers of an online shop for household goods. Use only the policies that you are given. If they do "
    "not settle the question, say so and offer a colleague. Promise nothing that they do not give. Write two short "
    "sentences, friendly and plain, in the customer's language, and name the policy in brackets at the end. Policy "
    "returns: an article may be sent back within 30 days of delivery, unused and in its packaging; the buyer pays for "
    "the label unless the article is faulty. Policy refunds: money goes back to the means of payment within 5 business "
    "days after the parcel has been checked; shipping is refunded only for faulty articles. Policy warranty: kettles, "
    "toasters and irons have a warranty of 24 months from delivery, for faults of material and making; scale in a "
    "kettle is no fault. Policy gift cards: they cannot be returned, and are valid for 3 years. Policy "
    "orders: an order can be changed or cancelled until it is packed, which is at noon of the next working day; after "
    "that it can only be sent back. "
)
QUESTION = (
    "Good morning. I bought a kettle in your shop about three weeks ago, and since last Thursday it switches itself "
    "off "
    "before the water boils. I have cleaned it as the manual says, with vinegar, twice, and tried two other sockets, "
    "but nothing has changed. The packaging is gone, I am afraid, because I did not expect this from a kettle of 89.90 "
    "euros. Can I send it back without the box, who pays for the parcel, and do I get the money or a new kettle? I "
    "would rather have the money, because my sister has given me hers in the meantime. If I have to fill in a form, "
    "please tell me where I find it, as I have looked through my account and there is only the invoice, which is of "
    "13 October. And is the gift card that I paid a part of it with, 25 euros, refunded too, or is that lost? Thank "
    "you "
    "very much for your help, and please do not send me to the telephone line again, I waited for 40 minutes. "
    "One more thing: the lid of the toaster from the same order is loose, is that normal? "
)
ANSWER = (
    "I'm sorry that your kettle lets you down after so short a time. Since it is faulty and less than 30 days old, you "
    "can send it back at our cost, and the missing box is no obstacle: any sturdy parcel will do. You find the label "
    "under Orders, Return an article, in your account; choose 'faulty' as the reason, and we pay for it. Once we have "
    "checked the kettle, the money goes back to the means of payment within 5 business days, and you need not take a "
    "new one. What you paid with the gift card goes back to that card, with the validity that it had, and the rest to "
    "your bank account; shipping is refunded too, because the article is faulty. You have no form to fill in beyond "
    "that, and nobody needs to call us. If the label does not appear in your account today, reply to this message and "
    "we will send it to you as a file, for you to print or to show at the counter as a code. A loose lid on the "
    "toaster "
    "is not normal: send me a picture of it here and a colleague looks at it. [returns] [refunds] "
)

Make = tuple[Callable[[list[dict[str, str]], str], None], Callable[[], Any], Callable[[], Any]]
"""Make one call; send all that waits; what the SDK has counted."""


def question(number: int) -> str:
    """The user's message of a call; one in ten has an address that must not leave the process."""
    mail = " You can write to jane.roe@example.org." if number % 10 == 0 else ""
    return f"{QUESTION}The order is mk-{number:06d}.{mail}"


def evalpipe(url: str, rate: float) -> Make:
    from evalpipe import Hook

    hook = Hook("support-desk", redis_url=url, sample_rate=rate)

    def call(messages: list[dict[str, str]], answer: str) -> None:
        with hook.call("answers") as call:
            call.messages = messages
            call.output = answer
            call.model = MODEL
            call.finish_reason = "stop"
            call.input_tokens = 412
            call.output_tokens = 205

    def counts() -> dict[str, Any]:
        stats = hook.stats()
        return {
            "calls": stats.calls,
            "sampled": stats.sampled,
            "enqueued": stats.enqueued,
            "shed": dict(stats.shed),
            "buffered": stats.buffered,
        }

    return call, lambda: hook.flush(30), counts


def otel(url: str, rate: float) -> Make:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import SpanKind

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(rate)), resource=Resource.create({"service.name": "support-desk"})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))
    tracer = provider.get_tracer("bench")

    def call(messages: list[dict[str, str]], answer: str) -> None:
        # As its GenAI conventions and instrumentations have it: what sampling may look at is given at the start, and
        # messages are attributes in JSON.
        start = {"gen_ai.operation.name": "chat", "gen_ai.request.model": MODEL}
        with tracer.start_as_current_span(f"chat {MODEL}", kind=SpanKind.CLIENT, attributes=start) as span:
            if span.is_recording():
                span.set_attribute("gen_ai.input.messages", json.dumps(messages))
                span.set_attribute("gen_ai.output.messages", json.dumps([{"role": "assistant", "content": answer}]))
                span.set_attribute("gen_ai.response.model", MODEL)
                span.set_attribute("gen_ai.response.finish_reasons", ("stop",))
                span.set_attribute("gen_ai.usage.input_tokens", 412)
                span.set_attribute("gen_ai.usage.output_tokens", 205)

    return call, provider.force_flush, dict


def langfuse(url: str, rate: float) -> Make:
    from langfuse import Langfuse

    client = Langfuse(public_key="pk-lf-bench", secret_key="sk-lf-bench", base_url=url, sample_rate=rate)

    def call(messages: list[dict[str, str]], answer: str) -> None:
        with client.start_as_current_observation(
            name="chat", as_type="generation", input=messages, model=MODEL
        ) as generation:
            generation.update(output=answer, usage_details={"input": 412, "output": 205})

    return call, client.flush, dict


def opik(url: str, _rate: float) -> Make:
    os.environ.update(
        OPIK_URL_OVERRIDE=f"{url}/api/",
        OPIK_CONFIG_PATH="/nonexistent/opik.config",
        OPIK_SENTRY_ENABLE="false",
        OPIK_ANALYTICS_ENABLE="false",
        OPIK_ENABLE_LITELLM_MODELS_MONITORING="false",
        OPIK_CONSOLE_LOGGING_LEVEL="CRITICAL",
    )
    import opik as sdk

    def call(messages: list[dict[str, str]], answer: str) -> None:
        with sdk.start_as_current_span("chat", type="llm", input={"messages": messages}, model=MODEL) as span:
            span.output = {"answer": answer}
            span.usage = {"prompt_tokens": 412, "completion_tokens": 205, "total_tokens": 617}

    return call, sdk.flush_tracker, dict


def none(_url: str, _rate: float) -> Make:
    return lambda _messages, _answer: None, lambda: None, dict


def make_calls(call: Callable[..., None], first: int, count: int, pace_s: float) -> tuple[list[int], float]:
    """Nanoseconds of each call in the calling thread, and the most memory seen, in MB."""
    took = []
    most = 0.0
    clock = time.perf_counter_ns
    due = time.perf_counter()
    for number in range(first, first + count):
        if pace_s:
            due += pace_s
            if (pause := due - time.perf_counter()) > 0:
                time.sleep(pause)
        # A request has come in: what an application does before its call wakes the interpreter, not the SDK.
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question(number)}]
        answer = f"{ANSWER}{number}"
        started = clock()
        call(messages, answer)
        took.append(clock() - started)
        # What an application does to its list next; the record must have what was sent.
        messages[1]["content"] = "changed"
        messages.append({"role": "assistant", "content": answer})
        if number % 500 == 0:
            most = max(most, rss_mb())
    return took, max(most, rss_mb())


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def summary(took: list[int]) -> dict[str, float]:
    ordered = sorted(took)
    return {
        "p50_us": ordered[len(ordered) // 2] / 1e3,
        "p99_us": ordered[int(len(ordered) * 0.99)] / 1e3,
        "max_us": ordered[-1] / 1e3,
    }


def main() -> None:
    name, url, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
    call, flush, counts = {"none": none, "evalpipe": evalpipe, "otel": otel, "langfuse": langfuse, "opik": opik}[name](
        url, rate
    )
    print(json.dumps({"rss_mb": rss_mb()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if order["do"] == "calls":
            thread, process = time.thread_time(), time.process_time()
            took, most = make_calls(call, order["first"], order["count"], order["pace_s"])
            thread = time.thread_time() - thread
            if order["flush"]:
                flush()
            answer = {
                **summary(took),
                "thread_us": thread / order["count"] * 1e6,
                "process_us": (time.process_time() - process) / order["count"] * 1e6,
                "rss_mb": most,
            }
        elif order["do"] == "flush":
            flush()
        elif order["do"] == "leave":
            print(json.dumps({"at": time.monotonic()}), flush=True)
            return
        print(json.dumps({"rss_mb": rss_mb(), **answer, "counts": counts()}), flush=True)


if __name__ == "__main__":
    main()
