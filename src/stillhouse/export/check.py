"""Holds a written file against the model it was made from, before it takes its name.

The header is read back and compared id by id with the source's tokenizer; a tokenizer is rebuilt from
it by the code that reads other people's files and must cut the same; and where xllamacpp is installed,
llama.cpp loads the file and must give the same ids for texts of many kinds.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.console import console
from stillhouse.errors import IntegrityError, ModelError, TokenizerMismatchError
from stillhouse.export.source import Source
from stillhouse.export.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary
from stillhouse.models import (
    GgufFile,
    read_gguf,
    start_llama_server,
    tokenizer_difference,
    tokenizer_from_gguf,
)

SAMPLES = (
    "The 3 quick brown foxes jumped over 1234567 lazy dogs' tails.\n\n\tIt's 25°C — naïve café, isn't it?",
    'def f(x: int) -> str:\n    return {"a": [x ** 2, 0xFF, 3.14e-10]}  # TODO\r\n\tif x != y && z || !w;\n',
    "数学は12345です。 ひらがなカタカナ 한국어 математика हिन्दी नमस्ते العربية עברית ไทย Ελληνικά",
    "🙂🙂👩\u200d👩\u200d👧 🇫🇷 ½ ² ≠ ∑ “quoted” «x» …—–",
    "   leading,  inner   and trailing spaces   \n \n\n\n \t \t\n",
    "DON'T I'll WE'VE HTTPServer CamelCase snake_case __init__(self) https://example.org/a?b=c#d",
    "$100,000.00 12:34:56 2026-11-24 +1 (555) 010-9999 1e6 ١٢٣٤ Ⅷ",
    "!!!...???  ((([[[{{{ ***bold*** `code` ~~~ ||| \\\\ //",
    " ",
    "x",
)
"""What both tokenizers are asked: scripts, digits, blank space, code, emoji. In NFC, which llama.cpp
does not establish."""
MARKS = 64  # added tokens that are asked about


def check_file(path: Path, source: Source, vocabulary: Vocabulary, sizes: Mapping[str, int]) -> bool:
    """Refuses the file at ``path`` unless it says what ``source`` is.

    Args:
        sizes: name -> number of elements of every tensor that must be there.

    Returns:
        Whether llama.cpp was asked too.

    Raises:
        TokenizerMismatchError: an id, type, merge, special id or the template differs, or a text is cut
            differently.
        IntegrityError: a tensor is missing or cut off.
    """
    with console.progress("check", 3, "steps") as progress:
        file = read_gguf(path)
        _check_tensors(file, sizes)
        _check_ids(file, source)
        _check_specials(file, source, vocabulary)
        progress.advance()
        texts = _with_marks(source)
        _check_rebuilt(file, source, texts)
        progress.advance()
        asked = _ask_llama(path, source, texts)
        progress.advance()
    return asked


def _check_rebuilt(file: GgufFile, source: Source, texts: Sequence[str]) -> None:
    """The tokenizer that the header describes, rebuilt by the code that reads other people's files."""
    rebuilt = tokenizer_from_gguf(file)
    by_merges = file.require("tokenizer.ggml.model") == "gpt2"  # scores have no merges to compare
    if by_merges and (difference := tokenizer_difference(source.tokenizer, rebuilt)):
        raise TokenizerMismatchError(f"{file.path}: the tokenizer was not carried over: {difference}")
    _same_ids(
        file.path, source, lambda text: rebuilt.encode(text, add_special_tokens=False), texts, "read back"
    )


def _check_tensors(file: GgufFile, sizes: Mapping[str, int]) -> None:
    found = {name: place.size for name, place in file.tensors.items()}
    if found != dict(sizes):
        name = min(name for name, _ in found.items() ^ sizes.items())
        raise IntegrityError(f"{file.path}: the tensor {name} was not written as it should be")


