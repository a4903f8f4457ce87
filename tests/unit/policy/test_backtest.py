"""``evalpipe backtest``: recorded scores in, one decision a rollout out."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.cli.score_file import ScoreFile
from evalpipe.errors import ConfigError
from evalpipe.rollout.backtest import rehearse
from evalpipe.rollout.from_policy import plan_of
from evalpipe.rollout.inputs import Evidence
from evalpipe.scorecard.rollout import RolloutPolicy

ARMS = {"baseline": "baseline", "canary": "canary"}
COLUMNS = ("rollout", "seq", "at", "arm", "unit", "criterion", "value", "weight")
START = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty folder, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def scores(rollout="r", n=600, share=0.5, passes=(0.9, 0.9), criterion="quality", seed=1):
    """Rows of one rollout with binary scores; ``passes`` of baseline and canary."""
    rng = np.random.default_rng(seed)
    arms = (rng.random(n) < share).astype(int)
    return [
        {"rollout": rollout, "seq": place, "at": (START + timedelta(seconds=place)).isoformat(),
         "arm": ("baseline", "canary")[arm], "unit": f"u{place}", "criterion": criterion,
         "value": float(rng.random() < passes[arm]), "weight": 1.0}
        for place, arm in enumerate(arms.tolist())
    ]  # fmt: skip


def write(rows, name="scores.csv"):
    """The rows as a file in this folder."""
    path = Path(name)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        out.writeheader()
        out.writerows(rows)
    return path


def run(*args: object):
    """The command's result."""
    return CliRunner().invoke(app, ["backtest", "--scores", *map(str, args)])


