"""Numbers in a text: payment cards, national ids and phones, told apart by form, check digits and the words before.

A run of digits with separators is looked at group by group. Ids that have letters are found by their shape: digits
written as ``0`` and capitals as ``A``, so that a plain search for ``AA000000A`` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from evalpipe.hook import checks

Span = tuple[int, int, str]

# On shapes a run of digits begins with the letter 0, which is found without trying a pattern at each character.
_RUNS: Final = re.compile(rb"0(?:[ ()./-]{0,3}0){6,39}")
_GROUP: Final = re.compile(rb"00*")
_REACH: Final = 40
_PHONE_WORDS: Final = re.compile(
    r"(?<!\[)(?:phone|mobile|cell|whatsapp|fax|\btel|\bcall|\bsms|telefon|handy|telefoon|t\u00e9l\u00e9phone|tel\u00e9fono|m\u00f3vil"
    r"|cellulare|celular|\u0442\u0435\u043b\u0435\u0444\u043e\u043d|\u7535\u8bdd|\u624b\u673a|\u96fb\u8a71)"
    r"[^\w+]{0,3}(?:\w{1,8}\W{1,2}){0,2}$"
)
_BRANDS: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})$"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}$"  # Mastercard
    r"|3[47]\d{13}$|3(?:0[0-5]|[68]\d)\d{11}$|35(?:2[89]|[3-8]\d)\d{12}$"  # American Express, Diners, JCB
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}$|62\d{14,17}$|(?:50|5[6-8]|63|67)\d{12,17}$"  # Discover, UnionPay, Maestro
)

# --- national ids: shape -> what must hold, and a word that must stand before where the form alone is too common ------

_Id = tuple[Callable[[str], bool], tuple[str, ...]]
_SSN: Final = (checks.ssn, ("ssn", "social security", "social-security", "itin", "tax id", "taxpayer"))
_BSN: Final = (checks.bsn, ("bsn", "burgerservice", "sofi"))
_SIN: Final = (
    checks.sin,
    (" sin ", " sin:", " sin#", "(sin", "social insurance", " nas ", " nas:", "assurance sociale"),
)
_PESEL: Final = (checks.pesel, ("pesel",))
_CPF: Final = (checks.cpf, ("cpf",))
_TCKN: Final = (checks.tckn, ("tckn", "kimlik", "t.c", "tc no"))
_AADHAAR: Final = (checks.aadhaar, ("aadhaar", "aadhar", "uidai", "\u0906\u0927\u093e\u0930"))
_PERSON: Final = (checks.personnummer, ("person", "samordning", "pnr"))
_BELGIAN: Final = (checks.rijksregister, ("rijksregister", "registre national", "insz", "niss", "rrn"))

_BY_DIGITS: Final[dict[bytes, tuple[_Id, ...]]] = {
    b"000-00-0000": ((checks.ssn, ()),),
    b"000 00 0000": (_SSN,),
    b"000000000": (_SSN, _BSN, _SIN),
    b"0000.00.000": (_BSN,),
    b"000 000 000": (_SIN, _BSN),
    b"000-000-000": (_SIN,),
    b"00 000 000 000": ((checks.steuer_id, ()),),
    b"00000000000": (
        (checks.steuer_id, ()),
        (checks.fodselsnummer, ()),
        _CPF,
        _PESEL,
        _TCKN,
        _BELGIAN,
    ),
    b"000000 00000": ((checks.fodselsnummer, ()),),
    b"0 00 00 00 000 000 00": ((checks.nir, ()),),
    b"000000000000000": ((checks.nir, ()),),
    b"0000000000000 00": ((checks.nir, ()),),
    b"000.000.000-00": ((checks.cpf, ()),),
    b"00.000.000/0000-00": ((checks.cnpj, ()),),
    b"00000000000000": ((checks.cnpj, ("cnpj",)),),
    b"0000 0000 0000": ((checks.aadhaar, ()),),
    b"0000-0000-0000": ((checks.aadhaar, ()),),
    b"000000000000": (_AADHAAR, _PERSON),
    b"000000-0000": ((checks.personnummer, ()), (checks.hetu, ())),
    b"00000000-0000": ((checks.personnummer, ()),),
    b"0000000000": (_PERSON,),
    b"00.00.00-000.00": ((checks.rijksregister, ()),),
    b"000.0000.0000.00": ((checks.ahv, ()),),
    b"000000000000000000": ((checks.resident_id, ()),),
    b"0000000000000": ((checks.ahv, ("ahv", "avs")),),
}
_MOST_GROUPS: Final = 7
_SHORTEST_ID: Final = min(map(len, _BY_DIGITS))
_LONGEST_ID: Final = max(map(len, _BY_DIGITS))

_LETTERED: Final[tuple[tuple[bytes, Callable[[str], bool]], ...]] = (
    (b"AA000000A", checks.nino),
    (b"AA 00 00 00 A", checks.nino),
    (b"00000000A", checks.dni),
    (b"00000000-A", checks.dni),
    (b"00.000.000-A", checks.dni),
    (b"A0000000A", checks.dni),
    (b"A-0000000-A", checks.dni),
    (b"AAAAAA00A00A000A", checks.codice_fiscale),
    (b"00000000000000000A", checks.resident_id),
    (b"000000-000A", checks.hetu),
    (b"000000A000A", checks.hetu),
    (b"0 00 00 0A 000 000 00", checks.nir),
)
_LETTER: Final = re.compile(rb"00(?:(?:0-?| )A(?![Aa0])| 0A 000)")
"""Every one of them has this, and few other texts do: "order 000123. You" has not."""
_SEPARATORS: Final = str.maketrans("", "", " .-/\u00a0")


def numbers(text: str, shape: bytes, kinds: frozenset[str]) -> list[Span]:
    """Cards, ids and phones that are made of digits.

    Args:
        text: where to look.
        shape: the same, character by character, with ``0`` for digits and ``A`` for capitals.
        kinds: those of ``card``, ``id`` and ``phone`` that are wanted.
    """
    found: list[Span] = []
    for run in _RUNS.finditer(shape):
        groups = [(group.start(), group.end()) for group in _GROUP.finditer(shape, run.start(), run.end())]
        at = 0
        # Nothing that is looked for has fewer than seven digits.
        while at < len(groups) and run.end() - groups[at][0] > 6:
            if _is_day(shape, groups[at][0]):
                at += 3
                continue
            kind, taken = _classify(text, shape, groups, at, kinds)
            if not taken:
                at += 1
                continue
            start = groups[at][0]
            while start and text[start - 1] in "+(":
                start -= 1
            at += taken
            if kind in kinds:
                found.append((start, groups[at - 1][1], kind))
    return found


def _is_day(shape: bytes, start: int) -> bool:
    """Whether 2026-11-22 begins here: the most frequent of all numbers with separators."""
    return shape.startswith((b"0000-00-00", b"0000/00/00"), start) and shape[start + 10 : start + 11] != b"0"


def lettered_ids(text: str, shape: bytes) -> list[Span]:
    """National ids that have letters in them."""
    found: list[Span] = []
    if _LETTER.search(shape) is None:
        return found
    for form, check in _LETTERED:
        at = shape.find(form)
        while at >= 0:
            end = at + len(form)
            if _begins(text, at) and _ends(text, end) and check(text[at:end].translate(_SEPARATORS)):
                found.append((at, end, "id"))
            at = shape.find(form, at + 1)
    return found


def _classify(
    text: str, shape: bytes, groups: list[tuple[int, int]], at: int, kinds: frozenset[str]
) -> tuple[str, int]:
    """The kind and number of groups of what begins at group ``at``; 0 groups if it is to be kept."""
    start = groups[at][0]
    before = text[max(0, start - 2) : start]
    if before[-1:].isalnum() or before.endswith("_"):
        return "", 0
    if cards := _card(text, groups[at : at + 5]):
        return "card", cards
    if before.endswith("-") and before[:1].isalnum():  # the middle of an id
        return "", 0
    if "id" in kinds and (ids := _national_id(text, shape, groups, at)):
        return "id", ids
    if "phone" not in kinds:
        return "", 0
    return "phone", _phone(text, groups[at : at + 8], before, first=at == 0)


def _national_id(text: str, shape: bytes, groups: list[tuple[int, int]], at: int) -> int:
    """How many groups are a national id; the longest form wins."""
    start = groups[at][0]
    for last in range(min(len(groups), at + _MOST_GROUPS), at, -1):
        end = groups[last - 1][1]
        if not _SHORTEST_ID <= end - start <= _LONGEST_ID:
            continue
        forms = _BY_DIGITS.get(shape[start:end])
        if forms and _ends(text, end) and not _goes_on(text, groups, at, last):
            value = text[start:end].translate(_SEPARATORS)
            before = ""
            for check, announcing in forms:
                if announcing and not before:
                    before = f" {text[max(0, start - _REACH) : start].lower()} "
                if (not announcing or any(word in before for word in announcing)) and check(value):
                    return last - at
    return 0


def _goes_on(text: str, groups: list[tuple[int, int]], at: int, last: int) -> bool:
    """Whether more groups follow or precede with the same separator: then these are a part of something longer."""
    if last - at < 2:
        return False
    separator = text[groups[last - 2][1] : groups[last - 1][0]]
    return (last < len(groups) and text[groups[last - 1][1] : groups[last][0]] == separator) or (
        at > 0 and text[groups[at - 1][1] : groups[at][0]] == separator
    )


def _card(text: str, groups: list[tuple[int, int]]) -> int:
    """How many groups are a payment card's number: a known brand's, with the right check digit."""
    if text[groups[0][0]] not in "23456":
        return 0
    digits = ""
    separator = None
    for index, (start, end) in enumerate(groups):
        if index:
            between = text[groups[index - 1][1] : start]
            separator = separator or between
            if between != separator or between not in " -\u00a0":
                return 0
        digits += text[start:end]
        if len(digits) > 19:
            return 0
        if len(digits) >= 13 and _ends(text, end) and _BRANDS.match(digits) and checks.luhn(digits):
            return index + 1
    return 0


def _phone(text: str, groups: list[tuple[int, int]], before: str, *, first: bool) -> int:
    """How many groups are a phone number: international, in the form of a country, or announced by a word."""
    lengths = [end - start for start, end in groups]
    start = groups[0][0]
    lead = text[start : start + 3]
    nanp = lengths[:3] == [3, 3, 4] or (lengths[:4] == [1, 3, 3, 4] and lead[0] == "1")
    if nanp and "/" not in text[start : groups[2][1]]:
        taken = 3 if lengths[0] == 3 else 4
    elif before.endswith(("+", "+(")):
        taken = _within(lengths, 8, 15)
    elif before.endswith("(") and lengths[0] < 6 and text[groups[0][1] : groups[0][1] + 1] == ")":
        # "Annals of Statistics (2024) 2613-2640" has a year.
        taken = 0 if lengths[0] == 4 and lead[:2] in {"19", "20"} else _within(lengths, 7, 12)
    elif lead[0] == "0" and lengths[:5] == [2, 2, 2, 2, 2]:
        taken = 5
    elif lead[0] == "0" and _one_sign(text[groups[0][1] : groups[-1][0]]) and not _counted(lead, lengths, first=first):
        taken = _within(lengths, 9, 15 if lead.startswith("00") else 12) if len(groups) > 1 else 0
    elif first and not _is_date(lengths) and _PHONE_WORDS.search(text[max(0, start - 32) : start].lower()):
        taken = _within(lengths, 7, 15)
    else:
        taken = 0
    return taken if taken and _ends(text, groups[taken - 1][1]) else 0


def _one_sign(between: str) -> bool:
    return "." not in between and between.count("/") < 2


def _within(lengths: list[int], least: int, most: int) -> int:
    """The greatest number of leading groups with ``least`` to ``most`` digits in all, or 0."""
    total = best = 0
    for index, length in enumerate(lengths):
        total += length
        if least <= total <= most:
            best = index + 1
    return best


def _counted(lead: str, lengths: list[int], *, first: bool) -> bool:
    """Whether a leading zero belongs to a date, or to a number with its thousands apart."""
    return _is_date(lengths) or lengths[0] == 1 or lead == "000" or (not first and lengths[0] == 3)


def _is_date(lengths: list[int]) -> bool:
    return lengths[:3] in ([4, 2, 2], [2, 2, 4], [1, 2, 4], [2, 1, 4], [1, 1, 4])


def _begins(text: str, start: int) -> bool:
    before = text[max(0, start - 1) : start]
    return not (before.isalnum() or before in {"_", "-", "."})


def _ends(text: str, end: int) -> bool:
    after = text[end : end + 1]
    return not (after.isalnum() or after == "_")
