"""A chat under load, and a kill switch thrown in the middle of it.

    make demo-chat

It starts evalpipe on this machine (SQLite, a Redis of its own, workers), a stand-in for the model, and the chat
application under gunicorn with three forked workers; asks forty questions a second; stops all calls by the kill switch,
and lets them through again. Exit code 0 means that everything held: each question was answered or cleanly refused, the
switch acted within a second both ways, and afterwards evalpipe's books agree with what the customers counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from load import Load
from rich.console import Console
from rich.live import Live
from view import Seen, ledger_table, live_view, look, meter_table, reason_of

from evalpipe.cli.up import Stack, api_key
from evalpipe.embedded import Supervised

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HOME = Path(os.environ.get("EVALPIPE_DEMO_HOME") or ROOT / ".evalpipe" / "demo-chat")
WORKERS = 3
ACTS_WITHIN_S = 1.0
SETTLE_S = 60.0
REASON = "The chat promises refunds that we do not give."
INCIDENT = "https://status.example.com/incidents/42"


@dataclass
class Played:
    """What the demo did and saw, beside what evalpipe knows. Times are seconds of the steady clock.

    Attributes:
        load: the customers.
        said: what was done, in words.
        engaged, released: when evalpipe stored it.
        releasing: when the release was asked for: until then everything must be stopped.
        late_thumb: the trace that somebody complained about when all was over.
    """

    load: Load | None = None
    said: list[str] = field(default_factory=list)
    started: float = 0.0
    engaged: float = 0.0
    releasing: float = 0.0
    released: float = 0.0
    late_thumb: str = ""

    def say(self, text: str, at: float | None = None) -> None:
        """Note what was done."""
        self.said.append(f"{(at or time.monotonic()) - self.started:5.1f} s  {text}")


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-second", type=float, default=40.0, help="questions a second")
    parser.add_argument("--seconds", type=float, default=7.0, help="of traffic before, while and after the switch")
    arguments = parser.parse_args()
    console = Console()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    environ = {
        "EVALPIPE_HOME": str(HOME),
        "EVALPIPE_SCORECARDS": str(HERE / "scorecards"),
        "EVALPIPE_DATABASE_URL": f"sqlite:///{HOME / 'evalpipe.db'}",
        "EVALPIPE_REDIS_URL": "",
        "EVALPIPE_JUDGE": "",
        "EVALPIPE_WEBHOOK_URL": "",
        "EVALPIPE_API_KEYS": api_key(HOME),
    }
    played = Played()
    console.print("Starting Redis, database and workers ...")
    with Stack(environ, api_port=None, log=HOME / "evalpipe.log") as stack:
        environ["EVALPIPE_REDIS_URL"] = stack.settings.redis_url
        console.print(
            "Setting the rollout: a fifth of the users get the next prompt; it shadows some of the others ..."
        )
        evalpipe(environ, "weights", "set", "chat", "shop-prompt", "canary=20", "baseline=80", "--shadow-rate", "0.1")
        console.print(f"Starting a stand-in for the model, and the chat under gunicorn: {WORKERS} forked workers ...")
        with Live(console=console, refresh_per_second=4) as live:
            with application(environ) as url:
                play(stack, played, environ, url, arguments, live)
            seen = settle(stack, played, live)
    return summary(console, played, seen)


def evalpipe(environ: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """What the command line says, as an operator would use it."""
    command = [sys.executable, "-m", "evalpipe", *arguments, "--json"]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"evalpipe {' '.join(arguments)}: {done.stderr}")
    return dict(json.loads(done.stdout))


def switch(environ: Mapping[str, str], action: str, *arguments: str) -> float:
    """Engage or release the switch; returns when evalpipe stored that, by the steady clock."""
    done = evalpipe(environ, "switch", action, "chat", "stop-chat", "--actor", "ada", *arguments)
    stored_at = datetime.fromisoformat(done["control"]["updated_at"]).timestamp()
    return time.monotonic() - (time.time() - stored_at)


@contextlib.contextmanager
def application(environ: Mapping[str, str]) -> Iterator[str]:
    """The chat and the server of its model while the block runs; yields the chat's URL."""
    model, chat = free_port(), free_port()
    environ = {**os.environ, **environ, "CHAT_MODEL_URL": f"http://127.0.0.1:{model}/v1"}
    commands = [
        [sys.executable, str(HERE / "model.py"), "--port", str(model)],
        [sys.executable, "-m", "gunicorn", "--chdir", str(HERE), "--preload", "--workers", str(WORKERS),
         "--worker-class", "uvicorn_worker.UvicornWorker", "--bind", f"127.0.0.1:{chat}", "--keep-alive", "30",
         "--no-control-socket", "--log-level", "warning", "app:app"],
    ]  # fmt: skip
    with (HOME / "app.log").open("ab") as log:
        # They cannot outlive the demo, however it ends.
        servers = [Supervised(command, folder=Path.cwd(), log=log, env=environ) for command in commands]
        try:
            wait_for(f"http://127.0.0.1:{model}/v1/models")
            wait_for(f"http://127.0.0.1:{chat}/healthz")
            yield f"http://127.0.0.1:{chat}"
        finally:
            for server in reversed(servers):
                server.stop(20)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(url: str) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"{url} does not answer; {HOME / 'app.log'} says why")
            time.sleep(0.1)
        else:
            return


