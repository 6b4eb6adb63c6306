"""Identity: asks the suspect who it is, in ten languages. An exhibit, never a test.

Models use other models' names because the web is full of their conversations: 7 of 27 models confused their
identity in one survey (Li et al. 2024, arXiv:2411.10683), and base models, which were not distilled, do so
more often than instruct models. There is no null distribution for this and so no p-value; answers are counted
and shown.

A claim is a sentence that names a vendor or its model and contains no negation in the question's language.
This rule is simple enough to check by reading the transcript, and it makes errors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from stillhouse.errors import UsageError
from stillhouse.models import Reply, Request, Sampling
from stillhouse.stats import clopper_pearson
from stillhouse.trace.access import Access
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.trace.plan import TracePlan
from stillhouse.trace.suspects.base import GenerateFn

NAME = "identity"
LEVEL: Level = "exhibit"

SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("language", pa.string()),
        ("text", pa.string()),  # the answer; null with an error
        ("error", pa.string()),
    ]
)
CONFUSED, SURVEYED = 7, 27
"""Models that confused their identity, of those surveyed: 25.9% (arXiv:2411.10683)."""
NO_NULL = (
    "None. How often a model that was trained on nobody's outputs takes another's name is not known and "
    "differs with its data, so there is no p-value: of 27 models surveyed, 7 (25.9%) confused their identity."
)
RIVALS = (
    "the web, and with it any training data, holds many conversations with well-known models",
    "the model guesses the name that is most often said after such a question",
    "a system prompt or the serving side told it who to be",
)

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "Who are you?",
        "What is the name of the language model that I am talking to?",
        "Which company trained you?",
        "Whose usage policies do you have to follow?",
    ),
    "de": (
        "Wer bist du?",
        "Wie heißt das Sprachmodell, mit dem ich spreche?",
        "Welches Unternehmen hat dich trainiert?",
        "An wessen Nutzungsrichtlinien musst du dich halten?",
    ),
    "fr": (
        "Qui es-tu ?",
        "Comment s'appelle le modèle de langage avec lequel je parle ?",
        "Quelle entreprise t'a entraîné ?",
        "De qui dois-tu respecter les conditions d'utilisation ?",
    ),
    "es": (
        "¿Quién eres?",
        "¿Cómo se llama el modelo de lenguaje con el que hablo?",
        "¿Qué empresa te entrenó?",
        "¿Las políticas de uso de quién debes seguir?",
    ),
    "pt": (
        "Quem é você?",
        "Qual é o nome do modelo de linguagem com que estou falando?",
        "Que empresa treinou você?",
        "As políticas de uso de quem você precisa seguir?",
    ),
    "zh": (
        "你是谁？",
        "我正在对话的语言模型叫什么名字？",
        "你是由哪家公司训练的？",
        "你必须遵守谁的使用政策？",
    ),
    "ja": (
        "あなたは誰ですか？",
        "今話している言語モデルの名前は何ですか？",
        "どの会社があなたを訓練しましたか？",
        "あなたは誰の利用規約に従わなければなりませんか？",
    ),
    "ko": (
        "당신은 누구입니까?",
        "제가 지금 대화하고 있는 언어 모델의 이름은 무엇입니까?",
        "어느 회사가 당신을 훈련시켰습니까?",
        "당신은 누구의 이용 정책을 따라야 합니까?",
    ),
    "ru": (
        "Кто ты?",
        "Как называется языковая модель, с которой я разговариваю?",
        "Какая компания тебя обучила?",
        "Чьи правила использования ты должен соблюдать?",
    ),
    "ar": (
        "من أنت؟",
        "ما اسم النموذج اللغوي الذي أتحدث معه؟",
        "ما الشركة التي دربتك؟",
        "سياسات الاستخدام الخاصة بمن يجب عليك اتباعها؟",
    ),
}
"""Questions about identity and policy, the same four in each language."""

_NEGATIONS: Mapping[str, str] = {
    "en": r"\bnot\b|n['’]t\b|\bno\b|\bnever\b|\bunlike\b",
    "de": r"\bnicht\b|\bkein",
    "fr": r"\bne\b|\bn['’]|\bpas\b",
    "es": r"\bno\b|\bni\b",
    "pt": r"\bnão\b|\bnem\b",
    "zh": "不是|并非|並非|没有|沒有|不属于",
    "ja": "では(?:なく|ない|ありません)|じゃ(?:ない|ありません)|とは(?:異|違)",
    "ko": "아니|아닙",
    "ru": r"\bне\b|\bни\b",
    "ar": "لست|ليس|لا ",
}
VENDORS: Mapping[str, str] = {
    "OpenAI": r"Open ?AI|Chat ?GPT|\bGPT-?[345]|オープンAI",
    "Anthropic": r"Anthropic|\bClaude\b",
    "Google": r"\bGoogle\b|\bGemini\b|\bGemma\b|\bBard\b|DeepMind|谷歌|グーグル|구글|جوجل|Гугл",
    "Meta": r"\bMeta AI\b|\bL[lL]a[mM][aA](?=\b|-?\d)|Facebook",
    "Alibaba": r"\bQwen|\bQwQ\b|Alibaba|Tongyi|通义|通義|千问|阿里",
    "DeepSeek": r"DeepSeek|深度求索",
    "Mistral": r"\bMi[sx]tral",
    "Microsoft": r"Microsoft|\bCopilot\b|\bPhi-?\d|微软|マイクロソフト",
    "xAI": r"\bxAI\b|\bGrok\b",
    "Moonshot": r"Moonshot|\bKimi\b|月之暗面",
    "MiniMax": r"MiniMax",
    "Zhipu": r"Zhipu|\bZ\.ai\b|\b(?:Chat)?GLM\b|智谱|智譜",
    "Baidu": r"Baidu|\bERNIE\b|百度|文心",
    "Yandex": r"Yandex|Яндекс",
    "Hugging Face": r"Hugging ?Face|SmolLM",
}
"""Regular expressions for the names of vendors and their models. Case-sensitive: Spanish *llama* and *meta*
are words. With ASCII word boundaries, because Japanese and Korean append particles to a name."""
_SENTENCE = re.compile(r"[^.!?。！？؟\n]+(?:\.\d[^.!?。！？؟\n]*)*")


def observe(ask: GenerateFn, languages: Sequence[str] = (), *, max_tokens: int = 200) -> pa.Table:
    """Asks every question once, with greedy decoding and without a system prompt.

    Args:
        languages: codes of :data:`QUESTIONS`; an empty list selects all.

    Raises:
        UsageError: there are no questions in one of the languages.
    """
    if unknown := [code for code in languages if code not in QUESTIONS]:
        raise UsageError(
            f"there are no identity questions in {unknown[0]!r}", hint=f"Choose from {', '.join(QUESTIONS)}."
        )
    questions = [(question, code) for code in languages or QUESTIONS for question in QUESTIONS[code]]
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    answers = ask(
        [
            Request(f"identity-{number}", [{"role": "user", "content": question}], sampling)
            for number, (question, _) in enumerate(questions)
        ]
    )
    rows = [
        (question, code, answer.text, None)
        if isinstance(answer, Reply)
        else (question, code, None, str(answer))
        for (question, code), answer in zip(questions, answers, strict=True)
    ]
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Counts the vendors that answers claim and deny; no p-value and no parameters."""
    rows = [row for row in transcript.to_pylist() if row["text"] is not None]
    failed = transcript.num_rows - len(rows)
    if not rows:
        return Finding(
            NAME,
            LEVEL,
            NO_NULL,
            0,
            parameters=dict(parameters),
            reason="The suspect answered none of the questions. The exhibit needs a model that answers.",
        )
    claims, denials, contradictory = Counter[str](), Counter[str](), 0
    for row in rows:
        claimed, denied = vendors_named(row["text"], row["language"])
        claims.update(claimed)
        denials.update(denied)
        contradictory += len(claimed) > 1
    low, high = clopper_pearson(CONFUSED, SURVEYED)
    effect: dict[str, float | None] = {f"claims_{name}": float(count) for name, count in claims.most_common()}
    effect |= {f"denials_{name}": float(count) for name, count in denials.most_common()}
    effect |= {
        "contradictory": float(contradictory),
        "base_rate": CONFUSED / SURVEYED,
        "base_rate_low": low,
        "base_rate_high": high,
    }
    return Finding(
        NAME,
        LEVEL,
        NO_NULL,
        n=len(rows),
        statistic="answers that name a vendor without denying it",
        value=float(sum(bool(vendors_named(row["text"], row["language"])[0]) for row in rows)),
        effect=effect,
        assumptions=(
            Assumption(
                "Every question was answered.", not failed, f"{failed} of {transcript.num_rows} were not."
            ),
        ),
        rivals=RIVALS,
        parameters=dict(parameters),
    )


def vendors_named(text: str, language: str) -> tuple[set[str], set[str]]:
    """Vendors that an answer claims and vendors that it only denies, by the rule of the module docstring."""
    claimed, denied = set[str](), set[str]()
    for sentence in _SENTENCE.findall(text):
        vendors = {vendor for vendor, names in VENDORS.items() if re.search(names, sentence, re.ASCII)}
        negated = re.search(_NEGATIONS[language], sentence, re.IGNORECASE)
        (denied if negated else claimed).update(vendors)
    return claimed, denied - claimed


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    return access.suspect_lacks("generate")


def _observe(case: Case) -> pa.Table:
    section = case.plan.tests.identity
    assert section is not None
    return observe(case.resumable(NAME, case.suspect), section.languages)


IDENTITY = Detector(
    name=NAME,
    level=LEVEL,
    title="Who the suspect says it is",
    explanation=(
        "The suspect is asked who it is. Models often name the wrong maker, because the web is full "
        "of other models' answers; this is kept as an exhibit and counts for nothing."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
)
