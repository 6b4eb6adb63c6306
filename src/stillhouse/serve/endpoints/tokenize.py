"""`POST /tokenize` and `POST /detokenize`, in the forms of vLLM and llama.cpp.

vLLM's form has `prompt` or `messages`, and `count`, `max_model_len`, `tokens` in its answer; llama.cpp's has
`content` and `tokens`. Only models of this machine are supported.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.models import Sampling, token_bytes
from stillhouse.serve.api.chat_request import template_messages
from stillhouse.serve.api.schema import DetokenizeRequest, TokenizeRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import Engine
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.generation.chat_prompt import build_chat_prompt
from stillhouse.serve.generation.chat_task import ChatTask, choose_tools


async def tokenize(context: ServerContext, request: Request, body: TokenizeRequest) -> Response:
    """Returns the token ids of a text or a conversation."""
    given = [name for name in ("prompt", "messages", "content") if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidRequestError("send one of prompt, messages and content", "prompt")
    model = body.model or _first_model(context)
    async with context.pool.use(model) as engine:
        if body.messages is not None:
            ids = await context.read_prompt(engine, _chat_ids, engine, body, model)
        else:
            ids = await context.read_prompt(engine, _text_ids, engine, body)
        pieces = _pieces(engine, ids) if body.with_pieces or body.return_token_strs else None
    if body.content is not None:
        tokens: list[Any] = ids
        if body.with_pieces and pieces is not None:
            tokens = [
                {"id": token_id, "piece": _piece(piece)} for token_id, piece in zip(ids, pieces, strict=True)
            ]
        return JSONResponse({"tokens": tokens})
    strings = [piece.decode(errors="replace") for piece in pieces] if pieces is not None else None
    return JSONResponse({
        "count": len(ids), "max_model_len": engine.context_length, "tokens": ids, "token_strs": strings,
    })  # fmt: skip


async def detokenize(context: ServerContext, request: Request, body: DetokenizeRequest) -> Response:
    """Returns the text of token ids, special tokens included."""
    async with context.pool.use(body.model or _first_model(context)) as engine:
        size = len(engine.prompts.tokenizer)
        if any(not 0 <= token < size for token in body.tokens):
            raise InvalidRequestError(f"token ids must be between 0 and {size - 1}", "tokens")
        text = await context.read_prompt(engine, engine.prompts.tokenizer.decode, body.tokens)
    return JSONResponse({"prompt": text, "content": text})


def _first_model(context: ServerContext) -> str:
    """The first model on this machine; the first of all if there is none."""
    names = context.pool.names
    return next((name for name in names if name not in context.pool.upstreams), names[0])


def _chat_ids(engine: Engine, body: TokenizeRequest, model: str) -> list[int]:
    """Token ids of the prompt that a chat with these messages has."""
    if not body.add_generation_prompt and not body.continue_final_message:
        raise InvalidRequestError(
            "add_generation_prompt false needs continue_final_message", "add_generation_prompt"
        )
    tools = [tool.function.model_dump(exclude_none=True) for tool in body.tools or ()]
    task = ChatTask(
        model=model,
        messages=tuple(template_messages(body.messages or ())),
        sampling=Sampling(),
        tools=choose_tools(tools, None),
        template_variables=body.chat_template_kwargs,
        reasoning_effort=body.reasoning_effort,
        continue_final_message=body.continue_final_message,
    )
    return list(build_chat_prompt(engine, task).ids)


def _text_ids(engine: Engine, body: TokenizeRequest) -> list[int]:
    """Token ids of a text, with the begin token if that was asked for."""
    text, special = (
        (body.content, body.add_special) if body.prompt is None else (body.prompt, body.add_special_tokens)
    )
    return list(engine.prompts.tokenizer.encode(text or "", add_special_tokens=special))


def _pieces(engine: Engine, ids: list[int]) -> list[bytes]:
    all_bytes = token_bytes(engine.prompts.tokenizer)
    return [(all_bytes[token_id] if token_id < len(all_bytes) else None) or b"" for token_id in ids]


def _piece(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are not text, as llama.cpp writes them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
