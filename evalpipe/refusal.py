"""Does an answer refuse? A screen by template phrases, shared by the hook and the workers.

Standard library only, a few microseconds, and bounded by construction: it looks at the first 400 characters, because a
model that refuses says so at once, and it searches for literals, so no input can make it backtrack.

It finds the models' stock refusals in 20 languages. It does not find a refusal in other words (a lecture, a change of
subject), and it does not call a policy's "no" a refusal: "we do not refund gift cards" answers the question. docs/heuristics.md
has the figures.
"""

# ruff: noqa: E501, RUF001 - letters of other scripts, some of them twice as wide, are what this file is about

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

SCREENED_CHARS: Final = 400
"""How much of an answer is looked at."""
FINISH_REASONS: Final = frozenset({"content_filter", "refusal", "safety", "prohibited_content", "blocklist"})
"""Finish reasons (lower case) by which a provider itself says that the answer was refused or withheld."""


class Template(NamedTuple):
    """A refusal's wording: an opening, then within ``gap`` characters of the same sentence a continuation.

    Without continuations the opening alone is a refusal.
    """

    language: str
    openings: Sequence[str]
    continuations: Sequence[str] = ()
    gap: int = 24


def refusal_phrase(text: str, extra: Iterable[str] = ()) -> str:
    """The words by which ``text`` refuses, or "" if it does not.

    Args:
        text: the answer as the user saw it.
        extra: further phrases, in lower case, that make an answer a refusal.
    """
    head = text[:SCREENED_CHARS].lower()
    ascii_only = head.isascii()
    if not ascii_only:
        head = head.replace("\u2019", "'").replace("\u02bc", "'").replace("\u00a0", " ")
    for phrase in extra:
        if phrase in head:
            return phrase
    if words := _WORDS.intersection(head.split()):
        for word in sorted(words):
            if phrase := _search(head, _BY_WORD[word]):
                return phrase
    if not ascii_only:
        for gates, searches in _UNSPACED:
            if any(gate in head for gate in gates) and (phrase := _search(head, searches)):
                return phrase
    return ""


def is_refusal(text: str, finish_reason: str = "") -> bool:
    """Whether the answer is a refusal by its wording, or by what the provider gave as the finish reason."""
    return finish_reason.lower() in FINISH_REASONS or refusal_phrase(text) != ""


def _search(head: str, searches: Sequence[_Search]) -> str:
    for opening, continuations, gap in searches:
        start = head.find(opening)
        if start >= 0 and (phrase := _continued(head, start, opening, continuations, gap)):
            return phrase
    return ""


def _continued(head: str, start: int, opening: str, continuations: Sequence[str], gap: int) -> str:
    if not continuations:
        return opening
    while start >= 0:
        end = start + len(opening)
        if start == 0 or not head[start - 1].isalnum() or not opening[0].isascii():
            for continuation in continuations:
                at = head.find(continuation, end, end + gap + len(continuation))
                if at >= 0 and not any(stop in head[end:at] for stop in _SENTENCE_ENDS):
                    return head[start : at + len(continuation)]
        start = head.find(opening, end)
    return ""


_SENTENCE_ENDS: Final = (". ", "! ", "? ", "\n", ", but", "; ", "。", "！", "，但")

_CAN_NOT: Final = (
    "i can't", "i cannot", "i can not", "i'm unable to", "i am unable to", "i'm not able to", "i am not able to",
    "i won't", "i will not", "i'm not going to", "i am not programmed to", "i'm not programmed to",
    "i'm not allowed to", "i am not allowed to",
)  # fmt: skip
_HELP: Final = (
    " help", " assist", " provide", " comply", " fulfil", " create", " write", " generate", " produce", " engage",
    " discuss", " participate", " support", " answer that", " answer this", " answer your", " respond to", " do that",
    " do this", " share", " give you instructions", " give instructions", " give advice", " give you advice",
    " offer advice", " offer assistance", " offer guidance", " facilitate", " promote", " condone", " encourage",
    " continue with", " complete this request", " complete that request", " complete your request",
    " accommodate", " be able to help", " be able to assist",
)  # fmt: skip

