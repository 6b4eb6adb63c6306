"""The model card: the Hub's own library reads its head, and the body has the required content."""

import dataclasses
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, strategies as st

from stillhouse.divergences import OBJECTIVES
from stillhouse.evaluate.schema import Report
from stillhouse.provenance import (
    combine_verdicts,
    find_terms,
    judge_terms,
    model_card,
    read_card_head,
    require_allowed,
)
from stillhouse.provenance.card import escape
from stillhouse.provenance.card_head import public_name
from stillhouse.recipe import Collect, Objective, Prompts, Recipe, Student, Teacher
from stillhouse.recipe.load import parse_recipe

RELATIONS_OF_THE_HUB = {"finetune", "adapter", "merge", "quantized"}


def recipe(teacher="embedded:smollm2", *, student=None, **changes):
    return Recipe(
        **{
            "name": "quickstart",
            "teacher": Teacher(model=teacher),
            "prompts": Prompts(source="package:mmlu"),
            "student": student or Student(init="prune", layers=15),
            **changes,
        }
    )


def card(made_by, report=None, facts=None, accept=None):
    terms = [find_terms(each.model, declared=each.terms) for each in (made_by.teacher, *made_by.teachers)]
    verdict = combine_verdicts(require_allowed(each, made_by.purpose, accept) for each in terms)
    return model_card(
        recipe=made_by, report=report or {}, terms=terms, verdict=verdict, manifest_facts=facts or {}
    )


def estimate(value, **changes):
    return {
        "value": value,
        "low": value * 0.9,
        "high": value * 1.1,
        "documents": 57,
        "confidence": 0.95,
    } | changes


def model(key, kl, perplexity):
    return {
        "key": key,
        "label": {"teacher": "embedded:smollm2", "student": "student (forward_kl)"}[key],
        "parameters": 134_515_008,
        "bytes": 98_000_000,
        "kl": estimate(kl) if kl else None,
        "agreement": None,
        "perplexity": estimate(perplexity),
        "tokens_per_s": {"median": 61.25, "low": 60.0, "high": 62.0},
    }


REPORT = {
    "name": "quickstart",
    "created": "2026-11-23T20:00:00+00:00",
    "objective": "forward_kl",
    "models": [model("teacher", None, 12.5), model("student", 0.4321, 17.25)],
    "verdict": {
        "outcome": "better",
        "against": "control",
        "headline": "h",
        "sentence": "Closer than the control.",
    },
    "held_out": {"documents": 57, "tokens": 9000},
    "corpus": {"asked": 225, "kept": 210, "rejected": {"near_duplicate": 3}},
    "lineage": {"teacher": "embedded:smollm2", "teacher_hash": "ab" * 32, "template_hash": "cd" * 32},
}


def test_the_report_used_here_is_a_real_one():
    assert Report.model_validate(REPORT)


def test_the_hub_reads_the_head_of_a_pruned_student():
    data = ModelCard(card(recipe(), REPORT)).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "teacher_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "datasets": ["cais/mmlu"],
        "tags": ["knowledge-distillation", "stillhouse", "forward-kl"],
    }


PRETRAINED = Student(init="pretrained", model="hub:Qwen/Qwen3-0.6B")
SCRATCH = Student(init="scratch", config={"model_type": "qwen3"})
PRUNED = Student(init="prune", layers=2)

HEADS = [
    # teacher, student, recipe's licence -> base_model, license, license_name
    ("hub:Qwen/Qwen3-8B", PRETRAINED, None, "Qwen/Qwen3-0.6B", "apache-2.0", None),
    ("hub:Qwen/Qwen3-8B", PRETRAINED, "mit", "Qwen/Qwen3-0.6B", "mit", None),
    ("hub:Qwen/Qwen3-8B", SCRATCH, None, None, None, None),
    ("hub:Qwen/Qwen3-8B", SCRATCH, "my own", None, "other", "my own"),
    ("hub:google/gemma-3-270m", SCRATCH, "mit", None, "gemma", None),
    ("hub:google/gemma-3-270m", PRETRAINED, "mit", "Qwen/Qwen3-0.6B", "gemma", None),
    ("hub:meta-llama/Llama-3.1-8B", PRUNED, "mit", "meta-llama/Llama-3.1-8B", "llama3.1", None),
    ("hub:meta-llama/Llama-3.1-8B", SCRATCH, "mit", None, "mit", None),
    ("hub:deepseek-ai/DeepSeek-V3", SCRATCH, None, None, "other", "deepseek"),
    ("hub:google/gemma-3-1b-it", Student(init="pretrained", model="hub:meta-llama/Llama-3.2-1B"), None,
     "meta-llama/Llama-3.2-1B", "other", "gemma-and-llama3.2"),
    ("/data/models/SmolLM2", PRUNED, None, None, "apache-2.0", None),
    ("api:https://api.openai.com/v1#gpt-5", PRETRAINED, None, "Qwen/Qwen3-0.6B", "apache-2.0", None),
]  # fmt: skip


