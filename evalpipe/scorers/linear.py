r"""Regular expressions whose running time is linear in the text, whoever wrote the expression and the text: RE2.

RE2 has no look-around and no back-references, and its ``\w``, ``\d`` and ``\b`` know ASCII only (write ``\pL`` for
a letter of any script).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evalpipe.errors import ConfigError


def utf8(text: str) -> bytes:
    """``text`` for RE2: lone surrogates, which have no UTF-8, become question marks."""
    return text.encode("utf-8", "replace")


class Linear:
    """A compiled expression over UTF-8 bytes.

    Args:
        pattern: in RE2's syntax.
        ignore_case: do not tell capital from small letters.

    Raises:
        ConfigError: the pattern does not compile; the message has the pattern and RE2's reason.
    """

    __slots__ = ("_regex",)

    def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
        import re2

        options = re2.Options()
        options.case_sensitive = not ignore_case
        options.log_errors = False
        try:
            self._regex: Any = re2.compile(utf8(pattern), options)
        except re2.error as error:
            reason = error.args[0] if error.args else error
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise ConfigError(
                f"the pattern {pattern!r} is not one that RE2 knows: {reason}; RE2 has no look-around and no "
                "back-references, see github.com/google/re2/wiki/Syntax"
            ) from error

    def first(self, text: bytes) -> str | None:
        """The first match as text, or None."""
        match = self._regex.search(text)
        return None if match is None else match.group().decode(errors="replace")

    def all(self, text: bytes) -> Iterator[str]:
        """Every match, from left to right, as text."""
        return (match.group().decode(errors="replace") for match in self._regex.finditer(text))
