"""Channels against real receivers on real sockets, and the receiver against every kind of sender."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from certificate import CERTIFICATE
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from standardwebhooks import Webhook as PublicWebhook
from stopwatch import assert_quick
from typer.testing import CliRunner

from evalpipe.channels.alertmanager import AlertmanagerConfig
from evalpipe.channels.base import ChannelConfig, channels
from evalpipe.channels.cdevents import CDEventsConfig
from evalpipe.channels.email import EmailConfig
from evalpipe.channels.github import GitHubConfig
from evalpipe.channels.http import retry_after_s
from evalpipe.channels.launchdarkly import LaunchDarklyConfig
from evalpipe.channels.pagerduty import PagerDutyConfig
from evalpipe.channels.slack import SlackConfig
from evalpipe.channels.stdout import Stdout
from evalpipe.channels.unleash import UnleashConfig
from evalpipe.channels.webhook import Webhook, WebhookConfig
from evalpipe.cli.webhook import app
from evalpipe.errors import ConfigError
from evalpipe.notification import ROLLBACK, ROLLBACK_VERIFIED, Notification, to_cloudevent
from evalpipe.receiver import Receiver
from evalpipe.signing import new_secret, sign, verify_signature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_ACTING = {"service": "desk", "token": SECRET}
MADE = {
    "webhook": WebhookConfig(url="http://127.0.0.1:1/", secrets=(SECRET,)),
    "stdout": ChannelConfig(),
    "cdevents": CDEventsConfig(url="http://127.0.0.1:1/", secrets=(SECRET,)),
    "unleash": UnleashConfig(url="http://127.0.0.1:1/", feature="f", strategy_id="s", **_ACTING),
    "launchdarkly": LaunchDarklyConfig(flag="f", canary_variation="c", baseline_variation="b", **_ACTING),
    "github": GitHubConfig(repository="acme/desk", **_ACTING),
    "slack": SlackConfig(url=f"http://127.0.0.1:1/services/{SECRET}"),
    "pagerduty": PagerDutyConfig(routing_key=SECRET),
    "alertmanager": AlertmanagerConfig(url="http://127.0.0.1:1", token=SECRET),
    "email": EmailConfig(
        host="127.0.0.1", username="ada", password=SECRET, sender="e@example.com", to=("a@example.com",)
    ),
}
"""A configuration of each channel; a new channel adds its own."""


def _notification(event_id="evt_1", seq=1, **data):
    return Notification(
        event_id=event_id,
        type=ROLLBACK,
        subject="support-bot",
        at=datetime(2026, 11, 22, 3, 30, tzinfo=UTC),
        data={"seq": seq, **data},
        source="/evalpipe/test",
    )


def _send(url, notification=None, *, secrets=(SECRET,), timeout_s=5.0, at=None):
    channel = Webhook(WebhookConfig(url=url, secrets=secrets, timeout_s=timeout_s))
    notification = notification or _notification()
    return channel.send(channel.render(notification), event_id=notification.event_id, at=at or datetime.now(UTC))


def _request(connection):
    with connection.makefile("rb") as reading:
        head = b"".join(iter(reading.readline, b"\r\n"))
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return head + b"\r\n" + reading.read(int(length[1]) if length else 0)


@contextlib.contextmanager
def _raw_server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that does with each connection what it is told to; the requests it saw."""
    seen: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    seen.append(_request(connection))
                    answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook", seen
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(60)


def _status(line: str, *headers: str, body: bytes = b"") -> Callable[[socket.socket], None]:
    head = "\r\n".join([f"HTTP/1.1 {line}", *headers, f"content-length: {len(body)}", "connection: close", "", ""])
    return lambda connection: connection.sendall(head.encode() + body)


@pytest.mark.parametrize("name", list(channels))
def test_every_channel_keeps_its_contract(name):
    """Strict configuration, and bytes that depend on the notification alone."""
    channel_type = channels.get(name)
    with pytest.raises(ValidationError, match="Extra inputs"):
        channel_type.Config.model_validate({**MADE[name].model_dump(), "colour": "red"})
    assert SECRET not in repr(MADE[name])
    told = replace(_notification(service="desk"), type=ROLLBACK_VERIFIED if name == "cdevents" else ROLLBACK)
    first, again = (channel_type(MADE[name]).render(told) for _ in range(2))
    assert first == again
    assert first
    assert SECRET.encode() not in first


