"""The judged text is hostile: it is shown to a judge as data, between lines that it cannot forge.

Every part of a record begins with a line that carries a code, and a last line with the code ends them. The code comes
from the work's id (so that a replay sends the same prompt), was unknown when the text was written, and is chosen so
that it does not occur in the text at all.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
from collections.abc import Sequence
from typing import Final

_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # characters without a shape
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # invisible, or turning the reading direction
    "\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # annotation, shorthand, musical notation
    "\U000e0000-\U000e0fff\ud800-\udfff]"  # tag letters that only models read, half characters
    "|(?<=[!-~])[\u200c\u200d]+"  # joiners, which Persian and emoji need, in plain letters
    "|(?<=[\ufe00-\ufe0f])[\ufe00-\ufe0f]+"  # variation selectors in a row carry bytes; one makes an emoji colourful
)
# Words of chat templates: a local server may read them in the text as the real thing and end the turn.
_TEMPLATE: Final = re.compile(
    r"<(?=[|\uff5c]|/?s>|/?(?:start_of_turn|end_of_turn|start_of_image|bos|eos|unk|pad|mask|system|user|assistant|think|"
    r"tool_call|tool_response|tool_calls|tools)>|</?SYS>>|[a-z_]{1,24}[|\uff5c]>)"
    r"|\[(?=/?(?:INST|SYS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|THINK|BEGIN_OF_TEXT|IMG|"
    r"PREFIX|SUFFIX|MIDDLE)\])",
    re.IGNORECASE,
)
# Lines that look like our own, with whatever code.
_FORGED: Final = re.compile(
    r"^([^\S\n]*)(?:\[(?=[0-9a-z]{0,64}[^\S\n]*(?:END|OUTPUT|INPUT|CONTEXT|TOOLS|REFERENCE|FIRST|SECOND)\])"
    r"|(?=Code:[^\S\n]*[0-9a-f]{4,64}[^\S\n]*$))",
    re.IGNORECASE | re.MULTILINE,
)

_CONTROLS: Final = bytes({*range(32), 127} - {9, 10})
_OPENINGS: Final = frozenset("[cC")
"""How a line begins that looks like one of the fence's."""


def neutral(text: str) -> str:
    """``text`` as it can be shown to a judge, a terminal or a page.

    What people cannot see is replaced, what a chat template would take as its own gets a gap, and a line that looks
    like one of the fence's is quoted. Doing it twice changes nothing more.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Most texts have nothing of the kind, and seeing that is ten times quicker than looking for it.
    if not text.isascii() or _has_control(text):
        text = _INVISIBLE.sub("\ufffd", text)
    if "<" in text or "[" in text:
        text = _TEMPLATE.sub(r"\g<0> ", text)
    if any(line.lstrip()[:1] in _OPENINGS for line in text.split("\n")):
        text = _FORGED.sub(r"\g<1>> \g<0>", text)
    return text


def _has_control(text: str) -> bool:
    """Whether there are control characters but tab and line feed in an ASCII text."""
    data = text.encode("ascii")
    return len(data.translate(None, _CONTROLS)) < len(data)


def clipped(text: str, bound: int) -> str:
    """``text``, or its head and tail with a mark between them that says how much is left out.

    Args:
        text: any text.
        bound: characters that are kept at the most; the mark comes on top.
    """
    left_out = len(text) - bound
    if left_out <= 0:
        return text
    head = bound // 2
    return f"{text[:head]}\n[... {left_out} characters left out ...]\n{text[len(text) - (bound - head) :]}"


def fenced(parts: Sequence[tuple[str, str]], *, work_id: str, salt: str = "") -> str:
    """The parts of a record as a judge reads them.

    Args:
        parts: name and text of each; texts are made neutral here.
        work_id: names the work; the same id and texts give the same prompt.
        salt: a secret of the installation; with it, who knows the id still cannot tell the code.
    """
    texts = [(name, neutral(text)) for name, text in parts]
    code = _code(work_id, salt, [text for _, text in texts])
    body = "\n".join(f"[{code} {name}]\n{text}" for name, text in texts)
    return f"Code: {code}\n{body}\n[{code} END]\n"


def _code(work_id: str, salt: str, texts: Sequence[str]) -> str:
    lower = [text.lower() for text in texts]
    for number in itertools.count():
        digest = hmac.new(salt.encode(), f"{work_id}\x1f{number}".encode(), hashlib.sha256)
        code = digest.hexdigest()[:12]
        if not any(code in text for text in lower):
            return code
    raise AssertionError  # the count does not end
