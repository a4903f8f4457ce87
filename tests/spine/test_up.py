"""``evalpipe up``: everything on one machine, from nothing, and gone afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
from spine_fleet import talk, wait_until

from evalpipe import Hook, Release


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def get(port: int, path: str, key: str = "") -> dict[str, object]:
    """What the API answers."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return dict(json.loads(answer.read()))


def test_up_starts_everything_scores_what_a_hook_sends_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """One command, no services; SIGTERM ends every process that it started."""
    port = free_port()
    environ = {**os.environ, "EVALPIPE_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "evalpipe", "up", "--port", str(port)],
            env=environ, cwd=tmp_path, stdout=out, stderr=out,
        )  # fmt: skip
    told = tmp_path / "out"
    try:
        assert wait_until(lambda: "EVALPIPE_REDIS_URL=" in told.read_text()), told.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        assert wait_until(lambda: get(port, "/healthz")["status"] == "ok"), told.read_text()
        found = re.search(r"EVALPIPE_REDIS_URL=(\S+)", told.read_text())
        assert found is not None
        hook = Hook("support-desk", Release(variant="baseline"), redis_url=found.group(1), sample_rate=1.0)
        talk(hook, 10)
        assert hook.shutdown(30)
        key = (tmp_path / "home" / "api-key").read_text().strip()
        assert wait_until(lambda: b'"scored":10' in json.dumps(get(port, "/v1/ledger", key)).replace(" ", "").encode())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert "evalpipe is down." in told.read_text()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
