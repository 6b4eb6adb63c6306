"""The other APIs that clients speak: OpenAI's Responses, Anthropic's Messages, and Ollama's.

Each file translates a request into the body of a chat completion, and the chat completion, whole or
streamed, into its own answer. The model, the tools and the schemas are therefore those of
``/v1/chat/completions``, also for a model of another server. Nothing is kept between requests, so fields that
refer to an earlier answer are refused.
"""