def _check_ids(file: GgufFile, source: Source) -> None:
    """Text and type of every id against the source's own tables."""
    tokens, types = file.require("tokenizer.ggml.tokens"), file.require("tokenizer.ggml.token_type")
    known, added = source.tokenizer.get_vocab(), source.tokenizer.added_tokens_decoder
    rows = source.config.get_text_config().vocab_size
    if not len(tokens) == len(types) == rows:
        raise TokenizerMismatchError(f"{file.path}: {len(tokens)} tokens, {len(types)} types, {rows} rows")
    by_id = {number: token for token, number in known.items()}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if number not in by_id:
            allowed: tuple[int, ...] = (UNUSED,)
        elif number in added:
            allowed = (CONTROL if added[number].special else USER_DEFINED,)
        else:
            allowed = (NORMAL, BYTE)
        if number == source.tokenizer.unk_token_id:
            allowed = (*allowed, UNKNOWN)
        if kind not in allowed or token != by_id.get(number, token):
            raise TokenizerMismatchError(
                f"{file.path}: id {number} is {token!r} of type {kind}; the model's own tokenizer says "
                f"{by_id.get(number)!r}, type {allowed[0]}"
            )


def _check_specials(file: GgufFile, source: Source, vocabulary: Vocabulary) -> None:
    """Special ids, and what is put around text, and the template."""
    own = source.tokenizer
    wanted = {"bos": own.bos_token_id, "eos": source.ends[0], "padding": own.pad_token_id}
    for word, number in {**wanted, "unknown": own.unk_token_id}.items():
        if (found := file.metadata.get(f"tokenizer.ggml.{word}_token_id")) != number:
            raise TokenizerMismatchError(f"{file.path}: the {word} token is {found}, not {number}")
    bare = source.tokenizer.encode("a", add_special_tokens=False)
    start = [source.tokenizer.bos_token_id] * file.require("tokenizer.ggml.add_bos_token")
    end = [source.tokenizer.eos_token_id] * file.require("tokenizer.ggml.add_eos_token")
    if (whole := source.tokenizer.encode("a")) != start + bare + end:
        raise TokenizerMismatchError(f"{file.path}: 'a' is {start + bare + end}, not {whole}")
    template = source.template.source if source.template.declared else None
    if file.metadata.get("tokenizer.chat_template") != template:
        raise TokenizerMismatchError(f"{file.path}: the chat template was not carried over")
    if BYTE in vocabulary.types and vocabulary.types.count(BYTE) != 256:
        raise TokenizerMismatchError(f"{file.path}: {vocabulary.types.count(BYTE)} tokens for 256 bytes")


def _with_marks(source: Source) -> list[str]:
    """The samples, and each of the first added tokens between words and beside blank space."""
    marks = [str(token) for token in source.tokenizer.added_tokens_decoder.values()][:MARKS]
    return [*SAMPLES, "".join(f"{mark}user\nHi there {mark}\n" for mark in marks)]


def _same_ids(
    path: Path, source: Source, encode: Callable[[str], Sequence[int]], texts: Sequence[str], how: str
) -> None:
    for text in texts:
        wanted, found = source.tokenizer.encode(text, add_special_tokens=False), list(encode(text))
        if found != wanted:
            at = next(i for i in range(len(wanted) + 1) if found[: i + 1] != wanted[: i + 1])
            raise TokenizerMismatchError(
                f"{path}: {how}, the tokenizer cuts {text[:40]!r} into {found[at : at + 4]} where the "
                f"model's own has {wanted[at : at + 4]} (token {at})",
                hint="The file would give other answers, so it was not kept. Serve the safetensors instead.",
            )


def _ask_llama(path: Path, source: Source, texts: Sequence[str]) -> bool:
    """Has llama.cpp load the file and cut the texts; False where it is not installed."""
    try:
        import xllamacpp
    except ImportError:
        return False
    with _served(xllamacpp, path) as address:
        _same_ids(path, source, lambda text: _llama_ids(address, text), texts, "in llama.cpp")
    return True


@contextmanager
def _served(xllamacpp: Any, path: Path) -> Iterator[str]:
    """llama.cpp on the file; its own loopback port, which only this process is told of."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity = 64, 1, -1
    params.warmup, params.ui, params.endpoint_slots, params.no_extra_bufts = False, False, False, True
    try:
        server = start_llama_server(params)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp cannot load what was written to {path}: {error}") from error
    yield server.listening_address


def _llama_ids(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "parse_special": True, "add_special": False}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]
