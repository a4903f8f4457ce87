"""Channels from a YAML file: each name with a kind of channel and its configuration, and no secret in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from evalpipe.channels.base import MARK, Channel, ChannelConfig, channels
from evalpipe.errors import ConfigError
from evalpipe.scorecard.checks import Found
from evalpipe.scorecard.document import Document, Problem, parse
from evalpipe.scorecard.wording import worded

KIND: Final = "channel"
"""The key that says what kind of channel it is; all others are its configuration."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_channels(path: Path, environ: Mapping[str, str]) -> dict[str, Channel]:
    """The channels of a file, by name.

    Args:
        path: of the file.
        environ: where secrets are, by the names that the file has in ``${...}``.

    Raises:
        ConfigError: one line for each problem, with file, line and column; none has a secret in it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): see EVALPIPE_CHANNELS") from None
    document = parse(str(path), raw)
    if document.value is None:
        said = "\n".join(map(str, document.problems))
        empty = f"{path}:1:1: the file is empty; write 'name: {{channel: webhook, ...}}'"
        raise ConfigError(empty if "the file is empty" in said else said)
    made, found = {}, list[Found]()
    if not isinstance(document.value, Mapping):
        found.append(Found((), "must be a mapping of names to channels"))
    else:
        for name, written in document.value.items():
            channel = _made(str(name), written, environ)
            if isinstance(channel, list):
                found += channel
            else:
                made[str(name)] = channel
    _refuse(document, found)
    return made


def _refuse(document: Document, found: list[Found]) -> None:
    problems: list[Problem] = [
        *document.problems,
        *(document.problem(f.loc, f.message, at_key=f.at_key) for f in found),
    ]
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in sorted(dict.fromkeys(problems))))


def _made(name: str, written: Any, environ: Mapping[str, str]) -> Channel | list[Found]:
    if not _NAME.fullmatch(name):
        return [Found((name,), "is no name: lower-case letters, digits, - and _", at_key=True)]
    if not isinstance(written, Mapping) or not isinstance(written.get(KIND), str):
        return [Found((name,), f"needs '{KIND}:', one of {', '.join(channels)}")]
    try:
        kind = channels.get(written[KIND])
    except ConfigError as error:
        return [Found((name, KIND), str(error))]
    values = {str(key): value for key, value in written.items() if key != KIND}
    return list(_put_secrets(kind.Config, name, values, environ)) or _configured(kind, name, values)


def _configured(kind: type[Channel], name: str, values: Mapping[str, Any]) -> Channel | list[Found]:
    try:
        return kind(kind.Config.model_validate_json(json.dumps(values)))
    except ValidationError as error:
        return list(worded(error, kind.Config, prefix=(name,)))
    except ConfigError as error:
        return [Found((name,), str(error))]


def _put_secrets(
    config: type[ChannelConfig], name: str, values: dict[str, Any], environ: Mapping[str, str]
) -> Iterator[Found]:
    """Put the environment's values where the file names its variables."""
    for key, field in config.model_fields.items():
        extra = field.json_schema_extra
        if key not in values or not isinstance(extra, dict) or MARK not in extra:
            continue
        match = _VARIABLE.fullmatch(values[key]) if isinstance(values[key], str) else None
        if match is None:
            yield Found((name, key), "is a secret: write ${NAME} here, and set that variable")
        elif not environ.get(match[1]):
            yield Found((name, key), f"the variable {match[1]} is not set")
        else:
            secret = environ[match[1]]
            values[key] = secret if field.annotation is str else secret.split()
