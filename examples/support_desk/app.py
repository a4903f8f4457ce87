"""The application of the demo: a support desk of which two releases run, with evalpipe's hook in it.

Each release is a process of its own, as it would be in production. A question comes as one line of JSON on standard
input; the answer is the one that the release's model gave when it was recorded, after the time that it took then.

    python examples/support_desk/app.py --variant canary < questions
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evalpipe import Hook, Release

HERE = Path(__file__).parent
LONGEST_WAIT_S = 8.0
"""A few answers took a minute because the machine that recorded them was busy; the demo does not wait so long."""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def read_policies() -> dict[str, str]:
    """The texts of the policies, by id, without their front matter."""
    return {
        path.stem: path.read_text(encoding="utf-8").split("---\n", 2)[2].strip()
        for path in (HERE / "policies").glob("*.md")
    }


class SupportDesk:
    """Answers customers; everything evalpipe needs is the `with` block of `answer`."""

    def __init__(self, variant: str, recorded_as: str) -> None:
        rows = read_jsonl(HERE / "conversations.jsonl")
        self.recordings = {row["conversation_id"]: row for row in rows if row["release"] == recorded_as}
        self.policies = read_policies()
        first = next(iter(self.recordings.values()))
        release = Release(variant=variant, model=first["model"], prompt=first["prompt_version"], index="policies@1")
        self.hook = Hook(service="support-desk", release=release)

    def answer(self, conversation_id: str) -> str:
        """The recorded answer, after the recorded time."""
        recording = self.recordings[conversation_id]
        with self.hook.call(feature="policy-questions", session_id=conversation_id, unit=conversation_id) as call:
            call.messages = [{"role": "user", "content": recording["question"]}]
            call.context = [{"id": recording["policy"], "text": self.policies[recording["policy"]]}]
            call.parameters = recording["parameters"]
            time.sleep(min(recording["latency_ms"] / 1000, LONGEST_WAIT_S))
            call.output = recording["answer"]
            call.model = recording["model"]
            call.finish_reason = recording["finish_reason"]
            call.input_tokens = recording["usage"]["prompt_tokens"]
            call.output_tokens = recording["usage"]["completion_tokens"]
        return str(recording["answer"])


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", required=True, help="the release's variant: baseline or canary")
    parser.add_argument("--recorded-as", help="whose answers it gives, if not the variant's own")
    arguments = parser.parse_args()
    desk = SupportDesk(arguments.variant, arguments.recorded_as or arguments.variant)
    with ThreadPoolExecutor(64) as pool:
        for line in sys.stdin:
            pool.submit(desk.answer, json.loads(line)["conversation_id"])
    desk.hook.shutdown(5)


if __name__ == "__main__":
    main()
