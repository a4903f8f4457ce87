"""Every exception evalpipe raises.

A branch says what the caller should do::

    EvalpipeError
    ├── ConfigError            fix what you wrote, then run again (settings, flags, files)
    │   └── ScorecardError     the same, with file:line:column for each problem
    ├── RecordError            this input can never be read: keep it as a dead letter with the reason
    ├── RetryableError         nothing is wrong with the input: try again later
    │   └── JudgeUnavailable   a judge timed out, throttled or failed; may say when to come back
    ├── PermanentError         trying again cannot help: record the reason
    │   ├── JudgeRejected      bad key, no credit, unknown model: a human must act
    │   └── GradeInvalid       the judge answered, but not with a grade
    ├── CallRefused            the application asked the hook to stop such calls: do not make this one
    │   ├── KillSwitchEngaged  someone stopped these calls
    │   └── BudgetExceeded     tokens or money are used up until a stated time
    └── SignatureError         a webhook that must not be trusted
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class EvalpipeError(Exception):
    """The base of all exceptions of evalpipe."""


class ConfigError(EvalpipeError):
    """Something a person wrote is wrong; the message says what, where, which value, and what to do."""


class ScorecardError(ConfigError):
    """A scorecard cannot be used; the message has one ``file:line:column`` line for each problem."""


class RecordError(EvalpipeError):
    """A message or record that cannot be read, now or ever."""


class RetryableError(EvalpipeError):
    """The same input may work later.

    Attributes:
        retry_after_s: seconds to wait as the other side asked for them, or None.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class JudgeUnavailable(RetryableError):  # noqa: N818 - the name says the state, as in "503 unavailable"
    """A judge timed out, throttled us, or failed on its side.

    Attributes:
        cause: ``timeout``, ``throttled`` (429 or overloaded), ``server`` (5xx, or a body that is no answer),
            ``unreachable``, or ``paused`` (it was not called, as it asked).
        may_be_billed: the model may have answered, but nothing that can be read reached us.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        cause: str = "unreachable",
        may_be_billed: bool = False,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.cause = cause
        self.may_be_billed = may_be_billed or cause == "timeout"


class PermanentError(EvalpipeError):
    """Trying again with the same input cannot help."""


class JudgeRejected(PermanentError):  # noqa: N818 - the name says what the provider did
    """A judge's provider refuses us: wrong key, no credit, no such model.

    Attributes:
        cause: ``key``, ``credit``, ``gone`` (the model or the endpoint), or ``forbidden`` (HTTP 403, which may concern
            the one request only).
    """

    def __init__(self, message: str, *, cause: str = "key") -> None:
        super().__init__(message)
        self.cause = cause


class GradeInvalid(PermanentError):  # noqa: N818 - the name says what is wrong with the grade
    """A judge answered with something that is not a grade.

    Attributes:
        raw: what the judge said, whole.
        cause: ``refused`` (it declined to grade), ``truncated`` or ``malformed``.
    """

    def __init__(self, message: str, *, raw: str = "", cause: str = "malformed") -> None:
        super().__init__(message)
        self.raw = raw
        self.cause = cause


class SignatureError(EvalpipeError):
    """A webhook's signature, timestamp or id does not hold."""


class CallRefused(EvalpipeError):  # noqa: N818 - the name says what happened
    """A model call that must not be made. Raised before the call, and only where the application asked for it.

    Attributes:
        name: of the kill switch or budget.
        feature: of the call.
        reason: why, as whoever engaged the switch or set the budget wrote it.
        incident: a link to the incident, or "".
    """

    def __init__(self, what: str, *, name: str, feature: str, reason: str, incident: str = "") -> None:
        why = f": {reason}" if reason else ""
        super().__init__(f"{what}{why}{f' ({incident})' if incident else ''}")
        self.name = name
        self.feature = feature
        self.reason = reason
        self.incident = incident


class KillSwitchEngaged(CallRefused):
    """A kill switch stops the calls of this feature or segment until somebody releases it."""

    def __init__(self, *, name: str, feature: str, reason: str, incident: str = "") -> None:
        what = f"the kill switch {name!r} stops calls of feature {feature!r}"
        super().__init__(what, name=name, feature=feature, reason=reason, incident=incident)


class BudgetExceeded(CallRefused):
    """A user's, feature's or segment's budget is used up.

    Attributes:
        limit, unit, window: for example 200000 ``tokens`` per ``day``.
        resets_at: when the window ends, aware UTC; in a second, where the budget is not used up (``reason`` says so).
    """

    def __init__(
        self,
        *,
        name: str,
        feature: str,
        reason: str,
        limit: float,
        unit: str,
        window: str,
        resets_at: datetime,
        incident: str = "",
    ) -> None:
        what = f"the budget {name!r} of {limit:g} {unit} a {window} is used up until {resets_at:%Y-%m-%d %H:%M} UTC"
        super().__init__(what, name=name, feature=feature, reason=reason, incident=incident)
        self.limit = limit
        self.unit = unit
        self.window = window
        self.resets_at = resets_at
