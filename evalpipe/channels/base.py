"""The contract of a channel: a way to the world outside.

A notification is rendered once, when it is decided; the outbox keeps the bytes, and every attempt sends them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from evalpipe.notification import Notification
from evalpipe.registry import Registry

MARK: Final = "evalpipe_secret"
"""Marks a field whose value a file of channels must not hold: there it is the name of an environment variable."""
Secret = Annotated[str, Field(min_length=1, json_schema_extra={MARK: True})]
Secrets = Annotated[tuple[str, ...], Field(json_schema_extra={MARK: True})]
"""In the environment several are separated by spaces."""
TIMEOUT_S: Final = 15.0
"""For one attempt at the most: a deliverer's lease is longer."""


class ChannelConfig(BaseModel):
    """Base of every channel's configuration."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one attempt; a row of the delivery log.

    Attributes:
        ok: the other side has it.
        status: the HTTP status, or SMTP's reply code; None where there was none.
        error: why it is not ok, for people; if it is ok, "" or whom it did not reach.
        recoverable: a later attempt may succeed.
        retry_after_s: what the other side asked to wait, or None.
        disable: the other side wants no more of these, ever.
        elapsed_ms: wall time of the attempt.
    """

    ok: bool
    status: int | None = None
    error: str = ""
    recoverable: bool = False
    retry_after_s: float | None = None
    disable: bool = False
    elapsed_ms: float = 0.0


class Channel(Protocol):
    """Sends notifications to one kind of receiver.

    Attributes:
        Config: the configuration model; its field descriptions are the manual.
        in_order: a firing alert's notice is given up once a newer one of its group was delivered; else it still comes,
            and whoever gets it puts them in order.
        by_episode: each episode of a group has a name of its own there: the end of one is told however late. Else the
            end is given up too once the group's next episode was told, for which it would be taken.
        whole: it is told of every alert of a group, however many; else of the most severe, and how many there are.
        resend_after: the other side forgets: it is told again of what fires after so long; None if it remembers.
    """

    Config: ClassVar[type[ChannelConfig]]
    in_order: ClassVar[bool] = False
    by_episode: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    resend_after: ClassVar[timedelta | None] = None

    def __init__(self, config: ChannelConfig) -> None:
        """Check what can be checked without the other side.

        Raises:
            ConfigError: the configuration is well-formed but cannot work.
        """

    def render(self, notification: Notification) -> bytes:
        """The bytes that the outbox keeps for this receiver: pure, and the same for the same notification.

        Empty if it is not told of this one.
        """
        ...

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """Make one attempt, within a bounded time.

        Whatever the other side does is in the result: nothing is raised for it.

        Args:
            body: what ``render`` returned.
            event_id: the notification's, the same in every attempt.
            at: the time of this attempt, aware.
        """
        ...


channels: Registry[type[Channel]] = Registry("channel", "evalpipe.channels")
"""All channels by name."""
