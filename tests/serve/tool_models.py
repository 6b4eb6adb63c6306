"""A small random model whose template supports tools, as safetensors and as GGUF."""

import json

from chat_templates import QWEN_TOOLS
from conftest import make_tiny_teacher

from stillhouse.export import export_gguf

CONTEXT = 4096


def make_tool_model(directory):
    """The paths of the model's directory and of its GGUF file."""
    make_model(directory, QWEN_TOOLS)
    (done,) = export_gguf(directory, ("f32",), directory / "tools.gguf", replace=False)
    return directory, done.path


def make_model(directory, template):
    """A small random model with this chat template, as a directory."""
    make_tiny_teacher(directory, seed=3)
    (directory / "chat_template.jinja").write_text(template)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return directory
