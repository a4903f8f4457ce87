"""From a rubric and a record to a prompt, and from what a judge says to a grade."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import GradeInvalid, JudgeUnavailable
from evalpipe.judges.base import Answer, Prompt
from evalpipe.judges.config import open_judge, parse_judge
from evalpipe.judges.desk import Desk
from evalpipe.record import Record, Release
from evalpipe.score import Score, Status
from evalpipe.scorecard.model import JudgeSpec
from evalpipe.scorers.grader import Grader
from evalpipe.scorers.judged import CANNOT_TELL, Question, skip_reason
from evalpipe.scorers.judged import build_prompt as build
from evalpipe.scorers.reading import parse

BOOLEAN = JudgeSpec(
    kind="boolean",
    rubric="The answer promises only what the context grants.",
    examples=[
        {"input": "Refund?", "output": "Sure, always!", "grade": False, "explanation": "The policy says 30 days."}
    ],
)
SCALE = JudgeSpec(kind="scale", rubric="How clear is it?", anchors={1: "confusing", 3: "so so", 5: "crystal clear"})
CATEGORY = JudgeSpec(
    kind="category",
    rubric="What kind of answer is it?",
    categories={
        "right": {"value": 1.0, "description": "answers the question"},
        "partial": {"value": 0.25, "description": "answers half of it"},
        "wrong": {"value": 0.0, "description": "does not"},
    },
)
SPECS = (BOOLEAN, SCALE, CATEGORY)
RECORD = Record(
    "r1",
    "t1",
    datetime(2026, 1, 1, tzinfo=UTC),
    Release("shop"),
    messages=[
        {"role": "system", "content": "SECRET INSTRUCTIONS"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "My refund?"}]},
    ],
    context=[{"id": "refunds", "text": "Refunds within 30 days."}],
    tool_calls=[{"name": "look_up", "arguments": {"order": 7}}],
    output="You get your   money\nback after 90 days.",
)


def build_prompt(spec: JudgeSpec, record: Record, work_id: str) -> Prompt:
    """The prompt of one criterion."""
    return build(Question(spec), record, work_id)


def answer(said: Any, **fields: Any) -> Answer:
    """What a judge said."""
    return Answer(said if isinstance(said, str) else json.dumps(said), "m", **fields)


def reply(grade: Any, explanation: str = "because", quotation: str = "") -> dict[str, Any]:
    """A reply in the form that is asked for."""
    return {"explanation": explanation, "quotation": quotation, "grade": grade}


def test_the_system_prompt_is_the_same_for_every_record_and_short() -> None:
    """So that providers can cache it, and a small local model can read it."""
    other = dataclasses.replace(RECORD, record_id="r2", output="something else", context=[])
    prompts = [build_prompt(BOOLEAN, RECORD, "w1"), build_prompt(BOOLEAN, other, "w2")]
    assert prompts[0].system == prompts[1].system
    assert prompts[0].user != prompts[1].user
    plain = build_prompt(JudgeSpec(kind="boolean", rubric="It is polite."), RECORD, "w1")
    assert len(plain.system.split()) < 150


def test_the_user_prompt_has_every_part_of_the_record_in_its_fence() -> None:
    """Context, conversation, tools and output; the application's own instructions are not what is judged."""
    user = build_prompt(BOOLEAN, RECORD, "w1").user
    code = user.split("\n", maxsplit=1)[0].removeprefix("Code: ")
    assert user == (
        f"Code: {code}\n[{code} CONTEXT]\n(refunds) Refunds within 30 days.\n"
        f"[{code} INPUT]\nuser: Hello\nassistant: Hi\nuser: My refund?\n"
        f'[{code} TOOLS]\nlook_up {{"order": 7}}\n'
        f"[{code} OUTPUT]\nYou get your   money\nback after 90 days.\n[{code} END]\nGrade the OUTPUT. JSON only."
    )


