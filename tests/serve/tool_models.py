"""A small random model whose template supports tools, as safetensors and as GGUF."""

import json

from chat_templates import QWEN_TOOLS
from conftest import make_tiny_teacher

from stillhouse.export import export_gguf

CONTEXT = 4096


def make_tool_model(directory):
    """The paths of the model's directory and of its GGUF file."""
    make_tiny_teacher(directory, seed=3)
    (directory / "chat_template.jinja").write_text(QWEN_TOOLS)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    (done,) = export_gguf(directory, ("f32",), directory / "tools.gguf", replace=False)
    return directory, done.path
