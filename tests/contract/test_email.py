"""E-mail against a recording SMTP server on a real socket: with TLS, with a login, and with every kind of refusal."""

from __future__ import annotations

import socket
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from certificate import CERTIFICATE
from notices import INJECTED, alert, decision, notice
from pydantic import ValidationError
from smtp_server import Mailbox
from stopwatch import assert_quick

from evalpipe.channels.base import Delivery
from evalpipe.channels.email import Email, EmailConfig
from evalpipe.errors import ConfigError
from evalpipe.notification import Notification

PASSWORD = "correct-horse-battery"


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate of this machine that clients trust."""
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


def made(box: Mailbox | int, **options: Any) -> Email:
    """A channel that sends to a mailbox, in the clear if nothing else is said."""
    port = box if isinstance(box, int) else box.port
    fields = {
        "security": "none",
        "sender": "evalpipe <evalpipe@example.com>",
        "to": ("ada@example.com", "Bo <bo@example.com>"),
    }
    return Email(EmailConfig(host="127.0.0.1", port=port, **{**fields, **options}))


def sent(channel: Email, told: Notification | None = None) -> Delivery:
    """What became of one attempt."""
    told = told or notice()
    return channel.send(channel.render(told), event_id=told.event_id, at=datetime.now(UTC))


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_message_goes_encrypted_with_a_login(certificate: Path, security: str) -> None:
    """To all addresses, in one message."""
    with Mailbox(certificate, implicit=security == "tls") as box:
        done = sent(made(box, security=security, username="evalpipe", password=PASSWORD))
    assert (done.ok, done.status, done.error) == (True, 250, "")
    mail = box.mails[0]
    assert (mail.encrypted, mail.login) == (True, f"\0evalpipe\0{PASSWORD}")
    assert (mail.sender, mail.to) == ("evalpipe@example.com", ["ada@example.com", "bo@example.com"])
    assert mail.message["Subject"] == "SEV2 desk production: too-low"
    assert mail.message["To"] == "ada@example.com, Bo <bo@example.com>"
    assert mail.message["Auto-Submitted"] == "auto-generated"
    text, page = (part.get_content() for part in mail.message.iter_parts())
    for part in ("grounded fell from 0.95 to 0.71", "respond by", "value 0.712345", "rec-9", "evalpipe.example.com"):
        assert part in text
        assert part in page


def test_a_server_whose_certificate_nobody_trusts_is_not_told(tmp_path: Path) -> None:
    """Neither the message nor the password."""
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    with Mailbox(path) as box:
        done = sent(made(box, security="starttls", username="evalpipe", password=PASSWORD))
    assert (done.ok, done.recoverable, box.mails) == (False, True, [])
    assert "certificate" in done.error.lower()


def test_a_server_without_encryption_gets_nothing_that_should_be_encrypted() -> None:
    """Somebody in between may have taken the offer away."""
    with Mailbox() as box:
        done = sent(made(box, security="starttls"))
    assert (done.ok, done.recoverable, box.mails) == (False, True, [])
    assert "STARTTLS" in done.error


def test_the_messages_of_one_episode_are_one_thread() -> None:
    """Whoever reads them sees the resolution below the alarm; another episode is another thread."""
    with Mailbox() as box:
        channel = made(box)
        other = notice(event_id="evt_4", dedup_key="another")
        told = [notice(), notice("raised", event_id="evt_2"), notice("resolved", event_id="evt_3"), other]
        assert all(sent(channel, one).ok for one in told)
    first, raised, resolved, other_mail = (mail.message for mail in box.mails)
    assert raised["References"] == resolved["References"] == resolved["In-Reply-To"] == first["Message-ID"]
    assert first["References"] is None
    assert len({mail.message["Message-ID"] for mail in box.mails}) == 4
    assert other_mail["References"] is None
    assert resolved["Subject"] == "SEV2 (resolved) desk production: too-low"


def test_the_same_notification_is_the_same_message() -> None:
    """Byte for byte, in every attempt."""
    assert made(25).render(notice()) == made(25).render(notice())
    assert made(25).render(decision())
    assert made(25, types=("decision",)).render(notice()) == b""


def test_a_judged_text_is_neither_markup_nor_a_header() -> None:
    """Not in the subject, not in the page."""
    bad = alert(reason=INJECTED, rule=INJECTED, runbook=INJECTED)
    told = notice("first", bad, title=INJECTED, summary=INJECTED, acked_by=INJECTED, url="javascript:alert(1)")
    with Mailbox() as box:
        assert sent(made(box), told).ok
    message = box.mails[0].message
    assert message["Bcc"] is None
    assert "Bcc: x@evil.example" in message["Subject"]
    page = message.get_body(("html",)).get_content()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "javascript:" not in page
    assert "<a " not in page


def at(verb: str, answer: str) -> Callable[[str], str | None]:
    """Answers a command like this."""
    return lambda command: answer if command.upper().startswith(verb) else None


@pytest.mark.parametrize(
    ("answering", "recoverable", "part"),
    [
        (at("CONNECT", "421 too busy"), True, "421"),
        (at("CONNECT", "554 go away"), False, "554"),
        (at("MAIL", "451 try later"), True, "451: try later"),
        (at("MAIL", "550 who are you"), False, "550"),
        (at("RCPT", "450 greylisted"), True, "ada@example.com: 450 greylisted"),
        (at("RCPT", "550 no such user"), False, "550 no such user"),
        (at("DATA", "452 disk full"), True, "452"),
        (at("DATA", "552 too large"), False, "552"),
    ],
)
def test_what_is_refused_for_now_comes_again_and_what_is_refused_for_good_does_not(
    answering: Callable[[str], str | None], recoverable: bool, part: str
) -> None:
    """4yz and 5yz."""
    with Mailbox(answering=answering) as box:
        done = sent(made(box))
    assert (done.ok, done.recoverable) == (False, recoverable)
    assert part in done.error


@pytest.mark.parametrize("parting", ["421 shutting down", "500 what", "hang"])
def test_what_the_server_has_taken_is_not_sent_again_however_it_parts(parting: str) -> None:
    """Its answer to the message counts; the one to QUIT does not."""
    with Mailbox(answering=at("QUIT", parting)) as box:
        done = sent(made(box, timeout_s=2.5))
    assert (done.ok, done.status, len(box.mails)) == (True, 250, 1)


def test_one_bad_address_keeps_nobody_else_from_hearing() -> None:
    """Delivered; the log says whom it did not reach."""
    with Mailbox(answering=at("RCPT TO:<BO@", "550 no such user")) as box:
        done = sent(made(box))
    assert (done.ok, "bo@example.com: 550" in done.error) == (True, True)
    assert box.mails[0].to == ["ada@example.com"]


def test_a_wrong_password_may_be_mended_and_is_in_no_error(certificate: Path) -> None:
    """Though the server quotes what it was sent."""
    with Mailbox(certificate, answering=lambda c: f"535 not {c} {PASSWORD}" if c.startswith("AUTH") else None) as box:
        channel = made(box, security="starttls", username="evalpipe", password=PASSWORD)
        done = sent(channel)
    assert (done.ok, done.recoverable) == (False, True)
    for text in (PASSWORD, f"\0evalpipe\0{PASSWORD}"):
        assert text not in done.error + repr(channel._config)
        assert b64encode(text.encode()).decode() not in done.error
    assert "***" in done.error


def test_a_server_that_hangs_or_is_not_there_costs_a_bounded_time() -> None:
    """And the delivery is tried again."""
    started = time.monotonic()
    with Mailbox(answering=at("MAIL", "hang")) as box:
        done = sent(made(box, timeout_s=0.3))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused = sent(made(port))
    assert_quick(time.monotonic() - started, 2)
    for one in (done, refused):
        assert (one.ok, one.recoverable, bool(one.error)) == (False, True, True)


def test_what_cannot_work_is_refused_at_the_start() -> None:
    """A password in the clear, half a login, what is no address."""
    for options, part in (
        ({"username": "a", "password": PASSWORD}, "readable on its way"),
        ({"username": "a", "security": "tls"}, "go together"),
    ):
        with pytest.raises(ConfigError, match=part) as caught:
            made(25, **options)
        assert PASSWORD not in str(caught.value)
    for options in ({"sender": "nobody"}, {"to": ("a@example.com\r\nBcc: b@example.com",)}, {"to": ()}):
        with pytest.raises(ValidationError):
            made(25, **options)
