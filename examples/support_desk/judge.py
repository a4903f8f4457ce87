"""Which judge the demo has: a real model if one is reachable, else none, and then the demo says so."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from evalpipe.errors import EvalpipeError
from evalpipe.judges.base import Prompt
from evalpipe.judges.config import open_judge, parse_judge

EXAMPLES = Path(__file__).parents[1]
LOCAL_START_S = 60


@dataclass(frozen=True)
class Judge:
    """A judge as the demo uses it.

    Attributes:
        name: for EVALPIPE_JUDGE; "" is none.
        share: of the conversations that it grades.
        decides: whether its grades are a gate of the rollout: only if it keeps pace with the traffic.
        says: one sentence for people.
        is_local: the model runs on this machine, and costs nothing.
    """

    name: str
    share: float
    decides: bool
    says: str
    concurrency: int = 32
    is_local: bool = False


NONE = Judge(
    "", 1.0, decides=False, says="No model judges here: heuristics decide. 'make model' fetches a small local judge."
)


@contextlib.contextmanager
def find_judge(home: Path, console: Console) -> Iterator[Judge]:
    """The first judge that answers: EVALPIPE_JUDGE, OpenAI, Anthropic, a local model; else none."""
    for name in (os.environ.get("EVALPIPE_JUDGE", ""), *_from_keys()):
        if name and answers(name, console):
            says = f"{name} judges every second conversation live; its grades and the heuristics decide."
            yield Judge(name, 0.5, decides=True, says=says)
            return
    with _local_model(home, console) as name:
        if name and answers(name, console):
            says = "The local model judges 5 % of the conversations live (grounded). It is slow, so heuristics decide."
            yield Judge(name, 0.05, decides=False, says=says, concurrency=1, is_local=True)
        else:
            yield NONE


def answers(name: str, console: Console) -> bool:
    """Whether the judge answers one small question now."""
    schema = {
        "type": "object",
        "properties": {"grade": {"type": "string", "enum": ["pass", "fail"]}},
        "required": ["grade"],
        "additionalProperties": False,
    }
    prompt = Prompt("Reply with a grade as JSON.", "The answer to 1 + 1 is 2. Pass or fail?", schema, max_tokens=64)

    async def ask() -> None:
        judge = open_judge(replace(parse_judge(name), attempts=1, timeout_s=30.0))
        try:
            await judge.ask(prompt)
        finally:
            await judge.aclose()

    try:
        asyncio.run(ask())
    except EvalpipeError as error:
        console.print(
            f"[yellow]{name} does not answer, going on without it:[/yellow] {str(error)[:200]}", highlight=False
        )
        return False
    return True


def _from_keys() -> list[str]:
    found = {"OPENAI_API_KEY": "openai:gpt-6-luna", "ANTHROPIC_API_KEY": "anthropic:claude-haiku-5-5"}
    return [name for key, name in found.items() if os.environ.get(key)]


@contextlib.contextmanager
def _local_model(home: Path, console: Console) -> Iterator[str]:
    """The name of a local judge, served for as long as the block runs; "" if there is none."""
    sys.path.insert(0, str(EXAMPLES))
    from local_model import MODEL_ALIAS, model_path

    if not model_path().exists() or importlib.util.find_spec("xllamacpp") is None:
        yield ""
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    console.print("Starting the local judge model ...")
    with (home / "model.log").open("ab") as log:
        command = [sys.executable, str(EXAMPLES / "local_model.py"), "serve", "--port", str(port), "--parallel", "1"]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/v1"
            yield f"openai:{MODEL_ALIAS}@{url}?usd_per_mtok=0" if _is_up(url, server) else ""
        finally:
            server.terminate()
            server.wait(20)


def _is_up(url: str, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + LOCAL_START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/models", timeout=2):
            return True
        time.sleep(0.5)
    return False
