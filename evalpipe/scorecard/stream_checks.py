"""What must agree in the tests that a policy carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evalpipe.scorecard.checks import Found, Loc, is_number, mappings, nearest
from evalpipe.scorecard.rollout import MEASURED


def stream_problems(test: Mapping[str, Any], policy: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    """Every problem of one test at ``loc``."""
    streams, rows = test.get("streams"), test.get("rows")
    if bool(streams) == bool(rows):
        yield Found(loc, "needs either 'streams' (distributions) or 'rows' (scores), not both")
    gates = [gate for _, gate in mappings(policy.get("gates"))]
    read = [gate.get(field) for gate in gates for field in ("criterion", "control", "confirm") if gate.get(field)]
    for field, items in (("streams", streams), ("rows", rows)):
        for place, item in mappings(items):
            name = item.get("criterion")
            if read and isinstance(name, str) and name not in read:
                yield Found((*loc, field, place, "criterion"), f"no gate reads {name!r}{nearest(name, read)}")
            yield from _bounds([item.get("value")], name, (*loc, field, place, "value"))
    for place, stream in mappings(streams):
        yield from _stream(stream, (*loc, "streams", place))
    expect = test.get("expect")
    if isinstance(expect, Mapping):
        yield from _expect(
            expect, [gate.get("name") or gate.get("criterion") or gate.get("kind") for gate in gates], loc
        )


def _stream(stream: Mapping[str, Any], loc: Loc) -> Iterator[Found]:
    given = [field for field in ("canary", "drop", "rise") if stream.get(field) is not None]
    if len(given) > 1:
        yield Found((*loc, given[1]), f"says what {given[0]!r} says otherwise: write only one of them", at_key=True)
    for arm in ("baseline", "canary"):
        written = stream.get(arm)
        if isinstance(written, Mapping):
            yield from _distribution(written, stream.get("criterion"), (*loc, arm))


def _distribution(written: Mapping[str, Any], criterion: Any, loc: Loc) -> Iterator[Found]:
    forms = [form for form, field in (("rate", "rate"), ("scores", "scores"), ("mean", "mean")) if field in written]
    if len(forms) != 1:
        yield Found(loc, "needs exactly one of 'rate', 'scores' (with 'shares') and 'mean' (with 'sd')")
        return
    scores, shares, mean, sd = (written.get(field) for field in ("scores", "shares", "mean", "sd"))
    if ("scores" in written) != ("shares" in written) or (
        isinstance(scores, list) and isinstance(shares, list) and len(scores) != len(shares)
    ):
        yield Found(loc, "'scores' and 'shares' go together, one share for each score")
    if ("mean" in written) != ("sd" in written):
        yield Found(loc, "'mean' and 'sd' go together")
    if isinstance(scores, list):
        yield from _bounds(scores, criterion, (*loc, "scores"))
    if isinstance(shares, list) and shares and all(share == 0 for share in shares):
        yield Found((*loc, "shares"), "are all 0: none of the scores would ever come")
    if is_number(mean) and is_number(sd) and criterion not in MEASURED:
        if not 0.0 < mean < 1.0:
            yield Found((*loc, "mean"), f"scores are from 0 to 1, and their mean cannot be {mean:g}")
        elif sd * sd >= mean * (1.0 - mean):
            most = (mean * (1.0 - mean)) ** 0.5
            yield Found((*loc, "sd"), f"scores from 0 to 1 with the mean {mean:g} have an sd below {most:.3f}")


def _bounds(values: list[Any], criterion: Any, loc: Loc) -> Iterator[Found]:
    """Scores are from 0 to 1; what is measured is not below 0."""
    for value in values:
        if is_number(value) and (value < 0.0 or (value > 1.0 and criterion not in MEASURED)):
            what = f"{criterion} is not below 0" if criterion in MEASURED else "scores are from 0 to 1"
            yield Found(loc, f"{value:g} is out of range: {what}")
            return


def _expect(expect: Mapping[str, Any], gates: list[Any], loc: Loc) -> Iterator[Found]:
    gate = expect.get("gate")
    names = [*gates, *(f"{name} {direction}" for name in gates for direction in ("drop", "rise"))]
    if gates and isinstance(gate, str) and gate and gate not in names:
        yield Found((*loc, "expect", "gate"), f"no gate named {gate!r}{nearest(gate, gates)}")
    if expect.get("decision") == "hold" and expect.get("within") is not None:
        yield Found(
            (*loc, "expect", "within"), "a hold is what stands at the end: it comes within nothing", at_key=True
        )
