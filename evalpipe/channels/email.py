"""E-mail by SMTP: a text and an HTML part; the messages of one episode are one thread in the reader's program.

Source: RFC 5321 (4yz may be tried again, 5yz not), RFC 5322, section 3.6.4 (References), RFC 3834 (Auto-Submitted).
"""

from __future__ import annotations

import base64
import hashlib
import html
import smtplib
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any, Final, Literal

from pydantic import Field, field_validator

from evalpipe.channels.base import TIMEOUT_S, Channel, ChannelConfig, Delivery, Secret, channels
from evalpipe.channels.http import bounded
from evalpipe.channels.notice import Notice, PeopleConfig, examples, line, notice_of, numbers
from evalpipe.errors import ConfigError
from evalpipe.notification import Notification

_ALERTS: Final = 20
_EXAMPLES: Final = 10
_POLICY: Final = SMTP.clone(cte_type="7bit")
"""Not every server on the way takes eight bits."""
_PARTING_S: Final = 1.0
"""For the answer to QUIT: what the server has taken is not sent again because it hangs then."""
_LOGIN: Final = frozenset({530, 534, 535, 538})
"""A wrong password may be mended: such a refusal is no end, unlike other 5yz."""


class EmailConfig(PeopleConfig):
    """Which server takes the messages, and whom they are for."""

    host: str = Field(min_length=1, description="The SMTP server.")
    port: int = Field(587, ge=1, le=65_535, description="587 with starttls, 465 with tls.")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection is encrypted; certificates are verified."
    )
    username: str = Field("", description="To log in with; nobody logs in without one.")
    password: Secret = Field("", repr=False, description="Of the username.")
    sender: str = Field(description="The address that messages are from, with or without a name.")
    to: tuple[str, ...] = Field(min_length=1, max_length=50, description="The addresses that they are for.")
    timeout_s: float = Field(TIMEOUT_S, gt=0, le=TIMEOUT_S, description="Seconds for one attempt.")

    @field_validator("sender", "to", mode="after")
    @classmethod
    def _are_addresses(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value:
            _address(text)
        return value


@channels.register("email")
class Email(Channel):
    """Sends one message for each notification to all addresses."""

    Config = EmailConfig
    in_order = True

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, EmailConfig)
        if bool(config.username) != bool(config.password):
            raise ConfigError("username and password go together: give both or neither")
        if config.username and config.security == "none":
            raise ConfigError("the password would be readable on its way: set security to starttls or tls")
        self._config = config
        self._sender = _address(config.sender)

    def render(self, notification: Notification) -> bytes:
        """The message, the same bytes for the same notification; empty for what is not told."""
        notice = notice_of(notification, self._config)
        if notice is None:
            return b""
        domain = self._sender.domain
        thread = f"<{_hash(notice.key)}@{domain}>"
        starts = notice.kind != "alert" or notice.cause == "first"
        message = EmailMessage(policy=_POLICY)
        message["From"] = self._sender
        message["To"] = [_address(to) for to in self._config.to]
        message["Subject"] = notice.headline
        message["Date"] = format_datetime(notification.at)
        message["Message-ID"] = thread if starts else f"<{notification.event_id}@{domain}>"
        if not starts:
            message["In-Reply-To"] = thread
            message["References"] = thread
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(_text(notice))
        message.add_alternative(_html(notice), subtype="html")
        message.set_boundary(f"=_{_hash(notification.event_id)}")
        return message.as_bytes()

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """Hand the message to the server."""
        config = self._config
        sent = [f"\0{config.username}\0{config.password}", config.password]  # as the two ways of logging in have it
        secrets = [config.password, *(base64.b64encode(text.encode()).decode() for text in sent)]
        return bounded(
            lambda: self._attempt(body), timeout_s=config.timeout_s, secrets=secrets if config.password else []
        )

    def _attempt(self, body: bytes) -> Delivery:
        to = [_address(text).addr_spec for text in self._config.to]
        try:
            server = self._connected()
            try:
                refused = server.sendmail(self._sender.addr_spec, to, body)
                with suppress(OSError):  # smtplib's errors are such; whoever has the message may part as it likes
                    if server.sock is not None:
                        server.sock.settimeout(_PARTING_S)
                    server.quit()
            finally:
                server.close()
        except smtplib.SMTPRecipientsRefused as error:
            return _refused(error.recipients)
        except smtplib.SMTPResponseException as error:
            return Delivery(
                ok=False,
                status=error.smtp_code,
                error=f"SMTP {error.smtp_code}: {_said(error.smtp_error)}",
                recoverable=error.smtp_code < 500 or error.smtp_code in _LOGIN,
            )
        except Exception as error:  # noqa: BLE001 - whatever a library raises is told; else nobody would wait for it in vain
            return Delivery(ok=False, error=f"{type(error).__name__}: {error}", recoverable=True)
        # Some have it: to send it again would be a second copy for them.
        return Delivery(ok=True, status=250, error=_refused(refused).error if refused else "")

    def _connected(self) -> smtplib.SMTP:
        config = self._config
        # Without a name of its own smtplib asks the name server for one.
        options: dict[str, Any] = {"timeout": config.timeout_s, "local_hostname": socket.gethostname()}
        if config.security == "tls":
            context = ssl.create_default_context()
            server: smtplib.SMTP = smtplib.SMTP_SSL(config.host, config.port, context=context, **options)
        else:
            server = smtplib.SMTP(config.host, config.port, **options)
        try:
            if config.security == "starttls":
                server.starttls(context=ssl.create_default_context())
            if config.username:
                server.login(config.username, config.password)
        except BaseException:
            server.close()
            raise
        return server


