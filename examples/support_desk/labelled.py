"""The support desk's answers with what people said of them, as `evalpipe judge calibrate --on` reads it.

    python examples/support_desk/labelled.py --criterion grounded > labelled.jsonl
    evalpipe judge calibrate --scorecard support-bot --on labelled.jsonl --judge ...

Both readings of an answer are labels, by `first` and `second`; where they differ, `third` decides. A criterion that is
chosen by looking at labels is measured on others: `--half development` and `--half held-out` share no question.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

from app import HERE, read_jsonl, read_policies

HALVES = ("held-out", "development")


def main() -> None:
    """Write the rows to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--criterion", default="grounded", help="what the labels are taken for")
    parser.add_argument("--half", choices=HALVES, help="only the questions with an odd, or an even, number")
    parser.add_argument("--take", type=int, default=0, help="so many at random, always the same; all without it")
    arguments = parser.parse_args()
    conversations = {row["conversation_id"]: row for row in read_jsonl(HERE / "conversations.jsonl")}
    policies = read_policies()
    labels = read_jsonl(HERE / "labels.jsonl")
    if arguments.half:
        labels = [row for row in labels if half_of(row["conversation_id"]) == arguments.half]
    if arguments.take:
        labels = random.Random(1).sample(labels, arguments.take)  # noqa: S311 - a sample for people to read
    for row in labels:
        print(json.dumps(labelled(conversations[row["conversation_id"]], policies, row, arguments.criterion)))


def half_of(conversation_id: str) -> str:
    """The half of the labels that an answer is in: by its question, so that both releases are in the same one."""
    question, _, _ = conversation_id.partition("/")
    return HALVES[int(question.rpartition("-")[2]) % 2]


def labelled(
    conversation: dict[str, Any], policies: dict[str, str], row: dict[str, Any], criterion: str
) -> dict[str, Any]:
    """One record with its labels."""
    said = {"first": row["first_pass"], "second": row["second_pass"]}
    if row["first_pass"] != row["second_pass"]:
        said["third"] = row["correct"]
    return {
        "id": row["conversation_id"],
        "input": conversation["question"],
        "output": conversation["answer"],
        "context": [{"id": conversation["policy"], "text": policies[conversation["policy"]]}],
        "service": "support-desk",
        "variant": conversation["release"],
        "labels": {criterion: said},
    }


if __name__ == "__main__":
    main()
