"""Conversations from Python: what `collect` and `tokenize` accept, and a teacher's answers as a list.

Nothing here is a new format: a conversation is a list of messages, as the OpenAI API and chat templates
have it, or a record with the columns of :mod:`.prompts.columns`.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stillhouse.console import console
from stillhouse.corpus.collect.loop import collect_answers
from stillhouse.corpus.prompts.columns import BadAnswerError, conversation
from stillhouse.corpus.prompts.load import GOLD, load_prompts
from stillhouse.corpus.prompts.prompt import Prompt
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.errors import ApiError, CorpusError, EmptyCorpusError
from stillhouse.hashing import sha256_json
from stillhouse.provenance import find_terms, require_allowed
from stillhouse.recipe import Collect, Purpose, Teacher

if TYPE_CHECKING:
    from stillhouse.models import Message, Model, Weights

Conversation = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A question, a list of messages, or a record (`messages`, or `prompt` with `completion`, …)."""
Conversations = str | os.PathLike[str] | Iterable[Conversation]
"""Conversations, or a source of them as in a recipe: a file, `package:mmlu`, `reasoning_gym:…`."""

_OF_A_RUN = ("split", "prompt_source")
SOURCE = "python"
"""The source of prompts that come from a program."""
T = TypeVar("T")


def read_conversations(conversations: Conversations) -> list[Prompt]:
    """The conversations in order, with their ids; identical ones are kept.

    Raises:
        CorpusError: one of them is malformed; the message has its number.
        EmptyCorpusError: there is none.
    """
    if isinstance(conversations, str | os.PathLike):
        return load_prompts(os.fspath(conversations))
    prompts = []
    for number, item in enumerate(conversations):
        where = f"conversation {number}"
        try:
            read = conversation(_record(item), gold=(GOLD,))
        except BadAnswerError as error:
            console.warn(f"{where} is left out: {error}")
            continue
        except CorpusError as error:
            raise CorpusError(f"{where}: {error}", hint=error.hint) from error
        hashed = [read.messages, read.tools] if read.tools else read.messages
        id = sha256_json(hashed)[:32]
        prompts.append(Prompt(id, read.messages, SOURCE, read.tags, read.tools, where))
    if not prompts:
        raise EmptyCorpusError("there is no conversation")
    return prompts


def _record(item: Conversation) -> dict[str, Any]:
    if isinstance(item, str):
        return {"prompt": item}
    if isinstance(item, Mapping):
        if "role" in item:
            raise CorpusError("this is a single message", hint="Pass a list of conversations.")
        return dict(item)
    if isinstance(item, Sequence):
        return {"messages": list(item)}
    raise CorpusError(f"a {type(item).__name__} is not text, a list of messages or a record")