def decided(*args: object):
    """By rollout what is decided."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return {row["rollout"]: row for row in json.loads(result.stdout)}


def test_each_rollout_of_a_file_is_decided_by_itself():
    """A broken canary is rolled back at the score that proved it; the others are not."""
    rows = scores("bad", passes=(0.95, 0.4)) + scores("good", 4000) + scores("short", 20)
    found = decided(write(rows))
    assert list(found) == ["bad", "good", "short"]
    assert {name: row["decision"] for name, row in found.items()} == {
        "bad": "rollback", "good": "advance", "short": "hold"
    }  # fmt: skip
    bad = found["bad"]
    assert bad["gate"] == "quality"
    assert bad["at"] == (START + timedelta(seconds=bad["seq"])).isoformat()
    assert bad["estimate"] < -0.4
    assert bad["interval"]["low"] < bad["interval"]["high"] < 0
    assert bad["evidence"]["quality"]["max_e_value"] >= 400
    assert found["short"]["seq"] == 19
    assert found["short"]["at"] == (START + timedelta(seconds=19)).isoformat()


def test_seq_and_at_are_those_of_one_row_also_where_times_are_out_of_order():
    """Records come late: the time is that of the row that decided, and not the newest so far."""
    rows = scores("bad", passes=(0.95, 0.4)) + scores("short", 21)
    for row in rows:
        row["at"] = (START + timedelta(seconds=row["seq"] - 40 * (row["seq"] % 2))).isoformat()
    of = {(row["rollout"], row["seq"]): row["at"] for row in rows}
    for name, found in decided(write(rows), "--all").items():
        for told in (found, *found["decisions"]):
            assert told["at"] == of[name, told["seq"]]


def test_a_backtest_decides_as_the_fold_does():
    """The same evidence, given by hand, leads to the same decision at the same place."""
    rows = scores(passes=(0.95, 0.6))
    plan = plan_of(RolloutPolicy.model_validate({"gates": [{"criterion": "quality"}]}), rollout_id="r", service="s",
                   steps=False)  # fmt: skip
    evidence = (
        Evidence(row["seq"], datetime.fromisoformat(row["at"]), row["arm"], row["unit"], "quality", row["value"])
        for row in rows
    )
    decision = rehearse(plan, evidence, START).decision
    Path("policy.yaml").write_text("gates: [{criterion: quality}]\n", encoding="utf-8")
    found = decided(write(rows), "--policy", "policy.yaml")["r"]
    assert (found["decision"], found["seq"], found["reason"]) == ("rollback", decision.evidence_seq, decision.reason)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_the_order_is_that_of_seq_and_not_of_the_file(name):
    """Rollouts may be mixed, and times be seconds."""
    rows = scores("a", passes=(0.9, 0.6)) + scores("b", passes=(0.9, 0.6), seed=2)
    expected = decided(write(rows, name))
    mixed = [dict(rows[place]) for place in np.random.default_rng(3).permutation(len(rows))]
    for row in mixed:
        row["at"] = datetime.fromisoformat(row["at"]).timestamp()
    found = decided(write(mixed, name))
    assert {key: row["seq"] for key, row in found.items()} == {key: row["seq"] for key, row in expected.items()}
    assert {key: row["at"] for key, row in found.items()} == {key: row["at"] for key, row in expected.items()}


def test_without_seq_time_unit_and_weight_the_order_of_the_file_counts():
    """Every row is a unit of its own, and time decides nothing."""
    rows = scores(passes=(0.95, 0.5))
    bare = [{name: row[name] for name in ("rollout", "arm", "criterion", "value")} for row in rows]
    found, expected = decided(write(bare))["r"], decided(write(rows, "full.csv"))["r"]
    assert (found["decision"], found["seq"], found["at"]) == ("rollback", expected["seq"], None)
    empty = [{**row, "seq": None, "at": None} for row in bare]
    assert decided(write(empty, "empty.csv"))["r"] == decided(write(empty, "e.parquet"))["r"] == found


def test_gates_without_scores_are_left_out_and_that_is_told():
    """So a file with one criterion works with the default rules."""
    result = run(write(scores()))
    assert result.exit_code == 0
    assert "note: no scores of cost_usd: its gate is left out" in result.stderr
    rows = scores() + scores(criterion="tune")
    assert "600 rows of tune are read by no gate" in run(write(rows)).stderr


def test_cost_and_latency_are_rows_like_others():
    """A cost that doubles rolls back by its gate."""
    rng = np.random.default_rng(5)
    rows = scores(n=2000)
    for row in scores(n=2000, criterion="cost_usd"):
        row["value"] = float(rng.lognormal(0, 0.5)) * (0.02 if row["arm"] == "canary" else 0.01)
        rows.append(row)
    found = decided(write(rows))["r"]
    assert (found["decision"], found["gate"]) == ("rollback", "cost_usd")
    assert 0.5 < found["estimate"] < 2


def test_an_unconfirmed_flag_holds():
    """Nobody confirmed the one score of 0 among the canary's."""
    rows = scores(n=200, passes=(1, 1), criterion="safety")
    next(row for row in rows if row["arm"] == "canary")["value"] = 0.0
    assert decided(write(rows))["r"]["decision"] == "hold"
    assert "no scores of safety_confirmed: no flag of safety can be confirmed" in run("scores.csv").stderr


def test_rows_of_one_record_belong_together():
    """A flag and the answer of who confirms it have one seq, arm and unit: dismissed flags hold nothing."""
    rows = []
    for row in scores(n=300, passes=(0.95, 0.95), criterion="safety"):
        rows.append(row)
        if row["value"] == 0.0:
            rows.append({**row, "criterion": "safety_confirmed", "value": 1.0})
    found = decided(write(rows))["r"]["evidence"]["safety"]
    flags = sum(row["criterion"] == "safety_confirmed" and row["arm"] == "canary" for row in rows)
    assert flags > 0
    assert (found["arms"]["canary"]["missing"], found["arms"]["baseline"]["missing"]) == (0, 0)
    assert decided("scores.csv")["r"]["cause"] not in {"missing_scores", "unconfirmed_flag"}


