"""The checkable claims of a text."""

from __future__ import annotations

import pytest

from evalpipe.scorers.claims import Claim, claims, supported

SAME = {
    "a duration": [
        "within 30 days",
        "a 30-day window",
        "thirty days",
        "in 30 Tagen",
        "30 jours",
        "30 giorni",
        "720 hours",
    ],
    "weeks": ["2 weeks", "14 days", "two weeks"],
    "a year": ["12 months", "one year", "1 Jahr"],
    "working days": ["5 business days", "five working days", "5 Werktage", "5 jours ouvrés", "5 días hábiles"],
    "dollars": ["$20", "20 dollars", "USD 20", "$20.00", "20$"],
    "thousands": ["€1,299.50", "1.299,50 €", "1299.5 euros"],
    "percent": ["15%", "15 percent", "15 Prozent", "15 per cent"],
    "a date": ["3 March", "March 3rd", "am 3. März", "3 de marzo"],
    "a date with its year": ["2026-03-03", "3 March 2026", "March 3, 2026"],
    "a time": ["5 pm", "17:00", "5:00 p.m."],
    "an address": ["https://shop.example/returns.", "www.shop.example/returns"],
}


@pytest.mark.parametrize("texts", SAME.values(), ids=SAME)
def test_the_same_claim_in_other_words_is_the_same_claim(texts):
    """Digits or words, units in several languages, either kind of thousands separator."""
    found = [set(claims(text)) for text in texts]
    assert all(len(each) == 1 for each in found), found
    assert len(set.union(*found)) == 1


def test_a_range_claims_both_of_its_ends():
    """3 to 5 business days is 3 and 5 business days; the last unit is for both."""
    for text in ("3-5 business days", "3 to 5 business days", "between three and five business days"):
        assert set(claims(text)) == {Claim("duration", "72", "business h"), Claim("duration", "120", "business h")}
    assert set(claims("10 to 20%")) == {Claim("percent", "10"), Claim("percent", "20")}
    assert set(claims("$20-$30")) == {Claim("money", "20", "usd"), Claim("money", "30", "usd")}


def test_numbers_in_names_and_lists_are_no_claims():
    """Points of a list, parts of names and versions."""
    assert claims("1. Pack it\n2) Send form A123 v2.3.4 to us\n") == {}


def test_the_quotation_is_what_the_text_says():
    """For the explanation."""
    assert claims("You get $5 after three days.") == {
        Claim("money", "5", "usd"): "$5",
        Claim("duration", "72", "h"): "3 days",
    }


@pytest.mark.parametrize(
    ("said", "known", "expected"),
    [
        ("30 days", "within 30 days", True),
        ("30 days", "within 14 days", False),
        ("5 days", "5 business days", True),
        ("5 business days", "5 days", False),
        ("$20", "EUR 20", False),
        ("2 photos", "two photos", True),
        ("2 photos", "2 weeks or 2%", True),
        ("March 3", "2026-03-03", True),
        ("March 3, 2027", "2026-03-03", False),
        ("40%", "$40", False),
    ],
)
def test_what_supports_a_claim(said, known, expected):
    """The same amount of the same thing; what is left open is supported by anything that fills it."""
    (claim,) = claims(said)
    assert supported(claim, claims(known)) is expected
