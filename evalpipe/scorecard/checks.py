"""What must agree between the fields of a scorecard.

Works on the plain data as it stands in the file, so that these problems are found beside wrong types and unknown keys,
each with the place of the value that is to be changed. Data of the wrong shape is passed over: the models say so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeGuard

Loc = tuple[str | int, ...]
"""Where a value stands: keys and places from the top of the file."""

CROSS_CHECK: Final = "evalpipe_cross_check"
"""The type of the pydantic error that carries these problems when a scorecard is made in code."""

CANNOT_TELL: Final = "cannot_tell"
"""The grade by which a judge abstains, in every kind."""
MAX_STEPS: Final = 100
"""Most steps of a scale."""


class Names(Protocol):
    """A registry: names with what they stand for. ``get`` raises ``ConfigError`` with the nearest right name."""

    def get(self, name: str) -> Any:
        """What is registered under ``name``."""
        ...

    def __iter__(self) -> Iterator[str]:
        """All names."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """One problem and its place; the place of the key (not the value) where ``at_key``."""

    loc: Loc
    message: str
    at_key: bool = False

    def __str__(self) -> str:
        return f"{dotted(self.loc)}: {self.message}"


def dotted(loc: Loc) -> str:
    """``criteria[1].judge.kind``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def nearest(name: Any, names: Iterable[Any], *, there_are: str = "there are") -> str:
    """A hint for a wrong name: the nearest right one, or all of them (none of them where ``there_are`` is "")."""
    known = [str(n) for n in names]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; {there_are}: {', '.join(dict.fromkeys(known))}" if known and there_are else ""


def cross_problems(data: Any) -> Iterator[Found]:
    """Every problem between the fields of one scorecard, but for those of its alert rules and its rollout."""
    if not isinstance(data, Mapping):
        return
    criteria = dict(mappings(data.get("criteria")))
    names = [name for c in criteria.values() if isinstance(name := c.get("name"), str)]
    yield from twice("criteria", criteria, "name", "criteria are named")
    for place, criterion in criteria.items():
        yield from _criterion(criterion, ("criteria", place))
    yield from _together(criteria)
    tests = dict(mappings(data.get("tests")))
    yield from twice("tests", tests, "name", "tests are named")
    for place, test in tests.items():
        yield from _test(test, ("tests", place), names)


