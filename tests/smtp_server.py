"""A local SMTP server that keeps every message as it came, and refuses what a test wants it to."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Self


@dataclass
class Mail:
    """One message: its envelope, how it came, and what it says."""

    sender: str
    to: list[str]
    login: str
    encrypted: bool
    body: bytes = b""

    @property
    def message(self) -> EmailMessage:
        """As a reader's program has it."""
        found = message_from_bytes(self.body, policy=policy.default)
        assert isinstance(found, EmailMessage)
        return found


Answering = Callable[[str], str | None]
"""Gets each command; what it returns is answered instead, "hang" never answers, None lets the server go on."""


@dataclass
class Mailbox:
    """The server.

    Args:
        certificate: a file with a key and a certificate: then it offers STARTTLS.
        implicit: it speaks TLS from the first byte on.
        answering: may be changed at any time.
    """

    certificate: Path | None = None
    implicit: bool = False
    answering: Answering = lambda _: None
    mails: list[Mail] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _secured(self, connection: Any) -> Any:
        assert self.certificate is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context.wrap_socket(connection, server_side=True)

    def _talk(self, connection: Any) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(10)
            if self.implicit:
                connection = self._secured(connection)
            session = _Session(self, connection)
            try:
                session.run()
            finally:
                session.reading.close()
                session.connection.close()


class _Session:
    def __init__(self, box: Mailbox, connection: Any) -> None:
        self.box, self.connection = box, connection
        self.reading = connection.makefile("rb")
        self.encrypted = box.implicit
        self.mail = Mail("", [], "", self.encrypted)
        self.login = ""

    def say(self, text: str) -> None:
        self.connection.sendall(text.encode() + b"\r\n")

    def run(self) -> None:
        self.say(self.box.answering("CONNECT") or "220 mailbox ESMTP")
        while line := self.reading.readline():
            command = line.decode().strip()
            self.box.commands.append(command)
            told = self.box.answering(command)
            if told == "hang":
                threading.Event().wait(3)
            elif told is not None:
                self.say(told)
            elif not self.obey(command):
                return

    def obey(self, command: str) -> bool:
        verb = command.partition(" ")[0].upper()
        act = getattr(self, f"_{verb.lower()}", None)
        if act is None:
            self.say("250 ok")
        else:
            act(command)
        return verb != "QUIT"

    def _ehlo(self, _: str) -> None:
        offers = ["mailbox", "8BITMIME"]
        if self.box.certificate and not self.encrypted:
            offers.append("STARTTLS")
        if self.encrypted:
            offers.append("AUTH PLAIN LOGIN")
        self.say("\r\n".join([*(f"250-{offer}" for offer in offers[:-1]), f"250 {offers[-1]}"]))

    def _starttls(self, _: str) -> None:
        self.say("220 go ahead")
        self.reading.close()
        self.connection = self.box._secured(self.connection)
        self.reading = self.connection.makefile("rb")
        self.encrypted = True

    def _auth(self, command: str) -> None:
        self.login = base64.b64decode(command.split(" ")[2]).decode()
        self.say("235 welcome")

    def _mail(self, command: str) -> None:
        self.mail = Mail(command.split("<")[1].split(">", maxsplit=1)[0], [], self.login, self.encrypted)
        self.say("250 ok")

    def _rcpt(self, command: str) -> None:
        self.mail.to.append(command.split("<")[1].split(">", maxsplit=1)[0])
        self.say("250 ok")

    def _data(self, _: str) -> None:
        self.say("354 go on")
        lines = [line[1:] if line.startswith(b"..") else line for line in iter(self.reading.readline, b".\r\n")]
        self.mail.body = b"".join(lines)
        self.box.mails.append(self.mail)
        self.say("250 taken")

    def _quit(self, _: str) -> None:
        self.say("221 bye")
