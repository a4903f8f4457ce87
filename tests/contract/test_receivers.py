"""The receivers of examples/receivers as processes, with real deliveries, and a deliverer that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from evalpipe.channels.webhook import Webhook, WebhookConfig
from evalpipe.notification import ADVANCE, ALERT_FIRING, ROLLBACK, Notification
from evalpipe.pipeline.deliver import Deliver
from evalpipe.signing import new_secret
from evalpipe.store import outbox
from evalpipe.store.sql import Store
from evalpipe.store.tables import deliveries

EXAMPLES = Path(__file__).parents[2] / "examples" / "receivers"
SECRET, NEXT = new_secret(), new_secret()


@contextmanager
def running(example: str, folder: Path, *arguments: str, secrets: str = SECRET) -> Iterator[tuple[str, Path]]:
    """The example's URL, and the file that its output goes to."""
    log = folder / f"{example}.log"
    before = log.read_text().count("listening on") if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / example), "--port", "0", *arguments],
            env={"EVALPIPE_WEBHOOK_SECRET": secrets, "PYTHONPATH": str(EXAMPLES.parents[1]), "PATH": "/bin:/usr/bin"},
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 60
        while log.read_text().count("listening on") == before and time.monotonic() < deadline:
            time.sleep(0.02)
        yield log.read_text().rpartition("listening on ")[2].split()[0], log
    finally:
        process.kill()
        process.wait()


def note(event_id: str, type_: str, seq: int | None, **data: Any) -> Notification:
    """A decision, or with no number an alert."""
    told = {"reason": f"because of {event_id}", "canary": "v7", "baseline": "v6", **data}
    return Notification(event_id, type_, "ro", datetime.now(UTC), told | ({} if seq is None else {"seq": seq}), "/t")


def send(
    url: str, notification: Notification, *, secrets: tuple[str, ...] = (SECRET,), skew_s: float = 0
) -> int | None:
    """One attempt, by a sender whose clock is wrong by ``skew_s``."""
    channel = Webhook(WebhookConfig(url=url, secrets=secrets, timeout_s=10))
    at = datetime.now(UTC) + timedelta(seconds=skew_s)
    return channel.send(channel.render(notification), event_id=notification.event_id, at=at).status


ACT = (
    f"{sys.executable} -c \"import os; print('ACTED', os.environ['EVALPIPE_ROLLOUT'], os.environ['EVALPIPE_REASON'])\""
)


def test_the_example_acts_on_a_rollback_once_and_remembers_it_over_a_restart(tmp_path: Path) -> None:
    """Repetitions and what comes too late are answered and passed over; both secrets are taken while one is changed."""
    both = f"{NEXT} {SECRET}"
    with running("receiver.py", tmp_path, "--run", ACT, secrets=both) as (url, log):
        assert send(url, note("e1", ADVANCE, 1)) == 204
        assert send(url, note("e3", ROLLBACK, 3), secrets=(NEXT,)) == 204
        assert [send(url, note("e3", ROLLBACK, 3)) for _ in range(2)] == [204, 204]
        assert send(url, note("e2", ADVANCE, 2)) == 204
        assert send(url, note("a1", ALERT_FIRING, None)) == 204
        assert send(url, note("t1", ROLLBACK, None, test=True)) == 204
    with running("receiver.py", tmp_path, "--run", ACT) as (url, log):
        assert send(url, note("e3", ROLLBACK, 3)) == 204
        assert send(url, note("e2", ADVANCE, 2)) == 204
    said = log.read_text()
    assert said.count("ACTED") == said.count("ACTED ro because of e3") == 1
    assert said.count(f"{ADVANCE} ro because of e1") == said.count(f"{ALERT_FIRING} ro because of a1") == 1
    assert "because of e2" not in said


