"""The whole pipeline on real conversations: a canary that lost its grounding is found and rolled back.

    make demo          two releases, of which the canary is really worse: it must be rolled back
    make demo-null     two identical releases: nothing may be rolled back

It starts the embedded stack (SQLite, a Redis of its own, workers, API), a consumer of the rollback webhook, and the two
releases of the application, plays every recorded conversation once, and shows what happens. Exit code 0 means that what
had to happen did, that no conversation was counted twice, and that the ledger balances.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import yaml
from app import HERE, read_jsonl
from judge import Judge, find_judge
from measure import measure
from rich.console import Console
from rich.live import Live
from view import Seen, live_view, look, summary

from evalpipe.cli.up import Stack, api_key, shipped_scorecards
from evalpipe.notification import ROLLBACK
from evalpipe.receiver import Event, Receiver
from evalpipe.signing import new_secret

ROOT = HERE.parents[1]
HOME = Path(os.environ.get("EVALPIPE_DEMO_HOME") or ROOT / ".evalpipe" / "demo")
PER_SECOND = 9.0
AFTERWARDS_S = 4.0
"""How long the baseline is played on alone after a rollback, to show that the canary gets nothing more."""
SETTLE_S = 45.0
"""How long the end waits at the most for what is still under way; a slow judge may not be done by then."""
SEED = 7


@dataclass
class Played:
    """What the demo itself did and saw, beside what evalpipe knows.

    Attributes:
        calls: conversations handed to each arm.
        started_at: of the traffic.
        first_bad_at: when the canary was first asked something that it answered wrongly (by the labels).
        rollback: the event as the consumer verified it, and when.
        wrong: wrong canary answers that customers got.
    """

    null: bool
    calls: dict[str, int] = field(default_factory=lambda: {"baseline": 0, "canary": 0})
    started_at: datetime | None = None
    first_bad_at: datetime | None = None
    rollback: Event | None = None
    rollback_at: datetime | None = None
    calls_at_rollback: dict[str, int] = field(default_factory=dict)
    wrong: int = 0


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--null", action="store_true", help="two identical releases")
    parser.add_argument("--per-second", type=float, default=PER_SECOND, help="conversations a second")
    arguments = parser.parse_args()
    console = Console()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    with contextlib.ExitStack() as exits:
        judge = exits.enter_context(find_judge(HOME, console))
        played = Played(null=arguments.null)

        def on_event(event: Event) -> None:
            if event["type"] == ROLLBACK:
                played.rollback, played.rollback_at = event, datetime.now(UTC)
                played.calls_at_rollback = dict(played.calls)

        secret = new_secret()
        receiver = exits.enter_context(Receiver("127.0.0.1", 0, secrets=[secret], on_event=on_event))
        environ = {
            "EVALPIPE_HOME": str(HOME),
            "EVALPIPE_SCORECARDS": str(write_scorecard(judge)),
            "EVALPIPE_DATABASE_URL": f"sqlite:///{HOME / 'evalpipe.db'}",
            "EVALPIPE_REDIS_URL": "",
            "EVALPIPE_JUDGE": judge.name,
            "EVALPIPE_JUDGE_CONCURRENCY": str(judge.concurrency),
            "EVALPIPE_WEBHOOK_URL": receiver.url,
            "EVALPIPE_WEBHOOK_SECRET": secret,
            "EVALPIPE_API_KEYS": api_key(HOME),
        }
        console.print("Starting Redis, database, workers and API ...")
        with (
            Stack(environ, api_port=free_port(), log=HOME / "evalpipe.log") as stack,
            Live(console=console, refresh_per_second=4, transient=False) as live,
        ):
            seen = play(stack, played, judge, arguments.per_second, live)
        status = summary(console, played, judge, seen, HOME)
        measure(console, judge, HOME)
        return status


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_scorecard(judge: Judge) -> Path:
    """The support bot's scorecard as it ships, with what a demo of two minutes has to change."""
    card = yaml.safe_load((shipped_scorecards() / "support-bot.yaml").read_text(encoding="utf-8"))
    card["sampling"] = {"judge": judge.share}
    del card["tests"]  # they are the shipped scorecard's; 'evalpipe scorecard check' runs them
    for rule in card["alerts"]:
        rule["for"] = "3s"  # minutes in production; the demo has two in all
    if judge.name and not judge.decides:
        card["criteria"] = [criterion for criterion in card["criteria"] if criterion["name"] != "helpful"]
    if not judge.decides:
        card["rollout"]["gates"] = [gate for gate in card["rollout"]["gates"] if gate["criterion"] == "supported"]
    folder = HOME / "scorecards"
    folder.mkdir()
    (folder / "support-bot.yaml").write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return folder


