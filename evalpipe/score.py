"""What a scorer found out about one record and one criterion."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a score came out. Unknown is not zero, and an error is not a failure."""

    SCORED = "scored"
    SKIPPED = "skipped"
    ERROR = "error"
    ABSTAINED = "abstained"


@dataclass(frozen=True, slots=True)
class Score:
    """A value in [0, 1] where 1 is good, or the reason why there is none.

    Attributes:
        status: only ``SCORED`` has a value.
        value: in [0, 1], or None.
        label: a short class name such as ``refusal`` or ``pass``; "" if there is none.
        explanation: why, for people; for a status other than ``SCORED`` the reason.
    """

    status: Status
    value: float | None = None
    label: str = ""
    explanation: str = ""

    def __post_init__(self) -> None:
        """Refuse a value outside [0, 1] (NaN too), and a value where the status says that there is none."""
        if self.status is Status.SCORED:
            if self.value is None or not 0.0 <= self.value <= 1.0:
                raise ValueError(f"a scored value must be in [0, 1], not {self.value!r}")
        elif self.value is not None:
            raise ValueError(f"status {self.status.value!r} has no value, but {self.value!r} was given")


def scored(value: float, label: str = "", explanation: str = "") -> Score:
    """A score with a value."""
    return Score(Status.SCORED, value, label, explanation)


def skipped(reason: str) -> Score:
    """The criterion does not apply to this record, for example no context was retrieved."""
    return Score(Status.SKIPPED, explanation=reason)


def failed(reason: str) -> Score:
    """The scorer broke; says nothing about the record."""
    return Score(Status.ERROR, explanation=reason)


def abstained(reason: str) -> Score:
    """The scorer looked and could not tell."""
    return Score(Status.ABSTAINED, explanation=reason)