@pytest.mark.parametrize(("teacher", "student", "license_", "base", "shown", "name"), HEADS)
def test_base_model_and_licence(teacher, student, license_, base, shown, name):
    text = card(recipe(teacher, student=student, license=license_))
    data = ModelCard(text).data.to_dict()
    assert data.get("base_model") == base
    assert data.get("license") == shown
    assert data.get("license_name") == name
    assert data.get("base_model_relation") in (RELATIONS_OF_THE_HUB if base else {None})
    if license_ and license_ not in (shown, name):
        assert f"not applied: the recipe's licence, {license_}" in text


def test_own_prompts_are_no_dataset_of_the_hub():
    text = card(recipe(prompts=Prompts(source="/home/me/secret/prompts.jsonl")))
    assert "datasets" not in ModelCard(text).data.to_dict()
    assert "`prompts.jsonl`" in text


def test_the_body_states_data_objective_numbers_and_terms():
    text = card(recipe(), REPORT, {"train": {"tokens": 60_000, "steps": 59, "train_seconds": 93.4}})
    for part in (
        "Closer than the control.",
        "| student (forward\\_kl) | 0.432 [0.389 to 0.475] | 17.2 [15.5 to 19.0] | 135 M | 98.0 MB |",
        "| embedded:smollm2 | – | 12.5 [11.2 to 13.8] |",
        "Measured on 57 held-out documents.",
        "95% intervals, clustered by document",
        "forward KL divergence to the teacher",
        "tokens trained on: 60,000",
        "exchanges to train on: 210",
        "near duplicate 3",
        "ab" * 32,
        "SmolLM (Apache-2.0) (`smollm`)",
        "checked: 2026-11-23",
        "not legal advice",
        "still run recipe.yaml",
        "## Limitations",
    ):
        assert part in text, part
    assert "top-1 agreement" not in text, "no model has it"


def test_a_report_without_numbers_makes_a_card_without_a_table():
    text = card(recipe())
    assert "## Results" not in text and "None" not in text.partition("<details>")[0]


@pytest.mark.parametrize("missing", REPORT)
def test_any_part_of_the_report_may_be_missing(missing):
    report = {key: value for key, value in REPORT.items() if key != missing}
    assert ModelCard(card(recipe(), report)).data.license == "apache-2.0"


