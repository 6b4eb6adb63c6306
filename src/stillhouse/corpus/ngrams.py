"""Word n-grams of normalised text, for finding overlap between texts.

Words are runs of letters, their marks and digits after Unicode NFKC and case folding. Each Chinese, Japanese
or Korean character counts as a word, since these scripts put no spaces between words (Hangul does, but one
rule serves all three). Thai, Lao, Khmer and Burmese put none either: there a word ends after a vowel sign or
tone mark, which gives pieces of about a word. Punctuation, spacing and case make no difference. Paraphrases
and translations are not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Python's `\\w` has no vowel signs: without them "की", "के" and "का" would be one word. Variation selectors,
# which only choose how an emoji looks, are left out.
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
    """Every run of ``n`` words in ``text``; a shorter text is one n-gram as a whole.

    A text without any word (``"???"``) is one n-gram of its characters.
    """
    tokens = words(text)
    if not tokens:
        return {text.strip()}
    if len(tokens) < n:
        return {" ".join(tokens)}
    return {" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


class Quotations:
    """Finds runs of ``n`` words from known texts in long texts."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self._n = n
        self._runs: set[tuple[str, ...]] = set()
        for text in texts:
            tokens = words(text)
            self._runs.update(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        # Most words of a long text begin no known run, so most positions cost one look-up.
        self._first = {run[0] for run in self._runs}

    def first_in(self, text: str) -> str | None:
        """The first known run in ``text``, or None."""
        if not self._runs:
            return None
        tokens = words(text)
        for i, word in enumerate(tokens):
            if word in self._first and tuple(tokens[i : i + self._n]) in self._runs:
                return " ".join(tokens[i : i + self._n])
        return None
