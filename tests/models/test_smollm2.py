"""The embedded model: its tokenizer against llama.cpp, its weights against transformers' own loader."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stillhouse.models import load_tokenizer, load_weights, parse_reference, start_llama_server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_real_text_is_cut_as_llama_cpp_cuts_it():
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(parse_reference("embedded:smollm2").path)
    params.n_ctx, params.verbosity, params.warmup, params.ui = 64, -1, False, False
    server = start_llama_server(params)
    tokenizer, _ = load_tokenizer("embedded:smollm2")

    def theirs(text):
        body = json.dumps({"content": text, "parse_special": True, "add_special": False}).encode()
        url = f"{server.listening_address}/tokenize"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request))["tokens"]

    files = [
        ROOT / "LICENSE",
        ROOT / "docs" / "architecture.md",
        *sorted((ROOT / "src/stillhouse").glob("*.py")),
    ]
    texts = [file.read_text() for file in files]
    texts += ["In 1987, 12.5% of 3,400 — «naïve» 数学 🙂\n\n\n<|im_start|>user\nHi<|im_end|>"]
    assert sum(map(len, texts)) > 20_000
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == theirs(text)
        assert tokenizer.decode(ids) == text


def test_weights_are_bit_equal_to_transformers_loader(tmp_path):
    weights = load_weights("embedded:smollm2")
    path = parse_reference("embedded:smollm2").path
    assert path is not None
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ours, expected = weights.model.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        assert torch.equal(weights.model(ids).logits, theirs(ids).logits)
    weights.model.save_pretrained(tmp_path)  # fails where marks of quantisation are left