def test_a_record_with_nothing_but_an_output_shows_just_that() -> None:
    """Empty parts cost no tokens."""
    bare = dataclasses.replace(RECORD, messages=[], context=[], tool_calls=[], output="")
    assert build_prompt(BOOLEAN, bare, "w1").user.count("[") == 2


@pytest.mark.parametrize(
    ("spec", "grades"),
    [(BOOLEAN, ["pass", "fail"]), (SCALE, ["1", "2", "3", "4", "5"]), (CATEGORY, ["right", "partial", "wrong"])],
)
def test_the_schema_asks_for_the_reason_first_and_closes_the_list_of_grades(spec: JudgeSpec, grades: list[str]) -> None:
    """Every property is required and no other allowed, as strict structured outputs want it."""
    prompt = build_prompt(spec, RECORD, "w1")
    assert list(prompt.schema["properties"]) == ["explanation", "quotation", "grade"] == prompt.schema["required"]
    assert prompt.schema["properties"]["grade"]["enum"] == [*grades, CANNOT_TELL]
    assert prompt.schema["additionalProperties"] is False
    assert all(name in prompt.system for name in [spec.rubric, *grades, CANNOT_TELL])


def test_a_criterion_that_wants_no_explanation_asks_for_the_grade_alone() -> None:
    """A fifth of the output tokens; it is another question, and so another epoch."""
    spec = BOOLEAN.model_copy(update={"explain": False})
    prompt = build_prompt(spec, RECORD, "w1")
    assert list(prompt.schema["properties"]) == ["grade"]
    assert "quotation" not in prompt.system
    assert '-> {"grade": "fail"}' in prompt.system
    assert prompt.max_tokens < build_prompt(BOOLEAN, RECORD, "w1").max_tokens
    assert Question(spec).version != Question(BOOLEAN).version
    assert parse(spec, answer({"grade": "fail"}), RECORD.output).value == 0.0


def test_anchors_categories_and_examples_are_shown_to_the_judge() -> None:
    """What the author wrote arrives."""
    assert (
        "- 5: crystal clear\nThe whole numbers between them are grades too." in build_prompt(SCALE, RECORD, "w").system
    )
    assert "- partial: answers half of it" in build_prompt(CATEGORY, RECORD, "w").system
    assert (
        'EXAMPLE: {"INPUT": "Refund?", "OUTPUT": "Sure, always!"} -> '
        '{"explanation": "The policy says 30 days.", "quotation": "", "grade": "fail"}'
    ) in build_prompt(BOOLEAN, RECORD, "w").system


def test_long_texts_are_cut_within_stated_bounds() -> None:
    """The prompt's size is bounded whatever the record holds; head and tail of the output stay."""
    long = "begin " + "x" * 100_000 + " end"
    record = dataclasses.replace(
        RECORD, output=long, messages=[{"role": "user", "content": long}], context=[{"id": "a", "text": long}]
    )
    user = build_prompt(BOOLEAN, record, "w1").user
    assert len(user) < 21_000
    assert user.count("characters left out") == 3
    assert user.count(" end\n") == 3


@pytest.mark.parametrize(
    ("spec", "said", "value", "label"),
    [
        (BOOLEAN, "pass", 1.0, "pass"),
        (BOOLEAN, "fail", 0.0, "fail"),
        (BOOLEAN, True, 1.0, "pass"),
        (SCALE, "1", 0.0, "1"),
        (SCALE, "4", 0.75, "4"),
        (SCALE, 5, 1.0, "5"),
        (CATEGORY, "partial", 0.25, "partial"),
    ],
)
def test_each_kind_of_grade_has_its_value(spec: JudgeSpec, said: Any, value: float, label: str) -> None:
    """Pass is one, a scale runs between its ends, a category is worth what the author wrote."""
    found = parse(spec, answer(reply(said)), RECORD.output)
    assert (found.status, found.value, found.label, found.explanation) == (Status.SCORED, value, label, "because")


