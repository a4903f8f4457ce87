"""Cheap searches decide what is looked for; what is found is the same as if everything were looked for everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.hook.redaction_corpus import texts

from evalpipe.hook import digits, finding, keys
from evalpipe.hook.redaction import KINDS

ROOT = Path(__file__).parents[3]
ALL = frozenset(KINDS)
SETS = (ALL, *(frozenset([kind]) for kind in KINDS))


def everything(text, kinds):
    """``find`` without any condition that is there for speed."""
    raw = text.encode("latin-1", "replace")
    shape = raw.translate(finding._SHAPE)
    joined = shape.translate(None, b" ()./-")
    found = []
    if "key" in kinds:
        found += _keys(text, raw)
    if "email" in kinds:
        found += finding._emails(text)
    if "iban" in kinds and b"00000" in joined:
        found += finding._ibans(text, shape)
    if "ip" in kinds and b"..." in shape.translate(None, b"0"):
        found += finding._ipv4(text, shape)
    if "id" in kinds:
        found += _lettered(text, shape)
    found += digits.numbers(text, shape, kinds)
    if "ip" in kinds and raw.count(b":") > 2 and b":::" in raw.translate(None, finding._HEX):
        found += finding._ipv6(text)
    return finding._apart(found) if found else found


def _keys(text, raw):
    found = []
    words = raw.translate(keys._WORDS)
    if keys._LONG in words:
        keys._long_runs(text, raw, words, words.find(keys._LONG), found)
        keys._all(keys._BEARER, b"earer ", text, raw, 1, found)
        keys._all(keys._BEARER, b"asic ", text, raw, 1, found)
    keys._all(keys._PEM, b"-----BEGIN ", text, raw, 0, found)
    keys._all(keys._AZURE_SECRET, b"Q~", text, raw, 4, found)
    if "@" in text:
        keys._all(keys._IN_URL, b"://", text, raw, 0, found)
    signs = [at for sign in b":=" for at, byte in enumerate(raw) if byte == sign]
    if len(signs) > keys._FEW:
        keys._named(text, raw.lower(), keys._NEEDLES, 0, len(raw), found)
        return found
    keys._named(text, raw.lower(), keys._SPOKEN, 0, len(raw), found)
    for at in signs:
        keys._named(text, raw.lower(), keys._NEEDLES, max(0, at - keys._REACH), at, found)
    return found


def _lettered(text, shape):
    return [
        (at, at + len(form), "id")
        for form, check in digits._LETTERED
        for at in range(len(text))
        if shape.startswith(form, at)
        and digits._begins(text, at)
        and digits._ends(text, at + len(form))
        and check(text[at : at + len(form)].translate(digits._SEPARATORS))
    ]


def _assert_same(text):
    for kinds in SETS:
        assert finding.find(text, kinds) == everything(text, kinds), (sorted(kinds), text)


@pytest.mark.parametrize(
    "change",
    [str, str.upper, str.lower, str.swapcase, lambda text: text.replace(" ", "\u00a0"), lambda text: text[::2]],
    ids=["as it is", "capitals", "small letters", "swapped", "no-break spaces", "every other character"],
)
def test_the_corpus_has_the_same_finds_with_and_without_gates(change):
    """Each text, written in some other ways too."""
    for text, _ in texts():
        _assert_same(change(text))


def test_documents_and_code_have_the_same_finds_with_and_without_gates():
    """In pieces of the length of a message."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/unit/hook/*.py")]:
        source = path.read_text()
        for start in range(0, min(len(source), 20_000), 1000):
            piece = source[start : start + 1000]
            assert finding.find(piece, ALL) == everything(piece, ALL), piece


_NEARLY = st.sampled_from(
    ["password", "Passwort", "PASSWORD", "pAsSWd", "passw", " is ", "hunter2!x", ": ", "=", "key", "api_key",
     "token", "secret", "pwd", "senha", "contrase\u00f1a", "sk-proj-", "hf_", "AKIA", "eyJ", "SG.", "ya29.", "1//",
     "123456789:AA", "hooks.slack.com/services/T0/B0/", "Bearer ", "basic ", "-----BEGIN RSA PRIVATE KEY-----",
     "abc8Q~", "://", "a:b@", "@", "b.io", "10.1.2.3", "8.8.8.8", "1.2.3", ".", "2001:db8::1", ":",
     "GB82 WEST 1234 5698 7654 32", "NO9386011117947", "AA00", "AB123456C", "AB 12 34 56 C", "12345678-Z",
     "12.345.678-Z", "X1234567L", "RSSMRA85T10A562S", "11010519491231002X", "131052-308T", "131052A308T",
     "1 85 12 2A 168 025 38", "255081416802538", "+49 30 901820", "(030) 9018 2000", "555-010-4477", "tel 12345678",
     "4111 1111 1111 1111", "123-45-6789", "78 12 34", "2026-11-22", "mk-000123", "89.90", "13 October", "You",
     "and ", "of ", "A", "S", "W", "x" * 15, "x" * 16, "0", "12", "345", "6789", "\u00e9", "\u5b57", "\u0661\u0662",
     "\u00a0", "\ud800", "\u212a", "\n", " ", "-", "_", "/", "(", ")", "[", "]", ",", "'", "~"]
)  # fmt: skip


@settings(max_examples=250)
@given(
    st.tuples(st.sampled_from(["", " ", "-", ". ", "a"]), st.lists(_NEARLY, max_size=10)).map(lambda p: p[0].join(p[1]))
    | st.text("01 .-:/@aAsSwW[]=()~\u00a0", max_size=60)
)
def test_any_text_has_the_same_finds_with_and_without_gates(text):
    """Near misses next to each other: a gate that asks for too much would lose one."""
    _assert_same(text)


@pytest.mark.parametrize("sign", [" ", ".", "-", "/", ") ", ".-", " - ", "\u00a0", ""])
@pytest.mark.parametrize("number", ["555{}0104", "55{}501{}04", "5{}550{}1{}04"])
def test_the_shortest_numbers_are_found_whatever_is_between_their_digits(sign, number):
    """Seven digits, with everything that can part them; only a word before them makes them a phone's."""
    text = f"Please call {number.replace('{}', sign)} and ask for me."
    _assert_same(text)
    assert finding.find(text, ALL) or sign == " - " or ".-" in sign, text


def test_the_shortest_address_is_found():
    """Four digits: fewer than anything else has."""
    assert finding.find("Ask 8.8.8.8 for it.", ALL) == [(4, 11, "ip")]


def test_every_lettered_id_has_what_they_are_recognized_by():
    """The pattern that must be in a text before the forms are looked for one by one is in each form."""
    for form, _ in digits._LETTERED:
        assert digits._LETTER.search(form), form
