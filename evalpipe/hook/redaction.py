"""Personal and secret data becomes ``[email]``, ``[phone]``, ``[card]`` … before a text leaves the process.

What is looked for is in ``finding`` and its neighbours, which are imported with the first text and not with the hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from evalpipe.errors import ConfigError

if TYPE_CHECKING:
    import re

Redactor = Callable[[str], str]
Keep = Mapping[str, frozenset[str] | None]
"""The record's fields that may leave the process, each with the keys that may, or None for all of them."""

KINDS: Final = ("email", "phone", "card", "iban", "id", "ip", "key")
FIELDS: Final = ("messages", "context", "tools", "tool_calls", "parameters", "output", "error", "attributes")
"""Fields that an allow-list is about; ids, numbers, names of models and finish reasons always leave."""
SHORTEST: Final = 6
"""Nothing shorter can be an address, a number or a key."""

_SHORT: Final = 48
_MANY: Final = 512
_CLEAN: set[str] = set()
"""Short texts without anything to find: names of models and roles come again with each record."""

_ROUNDS: Final = 4
"""What is replaced may leave something else standing alone that was part of a longer thing before."""
_ALL: Final = frozenset(KINDS)
_find: Callable[[str, frozenset[str]], list[tuple[int, int, str]]] | None = None


def redact(text: str) -> str:
    """``text`` with everything of every kind replaced by its label."""
    if len(text) > _SHORT:
        return _remembered(text)
    if text in _CLEAN:
        return text
    redacted = _redacted(text, _ALL, _label)
    if redacted == text:
        if len(_CLEAN) >= _MANY:
            _CLEAN.clear()
        _CLEAN.add(text)
    return redacted


def _remembered(text: str) -> str:
    """Instructions and the earlier turns of a conversation come again with each call: they are redacted once."""
    global _new, _old, _new_chars  # noqa: PLW0603 - of this process
    redacted = _new.get(text)
    if redacted is None:
        redacted = _old.get(text)
        if redacted is None:
            redacted = _redacted(text, _ALL, _label)
        if len(text) <= _LONG:
            if _new_chars > _REMEMBERED:
                # What has come again since the last time is in the newer half, and stays.
                _old, _new, _new_chars = _new, {}, 0
            _new[text] = redacted
            _new_chars += len(text)
    return redacted


_LONG: Final = 32_768
_REMEMBERED: Final = 262_144
"""Characters in each of the two halves."""
_new: dict[str, str] = {}
_old: dict[str, str] = {}
_new_chars = 0


class Redaction:
    """What is redacted, and which fields leave the process at all: ``Hook(redact=Redaction(...))``. Cannot be changed.

    Args:
        kinds: ``"all"``, or some of ``email``, ``phone``, ``card``, ``iban``, ``id``, ``ip``, ``key``.
        rules: your own, in this order, after the kinds: ``(pattern, label)``, where the pattern is a regular expression
            or its text and the label becomes ``[label]``; or a function from text to text.
        fields: names of the record's fields that may leave the process; None for all. Of a mapping, the values are the
            keys of the field that may leave, at its top level: ``{"output": True, "attributes": ["plan", "lang"]}``.
        pseudonyms: a key from ``pseudonyms.new_key()``: replaces values by tokens such as ``[email:Zk3…]`` that are
            the same for the same value, and that whoever has the key can reveal.

    Raises:
        ConfigError: one of them cannot work.
    """

    __slots__ = ("_kinds", "_mark", "_rules", "keep")

    keep: Keep | None

    def __init__(
        self,
        kinds: str | Iterable[str] = "all",
        *,
        rules: Iterable[tuple[str | re.Pattern[str], str] | Redactor] = (),
        fields: Iterable[str] | Mapping[str, bool | Iterable[str]] | None = None,
        pseudonyms: str | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "_kinds", _chosen(kinds))
        put(self, "_mark", _label if pseudonyms is None else _pseudonymizer(pseudonyms))
        put(self, "_rules", _compiled(rules, self._mark))
        put(self, "keep", None if fields is None else _kept(fields))

    if TYPE_CHECKING:
        _kinds: frozenset[str]
        _mark: Callable[[str, str], str]
        _rules: tuple[Redactor, ...]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Redaction cannot be changed ({name}): make another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Redaction cannot be changed ({name}): make another")

    def __call__(self, text: str) -> str:
        """``text`` redacted."""
        text = _redacted(text, self._kinds, self._mark)
        for rule in self._rules:
            text = rule(text)
        return text


