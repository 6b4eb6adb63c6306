"""Serves models on this machine: an OpenAI-compatible API and a chat page.

A request passes these rooms, and an answer passes them back:

- ``app.py`` (routes) → ``endpoints/`` (one handler for each path)
- ``api/`` (the OpenAI API): a body is checked against ``schema.py`` and ``fields.py`` and becomes a
  :class:`~stillhouse.serve.generation.chat_task.ChatTask`, the one internal form of a chat request
- ``generation/``: the task becomes a prompt, generations, and the parts of an answer
- ``engines/`` (llama.cpp and PyTorch): token ids in, text deltas out

The other APIs (``dialects/``: Responses, Messages, Ollama's) stand before this: each translates its request
into the body of a chat completion, for a model of this server or of another one, and the answer back.
"""

import lazy_loader

from stillhouse.callable_package import make_callable

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
make_callable(__name__)
