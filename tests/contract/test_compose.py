"""The fleet's files against what they start: commands, variables, copied files; no engine is needed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import typer
import yaml

from evalpipe import embedded
from evalpipe.cli.app import app
from evalpipe.pipeline import oversee
from evalpipe.settings import Settings
from evalpipe.store.queue import STAGES

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "worker.Dockerfile").read_text()
IGNORE = (ROOT / "worker.Dockerfile.dockerignore").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()
HOOK = {"EVALPIPE_SAMPLE_RATE", "EVALPIPE_CAPTURE"}
"""Of the hook in the API."""
GIVEN = {"POSTGRES_PASSWORD": "pg-secret", "REDIS_PASSWORD": "redis-secret", "EVALPIPE_API_KEYS": "one two"}


def rendered(value: Any) -> Any:
    """Compose's interpolation, as far as the file uses it: ``${NAME:-default}`` and ``${NAME:?message}``."""
    if isinstance(value, dict):
        return {key: rendered(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rendered(entry) for entry in value]
    if not isinstance(value, str):
        return value

    def expand(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if operator == ":?":
            return GIVEN[name]
        assert operator == ":-", f"${{{name}}} has neither a default nor a message"
        return GIVEN.get(name, rest)

    return re.sub(r"\$\{(\w+)(:-|:\?)?([^}]*)\}", expand, value)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as compose would start them with the secrets given."""
    found: dict[str, Any] = rendered(yaml.safe_load(COMPOSE))["services"]
    return found


def ours(services: dict[str, Any]) -> dict[str, Any]:
    """The services that run this project's image."""
    return {name: service for name, service in services.items() if "build" in service}


def parse(arguments: list[str]) -> dict[str, Any]:
    """What the command line understands; an unknown command or option raises."""
    group = typer.main.get_command(app)
    name, *rest = arguments
    command = group.commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, list(rest)) as context:
        return dict(context.params)


def variables_read() -> set[str]:
    """Every EVALPIPE_* variable that settings and worker read."""

    class Recorder(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            self[name] = ""
            return default

    recorder = Recorder()
    Settings.from_env(recorder)
    worker = (ROOT / "evalpipe" / "worker.py").read_text()
    return set(recorder) | set(re.findall(r'"(EVALPIPE_[A-Z_]+)"', worker))


def test_every_command_is_one_that_the_command_line_knows(services):
    """Names, options and their types."""
    for name, service in ours(services).items():
        assert parse(service["command"]) is not None, name
    assert parse(["worker", "--queues", "judge", "--processes", "2"])["processes"] == 2


def test_the_workers_serve_every_stage_once(services):
    """A stage that nobody serves would only be noticed in production."""
    served = [
        stage
        for service in ours(services).values()
        if service["command"][0] == "worker"
        for stage in parse(service["command"])["queues"].split(",")
    ]
    assert sorted(served) == sorted(STAGES)


def test_every_variable_that_is_set_is_one_that_is_read(services):
    """A variable with a typing error would silently do nothing."""
    known = variables_read() | HOOK
    for name, service in ours(services).items():
        used = {variable for variable in service["environment"] if variable.startswith("EVALPIPE_")}
        assert used <= known, f"{name}: {used - known}"
    assert set(re.findall(r"\b(EVALPIPE_[A-Z_]+)", COMPOSE)) <= known
    assert set(re.findall(r"\b(EVALPIPE_[A-Z_]+)", DOCKERFILE)) <= known


def test_every_setting_that_alerting_needs_reaches_the_workers_that_read_it(services):
    """A file that is named in .env and never reaches its worker would alert nobody."""
    readers = {
        "EVALPIPE_ALERTS": "worker-decide",
        "EVALPIPE_CHANNELS": "worker-decide",
        "EVALPIPE_URL": "worker-decide",
        "EVALPIPE_FINGERPRINTS": "worker-judge",
        "EVALPIPE_EMBEDDINGS": "worker-ingest",
        "EVALPIPE_OTLP_ENDPOINT": "worker-ingest",
    }
    for variable, name in readers.items():
        assert variable in services[name]["environment"], variable
        assert variable in services["doctor"]["environment"], variable


def test_the_settings_that_compose_gives_can_be_read(services):
    """Every process's environment makes settings, with the servers of this file."""
    for service in ours(services).values():
        settings = Settings.from_env(service["environment"])
        assert settings.database_url == "postgresql+psycopg://evalpipe:pg-secret@postgres:5432/evalpipe"
        assert settings.redis_url == "redis://:redis-secret@redis:6379/0"
    assert Settings.from_env(services["api"]["environment"]).api_keys == ("one", "two")


def test_secrets_have_no_default_and_go_only_where_they_are_needed(services):
    """A missing secret stops the start with a message; a judge's key is no business of the API."""
    for name in GIVEN:
        assert re.search(rf"\$\{{{name}:\?[^}}]*set {name} in \.env", COMPOSE), name
        assert not re.search(rf"\$\{{{name}(:-|\}})", COMPOSE), name
    holders = {
        "EVALPIPE_API_KEYS": {"api"},
        "EVALPIPE_API_INTAKE_KEYS": {"api"},
        "EVALPIPE_API_LABEL_KEYS": {"api"},
        "EVALPIPE_API_GATE_KEYS": {"api"},
        "EVALPIPE_JUDGE_API_KEY": {"worker-judge", "doctor"},
        "OPENAI_API_KEY": {"worker-judge", "doctor"},
        "ANTHROPIC_API_KEY": {"worker-judge", "doctor"},
        "EVALPIPE_WEBHOOK_SECRET": {"worker-decide", "doctor"},
        "EVALPIPE_OTLP_HEADERS": {"worker-decide", "doctor"},
        "EVALPIPE_EMBEDDINGS_API_KEY": {"worker-ingest", "worker-decide", "worker-judge", "doctor"},
    }
    for variable, names in holders.items():
        assert {name for name, s in services.items() if variable in s.get("environment", {})} == names


def test_dependencies_wait_for_what_they_need(services):
    """Nothing starts before the database is migrated and Redis answers; each condition can come true."""
    for name, service in ours(services).items():
        for other, how in service["depends_on"].items():
            if how["condition"] == "service_healthy":
                assert services[other]["healthcheck"]["test"], name
            else:
                assert (how["condition"], services[other]["restart"]) == ("service_completed_successfully", "no"), name
        if name != "migrate":
            assert set(service["depends_on"]) == {"redis", "migrate"}, name


def test_images_are_named_without_a_registry_and_with_a_version(services):
    """Pulled from wherever the engine is told to pull from."""
    for name in ("postgres", "redis"):
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:\d+", services[name]["image"])
    assert re.search(r"^FROM python:\$\{PYTHON\}-slim$", DOCKERFILE, re.MULTILINE)


def test_what_must_last_is_on_volumes(services):
    """Database and queue survive `docker compose down`."""
    declared = yaml.safe_load(COMPOSE)["volumes"]
    for name in ("postgres", "redis"):
        (volume,) = services[name]["volumes"]
        assert volume.split(":")[0] in declared


def test_the_queues_server_takes_its_options_and_keeps_what_it_holds(services, tmp_path):
    """The very options on a real Valkey: a password, an append-only file, and no eviction."""
    program, *options = services["redis"]["command"]
    assert program == "valkey-server"
    url_port = embedded._free_port()
    binary = embedded._binary()
    with (tmp_path / "log").open("wb") as log:
        server = embedded.Supervised([str(binary), *options, "--port", str(url_port)], folder=tmp_path, log=log)
        try:
            password = services["redis"]["environment"]["REDISCLI_AUTH"]
            client = redis.Redis(port=url_port, password=password, socket_connect_timeout=5)
            for _ in range(100):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    subprocess.run(["sleep", "0.05"], check=True)
            wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction", "save": "", "maxmemory": "0"}
            assert {name: client.config_get(name)[name] for name in wanted} == wanted
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=url_port).ping()
            client.close()
        finally:
            server.stop()


# worker.Dockerfile


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of each, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_copies_only_what_exists_and_what_its_ignore_file_lets_through():
    """A build fails late and far away otherwise."""
    allowed = {line[1:] for line in IGNORE.splitlines() if line.startswith("!")}
    copied = set()
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from="):
            copied |= {source.removeprefix("./") for source in shlex.split(rest)[:-1]}
    assert copied == allowed
    missing = [source for source in copied if not (ROOT / source).exists()]
    assert not missing


def test_the_wheel_is_built_from_what_is_copied():
    """Every path that the build needs is copied before it."""
    project = (ROOT / "pyproject.toml").read_text()
    included = re.findall(r'^"(\w+)" = "evalpipe/_\w+"$', project, re.MULTILINE)
    readme = re.search(r'^readme = "(.+)"$', project, re.MULTILINE)
    assert readme is not None
    for path in [*included, readme[1], "LICENSE", "evalpipe"]:
        assert re.search(rf"^COPY .*\b{re.escape(path)}\b", DOCKERFILE, re.MULTILINE), path


def test_the_image_runs_as_nobody_special_in_exec_form_and_holds_no_secret():
    """Signals reach the process, root is not needed, and nothing leaks from a layer."""
    final = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    found = dict(final)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", found["USER"])
    assert json.loads(found["ENTRYPOINT"]) == ["evalpipe"]
    assert parse(json.loads(found["CMD"]))["host"] == "0.0.0.0"
    assert isinstance(json.loads(found["HEALTHCHECK"].partition("CMD ")[2]), list)
    assert found["STOPSIGNAL"] == "SIGTERM"
    given = " ".join(rest for name, rest in instructions() if name in {"ENV", "ARG"})
    assert not re.search(r"key|secret|password|token", given, re.IGNORECASE)


def test_the_image_and_compose_ask_the_same_of_a_healthy_api(services):
    """One question, and the port that the API listens on."""
    healthcheck = dict(instructions())["HEALTHCHECK"]
    assert json.loads(healthcheck.partition("CMD ")[2]) == services["api"]["healthcheck"]["test"][1:]
    port = parse(services["api"]["command"])["port"]
    assert f":{port}/readyz" in healthcheck
    assert services["api"]["ports"][0].endswith(f":{port}")
    assert dict(instructions())["EXPOSE"] == str(port)


# docs/operating.md


def test_the_operators_page_names_every_variable():
    """Also those that compose does not set."""
    missing = [name for name in sorted(variables_read()) if f"`{name}`" not in OPERATING]
    assert not missing


def test_the_operators_page_names_no_command_that_does_not_exist():
    """Each `evalpipe ...` on it parses as far as its name and its options."""
    group = typer.main.get_command(app)
    for line in re.findall(r"`evalpipe ([a-z][^`]*)`", OPERATING):
        words = line.split()
        command: Any = group.commands[words.pop(0)]  # type: ignore[attr-defined]
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        unknown = [word for word in words if word.startswith("--") and word not in known]
        assert not unknown, line


def test_the_operators_page_starts_the_workers_that_compose_starts(services):
    """Each with the same queues: a stage that is missing there is served by nobody."""
    told = dict(re.findall(r"^\| (worker-\w+) \| `evalpipe (worker --queues [a-z,]+)`", OPERATING, re.MULTILINE))
    started = {name: s["command"] for name, s in ours(services).items() if s["command"][0] == "worker"}
    assert {name: parse(command.split())["queues"] for name, command in told.items()} == {
        name: parse(command)["queues"] for name, command in started.items()
    }


def test_the_operators_page_says_what_to_do_about_every_alert_about_judges():
    """With the severity that it has."""
    told = dict(re.findall(r"`(judge-[a-z-]+)`(?=[^|]*\((SEV\d)\) \|)", OPERATING))
    assert told == oversee._SEVERITIES
