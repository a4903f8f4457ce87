"""What is shipped for Prometheus and Grafana, in the real Prometheus and Alertmanager, on metrics of a real API."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema_rs
import pytest
import uvicorn
import yaml
from grafana_schema import DASHBOARD
from recording import Recorder, always
from sqlalchemy import insert, select
from stages import message

from evalpipe.api.app import make_api
from evalpipe.record import Record, Release
from evalpipe.settings import Settings
from evalpipe.sketch import Sketch
from evalpipe.store import evaluations, exports, judge_states, silences
from evalpipe.store.evaluations import Evaluation
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import alerts, baselines, print_sets
from evalpipe.wiring import Wiring, now

EXAMPLES = Path(__file__).parents[2] / "examples"
RULES = EXAMPLES / "prometheus" / "evalpipe.rules.yaml"
DASHBOARD_FILE = EXAMPLES / "grafana" / "evalpipe.json"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
without = pytest.mark.skipif(
    not (PROMTOOL and PROMETHEUS and ALERTMANAGER),
    reason="no Prometheus here: apt-get install prometheus prometheus-alertmanager",
)
PLACE = {"service": "desk", "environment": "production", "variant": "baseline"}
CARD = """
name: desk
match: {service: desk}
criteria:
  - {name: brief, heuristic: length, params: {max: 5}}
  - {name: grounded, judge: {kind: boolean, rubric: "Is it grounded?"}}
alerts:
  - {name: too-long, criterion: brief, mean: {below: 0.9}, window: 1h, min_sample: 2, severity: SEV2}
rollout:
  gates:
    - {criterion: brief, margin: 5%, min_canary: 30}
"""
PROMETHEUS_CONFIG = """
global: {scrape_interval: 500ms, evaluation_interval: 500ms}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: evalpipe
    authorization: {credentials: key}
    static_configs: [{targets: ["API"]}]
alerting:
  alertmanagers:
    - static_configs: [{targets: ["ALERTMANAGER"]}]
"""
ALERTMANAGER_CONFIG = """
route:
  {receiver: both, group_by: [alertname, rule], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}
receivers:
  - name: both
    webhook_configs:
      - {url: "http://API/v1/alertmanager", http_config: {authorization: {credentials: key}}}
      - {url: "RECORDER"}
