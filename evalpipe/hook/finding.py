"""Where personal and secret data stands in a text. Imported with the first text that is redacted, not with the hook.

Linear in the length of the text, and cheap where there is nothing to find: the text is copied without the small letters
that prose is made of, and searches for a few literals in the tenth or so that is left decide what is looked for in the
text itself. A character that is left out brings others together and parts none, so whatever stands in the text in one
piece stands in the rest in one piece: such a search may be wrong only in looking for too much.

Numbers are looked for in the text's *shape*, where ``0`` stands for each digit, ``A`` for each capital and ``a`` for
each small letter. Repetitions are bounded, and no pattern can be entered twice at the same place. What is known by form
only, is missed in another form; docs/hook.md says which.
"""

from __future__ import annotations

import re
from typing import Final

from evalpipe.hook import checks
from evalpipe.hook.digits import lettered_ids, numbers
from evalpipe.hook.keys import keys

Span = tuple[int, int, str]
"""From, to, kind."""

_DIGITS = b"0123456789"
_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER = _UPPER.lower()
_SHAPE: Final = bytes.maketrans(_DIGITS + _UPPER + _LOWER + b"\xa0", b"0" * 10 + b"A" * 26 + b"a" * 26 + b" ")
_HEX: Final = b"0123456789abcdefABCDEF"
_COMMON: Final = _LOWER.translate(None, b"sw")
_LETTERS_LEFT: Final = b"sw "
_SEPARATORS: Final = b"()/-\xa0"
_CONSONANTS: Final = _LOWER.translate(None, b"aeiou") + _SEPARATORS + b" ."


def find(text: str, kinds: frozenset[str]) -> list[Span]:
    """What ``text`` has of ``kinds``, in order and without overlaps."""
    # What is not in Latin-1 becomes a question mark, so that each character stays where it is.
    raw = text.encode("latin-1", "replace")
    left = raw.translate(None, _COMMON)
    signs = left.translate(None, _LETTERS_LEFT)
    rest = signs.decode("latin-1")  # one literal is found faster in a str
    found: list[Span] = []
    if "key" in kinds:
        # The rest of every "password" has "ssw", however it is written, and that of few other words has.
        found = keys(text, raw, rest, spoken="ssw" in left.decode("latin-1").lower())
    if "@" in rest and "email" in kinds:
        found += _emails(text)
    classes = signs.translate(_SHAPE, _SEPARATORS).decode("latin-1")
    if classes.count("0") > 4 or "0.0" in classes:  # an IPv4 address may have four digits, all else has five
        _with_digits(text, raw, classes, kinds, found)
    if ":" in rest and "ip" in kinds and rest.count(":") > 2 and b":::" in raw.translate(None, _HEX):
        found += _ipv6(text)
    return _apart(found) if len(found) > 1 else found


def _with_digits(text: str, raw: bytes, classes: str, kinds: frozenset[str], found: list[Span]) -> None:
    """Numbers and what has many digits; ``classes`` is the shape of the rest, without separators except dots."""
    joined = classes.replace(".", "")
    many = "0000000" in joined and not kinds.isdisjoint(_RUNS)
    lettered = ("000000A" in joined or "A00A000A" in joined) and "id" in kinds
    account = "AA00" in joined and "00000" in joined and "iban" in kinds
    address = "0.0" in classes and "..." in classes.replace("0", "") and "ip" in kinds
    if many or lettered:
        # "mk-000123 of 13 October" has eight digits only as long as the vowels are left out.
        joined = raw.translate(_SHAPE, _CONSONANTS).decode("latin-1")
        many = many and "0000000" in joined
        lettered = lettered and ("000000A" in joined or "A00A000A" in joined)
    if not (many or lettered or account or address):
        return
    shape = raw.translate(_SHAPE)
    if account and b"AA00" in shape and b"00000" in shape.translate(None, _JOINING):
        found += _ibans(text, shape)
    if address and b"..." in shape.translate(None, b"0"):
        found += _ipv4(text, shape)
    if lettered:
        found += lettered_ids(text, shape)
    if many:
        found += numbers(text, shape, kinds)


_RUNS: Final = frozenset({"card", "id", "phone"})
_JOINING: Final = b" ()./-"
_RANK: Final = {kind: rank for rank, kind in enumerate(("key", "iban", "card", "id", "email", "ip", "phone"))}


