"""What pydantic found wrong, in the words of somebody who writes a scorecard."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evalpipe.scorecard.checks import Found, Loc, nearest
from evalpipe.scorecard.values import JUDGE, NAME

_EXPECTED: Final = {
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "finite_number": "must be a finite number",
}
_BOUNDS: Final = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_PATTERNS: Final = {
    NAME: "is not a name: lower-case letters and digits in words joined by - or _, beginning with a letter",
    JUDGE: "is not a judge; write default or provider:model",
}
_KINDS: Final = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (str, "text"),
    (list, "a list"),
    (Mapping, "a mapping"),
)


def worded(
    error: ValidationError, model: type[BaseModel], *, prefix: Loc = (), ignore: Collection[str] = ()
) -> Iterator[Found]:
    """The problems that a model reports, without those of the types in ``ignore``."""
    union: set[Loc] = set()
    for detail in error.errors(include_url=False):
        if detail["type"] in ignore:
            continue
        loc, at_key = _place(detail, model)
        if detail["type"] not in {"extra_forbidden", "missing"} and _of_union(detail, loc):
            # A union reports once for each of its members; people want one line.
            if loc in union:
                continue
            union.add(loc)
            yield Found((*prefix, *loc), f"must be {_members(model, loc)}, not {shown(detail['input'], kind=True)}")
            continue
        yield Found((*prefix, *loc), _message(detail, model, loc), at_key=at_key)


def shown(value: Any, *, kind: bool = False) -> str:
    """A value as messages show it, short; with its kind where the text alone could mislead."""
    if value is None:
        return "nothing"
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:56]}..."
    word = next((word for type_, word in _KINDS if isinstance(value, type_)), type(value).__name__)
    return f"{text} ({word})" if kind and word != "a number" else text


def _message(detail: ErrorDetails, model: type[BaseModel], loc: Loc) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    message = detail["msg"].replace("Input should be", "must be").replace("String should", "must")
    if kind == "extra_forbidden":
        message = f"is no field{nearest(loc[-1], _fields(model, loc[:-1]), there_are='the fields are')}"
    elif kind == "missing":
        message = "is missing"
    elif kind in {"too_short", "string_too_short"} and not value:
        message = "must not be empty"
    elif kind in {"literal_error", "enum"}:
        names = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        message = f"{shown(value)} is not one of {', '.join(names)}{nearest(value, names, there_are='')}"
    elif kind in {"value_error", "assertion_error"}:
        said = str(context["error"])
        message = f"{shown(value)} {said}" if said.startswith(("is ", "must ")) else said
    elif kind == "string_pattern_mismatch":
        message = f"{shown(value)} {_PATTERNS.get(context['pattern'], 'must have the form ' + context['pattern'])}"
    elif kind in _EXPECTED:
        message = f"{_EXPECTED[kind]}, not {shown(value, kind=True)}"
    elif kind in _BOUNDS:
        message = f"must be {_BOUNDS[kind]} {_bound(context)}, not {shown(value)}"
    else:
        message = f"{message[0].lower()}{message[1:]}, not {shown(value)}"
    return message


def _bound(context: Mapping[str, Any]) -> str:
    bound = next(context[key] for key in ("gt", "ge", "lt", "le") if key in context)
    return f"{bound:g}"


def _place(detail: ErrorDetails, model: type[BaseModel]) -> tuple[Loc, bool]:
    """Where the value stands in the file: without pydantic's notes on unions and keys."""
    loc, at_key = list(detail["loc"]), detail["type"] == "extra_forbidden"
    if loc and loc[-1] == "[key]":
        loc, at_key = loc[:-1], True
    place: list[str | int] = []
    annotation: Any = model
    for part in loc:
        inner = _inner(annotation, part)
        if inner is _NOT_THERE and not (at_key and part is loc[-1]) and detail["type"] != "missing":
            continue
        place.append(_as_key(annotation, part))
        annotation = inner
    return tuple(place), at_key


_NOT_THERE: Final = object()


def _inner(annotation: Any, part: str | int) -> Any:
    """The annotation of what stands under ``part``; ``_NOT_THERE`` where ``part`` is pydantic's own word."""
    for option in _options(annotation):
        if option is Any or option is _NOT_THERE:
            return Any
        if isinstance(option, type) and issubclass(option, BaseModel):
            for name, info in option.model_fields.items():
                if part in {name, info.alias}:
                    return info.annotation
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if isinstance(part, int) and origin in {list, tuple}:
            return arguments[0] if arguments else Any
        if origin in {dict, Mapping} or (isinstance(origin, type) and issubclass(origin, Mapping)):
            return arguments[1] if arguments else Any
    return _NOT_THERE


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, without ``Annotated``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _options(typing.get_args(annotation)[0])
    elif origin in {typing.Union, types.UnionType}:
        for member in typing.get_args(annotation):
            yield from _options(member)
    else:
        yield annotation


def _as_key(annotation: Any, part: str | int) -> str | int:
    """Pydantic writes the key 1 of a mapping as '1'."""
    for option in _options(annotation):
        arguments = typing.get_args(option)
        if typing.get_origin(option) is dict and arguments[0] is int and str(part).lstrip("-").isdigit():
            return int(part)
    return part


def _fields(model: type[BaseModel], loc: Loc) -> list[str]:
    annotation: Any = model
    for part in loc:
        annotation = _inner(annotation, part)
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return [info.alias or name for name, info in option.model_fields.items()]
    return []


def _of_union(detail: ErrorDetails, loc: Loc) -> bool:
    return len([part for part in detail["loc"] if part != "[key]"]) > len(loc)


def _members(model: type[BaseModel], loc: Loc) -> str:
    annotation: Any = model
    for part in loc:
        annotation = _inner(annotation, part)
    words = [next((w for t, w in _KINDS if _is_kind(option, t)), "") for option in _options(annotation)]
    return " or ".join(dict.fromkeys(word for word in words if word)) or "of another type"


def _is_kind(option: Any, kind: type) -> bool:
    plain = typing.get_origin(option) or option
    return isinstance(plain, type) and (issubclass(plain, kind) or (kind is Mapping and issubclass(plain, BaseModel)))
