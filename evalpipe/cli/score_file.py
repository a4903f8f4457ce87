"""Recorded scores from CSV or Parquet: a million of them in a second or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import numpy as np

from evalpipe.cli import score_columns as columns
from evalpipe.cli.score_columns import PARQUET, Flags, Floats, Ints
from evalpipe.rollout.inputs import Evidence
from evalpipe.score import Status
from evalpipe.scorecard.checks import nearest
from evalpipe.scorecard.rollout import MEASURED
from evalpipe.stats.matching import Arm

TOLD: Final = 20
"""Bad rows that are told one by one; the others are counted."""
START: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The time of all evidence where nobody wrote it down: then time decides nothing."""
LARGEST: Final = 1e12
"""Of milliseconds or USD: squares of it can be added up."""
EXACT: Final = 2**53
"""Whole numbers up to here are exact as floats, as which ``seq`` is read."""
PORTION: Final = 20_000
"""Rows made into evidence at once: all of a million at once would be half a gigabyte."""
_ARMS: Final[tuple[Arm, Arm]] = ("baseline", "canary")
_STATUS: Final = tuple(sorted(Status, key=lambda status: status is not Status.SCORED))
_ERROR: Final = _STATUS.index(Status.ERROR)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The scores of one rollout.

    Attributes:
        rollout: its id.
        evidence: in the order of ``seq``, numbered from 0; what one record was scored by has one number.
        seqs, ats: by that number, ``seq`` as in the file, and microseconds since 1970 if there is a time.
        criteria: of which there is evidence.
        pairs: whether there are inputs that both arms answered.
        weights: by criterion the largest weight of the baseline and the canary, where an arm has several.
        started_at: of the first score.
    """

    rollout: str
    evidence: Iterator[Evidence]
    seqs: Ints
    ats: Ints | None
    criteria: frozenset[str]
    pairs: bool
    weights: dict[str, tuple[float, float]]
    started_at: datetime

    def __len__(self) -> int:
        return len(self.seqs)

    def place(self, number: int) -> dict[str, Any]:
        """``seq`` and ``at`` of a piece of evidence, as text (UTC) or None."""
        at = None if self.ats is None else columns.times(self.ats[[number]])[0].isoformat()
        return {"seq": int(self.seqs[number]), "at": at}


class ScoreFile:
    """All scores of a file; iterating gives one ``Recorded`` a rollout, in the order of the file.

    Args:
        path: its name ends in ``.parquet`` or ``.pq``, else it is CSV with a header.
        arms: the names of the arms, such as the policy's variants.

    Attributes:
        bad: the first ``TOLD`` rows that cannot be used, with place and reason; such rows are in no rollout.
        n_bad: how many there are.
        repeated: rows left out since one with the same rollout, seq, criterion, arm and unit stands before.
        missing: rows without a value and status, which count as errors.
        timed: whether there is a time of each score.
        criteria: of all rollouts, with the number of rows.

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """

    def __init__(self, path: Path, arms: Mapping[str, Arm]) -> None:
        self._path = path
        self._columns = columns.read_columns(path)
        self._n = len(self._columns["rollout"])
        self._wrong: list[tuple[Flags, Callable[[int], str]]] = []
        self.timed = "at" in self._columns
        self._parse_words(arms)
        self._parse_numbers()
        good = self._judge_rows()
        self._rows = self._ordered(good)
        counts = np.bincount(self._criterion[self._rows], minlength=len(self._criteria))
        self.criteria = {name: int(n) for name, n in zip(self._criteria, counts, strict=True) if n}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Recorded]:
        ends = [*(np.flatnonzero(np.diff(self._rollout[self._rows])) + 1).tolist(), len(self._rows)]
        begin = 0
        for end in ends if len(self._rows) else ():
            yield self._recorded(self._rows[begin:end])
            begin = end

    @property
    def n_rollouts(self) -> int:
        """How many rollouts it has."""
        return len(np.unique(self._rollout[self._rows]))

    def _recorded(self, rows: Ints) -> Recorded:
        places = np.unique(self._criterion[rows])
        numbers = self._numbered(rows)
        cuts = [slice(begin, begin + PORTION) for begin in range(0, len(rows), PORTION)]
        portions = (self._evidence(rows[cut], numbers[cut]) for cut in cuts)
        return Recorded(
            rollout=self._rollouts[self._rollout[rows[0]]],
            evidence=chain.from_iterable(portions),
            seqs=self._seq[rows],
            ats=self._at[rows] if self.timed else None,
            criteria=frozenset(self._criteria[place] for place in places.tolist()),
            pairs=bool(self._paired[rows].any()),
            weights=self._unequal(rows, places),
            started_at=columns.times(self._at[rows].min(keepdims=True))[0] if self.timed else START,
        )

    def _evidence(self, rows: Ints, numbers: Ints) -> Iterator[Evidence]:
        pieces = zip(
            numbers.tolist(),
            columns.times(self._at[rows]) if self.timed else repeat(START, len(rows)),
            [_ARMS[arm] for arm in self._arm[rows].tolist()],
            self._units(rows),
            [self._criteria[code] for code in self._criterion[rows].tolist()],
            self._values(rows),
            self._weight[rows].tolist(),
            [_STATUS[code] for code in self._status[rows].tolist()],
            self._texts("epoch", rows),
            self._texts("pair", rows),
            self._texts("segment", rows),
            repeat(False, len(rows)),
            strict=True,
        )
        return map(
            tuple.__new__, repeat(Evidence), pieces
        )  # as Evidence._make, and a quarter of a second a million less

    def _numbered(self, rows: Ints) -> Ints:
        """The place of each row, or that of its record's first: rows beside one another of one seq, arm and unit.

        A flag and what confirms it, and a score and its control, are joined by it. What has a criterion twice is not
        one record: its rows are numbered by themselves.
        """
        places = np.arange(len(rows))
        same = np.zeros(len(rows), dtype=bool)
        same[1:] = (np.diff(self._seq[rows]) == 0) & (np.diff(self._arm[rows]) == 0)
        if not same.any():
            return places
        if "unit" in self._columns:
            units = self._texts("unit", rows)
            same[[at for at in np.flatnonzero(same).tolist() if units[at] != units[at - 1]]] = False
        first = np.maximum.accumulate(np.where(same, 0, places))
        scored = first * len(self._criteria) + self._criterion[rows]
        _, which, times = np.unique(scored, return_inverse=True, return_counts=True)
        return np.where(np.isin(first, first[times[which] > 1]), places, first)

    def _unequal(self, rows: Ints, places: Ints) -> dict[str, tuple[float, float]]:
        found = {}
        for place in places.tolist() if self._weighted else ():
            of = rows[self._criterion[rows] == place]
            arms = [self._weight[of[self._arm[of] == arm]] for arm in (0, 1)]
            if any(len(arm) and arm.max() > arm.min() for arm in arms):
                baseline, canary = (float(arm.max()) if len(arm) else 1.0 for arm in arms)
                found[self._criteria[place]] = (baseline, canary)
        return found

    def _values(self, rows: Ints) -> list[float | None]:
        found: list[float | None] = self._value[rows].tolist()
        return [None if value != value else value for value in found] if self._holes else found  # noqa: PLR0124 - NaN

    def _texts(self, name: str, rows: Ints) -> Sequence[str]:
        if name not in self._columns:
            return [""] * len(rows)
        return columns.taken(self._columns[name], rows)

    def _units(self, rows: Ints) -> Sequence[str]:
        """A unit that nobody named is one of its own."""
        if not self._nameless:
            return self._texts("unit", rows)
        return [unit or f"row {row}" for unit, row in zip(self._texts("unit", rows), rows.tolist(), strict=True)]

    def _parse_words(self, arms: Mapping[str, Arm]) -> None:
        """Rollout, criterion, arm, status and unit."""
        self._rollout, self._rollouts = columns.codes(self._columns["rollout"])
        self._criterion, self._criteria = columns.codes(self._columns["criterion"])
        for name, of, words in (
            ("rollout", self._rollout, self._rollouts),
            ("criterion", self._criterion, self._criteria),
        ):
            self._note(columns.where(of, [not word for word in words]), _said_empty(name))
        of, words = columns.codes(self._columns["arm"])
        self._arm = np.array([_ARMS.index(arms.get(word, "baseline")) for word in words], dtype=np.int64)[of]
        self._note(
            columns.where(of, [word not in arms for word in words]),
            lambda row: f"arm is {self._said('arm', row)}{nearest(self._word('arm', row), arms)}",
        )
        self._status = np.zeros(self._n, dtype=np.int64)
        if "status" in self._columns:
            known = {status.value: place for place, status in enumerate(_STATUS)} | {"": 0}
            of, words = columns.codes(self._columns["status"])
            self._status = np.array([known.get(word, 0) for word in words], dtype=np.int64)[of]
            self._note(
                columns.where(of, [word not in known for word in words]),
                lambda row: f"status is {self._said('status', row)}{nearest(self._word('status', row), known)}",
            )
        self._paired = np.zeros(self._n, dtype=bool)
        if "pair" in self._columns:
            self._paired = ~columns.empty(self._columns["pair"])
        self._nameless = "unit" not in self._columns or bool(columns.empty(self._columns["unit"]).any())

    def _parse_numbers(self) -> None:
        """Value, weight, seq and time."""
        self._value = self._numbers("value", np.nan)
        measured = columns.where(self._criterion, [name in MEASURED for name in self._criteria])
        outside = (self._value < 0.0) | (self._value > np.where(measured, LARGEST, 1.0))
        self._note(outside, lambda row: f"value is {self._said('value', row)}, and {self._bounds(row)}")
        holes = np.isnan(self._value)
        self._holes = bool(holes.any())
        blank = holes & (self._status == 0)
        self.missing = int(blank.sum())
        self._status[blank] = _ERROR
        self._weight = self._numbers("weight", 1.0)
        self._weighted = bool((self._weight != 1.0).any())
        self._note(self._weight <= 0.0, lambda row: f"weight is {self._said('weight', row)}, and must be above 0")
        self._seq = np.arange(self._n, dtype=np.int64)
        if "seq" in self._columns:
            seq = self._numbers("seq", np.nan)
            self._note(np.isnan(seq), lambda _: "seq is empty: number every row, or leave the column out")
            self._seq = np.nan_to_num(np.clip(seq, -EXACT, EXACT)).astype(np.int64)
            self._note(
                (seq != self._seq) & ~np.isnan(seq),
                lambda row: f"seq is {self._said('seq', row)}, and must be a whole number below 2^53",
            )
        self._at = np.zeros(self._n, dtype=np.int64)
        if self.timed:
            self._at, wrong = columns.instants(self._columns["at"])
            self._note(wrong, lambda row: f"at is {self._said('at', row)}, neither ISO 8601 nor seconds since 1970")

    def _numbers(self, name: str, blank: float) -> Floats:
        if name not in self._columns:
            return np.full(self._n, blank)
        found, wrong = columns.numbers(self._columns[name])
        self._note(wrong, lambda row: f"{name} is {self._said(name, row)}, and must be a number")
        return np.where(np.isfinite(found), found, blank)

    def _bounds(self, row: int) -> str:
        criterion = self._criteria[self._criterion[row]]
        measured = criterion in MEASURED
        return f"{criterion} is from 0 to {LARGEST:g}" if measured else f"scores ({criterion}) are from 0 to 1"

    def _word(self, name: str, row: int) -> Any:
        return self._columns[name][row].as_py()

    def _said(self, name: str, row: int) -> str:
        return repr(self._word(name, row))

    def _note(self, wrong: Flags, say: Callable[[int], str]) -> None:
        if wrong.any():
            self._wrong.append((wrong, say))

    def _judge_rows(self) -> Flags:
        """Which rows can be used; the others are counted and the first of them told."""
        bad = np.zeros(self._n, dtype=bool)
        for wrong, _ in self._wrong:
            bad |= wrong
        self.n_bad = int(bad.sum())
        self.bad = [
            f"{self._place(row)}: {next(say(row) for wrong, say in self._wrong if wrong[row])}"
            for row in np.flatnonzero(bad)[:TOLD].tolist()
        ]
        return ~bad

    def _place(self, row: int) -> str:
        """File and line, the header being the first (a text with a line break in it moves the rows below)."""
        return f"{self._path}: row {row + 1}" if self._path.suffix in PARQUET else f"{self._path}:{row + 2}"

    def _ordered(self, good: Flags) -> Ints:
        """By rollout, seq and place in the file, each once."""
        rows = np.flatnonzero(good)
        rows = rows[np.lexsort((rows, self._seq[rows], self._rollout[rows]))]
        again = self._again(rows) if "seq" in self._columns else np.zeros(len(rows), dtype=bool)
        self.repeated = int(again.sum())
        return rows[~again]

    def _again(self, rows: Ints) -> Flags:
        """Rows that say again what one before them says; only rows of one seq are compared."""
        near, again = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
        same = (np.diff(self._rollout[rows]) == 0) & (np.diff(self._seq[rows]) == 0)
        near[1:] = same
        near[:-1] |= same
        places = np.flatnonzero(near)
        if not len(places):
            return again
        seen: set[tuple[Any, ...]] = set()
        of = rows[places]
        keys = zip(
            self._rollout[of].tolist(), self._seq[of].tolist(), self._criterion[of].tolist(), self._arm[of].tolist(),
            self._units(of), strict=True,
        )  # fmt: skip
        for place, key in zip(places.tolist(), keys, strict=True):
            again[place] = key in seen
            seen.add(key)
        return again


def _said_empty(name: str) -> Callable[[int], str]:
    return lambda _: f"{name} is empty: name it"
