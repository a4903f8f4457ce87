"""The checkable claims of a text: amounts, percents, durations, dates, times, counts, and addresses to turn to.

Claims are brought to one form, so that "30-day", "thirty days" and "30 Tage" are one claim, and two weeks are 14 days.
What is claimed of the number is not understood: "within 30 days" and "after 30 days" claim the same 30 days.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final, NamedTuple, TypeVar

from evalpipe.scorers.linear import Linear, utf8


class Claim(NamedTuple):
    """One claim in its common form.

    Attributes:
        kind: ``money``, ``percent``, ``duration``, ``date``, ``time``, ``count``, ``address``, or ``word`` for a count
            that is spelled out (it supports others, but is not checked itself: "two" is often no claim).
        value: a number as text, or the address.
        unit: the currency, ``h`` or ``month``, both perhaps after ``business``, the year of a date, or "".
    """

    kind: str
    value: str
    unit: str = ""


def claims(text: str) -> dict[Claim, str]:
    """The claims of ``text``, each with the words that make it."""
    found: dict[Claim, str] = {}
    for claim, quotation in _find(text.lower()):
        found.setdefault(claim, quotation.strip(" " + _SPELLED))
    return found


def supported(claim: Claim, known: Mapping[Claim, str]) -> bool:
    """Whether ``claim`` occurs among the ``known`` ones.

    A count is supported by the same number of anything, an amount without a currency by any currency, a duration that
    does not say business days by one that does, and a date without a year by one with any.
    """
    if claim in known:
        return True
    same = (other for other in known if other.value == claim.value)
    if claim.kind == "count":
        return any(True for _ in same)
    if claim.kind == "duration":
        return any(other.kind == "duration" and other.unit == f"business {claim.unit}" for other in same)
    if claim.kind in {"money", "date"}:
        return any(other.kind == claim.kind and not (other.unit and claim.unit) for other in same)
    return False


def _find(text: str) -> Iterator[tuple[Claim, str]]:
    if "@" in text or "://" in text or "www." in text:
        for address in _ADDRESS.finditer(text):
            yield Claim("address", _bare_address(address.group())), address.group()
        text = _ADDRESS.sub(" ", text)
    if _spelled_numbers().first(utf8(text)):
        text = _NUMBER_WORD.sub(_as_digits, text)
    done = 0
    pending: list[tuple[str, str]] = []  # first numbers of ranges: "3 to 5 days" claims 3 days too
    for number in _DIGITS.finditer(text):
        start, end = number.span()
        before = text[start - 1 : start]
        if start < done or (before.isalnum() or before in _INSIDE) or _enumerates(text, start, end):
            continue
        if moment := _moment(text, start):
            done, claim = moment
            yield claim, text[start:done]
            continue
        value = _value(number.group())
        sign = before if before in _SIGNS else text[max(0, start - 4) : start].rstrip()
        unit = None if sign in _CURRENCIES else _UNIT.match(text, end)
        if unit is None and sign not in _CURRENCIES and _RANGE.match(text, end):
            pending.append((value, number.group()))
            continue
        done = unit.end() if unit else end
        start -= len(before) if before in _SIGNS else 0
        for each, quotation in (*pending, (value, text[start:done])):
            yield _claim(each, sign, unit, spelled=before == _SPELLED), quotation
        pending.clear()


@cache
def _spelled_numbers() -> Linear:
    """Tells in a microsecond or two that a text spells out no number, as most do not."""
    return Linear(rf"\b(?:{_either(_NUMBER_WORDS)})\b")


def _as_digits(word: re.Match[str]) -> str:
    return _SPELLED + str(sum(_NUMBER_WORDS[part] for part in re.split(r"[\s-]", word.group())))


def _enumerates(text: str, start: int, end: int) -> bool:
    """Whether the number counts the points of a list: "2. Pack the item"."""
    if text[end : end + 1] not in (".", ")") or end - start > 2 or not text[end + 1 : end + 2].isspace():
        return False
    _, newline, line = text[max(0, start - 8) : start].rpartition("\n")
    return (newline != "" or start < 8) and not line.strip()


def _moment(text: str, start: int) -> tuple[int, Claim] | None:
    """The date or time of day that begins at ``start``, or of which the day stands there, and where it ends."""
    if iso := _ISO_DATE.match(text, start):
        return iso.end(), Claim("date", iso["day"], iso["year"])
    if date := _DAY_MONTH.match(text, start):
        return date.end(), Claim("date", f"{_MONTHS[date['month']]:02}-{int(date['day']):02}", date["year"] or "")
    if (month := _MONTH_BEFORE.search(text, max(0, start - 12), start)) and (day := _DAY_YEAR.match(text, start)):
        return day.end(), Claim("date", f"{_MONTHS[month['month']]:02}-{int(day['day']):02}", day["year"] or "")
    if (time := _TIME.match(text, start)) and (time["minute"] or time["half"]):
        hour = int(time["hour"])
        hour = hour % 12 + 12 * (time["half"] == "p") if time["half"] else hour
        return time.end(), Claim("time", f"{hour:02}:{time['minute'] or '00'}")
    return None


def _claim(value: str, sign: str, unit: re.Match[str] | None, *, spelled: bool) -> Claim:
    if sign in _CURRENCIES:
        return Claim("money", value, _CURRENCIES[sign])
    if unit is None:
        return Claim("word" if spelled else "count", value)
    if unit["percent"]:
        return Claim("percent", value)
    if unit["currency"]:
        return Claim("money", value, _CURRENCIES[unit["currency"]])
    length, base = _DURATIONS[unit["unit"]]
    work = "business " if unit["work"] or unit["worked"] else ""
    return Claim("duration", f"{float(value) * length:g}", work + base)


def _value(digits: str) -> str:
    *heads, tail = re.split("[.,]", digits)
    if heads and (len(tail) != 3 or heads == ["0"]):  # 1,000 and 1.000 are a thousand, 0.125 and 1.5 are not
        whole, fraction = "".join(heads), tail.rstrip("0")
    else:
        whole, fraction = "".join((*heads, tail)), ""
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")


def _bare_address(address: str) -> str:
    return address.rstrip(".,;:!?)\"'").removeprefix("https://").removeprefix("http://").removeprefix("www.")


T = TypeVar("T")


def _table(rows: Mapping[T, str]) -> dict[str, T]:
    """The value of each word, from the words of each value."""
    return {word: value for value, line in rows.items() for word in line.split()}


def _either(words: Iterable[str]) -> str:
    """An expression for one of ``words``, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))


