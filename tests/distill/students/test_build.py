"""Building and saving students: pretrained, from scratch, pruned."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_decoders import logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.distill.data.documents import Document
from stillhouse.distill.students.build import build_student, require_same_tokenizer
from stillhouse.distill.students.lora import prepare_lora
from stillhouse.distill.students.save import save_student
from stillhouse.errors import EmptyCorpusError, RecipeError, StorageError, TokenizerMismatchError
from stillhouse.models import ChatTemplate, Weights, load_weights
from stillhouse.recipe import Lora, Student

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def teacher(tiny_teacher) -> Weights:
    return load_weights(str(tiny_teacher))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    generator = np.random.default_rng(0)
    return [
        Document(str(n), generator.integers(0, 300, 20 + n).astype(np.int32), np.ones(20 + n, dtype=bool))
        for n in range(12)
    ]


def scratch(**changes) -> Student:
    return Student(init="scratch", config={**QWEN3, **changes})


def same_weights(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


IDS = torch.arange(3, 40)


class TestPretrained:
    def test_is_the_named_model(self, teacher, tiny_teacher):
        built = build_student(Student(model=str(tiny_teacher)), teacher=None, calibration=[], seed=0)
        assert same_weights(built.model, teacher.model)
        assert built.template.source == teacher.template.source
        assert built.facts["parameters"] == sum(p.numel() for p in teacher.model.parameters())

    def test_needs_a_name(self, teacher):
        with pytest.raises(RecipeError, match=r"student\.model is needed"):
            build_student(Student(), teacher=teacher, calibration=[], seed=0)

    def test_may_take_the_teachers_template(self, teacher, tiny_teacher):
        other = dataclasses.replace(teacher, template=ChatTemplate("{{ 'other' }}"))
        settings = Student(model=str(tiny_teacher), template="teacher")
        built = build_student(settings, teacher=other, calibration=[], seed=0)
        assert built.template.source == "{{ 'other' }}"
        with pytest.raises(RecipeError, match="API teacher"):
            build_student(settings, teacher=None, calibration=[], seed=0)


class TestScratch:
    def test_seed_decides_the_weights_to_the_bit(self, teacher):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        first, again, other = (
            build_student(scratch(), teacher=teacher, calibration=[], seed=seed).model for seed in (1, 1, 2)
        )
        assert torch.equal(torch.rand(1), expected)
        assert same_weights(first, again)
        assert not same_weights(first, other)

    def test_vocabulary_and_special_tokens_come_from_the_tokenizer(self, teacher):
        model = build_student(scratch(), teacher=teacher, calibration=[], seed=0).model
        size = len(teacher.tokenizer)
        assert model.config.vocab_size == size + (-size) % 64
        assert model.config.eos_token_id == teacher.tokenizer.eos_token_id
        assert model.dtype == torch.float32
        assert model.config.hidden_size == 32

    def test_vocabulary_may_be_padded_as_the_recipe_likes(self, teacher):
        size = len(teacher.tokenizer)
        for padded in (size, size + 777):
            built = build_student(scratch(vocab_size=padded), teacher=teacher, calibration=[], seed=0)
            assert logits(built.model, IDS).shape[-1] == padded

    def test_a_vocabulary_of_its_own_fits_the_template_and_every_text(self, teacher):
        settings = dataclasses.replace(scratch(), vocabulary=600)
        texts = ["what a still keeps, a still keeps: " * 3, "keeps and keeps"]
        built, again = (
            build_student(settings, teacher=teacher, calibration=[], seed=0, texts=iter(texts))
            for _ in range(2)
        )
        assert built.tokenizer.backend_tokenizer.to_str() == again.tokenizer.backend_tokenizer.to_str()
        assert built.model.config.vocab_size < 600
        assert built.model.config.eos_token_id == built.tokenizer.eos_token_id
        said = [{"role": "user", "content": "🙂 naïve"}, {"role": "assistant", "content": "what 你 keeps"}]
        ids, written = built.template.encode(built.tokenizer, said)
        assert built.tokenizer.decode(ids) == teacher.template.render(said)
        answer = [n for n, own in zip(ids, written, strict=True) if own]
        assert built.tokenizer.decode(answer) == "what 你 keeps<|im_end|>"
        assert built.tokenizer.convert_ids_to_tokens(answer)[0] == "what"

    def test_a_vocabulary_needs_text(self, teacher):
        with pytest.raises(EmptyCorpusError):
            build_student(
                dataclasses.replace(scratch(), vocabulary=600), teacher=teacher, calibration=[], seed=0
            )

    def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(self, teacher):
        with pytest.raises(RecipeError, match="vocab_size 100 is less than the tokenizer's"):
            build_student(scratch(vocab_size=100), teacher=teacher, calibration=[], seed=0)

    def test_a_tokenizer_may_be_named_when_the_teacher_is_remote(self, teacher, tiny_teacher):
        with pytest.raises(RecipeError, match=r"student\.tokenizer is needed"):
            build_student(scratch(), teacher=None, calibration=[], seed=0)
        settings = dataclasses.replace(scratch(), tokenizer=str(tiny_teacher))
        built = build_student(settings, teacher=None, calibration=[], seed=0)
        assert built.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()

    @pytest.mark.parametrize(
        ("changes", "message", "hint"),
        [
            ({"hidden_sise": 32}, "qwen3 has no setting 'hidden_sise'", "`hidden_size`"),
            ({"model_type": "quen3"}, "no model_type 'quen3'", "`qwen3`"),
            ({"model_type": None}, "model_type is missing", "qwen3"),
            ({"model_type": "clip"}, "clip is not a causal language model", ""),
            ({"hidden_size": "wide"}, "hidden_size", ""),
            ({"model_type": "llama", "hidden_size": 30}, "not a multiple", ""),
        ],
    )
    def test_a_wrong_configuration_is_refused(self, teacher, changes, message, hint):
        with pytest.raises(RecipeError, match=message) as caught:
            build_student(scratch(**changes), teacher=teacher, calibration=[], seed=0)
        assert hint in (caught.value.hint or "")


class TestPruned:
    def test_is_the_same_to_the_bit_every_time(self, teacher, documents):
        settings = Student(
            init="prune", layers=2, intermediate=40, heads=1, hidden=24, calibration_tokens=100
        )
        before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
        first, again = (
            build_student(settings, teacher=teacher, calibration=documents, seed=4) for _ in range(2)
        )
        assert same_weights(first.model, again.model)
        assert first.facts == again.facts
        assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())

    def test_facts_say_what_was_measured_and_cut(self, teacher, documents):
        settings = Student(init="prune", layers=2, intermediate=40, calibration_tokens=100)
        facts = build_student(settings, teacher=teacher, calibration=documents, seed=0).facts
        assert facts == json.loads(json.dumps(facts))
        assert (facts["parent_layers"], facts["layers"], facts["intermediate"]) == (4, 2, 40)
        assert len(facts["influence"]) == 4
        assert len(facts["keep"]) == 2
        assert facts["calibration_tokens"] == 100

    def test_the_recipe_may_name_the_layers_and_leave_healing_out(self, teacher, documents):
        settings = Student(init="prune", keep=(0, 3), heal=False)
        built = build_student(settings, teacher=teacher, calibration=documents, seed=0)
        assert built.facts["keep"] == [0, 3]
        assert built.facts["healed"] == []
        parent = teacher.model.model.layers[3].state_dict()
        assert all(
            torch.equal(v, parent[name]) for name, v in built.model.model.layers[1].state_dict().items()
        )

    def test_another_parent_than_the_teacher_may_be_named(self, tiny_teacher, documents):
        settings = Student(init="prune", model=str(tiny_teacher), layers=3)
        built = build_student(settings, teacher=None, calibration=documents, seed=0)
        assert built.facts["layers"] == 3

    def test_what_cannot_be_is_refused(self, teacher, documents):
        for settings, message in [
            (Student(init="prune"), "no part to prune is set"),
            (Student(init="prune", layers=5), "the model has 4"),
            (Student(init="prune", keep=(0, 9)), "no layer 9"),
        ]:
            with pytest.raises(RecipeError, match=message):
                build_student(settings, teacher=teacher, calibration=documents, seed=0)
        with pytest.raises(RecipeError, match="without weights to prune"):
            build_student(Student(init="prune", layers=2), teacher=None, calibration=documents, seed=0)
        with pytest.raises(EmptyCorpusError, match="calibration"):
            build_student(Student(init="prune", layers=2), teacher=teacher, calibration=[], seed=0)


class TestTokenizers:
    def test_padded_vocabularies_of_different_size_share_a_tokenizer(self, teacher):
        padded = build_student(scratch(vocab_size=1000), teacher=teacher, calibration=[], seed=0)
        require_same_tokenizer(teacher.tokenizer, padded.tokenizer)

    def test_another_tokenizer_is_refused(self, teacher, tiny_teacher):
        other = AutoTokenizer.from_pretrained(tiny_teacher)
        other.add_tokens(["stillhouse"])
        with pytest.raises(TokenizerMismatchError, match="different tokenizers") as caught:
            require_same_tokenizer(teacher.tokenizer, other)
        assert "cross_entropy" in (caught.value.hint or "")


class TestSaved:
    @pytest.fixture
    def target(self, tmp_path) -> Path:
        return tmp_path / "run" / "student"

    def test_float32_is_exact_and_transformers_loads_it_alone(self, teacher, documents, target):
        settings = Student(init="prune", layers=2, heads=1, intermediate=40)
        built = build_student(settings, teacher=teacher, calibration=documents, seed=0)
        save_student(built.model, built.tokenizer, built.template, target, dtype="float32")
        loaded = AutoModelForCausalLM.from_pretrained(target)
        assert same_weights(loaded, built.model)
        assert torch.equal(logits(loaded, IDS), logits(built.model, IDS))
        names = {path.name for path in target.iterdir()}
        assert names >= {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"}

    def test_bfloat16_is_the_nearest_and_the_model_in_memory_keeps_its_own(self, teacher, target):
        before = teacher.model.state_dict()["model.embed_tokens.weight"].clone()
        save_student(teacher.model, teacher.tokenizer, teacher.template, target)
        loaded = AutoModelForCausalLM.from_pretrained(target)
        assert loaded.dtype == torch.bfloat16
        expected = {name: value.to(torch.bfloat16) for name, value in teacher.model.state_dict().items()}
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
        assert torch.equal(teacher.model.state_dict()["model.embed_tokens.weight"], before)

    def test_tied_embeddings_are_saved_once(self, teacher, target):
        settings = scratch(tie_word_embeddings=True)
        built = build_student(settings, teacher=teacher, calibration=[], seed=0)
        save_student(built.model, built.tokenizer, built.template, target)
        with safe_open(target / "model.safetensors", "pt") as file:
            assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        loaded = AutoModelForCausalLM.from_pretrained(target)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight

    def test_tokenizer_template_and_end_mark_go_along(self, teacher, target):
        template = ChatTemplate("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
        built = build_student(scratch(), teacher=teacher, calibration=[], seed=0)
        save_student(built.model, built.tokenizer, template, target)
        tokenizer = AutoTokenizer.from_pretrained(target)
        text = "What keeps <|im_end|> apart?\n  Ümläute, 漢字 and 🥃"
        assert tokenizer(text).input_ids == teacher.tokenizer(text).input_ids
        assert tokenizer.chat_template == template.source
        assert teacher.tokenizer.chat_template == teacher.template.source
        ends = json.loads((target / "generation_config.json").read_text())["eos_token_id"]
        assert ends == teacher.tokenizer.eos_token_id

    def test_adapters_are_merged_and_leave_nothing_behind(self, teacher, target):
        model = build_student(scratch(), teacher=teacher, calibration=[], seed=0).model
        prepare_lora(model, Lora(rank=2), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        save_student(model, teacher.tokenizer, teacher.template, target, dtype="float32")
        loaded = AutoModelForCausalLM.from_pretrained(target)
        torch.testing.assert_close(logits(loaded, IDS), logits(model, IDS), rtol=1e-4, atol=1e-5)
        assert not list(target.glob("adapter*"))
        assert not any("lora" in name for name in loaded.state_dict())

    def test_an_earlier_student_is_replaced_whole(self, teacher, target):
        target.mkdir(parents=True)
        (target / "README.md").write_text("old")
        save_student(teacher.model, teacher.tokenizer, teacher.template, target)
        assert not (target / "README.md").exists()
        assert [path.name for path in target.parent.iterdir()] == ["student"]

    def test_a_write_that_fails_leaves_the_earlier_student(self, teacher, target):
        """A limit on file size stands in for a full disk: the kernel refuses the write all the same."""
        target.mkdir(parents=True)
        (target / "config.json").write_text("old")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(StorageError, match="student"):
                save_student(teacher.model, teacher.tokenizer, teacher.template, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (target / "config.json").read_text() == "old"
        assert [path.name for path in target.parent.iterdir()] == ["student"]

    def test_a_place_that_cannot_be_is_refused(self, teacher, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot write"):
            save_student(teacher.model, teacher.tokenizer, teacher.template, tmp_path / "file" / "student")


@pytest.mark.slow
def test_half_of_smollm2_keeps_its_attention_sink_and_healing_helps():
    """The real model, with little text: layer 11 stays, and every map brings its gap closer."""
    smollm2 = load_weights("embedded:smollm2")
    text = (Path(__file__).parents[3] / "docs" / "students.md").read_text()
    ids = np.array(smollm2.tokenizer(text[:2000]).input_ids, dtype=np.int32)
    documents = [
        Document(str(n), part, np.ones(len(part), dtype=bool))
        for n, part in enumerate(np.array_split(ids, 3))
    ]
    built = build_student(Student(init="prune", layers=15), teacher=smollm2, calibration=documents, seed=0)
    assert 11 in built.facts["massive"]
    assert 11 in built.facts["keep"]
    assert all(run["error_after"] < 0.7 * run["error_before"] for run in built.facts["healed"])