def test_a_consumer_gets_what_was_decided_and_both_libraries_trust_it():
    """The headers and body on the wire, as the consumer's side sees them."""
    with _raw_server(_status("204 No Content")) as (url, seen):
        delivery = _send(url)
    assert (delivery.ok, delivery.status, delivery.error) == (True, 204, "")
    assert delivery.elapsed_ms > 0
    head, _, body = seen[0].partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert head.startswith(b"POST /hook HTTP/1.1")
    assert headers["content-type"] == "application/cloudevents+json"
    assert headers["webhook-id"] == "evt_1"
    assert body == to_cloudevent(_notification())
    assert verify_signature(body, headers, SECRET) == PublicWebhook(SECRET).verify(body, headers)


def test_each_attempt_has_the_same_id_and_body_but_its_own_time():
    """So a receiver can tell a repetition from a replay."""
    with _raw_server(_status("500 No")) as (url, seen):
        for late in (0, 90):
            _send(url, at=datetime.now(UTC) + timedelta(seconds=late))
    first, second = (dict(line.split(b": ", 1) for line in s.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]) for s in seen)
    assert first[b"webhook-id"] == second[b"webhook-id"]
    assert seen[0].split(b"\r\n\r\n")[1] == seen[1].split(b"\r\n\r\n")[1]
    assert int(second[b"webhook-timestamp"]) - int(first[b"webhook-timestamp"]) in {90, 91}
    assert first[b"webhook-signature"] != second[b"webhook-signature"]


@pytest.mark.parametrize("line", ["200 OK", "201 Created", "202 Accepted", "204 No Content", "299 Odd"])
def test_any_2xx_is_a_delivery(line):
    """Standard Webhooks: 200 to 299."""
    with _raw_server(_status(line, body=b"" if line.startswith("204") else b"thanks")) as (url, _):
        assert _send(url).ok


@pytest.mark.parametrize(
    "line", ["301 Moved", "307 Moved", "400 Bad", "401 Who", "404 Where", "429 Slow", "500 Oh", "502 Bad", "503 Busy"]
)
def test_every_other_status_is_tried_again(line):
    """A consumer that is half deployed shall still learn of a rollback; a redirect is not followed."""
    with _raw_server(_status(line, "location: /elsewhere", body=b"because")) as (url, seen):
        delivery = _send(url)
    assert (delivery.ok, delivery.recoverable, delivery.disable) == (False, True, False)
    assert delivery.status == int(line[:3])
    assert delivery.error == f"HTTP {line}: because"
    assert len(seen) == 1


def test_gone_means_never_again():
    """410 is how a consumer says so."""
    with _raw_server(_status("410 Gone")) as (url, _):
        delivery = _send(url)
    assert (delivery.ok, delivery.recoverable, delivery.disable, delivery.status) == (False, False, True, 410)


def test_a_receiver_can_ask_for_time_in_seconds_or_by_date():
    """Both forms of Retry-After."""
    at = datetime.now(UTC).replace(microsecond=0)
    for header in ("90", format_datetime(at + timedelta(seconds=90), usegmt=True)):
        with _raw_server(_status("503 Busy", f"retry-after: {header}")) as (url, _):
            assert _send(url, at=at).retry_after_s == 90


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,5} [0-9:]{5,9} [A-Z+0-9]{3,5}"))
def test_no_retry_after_header_does_harm(header):
    """Whatever the receiver writes: nothing, or seconds up to a day."""
    asked_s = retry_after_s(header, datetime.now(UTC))
    assert asked_s is None or 0 <= asked_s <= 86_400


def _hang(connection):
    with contextlib.suppress(OSError):
        connection.recv(1)


def _trickle(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    for _ in range(20):
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_hang, "no answer within 0.3 s|ReadTimeout"),
        (_trickle, "no answer within 0.3 s"),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"), "RemoteProtocolError"),
        (lambda connection: connection.close(), "RemoteProtocolError|ReadError"),
    ],
    ids=["hangs", "trickles", "speaks something else", "hangs up"],
)
def test_a_broken_receiver_costs_a_bounded_time(answer, reason):
    """The worker goes on, and the delivery is tried again."""
    started = time.monotonic()
    with _raw_server(answer) as (url, _):
        delivery = _send(url, timeout_s=0.3)
        took_s = time.monotonic() - started
    assert_quick(took_s, 1.5)
    assert (delivery.ok, delivery.recoverable, delivery.status) == (False, True, None)
    assert any(part in delivery.error for part in reason.split("|")), delivery.error


