"""What people set to act on live traffic: kill switches, budgets, weights of a rollout, sampling rates.

The database keeps them, hooks obey them, flagd reads the weights. Here is what may be written, and in which words it is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from evalpipe.errors import ConfigError
from evalpipe.scorecard.wording import shown, worded

Kind = Literal["switch", "budget", "weights", "rate"]
EVALPIPE: Final = "evalpipe"
"""The actor of what evalpipe does by itself. No person acts under this name."""
MOST_WEIGHT: Final = 1_000_000
"""Of all variants together: flagd takes no more than 2^31 - 1, and nobody splits finer."""
DAY_S: Final = 86_400

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class ControlError(ConfigError):
    """A control cannot be set, changed or removed so.

    Attributes:
        what: went wrong.
        where: the service, kind, name and field.
        value: as it was given.
        advice: what to do.
        cause: ``invalid`` as it was asked, ``missing``, or ``latched`` by a human or a rollback.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str,
        value: Any = None,
        advice: str,
        cause: Literal["invalid", "missing", "latched"] = "invalid",
    ) -> None:
        super().__init__(f"{where}: {what}; {advice}")
        self.what = what
        self.where = where
        self.value = value
        self.advice = advice
        self.cause = cause


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line without control characters")
    return text


Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(_printable)]
Link = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000), AfterValidator(_printable)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[int, Field(ge=0, le=MOST_WEIGHT, strict=True)]
Staleness = Annotated[float, Field(ge=1, le=30 * DAY_S, allow_inf_nan=False)]


class Control(BaseModel):
    """Base of the four: an unknown field is an error, an empty text matches everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: Text = Field(default="", description="Only in this environment; in all, if it is empty.")


class Switch(Control):
    """A kill switch: while it is engaged, hooks refuse the calls that it matches."""

    engaged: bool = Field(default=True, strict=True, description="False releases it.")
    feature: Text = Field(default="", description="Only calls of this feature.")
    segment: Text = Field(default="", description="Only calls of this segment.")
    variant: Text = Field(default="", description="Only calls of this variant, for example canary.")
    incident: Link = Field(default="", description="A link that the refused calls carry.")
    fail: Literal["open", "closed"] = Field(
        default="open", description="Whether calls pass (open) where hooks have not heard of us for max_staleness_s."
    )
    max_staleness_s: Staleness = Field(default=300, description="How old what a hook knows may be.")


class Budget(Control):
    """What may be spent in a window, enforced before the call."""

    per: Literal["user", "feature", "segment", "service"] = Field(description="Whose account it is.")
    limit: float = Field(gt=0, le=1e15, allow_inf_nan=False, description="Of each account, in each window.")
    unit: Literal["tokens", "usd"] = Field(description="Tokens (input and output) or US dollars.")
    window: Literal["minute", "hour", "day"] = Field(description="Fixed windows in UTC.")
    feature: Text = Field(default="", description="Only calls of this feature.")
    segment: Text = Field(default="", description="Only calls of this segment.")
    lease: float = Field(
        default=0.02, gt=0, le=1, allow_inf_nan=False, description="Share of the limit that a process takes at a time."
    )
    incident: Link = Field(default="", description="A link that the refused calls carry.")
    fail: Literal["open", "closed"] = Field(default="open", description="As of a switch.")
    max_staleness_s: Staleness = Field(default=300, description="As of a switch.")

    @model_validator(mode="after")
    def _whole_tokens(self) -> Budget:
        if self.unit == "tokens" and self.limit != int(self.limit):
            raise ValueError(f"limit must be whole tokens, not {self.limit!r}; or unit must be usd")
        return self


class Shadow(BaseModel):
    """How often the canary runs beside a served call, for nobody but the judges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: Share = Field(description="Share of the calls.")
    per_minute: int = Field(ge=1, le=1_000_000, strict=True, description="Calls a minute of a process at the most.")


