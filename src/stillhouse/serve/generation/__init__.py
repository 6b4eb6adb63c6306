"""Generation, whatever the API: a request becomes a :class:`ChatTask`, its answer a stream of parts.

The handlers of the OpenAI API (``api/``, ``endpoints/``) surround it:

1. They build a :class:`~stillhouse.serve.generation.chat_task.ChatTask` from the body of a request.
2. An :class:`~stillhouse.serve.generation.respond.AnswerWriter` turns the parts of the answer (text,
   reasoning, tool calls, the finish reason, usage) into a body or into the events of a stream.

:func:`~stillhouse.serve.generation.respond.respond_to_chat` runs the steps between them. The other APIs
(``dialects/``) translate chat completions, and use nothing of this package.
"""