def schedule(null: bool) -> list[tuple[str, str]]:
    """(arm, conversation) in the order of play: every conversation once, the arms in turn.

    With two identical releases the baseline's conversations are dealt to both arms.
    """
    rows = read_jsonl(HERE / "conversations.jsonl")
    ids = {arm: [r["conversation_id"] for r in rows if r["release"] == arm] for arm in ("baseline", "canary")}
    shuffle = random.Random(SEED).shuffle  # noqa: S311 - an order of play, the same every time
    for arm in ids.values():
        shuffle(arm)
    if null:
        ids = {"baseline": ids["baseline"][::2], "canary": ids["baseline"][1::2]}
    return [
        (arm, i) for pair in zip(ids["baseline"], ids["canary"], strict=False) for arm, i in zip(ids, pair, strict=True)
    ]


class Arms:
    """The two releases of the application, as processes that wait for questions."""

    def __init__(self, stack: Stack, null: bool, log: IO[bytes]) -> None:
        environ = {**os.environ, "EVALPIPE_REDIS_URL": stack.settings.redis_url, "EVALPIPE_SAMPLE_RATE": "1.0"}
        self._processes = {
            arm: subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "app.py"),
                    "--variant",
                    arm,
                    *(["--recorded-as", "baseline"] if null else []),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environ,
                text=True,
            )
            for arm in ("baseline", "canary")
        }

    def ask(self, arm: str, conversation_id: str) -> None:
        """Hand a customer's question to a release."""
        pipe = self._processes[arm].stdin
        assert pipe is not None
        pipe.write(json.dumps({"conversation_id": conversation_id}) + "\n")
        pipe.flush()

    def close(self) -> None:
        """Let both answer what they were asked, send what they have recorded, and end."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes.values():
            process.wait(60)


def play(stack: Stack, played: Played, judge: Judge, per_second: float, live: Live) -> Seen:
    """Play the conversations, and show what happens, until all is played and settled."""
    labels = {row["conversation_id"]: bool(row["correct"]) for row in read_jsonl(HERE / "labels.jsonl")}
    order = schedule(played.null)
    with (HOME / "app.log").open("ab") as log:
        arms = Arms(stack, played.null, log)
        played.started_at = datetime.now(UTC)
        start = time.monotonic()
        for n, (arm, conversation_id) in enumerate(order):
            if played.rollback_at is not None:
                # The consumer of the webhook acts: the router gives the canary nothing more.
                if (datetime.now(UTC) - played.rollback_at).total_seconds() > AFTERWARDS_S:
                    break
                if arm == "canary":
                    continue
            while (wait := start + n / per_second - time.monotonic()) > 0:
                time.sleep(min(wait, 0.25))
                live.update(live_view(played, judge, look(stack), total=len(order)))
            arms.ask(arm, conversation_id)
            played.calls[arm] += 1
            if arm == "canary" and not played.null and not labels[conversation_id]:
                played.wrong += 1
                played.first_bad_at = played.first_bad_at or datetime.now(UTC)
        arms.close()
    return settle(stack, played, judge, live, total=len(order))


def settle(stack: Stack, played: Played, judge: Judge, live: Live, total: int) -> Seen:
    """Wait until everything that was played has been scored or explained."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        seen = look(stack)
        live.update(live_view(played, judge, seen, total=total))
        done = seen.records == sum(played.calls.values()) and seen.balanced and seen.at_rest
        if done or time.monotonic() > deadline:
            return seen
        time.sleep(0.4)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
