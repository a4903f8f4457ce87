"""``evalpipe rollout replay``: fold the log of a rollout again, and compare every decision and its hash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Annotated, Any, Final

import typer

from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json
from evalpipe.cli.trouble import opened
from evalpipe.rollout.decision import Decision
from evalpipe.rollout.fold import fold_into
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.store import rollout_log, rollouts
from evalpipe.store.sql import Transaction
from evalpipe.wiring import Wiring

COLUMNS: Final = ("decision_id", "action", "cause", "gate", "phase", "reason", "actor", "inputs_hash")
"""Of a stored decision, beside its evidence."""
ALL: Final = 1_000_000_000


def add_to(app: typer.Typer, named: Callable[[Wiring, str], str]) -> None:
    """Add the command; ``named`` finds the rollout that was meant."""

    @app.command()
    def replay(
        rollout_id: Annotated[
            str, typer.Argument(metavar="ID", help="The rollout, as 'list' names it, or its beginning.")
        ],
        machine: Json = False,
    ) -> None:
        """Decide everything again from the log of what was folded, and compare it with what was decided.

        Exit code 0: each decision and each hash is the same. 1: the first that is not is shown.
        """
        with closing(opened()) as wiring, wiring.store.read() as tx:
            found = compare(tx, named(wiring, rollout_id))
        if machine:
            typer.echo(as_json(found))
        elif found["equal"]:
            typer.echo(
                f"{found['rollout_id']}: {found['batches']} batches with {found['evidence']} pieces of evidence give "
                f"the same {found['decisions']} decisions, hash by hash, in {found['seconds']:.2f} s."
            )
        else:
            _tell(found)
        if not found["equal"]:
            raise typer.Exit(1)


def compare(tx: Transaction, rollout_id: str) -> dict[str, Any]:
    """Replay a rollout: ``equal``, what was counted, and the first ``difference`` or None.

    A difference has ``seq`` (None: of the state at the end), ``field``, ``stored`` and ``replayed``.
    """
    begun = time.monotonic()
    row = rollouts.get(tx, rollout_id)
    assert row is not None
    plan = RolloutPlan.from_dict(row["plan"])
    state = RolloutState.start(plan, row["started_at"])
    made: list[Decision] = []
    batches = evidence = 0
    for batch in rollout_log.inputs(tx, rollout_id):
        made += fold_into(plan, state, batch)
        batches, evidence = batches + 1, evidence + len(batch.evidence)
    stored = sorted(rollouts.list_decisions(tx, rollout_id=rollout_id, limit=ALL), key=lambda d: d["seq"])
    difference = next(_differences(stored, made), None)
    if difference is None and row["state"] is not None and batches:
        difference = _first(None, row["state"], json.loads(json.dumps(state.to_state(plan))), "state")
    return {
        "rollout_id": rollout_id,
        "equal": difference is None,
        "batches": batches,
        "evidence": evidence,
        "decisions": len(stored),
        "seconds": round(time.monotonic() - begun, 3),
        "difference": difference,
    }


def _differences(stored: list[dict[str, Any]], made: list[Decision]) -> Iterator[dict[str, Any]]:
    """Where stored and replayed decisions differ, in order."""
    was, again = {row["seq"]: row for row in stored}, {decision.seq: decision for decision in made}
    for seq in sorted(was.keys() | again.keys()):
        if seq not in again:
            yield _difference(seq, "decision", was[seq]["reason"], None)
        elif seq not in was:
            yield _difference(seq, "decision", None, again[seq].reason)
        else:
            yield from _of_one(was[seq], again[seq])


def _of_one(stored: dict[str, Any], made: Decision) -> Iterator[dict[str, Any]]:
    again = json.loads(json.dumps(made.to_dict()))
    for name in COLUMNS:
        if stored[name] != again[name]:
            yield _difference(made.seq, name, stored[name], again[name])
    if found := _first(made.seq, stored["evidence"], again, "evidence"):
        yield found


def _first(seq: int | None, stored: Any, again: Any, path: str) -> dict[str, Any] | None:
    """The first place where two JSON values differ; what only the store adds does not count."""
    if isinstance(stored, dict) and isinstance(again, dict):
        found = (_first(seq, stored.get(key), again[key], f"{path}.{key}") for key in again)
        return next((one for one in found if one is not None), None)
    if isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        pairs = enumerate(zip(stored, again, strict=True))
        listed = (_first(seq, mine, theirs, f"{path}.{index}") for index, (mine, theirs) in pairs)
        return next((one for one in listed if one is not None), None)
    return None if stored == again else _difference(seq, path, stored, again)


def _difference(seq: int | None, field: str, stored: Any, replayed: Any) -> dict[str, Any]:
    return {"seq": seq, "field": field, "stored": stored, "replayed": replayed}


def _tell(found: dict[str, Any]) -> None:
    difference = found["difference"]
    where = "the state at the end" if difference["seq"] is None else f"decision {difference['seq']}"
    typer.echo(f"{found['rollout_id']}: {where} differs in {difference['field']}")
    typer.echo(f"  stored:   {_said(difference['stored'])}")
    typer.echo(f"  replayed: {_said(difference['replayed'])}")
    typer.echo(
        "Either a row of the log, of the decisions or of the rollout was changed afterwards, or this version of "
        "evalpipe decides otherwise than the one that decided."
    )


def _said(value: Any) -> str:
    return "nothing" if value is None else str(value)
