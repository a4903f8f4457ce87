"""What redaction finds, what it misses, what it takes for data that is none, and what it costs.

    python bench/redaction.py [--json]

Precision and recall by kind over tests/unit/hook/redaction_corpus.py (a find counts if it overlaps what is marked, and
is of its kind), and microseconds of CPU for each KB of text without anything to find, and with. The texts are redacted
each time anew: a hook remembers those that it has seen lately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from unit.hook.redaction_corpus import texts  # noqa: E402

from evalpipe.hook.finding import find  # noqa: E402
from evalpipe.hook.redaction import KINDS, Redaction  # noqa: E402

DESK = ROOT / "examples" / "support_desk" / "conversations.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--wrong", action="store_true", help="print what was missed and what was wrongly found")
    options = parser.parse_args()
    rows = quality(show=options.wrong)
    costs = {name: cost(samples) for name, samples in corpora().items()}
    if options.json:
        print(json.dumps({"quality": rows, "us_per_kb": costs}, indent=2))
        return
    print(f"{'kind':<8}{'marked':>8}{'found':>8}{'right':>8}{'precision':>11}{'recall':>8}")
    for row in rows:
        counts = "".join(f"{row[name]:>8}" for name in ("marked", "found", "right"))
        print(f"{row['kind']:<8}{counts}{row['precision']:>11.3f}{row['recall']:>8.3f}")
    print()
    for name, value in costs.items():
        print(f"{name:<32}{value:>7.1f} us/KB")


def quality(*, show: bool = False) -> list[dict]:
    marked, found, right = Counter(), Counter(), Counter()
    for text, marks in texts():
        spans = find(text, frozenset(KINDS))
        for start, end, kind in marks:
            marked[kind] += 1
            hit = any(kind == k and s < end and start < e for s, e, k in spans)
            right[kind] += hit
            if show and not hit:
                print("missed", kind, repr(text))
        for start, end, kind in spans:
            hit = any(kind == k and s < end and start < e for s, e, k in marks)
            found[kind] += 1
            found[kind, "right"] += hit
            if show and not hit:
                print("wrong", kind, repr(text[start:end]), "in", repr(text))
    return [
        {
            "kind": kind,
            "marked": marked[kind],
            "found": found[kind],
            "right": right[kind],
            "precision": found[kind, "right"] / max(1, found[kind]),
            "recall": right[kind] / max(1, marked[kind]),
        }
        for kind in KINDS
    ]


def corpora() -> dict[str, list[str]]:
    rows = [json.loads(line) for line in DESK.read_text().splitlines()]
    prose = " ".join(f"{row['policy']} {row['answer']}" for row in rows)
    call = json.dumps([{"id": i, "name": "a lamp", "price": 12.5 + i, "in_stock": True} for i in range(60)])
    dates = "On 2024-01-15 10:30:00 order 20240115001 was shipped: total $1,234.56. "
    order = " It is order mk-000123 of 13 October, a kettle of 89.90 euros, and I have paid 25 euros with a gift card."
    code = "def total(self, prices_of_all_items: list[float]) -> float:\n    return self.sums_by_month[month]\n"
    blocks = [prose[i : i + 3072] for i in range(0, 36_864, 3072)]
    return {
        "prose, 3 KB": blocks,
        "prose, 300 characters": [block[:300] for block in blocks],
        "prose with prices, dates, 1 KB": [block[:900] + order for block in blocks],
        "JSON, 3 KB": [call[:3072]],
        "code, 3 KB": [(code * 40)[:3072]],
        "log with dates, 3 KB": [(dates * 50)[:3072]],
        "prose with e-mail and phone": [f"{block[:3000]} bob@example.com, +1 555 010 4477" for block in blocks],
    }


def cost(samples: list[str]) -> float:
    redact = Redaction()
    rounds = []
    for _ in range(15):
        started = time.thread_time()
        for _ in range(10):
            for sample in samples:
                redact(sample)
        rounds.append((time.thread_time() - started) / 10 / sum(map(len, samples)) * 1024 * 1e6)
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
