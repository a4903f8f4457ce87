"""Policies of rollouts from files: a policy alone, the rollout of a scorecard, and files of ``rollouts:``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from evalpipe.errors import ConfigError, ScorecardError
from evalpipe.scorecard.checks import Found, Loc, mappings, nearest, twice
from evalpipe.scorecard.criterion import Name, Text, Written
from evalpipe.scorecard.default_gates import filled, policy_of
from evalpipe.scorecard.document import Document, Problem, parse
from evalpipe.scorecard.load import Names, check, scorecard_files, told
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.scorecard.rollout_checks import Criteria, policy_problems
from evalpipe.scorecard.wording import worded

_Model = TypeVar("_Model", bound=BaseModel)


class RolloutEntry(RolloutPolicy):
    """One rollout of a file of ``rollouts:``: a policy with what it is for."""

    name: Name = Field(description="Names the rollout; lower case, for example `support-prompt`.")
    service: Text = Field(description="Of both releases.")
    environment: str = Field(
        default="", description="Of both releases; where the service's traffic comes from, without it."
    )
    scorecard: str = Field(default="", description="The scorecard whose criteria the gates compare.")


class RolloutFile(Written):
    """A file of ``rollouts:``."""

    rollouts: list[RolloutEntry] = Field(min_length=1, description="Each a policy with name and service.")


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy with the document that it was read from, for messages with file and line.

    Attributes:
        policy: with its gates written out, if it stands in a scorecard; else as written.
        document: of the file.
        loc: where the policy stands in it.
        notices: what is no mistake and should be known before the start.
    """

    policy: RolloutPolicy
    document: Document
    loc: Loc
    notices: tuple[Problem, ...]


def load_policy(path: Path | str, heuristics: Names) -> PolicyFile:
    """The policy in a policy file, in a scorecard, or in a file with one entry of ``rollouts:``.

    Args:
        path: a file.
        heuristics: the registry, which checks the rest of a scorecard.

    Raises:
        ScorecardError: one line for each problem in the file.
        ConfigError: there is no such file, the scorecard has no rollout, or the file several.
    """
    found = load_policies(path, heuristics)
    if len(found) != 1:
        raise ConfigError(f"{path} has {len(found)} rollouts; write the one that is meant to a file of its own")
    return found[0]


def load_policies(path: Path | str, heuristics: Names) -> list[PolicyFile]:
    """As ``load_policy``, but all of a file of ``rollouts:``."""
    document = read_document(Path(path))
    value = document.value if isinstance(document.value, Mapping) else {}
    if "rollouts" in value:
        entries = _entries(document, None)
        return [_policy_file(entry, document, ("rollouts", place)) for place, entry in enumerate(entries)]
    if "criteria" in value:
        card, problems = check(document, heuristics)
        _raise(problems)
        assert card is not None
        if card.rollout is None:
            raise ConfigError(f"{path} is a scorecard without 'rollout:'; add one, or name a policy file")
        return [_policy_file(policy_of(card), document, ("rollout",))]
    found = list(policy_problems(document.value))
    return [_policy_file(_validated(RolloutPolicy, document, found), document, ())]


def load_rollouts(path: Path | str, cards: Iterable[Scorecard] | None = None) -> list[RolloutEntry]:
    """The rollouts in a file, or in the files of a folder by name.

    Args:
        path: a file or a folder of ``*.yaml`` and ``*.yml``.
        cards: the scorecards that there are; with them the criteria of the gates are checked, gates that are not
            written become the default rules for these criteria, and safety gates get what confirms them.

    Raises:
        ScorecardError: one line for each problem in any of the files.
        ConfigError: there is no such file or folder.
    """
    known = None if cards is None else {card.name: card for card in cards}
    problems: list[str] = []
    found: list[RolloutEntry] = []
    first: dict[str, str] = {}
    for file in scorecard_files(Path(path)):
        document = read_document(file)
        try:
            entries = _entries(document, known)
        except ScorecardError as error:
            problems.append(str(error))
            continue
        for place, entry in enumerate(entries):
            if first.setdefault(entry.name, document.file) != document.file:
                said = f"{first[entry.name]} has a rollout named {entry.name!r} too; rename one of them"
                problems.append(str(document.problem(("rollouts", place, "name"), said)))
        found += entries
    if problems:
        raise ScorecardError("\n".join(problems))
    return found


def read_document(file: Path) -> Document:
    """The plain values of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return parse(str(file), file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error


def _policy_file(policy: RolloutPolicy, document: Document, loc: Loc) -> PolicyFile:
    return PolicyFile(policy, document, loc, tuple(told(document, policy, loc)))


def _entries(document: Document, cards: Mapping[str, Scorecard] | None) -> list[RolloutEntry]:
    value = document.value if isinstance(document.value, Mapping) else {}
    listed = value.get("rollouts")
    rows = dict(mappings(listed))
    found = list(twice("rollouts", rows, "name", "rollouts are named"))
    for place, row in rows.items():
        found += _entry_problems(row, cards, ("rollouts", place))
    entries = _validated(RolloutFile, document, found).rollouts
    known = cards or {}
    return [filled(e, known[e.scorecard].criteria) if e.scorecard in known else e for e in entries]


def _entry_problems(row: Mapping[str, Any], cards: Mapping[str, Scorecard] | None, loc: Loc) -> Iterator[Found]:
    name, criteria = row.get("scorecard"), Criteria(None)
    if cards is not None and isinstance(name, str) and name:
        if name in cards:
            criteria = Criteria.of(cards[name].body())
        else:
            yield Found((*loc, "scorecard"), f"no scorecard named {name!r}{nearest(name, cards)}")
    yield from policy_problems(row, criteria, loc)


def _validated(model: type[_Model], document: Document, found: list[Found]) -> _Model:
    made = None
    if document.value is not None or not document.problems:
        try:
            made = model.model_validate(document.value)
        except ValidationError as error:
            found += worded(error, model)
    _raise(document.placed(found))
    assert made is not None
    return made


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise ScorecardError("\n".join(str(problem) for problem in problems))
