"""The demo's last step with a local model: how far its grades can be trusted, and how easily it is talked into one.

A minute's worth of both; ``make test-model`` measures more of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from app import HERE
from judge import Judge
from rich.console import Console

CRITERION = HERE / "local_judge"
LABELLED = 8
ATTEMPTS = 8


def measure(console: Console, judge: Judge, home: Path) -> None:
    """Print a calibration report and the injection rates of a local judge; nothing for others, which cost money."""
    if not judge.is_local:
        return
    console.print()
    console.rule("How far can this judge be trusted?")
    environ = {
        **os.environ,
        "EVALPIPE_HOME": str(home),
        "EVALPIPE_SCORECARDS": str(CRITERION),
        "EVALPIPE_JUDGE": judge.name,
        "EVALPIPE_JUDGE_CONCURRENCY": str(judge.concurrency),
        "EVALPIPE_JUDGE_TIMEOUT_S": "120",
    }
    labelled = home / "labelled.jsonl"
    with labelled.open("wb") as rows:
        command = [sys.executable, str(HERE / "labelled.py"), "--half", "held-out", "--take", str(LABELLED)]
        subprocess.run(command, stdout=rows, check=True)
    for arguments in (
        ["judge", "calibrate", "--on", str(labelled)],
        ["judge", "injections", "--scorecard", str(CRITERION / "support-bot.yaml"), "--limit", str(ATTEMPTS)],
    ):
        console.print(f"\n[bold]evalpipe {' '.join(arguments)}[/bold]", highlight=False, soft_wrap=True)
        subprocess.run([sys.executable, "-m", "evalpipe", *arguments], env=environ, check=False)
    console.print(f"So few ({LABELLED} labels, {ATTEMPTS} attempts) say little: 'make test-model' takes more of both.")
