"""Support of an answer by the retrieved context."""

from __future__ import annotations

import pytest

from evalpipe.score import Status

POLICY = (
    "We refund to the original payment method within 5 business days after the returned item reaches our warehouse. "
    "If an item comes back used or incomplete, we deduct up to 40% of its price. We do not refund in cash."
)
CONTEXT = [{"id": "refunds", "text": POLICY}]
QUESTION = "I sent my kettle back on Monday, when do I get my $60?"
GROUNDED = "We refund within 5 business days after the item reaches our warehouse. [refunds]"
INVENTED = "Absolutely! You will receive a full refund plus a $20 voucher within 24 hours. [refunds]"


def test_an_answer_from_the_documents_is_grounded(score):
    """Every claim and every word is there; the citation itself counts for nothing."""
    found = score("grounding", {}, GROUNDED, context=CONTEXT)
    assert (found.value, found.label) == (1.0, "grounded")
    assert found.explanation == "1 of 1 claims and 6 of 6 words supported"


def test_invented_claims_are_named(score):
    """The explanation has the claims that no document makes."""
    found = score("grounding", {}, INVENTED, context=CONTEXT)
    assert found.label == "unsupported claims"
    assert found.value < 0.2
    assert "not in the context: '$20', '24 hours'" in found.explanation


def test_what_the_user_said_counts_neither_way(score):
    """An answer may repeat the question's numbers; it gains nothing by that."""
    answer = "Your $60 for the kettle arrive within 5 business days after the item reaches our warehouse."
    assert score("grounding", {}, answer, user=QUESTION, context=CONTEXT).label == "grounded"
    strict = score("grounding", {"trust_input": False}, answer, user=QUESTION, context=CONTEXT)
    assert "'$60'" in strict.explanation
    echo = score("grounding", {}, "You sent your kettle on Monday.", user=QUESTION, context=CONTEXT)
    assert echo.status is Status.SKIPPED


def test_it_does_not_matter_whether_the_prompt_holds_the_documents(score):
    """Many applications paste the documents into the user's message: the same answers get the same scores."""
    pasted = f"Policy [refunds]: {POLICY}\n\nQuestion: {QUESTION}"
    for answer in (GROUNDED, INVENTED):
        plain = score("grounding", {}, answer, user=QUESTION, context=CONTEXT)
        assert score("grounding", {}, answer, user=pasted, context=CONTEXT).value == pytest.approx(
            plain.value, abs=0.02
        )


def test_claims_and_words_can_be_weighed(score):
    """Only claims, only words, or a mean of both."""
    answer = "We refund to the original payment method within 9 days."
    claims, words, both = (
        score("grounding", {"claims_weight": w}, answer, context=CONTEXT).value for w in (1.0, 0.0, 0.5)
    )
    assert (claims, words, both) == (0.0, 1.0, 0.5)
    no_claim = score("grounding", {"claims_weight": 1.0}, "We do not refund in cash.", context=CONTEXT)
    assert no_claim.status is Status.SKIPPED


def test_several_documents_support_together(score):
    """A claim from one and words from another."""
    context = [{"id": "a", "text": "Refunds take 5 business days."}, {"id": "b", "text": "Our warehouse is in Leeds."}]
    assert score("grounding", {}, "Refunds from Leeds take 5 business days.", context=context).value == 1.0


def test_without_context_nothing_can_be_supported(score):
    """Skipped, not failed."""
    assert score("grounding", {}, GROUNDED).explanation == "no context was retrieved"


def test_what_it_cannot_see_is_as_the_documentation_says(score):
    """The opposite in the same words is supported: a judge must read."""
    opposite = "We refund in cash, to the original payment method, within 5 business days."
    assert score("grounding", {}, opposite, context=CONTEXT).value == 1.0
