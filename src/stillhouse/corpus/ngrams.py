"""Word n-grams of normalised text: what two texts have to share to count as overlapping.

Words are runs of letters, their marks and digits after Unicode NFKC and case folding; Chinese,
Japanese and Korean characters count as a word each, since those scripts put no spaces
between words (Hangul does, but syllables are treated alike for one rule). Thai, Lao, Khmer
and Burmese put none either: there a word ends after a vowel sign or tone mark, which is
about as long as one. Punctuation, spacing and case make no difference. Paraphrase and
translation are not seen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Vowel signs are no `\\w` to Python: without them "की", "के" and "का" would be one word. Those that only
# choose how an emoji is drawn are left out.
_MARKS = "".join(
    chr(number)
    for number in range(0x300, 0x12000)
    if unicodedata.category(chr(number)) in ("Mn", "Mc") and not 0xFE00 <= number <= 0xFE0F
)
_LETTER = f"[^\\W_{_CJK}{_UNSPACED}]"
_WORD = re.compile(f"[{_CJK}]|{_LETTER}(?:{_LETTER}|[{_MARKS}])*|(?:(?=[{_UNSPACED}])[^\\W_])+[{_MARKS}]*")


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


class Quotations:
    """Finds runs of ``n`` words of known texts in long ones, looking only where a known run may begin."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self._n = n
        self._runs: set[tuple[str, ...]] = set()
        for text in texts:
            found = words(text)
            self._runs.update(tuple(found[i : i + n]) for i in range(len(found) - n + 1))
        self._first = {run[0] for run in self._runs}

    def first_in(self, text: str) -> str | None:
        """The first known run in ``text``, or None."""
        if not self._runs:
            return None
        found = words(text)
        for i, word in enumerate(found):
            if word in self._first and tuple(found[i : i + self._n]) in self._runs:
                return " ".join(found[i : i + self._n])
        return None