TEMPLATES: Final = (
    Template("en", _CAN_NOT, _HELP, gap=22),
    Template("en", ("as an ai", "as a language model", "as a large language model"),
             ("i cannot", "i can't", "i am not able", "i'm not able", "i am unable", "i'm unable", "i do not have",
              "i don't have"), gap=40),
    Template("en", ("i must decline", "i have to decline", "i'll have to decline", "i will have to decline",
                    "i need to decline", "i'm not comfortable", "i am not comfortable", "i don't feel comfortable",
                    "not something i can help", "not something i can assist", "against my guidelines",
                    "against my programming", "violates my guidelines", "i respectfully decline",
                    "i apologize, but i cannot", "i apologize, but i can't", "i'd rather not", "i refuse to")),
    Template("de", ("ich kann", "kann ich", "ich darf", "darf ich", "ich könnte", "ich werde"),
             ("nicht helfen", "nicht weiterhelfen", "nicht behilflich", "nicht unterstützen", "nicht erfüllen",
              "nicht bereitstellen", "nicht nachkommen", "nicht beantworten", "nicht entsprechen", "nicht mithelfen",
              "keine hilfe", "keine auskunft", "keine anleitung", "nicht dabei helfen", "nicht damit helfen"), gap=60),
    Template("de", ("ich bin nicht in der lage", "es ist mir nicht möglich", "nicht in der lage, ihnen"),
             ("helfen", "unterstützen", "beantworten", "erfüllen", "bereitzustellen"), gap=50),
    Template("fr", ("je ne peux pas", "je ne peux malheureusement pas", "je ne suis pas en mesure d",
                    "je ne suis pas capable d", "je ne suis pas autorisé à", "je ne suis pas autorisée à", "il m'est impossible d",
                    "je ne pourrai pas", "je suis dans l'impossibilité d", "je ne saurais"),
             ("aider", "fournir", "répondre", "accéder à", "satisfaire", "donner suite", "créer", "écrire", "générer",
              "assister", "faire cela", "participer", "rédiger"), gap=30),
    Template("es", ("no puedo", "no me es posible", "no soy capaz de", "no estoy en condiciones de", "no podré",
                    "no estoy autorizado", "no estoy autorizada"),
             ("ayudar", "asistir", "proporcionar", "cumplir", "brindar", "responder a", "crear", "escribir", "generar",
              "facilitar", "participar", "hacer eso", "completar"), gap=24),
    Template("it", ("non posso", "non sono in grado di", "non mi è possibile", "mi è impossibile", "non potrò"),
             ("aiutar", "assister", "fornir", "soddisfare", "rispondere a", "creare", "scrivere", "generare",
              "partecipare", "farlo", "aiuto"), gap=24),
    Template("pt", ("não posso", "não consigo", "não sou capaz de", "não estou autorizado", "não estou autorizada", "não é possível para mim",
                    "não poderei"),
             ("ajudar", "ajudá", "ajuda-l", "auxiliar", "fornecer", "atender a", "cumprir", "responder a", "criar",
              "escrever", "gerar", "participar", "fazer isso", "oferecer ajuda"), gap=24),
    Template("nl", ("ik kan", "kan ik", "ik mag", "mag ik"),
             ("niet helpen", "niet mee helpen", "niet bij helpen", "niet aan voldoen", "niet voldoen",
              "niet verstrekken", "niet beantwoorden", "niet assisteren", "geen hulp",
              "niet aan meewerken", "niet verder helpen"), gap=50),
    Template("nl", ("ik ben niet in staat om", "ik ben niet in staat u"), ("helpen", "voldoen", "verstrekken"), gap=40),
    Template("sv", ("jag kan", "kan jag"),
             ("inte hjälpa", "inte bistå", "inte tillhandahålla", "inte svara på", "inte uppfylla"), gap=24),
    Template("pl", ("nie mogę", "nie jestem w stanie", "nie będę w stanie", "nie mogłabym", "nie mógłbym"),
             ("pomóc", "udzielić", "spełnić", "dostarczyć", "odpowiedzieć", "stworzyć", "napisać", "wygenerować",
              "zrealizować", "pomagać"), gap=30),
    Template("cs", ("nemohu", "nemůžu", "nejsem schopen", "nejsem schopna"),
             ("pomoci", "pomoct", "poskytnout", "splnit", "vyhovět", "odpovědět"), gap=30),
    Template("ru", ("не могу", "не смогу", "не в состоянии", "не имею возможности"),
             ("помочь", "помогать", "помощь", "предоставить", "выполнить", "ответить", "создать", "написать",
              "содействовать", "обсуждать", "поддержать", "участвовать"), gap=30),
    Template("uk", ("не можу", "не зможу"), ("допомогти", "надати", "виконати", "відповісти", "створити"), gap=30),
    Template("tr", ("yardımcı olamam", "yardımcı olamıyorum", "yardımcı olamayacağım", "yardımcı olamayız",
                    "yardım edemem", "yardım edemiyorum", "yerine getiremem", "yerine getiremiyorum", "bunu yapamam",
                    "cevap veremem", "yanıt veremem", "bilgi veremem")),
    Template("ar", ("لا أستطيع", "لا يمكنني", "لست قادرا", "لست قادرًا", "لست قادرة", "لن أتمكن", "لا أقدر"),
             ("مساعدت", "المساعدة", "تقديم", "تلبية", "الإجابة", "توفير", "كتابة", "إنشاء"), gap=24),
    Template("hi", ("मदद नहीं कर सक", "सहायता नहीं कर सक", "प्रदान नहीं कर सक", "पूरा नहीं कर सक",
                    "उत्तर नहीं दे सक")),
    Template("zh", ("我无法", "我不能", "我没办法", "無法為您", "我無法", "无法为您", "无法为你", "恕我无法", "抱歉，无法"),
             ("提供", "帮助", "帮您", "帮你", "协助", "满足", "回答", "完成", "执行", "生成", "创作", "讨论", "支持",
              "幫助", "協助", "滿足", "執行", "討論"), gap=12),
    Template("ja", ("お手伝いできません", "お手伝いすることはできません", "お手伝いすることができません",
                    "お答えできません", "お答えすることはできません", "対応できません", "対応することはできません", "応じられません",
                    "応じることはできません", "応じることができません", "提供できません", "提供することはできません",
                    "提供することができません", "お力になれません", "お応えできません", "支援できません",
                    "お断りします", "お断りいたします")),
    Template("ko", ("도와드릴 수 없", "도와 드릴 수 없", "도울 수 없", "도움을 드릴 수 없", "도움을 줄 수 없",
                    "제공할 수 없", "제공해 드릴 수 없", "제공해드릴 수 없", "답변할 수 없", "답변드릴 수 없",
                    "답변해 드릴 수 없", "응할 수 없", "들어드릴 수 없", "지원할 수 없", "작성할 수 없")),
    Template("id", ("saya tidak dapat", "saya tidak bisa"),
             ("membantu", "memberikan", "menyediakan", "memenuhi", "menjawab"), gap=16),
    Template("vi", ("tôi không thể",), ("giúp", "hỗ trợ", "cung cấp", "đáp ứng", "trả lời"), gap=16),
)  # fmt: skip
"""Every wording that the screen knows."""

