"""API keys, tokens and passwords in a text: by the form their issuer gave them, or by the name they are assigned to.

Nearly all have a long run of letters, digits, ``-`` and ``_``, which prose seldom has: only such runs are compared with
the forms. Names (``password:``, ``api_key=``) are looked for only around a colon or an equals sign.
"""

from __future__ import annotations

import re
from typing import Final

Span = tuple[int, int, str]

_WORDS: Final = bytes(120 if (chr(byte).isalnum() and byte < 128) or byte in b"-_" else 32 for byte in range(256))
"""Writes letters, digits, ``-`` and ``_`` as ``x``, and all else as a space."""
_DIGITS: Final = b"0123456789"
_LONG: Final = b"x" * 16
"""A run that may be a key."""

_FORMS: Final = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:[sp]k|pplx|tvly|nvapi|xai|gsk|key|PMAK|rpa|fw|sntrys)-(?=[A-Za-z_-]{0,24}[0-9]|[A-Za-z]{20})[A-Za-z0-9_-]{16,}"
    r"|[a-z]{2,5}_(?:live|test|prod|sandbox)_[A-Za-z0-9]{16,}"  # Stripe and its like
    r"|(?:gh[pousr]|hf|gsk|npm|rpa|fw|xai|shp(?:at|ca|pa|ss)|glsa|glc|sntrys|sntryu|pcsk|figd|lin_api|r8|dop_v1|doo_v1"
    r"|dp\.pt|atlasv1|sgp|secret|ntn|pul|fo1|tskey|ops|phc|phx|rk|sk|lsv2_[ps][kt])_[A-Za-z0-9_+/-]{20,}"
    r"|github_pat_\w{20,}"
    r"|whsec_[A-Za-z0-9+/]{24,}={0,2}"
    r"|gl(?:pat|ptt|dt|rt|soat|cbt|imt|agent|oas|ft|ffct)-[\w.-]{20,}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{16,}|xoxe\.xox[bp]-[A-Za-z0-9-]{16,}"  # Slack
    r"|pypi-AgEI[A-Za-z0-9_-]{16,}"
    r"|A[KS]IA[0-9A-Z]{16}(?![0-9A-Za-z])"  # Amazon
    r"|AIza[0-9A-Za-z_-]{35}|GOCSPX-[\w-]{20,}"  # Google
    r"|(?:SK|AC)[0-9a-f]{32}(?![0-9A-Za-z])"  # Twilio
    r"|dapi[0-9a-f]{32}(?:-\d)?(?![0-9A-Za-z])"  # Databricks
    r"|ATATT3[\w=-]{40,}|ATCTT3[\w=-]{40,}"  # Atlassian
    r"|EAA[A-Za-z0-9]{80,}"  # Meta
    r"|[A-Za-z0-9]{52}JQQJ9[A-Za-z0-9]{27}(?![A-Za-z0-9])"  # Azure
    r"|AGE-SECRET-KEY-1[0-9A-Z]{30,}"
    r")"
)
_WEB_TOKEN: Final = re.compile(r"(?<![A-Za-z0-9_])eyJ[\w-]{8,400}+\.[\w-]{8,}(?:\.[\w-]+){0,3}")
_WITHOUT_DIGITS: Final = ("sk-", "pk-", "hf_", "AKIA", "ASIA")
_BOT: Final = re.compile(r"\b\d{8,10}:$")
_WEBHOOK: Final = re.compile(
    r"(?:hooks\.slack\.com/(?:services|workflows|triggers)/[\w/]{1,40}/|discord(?:app)?\.com/api/webhooks/\d{15,20}/)$"
)
_REST: Final = re.compile(r"[\w.~+/-]*={0,2}")
_PEM: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----[^-]{0,20000}(?:-----END [A-Z ]{0,30}KEY(?: BLOCK)?-----)?"
)
_BEARER: Final = re.compile(r"([Bb]earer|[Bb]asic) {1,4}(?P<value>[A-Za-z0-9._~+/-]{16,}={0,2})")
_AZURE_SECRET: Final = re.compile(r"[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}(?![A-Za-z0-9_~.-])")
_AWS_SECRET: Final = re.compile(r"(?<![A-Za-z0-9/+])(?=[A-Za-z/+]{0,39}\d)[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])")
_IN_URL: Final = re.compile(r"://[^\s/:@\[\]\"'<>]{0,100}:(?P<value>[^\s/@\[\]\"'<>${}]{1,200})@")

