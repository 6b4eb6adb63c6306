"""Modelfiles: the Go template, run by a small interpreter of Ollama's language, against the model's own
template."""

from __future__ import annotations

import re

import pytest
from conftest import CHATML
from exported_models import byte_level, save
from tokenizers import processors

from stillhouse.export import export_gguf
from stillhouse.export.modelfile import as_fixed_texts
from stillhouse.models import ChatTemplate, load_tokenizer, read_gguf

WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
)
LLAMA2_LIKE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TRIMS = CHATML.replace("message['content']", "message['content'] | trim")
FOLDS = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n{% else %}"
    "<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML


def ollama(modelfile: str, messages: list[dict[str, str]]) -> str:
    """A conversation as Ollama renders it with this Modelfile: `range .Messages`, `if eq .Role`."""
    template = re.search(r'^TEMPLATE """(.*?)"""$', modelfile, re.MULTILINE | re.DOTALL)
    system = re.search(r'^SYSTEM """(.*?)"""$', modelfile, re.MULTILINE | re.DOTALL)
    assert template is not None
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system[1]}, *messages]
    start, _, rest = template[1].partition("{{ range .Messages }}")
    body, _, end = rest.rpartition("{{ end }}{{ end }}")
    branches = re.findall(
        r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', body, re.DOTALL
    )
    assert len(branches) == 3
    spoken = "".join(dict(branches)[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages)
    return start + spoken + end


def exported(tmp_path, template, **roles):
    tokenizer = byte_level()
    for role, token in roles.items():
        setattr(tokenizer, role, token)
    tokenizer.chat_template = template
    save(tmp_path / "model", "llama", tokenizer)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    return export


@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT, LLAMA2_LIKE, FOLDS], ids=str)
def test_ollama_would_write_the_prompt_that_the_model_learned(tmp_path, template):
    export = exported(tmp_path, template)
    _, own = load_tokenizer(str(tmp_path / "model"))
    conversations = [
        [("user", "What is 2+2?")],
        [("system", "Be brief."), ("user", " 2+2?\n"), ("assistant", "4"), ("user", "and 3+3?")],
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    ]
    assert export.template == "modelfile"
    for turns in conversations:
        messages = [{"role": role, "content": content} for role, content in turns]
        expected = own.render(messages, add_generation_prompt=True)
        assert ollama(export.modelfile.read_text(), messages) == expected


def test_the_start_token_is_not_written_twice(tmp_path):
    """Where the runtime adds it to every text, the template must not."""
    tokenizer = byte_level()
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", LLAMA2_LIKE
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    save(tmp_path / "model", "llama", tokenizer)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    assert export.template == "modelfile"
    assert "<|endoftext|>" not in export.modelfile.read_text().partition("PARAMETER")[0]


@pytest.mark.parametrize("template", [TRIMS, FORGETS, NO_SYSTEM], ids=["trims", "forgets", "no system"])
def test_a_template_that_says_more_is_left_to_the_file(tmp_path, template):
    export = exported(tmp_path, template)
    assert export.template == "file"
    assert "TEMPLATE" not in export.modelfile.read_text()


def test_what_go_would_take_for_its_own_signs_is_left_to_the_file():
    assert as_fixed_texts(ChatTemplate(CHATML.replace("<|im_end|>", "{{ '{{' }}"))) is None


def test_from_stop_and_license(tmp_path):
    tokenizer = byte_level()
    tokenizer.eos_token = "<|endoftext|>"
    save(tmp_path / "model", "llama", tokenizer)
    (tmp_path / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Mine\n")
    (export,) = export_gguf(tmp_path / "model", ["q8_0"])
    lines = export.modelfile.read_text().splitlines()
    assert lines[0] == f"FROM ./{export.path.name}"
    assert 'PARAMETER stop "<|endoftext|>"' in lines and 'PARAMETER stop "<|im_end|>"' in lines
    assert 'LICENSE "apache-2.0"' in lines
    assert (export.path.parent / "README.md").read_text().endswith("# Mine\n")


def test_a_model_without_a_template_gets_none(tmp_path):
    export = exported(tmp_path, None)
    assert export.template == "none"
    assert "TEMPLATE" not in export.modelfile.read_text()
    assert "tokenizer.chat_template" not in read_gguf(export.path).metadata