def _criterion(criterion: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    heuristic, judge = criterion.get("heuristic"), criterion.get("judge")
    if heuristic is None and judge is None:
        yield Found(loc, "nothing scores it: give it either 'heuristic' or 'judge'")
    if heuristic is not None and judge is not None:
        yield Found((*loc, "judge"), "has both 'heuristic' and 'judge'; make them two criteria", at_key=True)
    if heuristic is None and judge is not None and criterion.get("params"):
        yield Found((*loc, "params"), "params belong to a heuristic; a judge has none", at_key=True)
    if isinstance(judge, Mapping):
        yield from _judge(judge, (*loc, "judge"))


def _judge(judge: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    kind, anchors, categories = judge.get("kind"), judge.get("anchors"), judge.get("categories")
    for field, owner in (("anchors", "scale"), ("categories", "category")):
        if judge.get(field) and kind in ("boolean", "scale", "category", "pairwise") and kind != owner:
            yield Found((*loc, field), f"belongs to kind '{owner}', but kind is {kind!r}", at_key=True)
    if kind == "scale":
        yield from _scale(judge, anchors, loc)
    elif kind == "category":
        yield from _category(judge, categories, loc)
    elif kind == "pairwise":
        for field in ("examples", "logprobs", "together", "escalate"):
            if judge.get(field):
                yield Found((*loc, field), "does not go with kind 'pairwise'", at_key=True)
    yield from _who(judge, loc)
    for place, example in mappings(judge.get("examples")):
        if "grade" in example and (wrong := _wrong_grade(example["grade"], judge)):
            yield Found((*loc, "examples", place, "grade"), wrong)


def _who(judge: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    """Whether the judges of one criterion go together."""
    panel, escalate = judge.get("panel"), judge.get("escalate")
    if panel and "model" in judge:
        yield Found((*loc, "panel"), "is asked instead of 'model': write only one of the two", at_key=True)
    first = panel if isinstance(panel, list) and panel else [judge.get("model", "default")]
    for place, model in enumerate(first):
        if model in first[:place]:
            message = f"{model!r} is in the panel already; 'votes' asks a judge more than once"
            yield Found((*loc, "panel", place), message)
    if isinstance(escalate, Mapping) and escalate.get("to") in first:
        yield Found((*loc, "escalate", "to"), "is the judge that graded first; name a stronger one")
    fallback = judge.get("fallback")
    for place, model in enumerate(fallback if isinstance(fallback, list) else ()):
        if model in first:
            yield Found((*loc, "fallback", place), f"{model!r} is the judge that it would stand in for")
    yield from _batched(judge, loc)


def _batched(judge: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    """Whether what goes through a provider's batch takes one call."""
    if judge.get("lane") == "batch":
        for field in ("panel", "escalate", "logprobs"):
            if judge.get(field):
                yield Found((*loc, "lane"), f"a batch asks one judge once: remove '{field}', or the lane")
        if judge.get("kind") == "pairwise" or judge.get("votes", 1) != 1:
            yield Found((*loc, "lane"), "a batch asks one judge once: it takes no pairwise kind and no votes")


_SHARED: Final = (
    "explain",
    "model",
    "panel",
    "votes",
    "combine",
    "logprobs",
    "escalate",
    "fallback",
    "lane",
    "priority",
)


def _together(criteria: Mapping[int, Mapping[str, Any]]) -> Iterator[Found]:
    """Criteria that are graded in one call must be graded by the same judges."""
    first: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for place, criterion in criteria.items():
        judge = criterion.get("judge")
        if not isinstance(judge, Mapping):
            continue
        word = judge.get("together")
        if not isinstance(word, str) or not word:
            continue
        other_place, other = first.setdefault(word, (place, judge))
        for field in _SHARED:
            if judge.get(field) != other.get(field):
                at = dotted(("criteria", other_place, "judge"))
                message = f"is graded in one call with {at} (together: {word}), whose {field!r} is another"
                yield Found(("criteria", place, "judge", "together"), message)


def _scale(judge: Mapping[str, Any], anchors: Any, loc: Loc) -> Iterator[Found]:
    if not isinstance(anchors, Mapping) or len(anchors) < 2:
        yield _too_few(judge, loc, "anchors", "a scale", "{1: what is bad, 5: what is good}")
    elif (numbers := _grades(anchors)) and max(numbers) - min(numbers) > MAX_STEPS:
        yield Found((*loc, "anchors"), f"span more than {MAX_STEPS} steps; judges grade best on 3 to 5 numbers")


def _category(judge: Mapping[str, Any], categories: Any, loc: Loc) -> Iterator[Found]:
    if not isinstance(categories, Mapping) or len(categories) < 2:
        yield _too_few(judge, loc, "categories", "a category", "{wrong: {value: 0}, right: {value: 1}}")
    elif len(values := graded_values(categories)) == len(categories) and len(set(values)) == 1:
        yield Found((*loc, "categories"), f"every label is worth {values[0]:g}: the score could never change")
    if isinstance(categories, Mapping) and CANNOT_TELL in categories:
        message = "is what a judge may always answer (status abstained); take another label"
        yield Found((*loc, "categories", CANNOT_TELL), message, at_key=True)


def _too_few(judge: Mapping[str, Any], loc: Loc, field: str, what: str, write: str) -> Found:
    return Found((*loc, field) if field in judge else loc, f"{what} needs at least two {field}: {field}: {write}")


def _wrong_grade(grade: Any, judge: Mapping[str, Any]) -> str:
    kind, anchors, categories = judge.get("kind"), judge.get("anchors"), judge.get("categories")
    if kind == "boolean" and not isinstance(grade, bool):
        return f"must be true or false, not {grade!r}"
    numbers = _grades(anchors)
    if kind == "scale" and len(numbers) >= 2:
        low, high = min(numbers), max(numbers)
        if isinstance(grade, bool) or not isinstance(grade, int) or not low <= grade <= high:
            return f"must be a whole number from {low} to {high}, not {grade!r}"
    if kind == "category" and isinstance(categories, Mapping) and grade not in list(categories):
        return f"{grade!r} is none of the categories{nearest(grade, categories)}"
    return ""


def _grades(anchors: Any) -> list[int]:
    """The numbers of a scale; they are text after a trip through JSON."""
    return [int(a) for a in anchors if re.fullmatch(r"-?\d{1,18}", str(a))] if isinstance(anchors, Mapping) else []


def _test(test: Mapping[str, Any], loc: Loc, names: list[str]) -> Iterator[Found]:
    record, expect = test.get("record"), test.get("expect")
    if isinstance(record, Mapping) and record.get("input") is not None and record.get("messages"):
        yield Found((*loc, "record", "messages"), "write either 'input' or 'messages', not both", at_key=True)
    for name, wanted in expect.items() if isinstance(expect, Mapping) else ():
        at = (*loc, "expect", name)
        if names and name not in names:
            yield Found(at, f"no criterion named {name!r}{nearest(name, names)}", at_key=True)
        if isinstance(wanted, Mapping):
            yield from _expectation(wanted, at)


def _expectation(wanted: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    given = {key for key, value in wanted.items() if value is not None}
    if not given:
        yield Found(loc, "expects nothing: write value, at_least, at_most, label or status")
    numbers = sorted(given & {"value", "at_least", "at_most"})
    if numbers and wanted.get("status") in ("skipped", "error", "abstained"):
        yield Found((*loc, numbers[0]), f"a score with status {wanted['status']!r} has no value", at_key=True)
    low, high = wanted.get("at_least"), wanted.get("at_most")
    if is_number(low) and is_number(high) and low > high:
        yield Found((*loc, "at_least"), f"can never be met: at_least {low:g} is above at_most {high:g}")


def twice(field: str, items: Mapping[int, Mapping[str, Any]], key: str, what: str, prefix: Loc = ()) -> Iterator[Found]:
    """Names that are given to two items of a list."""
    first: dict[str, int] = {}
    for place, item in items.items():
        name = item.get(key)
        if isinstance(name, str) and first.setdefault(name, place) != place:
            other = dotted((*prefix, field, first[name]))
            yield Found((*prefix, field, place, key), f"two {what} {name!r}; the other is {other}")


def mappings(value: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The mappings of a list with their places."""
    for place, item in enumerate(value) if isinstance(value, list) else ():
        if isinstance(item, Mapping):
            yield place, item


def graded_values(categories: Any) -> list[float]:
    """What the labels of a category are worth."""
    items = categories.values() if isinstance(categories, Mapping) else ()
    return [c["value"] for c in items if isinstance(c, Mapping) and is_number(c.get("value"))]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
