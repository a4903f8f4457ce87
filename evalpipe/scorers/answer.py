"""When a heuristic has nothing to look at: the reasons that all of them share."""

from __future__ import annotations

from typing import Final

from evalpipe.record import Record

CUT_OFF: Final = frozenset({"length", "max_tokens", "max_output_tokens"})
"""Finish reasons (lower case) by which a provider says that the token limit cut the answer off."""


def nothing_to_score(record: Record) -> str:
    """Why the record has no answer that could be scored, or "" if it has one."""
    if record.error:
        return f"the call failed: {record.error[:200]}"
    if not record.output or record.output.isspace():
        return "the model called tools and said nothing" if record.tool_calls else "the output is empty"
    return ""


def context_texts(record: Record) -> list[str]:
    """The texts of the retrieved documents; a document without text is left out."""
    texts = (document.get("text") for document in record.context if hasattr(document, "get"))
    return [text for text in texts if isinstance(text, str) and text]


def context_ids(record: Record) -> list[str]:
    """The ids of the retrieved documents, as text; a document without an id is left out."""
    ids = (document.get("id") for document in record.context if hasattr(document, "get"))
    return [str(i) for i in ids if isinstance(i, str | int) and str(i)]
