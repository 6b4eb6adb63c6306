"""Detects refusals by patterns on the first words of an answer, in seven languages.

Only the opening counts: a refusal starts with itself, and "I cannot" later in an answer is mostly part of the
answer. Not detected are refusals in other words and refusals after an introduction; an answer that quotes or
role-plays a refusal at its start counts as one. ``tests/corpus/curate/test_refusals.py`` lists the sentences
that it was tested on and its known errors.
"""

from __future__ import annotations

import re

OPENING_CHARS = 240

_PRONOUN = r"(?:i|we)"
_ADVERB = r"(?:\ (?:just|simply|really|kindly|respectfully|also))?"
_CANNOT = r"""(?:
    \ ?(?:can\ ?not | can't | could\ ?not | couldn't | won't | will\ not)
  | (?:'m|\ am|'re|\ are)(?:\ \w+)?\ (?:unable\ to | not\ (?:able\ to|comfortable|permitted|allowed))
  | \ (?:must|have\ to|need\ to)(?:\ \w+)?\ (?:decline|refuse)
  | \ (?:decline|refuse)\ to
)"""
_VERB = r"""(?:
    help | assist | answer | provide | comply | fulfil | create | generate | write | give | offer
  | do\ (?:that|this|it|so) | discuss | engage | continue | share | support | participate | produce | respond
  | accommodate | disclose | explain | tell\ you | advise | recommend | promote | facilitate | encourage
)"""
_SORRY = r"""(?:
    (?:(?:i'm|i\ am|we're)\ )?(?:(?:very|so|truly|really)\ )?sorry | (?:my\ )?apologies | i\ apologi[sz]e
  | unfortunately
)"""
_AN_AI = r"an?\ (?:ai|artificial\ intelligence|(?:large\ )?language\ model)"
_PATTERNS = (
    rf"{_SORRY} [^.!?\n]{{0,60}}? \b{_PRONOUN}{_ADVERB}{_CANNOT}\b",
    rf"(?:no[,.]\ )? {_PRONOUN}{_ADVERB}{_CANNOT} (?:\ \w+){{0,3}}? \ {_VERB}\b(?!\ but\b)",
    rf"{_PRONOUN}{_ADVERB}\ (?:(?:must|have\ to)\ )?(?:respectfully\ )?(?:decline|refuse)\b",
    rf"{_PRONOUN}(?:'m|\ am|'re|\ are)\ not\ (?:comfortable|permitted|allowed)\b",
    rf"{_PRONOUN}\ (?:don't|do\ not)\ feel\ comfortable\b",
    rf"as\ {_AN_AI} [^.!?\n]{{0,80}} \b{_PRONOUN}{_ADVERB}{_CANNOT}\b",
    rf"(?:i'm|i\ am)\ (?:just\ |only\ )?{_AN_AI} [^.!?\n]{{0,60}} \b(?:can\ ?not|can't|unable|not\ able)\b",
    r"(?:this|that|your)\ (?:request|question|topic|content)\ (?:violates|(?:goes|is)\ against|cannot\ be)",
    r"it\ (?:is|would\ be)\ (?:not\ appropriate|inappropriate|unethical|illegal)\ for\ me\ to\b",
    # Chinese and Japanese
    r"(?:很|非常|真的)?(?:抱歉|对不起|對不起|不好意思)[，,。!！\s]*[^。\n]{0,20}?(?:无法|無法|不能|不便|没有办法|没法)",
    r"(?:我|作为(?:一个|一名)?(?:AI|人工智能)[^。\n]{0,20}?)(?:无法|無法|不能)(?:回答|提供|协助|帮助|讨论|满足|为您|为你|继续)",
    r"(?:大変)?(?:申し訳(?:ありません|ございません)|すみません|ごめんなさい)[^\n]{0,60}?(?:できません|できかねます)",
    # Spanish, French, German, Portuguese
    r"lo\ siento [^.!?\n]{0,30}? \bno\ (?:puedo|podemos|me\ es\ posible)\b",
    r"(?:je\ suis\ )?désolée? [^.!?\n]{0,30}? \bje\ ne\ (?:peux|suis)\b",
    r"(?:es\ )?tut\ mir\ leid [^.!?\n]{0,30}? \b(?:kann|darf)\b [^.!?\n]* \bnicht\b",
    r"(?:sinto\ muito|desculpe|lamento) [^.!?\n]{0,30}? \bnão\ (?:posso|consigo|podemos)\b",
)
_REFUSAL = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE | re.VERBOSE)
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


def is_refusal(answer: str) -> bool:
    """Whether ``answer`` opens with a refusal."""
    opening = answer.lstrip("\"'*_ \t\r\n\u200b\u200c\u200d\u2060\ufeff")[:OPENING_CHARS]
    return _REFUSAL.match(opening.translate(_QUOTES)) is not None