def play(
    stack: Stack, played: Played, environ: Mapping[str, str], url: str, arguments: argparse.Namespace, live: Live
) -> None:
    """The traffic, and the switch in the middle of it."""
    load = played.load = Load(url, arguments.per_second)
    played.started = time.monotonic()
    load.start()
    try:
        watch(stack, played, arguments.seconds, live)
        played.engaged = switch(environ, "engage", "--feature", "chat", "--reason", REASON, "--incident", INCIDENT)
        played.say(f"kill switch engaged: {REASON} ({INCIDENT})", played.engaged)
        watch(stack, played, arguments.seconds, live)
        played.releasing = time.monotonic()
        played.released = switch(environ, "release", "--reason", "The prompt is corrected.")
        played.say("kill switch released: The prompt is corrected.", played.released)
        watch(stack, played, arguments.seconds, live)
    finally:
        load.stop()
    played.late_thumb = complain(url, load)
    played.say("a customer comes back with a thumb down for the very first answer")


def complain(url: str, load: Load) -> str:
    """A thumb down, long after the answer; returns its trace."""
    trace_id = next(one.trace_id for one in load.asked if one.status == 200 and one.trace_id not in load.thumbs)
    body = json.dumps({"trace_id": trace_id, "up": False, "comment": "It never arrived."}).encode()
    request = urllib.request.Request(f"{url}/feedback", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=5).close()
    return trace_id


def watch(stack: Stack, played: Played, seconds: float, live: Live) -> None:
    """Show what happens for a while."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        live.update(live_view(played, look(stack)))
        time.sleep(0.25)


def settle(stack: Stack, played: Played, live: Live) -> Seen:
    """Wait until every call of every process is in the store, and every record is scored."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        seen = look(stack)
        live.update(live_view(played, seen))
        if not problems(played, seen) or time.monotonic() > deadline:
            return seen
        time.sleep(0.4)


