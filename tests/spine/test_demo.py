"""The demo, as ``make demo`` and ``make demo-null`` run it, only faster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "support_desk" / "demo.py"


def play(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, without a judge."""
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environ |= {"EVALPIPE_DEMO_HOME": str(home), "EVALPIPE_MODEL_DIR": str(home / "no-model"), "COLUMNS": "120"}
    command = [sys.executable, str(DEMO), "--per-second", "15", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)


def test_the_demo_rolls_the_bad_canary_back(tmp_path: Path) -> None:
    """Exit code 0 means: rolled back, verified by the consumer, nothing counted twice, the ledger balances."""
    done = play(tmp_path / "demo")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Rolled back." in done.stdout
    assert "webhook verified by the consumer" in done.stdout
    assert "No model judges here" in done.stdout


def test_the_demo_with_two_identical_releases_rolls_nothing_back(tmp_path: Path) -> None:
    """The same conversations, dealt to two arms: no rollback."""
    done = play(tmp_path / "demo", "--null")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Nothing was rolled back" in done.stdout
