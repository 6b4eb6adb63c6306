"""Generation, whatever the API: a request becomes a :class:`ChatTask`, its answer a stream of parts.

A dialect (OpenAI, Anthropic, Ollama …) has two halves:

1. It builds a :class:`~stillhouse.serve.generation.chat_task.ChatTask` from the body of a request, and checks
   what is particular to the dialect. All else is checked here.
2. Its :class:`~stillhouse.serve.generation.respond.AnswerWriter` turns the parts of the answer (text,
   reasoning, tool calls, the finish reason, usage) into a body or into the events of a stream.

:func:`~stillhouse.serve.generation.respond.respond_to_chat` does what lies between.
"""
