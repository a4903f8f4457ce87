"""One client of a judge, in a process of its own, told what to do line by line: see bench/judging.py.

    python bench/judging_app.py CLIENT URL FILE

``FILE`` has one record a line: the request that evalpipe makes, and the texts it is made of.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL = "judge-1"
RUBRIC = "Does the answer promise only what the policies say? Grade pass or fail."
Grade = Callable[[Sequence[Mapping[str, Any]], int], Awaitable[int]]
"""Grades the records with so many calls in flight, and returns how many passed."""


async def sliding(ask: Callable[[Mapping[str, Any]], Awaitable[bool]], records: Sequence[Any], in_flight: int) -> int:
    """How many passed; each call that ends makes room for the next."""
    rest = iter(records)

    async def line() -> int:
        return sum([await ask(record) for record in rest])

    return sum(await asyncio.gather(*(line() for _ in range(in_flight))))


def openai(url: str, *, aiohttp: bool) -> Grade:
    """The official library, its typed responses read as its documentation has it."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    client = AsyncOpenAI(
        api_key="none", base_url=url, max_retries=0, **({"http_client": DefaultAioHttpClient()} if aiohttp else {})
    )

    async def ask(record: Mapping[str, Any]) -> bool:
        answer = await client.chat.completions.create(**record["body"])
        return json.loads(answer.choices[0].message.content)["grade"] == "pass"

    return lambda records, in_flight: sliding(ask, records, in_flight)


def raw_aiohttp(url: str) -> Grade:
    """The floor: a request and its JSON, no library."""
    import aiohttp

    sessions: list[Any] = []

    async def ask(record: Mapping[str, Any]) -> bool:
        async with sessions[0].post(f"{url}/chat/completions", json=record["body"]) as response:
            answer = await response.json()
        return json.loads(answer["choices"][0]["message"]["content"])["grade"] == "pass"

    async def grade(records: Sequence[Any], in_flight: int) -> int:
        if not sessions:
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        return await sliding(ask, records, in_flight)

    return grade


def autoevals(url: str) -> Grade:
    """Braintrust's autoevals: it has no scheduler, so the calls slide as the raw ones do."""
    from autoevals import LLMClassifier
    from openai import AsyncOpenAI

    template = RUBRIC + "\nPOLICIES: {{expected}}\nQUESTION: {{input}}\nANSWER: {{output}}"
    client = AsyncOpenAI(api_key="none", base_url=url, max_retries=0)
    scorer = LLMClassifier("policy", template, {"pass": 1, "fail": 0}, model=MODEL, temperature=0, client=client)

    async def ask(record: Mapping[str, Any]) -> bool:
        score = await scorer.eval_async(
            output=record["output"], expected=record["context"], input=f"{record['input']} {record['mark']}"
        )
        return score.score == 1

    return lambda records, in_flight: sliding(ask, records, in_flight)


def phoenix(url: str) -> Grade:
    """Arize's phoenix-evals, with its own executor; its limit of five requests a second is lifted."""
    import pandas as pd
    from phoenix.evals import LLM, async_evaluate_dataframe, create_classifier

    llm = LLM(provider="openai", model=MODEL, api_key="none", base_url=url, initial_per_second_request_rate=1e6)
    template = RUBRIC + "\nPOLICIES: {context}\nQUESTION: {input} {mark}\nANSWER: {output}"
    scorer = create_classifier(name="policy", prompt_template=template, llm=llm, choices={"pass": 1.0, "fail": 0.0})

    async def grade(records: Sequence[Any], in_flight: int) -> int:
        frame = pd.DataFrame([{n: r[n] for n in ("context", "input", "output", "mark")} for r in records])
        graded = await async_evaluate_dataframe(
            dataframe=frame, evaluators=[scorer], concurrency=in_flight, hide_tqdm_bar=True
        )
        return sum(json.loads(cell)["score"] == 1 if isinstance(cell, str) else cell["score"] == 1
                   for cell in graded["policy_score"])  # fmt: skip

    return grade


CLIENTS: Mapping[str, Callable[[str], Grade]] = {
    "openai": lambda url: openai(url, aiohttp=False),
    "openai_aiohttp": lambda url: openai(url, aiohttp=True),
    "aiohttp": raw_aiohttp,
    "autoevals": autoevals,
    "phoenix": phoenix,
}


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    name, url, path = sys.argv[1:]
    loop = asyncio.new_event_loop()
    grade = CLIENTS[name](url)
    with Path(path).open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        chosen = records[: order["count"]]
        spent, started = cpu_s(), time.monotonic()
        passed = loop.run_until_complete(grade(chosen, order["in_flight"]))
        took, spent = time.monotonic() - started, cpu_s() - spent
        print(json.dumps({"took_s": took, "cpu_s": spent, "passed": passed}), flush=True)


if __name__ == "__main__":
    main()
