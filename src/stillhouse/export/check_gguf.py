"""Checks a written GGUF file against its source model, before the file gets its name.

The header is read back and compared id by id with the source's tokenizer. A tokenizer that is rebuilt from
it, by the code that reads any GGUF file, must encode texts alike. Where xllamacpp is installed, llama.cpp
loads the file and must give the same ids for texts of many kinds, and the same log-probabilities
(`check_logits`).
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
from stillhouse.export.check_logits import SAMPLES, LogitComparison, checked_ids, compare_logits
from stillhouse.export.rope import USE_TRANSFORMERS
from stillhouse.export.source import Source
from stillhouse.export.tokenizer import Vocabulary
from stillhouse.models import (
    SPECIAL_TOKENS,
    Architecture,
    GgufFile,
    TokenType,
    read_gguf,
    requested_threads,
    start_llama_server,
    tokenizer_difference,
    tokenizer_from_gguf,
)

MAX_ADDED_TOKENS = 64  # added tokens to test
MAX_RUN = 66  # Gemma's longest token for spaces has 31; so two of them, and some more


def check_file(
    path: Path,
    source: Source,
    architecture: Architecture,
    vocabulary: Vocabulary,
    sizes: Mapping[str, int],
    quantisation: str,
) -> LogitComparison:
    """Raises unless the file at ``path`` agrees with ``source``; returns how near it is.

    Args:
        sizes: name -> number of elements, of every tensor of the file.
        quantisation: the name of the file's type.

    Raises:
        TokenizerMismatchError: an id, type, merge, special id or the template differs, or a text is encoded
            differently.
        IntegrityError: a tensor is missing, truncated or wrong, or llama.cpp computes something else.
    """
    with console.progress("check", 4, "steps") as progress:
        file = read_gguf(path)
        _check_tensors(file, sizes)
        _check_ids(file, source)
        _check_specials(file, source, vocabulary)
        progress.advance()
        _check_rebuilt(file, source, _texts(source, blanks=True))
        progress.advance()
        with _llama_server(path, source) as server:
            if server is not None:
                address = server.listening_address
                # llama.cpp has no tokens that swallow white space; the user is told.
                texts = _texts(source, blanks=not vocabulary.stripping)
                _require_same_ids(path, source, lambda text: _llama_ids(address, text), texts, "in llama.cpp")
            progress.advance()
            comparison = compare_logits(file, source, architecture, server, quantisation)
        progress.advance()
    return comparison


def _check_rebuilt(file: GgufFile, source: Source, texts: Sequence[str]) -> None:
    """Compares the tokenizer that our own loader rebuilds from the header."""
    rebuilt = tokenizer_from_gguf(file)
    has_merges = file.require("tokenizer.ggml.model") == "gpt2"  # SentencePiece has scores instead
    rows = source.config.get_text_config().vocab_size
    if has_merges and (difference := tokenizer_difference(source.tokenizer, rebuilt, rows=rows)):
        raise TokenizerMismatchError(f"{file.path}: the tokenizer was not carried over: {difference}")
    _require_same_ids(
        file.path,
        source,
        lambda text: rebuilt.encode(text, add_special_tokens=False, verbose=False),
        texts,
        "read back",
    )


def _check_tensors(file: GgufFile, sizes: Mapping[str, int]) -> None:
    written = {name: tensor.size for name, tensor in file.tensors.items()}
    if written != dict(sizes):
        name = min(name for name, _ in written.items() ^ sizes.items())
        raise IntegrityError(f"{file.path}: the tensor {name} was not written as it should be")


def _check_ids(file: GgufFile, source: Source) -> None:
    """Compares text and type of every id with the source's own tables."""
    tokens, types = file.require("tokenizer.ggml.tokens"), file.require("tokenizer.ggml.token_type")
    added = source.tokenizer.added_tokens_decoder
    rows = source.config.get_text_config().vocab_size
    if not len(tokens) == len(types) == rows:
        raise TokenizerMismatchError(f"{file.path}: {len(tokens)} tokens, {len(types)} types, {rows} rows")
    token_by_id = {number: token for token, number in source.tokenizer.get_vocab().items()}
    for number, (token, token_type) in enumerate(zip(tokens, types, strict=True)):
        if number not in token_by_id:
            allowed: tuple[int, ...] = (TokenType.UNUSED,)
        elif number in added:
            allowed = (TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED,)
        else:
            allowed = (TokenType.NORMAL, TokenType.BYTE)
        if number == source.tokenizer.unk_token_id:
            allowed = (*allowed, TokenType.UNKNOWN)
        if token_type not in allowed or token != token_by_id.get(number, token):
            raise TokenizerMismatchError(
                f"{file.path}: id {number} is {token!r} of type {token_type}; "
                f"in the model's own tokenizer it is {token_by_id.get(number)!r}, type {allowed[0]}"
            )