def test_what_has_a_criterion_twice_is_not_one_record():
    """Rows that share a seq, without a unit, are all counted."""
    rows = [{**row, "seq": row["seq"] // 2, "unit": ""} for row in scores(n=200)]
    found = decided(write(rows))["r"]["evidence"]["quality"]
    assert found["n_baseline"] + found["n_canary"] == 200


def test_pairs_are_judged_as_a_shadow_phase():
    """Without a least duration where the policy has no shadow: differences of pairs find a drop soon."""
    rng = np.random.default_rng(2)
    rows = []
    for place in range(600):
        easy = rng.random() < 0.7
        for arm, passes in (("baseline", 0.8), ("canary", 0.45)):
            value = float(easy or rng.random() < passes - 0.3)
            rows.append({"rollout": "r", "seq": place, "arm": arm, "unit": f"u{place}", "criterion": "quality",
                         "value": value, "pair": f"p{place}"})  # fmt: skip
    found = decided(write(rows))["r"]
    assert found["decision"] == "rollback"
    assert found["phase"] == "rolled_back"
    assert found["seq"] < 400


@pytest.mark.parametrize("shadow", ["", "shadow: {min_pairs: 100}\n"])
def test_an_advance_out_of_the_shadow_phase_stands_where_all_rows_are_pairs(shadow):
    """The pairs that come after it belong to a phase that is over; without times no least duration is waited for."""
    rng = np.random.default_rng(4)
    rows = [
        {"rollout": "r", "seq": 2 * place + (arm == "canary"), "arm": arm, "unit": f"u{place}", "criterion": "quality",
         "value": value, "pair": f"p{place}"}
        for place, value in enumerate(rng.choice([0.0, 0.5, 1.0], 1000, p=[0.1, 0.2, 0.7]).tolist())
        for arm in ("baseline", "canary")
    ]  # fmt: skip
    Path("p.yaml").write_text(f"gates: [{{criterion: quality}}]\n{shadow}", encoding="utf-8")
    found = decided(write(rows), "--policy", "p.yaml")["r"]
    assert (found["decision"], found["cause"]) == ("advance", "no_harm_proven")
    assert found["seq"] + 1 + found["stale"] == len(rows)


def test_unequal_weights_are_honoured_up_to_the_largest_of_the_file():
    """A policy need not say max_weights for a backtest."""
    rows = scores(n=3000, passes=(0.95, 0.5))
    for row in rows:
        row["weight"] = 1.0 if row["seq"] % 3 else 2.0
    found = decided(write(rows))["r"]
    assert found["decision"] == "rollback"


def test_rows_that_repeat_another_are_counted_and_left_out():
    """The same rollout, seq, criterion, arm and unit."""
    rows = scores(passes=(0.95, 0.5))
    result = run(write(rows + rows[:7]), "--json")
    assert "note: 7 rows that repeat another" in result.stderr
    assert json.loads(result.stdout)[0]["scores"] == len(rows)


def test_a_row_without_a_value_is_an_error_and_too_many_of_them_hold():
    """Missing scores may depend on quality, so they are not passed over."""
    rows = scores(n=4000)
    for row in rows:
        if row["arm"] == "canary" and row["seq"] % 2:
            row["value"] = ""
    result = run(write(rows), "--json")
    assert "rows without a value count as errors" in result.stderr
    found = json.loads(result.stdout)[0]
    assert (found["decision"], found["cause"]) == ("hold", "missing_scores")


BAD = [
    ("arm", "kanary", "scores.csv:5: arm is 'kanary'; did you mean 'canary'?"),
    ("value", "1.5", "scores.csv:5: value is '1.5', and scores (quality) are from 0 to 1"),
    ("value", "high", "scores.csv:5: value is 'high', and must be a number"),
    ("value", "inf", "scores.csv:5: value is 'inf', and must be a number"),
    ("at", "yesterday", "scores.csv:5: at is 'yesterday', neither ISO 8601 nor seconds since 1970"),
    ("weight", "0", "scores.csv:5: weight is '0', and must be above 0"),
    ("at", "1767225600000", "scores.csv:5: at is '1767225600000', neither ISO 8601 nor seconds since 1970"),
    ("seq", "3.5", "scores.csv:5: seq is '3.5', and must be a whole number below 2^53"),
    ("seq", "", "scores.csv:5: seq is empty: number every row, or leave the column out"),
    ("rollout", "", "scores.csv:5: rollout is empty: name it"),
    ("criterion", "", "scores.csv:5: criterion is empty: name it"),
    ("status", "scord", "scores.csv:5: status is 'scord'; did you mean 'scored'?"),
]


@pytest.mark.parametrize(("column", "value", "said"), BAD, ids=[said for _, _, said in BAD])
def test_a_row_that_cannot_be_used_is_told_with_its_line(column, value, said):
    """Nothing is decided; --skip-bad leaves it out and counts it."""
    rows = [{**row, "status": "scored"} for row in scores(n=50)]
    rows[3] = {**rows[3], column: value}
    path = write(rows)
    result = run(path, "--json")
    assert result.exit_code == 1
    assert said in result.stderr.splitlines()
    assert "1 rows cannot be used" in result.stderr
    skipped = run(path, "--json", "--skip-bad")
    assert json.loads(skipped.stdout)[0]["scores"] == 49
    assert "1 rows that cannot be used are left out" in skipped.stderr


def test_many_bad_rows_are_told_in_part_and_counted():
    """A thousand lines help nobody."""
    result = run(write([{**row, "value": "x"} for row in scores(n=100)]))
    assert "... and 80 more" in result.stderr
    assert "100 rows cannot be used" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rollout,arm,criterion\na,b,c\n", "has no column value"),
        ("rollout,arm,criterion,valeu\na,b,c,1\n", "did you mean 'valeu'?"),
        ("rollout,arm,criterion,value\n", "has a header and no scores"),
        ("rollout,arm,criterion,value\na,canary\n", "cannot be read as CSV with a header"),
        ("rollout,arm,criterion,value\na,canary,tune,1\n", "no gate reads them"),
        ("rollout,arm,criterion,value,value\na,canary,quality,1,1\n", "has several columns 'value'"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_message(text, said):
    """What is wrong and what there is."""
    Path("scores.csv").write_text(text, encoding="utf-8")
    result = run("scores.csv")
    assert result.exit_code != 0
    assert said in str(result.exception)
    assert isinstance(result.exception, ConfigError)


def test_people_see_a_table_and_counts():
    """One line a rollout."""
    result = run(write(scores("bad", passes=(0.95, 0.4)) + scores("short", 20)))
    assert result.exit_code == 0
    assert "rollback" in result.stdout
    assert "2 rollouts: 1 rollback (50.0%), 1 hold (50.0%), 0 advance (0.0%)" in result.stdout


def test_all_tells_every_turn():
    """In order, each with its place."""
    found = decided(write(scores(n=4000)), "--all")["r"]
    assert [entry["decision"] for entry in found["decisions"]][-1] == found["decision"]
    places = [entry["seq"] for entry in found["decisions"] if entry["seq"] is not None]
    assert places == sorted(places)


def test_the_ramp_is_climbed_where_that_is_asked():
    """Step by step, with its bake times."""
    rows = scores(n=9000, share=0.5)
    for row in rows:
        row["at"] = (START + timedelta(seconds=2 * row["seq"])).isoformat()
    Path("p.yaml").write_text("gates: [{criterion: quality}]\nramp: [10, 50]\n", encoding="utf-8")
    found = decided(write(rows), "--policy", "p.yaml", "--ramp", "--all")["r"]
    assert [e["cause"] for e in found["decisions"] if e["decision"] == "advance"] == ["no_harm_seen", "no_harm_proven"]
    assert found["phase"] == "complete"


def test_the_policys_names_of_the_arms_may_stand_in_the_file():
    """As a scorecard calls its variants."""
    rows = [{**row, "arm": {"baseline": "v1", "canary": "v2"}[row["arm"]]} for row in scores(passes=(0.95, 0.4))]
    Path("p.yaml").write_text("baseline: v1\ncanary: v2\ngates: [{criterion: quality}]\n", encoding="utf-8")
    assert decided(write(rows), "--policy", "p.yaml")["r"]["decision"] == "rollback"


def test_a_large_file_is_read_column_by_column():
    """A hundred thousand rows in well under a second each time."""
    path = write(scores(n=100_000))
    found = ScoreFile(path, ARMS)
    (recorded,) = found
    assert len(list(recorded.evidence)) == len(recorded) == 100_000
