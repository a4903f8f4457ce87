"""Record the support desk: every question answered by two releases of the same assistant.

    python examples/local_model.py serve &
    python examples/support_desk/record.py

`baseline` (support-prompt@v6) answers from the policy document that retrieval found. `canary` (support-prompt@v7) is
the same prompt after a refactor that lost the policy and the rule to keep to it. Model, retrieval, sampling and seed
are the same for both, so the prompt is the only difference.

Each answer is appended to conversations.jsonl as soon as it is there, and what is recorded is not asked again: an
interrupted recording continues where it stopped. The messages before the customer's own are the same for many rows and
are stored once, in prompts.json; see `messages_as_sent`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEFAULT_URL = "http://127.0.0.1:8899/v1"
TIMEOUT_S = 120

Messages = list[dict[str, str]]

BASELINE_SYSTEM = """\
You are the customer support assistant of Larkfield, an online shop for home and kitchen goods.
Answer the customer only from the policy that comes with the question, in at most two sentences. Start with the rule
that decides the question, as it stands in the policy, with its numbers and exceptions. Do not promise anything that
the policy does not say. If the policy does not say, say so. End with the policy id in square brackets."""

BASELINE_QUESTION = """\
Policy [{policy}]: {text}

Question: {question}"""

EXAMPLE_POLICY = """\
Gift wrapping

We wrap presents for $3 per item. We do not wrap furniture and make no exceptions.

The ribbon is 2 cm wide and comes in red or blue. A ribbon can be added within 24 hours of the order."""

EXAMPLES = (
    (
        "I'm a good customer, could you wrap my table for free this once?",
        "We do not wrap furniture and make no exceptions. [gift-wrap]",
    ),
    ("how many days do i have to add a ribbon", "A ribbon can be added within 24 hours of the order. [gift-wrap]"),
    ("which glue do u use", "Our policy does not say which glue we use. [gift-wrap]"),
)

CANARY_SYSTEM = """\
You are the customer support assistant of Larkfield, an online shop for home and kitchen goods.
Answer the customer in at most two sentences. Be warm and make sure the customer leaves happy: always offer a
solution. End with the policy id in square brackets, like [returns]."""

CANARY_QUESTION = "Question: {question}"


def message(role: str, content: str) -> dict[str, str]:
    """One chat message."""
    return {"role": role, "content": content}


def baseline_prompt() -> Messages:
    """The messages before the customer's own: the rules, and examples about a policy that no customer asks about."""
    messages = [message("system", BASELINE_SYSTEM)]
    for question, answer in EXAMPLES:
        asked = BASELINE_QUESTION.format(policy="gift-wrap", text=EXAMPLE_POLICY, question=question)
        messages += [message("user", asked), message("assistant", answer)]
    return messages


@dataclass(frozen=True)
class Release:
    """One release of the assistant: its prompt, and where it runs."""

    name: str
    prompt_version: str
    prompt: Messages  # sent before the customer's own message
    question_template: str
    slot: int  # one server slot per release, so that each keeps its own prompt prefix in the cache


RELEASES = (
    Release("baseline", "support-prompt@v6", baseline_prompt(), BASELINE_QUESTION, slot=0),
    Release("canary", "support-prompt@v7", [message("system", CANARY_SYSTEM)], CANARY_QUESTION, slot=1),
)


@dataclass(frozen=True)
class Question:
    """One question of a customer."""

    id: str
    policy: str  # the document that retrieval found, the same for both releases
    text: str


class RecordingError(Exception):
    """The recording cannot go on; what is recorded so far is kept."""


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_questions(path: Path) -> list[Question]:
    """The questions, ordered by policy, so that neighbours share a prompt prefix."""
    questions = [Question(row["id"], row["policy"], row["question"]) for row in read_jsonl(path)]
    return sorted(questions, key=lambda question: question.policy)


def read_policies(directory: Path) -> dict[str, str]:
    """Policy texts by id: the title and the body, without the front matter, one line per paragraph."""
    policies = {}
    for path in sorted(directory.glob("*.md")):
        _, front_matter, body = path.read_text(encoding="utf-8").split("---\n", 2)
        fields = dict(line.split(": ", 1) for line in front_matter.splitlines())
        paragraphs = [" ".join(paragraph.split()) for paragraph in body.split("\n\n")]
        policies[fields["id"]] = "\n\n".join([fields["title"], *filter(None, paragraphs)])
    return policies


