"""Fingerprints as people write them: fixed sets of prompts, and the application's own model settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from evalpipe.errors import ScorecardError
from evalpipe.scorecard.checks import Found, twice
from evalpipe.scorecard.criterion import Name, Text, Written, content_hash
from evalpipe.scorecard.document import Document
from evalpipe.scorecard.load import scorecard_files
from evalpipe.scorecard.policy import read_document
from evalpipe.scorecard.values import Duration
from evalpipe.scorecard.wording import worded

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class FingerprintPrompt(Written):
    """One prompt of the set."""

    name: Name = Field(description="Names the prompt; its answers are compared with its own earlier ones.")
    text: Text = Field(description="What the user says. Never what a real user said: it is sent again and again.")


class FingerprintModel(Written):
    """The model as the application calls it."""

    protocol: Literal["openai", "anthropic"] = Field(
        description="What the endpoint speaks: openai (chat completions; also gateways, vLLM, Ollama) or anthropic."
    )
    name: Text = Field(description="The model's name, as the application sends it.")
    base_url: str = Field(default="", description="Of the endpoint or gateway; the provider's own without it.")
    api_key: str = Field(
        default="",
        description="The NAME of the environment variable with the key; the provider's usual one without it.",
    )
    system: str = Field(default="", description="The application's system prompt.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Sent as they are, such as `{temperature: 0.2, max_tokens: 300}`."
    )
    logprobs: bool = Field(default=False, description="Ask for log-probabilities; only with `protocol: openai`.")


class FingerprintSet(Written):
    """A fixed set of prompts that is asked on a schedule."""

    name: Name = Field(description="What alert rules call it: `detect: fingerprint`, `params: {fingerprint: NAME}`.")
    service: Text = Field(description="Whose model it is.")
    environment: str = Field(default="", description="As in the service's releases.")
    variant: str = Field(default="", description="As in the service's releases.")
    model: FingerprintModel = Field(description="How the application calls its model.")
    every: Duration = Field(default=timedelta(hours=1), description="How often the whole set is asked.")
    repeats: int = Field(default=1, ge=1, le=10, description="How often each prompt is asked in a round.")
    prompts: list[FingerprintPrompt] = Field(
        min_length=1, max_length=200, description="About 20 show a change of model within three rounds."
    )

    @cached_property
    def definition(self) -> str:
        """Twelve hex digits of what is asked and how: another one begins a new reference."""
        return content_hash(self.model_dump(mode="json", exclude={"every"}, exclude_defaults=True))


class FingerprintFile(Written):
    """A file of ``fingerprints:``."""

    fingerprints: list[FingerprintSet] = Field(min_length=1, description="Each a set with a model and prompts.")


def load_fingerprints(path: Path | str) -> list[FingerprintSet]:
    """The sets in a file, or in the files of a folder by name.

    Raises:
        ScorecardError: one line for each problem in any of the files.
        ConfigError: there is no such file or folder.
    """
    found: list[FingerprintSet] = []
    problems: list[str] = []
    first: dict[str, str] = {}
    for file in scorecard_files(Path(path), "fingerprints", "EVALPIPE_FINGERPRINTS"):
        document = read_document(file)
        sets, said = _sets(document)
        for place, one in enumerate(sets):
            if first.setdefault(one.name, document.file) != document.file:
                message = f"{first[one.name]} has a fingerprint named {one.name!r} too; rename one of them"
                said.append(str(document.problem(("fingerprints", place, "name"), message)))
        problems += said
        found += sets
    if problems:
        raise ScorecardError("\n".join(problems))
    return found


def _sets(document: Document) -> tuple[list[FingerprintSet], list[str]]:
    try:
        made = FingerprintFile.model_validate(document.value).fingerprints
    except ValidationError as error:
        found = list(worded(error, FingerprintFile))
        made = []
    else:
        found = list(_problems(made))
    said = [str(problem) for problem in document.placed(found)]
    return ([] if said else made), said


def _problems(sets: list[FingerprintSet]) -> list[Found]:
    found = list(twice("fingerprints", {i: {"name": s.name} for i, s in enumerate(sets)}, "name", "sets are named"))
    for place, one in enumerate(sets):
        loc = ("fingerprints", place)
        prompts = {i: {"name": prompt.name} for i, prompt in enumerate(one.prompts)}
        found += twice("prompts", prompts, "name", "prompts are named", loc)
        found += [Found((*loc, "model", field), said) for field, said in _model_problems(one.model)]
        if one.model.logprobs and one.model.protocol != "openai":
            found.append(Found((*loc, "model", "logprobs"), "anthropic gives no log-probabilities; leave it out"))
        if one.every < timedelta(minutes=1):
            found.append(Found((*loc, "every"), "must be 1m or more: each round asks and pays for every prompt"))
        if taken := {"model", "messages", "system", "stream"} & one.model.settings.keys():
            word = min(taken)
            found.append(Found((*loc, "model", "settings", word), "is set by the fingerprint itself; leave it out"))
    return found


def _model_problems(model: FingerprintModel) -> Iterator[tuple[str, str]]:
    # What was written may be the key itself: it is not repeated.
    if model.api_key and not _VARIABLE.fullmatch(model.api_key):
        yield "api_key", "is not the name of an environment variable: write its NAME, and never the key itself"
    url = urlsplit(model.base_url)
    if model.base_url and (url.scheme not in {"http", "https"} or not url.hostname):
        yield "base_url", f"{model.base_url!r} is no URL; write https://host/v1, or leave it out for the provider's own"