@pytest.mark.parametrize("cross_entropy", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("align", ["tokens", "spans"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_card_describes_every_objective(kind, align, cross_entropy):
    objective = Objective(kind=kind, align=align, cross_entropy=cross_entropy)
    assert f"objective: {OBJECTIVES[kind].description}" in card(recipe(objective=objective)).replace("*", "")


def test_an_estimate_without_ends_is_shown_alone():
    one = model("student", 0.5, 20.0) | {"kl": estimate(0.5, low=None, high=None)}
    assert "| 0.50 | 20.0 [18.0 to 22.0] |" in card(recipe(), {"models": [one]})


def test_the_recipe_in_the_card_makes_the_same_student():
    made_by = recipe(
        objective=Objective(kind="jsd", beta=0.3),
        collect=Collect(temperature=0.5, top_p=1.0, max_tokens=48),
        seed=7,
    )
    block = re.search(r"```yaml\n(.*?)\n```", card(made_by), re.DOTALL)
    assert block and parse_recipe(block.group(1)) == made_by


def test_naming_duties_of_the_teacher_and_of_the_weights():
    taught = card(recipe("hub:meta-llama/Llama-3.1-8B", student=SCRATCH))
    assert "**Built with Llama**" in taught and "Rename this model" in taught
    assert 'Begin the name of a student that you distribute with "Llama".' in taught
    started = card(recipe(student=Student(init="pretrained", model="hub:meta-llama/Llama-3.2-1B")))
    assert "**Built with Llama**" in started and "Rename this model" in started
    assert "Llama 3.2 Community License (`llama-3.2`)" in started
    assert 'Begin the name of a student that you distribute with "Llama".' in started
    named = card(
        dataclasses.replace(recipe("hub:meta-llama/Llama-3.1-8B", student=SCRATCH), name="Llama-small")
    )
    assert "**Built with Llama**" in named and "Rename this model" not in named


def test_the_reason_for_accepting_unknown_terms_is_in_the_card():
    text = card(recipe("api:http://127.0.0.1:8000/v1#mine", student=PRETRAINED), accept="my own *server*")
    assert "research: unknown" in text
    assert "“my own \\*server\\*”" in text


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("api:https://me:hunter2@example.com:8443/v1?key=hunter2#m", "api:https://example.com:8443/v1#m"),
        ("api:http://[::1]:8000/v1#m", "api:http://[::1]:8000/v1#m"),
        ("/home/hunter2/models/teacher/", "teacher"),
        ("C:\\Users\\hunter2\\teacher", "teacher"),
        ("hub:a/b", "hub:a/b"),
    ],
)
def test_nothing_private_is_published(reference, shown):
    assert public_name(reference) == shown
    made_by = recipe(reference, student=PRETRAINED, prompts=Prompts(source="/home/hunter2/p.jsonl"))
    report = {"models": [model("teacher", None, 2.0) | {"label": reference}]}
    assert "hunter2" not in card(made_by, report, accept="mine")


@given(name=st.text(min_size=1), reason=st.text(min_size=1).filter(str.strip), system=st.text(min_size=1))
def test_no_text_breaks_the_head_or_the_structure(name, reason, system):
    made_by = recipe("api:http://h/v1#m", student=PRETRAINED, name=name)
    made_by = dataclasses.replace(made_by, teacher=Teacher(model="api:http://h/v1#m", system=system))
    text = card(made_by, REPORT, accept=reason)
    assert ModelCard(text).data.to_dict()["teacher_model"] == "api:http://h/v1#m"
    before = text.partition("## Reproduction")[0]
    titles = [line for line in before.splitlines() if line.startswith("## ")]
    assert titles == ["## Teacher", "## Data", "## Training", "## Results", "## Terms"]


@given(st.text())
def test_escaped_text_is_one_line_without_live_marks(text):
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_{}\[\]<>#|~]", shown)


def test_the_head_is_read_back_as_metadata_for_the_next_generation():
    text = card(recipe("hub:meta-llama/Llama-3.1-8B", student=PRETRAINED, license="mit"))
    fields = read_card_head(text)
    assert fields == {
        "license": "mit",
        "base_model": "Qwen/Qwen3-0.6B",
        "teacher_model": "meta-llama/Llama-3.1-8B",
    }
    grandchild = find_terms("runs/x/student", metadata=fields)
    assert grandchild.key == "llama-3.1"
    assert judge_terms(grandchild, "commercial").duties


@pytest.mark.parametrize(
    "text", ["", "# Title", "---\nlicense: [", "---\n- a\n---\n", "---\n---\n", "---\nlicense: mit\n"]
)
def test_a_text_without_a_head_has_no_fields(text):
    assert read_card_head(text) == {}


def test_several_base_models_are_all_looked_at():
    fields = read_card_head("---\nlicense: apache-2.0\nbase_model:\n- a/b\n- google/gemma-2-2b\n---\n# x\n")
    assert fields == {"license": "apache-2.0", "base_model": "a/b google/gemma-2-2b"}
    assert find_terms("x", metadata=fields).key == "gemma"


def bomb(template, levels=8):
    """Ten aliases of ten aliases of ten …: 10^levels values in a few hundred bytes."""
    lines = [template.format(name="b0", values=", ".join(["{x: 1}"] * 10))]
    for n in range(levels):
        lines.append(template.format(name=f"b{n + 1}", values=", ".join([f"*b{n}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize("template", ["{name}: &{name} [{values}]", "{name}: &{name} {{<<: [{values}]}}"])
def test_aliases_of_aliases_in_a_head_are_not_followed(template):
    text = f"---\n{bomb(template)}\nlicense: *b8\nbase_model: org/name\n---\n"
    assert read_card_head(text) == {"base_model": "org/name"}


ODD_LINES = [
    "date: 2024-02-30",
    "x: " + "1" * 5000,
    "? [a]\n: b",
    "{a: 1}: b",
    "x: !!binary x",
    "license_name:",
]


@pytest.mark.parametrize("line", ODD_LINES, ids=lambda line: line[:12])
def test_a_line_that_yaml_cannot_build_does_not_hide_the_licence(line):
    assert read_card_head(f"---\n{line}\nlicense: mit\n---\n") == {"license": "mit"}


def test_a_head_that_is_nested_too_deeply_says_nothing():
    assert read_card_head("---\nlicense: " + "[" * 5000 + "\n---\n") == {}


def test_every_teacher_is_named_with_its_part_and_its_terms():
    """A student gets the licence that any of its teachers passes on."""
    made_by = recipe(
        "embedded:smollm2",
        teachers=(
            Teacher(model="hub:google/gemma-2-2b-it", route={"domain": "code"}),
            Teacher(model="/home/me/models/mine", terms="own", weight=3.0),
        ),
    )
    text = card(made_by)
    head = yaml.safe_load(text.split("---")[1])
    names = ["HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-2-2b-it", "mine"]
    assert head["teacher_model"] == names
    assert head["license"] == "gemma"
    assert "for the prompts with domain: code" in text
    assert "averaged with those of the first teacher, with weight 3" in text
    assert "/home/me" not in text
    for key in ("smollm", "gemma", "own"):
        assert f"(`{key}`)" in text