def _apart(found: list[Span]) -> list[Span]:
    """Overlapping finds become one, of the kind that is the more certain."""
    found.sort(key=lambda span: span[0])
    apart = [found[0]]
    for start, end, kind in found[1:]:
        last_start, last_end, last_kind = apart[-1]
        if start < last_end:
            apart[-1] = last_start, max(end, last_end), min(kind, last_kind, key=_RANK.__getitem__)
        else:
            apart.append((start, end, kind))
    return apart


# --- e-mail: from the @ outwards --------------------------------------------------------------------------------------

_DOMAIN: Final = re.compile(r"@((?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24})(?![\w-])")
_LOCAL_REVERSED: Final = re.compile(r"[\w%+'-](?:[\w.%+'-]{0,63})")


def _emails(text: str) -> list[Span]:
    found = []
    done = 0
    for domain in _DOMAIN.finditer(text):
        before = text[max(done, domain.start() - 64) : domain.start()]
        if local := _LOCAL_REVERSED.match(before[::-1]):
            found.append((domain.start() - local.end(), domain.end(), "email"))
            done = domain.end()
    return found


# --- bank accounts ----------------------------------------------------------------------------------------------------

_IBAN: Final = re.compile(rb"AA00[- ]?[A0]{4}(?:[- ]?[A0]{1,4}){2,7}")


def _ibans(text: str, shape: bytes) -> list[Span]:
    found = []
    at = shape.find(b"AA00")
    while at >= 0:
        match = _IBAN.match(shape, at)
        if match and not text[max(0, at - 1) : at].isalnum() and (end := _iban_end(text, at, match.end())):
            found.append((at, end, "iban"))
            at = shape.find(b"AA00", end)
        else:
            at = shape.find(b"AA00", at + 2)
    return found


def _iban_end(text: str, start: int, end: int) -> int:
    """Where the country's number of characters is reached, if the check digits are right; else 0."""
    length = checks.IBAN_LENGTHS.get(text[start : start + 2], 0)
    value = ""
    for at in range(start, end):
        if text[at] not in " -\u00a0":
            value += text[at]
            if len(value) == length:
                after = text[at + 1 : at + 2]
                return at + 1 if checks.iban(value) and not (after.isalnum() or after == "_") else 0
    return 0


# --- addresses of machines --------------------------------------------------------------------------------------------

_IPV4: Final = re.compile(rb"00{0,2}\.0{1,3}\.0{1,3}\.0{1,3}")
_VERSION_WORDS: Final = re.compile(
    r"(?:version|\bver|release|build|firmware|driver|kernel|upgrade[sd]? to|update[sd]? to|\.net|windows|android"
    r"|ios|macos|section|chapter|clause|figure|table|kapitel|abschnitt|secci\u00f3n|versi\u00f3n|vers\u00e3o|versione|oid|\u00a7)"
    r"[\s:#.=\"']{0,4}$|(?:==|[~<>^!]=?)\s?$|[a-z\d)]/$"
)
_IPV6: Final = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){3,8}|:(?::[0-9A-Fa-f]{0,4}){2,8})"
    r"(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w:]|\.\d)"
)


def _ipv4(text: str, shape: bytes) -> list[Span]:
    found = []
    for match in _IPV4.finditer(shape):
        start, end = match.span()
        before, after = text[max(0, start - 2) : start], text[end : end + 2]
        if before[-1:].isalnum() or before[-1:] in {".", "_", "-"} or after[:1].isalnum() or after[:1] in {"_", "-"}:
            continue
        if after[:1] == "." and after[1:].isdigit():
            continue
        if _is_ipv4(text[start:end]) and not _is_version(text[max(0, start - 16) : start]):
            found.append((start, end, "ip"))
    return found


def _is_version(before: str) -> bool:
    """Whether what stands before says that four numbers are a version or a section."""
    return (
        not before.isspace() and before[-2:] not in {", ", "] "} and _VERSION_WORDS.search(before.lower()) is not None
    )


def _is_ipv4(value: str) -> bool:
    """Four octets; of loopback, "any" and masks nobody can be known."""
    octets = value.split(".")
    if any((len(octet) > 1 and octet[0] == "0") or int(octet) > 255 for octet in octets):
        return False
    return octets[0] not in {"0", "127", "255"}


def _ipv6(text: str) -> list[Span]:
    from socket import AF_INET6, inet_pton

    found = []
    for match in _IPV6.finditer(text):
        try:
            packed = inet_pton(AF_INET6, match[0])
        except OSError:
            continue
        if any(packed[:15]) or packed[15] > 1:
            found.append((match.start(), match.end(), "ip"))
    return found