def test_the_example_asks_for_another_attempt_if_its_command_fails(tmp_path: Path) -> None:
    """It remembers only what was done."""
    flag = tmp_path / "ready"
    with running("receiver.py", tmp_path, "--run", f"/bin/cat {flag}") as (url, _):
        assert send(url, note("e1", ROLLBACK, 1)) == 500
        flag.touch()
        assert [send(url, note("e1", ROLLBACK, 1)) for _ in range(2)] == [204, 204]


@pytest.mark.parametrize("example", ["receiver.py", "standard_receiver.py"])
def test_an_example_trusts_nobody_else_and_no_clock_that_is_five_minutes_off(tmp_path: Path, example: str) -> None:
    """Either way; less than that is taken."""
    arguments = ["--run", ACT] if example == "receiver.py" else []
    with running(example, tmp_path, *arguments) as (url, log):
        assert send(url, note("bad", ROLLBACK, 1), secrets=(NEXT,)) == 401
        assert [send(url, note("bad", ROLLBACK, 1), skew_s=skew_s) for skew_s in (-310, 310)] == [401, 401]
        request = urllib.request.Request(url, data=b"{}", headers={"webhook-id": "x", "webhook-signature": "junk"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        with caught.value as answer:
            assert answer.code == 401
        assert [send(url, note(f"e{seq}", ROLLBACK, seq), skew_s=280 * sign) for seq, sign in ((1, -1), (2, 1))] == [
            204
        ] * 2
    assert "because of bad" not in log.read_text()
    assert "because of e2" in log.read_text()


def test_the_example_with_the_public_library_acts_once_and_never_goes_back(tmp_path: Path) -> None:
    """As the other one, and with both signatures of a secret that is being changed."""
    with running("standard_receiver.py", tmp_path, secrets=f"{NEXT} {SECRET}") as (url, log):
        for event_id, type_, seq in [("e3", ROLLBACK, 3), ("e3", ROLLBACK, 3), ("e2", ADVANCE, 2), ("e4", ADVANCE, 4)]:
            assert send(url, note(event_id, type_, seq), secrets=(SECRET, NEXT)) == 204
        assert send(url, note("a1", ALERT_FIRING, None)) == 204
    said = log.read_text()
    assert [said.count(f"because of {event_id}") for event_id in ("e3", "e2", "e4", "a1")] == [1, 0, 1, 1]


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from evalpipe.channels.webhook import Webhook, WebhookConfig
from evalpipe.pipeline.deliver import Deliver
from evalpipe.store.sql import Store
url, hook, secret, where = sys.argv[1:]
deliver = Deliver(Store(url), {"hook": Webhook(WebhookConfig(url=hook, secrets=(secret,)))}, lambda: datetime.now(UTC))
setattr(deliver, where, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
deliver()
"""


@pytest.mark.parametrize(("where", "acted"), [("_send", 0), ("_settle", 1)])
def test_a_deliverer_that_is_killed_loses_nothing_and_the_receiver_acts_once(
    tmp_path: Path, migrated_url: str, where: str, acted: int
) -> None:
    """Kill -9 before sending, and before recording: it comes again, the same, once the lease has run out."""
    store, made = Store(migrated_url), note("evt_kill", ROLLBACK, 1)
    with running("receiver.py", tmp_path, "--run", ACT) as (url, log):
        channel = Webhook(WebhookConfig(url=url, secrets=(SECRET,)))
        with store.begin() as tx:
            outbox.post(tx, made, "hook", channel.render(made))
        arguments = [sys.executable, "-c", KILLED, migrated_url, url, SECRET, where]
        assert subprocess.run(arguments, check=False, timeout=60).returncode == -signal.SIGKILL
        assert log.read_text().count("ACTED") == acted
        now = datetime.now(UTC)
        assert Deliver(store, {"hook": channel}, lambda: now)().delivered == 0
        assert Deliver(store, {"hook": channel}, lambda: now + timedelta(seconds=21))().delivered == 1
        assert log.read_text().count("ACTED") == 1
    with store.read() as tx:
        assert [(row.attempt, row.status) for row in tx.connection.execute(select(deliveries))] == [(2, 204)]
    store.close()
