"""The scorecards that ship, and the JSON Schema that editors use."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import pytest

from evalpipe.detectors.base import detectors
from evalpipe.judges.base import judges
from evalpipe.scorecard.document import parse
from evalpipe.scorecard.load import load_scorecard, load_scorecards
from evalpipe.scorecard.schema import json_schema
from evalpipe.scorecard.testing import run_tests
from evalpipe.scorers.base import heuristics

FOLDER = Path(__file__).parents[3] / "scorecards"
FILES = sorted(FOLDER.glob("*.yaml"))


def as_json(value):
    """YAML's numbers as keys are text in JSON."""
    if isinstance(value, dict):
        return {str(key): as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list) else value


def test_at_least_four_scorecards_ship():
    """Support bot, RAG answer, JSON extraction, agent with tools."""
    names = {card.name for card in load_scorecards(FOLDER, heuristics, judges, detectors)}
    assert {"support-bot", "rag-answer", "json-extraction", "agent-tools"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_scorecard_passes_its_own_tests(path):
    """Every heuristic criterion is tested, and the tests pass."""
    card = load_scorecard(path, heuristics, judges, detectors)
    results = list(run_tests(card, heuristics))
    assert [r for r in results if r.outcome == "failed"] == []
    assert {c.name for c in card.criteria} == {r.criterion for r in results}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_json_schema_accepts_what_ships(path):
    """Editors mark nothing in a good file."""
    validator = jsonschema_rs.validator_for(json_schema(heuristics, detectors))
    value = as_json(parse(str(path), path.read_bytes()).value)
    assert [error.message for error in validator.iter_errors(value)] == []


def test_the_json_schema_accepts_the_default_policy():
    """Under ``rollout`` it is the same words."""
    schema = json_schema(heuristics, detectors)
    validator = jsonschema_rs.validator_for({"$defs": schema["$defs"], "$ref": "#/$defs/RolloutPolicy"})
    path = FOLDER / "policies" / "default.yaml"
    value = as_json(parse(str(path), path.read_bytes()).value)
    assert [error.message for error in validator.iter_errors(value)] == []
    assert not validator.is_valid({**value, "ramp": [1, {"percents": 5}]})


@pytest.mark.parametrize(
    "criterion",
    [
        {"name": "a"},
        {"name": "a", "heuristic": "lenght"},
        {"name": "a", "heuristic": "length", "params": {"maximum": 1}},
        {"name": "a", "heuristic": "pattern"},
        {"name": "a", "heuristic": "length", "judge": {"kind": "boolean", "rubric": "x"}},
        {"name": "a", "judge": {"kind": "scales", "rubric": "x"}},
        {"name": "a", "heuristic": "length", "extra": 1},
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(criterion):
    """So that the editor says it first."""
    validator = jsonschema_rs.validator_for(json_schema(heuristics, detectors))
    assert validator.is_valid({"name": "x", "criteria": [{"name": "a", "heuristic": "length"}]})
    assert not validator.is_valid({"name": "x", "criteria": [criterion]})


def test_the_json_schema_beside_the_scorecards_is_the_current_one():
    """If not: evalpipe scorecard schema --out scorecards/scorecard.schema.json."""
    kept = json.loads((FOLDER / "scorecard.schema.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(json_schema(heuristics, detectors)))


def test_the_json_schema_writes_durations_as_people_do():
    """And repeats no field's name as a title."""
    rule = json_schema(heuristics, detectors)["$defs"]["AlertRule"]["properties"]
    assert rule["window"]["default"] == "10m"
    assert rule["for"]["default"] == "0s"
    assert "title" not in rule["window"]
