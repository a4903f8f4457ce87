"""Redaction: a corpus of what must go and of what must stay, and bounded time on hostile text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.hook.redaction import redact

GONE = {
    "email": [
        ("write to bob.smith+tag@mail.example.co.uk today", "write to [email] today"),
        ("<a@b.io>", "<[email]>"),
        ("a@b.io,c@d.org", "[email],[email]"),
        ("müller@größe.de", "[email]"),
        ("mailto:first-last@sub-domain.example.com.", "mailto:[email]."),
    ],
    "phone": [
        ("call +1 (555) 123-4567 now", "call [phone] now"),
        ("(555) 123-4567", "[phone]"),
        ("555-123-4567 or 555.123.4567", "[phone] or [phone]"),
        ("+4915123456789.", "[phone]."),
        ("+44 20 7946 0958", "[phone]"),
        ("020 7946 0958", "[phone]"),
        ("01.23.45.67.89", "[phone]"),
        ("0151 23456789", "[phone]"),
        ("0044 20 7946 0958", "[phone]"),
        ("my phone number is 5551234567", "my phone number is [phone]"),
        ("1 800 555 0199", "[phone]"),
    ],
    "card": [
        ("4111 1111 1111 1111 12/27", "[card] 12/27"),
        ("4111111111111111", "[card]"),
        ("Order 12345 5555-5555-5555-4444 ok", "Order 12345 [card] ok"),
        ("378282246310005 (Amex)", "[card] (Amex)"),
        ("3782 822463 10005", "[card]"),
        ("6011000990139424", "[card]"),
        ("3530111333300000", "[card]"),
    ],
    "key": [
        ("sk-proj-abcdefghijklmnop1234", "[key]"),
        ("key=sk-ant-api03-AbCdEfGhIjKlMnOpQrSt-xyz", "key=[key]"),
        ("Authorization: Bearer abcdefghijklmnop.qrstuv=", "Authorization: Bearer [key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[key]"),
        ("ghp_" + "a1B2" * 9, "[key]"),
        ("github_pat_11ABCDEFG0123456789_abcdefgh", "[key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_def", "[key]"),
        ("xoxb-123456789012-abcdefghijkl", "[key]"),
        ("sk" + "_live_4eC39HqLyjWDarjtT1zdp7dc", "[key]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQ+/abc\n-----END PRIVATE KEY-----\nrest", "[key]\nrest"),
    ],
}
KEPT = [
    "2024-01-15 10:30 and 2024-01-15T10:30:00Z, 15.01.2024, 01/15/2024 20:15",
    "order 1234567890123456, item 00012345, ticket 20240115001",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301 and 4bf92f3577b34da6a3ce929d0e0e4736",
    "127.0.0.1:8080, version 10.0.19041.1 and 1.234.567, 3.14159265358979",
    "price 1 000 000 000 or 1.234.567.890 or 12,345,678",
    "risk-based task-oriented-approach-to-things, a desk-job",
    "ORD-2024-000123-4567 shipped",
    "1705312800123 ms since 1970",
    "an @mention, a@b, and x @ y.z",
    "within 30 days; 14-day returns; 50 - 100 - 150; rooms 101 102 103",
    "RMA 4111 1111 1111 1112 has a wrong check digit",
    "the bearer of this letter; bearer bonds",
]


@pytest.mark.parametrize(("text", "expected"), [case for cases in GONE.values() for case in cases])
def test_personal_and_secret_data_is_replaced(text, expected):
    """What must go is gone, and the words around it are as they were."""
    assert redact(text) == expected


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_it_is_kept(text):
    """Dates, ids, amounts, versions and addresses of machines are what evaluations need."""
    assert redact(text) == text


@given(st.sampled_from([case for cases in GONE.values() for case in cases]), st.text("abc .,\n", max_size=40))
def test_a_place_in_a_longer_text_changes_nothing(case, around):
    """Before and after it may stand any words."""
    text, expected = case
    assert redact(f"{around} {text} {around}") == f"{around} {expected} {around}"


@given(st.text())
def test_any_text_is_redacted_without_failing_and_twice_is_once(text):
    """No input raises, and what is redacted has nothing left to redact."""
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "piece",
    ["a", "a@", "a.b@", "1", "1 ", "(1)", "sk-", "eyJ", "eyJ.", "@a.", "b.", "bearer ", "-----BEGIN PRIVATE KEY-----",
     "-----BEGIN ", "password", "password=", "key:", "password is ", "://a:", "sk-a", "-eyJaaaaaaaa", "eyJaaaaaaaa.",
     "1.", "1.1.1.1 ", "a:", ":", "1:", "GB82", "GB82 WEST ", "AA00", "AB123456C", "2024-01-15 ", "123-45-6789-", "Q~",
     "~", "SG.", "x" * 15 + ".", "x" * 16 + "/", "AKIAIOSFODNN7EXAMPLE ", "1//0", "1234567890:AA", "[key:",
     "4111111111111111 ", "+1 ", "xox-", "_live_", "a@" + "b." * 40, "Bearer " + "a." * 60],
)  # fmt: skip
def test_hostile_text_of_a_quarter_megabyte_takes_no_time(piece):
    """Linear: the largest record that is ever redacted costs milliseconds, a second at the very worst."""
    text = (piece * (262_144 // len(piece) + 1))[:262_144]
    start = time.thread_time()
    redact(text)
    assert time.thread_time() - start < 2.0
