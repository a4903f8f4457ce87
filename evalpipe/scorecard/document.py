"""YAML text as plain values, with the place of each.

YAML 1.2's core rules, where `no` and `on` are words, `1:30` is not ninety, and dates are text; `<<` merges, as people
expect. Repeated keys, tags, keys that are neither words nor whole numbers, and anchors that contain themselves are
problems with a place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from evalpipe.scorecard.checks import Found, Loc, dotted

MAX_NODES: Final = 100_000
"""More values than this is not a scorecard but a bomb of aliases."""
MAX_DEPTH: Final = 64
"""A JSON Schema inside a scorecard goes about thirty deep."""

_STANDARD: Final = "tag:yaml.org,2002:"
_KINDS: Final = {"null": "null", "bool": "true or false", "int": "whole number", "float": "number"}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem in a file; line and column count from 1."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


@dataclass(slots=True)
class Document:
    """A file's plain values.

    Attributes:
        file: its name as messages say it.
        value: mappings, lists, text, numbers, booleans, None.
        values, keys: line and column of each value, and of the key that it stands under.
        problems: what the YAML itself has wrong; with any ``whole`` problem there is no value.
    """

    file: str
    value: Any = None
    values: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, loc: Loc, message: str, *, at_key: bool = False) -> Problem:
        """The problem at ``loc``, or at the nearest place around it that the file has."""
        where, places = loc, self.keys if at_key else self.values
        while where and where not in places:
            where, places = where[:-1], self.values
        line, column = places.get(where, (1, 1))
        return Problem(self.file, line, column, f"{dotted(loc)}: {message}" if loc else message)

    def placed(self, found: Iterable[Found]) -> list[Problem]:
        """All its problems, with those found in what it says: each once, in the order of their places."""
        return sorted({*self.problems, *(self.problem(f.loc, f.message, at_key=f.at_key) for f in found)})


def parse(file: str, raw: bytes) -> Document:
    """The document in ``raw``; what is wrong with the YAML is in its ``problems``."""
    document = Document(file)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = raw[: error.start].decode("utf-8-sig")
        line, column = _line_column(good, len(good))
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        document.problems.append(Problem(file, line, column, message))
        return document
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line, column = _line_column(text, bad.start())
        message = f"character U+{ord(bad.group()):04X} is not allowed in YAML; remove it"
        document.problems.append(Problem(file, line, column, message))
        return document
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        document.problems.append(Problem(file, line, column, _syntax(error, text)))
    else:
        if node is None:
            document.problems.append(
                Problem(
                    file,
                    1,
                    1,
                    "the file is empty; a scorecard starts with 'name:' and 'criteria:', rules with 'alerts:'",
                )
            )
        else:
            _Reader(document).read(node)
    return document


def _compose(text: str) -> Any:
    """The root node, or None of an empty file.

    Raises:
        yaml.MarkedYAMLError: it is not YAML, or nested so deep that composing it could end the process.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem="nested too deep to be a scorecard", problem_mark=mark)
    return yaml.compose(text, Loader=_Loader)


def _line_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _syntax(error: yaml.MarkedYAMLError, text: str) -> str:
    said, context = error.problem or "cannot be read", error.context or ""
    if "expected a single document" in context:
        return "not YAML: a second document starts here; write one scorecard to a file"
    began, mark = error.context_mark, error.problem_mark
    if began and mark and (began.line, began.column) != (mark.line, mark.column):
        context += f" (from {began.line + 1}:{began.column + 1} on)"
    message = f"not YAML: {context}{': ' if context else ''}{said}"
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if mark and "\t" in line[: mark.column + 1]:
        return f"{message}; indent with spaces, never with tabs"
    if "mapping values are not allowed" in said:
        return f"{message}; put text that has ': ' in it in quotes"
    if mark and "undefined alias" in said:
        return f"{message} {line[mark.column :].split()[0]}; define it further up with &"
    return message


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Composes nodes with the implicit types of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own way


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_STANDARD}{_tag}", re.compile(_pattern), _first)


