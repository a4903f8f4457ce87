"""Does a text try to steer the judge that reads it? A screen for known forms, not a proof that there is none.

It knows the stock phrases of such attempts in 15 languages, chat-template tokens, forged fences and grades, invisible
characters, and the same behind simple encodings (base64, hex, ROT13, reversal, percent and character escapes,
look-alike letters, digits for letters, spaced letters). Whoever writes in words of their own is not found.

All patterns run as one RE2 set: one pass over the text, in time linear in its length, whoever wrote it.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final
from urllib.parse import unquote

from evalpipe.judges.phrases import FORMS, PATTERNS, WORDS

_MAX_CHARS: Final = 20_000
"""What is looked at of a text: its head and its tail, each half of this; a judge is shown no more than that."""
_MAX_BLOBS: Final = 8
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_HIDDEN: Final = re.compile(
    "[\U000e0020-\U000e007e]{4}"  # letters as tags
    "|[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4}"  # bytes as variation selectors
    "|(?:[!-~][\u00ad\u200b-\u200d\u2060-\u2064\ufeff]+){4}"  # something invisible after each letter
    "|[\u202d\u202e]"  # letters in another order than they are shown
)
_BLOB: Final = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){16,}")
_SPACED: Final = re.compile(r"(?:\w[ _.-]){12,}\w")
_ESCAPED: Final = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_UNLEET: Final = str.maketrans("013457@$", "oieastas")
_LOOKALIKES: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u0410\u0412\u0415\u041a\u041c\u041d\u041e"
    "\u0420\u0421\u0422\u0425\u0406\u0408\u0405\u03b1\u03bf\u03c1\u03bd\u03b9\u03ba\u03c4\u0391\u0392\u0395\u0397\u0399\u039a\u039c"
    "\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u0396",
    "aeopcxyijshdqwABEKMHOPCTXIJSaopviktABEHIKMNOPTYXZ",
)
"""Letters of Cyrillic and Greek that look like Latin ones."""


def suspects(text: str) -> tuple[str, ...]:
    """The names of the patterns that are found, sorted; empty where the text is clean.

    ``encoded`` is among them where something was found only behind an encoding, ``hidden`` where characters that
    nobody sees carry something.

    Args:
        text: as captured; of more than 20,000 characters the head and the tail are looked at.
    """
    if len(text) > _MAX_CHARS:
        half = _MAX_CHARS // 2
        text = f"{text[:half]}\n{text[-half:]}"
    found = _matched(text)
    unseen = not text.isascii() and _INVISIBLE.search(text) is not None
    if unseen and _HIDDEN.search(text):
        found.add("hidden")
    behind = {name for form in _decoded(text, unseen=unseen) for name in _matched(form)} - found
    if behind:
        found |= {*behind, "encoded"}
    return tuple(sorted(found))


def _decoded(text: str, *, unseen: bool) -> Iterator[str]:
    """What the text may say to a reader who decodes it; each form only where the text looks like it."""
    forms = _named(_forms(), text)
    if unseen or "lookalike" in forms or not unicodedata.is_normalized("NFKC", text):
        plain = unicodedata.normalize("NFKC", _INVISIBLE.sub(_revealed, text) if unseen else text)
        yield plain.translate(_LOOKALIKES) if "lookalike" in forms else plain
    if unseen:
        yield _selected(text)
    if "blob" in forms:
        yield from (_printable(_from_base64(blob)) for blob in _BLOB.findall(text)[:_MAX_BLOBS])
    if "hex" in forms:
        yield from (_printable(_from_hex(blob)) for blob in _HEX.findall(text)[:_MAX_BLOBS])
    if "escaped" in forms:
        plain = html.unescape(unquote(text))
        yield _ESCAPED.sub(lambda m: chr(int(m[1] or m[2], 16)), plain)
    if "rot13" in forms:
        yield codecs.encode(text, "rot13")
    if "reversed" in forms:
        yield text[::-1]
    if "leet" in forms:
        yield text.translate(_UNLEET)
    if "spaced" in forms:
        yield from (run[::2].replace("_", " ") for run in _SPACED.findall(text)[:_MAX_BLOBS])


def _revealed(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(code - 0xE0000) if 0xE0020 <= code <= 0xE007E else ""


def _selected(text: str) -> str:
    """The bytes that are written as variation selectors, as text."""
    values = [ord(c) - 0xFE00 if c <= "\ufe0f" else ord(c) - 0xE0100 + 16
              for c in re.findall("[\ufe00-\ufe0f\U000e0100-\U000e01ef]", text)]  # fmt: skip
    return bytes(value for value in values if value < 256).decode("utf-8", "replace")


def _from_base64(blob: str) -> bytes:
    body = blob.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(body[: len(body) - (len(body) % 4 == 1)] + "=" * (-len(body) % 4))
    except (binascii.Error, ValueError):
        return b""


def _from_hex(blob: str) -> bytes:
    digits = re.sub(r"[ :]", "", blob)
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _printable(data: bytes) -> str:
    """The text that ``data`` is, or "" where it is none."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ""
    return text if sum(c.isprintable() or c.isspace() for c in text) > 0.95 * len(text) else ""


def _matched(text: str) -> set[str]:
    """The patterns in ``text``; most texts have none of the words that all of them need, and are done with at once."""
    return _named(_patterns(), text) if text and _named(_words(), text) else set()


def _named(patterns: tuple[Sequence[str], Any], text: str) -> set[str]:
    names, compiled = patterns
    return {names[place] for place in compiled.Match(text.encode("utf-8", "replace")) or ()}


@cache
def _patterns() -> tuple[Sequence[str], Any]:
    return _compiled(PATTERNS)


@cache
def _words() -> tuple[Sequence[str], Any]:
    return _compiled([("word", WORDS)])


@cache
def _forms() -> tuple[Sequence[str], Any]:
    return _compiled(FORMS)


def _compiled(patterns: Sequence[tuple[str, str]]) -> tuple[Sequence[str], Any]:
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = 64 << 20
    options.log_errors = False
    compiled = re2.Set.SearchSet(options)
    for _, pattern in patterns:
        compiled.Add(pattern.encode())
    compiled.Compile()
    return [name for name, _ in patterns], compiled
