"""How rollouts begin and end."""

from __future__ import annotations

from pathlib import Path

from stages import World

from evalpipe.record import Record, Release
from evalpipe.store.tables import evidence, rollouts


def test_a_new_canary_release_supersedes_the_rollout_of_the_one_before(migrated_url: str, tmp_path: Path) -> None:
    """The older one takes no more evidence, also when a late record of its release arrives."""
    world = World(migrated_url, tmp_path)

    def send(name: str, variant: str, prompt: str) -> None:
        release = Release("desk", variant, prompt=prompt)
        world.ingest(Record(name, name, world.clock(), release, output="You can return it."))

    try:
        send("r1", "canary", "v7")
        send("r2", "canary", "v8")
        send("r3", "canary", "v7")
        send("r4", "baseline", "v6")
        phases = sorted((row["started_at"], row["phase"], row["evidence_seq"]) for row in world.rows(rollouts))
        assert [(phase, seen) for _, phase, seen in phases] == [("running", 2), ("superseded", 1)]
        assert {row["record_id"] for row in world.rows(evidence)} == {"r1", "r2", "r4"}
    finally:
        world.store.close()