"""


# --------------------------------------------------------------------------------------------------------- the files


@without
def test_the_rules_load_and_do_what_their_own_tests_say() -> None:
    """As whoever changes them would check them."""
    for command in (["check", "rules", RULES.name], ["test", "rules", "evalpipe.rules.test.yaml"]):
        done = subprocess.run(
            [str(PROMTOOL), *command], cwd=RULES.parent, check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_of_the_rules_has_a_test_a_severity_and_words() -> None:
    """A rule that nobody has seen firing is a guess."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    shipped = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    tested = yaml.safe_load((RULES.parent / "evalpipe.rules.test.yaml").read_text())["tests"]
    fires = {one["alertname"] for test in tested for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert fires == set(shipped)
    for rule in shipped.values():
        assert rule["labels"]["severity"]
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_has_the_shape_that_grafana_reads() -> None:
    """And no two panels overlap, have one id, or ask another data source than the one chosen."""
    dashboard = json.loads(DASHBOARD_FILE.read_text())
    jsonschema_rs.validator_for(DASHBOARD).validate(dashboard)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    asked = [target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert set(asked) == {"${datasource}"}


def test_the_rules_and_the_dashboard_ask_for_metrics_that_there_are() -> None:
    """The operators' page names each, and is held to the API by another test."""
    page = (EXAMPLES.parent / "docs" / "operating.md").read_text()
    for file in (RULES, DASHBOARD_FILE):
        asked = set(re.findall(r"\bevalpipe_[a-z_]+", file.read_text()))
        assert {name for name in asked if f"`{name}`" not in page} == set()


# ------------------------------------------------------------------------------------------------- the real programs


class Fleet:
    """A database in which everything has happened, its API, and a Prometheus that scrapes it.

    Attributes:
        store: the database.
        url: of the Prometheus.
        recorder: hears what Alertmanager tells.
    """

    def __init__(self, store: Store, url: str, recorder: Recorder) -> None:
        self.store, self.url, self.recorder = store, url, recorder

    def query(self, expression: str, **window: float) -> list[dict[str, Any]]:
        """What Prometheus answers; over a window if one is given."""
        asked = urllib.parse.urlencode({"query": expression, **window})
        kind = "query_range" if window else "query"
        with urllib.request.urlopen(f"{self.url}/api/v1/{kind}?{asked}", timeout=10) as answer:
            document = json.load(answer)
        assert document["status"] == "success"
        found: list[dict[str, Any]] = document["data"]["result"]
        return found

    def told(self) -> dict[str, dict[str, str]]:
        """The labels of all alerts that Alertmanager told of, by alert and rule or judge."""
        found = [alert["labels"] for seen in self.recorder.seen for alert in seen.json["alerts"]]
        return {f"{of['alertname']} {of.get('rule') or of.get('judge', '')}".strip(): of for of in found}


@pytest.fixture(scope="module")
def fleet(migrated_file: Path, redis_server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All of it, started once."""
    folder = tmp_path_factory.mktemp("fleet")
    url = f"sqlite:///{shutil.copy(migrated_file, folder / 'evalpipe.db')}"
    (folder / "desk.yaml").write_text(CARD)
    settings = Settings(home=folder, database_url=url, redis_url=redis_server_url, scorecards=folder / "desk.yaml",
                        judge="fake:test", api_keys=("key",), otlp_endpoint="http://127.0.0.1:1")  # fmt: skip
    wiring = Wiring(settings)
    fill(wiring)
    with serving(settings) as api, Recorder(always(200)) as recorder:
        config = ALERTMANAGER_CONFIG.replace("API", api).replace("RECORDER", recorder.url)
        with alertmanager(folder, config) as desk, prometheus(folder, api, desk) as asked:
            yield Fleet(wiring.store, asked, recorder)
    wiring.close()


def fill(wiring: Wiring) -> None:
    """Let everything happen once that a metric counts."""
    wiring.queue.client.flushdb()
    at = now()
    outputs = [("baseline", "Yes."), ("baseline", "This is an answer of more than five words."), ("canary", "No.")] * 2
    found = [
        Record(
            record_id=f"r{i}", trace_id=f"t{i}", release=Release(service="desk", variant=variant), feature="refunds",
            output=output, probability=1.0, captured_at=at,
        )
        for i, (variant, output) in enumerate(outputs)
    ]  # fmt: skip
    assert wiring.ingest(*message(found), at).new == len(found)
    asyncio.run(wiring.judge.drain(5.0, lambda: None))
    wiring.measure(json.dumps(metered(at)), at)
    wiring.queue.nudge("judge")
    wiring.evaluate(now())
    wiring.notify(now())
    with wiring.store.begin() as tx:
        by_hand(tx)


def metered(at: Any) -> dict[str, Any]:
    """A meter message of a hundred calls."""
    took = Sketch()
    for ms in range(100, 200):
        took.add(ms)
    row = {
        "service": "desk", "release": {"variant": "baseline", "environment": "production"}, "feature": "refunds",
        "hour": int(at.timestamp() // 3600) * 3600, "calls": 100, "errors": 1, "sampled": 4, "not_sampled": 96,
        "enqueued": 4, "shed": {"buffer": 1, "queue": 0}, "input_tokens": 900, "output_tokens": 90, "cost_usd": 0.5,
        "screened": 100, "refusals": 2, "latency": took.to_wire(), "ttft": took.to_wire(), "tpot": took.to_wire(),
    }  # fmt: skip
    return {"schema": 1, "process": "p1", "seq": 1, "sent_at": at.timestamp(), "rows": [row]}


def by_hand(tx: Transaction) -> None:
    """What the stages would need hours for."""
    at = now()
    found = evaluations.last(tx)
    assert found is not None
    evaluations.note(tx, Evaluation(at, found.seconds, found.rules, found.alerts, {"desk/broken": 2}))
    judge_states.stop(tx, "openai:gone", "the key is wrong", "ada", at)
    mute = silences.Wanted({"rule": "quiet"}, "ada", "known", timedelta(hours=1))
    silences.add(tx, mute, at)
    exports.owe(tx, [("r1", "brief", "v1", "e1")], at)
    dated = {"since_at": at, "until_at": at, "captured_at": at}
    tx.connection.execute(insert(baselines).values(
        name="b1", **PLACE, **dated, actor="ada", epochs={}, body={}, profiles={},
    ))  # fmt: skip
    tx.connection.execute(insert(print_sets).values(name="set", **PLACE, reference_at=at, round_at=at))
    row = {"kind": "quality", "severity": "SEV3", "status": "firing", "state": {}, "updated_at": at, **PLACE}
    tx.connection.execute(insert(alerts), [
        {"alert_id": "1", "rule": "quiet", "muted_by": "sil_1", "dry_run": 0, **row},
        {"alert_id": "2", "rule": "tried", "muted_by": "", "dry_run": 1, **row},
    ])  # fmt: skip


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Host and port of the API on a real socket."""
    api = uvicorn.Server(uvicorn.Config(make_api(settings), port=0, log_level="error", lifespan="on"))
    thread = Thread(target=api.run, daemon=True)
    thread.start()
    until(lambda: api.started)
    try:
        yield f"127.0.0.1:{api.servers[0].sockets[0].getsockname()[1]}"
    finally:
        api.should_exit = True
        thread.join(20)


@contextmanager
def prometheus(folder: Path, api: str, desk: str) -> Iterator[str]:
    """The URL of a real Prometheus with the shipped rules, that waits for nothing and has scraped a few times."""
    rules = re.sub(r"\bfor: \w+", "for: 0s", RULES.read_text())
    (folder / "rules.yaml").write_text(rules)
    (folder / "prometheus.yml").write_text(PROMETHEUS_CONFIG.replace("ALERTMANAGER", desk).replace("API", api))
    command = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with running(str(PROMETHEUS), command, folder / "prometheus.log") as url:
        yield url


@contextmanager
def alertmanager(folder: Path, config: str) -> Iterator[str]:
    """Host and port of a real Alertmanager."""
    (folder / "alertmanager.yml").write_text(config)
    command = [f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/am", "--cluster.listen-address="]
    with running(str(ALERTMANAGER), command, folder / "alertmanager.log") as url:
        yield url.removeprefix("http://")


@contextmanager
def running(program: str, options: list[str], log: Path) -> Iterator[str]:
    """The URL of a program, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program, *options, f"--web.listen-address={url}"]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            until(lambda: is_ready(f"http://{url}/-/ready"))
            yield f"http://{url}"
        finally:
            process.terminate()
            process.wait(20)


def is_ready(url: str) -> bool:
    """Whether it answers."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def until(holds: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for it, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@without
def test_prometheus_fires_into_alertmanager_and_nothing_goes_round(fleet: Fleet) -> None:
    """Health and evalpipe's own alerts arrive, once each; back in evalpipe only the former are news."""
    until(lambda: {"EvalpipeJudgeAway openai:gone", "EvalpipeAlert too-long"} <= fleet.told().keys())
    mirrored = fleet.told()["EvalpipeAlert too-long"]
    assert mirrored.items() >= {**PLACE, "severity": "error", "sev": "2", "kind": "quality"}.items()
    assert fleet.told()["EvalpipeRuleFails broken"]["scorecard"] == "desk"

    def taken_in() -> list[str]:
        with fleet.store.read() as tx:
            return list(tx.connection.scalars(select(alerts.c.rule).where(alerts.c.kind == "external")))

    until(lambda: {"EvalpipeJudgeAway", "EvalpipeRuleFails"} <= set(taken_in()))
    until(lambda: fleet.query('evalpipe_alert_state{kind="external", state="firing"} == 1'))
    assert "EvalpipeAlert" not in taken_in()
    firing = fleet.query('ALERTS{alertname="EvalpipeAlert", alertstate="firing"}')
    assert {sample["metric"]["rule"] for sample in firing} == {"too-long"}
    assert fleet.query('evalpipe_alert_state{rule=~"quiet|tried", state="firing"} == 1')
    assert {name for name in fleet.told() if name.endswith(("quiet", "tried"))} == set()


@without
def test_every_query_of_the_dashboard_finds_data(fleet: Fleet) -> None:
    """Panels, variables and annotations, with all services chosen."""
    dashboard = json.loads(DASHBOARD_FILE.read_text())
    expressions = [
        (panel["title"], target["expr"], target["range"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    expressions += [(one["name"], one["expr"], True) for one in dashboard["annotations"]["list"]]
    for variable in dashboard["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]):
            expressions.append((variable["name"], f"count by ({found[2]}) ({found[1]})", False))
    until(lambda: fleet.query("count_over_time(evalpipe_database_up[1m]) >= 3"))
    empty = []
    for title, expression, is_range in expressions:
        chosen = re.sub(r"\$(service|environment|variant|criterion)\b", ".*", expression)
        asked = chosen.replace("$__rate_interval", "1m").replace("$__range", "10m")
        assert "$" not in asked, title
        window = {"start": time.time() - 5, "end": time.time(), "step": 1} if is_range else {}
        if not fleet.query(asked, **window):
            empty.append((title, asked))
    assert empty == []
    assert len(expressions) > 50


@without
def test_latencies_are_the_quantiles_of_all_calls(fleet: Fleet) -> None:
    """From the sketches of the hooks, to half a percent."""
    until(lambda: fleet.query("evalpipe_latency_seconds"))
    found = {s["metric"]["quantile"]: float(s["value"][1]) for s in fleet.query("evalpipe_latency_seconds")}
    assert found == pytest.approx({"0.5": 0.1495, "0.95": 0.194, "0.99": 0.198}, rel=0.006)
    assert fleet.query("evalpipe_evaluation_rules")[0]["value"][1] == "1"
