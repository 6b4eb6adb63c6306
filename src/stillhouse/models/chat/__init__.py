"""Chat templates, token masks, tool calls and reasoning."""