def _address(text: str) -> Address:
    name, mark, rest = text.rpartition("<")
    spec = rest.removesuffix(">").strip() if mark else text.strip()
    if not spec.isascii() or not text.isprintable() or " " in spec or "@" not in spec.strip("@"):
        raise ValueError(f"{text!r} is no address: write ada@example.com or Ada <ada@example.com>")
    return Address(display_name=name.strip().strip('"'), addr_spec=spec)


def _refused(recipients: Mapping[str, tuple[int, bytes]]) -> Delivery:
    codes = [code for code, _ in recipients.values()]
    told = "; ".join(f"{who}: {code} {_said(said)}" for who, (code, said) in recipients.items())
    return Delivery(
        ok=False, status=codes[0], error=f"not taken for {told}", recoverable=any(code < 500 for code in codes)
    )


def _said(text: Any) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _lines(notice: Notice) -> Iterator[tuple[str, str]]:
    """What the message says: name and value of each line; "" is a line by itself."""
    yield "", notice.summary
    yield from notice.facts
    for alert in notice.alerts[:_ALERTS]:
        told = ", ".join(f"{name} {value}" for name, value in numbers(alert))
        head = " ".join(
            line(alert.get(name)) for name in ("severity", "status", "rule", "feature", "criterion") if alert.get(name)
        )
        yield head, f"{line(alert.get('reason'), 500)} ({told})" if told else line(alert.get("reason"), 500)
    if notice.alerts and notice.status == "firing":
        for number, example in enumerate(examples(notice.alerts[0], _EXAMPLES), start=1):
            yield f"example {number}", example
    if notice.url:
        yield "page", notice.url
    yield "key", notice.key


def _text(notice: Notice) -> str:
    told = "\n".join(f"{name}: {value}" if name else f"{value}\n" for name, value in _lines(notice))
    return f"{notice.headline}\n\n{told}\n"


def _html(notice: Notice) -> str:
    rows = []
    for name, value in _lines(notice):
        shown = html.escape(value)
        if name == "page":
            shown = f'<a href="{shown}">{shown}</a>'
        rows.append(f"<tr><th align=left valign=top>{html.escape(name)}</th><td>{shown}</td></tr>")
    title = html.escape(notice.headline)
    return f"<!doctype html><html><body><h2>{title}</h2><table cellpadding=4>{''.join(rows)}</table></body></html>\n"
