"""The option ``--policy``: a policy file, a scorecard, or the default rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalpipe.scorecard.default_gates import WITHOUT_SCORECARD
from evalpipe.scorecard.document import Document
from evalpipe.scorecard.policy import PolicyFile, load_policy
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.scorers.base import heuristics

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="A policy file, or a scorecard with a rollout; the default rules without it.",
        show_default=False,
    ),
]


def policy_from(path: Path | None) -> PolicyFile:
    """The policy in a file, with its gates written out; the default rules without one.

    Raises:
        EvalpipeError: a mistake in the file, with file and line.
    """
    found = PolicyFile(RolloutPolicy(), Document(""), (), ()) if path is None else load_policy(path, heuristics)
    if found.policy.gates:
        return found
    filled = found.policy.model_copy(update={"gates": list(WITHOUT_SCORECARD)})
    return PolicyFile(filled, found.document, found.loc, found.notices)


def report_notices(found: PolicyFile) -> None:
    """Say on stderr what is no mistake and should be known."""
    for notice in found.notices:
        typer.echo(f"{notice} (a notice)", err=True)
