"""Bad records of a file in a run: counted in the manifest, kept with their reasons, and not learned."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stillhouse.corpus import REJECT_SCHEMA, Corpus
from stillhouse.pipeline import run
from stillhouse.provenance import Manifest
from stillhouse.recipe.load import parse_recipe

TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    made.chat_template = TEMPLATE
    made.save_pretrained(directory)
    return directory


def test_every_record_is_learned_or_rejected_with_its_line(tmp_path, tokenizer):
    records = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"{n}."},
            ]
        }
        for n in range(40)
    ]
    records[3]["messages"].append({"role": "system", "content": "Be brief."})
    records[5] |= {"label": False}
    call = {"function": {"name": "weather", "arguments": "{}"}}
    records[7]["messages"][1] = {"role": "assistant", "content": None, "tool_calls": [call]}
    records[9]["other"] = [1]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = parse_recipe(
        f"""
name: rejects
accept_terms: written for this test
teacher: {{model: "api:http://127.0.0.1:9/v1#none"}}
prompts: {{source: {path}, held_out: 10}}
filter: {{near_duplicates: null}}
student:
  init: scratch
  tokenizer: {tokenizer}
  config: {{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1,
            num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128}}
objective: {{kind: cross_entropy}}
evaluate: {{control: false}}
"""
    )
    run(recipe, tmp_path / "run", until="student")
    manifest = Manifest.load(tmp_path / "run")
    collected = manifest.facts("collect")
    assert collected["read_as"] == {"finished conversations (messages: messages)": 38}
    assert collected["unused_columns"] == {"other": 1}
    assert collected["rejected_records"] == {"unreadable record": 1, "labelled as a bad answer": 1}
    assert manifest.facts("student")["unrendered"] == 1
    rejects = {
        row["reason"]: row["detail"]
        for row in Corpus(tmp_path / "run" / "corpus" / "rejects", schema=REJECT_SCHEMA).rows()
    }
    assert rejects["unreadable record"].startswith(f"{path}:4: messages ends with a system prompt")
    assert rejects["labelled as a bad answer"].startswith(f"{path}:6: label is false")
    assert rejects["refused by the chat template"].startswith(
        f"{path}:8: the chat template leaves out the call"
    )
    assert len(rejects) == 3
