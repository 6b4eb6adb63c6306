"""The OpenAPI document describes the request bodies."""

from stillhouse.serve.openapi import openapi_document


def test_bodies_are_described():
    schemas = openapi_document()["components"]["schemas"]
    chat = schemas["ChatRequest"]["properties"]
    assert "lets the model choose" in chat["tool_choice"]["description"]
    assert "Refused" in chat["functions"]["description"]
    assert "Refused" in schemas["EmbeddingRequest"]["properties"]["dimensions"]["description"]
    assert {"Tool", "Function", "ToolCall", "ToolName", "Message"} <= set(schemas)
    assert schemas["Function"]["properties"]["parameters"]["description"].startswith("JSON schema")
