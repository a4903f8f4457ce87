"""How rollouts begin and end."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rollout_worlds import CARD, PLAN, start
from stages import World, record

from evalpipe.errors import ConfigError
from evalpipe.record import Record, Release
from evalpipe.store import rollout_evidence
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


def test_records_of_an_arm_weigh_the_same_in_its_rollout(migrated_url: str, tmp_path: Path) -> None:
    """However sure it was that one is captured; what only a rule or late feedback kept does not enter."""
    world = World(migrated_url, tmp_path)
    ways: dict[str, dict[str, Any]] = {
        "canary": {"reason": "rollout:ramp", "probability": 1.0, "release": Release("desk", "canary")},
        "baseline": {"reason": "rollout:ramp", "probability": 0.25},
        "errored": {"reason": "rollout:ramp", "probability": 1.0, "rate_probability": 0.25, "stratum": "keep:error"},
        "plain": {"probability": 0.5},
        "flagged": {"probability": 1.0, "rate_probability": 0.5, "stratum": "keep:flag"},
        "ruled": {"reason": "keep:error", "probability": 1.0, "stratum": "keep:error"},
        "said": {"reason": "feedback", "probability": 1.0, "stratum": "feedback"},
    }
    try:
        for name, fields in ways.items():
            world.ingest(record(name, **fields))
        with world.store.read() as tx:
            (row,) = world.rows(rollouts)
            found = rollout_evidence.readings(tx, row["rollout_id"], {"length": 0}, "support", 100)["length"]
        weights = {reading.record_id: reading.weight for reading in found}
        assert weights == {"r-canary": 1.0, "r-baseline": 1.0, "r-errored": 1.0, "r-plain": 2.0, "r-flagged": 2.0}
    finally:
        world.store.close()


def test_a_rollout_has_an_id_that_urls_take_whatever_its_service_is_called(migrated_url: str, tmp_path: Path) -> None:
    """One that begins with a record gets such an id; a person who gives another one is told."""
    world = World(migrated_url, tmp_path, card=CARD.replace("desk", '"*"') + "rollout: {}\n")
    try:
        world.ingest(record("first", release=Release("/shop/ask me", "canary")))
        (row,) = world.rows(rollouts)
        assert re.fullmatch("shop-ask-me-canary-support-[0-9a-f]{8}", row["rollout_id"])
        with pytest.raises(ConfigError, match="part of URLs"):
            start(world, replace(PLAN, rollout_id="a/b"))
    finally:
        world.store.close()
