"""What ``evalpipe doctor`` says of alert rules and fingerprints, and what the start refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.errors import ConfigError, ScorecardError
from evalpipe.scorecard.alert_file import load_alerts
from evalpipe.scorecard.fingerprint import load_fingerprints

CARD = "name: desk\nmatch: {service: desk}\ncriteria:\n  - {name: brief, heuristic: length, params: {max: 400}}\n"
ALERTS = """alerts:
  - {name: model-changed, detect: fingerprint, params: {fingerprint: nosuch}}
  - {name: fell, scorecard: desk, detect: quality, params: {criterion: brief}, normal: {baseline: not-there}}
"""
PRINTS = """fingerprints:
  - name: desk-model
    service: desk
    model: {protocol: openai, name: toy, base_url: "%s", api_key: %s}
    prompts: [{name: a, text: hello}]
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A migrated database, a scorecard, and files of alerts and fingerprints."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "desk.yaml").write_text(CARD)
    (tmp_path / "alerts.yaml").write_text(ALERTS)
    (tmp_path / "prints.yaml").write_text(PRINTS % ("http://127.0.0.1:1/v1", "TOY_KEY"))
    for name, value in {
        "HOME": tmp_path / "home",
        "SCORECARDS": tmp_path / "cards",
        "ALERTS": tmp_path / "alerts.yaml",
        "FINGERPRINTS": tmp_path / "prints.yaml",
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }.items():
        monkeypatch.setenv(f"EVALPIPE_{name}", str(value))
    (tmp_path / "home").mkdir()
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    return tmp_path


def said(what: str) -> str:
    """Everything that the doctor says of a part."""
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    return "\n".join(f"{f['state']} {f['detail']} -> {f['advice']}" for f in found if f["what"] == what)


def test_the_doctor_names_rules_that_can_find_nothing(files: Path) -> None:
    """A baseline that is not there, a fingerprint that nobody declares, and a key that is not set."""
    assert "bad rule desk/fell compares with baseline 'not-there', which does not exist" in said("alerts")
    told = said("fingerprints")
    assert "bad rule model-changed watches fingerprint 'nosuch', which no file declares" in told
    assert "warn desk-model: the variable TOY_KEY with the model's key is not set here" in told
    (files / "alerts.yaml").unlink()
    assert "bad there is no alerts file or folder" in said("alerts")


def test_without_rules_the_doctor_says_where_they_are_written(files: Path) -> None:
    """Nobody is paged by a pipeline that has no rule."""
    (files / "alerts.yaml").write_text("alerts: []\n")
    (files / "prints.yaml").unlink()
    assert "bad there is no fingerprints file or folder" in said("fingerprints")
    (files / "prints.yaml").write_text(PRINTS % ("", "HOME"))
    assert "warn there is no alert rule -> write 'alerts:' in a scorecard" in said("alerts")


def test_a_worker_does_not_start_with_a_file_that_cannot_be_used(files: Path) -> None:
    """It would fail at its first task, for ever."""
    (files / "alerts.yaml").write_text("alerts:\n  - {name: x, detect: costs}\n")
    done = CliRunner().invoke(app, ["worker", "--queues", "evaluate"])
    assert isinstance(done.exception, ScorecardError)
    assert "did you mean 'cost'?" in str(done.exception)
    (files / "prints.yaml").unlink()
    done = CliRunner().invoke(app, ["worker", "--queues", "fingerprint"])
    assert isinstance(done.exception, ConfigError)
    assert "EVALPIPE_FINGERPRINTS" in str(done.exception)


def test_a_rule_that_reads_scores_names_their_scorecard(tmp_path: Path) -> None:
    """It would never find anything, and say nothing."""
    path = tmp_path / "alerts.yaml"
    path.write_text("alerts:\n  - {name: x, detect: mean, params: {criterion: brief, below: 0.5}}\n")
    from evalpipe.detectors.base import detectors

    with pytest.raises(ScorecardError, match=r":2:.*reads the scores of 'brief': write 'scorecard:'"):
        load_alerts(path, [], detectors)
    path.write_text("alerts:\n  - {name: x, criterion: brief, mean: {below: 0.5}}\n")
    with pytest.raises(ScorecardError, match=r":2:.*reads the scores of 'brief': write 'scorecard:'"):
        load_alerts(path, [], detectors)


@pytest.mark.parametrize(
    ("url", "key", "wrong"),
    [("", "sk-123-secret", "api_key: is not the name"), ("ftp://x", "A", "'ftp://x' is no URL")],
)
def test_a_fingerprint_names_its_keys_variable_and_a_url(tmp_path: Path, url: str, key: str, wrong: str) -> None:
    """A key that was written by mistake is not repeated, where logs are read."""
    path = tmp_path / "prints.yaml"
    path.write_text(PRINTS % (url, key))
    with pytest.raises(ScorecardError, match=wrong) as caught:
        load_fingerprints(path)
    assert "sk-123" not in str(caught.value)
