"""The pre-tokenizers of byte-level BPE models, by the name that GGUF gives them (`tokenizer.ggml.pre`).

GGUF stores the name only; the patterns are those of the models' own tokenizer.json files. A name that
is not here is refused: a wrong pattern gives other tokens for the same text, silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import TokenizerMismatchError

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANK = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%(end)s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%(end)s"
    r"|%(digits)s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _BLANK
)

# name -> patterns, applied one after the other; every piece that matches is cut out
_PATTERNS = {
    "llama-bpe": [
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANK,
    ],
    "qwen2": [
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANK,
    ],
    "qwen35": [
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _BLANK,
    ],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|" + _BLANK,
    ],
    "gpt-4o": [_CASED % {"end": _CONTRACTIONS + "?", "digits": r"\p{N}{1,3}"}],
    "tekken": [_CASED % {"end": "", "digits": r"\p{N}"}],
}
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "llama4": "gpt-4o",
    "gpt2": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
}
_NFC = {"qwen2", "qwen35"}  # these models' tokenizers normalise text first
_WHOLE_WORDS = {"llama-bpe", "tekken"}  # a piece that is a token is that token, whatever the merges say

KNOWN = sorted({"gpt-2", "smollm", *_PATTERNS, *_ALIASES})


def pre_tokenizer(pre: str) -> tuple[PreTokenizer, Normalizer | None, dict[str, Any]]:
    """Pre-tokenizer, normaliser and BPE options for the GGUF name ``pre``.

    Raises:
        TokenizerMismatchError: a name that is not known here.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    name = _ALIASES.get(pre, pre)
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False), None, {}
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]), None, {}
    if name not in _PATTERNS:
        raise TokenizerMismatchError(
            f"the GGUF pre-tokenizer {pre!r} is not known, so its text would be cut into other tokens",
            hint=f"Use the original safetensors directory. Known: {', '.join(KNOWN)}.",
        )
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _PATTERNS[name]]
    whole = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return whole, normalizers.NFC() if name in _NFC else None, {"ignore_merges": name in _WHOLE_WORDS}
