"""The fingerprint of a model: what counts as a change of its behaviour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from evalpipe.detectors.fingerprint import Fingerprint, FingerprintParams
from evalpipe.detectors.view import PrintRun

AT = datetime(2026, 3, 1, tzinfo=UTC)
PROMPTS = 20


class Prints:
    """A view with nothing but runs."""

    def __init__(self, runs: Sequence[PrintRun]) -> None:
        self.runs = runs
        self.asked = 0

    def prints(self, name: str, since: datetime) -> Sequence[PrintRun]:
        """All of them."""
        self.asked += 1
        return self.runs


def runs(seed: int, rounds: int, *, change: str = "", start: int = 12, model: str = "m-1") -> list[PrintRun]:
    """Answers of a model at a temperature above 0; from round ``start`` on it behaves otherwise."""
    rng = np.random.default_rng(seed)
    lengths, centres = rng.uniform(100, 600, PROMPTS), rng.standard_normal((PROMPTS, 16))
    direction = rng.standard_normal(16)
    found = []
    for number in range(rounds):
        for prompt in range(PROMPTS):
            changed = change and number >= start
            length = lengths[prompt] * np.exp(0.15 * rng.standard_normal())
            vector = centres[prompt] + 0.5 * rng.standard_normal(16)
            refuses = rng.random() < 0.01
            if changed:
                length *= 1.3 if change == "length" else 1.0
                vector = vector + (1.2 * direction if change == "meaning" else 0.0)
                refuses = refuses or (change == "refusals" and rng.random() < 0.25)
            vector /= np.linalg.norm(vector)
            found.append(
                PrintRun(
                    prompt=f"p{prompt}",
                    at=AT + number * timedelta(hours=1),
                    traits={"chars": float(round(length)), "refusal": "yes" if refuses else "no"},
                    model=model,
                    fingerprint="fp-1",
                    embedding=tuple(float(x) for x in vector),
                )
            )
    return found


def look(found: Sequence[PrintRun], **params: object):
    """What the detector says of these runs."""
    made = FingerprintParams.model_validate({"fingerprint": "support", **params})
    return Fingerprint(made).look(Prints(found), {})  # type: ignore[arg-type]


def test_nothing_can_be_told_before_the_reference_is_complete() -> None:
    """Unknown is not a change."""
    assert look([])[1].violated is None
    _, finding = look(runs(1, 12))
    assert finding.violated is None
    assert "12 of 12 rounds" in finding.reason


def test_a_model_that_behaves_as_before_raises_no_alarm() -> None:
    """At one false alarm a month of hourly rounds, forty looks are calm."""
    assert not any(look(runs(seed, 15))[1].violated for seed in range(40))


def test_each_kind_of_change_is_found_within_three_rounds() -> None:
    """Longer answers, more refusals, another meaning: each names itself."""
    for change, word in (("length", "chars"), ("refusals", "refusal"), ("meaning", "embeddings")):
        found = [look(runs(seed, 15, change=change))[1] for seed in range(5)]
        assert all(f.violated for f in found), change
        assert all(word in f.reason for f in found), found[0].reason


def test_another_model_behind_the_name_is_told_at_once() -> None:
    """One round is enough: this is no matter of chance."""
    found = [*runs(1, 12), *[r for r in runs(1, 13, model="m-2") if r.at == AT + timedelta(hours=12)]]
    _, finding = look(found)
    assert finding.violated
    assert "m-2" in finding.reason
    assert "m-1" in finding.reason


def test_a_new_system_fingerprint_alone_alerts_only_where_that_was_asked_for() -> None:
    """Some providers return a new one every day; the reason names it in any case."""
    found = runs(2, 13)
    found[-1] = PrintRun("p19", found[-1].at, found[-1].traits, "m-1", "fp-2", found[-1].embedding)
    _, calm = look(found)
    assert calm.violated is False
    assert "fp-2" in calm.reason
    assert look(found, system_fingerprint=True)[1].violated


def test_it_looks_once_for_each_round_and_its_state_survives_json() -> None:
    """Between rounds the last finding stands, and nothing is computed."""
    view = Prints(runs(3, 15, change="length"))
    detector = Fingerprint(FingerprintParams(fingerprint="support"))
    state, first = detector.look(view, {})  # type: ignore[arg-type]
    state = json.loads(json.dumps(state))
    again_state, again = detector.look(view, state)  # type: ignore[arg-type]
    assert again == first
    assert again_state == state


def test_a_shift_below_the_floor_is_no_alarm_however_sure_it_is() -> None:
    """With a hundred runs of each prompt 3 % more characters are certain, and nobody cares."""
    found = []
    for number in range(14):
        for prompt in range(PROMPTS):
            chars = 100.0 + prompt + (3.0 if number >= 12 else 0.0) + 0.1 * (number % 3)
            found.append(PrintRun(f"p{prompt}", AT + number * timedelta(hours=1), {"chars": chars}, "m"))
    _, finding = look(found, rounds=2)
    assert finding.violated is False
    assert finding.numbers["traits"]["chars"]["p"] < 0.01


def test_with_one_prompt_it_says_that_it_could_not_see_a_change() -> None:
    """Three of fifteen runs can be chosen in 455 ways: no p-value is small enough for a false alarm a month."""
    _, finding = look([run for run in runs(4, 15, change="length") if run.prompt == "p0"])
    assert finding.violated is None
    assert "add prompts or rounds" in finding.reason


def test_chance_is_no_effect() -> None:
    """Lengths that vary by half are a quarter apart in three rounds; a change of 2 % is no more than that."""
    rng = np.random.default_rng(6)
    found = [
        PrintRun(f"p{p}", AT + n * timedelta(hours=1), {"chars": 300 * float(np.exp(0.5 * rng.standard_normal()))}, "m")
        for n in range(15)
        for p in range(60)
    ]
    _, finding = look(found)
    assert finding.numbers["traits"]["chars"]["effect"] < 0.1
