"""Check digits: what tells a card, a bank account or a national id from a number that only looks like one.

Each takes the id without separators, in upper case, and says whether it can be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final


def luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        total += _DOUBLED[value] if index % 2 else value
    return total % 10 == 0


def iban(value: str) -> bool:
    """ISO 13616: as long as the country's are, and 1 modulo 97 with the first four characters moved to the end."""
    if IBAN_LENGTHS.get(value[:2]) != len(value):
        return False
    return int("".join(str(int(c, 36)) for c in value[4:] + value[:4])) % 97 == 1


def ssn(value: str) -> bool:
    """United States: no area 000, 666 or from 900 on, no group 00, no serial 0000."""
    return value[:3] not in {"000", "666"} and value[0] != "9" and value[3:5] != "00" and value[5:] != "0000"


def nino(value: str) -> bool:
    """United Kingdom: the prefixes that are given out, and a suffix from A to D."""
    prefix = value[:2]
    return (
        not set(prefix) & set("DFIQUV")
        and prefix[1] != "O"
        and prefix not in {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}
        and value[8] in "ABCD"
    )


def steuer_id(value: str) -> bool:
    """Germany: of the first ten digits one occurs twice or three times and no other twice; ISO 7064, MOD 11,10."""
    counts = sorted(value[:10].count(digit) for digit in set(value[:10]))
    if value[0] == "0" or counts[-1] not in {2, 3} or counts[-2:-1] != [1]:
        return False
    product = 10
    for digit in value[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(value[10])


def nir(value: str) -> bool:
    """France: sex, month, and 97 minus the rest; the departments of Corsica count as 19 and 18."""
    if value[0] not in "12" or not ("01" <= value[3:5] <= "12" or "20" <= value[3:5] <= "42"):
        return False
    number = value[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(value[13:])


def dni(value: str) -> bool:
    """Spain: DNI and NIE, whose letter is the number modulo 23."""
    number = value[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return number.isdigit() and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == value[-1]


def codice_fiscale(value: str) -> bool:
    """Italy: a letter for the month, a day from 1 to 31 or 41 to 71, and the last letter."""
    if value[8] not in "ABCDEHLMPRST" or not (1 <= int(value[9:11]) % 40 <= 31):
        return False
    odd = sum(_CODICE_ODD[int(c, 36) - 10 if c.isalpha() else int(c)] for c in value[:15:2])
    even = sum(int(c, 36) - 10 if c.isalpha() else int(c) for c in value[1:15:2])
    return chr(65 + (odd + even) % 26) == value[15]


def bsn(value: str) -> bool:
    """Netherlands: the test of eleven."""
    return _weighted(value, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and value != "000000000"


def pesel(value: str) -> bool:
    """Poland: a date of birth and a check digit."""
    return 1 <= int(value[2:4]) % 20 <= 12 and 1 <= int(value[4:6]) <= 31 and (
        _weighted(value, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    )  # fmt: skip


def cpf(value: str) -> bool:
    """Brazil, people: two check digits modulo 11."""
    checks = [_weighted(value[:n], range(n + 1, 1, -1)) * 10 % 11 % 10 for n in (9, 10)]
    return f"{checks[0]}{checks[1]}" == value[9:] and len(set(value)) > 1


def cnpj(value: str) -> bool:
    """Brazil, companies: two check digits modulo 11; since 2026 the rest may have letters."""
    weights = (6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2)
    values = [ord(c) - 48 for c in value]
    for n in (12, 13):
        rest = sum(v * w for v, w in zip(values[:n], weights[13 - n :], strict=True)) % 11
        if values[n] != (0 if rest < 2 else 11 - rest):
            return False
    return len(set(value)) > 1


def aadhaar(value: str) -> bool:
    """India: the check digit of Verhoeff, and no 0 or 1 in front."""
    check = 0
    for index, digit in enumerate(reversed(value)):
        check = _dihedral(check, int(_VERHOEFF[index % 8][int(digit)]))
    return check == 0 and value[0] not in "01"


def sin(value: str) -> bool:
    """Canada."""
    return luhn(value) and value[0] not in "08"


def personnummer(value: str) -> bool:
    """Sweden: a date (of a coordination number with 60 added to the day) and a check digit, with or without century."""
    short = value[-10:]
    return "01" <= short[2:4] <= "12" and 1 <= int(short[4:6]) % 60 <= 31 and luhn(short)


def hetu(value: str) -> bool:
    """Finland: a date, a sign for the century, and a check character."""
    number = value[:6] + value[-4:-1]
    return _day_month(value) and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number) % 31] == value[-1]


def fodselsnummer(value: str) -> bool:
    """Norway: a date and two check digits modulo 11."""
    return (
        1 <= int(value[:2]) % 40 <= 31
        and 1 <= int(value[2:4]) % 40 <= 12
        and _weighted(value[:10], (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
        and _weighted(value, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0
    )


def rijksregister(value: str) -> bool:
    """Belgium: 97 minus the first nine digits, those born since 2000 with a 2 in front."""
    return int(value[2:4]) % 20 <= 12 and any(
        97 - int(century + value[:9]) % 97 == int(value[9:]) for century in ("", "2")
    )


def ahv(value: str) -> bool:
    """Switzerland: the country's number, and a check digit as on goods."""
    return value.startswith("756") and _weighted(value, (1, 3) * 6 + (1,)) % 10 == 0


def resident_id(value: str) -> bool:
    """China: a date of birth and a check character, ISO 7064, MOD 11-2."""
    if value[6:8] not in {"19", "20"} or not ("01" <= value[10:12] <= "12" and "01" <= value[12:14] <= "31"):
        return False
    total = sum(int(c) * pow(2, 17 - i, 11) for i, c in enumerate(value[:17]))
    return "10X98765432"[total % 11] == value[17]


def tckn(value: str) -> bool:
    """Turkey: two check digits."""
    d = [int(c) for c in value]
    return d[0] > 0 and (7 * sum(d[0:9:2]) - sum(d[1:8:2])) % 10 == d[9] and sum(d[:10]) % 10 == d[10]


def _weighted(value: str, weights: Sequence[int]) -> int:
    return sum((ord(c) - 48) * w for c, w in zip(value, weights, strict=True))


def _day_month(value: str) -> bool:
    return "01" <= value[:2] <= "31" and "01" <= value[2:4] <= "12"


def _dihedral(a: int, b: int) -> int:
    """The product in the group of the pentagon's symmetries, numbered as Verhoeff did."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5


_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_CODICE_ODD: Final = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_VERHOEFF: Final = ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415",
                    "7046913258")  # fmt: skip
IBAN_LENGTHS: Final = {
    countries[i : i + 2]: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DKFIFKFOGLNLSD", 19: "MKSI", 20: "ATBAEEKZLTLUMNXK", 21: "CHHRLILV",
        22: "BGBHCRDEGBGEIEMERSVA", 23: "AEGIILIQOMSOTL", 24: "ADCZESMDPKROSASESKTNVG", 25: "LYPTST", 26: "ISTR",
        27: "BIDJFRGRITMCMRSM", 28: "ALAZBYCYDOGTHNHULBNIPLSV", 29: "BREGPSQAUA", 30: "JOKWMUYE", 31: "MTSC", 32: "LC",
        33: "RU",
    }.items()
    for i in range(0, len(countries), 2)
}  # fmt: skip
"""Characters of an IBAN, by country: the lengths of the registry."""
