"""``evalpipe judge``: what judges do, cost, and how far they can be trusted. Each command is a module of its own."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Judges: their state, their cost, and how far they can be trusted.")
