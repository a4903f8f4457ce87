"""Citation of the documents that were given."""

from __future__ import annotations

import pytest

from evalpipe.score import Status

CONTEXT = [{"id": "returns", "text": "..."}, {"id": "DOC-7", "text": "..."}, {"text": "no id"}]


@pytest.mark.parametrize(
    ("output", "value", "label"),
    [
        ("Within 30 days. [returns]", 1.0, "cited"),
        ("Within 30 days [doc-7, Returns].", 1.0, "cited"),
        ("Within 30 days [2].", 1.0, "cited"),
        ("Within 30 days.", 0.0, "missing"),
        ("Within 30 days. [warranty]", 0.0, "invented"),
        ("Within 30 days [returns][warranty].", 0.5, "invented"),
        ("Within 30 days [3].", 0.0, "invented"),
        ("See [returns](https://shop.example).", 0.0, "missing"),
        ("Write to [email], press [the red button].", 0.0, "missing"),
    ],
)
def test_citations_in_brackets(score, output, value, label):
    """By id in any case or by the document's number; a link, a placeholder and words in brackets are no citations."""
    found = score("citation", {}, output, context=CONTEXT)
    assert (found.value, found.label) == (value, label)


def test_several_documents_can_be_wanted(score):
    """At most as many as were given with an id."""
    assert score("citation", {"min": 2}, "Yes. [returns]", context=CONTEXT).value == 0.5
    assert score("citation", {"min": 9}, "Yes. [returns] [doc-7]", context=CONTEXT).value == 1.0


def test_an_id_can_stand_anywhere(score):
    """As a word of its own."""
    assert score("citation", {"style": "anywhere"}, "See our returns policy.", context=CONTEXT).value == 1.0
    assert score("citation", {"style": "anywhere"}, "It returnsX.", context=CONTEXT).value == 0.0


def test_without_context_there_is_nothing_to_cite(score):
    """Skipped, not failed."""
    found = score("citation", {}, "Yes. [returns]")
    assert (found.status, found.explanation) == (
        Status.SKIPPED,
        "no context was retrieved, or its documents have no ids",
    )