def resolve(option: object) -> tuple[Redactor, Keep | None]:
    """The function and the allow-list that a hook's option ``redact`` means.

    Raises:
        ConfigError: it is none of True, False, a function and a ``Redaction``.
    """
    if isinstance(option, Redaction):
        return option, option.keep
    if option is True:
        return redact, None
    if option is False:
        return str, None
    if not callable(option):
        raise ConfigError(
            f"redact must be True, False, a function from text to text or an evalpipe.Redaction, not {option!r}"
        )
    return Redaction(rules=[option]), None


def _redacted(text: str, kinds: frozenset[str], mark: Callable[[str, str], str]) -> str:
    if len(text) < SHORTEST or text.isalpha():
        return text
    find = _find or _load()
    for _ in range(_ROUNDS):
        found = find(text, kinds)
        if not found:
            break
        pieces: list[str] = []
        done = 0
        for start, end, kind in found:
            pieces += (text[done:start], mark(kind, text[start:end]))
            done = end
        pieces.append(text[done:])
        text = "".join(pieces)
    return text


def _load() -> Callable[[str, frozenset[str]], list[tuple[int, int, str]]]:
    global _find  # noqa: PLW0603 - once in a process
    from evalpipe.hook.finding import find

    _find = find
    return find


def _label(kind: str, _value: str) -> str:
    return f"[{kind}]"


def _chosen(kinds: str | Iterable[str]) -> frozenset[str]:
    if kinds == "all":
        return _ALL
    chosen = frozenset([kinds] if isinstance(kinds, str) else kinds)
    if unknown := chosen - _ALL:
        raise ConfigError(
            f"Redaction(kinds=...) knows 'all', or some of {', '.join(KINDS)}; not {', '.join(map(repr, unknown))}"
        )
    return chosen


def _kept(fields: Iterable[str] | Mapping[str, bool | Iterable[str]]) -> Keep:
    if isinstance(fields, str):
        raise ConfigError(f"Redaction(fields=...) takes a list of names, or a mapping, not the text {fields!r}")
    asked = fields if isinstance(fields, Mapping) else dict.fromkeys(fields, True)
    kept: dict[str, frozenset[str] | None] = {}
    for name, keys in asked.items():
        if name not in FIELDS:
            raise ConfigError(f"Redaction(fields=...) knows {', '.join(FIELDS)}; not {name!r}")
        if isinstance(keys, bool):
            if keys:
                kept[name] = None
            continue
        if isinstance(keys, str) or name in {"output", "error"}:
            raise ConfigError(f"Redaction(fields={{{name!r}: ...}}) takes True, or a list of keys where the field has "
                              f"keys, not {keys!r}")  # fmt: skip
        kept[name] = frozenset(keys)
    return kept


def _compiled(rules: Iterable[Any], mark: Callable[[str, str], str]) -> tuple[Redactor, ...]:
    return tuple(rule if callable(rule) else _rule(rule, mark) for rule in rules)


def _rule(rule: Any, mark: Callable[[str, str], str]) -> Redactor:
    import re

    if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[1], str):
        raise ConfigError(f"a rule of a Redaction is (pattern, label) or a function from text to text, not {rule!r}")
    pattern, label = rule
    if not re.fullmatch("[a-z][a-z0-9_-]{0,30}", label):
        raise ConfigError(
            f"a rule's label is a word in small letters such as 'patient' (it becomes [patient]), not {label!r}"
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f"the rule for [{label}] is no regular expression ({error}): {pattern!r}") from None
    if not isinstance(compiled.pattern, str) or compiled.search("") or compiled.search(f"[{label}]"):
        raise ConfigError(
            f"the rule for [{label}] must be for text, and match neither nothing nor its own label: {pattern!r}"
        )
    return lambda text: compiled.sub(lambda match: mark(label, match[0]), text)


def _pseudonymizer(key: str) -> Callable[[str, str], str]:
    from evalpipe.hook.pseudonyms import pseudonymizer

    return pseudonymizer(key)
