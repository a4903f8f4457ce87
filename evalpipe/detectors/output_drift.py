"""Have the answers become others? And if so: because the questions have, or though they have not?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, State, detectors
from evalpipe.detectors.drift import (
    EXAMPLES,
    DriftParams,
    Moved,
    Pair,
    Test,
    by_embedding,
    by_size,
    by_word,
    embedded,
    enough,
    find,
    matrix,
)
from evalpipe.detectors.input_drift import INPUT_TESTS
from evalpipe.detectors.view import View
from evalpipe.detectors.windows import once_a_window
from evalpipe.stats.answer_shift import answer_shift
from evalpipe.stats.shift import Array
from evalpipe.stats.word_shift import term_shift

Dimension = Literal["embedding", "length", "format", "vocabulary", "answers"]
INPUT_LEVEL: Final = 0.01
"""At which inputs count as moved, for the reason; no alert depends on it."""
HELD_AXES: Final = 16


class OutputDriftParams(DriftParams):
    """Parameters of ``output_drift``."""

    dimensions: list[Dimension] = Field(
        default_factory=lambda: list(OUTPUT_TESTS),
        min_length=1,
        description="What is compared: the answers' embedding, length, format (prose, list, table, json, refusal ...), "
        "vocabulary (the words that answers begin with), and `answers`: how alike answers to recurring inputs are now "
        "and before.",
    )
    term_floor: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Of the vocabulary: by how much the share of answers that have a word must have changed.",
    )
    answer_floor: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Of answers to recurring inputs: how much likeness (cosine) to those of before must be lost.",
    )


def vocabulary(pair: Pair, params: DriftParams) -> Moved | None:
    """The test of the words that answers begin with."""
    assert isinstance(params, OutputDriftParams)
    some = pair.those(lambda p: bool(p.words.get("terms")))
    if not enough(some, params):
        return None
    texts = [frozenset(p.words["terms"].split(" ")) for p in some.all]
    shift = term_shift(some.contrast(), texts, params.term_floor)
    words = ", ".join(f"{term!r} {100 * before:.0f} % -> {100 * now:.0f} %" for term, before, now in shift.terms)
    grown = {term for term, before, now in shift.terms if now > before}
    own = texts[len(some.before) :]
    far = sorted(range(len(own)), key=lambda i: (-len(own[i] & grown), some.now[i].record_id))
    examples = [some.now[i].record_id for i in far[:EXAMPLES]]
    return Moved(shift.p, shift.difference, params.term_floor, words or "unchanged", examples)


def answers(pair: Pair, params: DriftParams) -> Moved | None:
    """The test of answers to recurring inputs."""
    assert isinstance(params, OutputDriftParams)
    some = embedded(pair.those(lambda p: bool(p.input_key)), "output")
    by_key: dict[str, tuple[list[int], list[int]]] = {}
    for index, profile in enumerate(some.all):
        by_key.setdefault(profile.input_key, ([], []))[index >= len(some.before)].append(index)
    rows = matrix(some.all, "output")
    shift = answer_shift({key: (rows[before], rows[now]) for key, (before, now) in by_key.items() if before and now})
    if shift is None:
        return None
    words = (
        f"likeness to the answers of before {shift.before:.2f} -> {shift.now:.2f}, {shift.questions} recurring inputs"
    )
    examples = [some.all[by_key[key][1][0]].record_id for key in shift.worst[:EXAMPLES]]
    return Moved(shift.p, max(0.0, shift.before - shift.now), params.answer_floor, words, examples)


OUTPUT_TESTS: Final[Mapping[Dimension, Test]] = {
    "embedding": by_embedding("output"),
    "length": by_size("output_chars", "characters"),
    "format": by_word("format"),
    "vocabulary": vocabulary,
    "answers": answers,
}


@detectors.register("output_drift")
class OutputDrift:
    """Compares what is answered in each closed window with what is normal.

    A drift comes with evidence of its origin: whether the inputs moved too, and by how much the answers moved where
    language, feature and topic of the input are held equal.
    """

    Params: ClassVar[type[DetectorParams]] = OutputDriftParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "output_drift"
    inputs: ClassVar[frozenset[Input]] = frozenset({"profiles"})

    def __init__(self, params: OutputDriftParams) -> None:
        self._params = params
        self._tests = {name: OUTPUT_TESTS[name] for name in params.dimensions}

    @property
    def criteria(self) -> tuple[str, ...]:
        """None: it reads no scores."""
        return ()

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Look at the newest closed window, once."""

        def compared(since: datetime, until: datetime) -> Finding:
            finding, pair = find(view, self._params, self._tests, since, until)
            return with_origin(finding, pair, self._params) if finding.violated else finding

        return once_a_window(view, state, self._params.window, compared)


def with_origin(finding: Finding, pair: Pair, params: DriftParams) -> Finding:
    """Add whether the inputs moved too, and what is left of the answers' shift where they are held equal."""
    tests = {name: test(pair, params) for name, test in INPUT_TESTS.items()}
    found = {name: moved for name, moved in tests.items() if moved is not None}
    level = INPUT_LEVEL / max(len(found), 1)
    moved = [name for name, m in found.items() if m.p <= level and m.effect >= m.floor / 2]
    numbers = {**finding.numbers, "inputs_moved": moved}
    if not moved:
        return replace(finding, reason=f"{finding.reason}; the inputs did not move", numbers=numbers)
    reason = f"{finding.reason}; the inputs moved too ({', '.join(moved)})"
    given = given_inputs(pair, params)
    if given is not None:
        numbers["given_inputs"] = {"effect": round(given.effect, 4), "p": float(f"{given.p:.2g}")}
        own = given.p <= INPUT_LEVEL and given.effect >= given.floor
        reason += ", and the answers to equal inputs did as well" if own else ", and the answers may just follow them"
    return replace(finding, reason=reason, numbers=numbers)


def given_inputs(pair: Pair, params: DriftParams) -> Moved | None:
    """The shift of the answers' embedding where language, feature and topic of the input are held equal."""
    some = embedded(embedded(pair, "input"), "output")
    if not enough(some, params):
        return None
    shift = some.contrast(_inputs(some)).shift(matrix(some.all, "output"))
    return Moved(shift.p, shift.separation, params.embedding_floor, "given the inputs")


def _inputs(pair: Pair) -> Array:
    """Columns that say what was asked: words as indicators, the embedding by its principal axes."""
    columns = []
    for name in ("language", "feature", "input_schema"):
        words = [p.words.get(name, "") for p in pair.all]
        common = [w for w in sorted(set(words)) if words.count(w) >= 10][:HELD_AXES]
        columns += [[float(w == word) for w in words] for word in common[:-1]]
    rows = matrix(pair.all, "input")
    centred = rows - rows.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, -HELD_AXES:]
    return np.column_stack([*(np.asarray(c) for c in columns), centred @ axes])
