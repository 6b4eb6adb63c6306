"""Malicious and broken models: a real server reports each of them, and continues to answer."""

import json
import pickle
import shutil
import struct
import threading
import time

import openai
import pytest
import torch
from running_server import RunningServer
from safetensors.torch import load_file
from tiny_gguf import tiny_model, vocabulary, write_gguf

pytestmark = pytest.mark.slow

HELLO = [{"role": "user", "content": "Say hello."}]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROWS = "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
TEMPLATES = {
    "escapes": "{{ cycler.__init__.__globals__['os'].popen('id').read() }}",
    "loops": LOOPS,
    "counts": "{% for i in range(10**9) %}x{% endfor %}",
    "grows": GROWS,
    "multiplies": "{{ 7 ** (10 ** 9) }}",
    "writes": "{{ 'x' * (20 * 2**20) }}",
    "calls": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "malformed": "{% if",
    "raises": "{{ raise_exception('I do not want to') }}",
    "surrogate": "{{ '\\ud800' }}",
    "reserved": "{{ '\ufdd0' }}nonsense{{ '\ufdd1' }}",
}
MESSAGES = {
    "escapes": "unsafe",
    "loops": "took more than 2 s",
    "counts": "Range too big",
    "grows": "MemoryError|took more than",
    "multiplies": "took more than 2 s",
    "writes": "the limit is 16,777,216",
    "calls": "recursion",
    "malformed": "malformed: line 1",
    "raises": "I do not want to",
    "surrogate": "surrogates not allowed",
    "reserved": "is never text",
}


class Opens:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def changed_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def mark(tmp_path_factory):
    return tmp_path_factory.mktemp("mark") / "harm-was-done"


@pytest.fixture(scope="module")
def hostile(tiny_teacher, tmp_path_factory, mark):
    """Name -> path of each model."""
    root = tmp_path_factory.mktemp("hostile")
    paths = {}

    def directory(name):
        paths[name] = root / name
        return shutil.copytree(tiny_teacher, paths[name])

    for name, template in TEMPLATES.items():
        (directory(name) / "chat_template.jinja").write_text(template)
    tokens, types = vocabulary()
    for name, template in TEMPLATES.items():
        paths[f"gguf-{name}"] = root / f"{name}.gguf"
        write_gguf(
            paths[f"gguf-{name}"],
            tokens=tokens,
            types=types,
            special={"bos": len(tokens) - 2, "eos": len(tokens) - 1},
            template=template,
            model=tiny_model("llama", len(tokens)),
        )
    pickled = directory("pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (directory("pretends") / "model.safetensors").write_bytes(pickle.dumps(Opens(mark)))
    length = struct.pack("<Q", 2**63)
    (directory("endless-header") / "model.safetensors").write_bytes(length + b"{}")
    (directory("no-tokenizer") / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"')
    changed_config(directory("layers"), num_hidden_layers=10**6)
    changed_config(directory("wide"), hidden_size=2**31)
    changed_config(directory("words"), vocab_size=10**10)
    changed_config(directory("context"), max_position_embeddings=-5)
    changed_config(directory("code"), auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil")
    (paths["code"] / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    whole = (root / "raises.gguf").read_bytes()
    for name, data in {
        "cut": whole[: len(whole) // 2],
        "cut-header": whole[:1000],
        "magic": b"GGML" + whole[4:],
        "counts-tensors": whole[:8] + struct.pack("<Q", 2**63) + whole[16:],
        "counts-keys": whole[:16] + struct.pack("<Q", 2**64 - 1) + whole[24:],
        "long-string": whole[:24] + struct.pack("<Q", 2**63) + whole[32:],
        "empty": b"",
    }.items():
        paths[f"gguf-{name}"] = root / f"{name}.gguf"
        paths[f"gguf-{name}"].write_bytes(data)
    return paths


@pytest.fixture(scope="module")
def server(hostile, tiny_teacher, mark):
    models = [f"{name}={path}" for name, path in hostile.items()]
    # Less than the usual limit, so that the tests need not wait.
    constants = {"stillhouse.models.chat.isolated_template.CPU_S": 2.0}
    running = RunningServer(f"tiny={tiny_teacher}", *models, constants=constants)
    ask(running, "tiny")
    yield running
    running.client.close()
    status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "internal error" not in log, log
    assert not mark.exists()


def ask(server, model):
    return server.client.chat.completions.create(model=model, messages=HELLO, max_tokens=2)


@pytest.mark.parametrize("kind", ["", "gguf-"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_malicious_template_is_reported_and_stops_no_other_request(server, name, kind):
    with pytest.raises(openai.BadRequestError, match=MESSAGES[name]):
        ask(server, kind + name)
    assert ask(server, "tiny").choices


@pytest.mark.parametrize("model", ["loops", "gguf-loops"])
def test_others_are_answered_while_a_template_loops(server, model):
    errors = []

    def wait():
        with pytest.raises(openai.BadRequestError) as caught:
            ask(server, model)
        errors.append(caught.value)

    looping = [threading.Thread(target=wait) for _ in range(2)]
    for thread in looping:
        thread.start()
    time.sleep(0.5)
    for _ in range(5):
        started = time.monotonic()
        assert ask(server, "tiny").choices
        assert time.monotonic() - started < 3
    assert not errors
    for thread in looping:
        thread.join()
    assert len(errors) == 2
    assert server.idle()


BROKEN = {
    "pickled": "pickle weights only .* they are refused",
    "pretends": "cannot be loaded",
    "endless-header": "cannot be loaded",
    "no-tokenizer": "no usable tokenizer",
    "layers": "says 1,000,000 layers, but there are 39 tensors",
    "wide": "do not have the shapes that config.json says",
    "words": "do not have the shapes that config.json says",
    "context": "a context of -5 tokens",
    "code": "no usable tokenizer|cannot be loaded",
    "gguf-cut": "cut off",
    "gguf-cut-header": "cut off or damaged",
    "gguf-magic": "is not a GGUF file",
    "gguf-counts-tensors": "dimensions|cut off or damaged",
    "gguf-counts-keys": "cut off or damaged|unknown type",
    "gguf-long-string": "cut off or damaged",
    "gguf-empty": "is empty",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_reported_and_stops_no_other_request(server, name):
    started = time.monotonic()
    with pytest.raises(openai.APIStatusError, match=BROKEN[name]) as caught:
        ask(server, name)
    assert caught.value.status_code == 503
    assert time.monotonic() - started < 20
    assert ask(server, "tiny").choices
