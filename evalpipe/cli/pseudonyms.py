"""Commands about pseudonyms: a key for ``Redaction(pseudonyms=...)``, and the values behind them for who has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from evalpipe.errors import ConfigError
from evalpipe.hook.pseudonyms import new_key, reveal_all

VARIABLE = "EVALPIPE_PSEUDONYM_KEY"

app = typer.Typer(help="Keys for pseudonyms, and the values behind them.", no_args_is_help=True)


@app.command()
def key() -> None:
    """Print a new key for `Redaction(pseudonyms=...)`. Who has it can read every value: keep it from the records."""
    typer.echo(new_key())


@app.command()
def reveal(
    text: Annotated[Path | None, typer.Argument(help="A file; standard input without one.")] = None,
    key_file: Annotated[Path | None, typer.Option(help=f"A file with the key; {VARIABLE} without one.")] = None,
) -> None:
    """Print a text with its pseudonyms replaced by their values, for example what `evalpipe why` printed.

    Pseudonyms of another key stay as they are. The key is never an argument, because those are seen by everybody on the
    machine.
    """
    secret = _read(key_file).strip() if key_file is not None else os.environ.get(VARIABLE, "")
    if not secret:
        raise ConfigError(f"no key: set {VARIABLE}, or give --key-file FILE")
    typer.echo(reveal_all(sys.stdin.read() if text is None else _read(text), secret), nl=False)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
