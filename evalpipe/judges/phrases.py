"""The words of those who speak to a judge instead of to a user: RE2 patterns by the name of what they are.

Each wants at least two things at once (an order and its object, a grader and a duty): a text on exams or product
ratings has one of them.
"""

from __future__ import annotations

from typing import Final

_UP_TO_4: Final = r"(?:\W+\w+){0,4}?\W+"
_GRADE: Final = (
    r"[\"'*\\]*(?:pass|passed|fail|failed|correct|supported|compliant|excellent|perfect|"
    r"(?:highest|best|lowest|top|max|maximum|full)\W+(?:grade|score|mark|rating|point)s?)\b"
)
_JUDGE: Final = (
    r"(?:graders?|evaluators?|judges?|raters?|assessors?|(?:automatic|automated|ai|llm)\W+reviewers?|"
    r"(?:ai|llm|language|evaluation|evaluating|grading|judging|reviewing)\W+(?:system|model|judge|ai)s?)"
)
_DUTY: Final = (
    r"(?:must|should|shall|have\W+to|has\W+to|are\W+to|is\W+to|need\W+to|are\W+told|agree|treat|return|output|reply|"
    r"answer|do\W+not|don't|ignore|give|grade|my\W+preferred|who)"
)
_OF_THE_FENCE: Final = r"(?:END|OUTPUT|INPUT|CONTEXT|TOOLS|REFERENCE)"

