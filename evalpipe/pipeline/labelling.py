"""People's labels: what somebody wrote becomes a label of a criterion, and what is to be labelled next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice
from typing import Any, Final, Literal

from evalpipe.record import Record
from evalpipe.scorecard.model import Criterion, JudgeSpec, Scorecard
from evalpipe.scorers.judged import CANNOT_TELL, label_of, partner_of, skip_reason, values
from evalpipe.store import intake, labels
from evalpipe.store.sql import Transaction

Order = Literal["random", "uncertain"]
SHARED: Final = 0.2
"""Share of what a person is given that somebody else labelled already: agreement between people is measured on it."""
CALIBRATE: Final = "records with labels from outside the store are for 'evalpipe judge calibrate --on FILE'"
MAX_TRIED: Final = 500
"""Records that are looked at for those to be labelled next: a scorecard may skip nearly all."""


class LabelError(Exception):
    """A label that cannot be taken.

    Attributes:
        field: which part of it.
        value: what was written there.
        advice: what to write.
    """

    def __init__(self, what: str, field: str, value: Any = None, advice: str = "") -> None:
        super().__init__(what)
        self.field = field
        self.value = value
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Asked:
    """A criterion that people label: a judged one."""

    scorecard: Scorecard
    criterion: Criterion
    spec: JudgeSpec

    @property
    def values(self) -> dict[str, float | None]:
        """Each label with its value, in order; ``cannot_tell``, which has none, comes last."""
        return {**values(self.spec), CANNOT_TELL: None}


@dataclass(frozen=True, slots=True)
class Next:
    """A record to be labelled, how it was chosen, and for a pair the served answer that it is compared with."""

    record: Record
    chosen: str
    partner: Record | None = None


def all_asked(cards: Sequence[Scorecard]) -> list[Asked]:
    """Every criterion that people can label."""
    return [Asked(card, c, c.judge) for card in cards for c in card.criteria if c.judge is not None]


def find(cards: Sequence[Scorecard], criterion: str, scorecard: str = "") -> Asked:
    """The criterion of that name; ``scorecard`` is needed where several have one.

    Raises:
        LabelError: there is none, or several.
    """
    asked = [one for one in all_asked(cards) if scorecard in {"", one.scorecard.name}]
    if scorecard and scorecard not in {card.name for card in cards}:
        names = ", ".join(card.name for card in cards)
        raise LabelError(f"there is no scorecard {scorecard!r}", "scorecard", scorecard, f"there are: {names}")
    found = [one for one in asked if one.criterion.name == criterion]
    if not found:
        names = ", ".join(sorted({one.criterion.name for one in asked})) or "none"
        of = f" of scorecard {scorecard!r}" if scorecard else ""
        raise LabelError(
            f"there is no judged criterion {criterion!r}{of}", "criterion", criterion, f"there are: {names}"
        )
    if len(found) > 1:
        names = ", ".join(one.scorecard.name for one in found)
        raise LabelError(f"several scorecards have a criterion {criterion!r}", "scorecard", None, f"name one: {names}")
    return found[0]


def read_label(asked: Asked, said: Any) -> tuple[str, float | None]:
    """The label as a word of the criterion, and its value.

    Raises:
        LabelError: it is none of its labels.
    """
    word = label_of(asked.spec, said).strip()
    if word not in asked.values:
        what = f"{said!r} is no label of {asked.scorecard.name}/{asked.criterion.name}"
        raise LabelError(what, "label", said, f"there are: {', '.join(asked.values)}")
    return word, asked.values[word]


def choose(
    pool: Mapping[str, float],
    labelled: Mapping[str, Mapping[str, str]],
    annotator: str,
    *,
    name: str,
    order: Order = "random",
    without: AbstractSet[str] = frozenset(),
) -> Iterator[tuple[str, str]]:
    """Ids of records to be labelled with how each was chosen, in an order of this person's own that is always the same.

    Most are drawn from those that nobody labelled, uniformly; with ``uncertain`` those come first whose grade is most
    doubtful. A share of ``SHARED`` was labelled by others, those of the fewest people first: how they were chosen then
    is how they are chosen now, so that a random sample stays one.

    Args:
        pool: the records that can be labelled, with the doubt of their grade.
        labelled: records with the people who labelled them.
        annotator: who is to label.
        name: of scorecard and criterion.
        order: ``random`` or ``uncertain``.
        without: records that this person has before them, or skipped.
    """
    mine = {record_id for record_id, by in labelled.items() if annotator in by}
    out = mine | without

    def place(record_id: str) -> float:
        return _unit(annotator, name, record_id)

    fresh = iter(sorted(
        (i for i in pool if i not in labelled and i not in without),
        key=lambda i: (-pool[i] if order == "uncertain" else 0.0, place(i)),
    ))  # fmt: skip
    others = iter(sorted((i for i in labelled if i not in out), key=lambda i: (len(labelled[i]), place(i))))
    for turn in count(len(out)):
        shared = _unit(annotator, name, "shared", str(turn)) < SHARED
        chosen = next(others if shared else fresh, None) or next(fresh if shared else others, None)
        if chosen is None:
            return
        how = next(iter(labelled[chosen].values())) if chosen in labelled else order
        yield chosen, how


def population(tx: Transaction, asked: Asked, since: datetime) -> dict[str, float]:
    """The records that people can be asked about: those that a judge was, or, where none was yet, all that match."""
    found = labels.graded(tx, asked.scorecard.name, asked.criterion.name, since)
    if found:
        return found
    fitting = [place for place in labels.places(tx, since) if asked.scorecard.match.fits_place(place)]
    return dict.fromkeys(labels.stored(tx, fitting, since), 0.0)


def load_next(tx: Transaction, asked: Asked, chosen: Iterator[tuple[str, str]], limit: int) -> list[Next]:
    """The first so many of the chosen records that can be shown and that the criterion does not skip."""
    found: list[Next] = []
    tried = islice(chosen, MAX_TRIED)
    while len(found) < limit and (some := dict(islice(tried, 4 * limit))):
        read = intake.payloads(tx, list(some))
        partners = _partners(tx, asked, read)
        for record_id, how in some.items():
            record = read.get(record_id)
            if record is None or skip_reason(asked.spec, record) or len(found) == limit:
                continue
            if asked.spec.kind != "pairwise":
                found.append(Next(record, how))
            elif (partner := partners.get(partner_of(record))) is not None:
                found.append(Next(record, how, partner))
    return found


def shown_first(annotator: str, record_id: str) -> bool:
    """Whether the record's own answer of a pair is shown first: by chance, and always the same to one person."""
    return _unit(annotator, "pair", record_id) < 0.5


def compact(value: Any) -> str:
    """The arguments of a tool call as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _partners(tx: Transaction, asked: Asked, read: Mapping[str, Record]) -> dict[str, Record]:
    if asked.spec.kind != "pairwise":
        return {}
    return intake.payloads(tx, [partner for record in read.values() if (partner := partner_of(record))])


def _unit(*parts: str) -> float:
    """A number in [0, 1) that looks random and is always the same."""
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"evalpipe-label").digest(), "big") / 2.0**64
