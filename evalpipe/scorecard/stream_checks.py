"""What must agree in the tests that a policy carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evalpipe.scorecard.checks import Found, Loc, is_number, mappings, nearest


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
    if is_number(mean) and is_number(sd) and criterion not in ("cost_usd", "latency_ms", "ttft_ms"):
        if not 0.0 < mean < 1.0:
            yield Found((*loc, "mean"), f"scores are from 0 to 1, and their mean cannot be {mean:g}")
        elif sd * sd >= mean * (1.0 - mean):
            most = (mean * (1.0 - mean)) ** 0.5
            yield Found((*loc, "sd"), f"scores from 0 to 1 with the mean {mean:g} have an sd below {most:.3f}")


def _expect(expect: Mapping[str, Any], gates: list[Any], loc: Loc) -> Iterator[Found]:
    gate = expect.get("gate")
    names = [*gates, *(f"{name} {direction}" for name in gates for direction in ("drop", "rise"))]
    if gates and isinstance(gate, str) and gate and gate not in names:
        yield Found((*loc, "expect", "gate"), f"no gate named {gate!r}{nearest(gate, gates)}")
    if expect.get("decision") == "hold" and expect.get("within") is not None:
        yield Found(
            (*loc, "expect", "within"), "a hold is what stands at the end: it comes within nothing", at_key=True
        )
