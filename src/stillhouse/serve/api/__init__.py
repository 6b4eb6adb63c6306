"""The OpenAI API's requests, responses and errors."""