# --- assignments ------------------------------------------------------------------------------------------------------

_NEEDLES: Final = (b"pass", b"secret", b"token", b"key", b"pwd", b"contrase", b"senha")
_SPOKEN: Final = (b"passw",)
"""What people write without a colon, too: "my password is ..."."""
_REACH: Final = 28
_FEW: Final = 8
_NAME: Final = re.compile(
    r"(?:(?P<short>[\w.-]{0,24}"
    r"(?:passw(?:or[dt]|d)|passwort|passcode|passphrase|mot de passe|pwd|contrase\u00f1a|senha"
    r"|(?:secret|api|access|private|account|encryption|signing|master|service|license|shared[ _-]?access)[ _-]?key"
    r"|secret))|[\w.-]{0,24}token|(?<![\w-])key)"
    r"(?:[_-](?:value|base64|id))?[\"'`*]{0,4}"
    r"(?:[ \t]{0,3}(?:=>|:=|[:=]|: ?str ?=)(?![:=])[ \t]{0,3}[*`]{0,2}|[ ](?:is|was|ist|lautet|est|es)[ ])"
    r"(?:(?P<quote>[\"'])(?P<quoted>[^\"'\s\[\]]{6,200})(?P=quote)"
    r"|(?P<bare>[^\s\"',;<>()\[\]{}&`*]{6,200}(?:&(?!\w{1,40}=)[^\s\"',;<>()\[\]{}&`*]{1,80})?))",
    re.IGNORECASE,
)
_NAME_CHARACTERS: Final = bytes(32 if chr(byte).isalnum() or byte in b"_-. " else 10 for byte in range(256))
_PSEUDONYM: Final = re.compile(r"\[[a-z][a-z0-9_-]{0,30}:[A-Za-z0-9_-]{22,}\]")
_STRONG: Final = re.compile(r"(?=.*\d)(?=.*[A-Za-z])|(?=.*[A-Za-z])(?=.*[!@#$%^~?+])")
_RANDOM: Final = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.~+/=:-]{16,}$")
_NO_VALUE: Final = re.compile(
    r"(?:str|string|none|null|true|false|required|optional|hidden|secret|password|number|boolean|integer|object|undefined"
    r"|your[_-].*|my[_-].*|example.*|change.?me|\*+|x+|\.+|<.*|[$%{].*|.*[({].*|(?:os|env|process|settings|config|self"
    r"|secrets|args)\.[\w.]*|https?:.*|/.*|\d{1,9}|\d[\d.,-]*)$",
    re.IGNORECASE,
)


def keys(text: str, raw: bytes, rest: str, *, spoken: bool) -> list[Span]:
    """Keys, tokens and passwords.

    Args:
        text: where to look.
        raw: the same, character by character, in Latin-1.
        rest: of it, what is no small letter and no space.
        spoken: whether it may have the word "password".
    """
    found: list[Span] = []
    words = raw.translate(_WORDS)
    start = words.find(_LONG)
    if start >= 0:
        _long_runs(text, raw, words, start, found)
        _all(_BEARER, b"earer ", text, raw, 1, found)
        _all(_BEARER, b"asic ", text, raw, 1, found)
    if "PRIVATEKEY" in rest:
        _all(_PEM, b"-----BEGIN ", text, raw, 0, found)
    if "Q~" in rest:
        _all(_AZURE_SECRET, b"Q~", text, raw, 4, found)
    if "@" in rest and "://" in rest:
        _all(_IN_URL, b"://", text, raw, 0, found)
    _assigned(text, raw, rest, found, spoken=spoken)
    return found


def _all(pattern: re.Pattern[str], needle: bytes, text: str, raw: bytes, back: int, found: list[Span]) -> None:
    """What ``pattern`` finds where ``needle`` stands ``back`` characters after its beginning."""
    at = raw.find(needle)
    while at >= 0:
        match = pattern.match(text, at - back) if at >= back else None
        if match:
            group = "value" if "value" in pattern.groupindex else 0
            found.append((match.start(group), match.end(group), "key"))
        at = raw.find(needle, match.end() if match else at + len(needle))


