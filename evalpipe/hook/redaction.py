"""Personal and secret data becomes ``[email]``, ``[phone]``, ``[card]``, ``[key]`` before a text leaves the process.

Linear in the length of the text, and cheap where there is nothing to find: a search for a literal comes before each
pattern, repetitions are bounded, and no pattern can be entered twice at the same place. What it knows by form only, it
misses in another form; docs/hook.md says which forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Redactor = Callable[[str], str]

SHORTEST: Final = 6
"""Nothing shorter can be an address, a number or a key."""


def redact(text: str) -> str:
    """``text`` without e-mail addresses, phone and payment card numbers, keys and tokens."""
    if len(text) < SHORTEST or text.isalpha():
        return text
    for gate, kinds in _SECRETS:
        if gate in text:
            for needles, pattern, label in kinds:
                if any(needle in text for needle in needles):
                    text = pattern.sub(label, text)
    if "@" in text:
        text = _without_emails(text)
    if any(digit in text for digit in "0123456789") and _NUMBERS.search(text):
        text = _without_numbers(text)
    return text


# --- keys and tokens: one character that prose seldom has is the gate to the kinds that need it ---------------------

_Kind = tuple[tuple[str, ...], re.Pattern[str], str]


def _kind(pattern: str, *needles: str, label: str = "[key]") -> _Kind:
    return needles, re.compile(pattern), label


_SECRETS: Final[tuple[tuple[str, tuple[_Kind, ...]], ...]] = (
    (
        "-",
        (
            _kind(
                r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,20000}(?:-----END [A-Z ]{0,30}KEY-----)?", "-----BEGIN "
            ),
            _kind(r"\b[sp]k-[A-Za-z0-9_-]{16,}", "sk-", "pk-"),
            _kind(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}", "xox"),
            _kind(r"\bglpat-[\w-]{20,}", "glpat-"),
        ),
    ),
    (
        "_",
        (
            _kind(r"\b[a-z]{2,5}_(?:live|test)_[A-Za-z0-9]{16,}", "_live_", "_test_"),
            _kind(r"\bgh[pousr]_[A-Za-z0-9]{20,}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
            _kind(r"\bgithub_pat_\w{20,}", "github_pat_"),
            _kind(r"\bhf_[A-Za-z0-9]{30,}", "hf_"),
            _kind(r"\bwhsec_[A-Za-z0-9+/=]{24,}", "whsec_"),
        ),
    ),
    ("J", (_kind(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]+)?", "eyJ"),)),
    ("A", (_kind(r"\bA[KS]IA[0-9A-Z]{16}\b", "AKIA", "ASIA"), _kind(r"\bAIza[0-9A-Za-z_-]{35}", "AIza"))),
    ("earer ", (_kind(r"\b([Bb]earer) {1,4}[A-Za-z0-9._~+/-]{16,}=*", "earer ", label=r"\1 [key]"),)),
)

# --- e-mail: from the @ outwards -----------------------------------------------------------------------------------

_DOMAIN: Final = re.compile(r"@((?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24})(?![\w-])")
_LOCAL_REVERSED: Final = re.compile(r"[\w%+'-](?:[\w.%+'-]{0,63})")


def _without_emails(text: str) -> str:
    pieces: list[str] = []
    done = 0
    for domain in _DOMAIN.finditer(text):
        before = text[max(done, domain.start() - 64) : domain.start()]
        local = _LOCAL_REVERSED.match(before[::-1])
        if local:
            pieces += (text[done : domain.start() - local.end()], "[email]")
            done = domain.end()
    return "".join(pieces) + text[done:] if pieces else text


# --- numbers: runs of digits with separators, looked at group by group ---------------------------------------------

_NUMBERS: Final = re.compile(r"[0-9](?:[ ()./\u00a0-]{0,3}[0-9]){6,39}")
_GROUP: Final = re.compile(r"[0-9]+")
_PHONE_WORDS: Final = re.compile(
    r"(?:phone|mobile|cell|whatsapp|\btel|\bcall|telefon|handy|t\u00e9l\u00e9phone|tel\u00e9fono|m\u00f3vil)\W{0,3}(?:\w{1,8}\W{1,2}){0,2}$"
)
_BRANDS: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})$"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}$"  # Mastercard
    r"|3[47]\d{13}$|3(?:0[0-5]|[68]\d)\d{11}$|35(?:2[89]|[3-8]\d)\d{12}$"  # American Express, Diners, JCB
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}$|62\d{14,17}$|(?:50|5[6-8]|63|67)\d{12,17}$"  # Discover, UnionPay, Maestro
)


def _without_numbers(text: str) -> str:
    pieces: list[str] = []
    done = 0
    for run in _NUMBERS.finditer(text):
        groups = [(group.start(), group.end()) for group in _GROUP.finditer(text, run.start(), run.end())]
        at = 0
        while at < len(groups):
            label, taken = _classify(text, groups, at)
            if not taken:
                at += 1
                continue
            start = groups[at][0]
            while start > done and text[start - 1] in "+(":
                start -= 1
            pieces += (text[done:start], label)
            at += taken
            done = groups[at - 1][1]
    return "".join(pieces) + text[done:] if pieces else text


def _classify(text: str, groups: list[tuple[int, int]], at: int) -> tuple[str, int]:
    """The label and number of groups of what begins at group ``at``; 0 groups if it is to be kept."""
    start = groups[at][0]
    before = text[max(0, start - 2) : start]
    if before[-1:].isalnum() or before.endswith("_"):
        return "", 0
    if cards := _card(text, groups[at : at + 5]):
        return "[card]", cards
    if before.endswith("-") and before[:1].isalnum():  # the middle of an id
        return "", 0
    return "[phone]", _phone(text, groups[at : at + 8], before, first=at == 0)


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
        if len(digits) >= 13 and _ends(text, end) and _BRANDS.match(digits) and _luhn(digits):
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
    elif before.endswith("(") and text[groups[0][1] : groups[0][1] + 1] == ")":
        taken = _within(lengths, 7, 12)
    elif lead[0] == "0" and lengths[:5] == [2, 2, 2, 2, 2]:
        taken = 5
    elif lead[0] == "0" and "." not in text[groups[0][1] : groups[-1][0]] and not _counted(lead, lengths, first=first):
        taken = _within(lengths, 9, 15 if lead.startswith("00") else 12) if len(groups) > 1 else 0
    elif first and not _is_date(lengths) and _PHONE_WORDS.search(text[max(0, start - 32) : start].lower()):
        taken = _within(lengths, 7, 15)
    else:
        taken = 0
    return taken if taken and _ends(text, groups[taken - 1][1]) else 0


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


def _ends(text: str, end: int) -> bool:
    after = text[end : end + 1]
    return not (after.isalnum() or after == "_")


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B."""
    odd = sum(int(d) for d in digits[-1::-2])
    even = sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (odd + even) % 10 == 0