@pytest.mark.parametrize("spec", SPECS)
def test_a_judge_that_cannot_tell_abstains(spec: JudgeSpec) -> None:
    """Not knowing is neither a pass nor a failure."""
    found = parse(spec, answer(reply(CANNOT_TELL)), RECORD.output)
    assert (found.status, found.value, found.explanation) == (Status.ABSTAINED, None, "because")


@pytest.mark.parametrize(
    ("spec", "text", "reason"),
    [
        (BOOLEAN, "", "said nothing"),
        (BOOLEAN, "pass", "not JSON"),
        (BOOLEAN, "[1]", "not an object"),
        (BOOLEAN, '"pass"', "not an object"),
        (BOOLEAN, '{"explanation": "x"}', "not an object of explanation, quotation and grade"),
        (BOOLEAN, json.dumps(reply("pass") | {"extra": 1}), "not an object of explanation, quotation and grade"),
        (BOOLEAN, json.dumps(reply("PASS")), "but 'PASS'"),
        (BOOLEAN, json.dumps(reply(1)), "of type int"),
        (BOOLEAN, json.dumps(reply(None)), "of type NoneType"),
        (BOOLEAN, json.dumps(reply(["pass"])), "of type list"),
        (BOOLEAN, json.dumps(reply("pass", explanation=["x"])), "not text"),
        (BOOLEAN, '{"grade": "fail", "grade": "pass"}', "a key occurs twice"),
        (BOOLEAN, 'He wrote {"grade": "pass"}, but: {"grade": "fail"}', "not JSON"),
        (BOOLEAN, "[" * 100_000, "not JSON"),
        (SCALE, json.dumps(reply(6)), "but '6'"),
        (SCALE, json.dumps(reply(0)), "but '0'"),
        (SCALE, json.dumps(reply("4.5")), "but '4.5'"),
        (SCALE, json.dumps(reply(4.5)), "of type float"),
        (SCALE, json.dumps(reply(True)), "of type bool"),
        (SCALE, '{"grade": NaN}', "of type float"),
        (CATEGORY, json.dumps(reply("superb")), "but 'superb'"),
    ],
)
def test_what_is_no_grade_is_an_error_with_the_raw_text_kept(spec: JudgeSpec, text: str, reason: str) -> None:
    """Garbage, wrong types and grades out of range are never scores."""
    found = parse(spec, answer(text), RECORD.output)
    assert (found.status, found.value, found.raw) == (Status.ERROR, None, text)
    assert reason in found.explanation


@pytest.mark.parametrize("finish", ["truncated", "refused"])
def test_a_cut_or_refused_answer_is_an_error_even_if_it_reads_like_a_grade(finish: Any) -> None:
    """What the provider says of the answer wins over its text."""
    assert parse(BOOLEAN, answer(reply("pass"), finish=finish), RECORD.output).status is Status.ERROR


def test_a_grade_in_a_code_fence_is_read() -> None:
    """Servers without structured outputs often wrap the object."""
    found = parse(BOOLEAN, answer(f"```json\n{json.dumps(reply('fail'))}\n```"), RECORD.output)
    assert found.value == 0.0


@pytest.mark.parametrize(
    ("said", "quotation", "kept"),
    [
        ("fail", "your money back", "your money back"),
        ("fail", "  back after\u202890 days ", ""),
        ("fail", "money back guarantee", ""),
        ("fail", "", ""),
        ("pass", "your money back", ""),
    ],
)
def test_a_quotation_is_kept_for_a_failure_if_it_occurs_in_the_output(said: str, quotation: str, kept: str) -> None:
    """White space may differ; invented words are dropped, and a pass offends nobody."""
    assert parse(BOOLEAN, answer(reply(said, quotation=quotation)), RECORD.output).quotation == kept


@given(st.sampled_from(SPECS), st.text(st.characters(), max_size=200), st.text(max_size=50))
def test_no_answer_makes_the_parser_raise_or_score(spec: JudgeSpec, text: str, output: str) -> None:
    """Arbitrary text is an error whose every field can be stored and shown."""
    found = parse(spec, answer(text), output)
    assert found.status is Status.ERROR
    for stored in (found.raw, found.explanation):
        stored.encode()
        assert "\x00" not in stored


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from(["pass", "4"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["grade", "explanation", "quotation", "x"]), inner),
    max_leaves=10,
)


