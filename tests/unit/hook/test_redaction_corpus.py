"""Redaction over the corpus: precision and recall by kind, and what holds for any text."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.hook.redaction_corpus import texts

from evalpipe.hook import checks
from evalpipe.hook.finding import find
from evalpipe.hook.redaction import KINDS, redact

ALL = frozenset(KINDS)
LEAST_PRECISION = 0.98
LEAST_RECALL = 0.95


def _overlap(kind, start, end, spans):
    return any(kind == k and start < e and s < end for s, e, k in spans)


def test_the_corpus_is_large_and_has_every_kind():
    """Sixty of what must go, sixty texts where nothing is to be found, and a dozen of each kind."""
    marked = Counter(kind for _, marks in texts() for *_, kind in marks)
    assert set(marked) == ALL
    assert min(marked.values()) >= 12
    assert sum(marked.values()) >= 200
    assert sum(not marks for _, marks in texts()) >= 60


@pytest.mark.parametrize("kind", KINDS)
def test_precision_and_recall_of_each_kind_are_above_the_stated_floors(kind):
    """Of what is found of a kind 98 % is marked as it, and of what is marked 95 % is found."""
    missed, wrong, found, marked = [], [], 0, 0
    for text, marks in texts():
        spans = find(text, ALL)
        for start, end, marked_kind in marks:
            if marked_kind == kind:
                marked += 1
                if not _overlap(kind, start, end, spans):
                    missed.append(text)
        for start, end, found_kind in spans:
            if found_kind == kind:
                found += 1
                if not _overlap(kind, start, end, marks):
                    wrong.append(text)
    assert 1 - len(wrong) / found >= LEAST_PRECISION, wrong
    assert 1 - len(missed) / marked >= LEAST_RECALL, missed


def test_what_is_found_goes_as_a_whole():
    """Of a marked value that was found, no character stays behind."""
    for text, marks in texts():
        spans = find(text, ALL)
        for start, end, kind in marks:
            if _overlap(kind, start, end, spans):
                assert any(s <= start and end <= e for s, e, _ in spans), text


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone_finds_its_own_and_nothing_else(kind):
    """With the other kinds off, precision may fall (a card is a long number), but no other label appears."""
    for text, marks in texts():
        spans = find(text, frozenset([kind]))
        assert {k for *_, k in spans} <= {kind}
        together = {span for span in find(text, ALL) if span[2] == kind}
        for start, end, _ in together:
            assert _overlap(kind, start, end, spans) or not marks, text


_PIECES = st.sampled_from(
    [text for text, _ in texts()]
    + ["password", ": ", "=", "key", "sk-", "eyJ", "@", "://", "a:b@", "1", "12", "123-45-6789", "4111 1111 1111 1111"]
    + ["+", "(", ")", "[key]", "[email]", "GB82 WEST 1234 5698 7654 32", "10.1.2.3", "2001:db8::1", "-", "_", ".", " "]
    + ["\n", "é", "x" * 16, "a@b.io", "Bearer ", "AKIAIOSFODNN7EXAMPLE", "\ud800", "\u00a0", "١٢٣٤", "字"]
)


@given(st.lists(_PIECES, max_size=8).map("".join) | st.text(max_size=200) | st.text("01 .-:/@aA[]=", max_size=80))
@example("a@b.io4111111111111111")
def test_any_text_is_redacted_without_failing_and_twice_is_once(text):
    """No input raises, and what was redacted has nothing left to redact."""
    once = redact(text)
    assert redact(once) == once


@given(st.lists(_PIECES, max_size=6).map("".join))
def test_finds_are_in_order_apart_and_inside_the_text(text):
    """So that replacing them cannot lose or double what stands between."""
    done = 0
    for start, end, kind in find(text, ALL):
        assert done <= start < end <= len(text)
        assert kind in ALL
        done = end


# --- generated values -------------------------------------------------------------------------------------------------


def _digits(count):
    return st.text("0123456789", min_size=count, max_size=count)


@st.composite
def _ibans(draw):
    country = draw(st.sampled_from(sorted(checks.IBAN_LENGTHS)))
    body = draw(_digits(checks.IBAN_LENGTHS[country] - 4))
    number = int(body + "".join(str(int(c, 36)) for c in country) + "00")
    value = f"{country}{98 - number % 97:02d}{body}"
    if draw(st.booleans()):
        value = " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return value


@st.composite
def _cards(draw):
    lead, size = draw(st.sampled_from([("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15),
                                       ("6011", 16), ("3530", 16), ("36", 14)]))  # fmt: skip
    body = lead + draw(_digits(size - len(lead) - 1))
    value = next(body + str(check) for check in range(10) if checks.luhn(body + str(check)))
    separator = draw(st.sampled_from(["", " ", "-"]))
    sizes = (4, 6, 5) if size == 15 else (4, 6, 4) if size == 14 else (4, 4, 4, 4)
    groups, at = [], 0
    for length in sizes:
        groups.append(value[at : at + length])
        at += length
    return separator.join(groups)


@st.composite
def _ssns(draw):
    area = draw(st.integers(1, 899).filter(lambda area: area != 666))
    return f"{area:03d}-{draw(st.integers(1, 99)):02d}-{draw(st.integers(1, 9999)):04d}"


_CONTEXTS = st.sampled_from(
    ["{}", "It is {}.", "my number: {}, thanks", "({})", '"{}"', "Meine Nummer ist {} !", "号码是 {}"]
)


@given(_ibans(), _CONTEXTS)
def test_every_valid_iban_is_found(value, context):
    """All countries, with spaces and without."""
    assert redact(context.format(value)) == context.format("[iban]")


@given(_cards(), _CONTEXTS)
def test_every_valid_card_is_found(value, context):
    """Brands with the right check digit, in the groups that are printed on them, or in one."""
    assert redact(context.format(value)) == context.format("[card]").replace("([card])", "[card])")


@given(_ssns(), _CONTEXTS)
def test_every_social_security_number_is_found(value, context):
    """All areas, groups and serials that are given out."""
    redacted = redact(context.format(value))
    assert value not in redacted
    assert "[id]" in redacted


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (checks.steuer_id, "86095742719", "86095742718"),
        (checks.nir, "255081416802538", "255081416802539"),
        (checks.dni, "12345678Z", "12345678A"),
        (checks.dni, "X1234567L", "X1234567A"),
        (checks.codice_fiscale, "RSSMRA85T10A562S", "RSSMRA85T10A562Z"),
        (checks.bsn, "111222333", "111222334"),
        (checks.pesel, "44051401359", "44051401358"),
        (checks.cpf, "52998224725", "52998224726"),
        (checks.cnpj, "11222333000181", "11222333000182"),
        (checks.cnpj, "12ABC34501DE35", "12ABC34501DE36"),
        (checks.aadhaar, "234123412346", "234123412347"),
        (checks.sin, "130692544", "130692545"),
        (checks.personnummer, "8112189876", "8112189875"),
        (checks.hetu, "131052-308T", "131052-308A"),
        (checks.fodselsnummer, "15076500565", "15076500566"),
        (checks.rijksregister, "85073003328", "85073003329"),
        (checks.ahv, "7569217076985", "7569217076986"),
        (checks.resident_id, "11010519491231002X", "110105194912310021"),
        (checks.tckn, "10000000146", "10000000147"),
        (checks.nino, "AB123456C", "QQ123456C"),
        (checks.ssn, "078051120", "666051120"),
        (checks.iban, "GB82WEST12345698765432", "GB82WEST12345698765433"),
    ],
)
def test_check_digits_tell_the_documented_example_from_its_neighbour(check, right, wrong):
    """The examples are those of the authorities' own documents."""
    assert check(right)
    assert not check(wrong)