def test_a_receiver_that_is_not_there_is_tried_again():
    """Connection refused, and a name that no name server knows."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "http://evalpipe.invalid/"):
        delivery = _send(url, timeout_s=5)
        assert (delivery.ok, delivery.recoverable) == (False, True)
        assert delivery.error


def test_a_receiver_whose_certificate_nobody_trusts_is_not_told(tmp_path):
    """TLS is verified: evidence may hold what users wrote."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
                seen.append(secure.recv(100))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        delivery = _send(f"https://127.0.0.1:{listening.getsockname()[1]}/")
        thread.join(60)
    assert (delivery.ok, delivery.recoverable) == (False, True)
    assert "certificate" in delivery.error.lower()
    assert not any(seen)


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(monkeypatch):
    """A fleet sends through its egress proxy; the demo's receiver on loopback is no business of the proxy."""
    with _raw_server(_status("200 OK")) as (proxy, seen):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert _send("http://consumer.example/hook").ok
        assert seen[0].startswith(b"POST http://consumer.example/hook ")
        with Receiver(secrets=SECRET) as receiver:
            assert _send(receiver.url).ok
        assert len(seen) == 1


@pytest.mark.parametrize(
    ("url", "secrets", "reason"),
    [
        ("deployer:8080/hook", (SECRET,), "must be http://host"),
        ("ftp://deployer/hook", (SECRET,), "must be http://host"),
        ("https:///hook", (SECRET,), "must be http://host"),
        ("https://[::1/hook", (SECRET,), "is no URL"),
        ("ftp://ada:very-secret@deployer/hook", (SECRET,), r"ada:\*\*\*@deployer"),
        ("https://deployer/hook", (), "no webhook secret"),
        ("https://deployer/hook", ("whsec_short",), "not base64|bytes"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused_at_the_start(url, secrets, reason):
    """Not at the first rollback."""
    with pytest.raises(ConfigError, match=reason):
        Webhook(WebhookConfig(url=url, secrets=secrets))


def test_a_configuration_in_a_log_does_not_show_the_secret():
    """Neither whole nor in an error."""
    assert SECRET not in repr(MADE["webhook"])
    with pytest.raises(ValidationError) as caught:
        WebhookConfig.model_validate({"url": "http://x/", "secrets": SECRET})
    assert SECRET not in str(caught.value)


def test_standard_output_has_one_event_a_line(capsys):
    """For a log collector."""
    channel = Stdout(ChannelConfig())
    assert channel.send(channel.render(_notification()), event_id="evt_1", at=datetime.now(UTC)).ok
    assert json.loads(capsys.readouterr().out)["id"] == "evt_1"


def test_the_receiver_takes_an_event_once():
    """A repetition is answered as well as the first, and not passed on."""
    taken = []
    with Receiver(secrets=SECRET, on_event=taken.append) as receiver:
        assert [_send(receiver.url).status for _ in range(3)] == [204, 204, 204]
    assert [event["id"] for event in taken] == ["evt_1"]
    assert receiver.events == taken


def test_an_old_advance_does_not_undo_a_rollback():
    """Deliveries may overtake one another: the highest ``seq`` of a subject counts."""
    with Receiver(secrets=SECRET) as receiver:
        for event_id, seq in (("a", 1), ("c", 3), ("b", 2), ("d", 4)):
            assert _send(receiver.url, _notification(event_id, seq)).status == 204
    assert [event["id"] for event in receiver.events] == ["a", "c", "d"]


def test_the_receiver_trusts_nobody_else():
    """Wrong secret, no signature, an old delivery: 401, with the reason on this side only."""
    reasons = []
    with Receiver(secrets=[new_secret(), SECRET], on_refusal=reasons.append) as receiver:
        assert _send(receiver.url, secrets=(new_secret(),)).status == 401
        assert _send(receiver.url, at=datetime.now(UTC) - timedelta(minutes=6)).status == 401
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(receiver.url, data=b"{}", timeout=5)
        with caught.value as answer:
            assert (answer.code, answer.read()) == (401, b"")
        assert _send(receiver.url).ok
    for reason, word in zip(
        reasons, ["no signature matches", "s old, more than 300 s", "webhook-id is missing"], strict=True
    ):
        assert word in reason
    assert len(receiver.events) == 1


def test_what_a_consumer_could_not_do_comes_again():
    """An exception is a 500, and the next attempt is no repetition."""
    failures = [RuntimeError("the deployer is away")]

    def once(_event):
        if failures:
            raise failures.pop()

    with Receiver(secrets=SECRET, on_event=once) as receiver:
        assert [_send(receiver.url).status for _ in range(2)] == [500, 204]
        assert receiver.wait_for(lambda events: len(events) == 1, timeout_s=60)
        assert not receiver.wait_for(lambda events: len(events) == 2, timeout_s=0.05)


def test_a_test_can_make_the_receiver_fail():
    """For the senders' side: as often as is wanted, then it takes the event."""
    statuses = [503, 429, 410]
    with Receiver(secrets=SECRET, respond=lambda _: statuses.pop(0) if statuses else None) as receiver:
        assert [_send(receiver.url).status for _ in range(4)] == [503, 429, 410, 204]
    assert len(receiver.events) == 1


def test_the_receiver_survives_what_is_no_delivery():
    """Too large, without a length, another method, another protocol."""
    with Receiver(secrets=SECRET) as receiver:
        host, port = receiver.url[7:-1].split(":")
        for request, status in (
            (b"POST / HTTP/1.1\r\ncontent-length: 9999999\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\n\r\n", b"501"),
            (b"\x16\x03\x01\r\n\r\n", b"400"),
        ):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(request)
                assert status in connection.recv(1000)
        assert _send(receiver.url).ok


def test_two_receivers_on_one_port_are_a_configuration_error():
    """Said at once, with what to do."""
    with Receiver(secrets=SECRET) as receiver:
        port = int(receiver.url[:-1].rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*choose another port"):
            Receiver(port=port, secrets=SECRET)


def test_many_deliveries_at_once_are_each_taken_once():
    """The receiver's threads share its memory of what it has seen."""
    body = to_cloudevent(_notification())
    headers = sign(body, secrets=SECRET, event_id="evt_1", at=datetime.now(UTC))
    with Receiver(secrets=SECRET) as receiver:
        threads = [threading.Thread(target=receiver.receive, args=(body, headers)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(receiver.events) == 1


def test_the_command_makes_a_secret_and_sends_a_test_event():
    """``secret`` and ``send-test``: what a consumer's author does first. It is no rollback unless one asks for that."""
    runner = CliRunner()
    secret = runner.invoke(app, ["secret"]).stdout.strip()
    with Receiver(secrets=secret) as receiver:
        done = runner.invoke(app, ["send-test", receiver.url, "--secret", secret])
        assert (done.exit_code, "delivered: HTTP 204" in done.output) == (0, True)
        done = runner.invoke(app, ["send-test", receiver.url], env={"EVALPIPE_WEBHOOK_SECRET": new_secret()})
        assert (done.exit_code, "not delivered" in done.output, "HTTP 401" in done.output) == (1, True, True)
    assert (receiver.events[0]["data"]["test"], receiver.events[0]["type"]) == (True, "io.evalpipe.test.v1")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_command_prints_what_it_verified(flags):
    """``listen`` shows each event once, for people or for a pipe, and nothing that could play with the terminal."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    results = []
    arguments = ["listen", "--port", str(port), "--secret", SECRET, "--count", "1", *flags]
    thread = threading.Thread(target=lambda: results.append(CliRunner().invoke(app, arguments)), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not _send(f"http://127.0.0.1:{port}/", _notification(quote="\x1b[2Jyou are fired")).ok:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    thread.join(60)
    assert results[0].exit_code == 0
    if flags:
        assert json.loads(results[0].stdout)["id"] == "evt_1"
    else:
        assert "io.evalpipe.decision.rollback.v1  support-bot  id evt_1" in results[0].stdout
        assert "quote:  [2Jyou are fired" in results[0].stdout


def test_the_command_without_a_secret_says_how_to_get_one():
    """It would have to trust everybody."""
    done = CliRunner().invoke(app, ["listen"])
    assert isinstance(done.exception, ConfigError)
    assert "evalpipe webhook secret" in str(done.exception)


def test_the_examples_of_the_manual_verify_a_delivery():
    """docs/webhooks.md, both ways to receive."""
    manual = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", manual, re.DOTALL)
    body = to_cloudevent(_notification())
    headers = sign(body, secrets=SECRET, event_id="evt_1", at=datetime.now(UTC))
    assert len(examples) == 2
    for example in examples:
        names = {}
        exec(example, names)
        assert names["receive"](body, headers, SECRET)["id"] == "evt_1"
