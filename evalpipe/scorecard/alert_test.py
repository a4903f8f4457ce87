"""Tests of alert rules as people write them: series by hand, and what must fire when; promtool's idea."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema

from evalpipe.errors import ScorecardError
from evalpipe.scorecard.checks import Found, Loc, mappings, nearest, twice
from evalpipe.scorecard.criterion import Text, Written
from evalpipe.scorecard.document import Document
from evalpipe.scorecard.notation import NumberCells, ScoreCells
from evalpipe.scorecard.notify_rules import Matchers
from evalpipe.scorecard.policy import read_document
from evalpipe.scorecard.values import Duration, Lasting
from evalpipe.scorecard.wording import worded

Severity = Literal["SEV1", "SEV2", "SEV3", "SEV4"]
Shares = dict[Text, Annotated[float, Field(ge=0)]]


def _instant(value: Any) -> datetime:
    """An ISO 8601 time with its zone."""
    if isinstance(value, datetime):
        return value
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        at = None
    if at is None or at.tzinfo is None:
        raise ValueError("is not a time; write 2026-01-05T00:00:00Z")
    return at


Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(datetime.isoformat, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Where(Written):
    """A part of the places that there are; what is not said is not asked for."""

    service: str | None = Field(default=None, description="As rules match it.")
    environment: str | None = Field(default=None, description="As rules match it.")
    variant: str | None = Field(default=None, description="baseline, canary ...")
    feature: str | None = Field(default=None, description="Of the application.")
    release_id: str | None = Field(default=None, description="Of the application.")


class Looks(Written):
    """Records that look alike, for rules of drift; each is drawn at random."""

    n: NumberCells = Field(description="How many in each interval; of `normal`, how many.")
    words: dict[Text, Shares] = Field(
        default_factory=dict,
        description="By dimension (language, format, input_schema, entities, feature ...): how often each word comes.",
    )
    sizes: dict[Text, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="By dimension (input_chars, output_chars ...): the median; log-normal."
    )
    topics: Shares = Field(default_factory=dict, description="What the inputs are about, by any names.")
    answers: Shares = Field(default_factory=dict, description="What the outputs are about, by any names.")


class Printed(Written):
    """Rounds of a fingerprint that are alike."""

    rounds: NumberCells = Field(description="1 in intervals in which the set of prompts is asked, else `_`.")
    prompts: int = Field(default=10, ge=1, le=200, description="How many prompts are in the set.")
    traits: dict[Text, float] = Field(
        default_factory=lambda: {"chars": 200.0}, description="The mean of each characteristic of an answer."
    )
    model: str = Field(default="", description="As the provider returns it.")


class Given(Written):
    """What happens at one place, interval by interval."""

    place: Where = Field(default=Where(), description="Where, as far as it is not the test's place.")
    epoch: Text = Field(default="1", description="Of the scores: another one after a judge changed.")
    scores: dict[Text, ScoreCells] = Field(
        default_factory=dict, description="By criterion: `20@0.9x30 _x5 20@0.6x10` (see docs/alerts.md)."
    )
    calls: dict[Text, NumberCells] = Field(
        default_factory=dict,
        description="By what the meter counts, in each interval: calls, errors, tokens, cost_usd, screened, refusals, "
        "blocked; and latency, ttft, tpot: the p99 in ms.",
    )
    users: dict[Text, dict[Text, NumberCells]] = Field(
        default_factory=dict, description="Of single users, in each interval: calls, tokens, cost_usd."
    )
    coverage: dict[Text, NumberCells] = Field(
        default_factory=dict,
        description="In each interval: observed, sampled, shed, in_flight, oldest_s, graded, judge_errors, scored.",
    )
    profiles: list[Looks] = Field(default_factory=list, description="What records look like.")
    fingerprints: dict[Text, list[Printed]] = Field(default_factory=dict, description="By name of the fingerprint.")


class Usual(Written):
    """What rules with a baseline compare with."""

    lasts: Lasting = Field(default=timedelta(days=7), description="How long the baseline was taken.")
    scores: dict[Text, ScoreCells] = Field(
        default_factory=dict, description="By criterion, all of them: `5000@0.9`, or `4000*1 1000*0.5`."
    )
    calls: dict[Text, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="A minute's, by what the meter counts; latency, ttft and tpot: the p99 in ms."
    )
    profiles: list[Looks] = Field(default_factory=list, description="What records looked like.")


class Expected(Written):
    """How alerts of a rule must stand: exactly one of `at`, `by` and `never`."""

    rule: Text = Field(description="By its name; `scorecard/name` where two have it.")
    at: Duration | None = Field(default=None, description="So long after the start, with `state`.")
    by: Duration | None = Field(default=None, description="At any time until then, with `state`.")
    state: Literal["inactive", "pending", "firing", "resolved"] | None = Field(
        default=None, description="Without a place: of any of the rule's alerts; `inactive` of all of them."
    )
    never: Literal["pending", "firing"] | None = Field(default=None, description="In the whole test.")
    severity: Severity | None = Field(default=None, description="Then; of the newest episode.")
    place: Where | None = Field(default=None, description="Which of the rule's alerts; any without it.")


class Told(Written):
    """A notice that must go out: exactly one of `at` and `by`."""

    at: Duration | None = Field(default=None, description="At the evaluation at or before this.")
    by: Duration | None = Field(default=None, description="Until then.")
    cause: Literal["first", "added", "raised", "repeat", "escalated", "acknowledged", "resolved"] = Field(
        default="first", description="Why it is told."
    )
    severity: Severity | None = Field(default=None, description="The highest of its alerts.")
    channels: list[Text] | None = Field(default=None, description="Exactly these; not looked at without it.")
    rules: list[Text] | None = Field(default=None, description="Exactly the rules that fire in it.")


class Act(Written):
    """What a person does: exactly one of `ack` and `silence`."""

    at: Duration = Field(description="When.")
    ack: Text | None = Field(default=None, description="The rule whose alerts are acknowledged.")
    silence: Matchers | None = Field(default=None, description="Globs by label; with `lasts`.")
    lasts: Lasting = Field(default=timedelta(hours=1), description="Of the silence.")


class AlertTest(Written):
    """Series, and what must come of them."""

    name: Text = Field(description="A sentence that says what must be true.")
    place: Where = Field(default=Where(), description="Where the series are.")
    interval: Lasting = Field(default=timedelta(minutes=1), description="How long one cell of a series lasts.")
    evaluate: Lasting | None = Field(
        default=None, description="How often rules are evaluated; the interval, and at the most 1m, without it."
    )
    start: Instant | None = Field(default=None, description="Of the clock; Monday, 2026-01-05T00:00:00Z without it.")
    seed: int = Field(default=1, ge=0, description="Of random numbers; the same seed gives the same series.")
    normal: Usual | None = Field(default=None, description="What rules with a baseline compare with.")
    series: list[Given] = Field(default_factory=list, description="By place.")
    acts: list[Act] = Field(default_factory=list, description="Acknowledgements and silences.")
    expect: list[Expected] = Field(default_factory=list, description="How alerts must stand.")
    told: list[Told] | None = Field(
        default=None, description="Every notice that must go out, no other: `[]` is none. Not looked at without it."
    )


class AlertTests(Written):
    """A file of tests."""

    rules: list[Text] = Field(min_length=1, description="Files of `alerts:`, and scorecards; relative to this file.")
    scorecards: list[Text] = Field(
        default_factory=list, description="Scorecards that the rules name; their own rules do not run."
    )
    tests: list[AlertTest] = Field(min_length=1, description="Each runs alone.")


def read_tests(path: Path) -> tuple[AlertTests, Document]:
    """The tests in a file.

    Raises:
        ScorecardError: one line for each problem.
        ConfigError: it cannot be read.
    """
    document = read_document(path)
    read, found = None, list[Found]()
    if document.value is not None or not document.problems:
        try:
            read = AlertTests.model_validate(document.value)
        except ValidationError as error:
            found += worded(error, AlertTests)
        value = document.value if isinstance(document.value, Mapping) else {}
        rows = dict(mappings(value.get("tests")))
        found += twice("tests", rows, "name", "tests are named")
        for place, row in rows.items():
            found += _problems(row, ("tests", place))
    if problems := document.placed(found):
        raise ScorecardError("\n".join(map(str, problems)))
    assert read is not None
    return read, document


def _problems(test: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    for place, row in mappings(test.get("expect")):
        yield from _one_of(row, ("at", "by", "never"), (*loc, "expect", place))
        if ("never" in row) == ("state" in row):
            yield Found((*loc, "expect", place), "'state' goes with 'at' or 'by', and not with 'never'")
    for place, row in mappings(test.get("told")):
        yield from _one_of(row, ("at", "by"), (*loc, "told", place))
    for place, row in mappings(test.get("acts")):
        yield from _one_of(row, ("ack", "silence"), (*loc, "acts", place))
    for place, row in mappings(test.get("series")):
        at = (*loc, "series", place)
        yield from _names(row.get("calls"), METERED, (*at, "calls"))
        yield from _names(row.get("coverage"), COVERED, (*at, "coverage"))
        users = row.get("users")
        for user, sums in users.items() if isinstance(users, Mapping) else ():
            yield from _names(sums, SPENT, (*at, "users", user))
    if isinstance(normal := test.get("normal"), Mapping):
        yield from _names(normal.get("calls"), METERED, (*loc, "normal", "calls"))


def _one_of(row: Mapping[str, Any], names: tuple[str, ...], loc: Loc) -> Iterator[Found]:
    if sum(name in row for name in names) != 1:
        words = ", ".join(f"'{name}'" for name in names[:-1]) + f" and '{names[-1]}'"
        yield Found(loc, f"needs exactly one of {words}")


def _names(row: Any, names: tuple[str, ...], loc: Loc) -> Iterator[Found]:
    for name in row if isinstance(row, Mapping) else ():
        if name not in names:
            yield Found((*loc, name), f"there is no {name!r}{nearest(name, names)}", at_key=True)


SPENT = ("calls", "tokens", "cost_usd")
METERED = (*SPENT, "errors", "screened", "refusals", "blocked", "unpriced", "latency", "ttft", "tpot")
COVERED = ("observed", "sampled", "shed", "in_flight", "oldest_s", "graded", "judge_errors", "scored")
