"""A rollout on a real database, fed with scores by the hundred and folded by the stage that production runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, update

from evalpipe.pipeline.rollout_view import ordered
from evalpipe.pipeline.start_rollout import Started, start
from evalpipe.rollout.inputs import OverrideAction
from evalpipe.rollout.plan import Gate, RolloutPlan, Step
from evalpipe.settings import Settings
from evalpipe.store import rollouts, tables
from evalpipe.wiring import Wiring

CARD = """
name: desk
description: Short answers that keep to the policy.
owner: support
match: {service: desk}
criteria:
  - {name: brief, description: Short., heuristic: length, params: {max: 200}}
rollout:
  baseline: v6
  canary: v7
  ramp: [{percent: 5, bake: 0s, min_canary: 40}, {percent: 50, bake: 0s, min_canary: 40}, 100]
  gates:
    - {criterion: brief, margin: 5%, min_canary: 20}
"""
GATE = Gate("brief", "brief", min_canary=20, alpha=0.005)
STEPS = (Step(5, timedelta(0), 40), Step(50, timedelta(0), 40, "non_inferior"))
BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)


class RolloutDesk:
    """A migrated database, a worker's stages on it, and a clock that evidence moves.

    Attributes:
        wiring: of the worker.
        at: the clock.
    """

    def __init__(self, database_url: str, redis_url: str, folder: Path, **more: Any) -> None:
        cards = folder / "scorecards"
        cards.mkdir(exist_ok=True)
        (cards / "desk.yaml").write_text(CARD)
        self.settings = Settings(
            home=folder, database_url=database_url, redis_url=redis_url, scorecards=cards, api_keys=("key-one",), **more
        )
        self.wiring = Wiring(self.settings)
        self.at = BEGAN
        self.random = random.Random(5)

    def start(self, rollout_id: str = "r-1", environment: str = "", **fields: Any) -> Started:
        """Start a rollout with one gate and two steps."""
        plan = RolloutPlan(**{
            "rollout_id": rollout_id, "service": "desk", "baseline": "v6", "canary": "v7", "gates": (GATE,),
            "steps": STEPS, **fields,
        })  # fmt: skip
        with self.wiring.store.begin() as tx:
            return start(tx, plan, scorecard="desk", scorecard_version="1a2b", environment=environment, actor="ada",
                         reason="test", now=self.at)  # fmt: skip

    def feed(
        self,
        n: int,
        *,
        baseline: float = 0.9,
        canary: float = 0.9,
        rollout_id: str = "r-1",
        criteria: Sequence[str] = (),
    ) -> None:
        """Let ``n`` scores of each arm arrive, half a second apart, and fold them."""
        with self.wiring.store.begin() as tx:
            row = rollouts.get(tx, rollout_id)
            assert row is not None
            evidence, scores = [], []
            for i in range(2 * n):
                self.at += timedelta(seconds=0.5)
                seq, arm = row["evidence_seq"] + i + 1, ("baseline", "canary")[i % 2]
                mean = canary if arm == "canary" else baseline
                record_id = f"{rollout_id}-{seq}"
                evidence.append({"rollout_id": rollout_id, "seq": seq, "record_id": record_id, "arm": arm,
                                 "unit": record_id, "at": self.at, "captured_at": self.at})  # fmt: skip
                scores += [
                    {"record_id": record_id, "criterion": criterion, "scorecard": "desk", "scorecard_version": "1a2b",
                     "epoch": "e1", "status": "scored", "value": float(self.random.random() < mean), "weight": 1.0,
                     "captured_at": self.at, "scored_at": self.at}
                    for criterion in criteria or ("brief",)
                ]  # fmt: skip
            tx.connection.execute(insert(tables.evidence), evidence)
            tx.connection.execute(insert(tables.scores), scores)
            tx.connection.execute(
                update(tables.rollouts)
                .where(tables.rollouts.c.rollout_id == rollout_id)
                .values(evidence_seq=row["evidence_seq"] + 2 * n)
            )
        self.fold()

    def order(self, action: OverrideAction, rollout_id: str = "r-1", *, fold: bool = True, **more: Any) -> None:
        """Let Ada order something, and carry it out."""
        with self.wiring.store.begin() as tx:
            ordered(tx, rollout_id, action, actor="ada", reason="because", now=self.at, **more)
        if fold:
            self.fold()

    def fold(self) -> None:
        """Evaluate now."""
        self.at += timedelta(seconds=1)
        self.wiring.evaluate(self.at)

    def close(self) -> None:
        """Close the connections."""
        self.wiring.close()