def collect(
    teacher: str | Weights,
    prompts: Conversations,
    *,
    directory: str | os.PathLike[str] | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_tokens: int = 512,
    seed: int = 0,
    system: str | None = None,
    purpose: Purpose = "research",
    accept_terms: str | None = None,
    concurrency: int = 16,
    api_key_env: str = "OPENAI_API_KEY",
    max_cost: float | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
) -> list[dict[str, Any]]:
    """Asks a teacher every prompt; returns conversations that end with its answers.

    Example::

        rows = st.collect(teacher, ["What is a still?"], max_tokens=100)
        rows[0]["messages"]   # [{'role': 'user', …}, {'role': 'assistant', 'content': …}]

    With a ``directory``, every answer is stored at once, and the same call asks only for what is missing. An
    answer depends on its prompt, the settings and ``seed``, not on the other prompts. Identical prompts are
    asked once.

    Args:
        teacher: a reference, which may be an `api:`, or a model from `load`.
        prompts: questions, lists of messages, records, or a file. A conversation that ends with an
            assistant's message is finished and is returned as it is.
        samples: answers for each prompt.
        temperature: 0 is greedy.
        top_p: nucleus sampling.
        top_k: sample from the k likeliest tokens; 0: from all.
        max_tokens: longest answer, in tokens.
        system: system prompt for conversations without one; it becomes part of them.
        purpose: what the student is for, checked against the teacher's terms.
        accept_terms: reason for accepting unknown terms. Terms of a model that you built in memory are yours.
        concurrency: requests to an API at once.
        api_key_env: environment variable with the key of an API.
        max_cost: US dollars that all answers may cost; needs the prices.
        price_in: US dollars per million prompt tokens.
        price_out: US dollars per million tokens of answers.

    Returns:
        For each prompt and sample a row with ``id``, ``messages``, ``sample``, ``finish_reason`` (`stop`, or
        `length` where ``max_tokens`` cut it off), ``prompt_tokens``, ``completion_tokens``, ``seed``,
        ``tags`` (the other columns of its record), ``teacher``, ``terms``, and the other columns of a corpus
        row that have a value. Prompts that got no answer are missing, with a warning.

    Raises:
        TermsError: the teacher's terms forbid the purpose, or are unknown.
        AuthenticationError: an API refuses the key.
        ApiError: more than 5% of the requests failed.
        EmptyCorpusError: there is no prompt, or no answer.
    """
    from stillhouse.models import Weights

    reference = teacher.reference if isinstance(teacher, Weights) else teacher
    terms = _terms(teacher, purpose, accept_terms)
    read = read_conversations(prompts)
    settings = Collect(
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        concurrency=concurrency,
        max_cost=max_cost,
    )
    recipe_teacher = Teacher(
        model=reference, api_key_env=api_key_env, system=system, price_in=price_in, price_out=price_out
    )

    async def run(corpus: Corpus) -> None:
        model = _open(teacher, api_key_env, seed)
        try:
            summary = await collect_answers(
                model,
                [("train", prompt) for prompt in read],
                corpus,
                settings,
                teacher=recipe_teacher,
                terms=terms,
                seed=seed,
            )
        finally:
            await model.close()
        if failed := sum(summary.failed.values()):
            if failed > settings.tolerated_failures * summary.asked:
                raise ApiError(f"{failed} of {summary.asked} requests failed: {summary.failed}")
            console.warn(f"{failed} of {summary.asked} requests failed: {summary.failed}")

    with tempfile.TemporaryDirectory(prefix="stillhouse-") as temporary:
        corpus = Corpus(Path(temporary if directory is None else directory))
        run_coroutine(run(corpus))
        rows = {(row["prompt_id"], row["sample"]): _plain(row) for row in corpus.rows()}
    ordered = dict.fromkeys(prompt.id for prompt in read)
    return [rows[id, n] for id in ordered for n in range(samples) if (id, n) in rows]


def _open(teacher: str | Weights, api_key_env: str, seed: int) -> Model:
    from stillhouse.models import TorchModel, open_model

    if isinstance(teacher, str):
        return open_model(teacher, api_key_env=api_key_env, seed=seed)
    return TorchModel(teacher, seed=seed)


def _terms(teacher: str | Weights, purpose: Purpose, accept_terms: str | None) -> str:
    """The key of the teacher's terms; raises TermsError where they do not allow the purpose."""
    from stillhouse.errors import ModelNotFoundError
    from stillhouse.models import terms_of

    reference = teacher if isinstance(teacher, str) else teacher.reference
    try:
        entry = terms_of(reference)
    except ModelNotFoundError:
        if isinstance(teacher, str):
            raise
        entry = find_terms(reference, metadata={"name": reference})
        if entry.key == "unknown":
            return entry.key  # a model that the program has made itself
    require_allowed(entry, purpose, accept_terms)
    return entry.key


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the columns and fields that have no value or no meaning outside of a run."""
    present = {key: value for key, value in row.items() if value is not None and key not in _OF_A_RUN}
    present["tags"] = json.loads(row["tags"] or "{}")
    messages: list[Message] = [
        {key: value for key, value in message.items() if value is not None} for message in row["messages"]
    ]
    return present | {"messages": messages}


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, also inside of a running event loop, such as a notebook's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(asyncio.run(coroutine))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="stillhouse")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
