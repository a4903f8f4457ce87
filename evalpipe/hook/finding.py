"""Where personal and secret data stands in a text. Imported with the first text that is redacted, not with the hook.

Linear in the length of the text, and cheap where there is nothing to find. The text is copied, sign by sign: in its
*shape* stands ``0`` for each digit, ``A`` for each capital, ``a`` for each small letter. Searches for a few literals
in such copies decide which patterns are tried at all, and where. Repetitions are bounded, and no pattern can be entered
twice at the same place. What is known by form only, is missed in another form; docs/hook.md says which.
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


def find(text: str, kinds: frozenset[str]) -> list[Span]:
    """What ``text`` has of ``kinds``, in order and without overlaps."""
    # What is not in Latin-1 becomes a question mark, so that each character stays where it is.
    raw = text.encode("latin-1", "replace")
    found: list[Span] = []
    shape = raw.translate(_SHAPE)
    if "key" in kinds:
        found = keys(text, raw, shape)
    if "email" in kinds and b"@" in raw:
        found += _emails(text)
    if b"0" in shape and not kinds.isdisjoint(_OF_DIGITS):
        _with_digits(text, shape, kinds, found)
    if "ip" in kinds and b":" in raw and raw.count(b":") > 2 and b":::" in raw.translate(None, _HEX):
        found += _ipv6(text)
    return _apart(found) if len(found) > 1 else found


def _with_digits(text: str, shape: bytes, kinds: frozenset[str], found: list[Span]) -> None:
    """What has a run of five digits or more, or three and a capital, when separators are taken out."""
    joined = shape.translate(None, _JOINING)
    lettered = b"000A" in joined
    many = b"00000" in joined
    if many and "iban" in kinds and b"AA00" in shape:
        found += _ibans(text, shape)
    if b"0.0" in shape and "ip" in kinds and b"..." in shape.translate(None, b"0"):
        found += _ipv4(text, shape)
    if lettered and "id" in kinds:
        found += lettered_ids(text, shape)
    if many and not kinds.isdisjoint(_RUNS):
        found += numbers(text, shape, kinds)


_RUNS: Final = frozenset({"card", "id", "phone"})
_OF_DIGITS: Final = _RUNS | {"iban", "ip"}
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
_BETWEEN: Final = str.maketrans("", "", " -\u00a0")


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
