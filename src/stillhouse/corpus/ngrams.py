"""Word n-grams of normalised text: what two texts have to share to count as overlapping.

Words are runs of letters and digits after Unicode NFKC and case folding; Chinese,
Japanese and Korean characters count as a word each, since those scripts put no spaces
between words (Hangul does, but syllables are treated alike for one rule). Punctuation,
spacing and case make no difference. Paraphrase and translation are not seen.
"""

from __future__ import annotations

import re
import unicodedata

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")


def words(text: str) -> list[str]:
    """The normalised words of ``text``, in order."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(text: str, n: int) -> set[str]:
    """Every run of ``n`` words in ``text``; a shorter text is one gram, all of it.

    A text without any word (``"???"``) is one gram of its own characters.
    """
    found = words(text)
    if not found:
        return {text.strip()}
    if len(found) < n:
        return {" ".join(found)}
    return {" ".join(found[i : i + n]) for i in range(len(found) - n + 1)}


def full_ngrams(text: str, n: int) -> set[str]:
    """Every run of exactly ``n`` words in ``text``; none in a shorter text."""
    found = words(text)
    return {" ".join(found[i : i + n]) for i in range(len(found) - n + 1)}
