"""The words of a text that carry its subject, cut to a stem: what ``topic`` and ``citation`` compare."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

# One regular expression for all scripts: a run of letters (an apostrophe inside belongs to it) or of digits.
_WORD: Final = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?|\d+(?:[.,]\d+)*")
_FIRST_UNSPACED: Final = "\u0e00"
"""From here on come the scripts without spaces between words or letters: Thai, Japanese, Chinese, Korean."""


def stems(text: str) -> list[str]:
    """The stems of the content words of ``text``, in order, and its numbers as they are written.

    Truncation to six letters, after a plural s: crude, needs no dictionary, and in the languages of Europe about as
    good for matching as a stemmer (P. McNamee and J. Mayfield, Character n-gram tokenization, 2004). Scripts without
    spaces give pairs of characters.
    """
    found: list[str] = []
    for token in text.lower().split():
        found += _kept(token) if len(token) <= _KEPT_CHARS else _stems(token)
    return found


_KEPT_CHARS: Final = 30


@lru_cache(maxsize=50_000)
def _kept(token: str) -> tuple[str, ...]:
    return tuple(_stems(token))


def _stems(token: str) -> list[str]:
    found: list[str] = []
    for word in _WORD.findall(token):
        if word[0] >= _FIRST_UNSPACED:
            found.extend([word[i : i + 2] for i in range(len(word) - 1)] or [word])
        elif word[0].isdigit():
            found.append(word)
        elif stem := _stem(word):
            found.append(stem)
    return found


def _stem(word: str) -> str:
    """The stem of a content word, "" for a function word or a single letter."""
    if word in FUNCTION_WORDS:
        return ""
    word = word.partition("'")[0].partition("\u2019")[0]
    if len(word) > 3 and word[-1] == "s" and word[-2] != "s":
        word = word[:-1]
    return "" if len(word) < 2 or word in FUNCTION_WORDS else word[:6]


FUNCTION_WORDS: Final = frozenset(
    """
    a about above after again all also although always am an and another any anything are around as at be
    because been before being below between both but by can can't cannot could did didn't do does doesn't doing
    don't down during each either else even ever every few for from further get gets getting given go goes going
    got had has have haven't having he her here hers him his how however i i'd i'll i'm i've if in into is isn't
    it it's its just kind let let's like made make makes many may me might mine more most much must my need
    needs neither no nor not now of off on once one only or other our ours out over own perhaps please rather
    really same say says see she should since so some something still such sure take than that that's the their
    theirs them then there there's these they they're this those though through to too under until up upon us
    use used very via want was wasn't way we we'd we'll we're we've well were what when where whether which
    while who whom whose why will with within without won't would yes yet you you'd you'll you're you've your
    yours yourself
    aber als am an auch auf aus bei bin bis bist da damit das dass dein dem den der des die dies diese diesem
    diesen dieser doch du durch ein eine einem einen einer eines er es euch euer für hat habe haben hier ich ihm
    ihn ihnen ihr ihre ihrem ihren ihrer im in ist ja kann kein keine können man mein mit muss nach nicht noch
    nur ob oder ohne sehr sein seine sich sie sind so über um und uns unser unter vom von vor war was wenn wer
    werden wie wir wird wo zu zum zur
    à au aux avec avoir c'est ce ces cette dans de des du elle elles en est et être eu il ils je la le les leur
    lui ma mais me mes moi mon ne nos notre nous on ou où par pas peut plus pour qu que qui sa sans se ses si
    son sont sur ta te tes toi ton tous tout très tu un une vos votre vous y
    al algo como con cual cuando del donde e el ella ellos ese esta está este esto ha han hay la las lo los me
    mi muy más no nos o para pero por porque que qué quien se ser si sin sobre son su sus también tan te tiene
    tu un una uno usted ustedes ya yo
    ai alla alle anche che chi ci come con da dal dalla dei del della delle di dove è gli ha hai hanno il io le
    lei lo loro lui ma mi mia mio ne nel nella noi non o ogni per perché più può quando quello questa questo se
    si sia sono sua suo sul sulla tra tu un una voi
    ao aos as até com como da das de dele do dos e ela ele eles em entre era essa esse esta este eu foi isso já
    lhe mais mas me mesmo meu minha muito na não nas no nos nós num o os ou para pela pelo por qual quando que
    quem se sem seu seus sua são só também te tem um uma você vocês à é
    aan al als bij daar dan dat de der deze die dit doch door een en er ge geen haar had heb hebben heeft hem
    het hij hoe hun iets ik in is ja je jij jou kan maar me meer men met mij mijn na naar niet nog nu of om
    omdat onder ons ook op over te tegen tot u uit uw van veel voor waar wat we wel wie wij wil wordt worden zal
    ze zelf zich zij zijn zo zou
    """.split()  # noqa: SIM905 - a page of quotation marks would be harder to read
)
"""Words that say nothing of the subject: English, German, French, Spanish, Italian, Portuguese, Dutch."""