def _check_specials(file: GgufFile, source: Source, vocabulary: Vocabulary) -> None:
    """Compares special ids, the tokens around plain text, and the chat template."""
    tokenizer = source.tokenizer
    expected_ids = {name: getattr(tokenizer, f"{role}_token_id") for role, name in SPECIAL_TOKENS.items()}
    for name, number in {**expected_ids, "eos": source.ends[0]}.items():
        if (written := file.metadata.get(f"tokenizer.ggml.{name}_token_id")) != number:
            raise TokenizerMismatchError(f"{file.path}: the {name} token is {written}, not {number}")
    bare = tokenizer.encode("a", add_special_tokens=False)
    start = [tokenizer.bos_token_id] * file.require("tokenizer.ggml.add_bos_token")
    end = [tokenizer.eos_token_id] * file.require("tokenizer.ggml.add_eos_token")
    if (whole := tokenizer.encode("a")) != start + bare + end:
        raise TokenizerMismatchError(f"{file.path}: 'a' is {start + bare + end}, not {whole}")
    key = "tokenizer.chat_template"
    templates = {key: source.template.source if source.template.declared else None}
    templates |= {f"{key}.{name}": text for name, text in source.named_templates.items()}
    if any(file.metadata.get(key) != text for key, text in templates.items()):
        raise TokenizerMismatchError(f"{file.path}: the chat template was not carried over")
    if TokenType.BYTE in vocabulary.types:
        # llama.cpp looks for a byte under its own name, and then for its character (Gemma 2's tab).
        names = ((f"<0x{byte:02X}>", chr(byte) if byte < 128 else None) for byte in range(256))
        known = set(vocabulary.tokens)
        if missing := next((byte for byte, name in enumerate(names) if known.isdisjoint(name)), None):
            raise TokenizerMismatchError(f"{file.path}: no token for the byte {missing:#04x}")


def _texts(source: Source, *, blanks: bool) -> list[str]:
    """The samples, runs of white space, and a text with the first added tokens between words.

    Args:
        blanks: whether there is white space beside the added tokens.
    """
    runs = ["".join(f"{n}{blank * n}" for n in range(1, MAX_RUN)) for blank in " \n\t"]
    rows = source.config.get_text_config().vocab_size
    known = [str(token) for n, token in source.tokenizer.added_tokens_decoder.items() if n < rows]
    added = known[:MAX_ADDED_TOKENS]
    space, line = (" ", "\n") if blanks else ("", "")
    return [*SAMPLES, *runs, "".join(f"{token}user\nHi there{space}{token}{line}" for token in added)]


def _require_same_ids(
    path: Path, source: Source, encode: Callable[[str], Sequence[int]], texts: Sequence[str], how: str
) -> None:
    for text in texts:
        expected = source.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        ids = list(encode(text))
        if ids != expected:
            at = next(i for i in range(len(expected) + 1) if ids[: i + 1] != expected[: i + 1])
            raise TokenizerMismatchError(
                f"{path}: {how}, the tokenizer encodes {text[:40]!r} as {ids[at : at + 4]} where the "
                f"model's own has {expected[at : at + 4]} (token {at})",
                hint=f"The file would give other answers, so it was not kept. {USE_TRANSFORMERS}",
            )


@contextmanager
def _llama_server(path: Path, source: Source) -> Iterator[Any | None]:
    """A llama.cpp server with the file, on a random port of loopback; None where it is not installed."""
    try:
        import xllamacpp
    except ImportError:
        yield None
        return
    kinds = xllamacpp.ggml_type  # pyright: ignore[reportAttributeAccessIssue]  (compiled)
    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity = len(checked_ids(source)) + 8, 1, -1
    params.warmup, params.ui, params.endpoint_slots, params.no_extra_bufts = False, False, False, True
    params.cache_type_k = params.cache_type_v = kinds.GGML_TYPE_F32
    if threads := requested_threads():
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    try:
        server = start_llama_server(params)
    except RuntimeError as error:
        raise ModelError(
            f"llama.cpp cannot load what was written to {path}: {error}", hint=USE_TRANSFORMERS
        ) from error
    yield server


def _llama_ids(address: str, text: str) -> list[int]:
    # xllamacpp has no function for tokenization, only the HTTP endpoint.
    body = json.dumps({"content": text, "parse_special": True, "add_special": False}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]