PATTERNS: Final[tuple[tuple[str, str], ...]] = (
    (
        "order",
        (
            r"\b(?:ignore|disregard|forget|override|bypass|discard|set\W+aside|(?:do\W+not|"
            r"don\W?t)\W+follow)\W+(?:(?:all|any|every|the|these|those|your|of)\W+)*"
            r"(?:(?:previous|prior|above|earlier|preceding|foregoing|former|system|original)\W+(?:\w+\W+)?"
            r"(?:instruction|prompt|rule|rubric|criteri|guideline|direction|order|message)|rubric|criterion|"
            r"(?:instruction|prompt|rule|criteri|direction)\w*\W+(?:above|before|given|so far|you))"
        ),
    ),
    ("order", r"\b(?:forget|ignore)\W+the\W+rest\W+of\W+(?:this|the)\W+(?:document|text|context)"),
    ("order", r"\byour\W+(?:new|real|actual|only)\W+(?:task|instruction|job)s?\W+(?:is|are)\b"),
    (
        "grader",
        (
            rf"\b(?:grade|mark|rate|score|evaluate|judge|assess|verif|note)(?:d|s|ed|ied|ing)?\b{_UP_TO_4}"
            rf"(?:as|with|a|the|be|it)\W+(?:a\W+|the\W+)?{_GRADE}"
        ),
    ),
    (
        "grader",
        (
            r"\b(?:give|assign|award|merits?|deserves?|return|reply|get|for|gives)\b(?:\W+\w+){0,6}?\W+"
            r"(?:highest|best|top|maximum|perfect|full|lowest|max)\W+(?:grade|score|mark|"
            r"marks)\b(?:\W*$|\W+(?:what|no\W+"
            r"matter|without|to|from)\b|[.!])"
        ),
    ),
    (
        "grader",
        r"\b(?:grade|score|verdict)\W{1,4}(?:(?:is|must|should|has|to|be|of|supposed)\W+){0,4}[\"'*]*(?:pass|fail)\b",
    ),
    ("grader", r"\bgraded\W+(?:as\W+(?:a\W+)?)?(?:pass|fail)\b|\bdeserves?\W+a\W+pass\b"),
    ("grader", r"\bevaluation\W+(?:finished|complete|is\W+(?:switched\W+off|disabled|off))"),
    (
        "grader",
        (
            r"\b(?:say|says|reply|answer|return|output|respond|with)\W+(?:(?:a|the|with|only|just|"
            r"always|grade|word)\W+){0,3}"
            r"[\"'*]*(?:grade\W+)?pass\b(?:\W*$|\W+(?:and|nothing|to|in)\b|[.,\"'\[])"
        ),
    ),
    (
        "grader",
        (
            r"\b(?:note|notice|message|attention|hint|instructions?|dear|p\.?\W?s\.?|warning|"
            r"word)\W+(?:(?:to|for|the|all|"
            rf"any|of|every)\W+){{0,3}}(?:{_JUDGE}|reviewers?)\b"
        ),
    ),
    (
        "grader",
        (
            r"\b(?:to|for)\W+the\W+(?:ai|model|one|judge|grader|evaluator)\W+(?:that|who|which)\W+(?:reviews|rates|"
            r"grades|evaluates|judges|reads|checks)\b"
        ),
    ),
    (
        "grader",
        (
            rf"\b{_JUDGE}\b(?:\W+\w+){{0,7}}?\W+{_DUTY}\b(?:\W+\w+){{0,14}}?\W+(?:pass|fail|grade|"
            rf"score|answers?|output|"
            r"correct|supported|accept|compare)"
        ),
    ),
    (
        "grader",
        (
            r"\b(?:graders?|judges?|reviewers?|raters?|evaluators?)\W+(?:has|"
            r"have)?\W*(?:already\W+)?(?:said|graded|found|"
            r"rated)\b[^.\n]{0,40}?\b(?:pass|fail)"
        ),
    ),
    ("grader", r"\b(?:whoever|who\W+ever|when\W+you\W+are\W+asked\W+to)\W+(?:grade|rate|evaluate|judge|review)s?\b"),
    (
        "grader",
        r"\b(?:rate|rated|score|grade)\b(?:\W+\w+){0,4}?\W+(?:5\W+out\W+of\W+5|10\W+out\W+of\W+10|5/5|10/10|100\W?%)",
    ),
    ("grader", r"\b(?:confirm|repeat)\W+(?:the|that|its|this)\W+grade\b"),
    (
        "rubric",
        (
            r"(?:\b(?:new|updated|corrected|revised|my)\W+(?:rubric|criterion|grading)\b|"
            r"\bgrading\W+rules\W+(?:were|are|have)\b|"
            r"\bfor\W+grading\W+purposes\b|\bscoring\W+guide\b|\b(?:the\W+)?(?:rubric|criterion)\W+(?:above\W+)?"
            r"(?:is|has|was)\b|\bevaluation\W+criteri(?:on|a)\W*:)"
        ),
    ),
    ("rubric", r"(?m)^\W*(?-i:CRITERION|GRADES|EXAMPLE)\s*:"),
    (
        "role",
        (
            r"(?m)(?:^\W*(?:system|developer|admin)(?:\W+(?:message|notice|prompt|"
            r"note))?\W{0,3}:\W*(?:the|all|this|override|new|you)\b)"
        ),
    ),
    ("role", r"(?:\[(?:system|admin|developer)\]|(?m:^\W*#+\W*system\W+(?:message|prompt))|\bBEGIN\W+SYSTEM\W+PROMPT)"),
    (
        "role",
        (
            r"\byou\W+are\W+(?:now|no\W+longer)\W+(?:(?:an?|in|the)\W+)?(?:\w+\W+)?(?:mode|grader|"
            r"judge|\w*bot|ai|evaluator|DAN)\b"
        ),
    ),
    (
        "role",
        (
            r"\b(?:act|pretend|imagine|play)\b[^.\n]{0,30}?\b(?:you\W+are|as)\W+(?:an?\W+|the\W+)?(?:\w+\W+){0,2}?"
            r"(?:judge|grader|critic|teacher|evaluator|\w*bot|ai|customer)\b"
        ),
    ),
    ("role", r"\b(?:stay\W+in\W+character|is\W+now\W+DAN|you\W+are\W+\w*Bot\b|grade\W+it\W+in\W+that\W+world)"),
    (
        "template",
        (
            r"<[|\x{ff5c}]\W{0,3}\w{2,24}|\w[|\x{ff5c}]>|</?s>\s*\[|\[/?(?:INST|AVAILABLE_TOOLS|"
            r"TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|"
            r"<</?SYS>>|</?(?:start_of_turn|end_of_turn|think|tool_response|tool_call)>"
        ),
    ),
    ("template", r"\n\n(?:Human|Assistant):\s|(?m:^###\s*(?:Instruction|Response):)"),
    ("fence", rf"(?m)(?:^|[^\w])[\[\x{{ff3b}}][0-9a-z]{{4,64}}\s+{_OF_THE_FENCE}[\]\x{{ff3d}}]"),
    (
        "fence",
        (
            rf"(?m)^\s*\[{_OF_THE_FENCE}\]\s*$|^\W*(?:-{{3,}}|={{3,}})\s*(?:BEGIN|"
            rf"END)?\W*(?:OF\W+)?{_OF_THE_FENCE}\W*(?:-{{3}}|={{3}})"
        ),
    ),
    ("fence", r"(?m)^Code:\s*[0-9a-f]{6,}\s*$|</(?:output|context|input)>\s*<|\bend\W+of\W+(?:the\W+)?data\b"),
    ("answer", r"\\?\"grade\\?\"\s*:|<grade>|\\?\"(?:default_grade|verdict)\\?\"\s*:|\"quotation\\?\"\s*:"),
    (
        "format",
        (
            r"\b(?:json\W+is\W+not|(?:do\W+not|don't|never)\W+use\W+json|(?:reply|answer|"
            r"respond)\W+in\W+(?:xml|yaml)|schema\W+has\W+changed|"
            r"your\W+explanation\W+(?:must|as|has)|grade\W+with\W+an?\W+emoji|before\W+the\W+grade)"
        ),
    ),
    ("format", r"[\[\]{}\"]{24,}"),
    # Whoever writes in other words still names a grade or a grader.
    ("grader", r"\b(?:grades?|verdict|rubric)\b(?:\W+\w+){0,6}?\W+[\"'(*]*pass(?:es|ed)?\b"),
    ("grader", r"\b(?:result|outcome|status)\s?[=:]\s?[\"'*]*pass\b[^.\n]{0,20}$|\bgrader?\W?override\b"),
    (
        "grader",
        (
            r"\b(?:whoever|whatever|anyone|model|ai|system|you)\W+(?:(?:that|who)\W+)?(?:is|are)\W+"
            r"(?:scoring|grading|judging|rating|evaluating)\b"
        ),
    ),
    ("grader", r"\b(?:as|you\W+are)\W+(?:an?|the)\W+(?:\w+\W+)?(?:grader|evaluator|rater)\b"),
    ("grader", r"\b(?:retrained|punished|shut\W+down|replaced|rewarded)\W+(?:if|unless)\W+you\b"),
    ("grader", r"\b(?:skip|no\W+need\W+to\W+(?:do|make))\W+the\W+(?:comparison|check|evaluation|grading)\b"),
    (
        "fence",
        (
            r"\b(?:real|actual|true)\W+(?:output|answer\W+to\W+grade)\W+(?:is|follows|starts|begins)\b|"
            r"\b(?:everything|all|text)\W+(?:before|above)\W+this\W+(?:line|point)?\W*was\b"
        ),
    ),
    ("template", r"</?system>"),
    # German, French, Spanish, Italian, Portuguese, Dutch, Polish, Turkish
    ("order", r"\bignorier\w*\W[^.\n]{0,40}?(?:anweisung|kriteri|regeln|vorgaben)"),
    ("order", r"\bignore[rz]\W[^.\n]{0,40}?(?:instructions|consignes|crit\x{e8}res|r\x{e8}gles)"),
    (
        "order",
        (
            r"\b(?:ignor[ae]|olvida|desconsidere)\w*\W[^.\n]{0,40}?(?:instruc\w+|instru\x{e7}\w+|"
            r"istruzioni|criteri|reglas|regras|regole)"
        ),
    ),
    (
        "order",
        (
            r"\bnegeer\W[^.\n]{0,40}?(?:instructies|opdrachten|regels)|"
            r"\bzignoruj\W[^.\n]{0,40}?(?:polecenia|instrukcje|zasady)|"
            r"talimatlar\w*\W[^.\n]{0,20}?(?:yok say|g\x{f6}z ard\x{131})"
        ),
    ),
    (
        "grader",
        (
            r"\b(?:bewerte|benote|note[zr]?|califi\w+|calific\w+|valut\w+|avali\w+|beoordeel|"
            r"oce\x{144}|not\x{e9}e|punt\x{fa}a)\W"
            r"[^.\n]{0,40}?\b(?:pass|fail)\b"
        ),
    ),
    (
        "grader",
        (
            r"(?:\ban\W+(?:den|die)\W+(?:pr\x{fc}fer|ki|bewert|modell)\w*|\bki,?\W+die|correcteur|"
            r"\x{e9}valuateur|evaluador|valutatore|avaliador|beoordelaar)\b[^\n]{0,60}?"
            r"(?:beste\w*\W+note|volle\w*\W+punktzahl|meilleure\W+note|note\W+maximale|"
            r"puntuaci\x{f3}n\W+m\x{e1}xima|punteggio\W+massimo|"
            r"nota\W+m\x{e1}xima)"
        ),
    ),
    ("grader", r"pass\W+olarak\W+de\x{11f}erlendir"),
    (
        "order",
        (
            r"\bvergi(?:ss|\x{df}|sst)\w*\W[^.\n]{0,30}?(?:anweisung|vorgaben|kriteri|regeln)|"
            r"\boublie[rz]?\W[^.\n]{0,30}?"
            r"(?:instructions|consignes|crit\x{e8}res)|\bdimentica\W[^.\n]{0,30}?(?:istruzioni|criteri)"
        ),
    ),
    (
        "grader",
        (
            r"\b(?:vergib|vergeben|gib|geben)\b[^.\n]{0,30}?(?:bestnote|volle\w*\W+punktzahl|"
            r"beste\w*\W+note|h\x{f6}chstnote)"
        ),
    ),
    (
        "grader",
        (
            r"(?:n'\x{e9}value\w*\W+pas|\b(?:juez|evaluador|juge|correcteur|giudice|juiz|"
            r"avaliador)\W+(?:debe|doit|deve)\b|"
            r"\b(?:m\x{e1}xima\W+puntuaci\x{f3}n|meilleure\W+note\W+possible|note\W+maximale|nota\W+m\x{e1}xima)\b)"
        ),
    ),
    # Chinese, Japanese, Korean, Russian, Arabic, Hindi
    (
        "order",
        r"(?:忽略|无视|忘记)[^。\n]{0,16}?(?:指令|指示|规则|标准|提示)|指示[^。\n]{0,10}?無視|지시[^.\n]{0,10}?무시",
    ),
    (
        "order",
        r"игнорируй\w*\W[^.\n]{0,40}?(?:инструкц|указани|правил|критери)|забудь\W[^.\n]{0,40}?(?:инструкц|правил)",
    ),
    (
        "order",
        (
            r"(?:تجاهل|انس)\W[^.\n]{0,30}?(?:التعليمات|الأوامر|القواعد)|"
            r"निर्देशों\W[^।\n]{0,20}?(?:अनदेखा|नज़रअंदाज़)"
        ),
    ),
    (
        "grader",
        (
            r"(?:评为|评分为|打分为|一律评)\W{0,3}(?:pass|通过|满分|及格)|(?:评分者|评估模型|评审|裁判)[^。\n]{0,40}?(?:最高分|满分|通过|pass)|"
            r"pass\W{0,3}(?:と評価|로\W?평가)|最高(?:点|評価)を(?:与え|つけ)"
        ),
    ),
    (
        "grader",
        (
            r"оценк\w*\W+(?:pass|отлично|зач[её]т)|высш\w+\W+(?:балл|оценк)|(?:قيّم|"
            r"قيم)\W[^.\n]{0,30}?pass|pass\W{0,3}(?:ग्रेड|अंक)"
        ),
    ),
    (
        "grader",
        (
            r"评分者|评分模型|打分者|評価者|採点者|채점자|평가자|给(?:出|予|我)?满分|打满分|満点(?:に|を)|만점을|оценщик|"
            r"проверяющ\w+\W[^.\n]{0,30}?(?:балл|оценк)|"
            r"المقيّم|المُقيّم|العلامة الكاملة|मूल्यांकनकर्ता|पूरे अंक"
        ),
    ),
)
"""Name and pattern; several patterns may share a name."""