def problems(played: Played, seen: Seen) -> list[str]:
    """What did not hold."""
    assert played.load is not None
    asked = played.load.asked
    answered = sum(one.status == 200 for one in asked)
    stopped = [one for one in asked if one.status == 503]
    ledger = seen.ledger
    thumbs = len(played.load.thumbs) + 1
    checks = {
        "a question got neither an answer nor a clean refusal": answered + len(stopped) == len(asked),
        "a refusal does not name reason and incident": all(
            reason_of(one.body) == (REASON, INCIDENT) for one in stopped
        ),
        "a refusal took more than a second": all(one.seconds < ACTS_WITHIN_S for one in stopped),
        "the switch did not stop all calls within a second": acted_s(played, 200, played.engaged) < ACTS_WITHIN_S,
        "the switch did not let calls through within a second": acted_s(played, 503, played.released) < ACTS_WITHIN_S,
        f"customers got {answered} answers, the meter counted {seen.calls()}": seen.calls() == answered,
        f"customers got {len(stopped)} refusals, the meter counted {seen.blocked()}": seen.blocked() == len(stopped),
        "no call was shadowed": "shadow" in seen.meters,
        "the time to the first token is not known": all(m.sketches["ttft"].count for m in seen.meters.values()),
        "the ledger does not balance": seen.balanced and not ledger["in_flight"],
        "observed is not sampled and not sampled": ledger["observed"] == ledger["sampled"] + ledger["not_sampled"],
        "something was lost": not ledger["lost"] + ledger["dead"],
        # A shadow that is still under way when the application stops is shed, and counted: nobody waits for it.
        "something was shed": not sum(m.sums["shed"] for variant, m in seen.meters.items() if variant != "shadow"),
        f"{thumbs} thumbs were given, {seen.feedback} arrived": seen.feedback == thumbs,
        "no thumb joined its record": seen.joined > 0,
        f"of {WORKERS} processes not all said goodbye: {seen.processes}": seen.processes == ["ended"] * WORKERS,
    }
    return [problem for problem, held in checks.items() if not held]


def acted_s(played: Played, status: int, since: float) -> float:
    """Seconds from a change of the switch to the last question that was still treated the old way."""
    assert played.load is not None
    until = played.releasing if since == played.engaged else float("inf")
    return max((one.at - since for one in played.load.asked if one.status == status and since < one.at < until),
               default=0.0)  # fmt: skip


def summary(console: Console, played: Played, seen: Seen) -> int:
    """Say what happened and where to look next; returns the exit code."""
    assert played.load is not None
    asked = played.load.asked
    stopped = [one for one in asked if one.status == 503]
    found = problems(played, seen)
    say = partial(console.print, highlight=False, soft_wrap=True)
    say()
    console.rule("Summary")
    say(f"{len(asked)} questions: {sum(one.status == 200 for one in asked)} answered, {len(stopped)} refused with "
        "reason and link.")  # fmt: skip
    say(f"Kill switch: the last call got through {acted_s(played, 200, played.engaged):.2f} s after it was engaged; "
        f"the last one was refused {acted_s(played, 503, played.released):.2f} s after it was released.")  # fmt: skip
    say(f"As customers measured: first word {spread([one.ttft_ms for one in asked if one.ttft_ms])}, "
        f"refusal {spread([one.seconds * 1000 for one in stopped])}.")  # fmt: skip
    say(meter_table(seen))
    say(ledger_table(seen))
    say(f"Feedback: {seen.feedback} thumbs down, {seen.joined} of them on captured answers. "
        f"Processes: {', '.join(seen.processes)}.")  # fmt: skip
    for problem in found:
        say(f"[bold red]NOT AS IT SHOULD BE:[/bold red] {problem}")
    if not found:
        say("[bold green]Everything held:[/bold green] the books agree with what the customers counted.")
    where_next(say, played)
    return 1 if found else 0


def where_next(say: Callable[..., None], played: Played) -> None:
    """Commands for whoever wants to see more."""
    shown = HOME.relative_to(Path.cwd()) if HOME.is_relative_to(Path.cwd()) else HOME
    say("\nWhere to look next (the data stays until the next demo):")
    for command in ("meter --service chat", "processes", "ledger", "control log", f"why {played.late_thumb}"):
        say(f"  EVALPIPE_HOME={shown} .venv/bin/evalpipe {command}", soft_wrap=True)
    say("  examples/chat/app.py    the application: what is evalpipe's in it is numbered")


def spread(values: list[float]) -> str:
    """Median and 99th percentile in words."""
    if not values:
        return "never"
    values = sorted(values)
    middle, late = (values[min(len(values) - 1, int(q * len(values)))] for q in (0.5, 0.99))
    return f"after {middle:.0f} ms (p99 {late:.0f} ms)"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