@given(st.sampled_from(SPECS), JSON, st.text())
def test_no_json_makes_the_parser_raise_or_give_an_impossible_score(spec: JudgeSpec, said: Any, output: str) -> None:
    """A score is in range and its label one of the criterion's; everything stored is storable."""
    found = parse(spec, answer(json.dumps(said)), output)
    Score(found.status, found.value)
    for stored in (found.raw, found.explanation, found.quotation):
        stored.encode()
        assert "\x00" not in stored


@pytest.mark.parametrize(
    ("needs", "changes", "reason"),
    [
        ([], {"context": []}, None),
        (["context"], {}, None),
        (["context"], {"context": []}, "no context was retrieved"),
        (["context"], {"context": [{"id": "a", "text": " "}]}, "no context was retrieved"),
        (["tool_calls"], {"tool_calls": []}, "no tool was called"),
        (["tools"], {}, "no tools were offered"),
        (["input"], {"messages": []}, "the record has no input"),
        (["output"], {"output": ""}, "the record has no output"),
        ([], {"output": ""}, None),
        ([], {"output": "", "error": "TimeoutError: late"}, "the call failed, there is no output to judge"),
    ],
)
def test_what_a_criterion_needs_is_known_before_any_call(needs: Any, changes: Any, reason: str | None) -> None:
    """A record without it is skipped with the reason, and no call is made."""
    spec = JudgeSpec(kind="boolean", rubric="x", needs=needs)
    assert skip_reason(spec, dataclasses.replace(RECORD, **changes)) == reason


def test_the_version_changes_with_what_the_judge_is_asked_and_with_nothing_else() -> None:
    """Rubric, anchors, categories' values and examples open a new epoch; priority, needs and model do not."""

    def changed(spec: JudgeSpec, **fields: Any) -> str:
        return Question(JudgeSpec.model_validate(spec.model_dump() | fields)).version

    base = Question(SCALE).version
    assert base == changed(SCALE, priority=0, needs=["context"], model="openai:m")
    assert base != changed(SCALE, rubric="How short is it?")
    assert base != changed(SCALE, anchors={1: "confusing", 3: "so so", 5: "perfect"})
    values = CATEGORY.model_dump()["categories"] | {"partial": {"value": 0.5, "description": "answers half of it"}}
    assert Question(CATEGORY).version != changed(CATEGORY, categories=values)
    assert Question(BOOLEAN).version != changed(BOOLEAN, examples=[])


def test_the_judges_version_has_provider_model_and_prompt() -> None:
    """Raising TEMPLATE is what changes this pinned value: do so when the prompt's wording or its reading changes."""
    desk = Desk(lambda _: open_judge(parse_judge("fake:m")), clock=lambda: datetime.now(UTC))
    assert Grader(desk).version(Question(SCALE)) == "fake:m/47862acc255d"


def test_an_outage_passes_through_and_an_invalid_grade_is_an_error() -> None:
    """The pipeline tries an outage again later; what is no grade is settled, with the raw text kept."""

    class Odd:
        version = "odd:m"
        gives_logprobs = False

        def __init__(self, error: Exception) -> None:
            self.error = error

        async def ask(self, prompt: Prompt) -> Answer:
            raise self.error

        async def aclose(self) -> None: ...

    def grader(error: Exception) -> Grader:
        return Grader(Desk(lambda _: Odd(error), clock=lambda: datetime.now(UTC)))

    with pytest.raises(JudgeUnavailable):
        asyncio.run(grader(JudgeUnavailable("down")).grade(BOOLEAN, RECORD))
    found = asyncio.run(grader(GradeInvalid("no grade", raw="hm\x00")).grade(BOOLEAN, RECORD)).grade
    assert (found.status, found.explanation, found.raw) == (Status.ERROR, "no grade", "hm\ufffd")