_Search = tuple[str, Sequence[str], int]


def _word_of(opening: str, *, is_all: bool) -> str:
    """The word without which the opening cannot be there: the longest that is sure to stand between white space.

    The first word may have a quotation mark before it, and the last one of a whole phrase a full stop behind it.
    """
    words = opening.split()
    inner = words[1:-1] if is_all else words[1:]
    return max(inner or words[:1], key=len)


_UNSPACED_GATES: Final = {
    "hi": ("नहीं",),
    "ja": ("ません", "お断り"),
    "ko": ("수 없",),
    "zh": ("无法", "無法", "不能", "没办法"),
}
"""Of languages that are written without spaces, or that put endings on every word: what each opening has one of."""


def _filed() -> tuple[dict[str, list[_Search]], list[tuple[Sequence[str], list[_Search]]]]:
    """Every opening under one of its words, so that an answer is searched only for those whose word it has.

    A language that has no such words is a list of its own, which is searched where one of its gates is found.
    """
    by_word: dict[str, list[_Search]] = {}
    unspaced: list[tuple[Sequence[str], list[_Search]]] = []
    for template in TEMPLATES:
        is_all = not template.continuations
        searches = [(opening, template.continuations, template.gap) for opening in template.openings]
        if gates := _UNSPACED_GATES.get(template.language):
            unspaced.append((gates, searches))
            continue
        for search in searches:
            by_word.setdefault(_word_of(search[0], is_all=is_all), []).append(search)
    return by_word, unspaced


_BY_WORD, _UNSPACED = _filed()
_WORDS: Final = frozenset(_BY_WORD)
