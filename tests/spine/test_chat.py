"""The chat under load, as ``make demo-chat`` runs it, only shorter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from stopwatch import TookTooLongError

DEMO = Path(__file__).parents[2] / "examples" / "chat" / "demo.py"


def test_the_kill_switch_stops_a_chat_under_load_and_the_books_agree_afterwards(tmp_path: Path) -> None:
    """Exit code 0 means: every question answered or cleanly refused, within a second both ways, nothing uncounted."""
    environ = {**os.environ, "EVALPIPE_DEMO_HOME": str(tmp_path / "demo"), "COLUMNS": "120"}
    command = [sys.executable, str(DEMO), "--per-second", "25", "--seconds", "3"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)
    problems = re.findall(r"NOT AS IT SHOULD BE: (.*)", done.stdout)
    if problems and all("a second" in problem for problem in problems):
        raise TookTooLongError(str(problems))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Everything held" in done.stdout
    assert "refused with reason and link" in done.stdout
