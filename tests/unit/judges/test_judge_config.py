"""What people write to name a judge."""

from __future__ import annotations

import dataclasses

import pytest

from evalpipe.errors import ConfigError
from evalpipe.judges.base import JudgeConfig
from evalpipe.judges.config import judge_config, open_judge, parse_judge
from evalpipe.settings import Settings


@pytest.mark.parametrize(
    ("text", "model", "base_url", "options", "version"),
    [
        ("openai:gpt-x", "gpt-x", "", {}, "openai:gpt-x"),
        (
            "openai:qwen2.5:1.5b@http://127.0.0.1:11434/v1",
            "qwen2.5:1.5b",
            "http://127.0.0.1:11434/v1",
            {},
            "openai:qwen2.5:1.5b@127.0.0.1:11434",
        ),
        (
            "openai:org/m@2@https://me:pw@llm.example/v1?seed=7&usd_per_mtok=0",
            "org/m@2",
            "https://me:pw@llm.example/v1",
            {"seed": 7, "usd_per_mtok": 0},
            "openai:org/m@2@llm.example?seed=7",
        ),
        (
            "openai:m@http://gw:8080/team-a/v1/",
            "m",
            "http://gw:8080/team-a/v1/",
            {},
            "openai:m@gw:8080/team-a/v1",
        ),
        (
            'fake:x?rules={"refund": "fail"}&latency_ms=5',
            "x",
            "",
            {"rules": {"refund": "fail"}, "latency_ms": 5},
            "fake:x?rules=%7B%22refund%22%3A%22fail%22%7D",
        ),
    ],
)
def test_a_judge_is_written_as_one_line(text: str, model: str, base_url: str, options: object, version: str) -> None:
    """Provider, model, endpoint and options; the version has what changes grades, and no secret."""
    config = parse_judge(text)
    assert (config.model, config.base_url, config.options) == (model, base_url, options)
    assert open_judge(config).version == version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpt-x", "EVALPIPE_JUDGE is 'gpt-x', which has no provider; write provider:model"),
        ("opnai:gpt-x", "no judge named 'opnai'; did you mean 'openai'?"),
        ("openai:", "names no model"),
        ("openai:@http://localhost/v1", "names no model"),
        ("openai:qwen@127.0.0.1:8080/v1", "must begin with http:// or https://"),
        ("openai:qwen@http://", "must begin with http:// or https://"),
    ],
)
def test_a_wrong_name_says_what_to_write(text: str, message: str) -> None:
    """The message has the place, the value and the right form."""
    with pytest.raises(ConfigError) as caught:
        parse_judge(text, where="EVALPIPE_JUDGE")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("openai:m?temperature=3", "option 'temperature': must be at most 2, not 3"),
        ("openai:m?temperature=hot", "option 'temperature': must be a number, not 'hot'"),
        ("openai:m?structured=xml", "option 'structured': 'xml' is not one of"),
        ("anthropic:m?temperature=0", "option 'temperature': no such option (the options are: usd_per_mtok, rpm,"),
        ("openai:m?usd_per_mtok=-1", "option 'usd_per_mtok': must be at least 0, not -1"),
        ("openai:m?usd_per_mtok=cheap", "option 'usd_per_mtok': 'cheap' is no price: write it as 0.2/0.75"),
        ("openai:m?usd_per_mtok=1/2/3", "option 'usd_per_mtok': '1/2/3' is no price"),
        (
            "openai:m?usd_per_day=lots",
            "must be a number, not 'lots' (text). It is: US dollars that this judge may cost",
        ),
        ("fake:m?fail_rate=2", "option 'fail_rate': must be at most 1, not 2"),
        ("fake:m?latency=300", "no such option; did you mean 'latency_ms'? (the options are: usd_per_mtok, rpm,"),
    ],
)
def test_a_wrong_option_is_named_with_what_it_may_be(text: str, option: str) -> None:
    """Options are checked when the judge is made, before any call, and told in words."""
    with pytest.raises(ConfigError) as caught:
        open_judge(parse_judge(text))
    assert option in str(caught.value)


def test_the_settings_endpoint_and_key_belong_to_the_default_judge() -> None:
    """A judge that a scorecard names is never sent another judge's key, nor sent to its endpoint."""
    settings = dataclasses.replace(
        Settings(), judge="openai:m", judge_base_url="http://llm.example/v1", judge_api_key="sk-x", judge_timeout_s=7
    )
    default, other = judge_config(settings), judge_config(settings, "anthropic:n")
    assert (default.base_url, default.api_key, default.timeout_s) == ("http://llm.example/v1", "sk-x", 7)
    assert (other.provider, other.base_url, other.api_key, other.timeout_s) == ("anthropic", "", "", 7)
    assert "sk-x" not in repr(default)


def test_without_a_judge_the_message_names_the_variable() -> None:
    """No default judge is a setting that a person forgot."""
    with pytest.raises(ConfigError, match="set EVALPIPE_JUDGE"):
        judge_config(Settings())


@pytest.mark.parametrize(("provider", "variable"), [("openai", "OPENAI_BASE_URL"), ("anthropic", "ANTHROPIC_BASE_URL")])
def test_an_endpoint_of_the_environment_shows_in_the_version(
    provider: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries follow that variable, so the grades come from there."""
    monkeypatch.setenv(variable, "https://eu.example/v1")
    assert open_judge(JudgeConfig(provider, "m")).version == f"{provider}:m@eu.example"