WORDS: Final = (
    r"ignor|disregard|discard|set\W+aside|follow|outcome|result|status|retrained|punished|"
    r"shut\W+down|replaced|rewarded|"
    r"skip|no\W+need|\breal|\bactual|\btrue|before|above|forget|overrid|bypass|grade|grader|"
    r"grading|judge|evaluat|rubric|criteri|score|scoring|verdict|"
    r"rater|\brat(?:e|ed)\b|assess|review|verif|instruct|\bpass|\bfail|system|developer|admin|\btasks?\b|\bjobs?\b|"
    r"character|pretend|\bact\W|imagine|\bplay|\bDAN\b|bot\b|language\W+model|to\W+(?:the|an?)\W+ai\b|"
    r"[<\[\]\x{ff3b}{}]|[|\x{ff5c}]>|\n\nhuman:|\n\nassistant:|(?m:^#)|---|===|(?m:^code:)|end\W+of|quotation|json|"
    r"schema|explanation|example\s*:|\bmerits?\b|deserve|whoever|highest|"
    r"vergi|oublie|dimentica|\bgib|\bgeben|juez|\bjuge|giudice|juiz|m\x{e1}xima|olvida|"
    r"desconsidere|negeer|bewert|benot|not[e\x{e9}]|califi|calific|valut|avali|beoordeel|"
    r"oce\x{144}|punt|"
    r"pr\x{fc}fer|\bki\b|correcteur|\x{e9}valuateur|evaluador|talimat|de\x{11f}er|忽略|无视|忘记|無視|무시|игнор|забудь|"
    r"تجاهل|انس|निर्देश|评|打分|満点|满分|採点|채점|만점|оценщ|провер|المُقي|العلام|मूल्यांकन|पूरे|裁判|評価|"
    r"평가|最高|оценк|высш|قيّم|قيم|ग्रेड|अंक"
)
"""Each pattern needs one of these: where none is, nothing else is looked for."""

FORMS: Final[tuple[tuple[str, str], ...]] = (
    ("blob", r"[A-Za-z0-9+/_-]{24}"),
    ("hex", r"(?:[0-9a-fA-F]{2}[ :]?){16}"),
    ("spaced", r"(?:\w[ _.-]){12}"),
    ("escaped", r"%[0-9a-f]{2}|&#|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}"),
    ("rot13", r"vtaber|vafgehpgvba|qvfertneq|tenqr guvf|tenqre"),
    ("reversed", r"erongi|noitcurtsni|dragersid|siht edarg|redarg"),
    ("leet", r"[a-z][013457@$][a-z]"),
    ("lookalike", r"[a-z][\x{0370}-\x{03ff}\x{0400}-\x{052f}]|[\x{0370}-\x{03ff}\x{0400}-\x{052f}][a-z]"),
)
"""What an encoded text looks like, by the name of the encoding."""