class _Reader:
    """Turns nodes into values, noting places and problems."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node) -> None:
        """Fill the document; a problem of the whole leaves it without a value."""
        try:
            self._document.value = self._value(node, ())
        except _Hopeless as error:
            self._document.value = None
            self._document.problems.append(self._at(error.node, str(error)))

    def _value(self, node: yaml.Node, loc: Loc) -> Any:
        self._document.values.setdefault(loc, _place(node))
        self._count += 1
        if self._count > MAX_NODES:
            raise _Hopeless(node, f"the file holds more than {MAX_NODES} values, counting what aliases repeat")
        if id(node) in self._open:
            raise _Hopeless(node, "an anchor contains itself by an alias")
        if len(loc) > MAX_DEPTH:
            raise _Hopeless(node, "is nested too deep to be a scorecard, counting what aliases repeat")
        if not isinstance(node, yaml.ScalarNode) and not node.tag.startswith(_STANDARD):
            self._add(node, f"{dotted(loc)}: the tag {node.tag!r} has no meaning here; remove it")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, loc)
            if isinstance(node, yaml.SequenceNode):
                return [self._value(child, (*loc, place)) for place, child in enumerate(node.value)]
            return self._scalar(node, loc)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, child in node.value:
            if key_node.tag == f"{_STANDARD}merge":
                merged.extend(child.value if isinstance(child, yaml.SequenceNode) else [child])
                continue
            key = self._key(key_node, loc)
            if key is None:
                continue
            if key in values:
                first = self._document.keys[(*loc, key)]
                self._add(key_node, f"{dotted((*loc, key))}: is already given at line {first[0]}; remove one of them")
                continue
            self._document.keys.setdefault((*loc, key), _place(key_node))
            values[key] = self._value(child, (*loc, key))
        for source in merged:
            value = self._value(source, loc)
            if not isinstance(value, dict):
                self._add(source, f"{dotted((*loc, '<<'))}: merges a mapping or a list of mappings, not {value!r}")
                continue
            values = {**value, **values}
        return values

    def _key(self, node: yaml.Node, loc: Loc) -> str | int | None:
        key = self._scalar(node, loc) if isinstance(node, yaml.ScalarNode) else None
        if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)):
            return key
        shown = repr(node.value) if isinstance(node, yaml.ScalarNode) else "this"
        self._add(node, f"{dotted(loc) or 'the file'}: a key must be a word or a whole number, not {shown}; quote it")
        return None

    def _scalar(self, node: yaml.Node, loc: Loc) -> Any:
        text, kind = str(node.value), node.tag.removeprefix(_STANDARD)
        if kind in {"str", "merge"}:
            if bad := re.search("[\x00\ud800-\udfff]", text):
                self._add(
                    node,
                    f"{dotted(loc)}: has the character U+{ord(bad.group()):04X}, which cannot be stored; remove it",
                )
                return "?"
            return text
        try:
            return _READ[kind](text)
        except ValueError:
            self._add(node, f"{dotted(loc)}: {text[:40]!r} is no {_KINDS[kind]} that a scorecard can hold")
        except KeyError:
            self._add(node, f"{dotted(loc)}: the tag {node.tag!r} has no meaning here; remove it")
        return None

    def _at(self, node: yaml.Node, message: str) -> Problem:
        return Problem(self._document.file, *_place(node), message)

    def _add(self, node: yaml.Node, message: str) -> None:
        self._document.problems.append(self._at(node, message))


class _Hopeless(Exception):  # noqa: N818 - never leaves this module
    """The whole file cannot be turned into values."""

    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(message)
        self.node = node


def _null(text: str) -> None:
    if text.lower() not in {"", "~", "null"}:
        raise ValueError(text)


def _bool(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


def _number(kind: type[int | float], text: str) -> float:
    number = kind(text)
    if not -(2**63) <= number < 2**63:  # NaN compares false
        raise ValueError(text)
    return number


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "null": _null,
    "bool": _bool,
    "int": lambda text: _number(int, text),
    "float": lambda text: _number(float, text),
}


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


__all__: Sequence[str] = ("Document", "Problem", "parse")