_NUMBER_WORDS: Final = {
    word: number
    for number, line in {
        0: "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty",
        30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy", 80: "eighty", 90: "ninety", 100: "hundred",
    }.items()
    for number, word in enumerate(line.split(), number)
}  # fmt: skip
_CURRENCIES: Final = _table({
    "usd": "$ usd dollar dollars us$",
    "eur": "€ eur euro euros",
    "gbp": "£ gbp pound pounds",
    "jpy": "¥ jpy yen",
    "inr": "₹ inr rupee rupees",
    "chf": "chf francs franken",
    "pln": "zł pln złotych",
    "cent": "cent cents pence",
})  # fmt: skip
_DURATIONS: Final = _table({
    (1 / 60, "h"): "minute minutes min mins minuten minuto minutos minuti minuut minuta minut",
    (1, "h"): "hour hours hr hrs stunde stunden heure heures hora horas ora ore uur uren godzin godziny",
    (24, "h"): "day days tag tage tagen jour jours día días dia dias giorno giorni dag dagen dni dzień",
    (168, "h"): "week weeks wk wks woche wochen semaine semaines semana semanas settimana settimane weken tygodni",
    (1, "month"): "month months monat monate monaten mois mes meses mês mese mesi maand maanden miesiąc miesięcy",
    (12, "month"): "year years yr yrs jahr jahre jahren an ans année années año años ano anos anno anni jaar lat lata",
})  # fmt: skip
_MONTHS: Final = _table({
    1: "january jan januar janvier enero gennaio janeiro januari",
    2: "february feb februar février febrero febbraio fevereiro februari",
    3: "march mar märz mars marzo março maart",
    4: "april apr avril abril aprile",
    5: "may mai mayo maggio maio mei",
    6: "june jun juni juin junio giugno junho",
    7: "july jul juli juillet julio luglio julho",
    8: "august aug août agosto augustus",
    9: "september sept sep septembre septiembre settembre setembro",
    10: "october oct oktober octobre octubre ottobre outubro",
    11: "november nov novembre noviembre novembro",
    12: "december dec dezember décembre diciembre dicembre dezembro",
})  # fmt: skip

_MONTH: Final = _either(_MONTHS)
_ADDRESS: Final = re.compile(
    r"https?://[^\s<>\[\]]{1,300}|\bwww\.[^\s<>\[\]]{1,300}|(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}\w{2,24}\b"
)
_ISO_DATE: Final = re.compile(r"(?P<year>[0-9]{4})-(?P<day>[01][0-9]-[0-3][0-9])(?![\w-])")
_DAY_MONTH: Final = re.compile(
    rf"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th|\.|er|º)?\s(?:of\s|de\s)?(?P<month>{_MONTH})\b"
    r"(?:,?\s(?:de\s)?(?P<year>[12][0-9]{3})(?![\w-]))?"
)
_MONTH_BEFORE: Final = re.compile(rf"\b(?P<month>{_MONTH})\.?\s$")
_DAY_YEAR: Final = re.compile(r"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?\b(?:,?\s(?P<year>[12][0-9]{3})(?![\w-]))?")
_TIME: Final = re.compile(
    r"(?P<hour>[01]?[0-9]|2[0-3])(?::(?P<minute>[0-5][0-9])(?:[:.][0-9]{2})?)?(?:\s?(?P<half>[ap])(?:m\b|\.m\b\.?))?(?![\w:])"
)
_DIGITS: Final = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_SPELLED: Final = "\ue000"
"""Stands before a number that was spelled out."""
_SIGNS: Final = frozenset("$€£¥₹")
_INSIDE: Final = frozenset("._")
"""Before a number: it is part of a name or a version."""
_TENS: Final = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_NUMBER_WORD: Final = re.compile(
    rf"\b(?:(?:{_TENS})[\s-](?:one|two|three|four|five|six|seven|eight|nine)|{_either(_NUMBER_WORDS)})\b"
)
_UNIT: Final = re.compile(
    r"[\s-]{0,2}(?:"
    r"(?P<percent>%|(?:percent|per\scent|pct|prozent|pour\scent|por\sciento|per\scento|por\scento|procent)\b)"
    rf"|(?P<currency>[$€£¥₹]|(?:{_either(w for w in _CURRENCIES if w.isalpha())})\b)"
    r"|(?P<work>(?:full\s)?(?:business|working|work|werk|arbeits|geschäfts)[\s-]?)?"
    rf"(?P<unit>{_either(_DURATIONS)})\b"
    r"(?P<worked>\s(?:ouvrés|ouvrables|hábiles|laborables|lavorativi|úteis|roboczych)\b)?"
    r")"
)
_RANGE: Final = re.compile(
    rf"\s?(?:[-\u2013]|\b(?:to|or|and|bis|oder|und|à|ou|a|y|e|tot|en)\b)\s?(?=[0-9$€£¥₹{_SPELLED}])"
)
