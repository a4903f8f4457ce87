"""What docs/scorecards.md shows is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evalpipe.detectors.base import detectors
from evalpipe.judges.base import judges
from evalpipe.record import Record
from evalpipe.scorecard import model
from evalpipe.scorecard.criterion import Criterion, JudgeSpec
from evalpipe.scorecard.load import load_scorecard
from evalpipe.scorecard.rollout import Gate, RolloutPolicy
from evalpipe.scorecard.rows import read_rows
from evalpipe.scorecard.testing import run_tests
from evalpipe.scorecard.written import WrittenRecord
from evalpipe.scorers.base import heuristics

PAGE = (Path(__file__).parents[3] / "docs" / "scorecards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search("name: (.*)", block).group(1))
def test_every_scorecard_on_the_page_loads_and_passes_its_tests(block, tmp_path):
    """So that what is copied works."""
    (tmp_path / "card.yaml").write_text(block, encoding="utf-8")
    card = load_scorecard(tmp_path / "card.yaml", heuristics, judges, detectors)
    assert [r for r in run_tests(card, heuristics) if r.outcome == "failed"] == []


def test_the_page_shows_scorecards():
    """The pattern above has found them."""
    assert len(BLOCKS) >= 7


def test_the_record_on_the_page_can_be_read():
    """On one line, as the page says."""
    (row,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (record,) = read_rows("page", [json.dumps(json.loads(row)).encode()])
    assert isinstance(record, Record)


@pytest.mark.parametrize(
    "written",
    [model.Scorecard, model.Match, Criterion, JudgeSpec, model.AlertRule, RolloutPolicy, Gate, model.Expectation,
     WrittenRecord],
    ids=lambda written: written.__name__,
)  # fmt: skip
def test_the_reference_names_every_field(written):
    """A new field needs a line on the page."""
    missing = [i.alias or n for n, i in written.model_fields.items() if f"`{i.alias or n}`" not in PAGE]
    assert missing == []


def test_the_reference_names_every_heuristic():
    """A new heuristic needs a line on the page."""
    assert [name for name in heuristics if f"| `{name}` |" not in PAGE] == []


def test_the_mistake_on_the_page_is_reported_as_shown(tmp_path):
    """At the place that the page gives."""
    (tmp_path / "help-center.yaml").write_text(BLOCKS[0].replace("citation", "citations", 1), encoding="utf-8")
    said = re.search(r"help-center.yaml(:\d+:\d+: .*citations'.*)", PAGE).group(1)
    with pytest.raises(Exception, match=re.escape(said)):
        load_scorecard(tmp_path / "help-center.yaml", heuristics)
