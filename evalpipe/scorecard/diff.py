"""What changes between two states of a scorecard, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from evalpipe.scorecard.model import Scorecard

_LISTS: Final = {"criteria": ("criterion", "name"), "alerts": ("alert rule", "name"), "tests": ("test", "name")}
_MISSING: Final = object()
_SHOWN_CHARS: Final = 80


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between two scorecards.

    Attributes:
        before, after: versions; equal where only tests, comments or layout differ.
        changes: one sentence each, in the order of the file.
        new_epochs: criteria whose series starts again: their definition changed, or that of one that is graded in the
            same call, or the share that is judged, so their scores cannot be compared.
    """

    before: str
    after: str
    changes: list[str] = field(default_factory=list)
    new_epochs: list[str] = field(default_factory=list)


def compare(old: Scorecard, new: Scorecard) -> Diff:
    """What changes from ``old`` to ``new``."""
    a, b = (card.model_dump(mode="json", by_alias=True) for card in (old, new))
    changes: list[str] = []
    for name in ("name", "description", "owner", "match", "sampling", "judging"):
        changes += _values(name, a[name], b[name])
    changes += _named("criteria", a, b)
    changes += _named("alerts", a, b)
    changes += _rollout(a["rollout"], b["rollout"])
    changes += _named("tests", a, b)
    kept = {c.name for c in old.criteria}
    epochs = [c.name for c in new.criteria if c.name in kept and _asked(old, c.name) != _asked(new, c.name)]
    return Diff(old.version, new.version, changes, epochs)


def _asked(card: Scorecard, name: str) -> tuple[Any, ...]:
    """What a judge is asked for this criterion, and of which share; others of the same call are part of it."""
    together = card.together(name)
    share = card.sampling.judge if card.criterion(name).is_judged else None
    return share, [(c.name if len(together) > 1 else "", c.definition_hash) for c in together]


def _named(key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    word, by = _LISTS[key]
    yield from _items(word, {x[by]: x for x in a[key]}, {x[by]: x for x in b[key]})


def _items(word: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in old:
        if name not in new:
            yield f"{word} {name!r} is removed"
    for name, item in new.items():
        if name not in old:
            yield f"{word} {name!r} is added"
        else:
            yield from _values(f"{word} {name!r}:", old[name], item)
    if set(old) == set(new) and list(old) != list(new):
        yield f"the order of each {word} is now {', '.join(new)}"


def _rollout(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield "the rollout is added" if old is None else "the rollout is removed"
        return
    for name in [key for key in new if key not in ("gates", "tests")]:
        yield from _values(f"rollout: {name}", old[name], new[name])
    yield from _items("gate on", *({_called(gate): gate for gate in side["gates"]} for side in (old, new)))
    yield from _items("rollout test", *({test["name"]: test for test in side["tests"]} for side in (old, new)))


def _called(gate: Mapping[str, Any]) -> str:
    return str(gate["name"] or gate["criterion"] or gate["kind"])


def _values(path: str, old: Any, new: Any) -> Iterator[str]:
    """Sentences for every leaf that differs."""
    if old == new and type(old) is type(new):
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            inner = f"{path} {key}" if path.endswith(":") else f"{path}.{key}"
            yield from _values(inner, old.get(key, _MISSING), new.get(key, _MISSING))
    elif old is _MISSING or old is None:
        yield f"{path} is now given: {_shown(new)}"
    elif new is _MISSING or new is None:
        yield f"{path} is no longer given; it was {_shown(old)}"
    else:
        yield f"{path} changes from {' to '.join(_beside(old, new))}"


def _beside(old: Any, new: Any) -> tuple[str, str]:
    """Two values as they are shown beside each other: long texts from shortly before their first difference."""
    if isinstance(old, str) and isinstance(new, str):
        a, b = " ".join(old.split()), " ".join(new.split())
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        start = a.rfind(" ", 0, max(0, same - 20)) + 1
        if start and max(len(a), len(b)) > _SHOWN_CHARS:
            return f"...{_shown(a[start:])}", f"...{_shown(b[start:])}"
    return _shown(old), _shown(new)


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        value = ", ".join(value)
    text = " ".join(value.split()) if isinstance(value, str) else repr(value)
    return f"{text[: _SHOWN_CHARS - 3]}..." if len(text) > _SHOWN_CHARS else text or "nothing"
