"""An application with evalpipe's hook: a support desk whose records have about 3 KB. The benches run it as a process.

    python bench/traffic.py --redis-url URL --records 20000

It captures every call as fast as it can, ships, and prints what that took as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

from machine import ROOT

from evalpipe import Hook, Release

DESK = ROOT / "examples" / "support_desk"
SYSTEM = (
    "You answer customers of an online shop for household goods. Use only the policies that you are given. If they do "
    "not settle the question, say so and offer a colleague. Promise nothing that they do not give. Write two short "
    "sentences, friendly and plain, in the customer's language, and name the policy in brackets at the end."
)


def conversations(seed: int) -> Iterator[dict[str, Any]]:
    """Questions, two policies that retrieval found, and an answer made of the first one; without end."""
    rng = random.Random(seed)
    policies = {
        path.stem: path.read_text(encoding="utf-8").split("---\n", 2)[2].strip()
        for path in sorted((DESK / "policies").glob("*.md"))
    }
    questions = [json.loads(line) for line in (DESK / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    while True:
        asked = rng.choice(questions)
        found = [asked["policy"], rng.choice(sorted(policies))]
        sentences = policies[asked["policy"]].replace("\n", " ").split(". ")
        answer = ". ".join(rng.sample(sentences, min(3, len(sentences))))
        yield {
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked["question"]}],
            "context": [{"id": name, "text": policies[name], "score": rng.random()} for name in found],
            "output": f"{answer}. [{asked['policy']}]",
            "parameters": {"model": "small-chat", "temperature": 0.3, "max_tokens": 256, "seed": 7},
        }


def talk(hook: Hook, session_id: str, conversation: dict[str, Any]) -> None:
    """One call of the application, without the model's time."""
    with hook.call(feature="policy-questions", session_id=session_id, user_id=session_id[-3:]) as call:
        call.messages = conversation["messages"]
        call.context = conversation["context"]
        call.parameters = conversation["parameters"]
        call.output = conversation["output"]
        call.model = "small-chat-2026-06"
        call.finish_reason = "stop"
        call.input_tokens, call.output_tokens, call.cost_usd = 612, 88, 0.0004


def make_hook(redis_url: str, records: int, variant: str = "baseline") -> Hook:
    """A hook that captures everything, with room for all of it, so that a burst is measured and not shed."""
    release = Release(variant=variant, model="small-chat-2026-06", prompt="support@6", index="policies@1")
    return Hook(
        "support-desk",
        release,
        redis_url=redis_url,
        sample_rate=1.0,
        buffer_size=records,
        max_buffer_bytes=records * 20_000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--records", type=int, required=True)
    options = parser.parse_args()
    prepared = list(itertools.islice(conversations(options.records), 500))
    hook = make_hook(options.redis_url, options.records)
    talk(hook, "warm-up", prepared[0])
    assert hook.flush(10)
    started_at, thread_s, process_s = time.time(), time.thread_time(), time.process_time()
    for i in range(options.records - 1):
        talk(hook, f"{os.getpid()}-{i}", prepared[i % len(prepared)])
    capture_s = time.thread_time() - thread_s
    assert hook.flush(300)
    shipped_at, shipping_s = time.time(), time.process_time() - process_s - capture_s
    assert hook.shutdown(10)
    stats = hook.stats()
    assert stats.enqueued == options.records, stats
    print(
        json.dumps(
            {"started_at": started_at, "shipped_at": shipped_at, "capture_s": capture_s, "shipping_s": shipping_s}
        )
    )


if __name__ == "__main__":
    main()
