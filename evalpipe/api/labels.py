"""Labels: what people say of records, and what they are to look at next without knowing what the judge said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, HTTPException, Query, Request, Security
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from evalpipe.api.access import bearer
from evalpipe.api.bodies import MAX_JSON_BYTES
from evalpipe.api.problems import Failure, refuse
from evalpipe.api.queries import Asked, Tx, When, writing
from evalpipe.api.records import Sent
from evalpipe.pipeline import labelling
from evalpipe.pipeline.labelling import LabelError, Next
from evalpipe.record import MAX_ID, MAX_NAME, Record, text_of
from evalpipe.store import labels
from evalpipe.store.labels import Label
from evalpipe.wiring import Wiring, now

MOST = 500
"""Labels in one request."""
WITHOUT = 200
"""Records that a person may have before them or have skipped."""

router = APIRouter(
    prefix="/v1/labels",
    tags=["labels"],
    dependencies=[Security(bearer)],
    max_body_size=MAX_JSON_BYTES,
    responses={
        401: {"model": Failure, "description": "No key, or a wrong one."},
        422: {"model": Failure, "description": "It cannot be used as it is written. Nothing of it was stored."},
        503: {"model": Failure, "description": "The database does not answer."},
    },
)

Person = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]
Chosen = Literal["random", "uncertain", "given"]


class LabelSent(Sent):
    """What somebody says of one record for one criterion."""

    record_id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    criterion: str = Field(description="A judged criterion.")
    scorecard: str = Field(default="", description="Needed where several have a criterion of that name.")
    label: bool | int | str = Field(
        description="A word of the criterion: `pass` or `fail`, a number of the scale, a category; for a pair `first` "
        "(the record's own answer is better), `second` or `tie`; or `cannot_tell`."
    )
    comment: Annotated[str, Field(max_length=4000)] = ""
    at: AwareDatetime | None = Field(default=None, description="When it was said; now, if not given or in the future.")
    chosen: Chosen = Field(default="given", description="How the record was chosen: as `next` says.")


class LabelsSent(Sent):
    """Labels of one person."""

    annotator: Person = Field(description="Who says it. The same name is the same person.")
    labels: Annotated[list[LabelSent], Field(min_length=1, max_length=MOST)]
    source: Literal["api", "page"] = Field(default="api", description="`page`: given on the labelling page.")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        things = [(one.record_id, one.scorecard, one.criterion) for one in self.labels]
        if len(set(things)) < len(things):
            raise ValueError("one record and criterion occurs twice: which label counts?")
        return self


class LabelsTaken(BaseModel):
    """What became of the labels."""

    new: int = Field(description="The first that this person said of the record and criterion.")
    changed: int = Field(description="Superseded an earlier label of this person.")
    known: int = Field(description="Said so already: nothing changed.")


class LabelAnswer(BaseModel):
    """What one person said of one record for one criterion."""

    label_id: str
    record_id: str
    scorecard: str
    criterion: str
    annotator: str
    label: str
    value: float | None = Field(description="Of the label, in [0, 1]; null for `cannot_tell`.")
    comment: str
    source: str = Field(description="`import`, `api` or `page`.")
    chosen: str = Field(description="How the record came to be labelled: `random`, `uncertain` or `given`.")
    weight: float = Field(description="1 / the record's inclusion probability; 0 where no estimate may count it.")
    at: datetime
    superseded_at: datetime | None = Field(description="When the same person labelled it anew.")


class LabelsAnswer(BaseModel):
    """Labels in the order in which they were given."""

    labels: list[LabelAnswer]


class GradeAnswer(BaseModel):
    """One of the labels that a criterion has."""

    label: str
    meaning: str


class CriterionAnswer(BaseModel):
    """A criterion as people are to understand it."""

    scorecard: str
    criterion: str
    kind: str = Field(description="`boolean`, `scale`, `category` or `pairwise`.")
    description: str
    rubric: str
    grades: list[GradeAnswer] = Field(description="All but `cannot_tell`, which there always is.")
    labels: int = Field(description="Labels there are, of all people.")
    people: int = Field(description="Who gave them: how many.")


class CriteriaAnswer(BaseModel):
    """What can be labelled."""

    criteria: list[CriterionAnswer]


class Part(BaseModel):
    """A turn of the conversation (`name` is the role), a document (its id) or a tool call (the tool)."""

    name: str
    text: str


class RecordShown(BaseModel):
    """A record without anything that tells whose it is, or what anybody said of it."""

    record_id: str
    chosen: Chosen = Field(description="To be sent back with the label.")
    conversation: list[Part]
    context: list[Part]
    tool_calls: list[Part]
    reference: str = Field(description="A known good answer, where the criterion needs one.")
    outputs: list[str] = Field(description="The answer; for a pair two of them, in the order of `labels`.")
    labels: list[str] = Field(description="For a pair: the label that says that this one is better.")


class Counts(BaseModel):
    """How far one person is with a criterion."""

    mine: int = Field(description="Records that this person labelled.")
    today: int = Field(description="Of these, since midnight UTC.")
    left: int = Field(description="Records of the period that this person has not labelled.")


class NextAnswer(BaseModel):
    """What to label next."""

    records: list[RecordShown] = Field(description="In this order; empty where there is nothing left.")
    counts: Counts


class LabelsQuery(Asked):
    """Which labels."""

    scorecard: str | None = Field(default=None, description="Only criteria of this scorecard.")
    criterion: str | None = Field(default=None, description="Only this criterion.")
    annotator: str | None = Field(default=None, description="Only what this person said.")
    record_id: str | None = Field(default=None, description="Only labels of this record.")
    since: When | None = Field(default=None, description="From here on: so long ago (`24h`), or an instant.")
    superseded: bool = Field(default=False, description="Also labels that were superseded.")
    limit: int = Field(default=100, ge=1, le=10_000, description="The newest so many.")


class NextQuery(Asked):
    """For whom, and by which criterion."""

    criterion: str = Field(description="A judged criterion.")
    annotator: Person = Field(description="Who is to label: nobody is given what they labelled already.")
    scorecard: str = Field(default="", description="Needed where several have a criterion of that name.")
    order: labelling.Order = Field(
        default="random",
        description="`random`: a uniform sample, which measures a judge. `uncertain`: the most doubtful grades first, "
        "which finds mistakes and measures nothing.",
    )
    since: When = Field(
        default_factory=lambda: now() - timedelta(days=7), description="Records captured since then; 7 days."
    )
    without: list[str] = Field(
        default=[], max_length=WITHOUT, description="Records to leave out: those before this person, or skipped."
    )
    limit: int = Field(default=5, ge=1, le=20, description="So many at the most.")


@router.post("")
def post_labels(request: Request, body: LabelsSent) -> LabelsTaken:
    """Take labels of one person in: all, or none. The same ones again change nothing.

    Labelling the same thing anew supersedes this person's earlier label, which is kept; other people's stay beside it.
    """
    wiring: Wiring = request.app.state.wiring
    at = now()
    found = [_label(wiring, body, index, at) for index in range(len(body.labels))]
    with writing(wiring.store) as tx:
        if absent := labels.missing(tx, (one.record_id for one in found)):
            index = next(i for i, one in enumerate(found) if one.record_id in absent)
            where, advice = (
                f"body.labels.{index}.record_id",
                "GET /v1/labels/next gives records; " + labelling.CALIBRATE,
            )
            what = "this record is not in the store"
            raise refuse(422, what, where=where, value=found[index].record_id, advice=advice)
        done = labels.add(tx, found, at)
    return LabelsTaken(new=done.new, changed=done.changed, known=done.known)


@router.get("")
def get_labels(tx: Tx, query: Annotated[LabelsQuery, Query()]) -> LabelsAnswer:
    """Labels as they stand, in the order in which they were given. `evalpipe label export` writes all of them."""
    names = ("scorecard", "criterion", "annotator", "record_id")
    where: dict[str, Any] = {name: value for name in names if (value := getattr(query, name)) is not None}
    found = labels.query_labels(since=query.since, superseded=query.superseded, limit=query.limit, **where)
    return LabelsAnswer(
        labels=[LabelAnswer.model_validate(dict(row)) for row in tx.connection.execute(found).mappings()]
    )


@router.get("/criteria")
def get_criteria(request: Request, tx: Tx) -> CriteriaAnswer:
    """The criteria that people can label, with what each label means."""
    wiring: Wiring = request.app.state.wiring
    counts = labels.count_by_criterion(tx)
    asked = labelling.all_asked(wiring.scorecards)
    return CriteriaAnswer(criteria=[_criterion(one, counts) for one in asked])


@router.get("/next")
def get_next(request: Request, tx: Tx, query: Annotated[NextQuery, Query()]) -> NextAnswer:
    """Records for this person to label, without grades, release, or what others said.

    A uniform sample of those that nobody labelled, in an order of this person's own; every fifth or so was labelled by
    somebody else, so that the agreement between people is known. The same question has the same answer.
    """
    wiring: Wiring = request.app.state.wiring
    asked = _asked(wiring, query.criterion, query.scorecard, "query")
    scorecard, criterion = asked.scorecard.name, asked.criterion.name
    pool = labelling.population(tx, asked, query.since)
    done = labels.labelled(tx, scorecard, criterion)
    chosen = labelling.choose(
        pool, done, query.annotator, name=f"{scorecard}/{criterion}", order=query.order, without=set(query.without)
    )
    found = labelling.load_next(tx, asked, chosen, query.limit)
    mine = {record_id for record_id, by in done.items() if query.annotator in by}
    midnight = now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    today = labels.count_since(tx, scorecard, criterion, query.annotator, midnight)
    counts = Counts(mine=len(mine), today=today, left=len(pool.keys() - mine))
    return NextAnswer(records=[_shown(asked, one, query.annotator) for one in found], counts=counts)


def _asked(wiring: Wiring, criterion: str, scorecard: str, where: str) -> labelling.Asked:
    try:
        return labelling.find(wiring.scorecards, criterion, scorecard)
    except LabelError as error:
        raise _refused(error, where) from None


def _refused(error: LabelError, where: str) -> HTTPException:
    return refuse(422, str(error), where=f"{where}.{error.field}", value=error.value, advice=error.advice)


def _label(wiring: Wiring, body: LabelsSent, index: int, at: datetime) -> Label:
    one, where = body.labels[index], f"body.labels.{index}"
    asked = _asked(wiring, one.criterion, one.scorecard, where)
    try:
        word, value = labelling.read_label(asked, one.label)
    except LabelError as error:
        raise _refused(error, where) from None
    return Label(
        one.record_id, asked.scorecard.name, asked.criterion.name, body.annotator.strip(), word, value, one.comment,
        body.source, min(one.at or at, at), one.chosen,
    )  # fmt: skip


def _criterion(asked: labelling.Asked, counts: dict[tuple[str, str], tuple[int, int]]) -> CriterionAnswer:
    n, people = counts.get((asked.scorecard.name, asked.criterion.name), (0, 0))
    spec = asked.spec
    said = {
        "boolean": {"pass": "it meets the criterion", "fail": "it does not"},
        "pairwise": {"first": "the first is better", "second": "the second is better", "tie": "neither is better"},
        "scale": {str(number): meaning for number, meaning in spec.anchors.items()},
        "category": {label: category.description for label, category in spec.categories.items()},
    }[spec.kind]
    words = [word for word, value in asked.values.items() if value is not None]
    return CriterionAnswer(
        scorecard=asked.scorecard.name,
        criterion=asked.criterion.name,
        kind=spec.kind,
        description=asked.criterion.description,
        rubric=spec.rubric,
        grades=[GradeAnswer(label=word, meaning=said.get(word, "")) for word in words],
        labels=n,
        people=people,
    )


def _shown(asked: labelling.Asked, given: Next, annotator: str) -> RecordShown:
    record = given.record
    outputs, words = [record.output], []
    if given.partner is not None:
        outputs, words = [record.output, given.partner.output], ["first", "second"]
        if not labelling.shown_first(annotator, record.record_id):
            outputs, words = outputs[::-1], words[::-1]
    reference = record.attributes.get("reference") if "reference" in asked.spec.needs else ""
    chosen: Any = given.chosen
    return RecordShown(
        record_id=record.record_id,
        chosen=chosen,
        conversation=_conversation(record),
        context=[
            Part(name=str(document.get("id", number)), text=text_of(document.get("text")))
            for number, document in enumerate(record.context, start=1)
        ],
        tool_calls=[
            Part(name=str(call.get("name", "")), text=labelling.compact(call.get("arguments", "")))
            for call in record.tool_calls
        ],
        reference=str(reference or ""),
        outputs=outputs,
        labels=words,
    )


def _conversation(record: Record) -> list[Part]:
    """The turns as a judge sees them: the application's own instructions would tell the release."""
    turns = [(str(m.get("role", "")), text_of(m.get("content"))) for m in record.messages]
    return [Part(name=role, text=said) for role, said in turns if said and role not in {"system", "developer"}]