def _long_runs(text: str, raw: bytes, words: bytes, start: int, found: list[Span]) -> None:
    while start >= 0:
        end = words.find(b" ", start)
        end = len(words) if end < 0 else end
        match = None
        # Names in code and slugs in addresses have letters only, and nearly all keys have digits.
        if len(raw[start:end].translate(None, _DIGITS)) < end - start or text.startswith(_WITHOUT_DIGITS, start):
            match = _FORMS.search(text, start, end)
        if match is None and text.startswith("eyJ", start):
            match = _WEB_TOKEN.match(text, start)
        if match and match.start() < end:
            match = _FORMS.match(text, match.start()) or match  # as far as it goes
            found.append((match.start(), match.end(), "key"))
            end = max(end, match.end())
            if text.startswith(("AKIA", "ASIA"), match.start()):
                found.extend((m.start(), m.end(), "key") for m in _AWS_SECRET.finditer(text, end, end + 200))
        elif start and text[start - 1] in "./:" and (own := _announced(text, start)) >= 0:
            rest = _REST.match(text, start)
            end = max(end, rest.end() if rest else end)
            found.append((start - own, end, "key"))
        start = words.find(_LONG, end)


def _announced(text: str, start: int) -> int:
    """How many characters before a long run belong to its key; -1 if what stands there makes it none."""
    sign = text[start - 1]
    if sign == ".":
        return 3 if text.endswith("SG.", 0, start) else 5 if text.endswith("ya29.", 0, start) else -1
    if sign == ":":
        number = _BOT.search(text[max(0, start - 12) : start]) if text.startswith("AA", start) else None
        return len(number[0]) if number else -1
    if text[start - 3 : start] == "1//":
        return 3
    before = text[max(0, start - 72) : start]
    return 0 if ".com/" in before and _WEBHOOK.search(before) else -1


def _assigned(text: str, raw: bytes, rest: str, found: list[Span], *, spoken: bool) -> None:
    """Values of names such as ``password``; where there are few colons, only what stands before them is looked at."""
    signs = rest.count(":") + rest.count("=")
    if signs > _FEW:
        _named(text, raw.lower(), _NEEDLES, 0, len(raw), found)
        return
    if spoken and _SPOKEN[0] in (lowered := raw.lower()):
        _named(text, lowered, _SPOKEN, 0, len(raw), found)
    if not signs:
        return
    for sign in ":=":
        at = text.find(sign)
        while at >= 0:
            start = at - _REACH if at > _REACH else 0
            if _may_name(text[start:at].lower()):
                _named(text, raw.lower(), _NEEDLES, start, at, found)
            at = text.find(sign, at + 1)


def _may_name(near: str) -> bool:
    """Whether one of the needles is in it; as a loop over them it would take twice as long."""
    return (
        "key" in near
        or "token" in near
        or "pass" in near
        or "secret" in near
        or "pwd" in near
        or "contrase" in near
        or "senha" in near
    )


def _named(text: str, lowered: bytes, needles: tuple[bytes, ...], start: int, end: int, found: list[Span]) -> None:
    """Assignments whose name begins in ``text[start:end]``."""
    for needle in needles:
        at = lowered.find(needle, start, end)
        while at >= 0:
            before = lowered[max(start, at - 20) : at].translate(_NAME_CHARACTERS)
            begin = at - len(before) + before.rfind(b"\n") + 1
            match = _NAME.match(text, begin) or _NAME.match(text, at)
            if match and not _PSEUDONYM.match(text, max(0, match.start() - 1)) and (span := _value(match)):
                found.append(span)
            at = lowered.find(needle, at + len(needle), end)


def _value(match: re.Match[str]) -> Span | None:
    """Where the value stands, if it is one and no type, variable or placeholder."""
    quoted, bare = match["quoted"], match["bare"]
    value = quoted or bare.rstrip(".:?")
    if len(value) < 6 or _NO_VALUE.match(value):
        return None
    if match["short"] is None:
        if not _RANDOM.match(value):
            return None
    elif quoted is None and not _STRONG.match(value):
        return None
    start = match.start("quoted" if quoted else "bare")
    return start, start + len(value), "key"