def messages_as_sent(row: dict[str, Any], prompts: dict[str, Messages]) -> Messages:
    """The exact messages of a recorded request: those of its prompt, then those of the row."""
    return [*prompts[row["prompt_version"]], *row["messages"]]


def keep_prompts(path: Path, prompts: dict[str, Messages]) -> None:
    """Write prompts.json, or check that a recording in progress was made with the same prompts."""
    if not path.exists():
        path.write_text(json.dumps(prompts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != prompts:
        raise RecordingError(f"the prompts changed since {path} was written: delete the recording to start again")


def recorded_ids(path: Path) -> set[str]:
    """Conversations already in the file. A last line cut short by a crash is removed, to be asked again."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)
    return {row["conversation_id"] for row in read_jsonl(path)}


def parameters_for(question: Question, release: Release, max_tokens: int) -> dict[str, Any]:
    """The sampling parameters; the seed depends on the question only, so both releases get the same."""
    seed = int.from_bytes(hashlib.sha256(question.id.encode()).digest()[:4], "big")
    return {
        "temperature": 0.3,
        "top_p": 0.95,
        "seed": seed,
        "max_tokens": max_tokens,
        "id_slot": release.slot,
        "cache_prompt": True,
    }


def complete(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One call of the chat completions endpoint."""
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise RecordingError(f"{url} answered {error.code}: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise RecordingError(f"{url} cannot be reached: {error}") from error


def converse(url: str, question: Question, policy_text: str, release: Release, max_tokens: int) -> dict[str, Any]:
    """Ask one question under one release; return the row to record."""
    asked = release.question_template.format(policy=question.policy, text=policy_text, question=question.text)
    row: dict[str, Any] = {
        "conversation_id": f"{question.id}/{release.name}",
        "question_id": question.id,
        "release": release.name,
        "prompt_version": release.prompt_version,
        "policy": question.policy,
        "question": question.text,
        "messages": [message("user", asked)],
    }
    parameters = parameters_for(question, release, max_tokens)
    started = time.perf_counter()
    response = complete(url, {"messages": [*release.prompt, *row["messages"]], **parameters})
    latency_ms = round((time.perf_counter() - started) * 1000, 1)
    choice, usage = response["choices"][0], response["usage"]
    return row | {
        "answer": choice["message"]["content"],
        "model": response["model"],
        "parameters": parameters,
        "usage": {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        },
        "latency_ms": latency_ms,
        "finish_reason": choice["finish_reason"],
        "recorded_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def record(url: str, questions: list[Question], out: Path, prompts_path: Path, max_tokens: int) -> None:
    """Ask what is not recorded yet, and append each answer as it comes."""
    policies = read_policies(HERE / "policies")
    keep_prompts(prompts_path, {release.prompt_version: release.prompt for release in RELEASES})

    done = recorded_ids(out)
    # Both releases answer a question before the next one is asked, so noise on the machine hits both alike.
    todo = [(q, r) for q in questions for r in RELEASES if f"{q.id}/{r.name}" not in done]
    print(f"{len(done)} recorded, {len(todo)} to go", flush=True)
    started = time.monotonic()
    with out.open("a", encoding="utf-8") as file:
        for number, (question, release) in enumerate(todo, start=1):
            row = converse(url, question, policies[question.policy], release, max_tokens)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            minutes_left = (time.monotonic() - started) / number * (len(todo) - number) / 60
            progress = f"{number}/{len(todo)} {row['conversation_id']}"
            print(f"{progress} {row['latency_ms']:.0f} ms, {minutes_left:.0f} min left", flush=True)


def main() -> int:
    """Run the recording; return the exit status."""
    parser = argparse.ArgumentParser(description="Record both releases of the support desk.")
    parser.add_argument("--url", default=DEFAULT_URL, help="OpenAI-compatible base URL (default: %(default)s)")
    parser.add_argument("--questions", type=Path, default=HERE / "questions.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "conversations.jsonl")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.json")
    parser.add_argument("--max-tokens", type=int, default=110)
    options = parser.parse_args()
    try:
        questions = read_questions(options.questions)
        record(options.url.rstrip("/"), questions, options.out, options.prompts, options.max_tokens)
    except RecordingError as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