class Weights(Control):
    """Who gets which variant; units stay where they are while their variant grows."""

    weights: dict[Text, Weight] = Field(min_length=1, description="Share of each variant: whole numbers.")
    baseline: Text = Field(default="baseline", description="The variant of everybody else, and after a rollback.")
    features: tuple[Text, ...] = Field(default=(), max_length=100, description="Only these features; all, if empty.")
    sample: Share = Field(default=1.0, description="Sampling rate of the canary arm; the baseline's is made equal.")
    shadow: Shadow | None = Field(default=None, description="Runs the canary beside the served call.")

    @model_validator(mode="after")
    def _can_be_split(self) -> Weights:
        if any(not _NAME.fullmatch(variant) for variant in self.weights):
            raise ValueError("weights: variants are letters, digits, '.', '_' and '-', 64 at the most")
        if self.baseline not in self.weights:
            names = ", ".join(self.weights)
            raise ValueError(f"weights has no {self.baseline!r}: give it a weight, or name one of {names} as baseline")
        if not 0 < sum(self.weights.values()) <= MOST_WEIGHT:
            raise ValueError(f"weights must add up to more than 0 and at most {MOST_WEIGHT}")
        return self

    def in_order(self) -> dict[str, int]:
        """The weights as everybody splits by them: by name, the baseline last, so that a canary grows at its end."""
        return {v: self.weights[v] for v in sorted(self.weights, key=lambda v: (v == self.baseline, v))}

    def without(self, variant: str) -> Weights:
        """With nothing left for ``variant``; its share is the baseline's, so that all others stay where they are."""
        heir = self.baseline if variant != self.baseline else max(
            (v for v in self.weights if v != variant), key=lambda v: (self.weights[v], v), default=variant
        )  # fmt: skip
        moved = {**self.weights, variant: 0}
        moved[heir] += self.weights[variant]
        return self.model_copy(update={"weights": moved})


class Rate(Control):
    """How much of the traffic is captured."""

    rate: Share = Field(description="Share of the traces.")
    feature: Text = Field(default="", description="Only calls of this feature.")
    variant: Text = Field(default="", description="Only calls of this variant.")


KINDS: Final[Mapping[str, type[Control]]] = {"switch": Switch, "budget": Budget, "weights": Weights, "rate": Rate}


def place(service: str, kind: str, name: str, environment: str = "", field: str = "") -> str:
    """Where a control is, in words."""
    where = f" in {environment}" if environment else ""
    return f"{kind} {name!r} of service {service!r}{where}{f', {field}' if field else ''}"


def check_key(service: str, kind: str, name: str) -> None:
    """Refuse what names no control.

    Raises:
        ControlError: one of the three cannot be.
    """
    if kind not in KINDS:
        raise ControlError("there is no such kind", where="kind", value=kind, advice=f"there are: {', '.join(KINDS)}")
    if not service.strip() or len(service) > 200 or not service.isprintable():
        advice = "give the name that the application's hook has"
        raise ControlError("is no service's name", where="service", value=service, advice=advice)
    if not _NAME.fullmatch(name):
        advice = "use letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at the most"
        raise ControlError(f"{shown(name)} is no name", where="name", value=name, advice=advice)


def check_who(where: str, actor: str, reason: str, *, needs_reason: bool) -> tuple[str, str]:
    """Actor and reason as they are kept.

    Raises:
        ControlError: nobody stands for it, or the reason is missing where one is needed.
    """
    actor, reason = actor.strip(), reason.strip()
    if not actor or len(actor) > 200 or not actor.isprintable():
        advice = "say who does this, for example ada@example.com"
        raise ControlError("an actor is needed", where=f"{where}, actor", value=actor, advice=advice)
    if actor.lower() == EVALPIPE:
        advice = "a person must stand for this: give your own name"
        raise ControlError("this actor is evalpipe itself", where=f"{where}, actor", value=actor, advice=advice)
    if needs_reason and not reason:
        advice = "say why, for whoever asks at 2 am"
        raise ControlError("a reason is needed", where=f"{where}, reason", value=reason, advice=advice)
    if len(reason) > 1_000 or not reason.isprintable():
        advice = "write one line of up to 1000 characters"
        raise ControlError("the reason cannot be kept", where=f"{where}, reason", value=reason, advice=advice)
    return actor, reason


def parse(service: str, kind: str, name: str, given: Mapping[str, Any]) -> Control:
    """What somebody wrote, as a control.

    Raises:
        ControlError: it cannot be used; says the first problem.
    """
    check_key(service, kind, name)
    model = KINDS[kind]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = next(iter(worded(error, model)))
        field = ".".join(str(part) for part in found.loc)
        value: Any = given
        for part in found.loc:
            value = value.get(part) if isinstance(value, Mapping) else None
        advice = f"its fields are: {', '.join(model.model_fields)}"
        raise ControlError(
            found.message, where=place(service, kind, name, field=field), value=value, advice=advice
        ) from None
