"""A model with two templates, `default` and `tool_use`, uses the second for conversations with tools."""

from chat_templates import CHATML, QWEN_TOOLS
from conftest import make_tiny_teacher

from stillhouse.models import IsolatedTemplate, PromptEncoder, Request, Sampling, load_tokenizer
from stillhouse.models.weights import _gguf_templates

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def test_a_directory_s_template_for_tools_is_used_with_tools(tmp_path):
    directory = make_tiny_teacher(tmp_path / "model")
    (directory / "chat_template.jinja").write_text(CHATML)
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(QWEN_TOOLS)
    tokenizer, template = load_tokenizer(str(directory))
    isolated = IsolatedTemplate.of(template)
    assert isolated.source == CHATML and isolated.for_tools.source == QWEN_TOOLS
    assert isolated.tool_call_format.delimiters == ("<tool_call>", "</tool_call>")
    prompts = PromptEncoder(tokenizer, isolated, 4096, seed=0)
    request = Request("q", [{"role": "user", "content": "Hi"}], Sampling())
    plain, with_tools = (
        tokenizer.decode(prompts.encode(request, **options))
        for options in ({}, {"with_tools": True, "tools": TOOLS})
    )
    assert "look_up" in with_tools and "look_up" not in plain
    assert plain == template.render(request.messages, add_generation_prompt=True)


def test_a_gguf_file_s_template_for_tools_has_llama_cpp_s_key():
    class File:
        metadata = {"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t"}  # noqa: RUF012

    assert _gguf_templates(File()) == {"default": "d", "tool_use": "t"}
    File.metadata = {"tokenizer.chat_template": "d"}
    assert _gguf_templates(File()) == "d"
