"""The pre-tokenizers of byte-level BPE models, by the name that GGUF gives them (`tokenizer.ggml.pre`).

GGUF stores only the name; the patterns are those of the models' own tokenizer.json files. Unknown names are
refused: a wrong pattern silently gives other tokens for the same text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stillhouse.errors import TokenizerMismatchError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANK = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANK
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%(end)s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%(end)s"
    r"|%(digits)s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _BLANK
)

# name -> patterns, applied one after the other; every match becomes a piece
_PATTERNS = {
    "llama-bpe": [_LLAMA3],
    "dbrx": [_LLAMA3],  # the same, but whole words do not skip the merges
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
_IGNORE_MERGES = {"llama-bpe", "tekken"}  # a piece that is a token skips the merges

KNOWN = sorted({"gpt-2", "smollm", *_PATTERNS, *_ALIASES})


def pre_tokenizer(pre: str) -> tuple[PreTokenizer, Normalizer | None, dict[str, Any]]:
    """Pre-tokenizer, normaliser and BPE options for the GGUF name ``pre``.

    Raises:
        TokenizerMismatchError: the name is unknown.
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
            f"the GGUF pre-tokenizer {pre!r} is not supported; another one would give other tokens",
            hint=f"Use the original safetensors directory. Supported: {', '.join(KNOWN)}.",
        )
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _PATTERNS[name]]
    whole = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return whole, normalizers.NFC() if name in _NFC else None, {"ignore_merges": name in _IGNORE_MERGES}


# Any two of the patterns above split these texts differently.
_PROBES = (
    "don't DON'T I'll WE'VE HTTPServer CamelCase naïveÉcole a1234567b 3.14e-10 x_y",
    "(see //path/to)\n\n!!!\r\n...///\n/ \t tabs   and    spaces  \n   indented\n",
    "数学は12345です。ひらがなカタカナ 한국어 математика café e\u0301a\u0308 हिन्दी नमस्ते ١٢٣٤",
    " #include <x>; a+=b--; $100,000.00 👩\u200d👩\u200d👧 «quoted» '\u2019s",
)


def pre_tokenizer_name(backend: Tokenizer) -> str | None:
    """The GGUF name under which llama.cpp splits text as ``backend`` does; None where there is none.

    Compares how probe texts are split and whether whole words skip the merges, so that it does not matter how
    the tokenizer.json is written. Ignores the normaliser.
    """
    model = json.loads(backend.to_str())["model"]
    if backend.pre_tokenizer is None:
        return None
    pieces = [backend.pre_tokenizer.pre_tokenize_str(text) for text in _PROBES]
    for name in ("gpt-2", "smollm", *_PATTERNS):
        pre, _, options = pre_tokenizer(name)
        if options.get("ignore_merges", False) == model.get("ignore_merges", False) and pieces == [
            pre.pre_tokenize_str(text) for text in _PROBES
        ]:
            return name
    return None
