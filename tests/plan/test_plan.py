"""Formulas compared with numbers computed by hand, and properties of whole plans."""

import dataclasses
import json

import pytest

from stillhouse.cli import main
from stillhouse.corpus import Prompt
from stillhouse.errors import ModelNotFoundError, RecipeError
from stillhouse.evaluate.compare import SPEED_TOKENS
from stillhouse.evaluate.speed import measure_speed
from stillhouse.models import describe
from stillhouse.plan import Machine, cost_formulas, plan
from stillhouse.plan.machine import measure_machine
from stillhouse.plan.shapes import shape_of, student_shape
from stillhouse.plan.stage_costs import _speed_tokens
from stillhouse.plan.workload import api_cost, estimate_workload
from stillhouse.recipe import Collect, Evaluate, Objective, Prompts, Recipe, Student, Teacher, Train
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.verifiers import Select, Verifier

# SmolLM2-135M: 30 layers, D 576, MLP 1536, 9 and 3 heads of 64, V 49,152, tied: 134,515,008 with its norms.
LAYER = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
SMOLLM2 = cost_formulas.Shape(
    layers=30,
    layer_parameters=LAYER,
    hidden=576,
    intermediate=1536,
    vocab=49152,
    attention_width=576,
    tied=True,
)
# 1 operation a second, 1 byte a second: seconds are operations, or bytes.
UNIT = Machine(float32_flops=1.0, bfloat16_flops=1.0, bytes_per_s=1.0, fast_bfloat16=False)
TWO_CORES = Machine(121e9, 328e9, 22e9, fast_bfloat16=True)


class TestFormulas:
    def test_a_gated_layer(self):
        assert cost_formulas.gated_layer(576, 1536, 9, 3, 64) == LAYER == 3_538_944

    def test_parameters_are_those_of_the_real_model_but_for_its_norms(self):
        norms = 30 * 2 * 576 + 576
        assert SMOLLM2.parameters + norms == 134_515_008
        untied = dataclasses.replace(SMOLLM2, tied=False)
        assert untied.parameters - SMOLLM2.parameters == 49152 * 576

    def test_a_forward_pass(self):
        # Two operations per parameter and token.
        assert cost_formulas.forward_flops(SMOLLM2, 1, context=0, head_tokens=1) == 2 * SMOLLM2.parameters
        assert cost_formulas.forward_flops(SMOLLM2, 1, context=0, head_tokens=0) == 2 * 30 * 3_538_944
        # Attention of a document of 4 tokens over 1, 2, 3 and 4 of them: 10 pairs, 4 · width operations
        # each; the formula takes half the square, 8 pairs.
        one_layer = dataclasses.replace(SMOLLM2, layers=1, layer_parameters=0)
        assert cost_formulas.forward_flops(one_layer, 4, context=4, head_tokens=0) == 4 * 576 * 8

    def test_training_costs_three_passes_and_two_where_weights_are_frozen(self):
        def flops(weights, head):
            return cost_formulas.training_flops(
                SMOLLM2, 10, context=0, head_tokens=10, weights=weights, head=head
            )

        body, head = 20 * 30 * 3_538_944, 20 * 49152 * 576
        assert flops(True, True) == 3 * (body + head)
        assert flops(True, False) == 3 * body + 2 * head
        assert flops(False, False) == 2 * (body + head)

    def test_seconds_follow_from_rates(self):
        assert cost_formulas.pass_seconds(10.0, UNIT, bfloat16=False) == pytest.approx(
            10 / cost_formulas.PASS_FLOAT32
        )
        assert cost_formulas.pass_seconds(10.0, UNIT, bfloat16=True) == pytest.approx(
            10 / cost_formulas.PASS_BFLOAT16
        )
        assert cost_formulas.optimizer_seconds(2, 100, UNIT) == 2 * 100 * cost_formulas.ADAMW_BYTES
        assert cost_formulas.api_seconds(9, 100, 4) == pytest.approx(3 * (1.0 + 100 / 50))

    @pytest.mark.parametrize(
        ("tokens_per_s", "seconds"),
        [
            # The measured rates behind the constants, in tokens/s on 2 cores: the formulas must return them.
            (947, cost_formulas.pass_seconds(2 * SMOLLM2.parameters, TWO_CORES, bfloat16=True)),
            (502, cost_formulas.pass_seconds(2 * SMOLLM2.parameters, TWO_CORES, bfloat16=False)),
            (304, cost_formulas.pass_seconds(6 * SMOLLM2.parameters, TWO_CORES, bfloat16=True)),
            (159, cost_formulas.pass_seconds(6 * SMOLLM2.parameters, TWO_CORES, bfloat16=False)),
            (304, cost_formulas.llama_generation_seconds(SMOLLM2, 98e6, 1, 0, 8, TWO_CORES)),
            (169, cost_formulas.llama_generation_seconds(SMOLLM2, 98e6, 0, 1, 8, TWO_CORES)),
            (103, cost_formulas.llama_generation_seconds(SMOLLM2, 98e6, 0, 1, 1, TWO_CORES)),
            (22, cost_formulas.torch_generation_seconds(SMOLLM2, 0, 1, 1, TWO_CORES)),
            (107, cost_formulas.torch_generation_seconds(SMOLLM2, 0, 1, 8, TWO_CORES)),
            (216, cost_formulas.torch_generation_seconds(SMOLLM2, 0, 1, 32, TWO_CORES)),
            (262, cost_formulas.torch_generation_seconds(SMOLLM2, 0, 1, 64, TWO_CORES)),
        ],
    )
    def test_measured_rates_come_back_within_a_factor_of_two(self, tokens_per_s, seconds):
        assert 0.5 < (1 / seconds) / tokens_per_s < 2

    def test_memory_of_training(self):
        shape = cost_formulas.Shape(2, 50, hidden=4, intermediate=8, vocab=10, attention_width=4, tied=True)
        assert shape.parameters == 140
        kept = 3 * 2 * (16 * 4 + 4 * 8) * 4
        chunk = 512 * 10 * 4 * 4
        wanted = 16 * 140 + kept + chunk + 4 * 40
        assert cost_formulas.training_memory(shape, 140, 3, bfloat16=False, teacher_head=40) == wanted
        adapters = 4 * 140 + 12 * 7 + 2 * 140 + kept / 2 + chunk
        assert cost_formulas.training_memory(shape, 7, 3, bfloat16=True, teacher_head=0) == adapters


PROMPTS = [Prompt(str(n), [{"role": "user", "content": "x" * 400}], "s") for n in range(12)]


class TestAmounts:
    def recipe(self, **sections):
        return Recipe(
            name="n",
            teacher=sections.pop("teacher", Teacher(model="m")),
            prompts=Prompts(source="s"),
            **sections,
        )

    def test_counts(self):
        # 400 characters are 100 tokens, and 20 for the template; answers of 80.
        recipe = self.recipe(collect=Collect(samples=2, max_tokens=80), train=Train(epochs=3))
        workload = estimate_workload(recipe, PROMPTS[:10], PROMPTS[10:])
        assert workload.requests == 24
        assert workload.prompt_tokens == 24 * 120
        assert workload.new_tokens == 24 * 80
        assert workload.train_documents == 20
        assert workload.document_tokens == 200
        assert workload.trained_tokens == 3 * 20 * 200
        assert workload.counted == pytest.approx(80 / 200)

    def test_limits(self):
        recipe = self.recipe(
            collect=Collect(max_tokens=80, max_total_tokens=600),
            train=Train(max_length=150, tokens=777),
            objective=Objective(loss_on="all"),
        )
        workload = estimate_workload(recipe, PROMPTS[:10], PROMPTS[10:])
        assert workload.requests == pytest.approx(3)  # of 200 tokens each
        assert workload.document_tokens == 150
        assert workload.trained_tokens == 777
        assert workload.counted == 1

    def test_finished_exchanges_are_not_asked(self):
        exchange = [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y" * 200}]
        prompts = [Prompt(str(n), exchange, "s") for n in range(4)]
        workload = estimate_workload(self.recipe(), prompts, [])
        assert workload.requests == workload.new_tokens == 0
        assert workload.train_documents == 4
        assert workload.counted == pytest.approx(50 / 120)

    def test_money(self):
        prices = {"price_in": 1.0, "price_out": 10.0}
        recipe = self.recipe(teacher=Teacher(model="api:x", **prices), collect=Collect(max_tokens=80))
        workload = estimate_workload(recipe, PROMPTS, [])
        spent = (12 * 120 * 1.0 + 12 * 80 * 10.0) / 1e6
        assert api_cost(recipe, workload, PROMPTS) == pytest.approx(spent)
        assert api_cost(self.recipe(), workload, PROMPTS) == 0
        capped = dataclasses.replace(recipe, collect=Collect(max_tokens=80, max_cost=0.001))
        assert api_cost(capped, workload, PROMPTS) == 0.001
        unpriced = self.recipe(teacher=Teacher(model="api:x"))
        assert api_cost(unpriced, workload, PROMPTS) is None
        quarter = [dataclasses.replace(p, tags={"n": "x"} if i % 4 else {}) for i, p in enumerate(PROMPTS)]
        routed = Teacher(model="api:y", route={"n": "x"}, price_in=2.0, price_out=20.0)
        both = dataclasses.replace(recipe, teachers=(routed,))
        asked = [prompt for prompt in quarter if not prompt.is_finished]
        more = sum(bool(prompt.tags) for prompt in asked) / len(asked)
        assert api_cost(both, workload, quarter) == pytest.approx(spent * (1 + more))


class TestStudents:
    def test_pruned_by_depth_and_width(self):
        half = student_shape(Student(init="prune", layers=15), SMOLLM2, vocab=None)
        assert half.parameters == 15 * LAYER + 49152 * 576
        kept = student_shape(Student(init="prune", keep=(0, 3)), SMOLLM2, vocab=None)
        assert kept.layers == 2
        narrow = student_shape(Student(init="prune", intermediate=768, hidden=288), SMOLLM2, vocab=None)
        # Every matrix has one side in the residual stream.
        assert narrow.layer_parameters == pytest.approx(cost_formulas.gated_layer(288, 768, 9, 3, 64))

    def test_from_nothing(self):
        config = {
            "model_type": "qwen3",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "tie_word_embeddings": True,
        }
        shape = student_shape(Student(init="scratch", config=config), None, vocab=1000)
        assert shape.parameters == 4 * cost_formulas.gated_layer(128, 384, 4, 2, 32) + 1000 * 128


class TestPlans:
    @pytest.fixture
    def recipe(self, tiny_teacher, questions):
        return Recipe(
            name="small",
            teacher=Teacher(model=str(tiny_teacher), terms="apache-2.0"),
            prompts=Prompts(source=str(questions), held_out=8),
            collect=Collect(max_tokens=10),
            student=Student(init="prune", layers=2),
        )

    def test_the_stages_are_those_of_the_run(self, recipe):
        def stages(**changes):
            return [s.name for s in plan(dataclasses.replace(recipe, **changes), TWO_CORES).stages]

        everything = ["collect", "filter", "student", "targets", "train", "control", "evaluate"]
        assert stages() == everything
        assert stages(objective=Objective(targets="online")) == [s for s in everything if s != "targets"]
        alone = stages(objective=Objective(kind="cross_entropy"))
        assert alone == ["collect", "filter", "student", "train", "evaluate"]

    def test_more_work_takes_longer(self, recipe):
        def seconds(**changes):
            return plan(dataclasses.replace(recipe, **changes), TWO_CORES).seconds

        base = seconds()
        assert seconds(train=Train(epochs=100)) > base
        assert seconds(collect=Collect(max_tokens=200)) > base
        assert seconds(train=Train(dtype="float32")) > base

    def test_rejection_sampling_and_sampled_answers_are_planned(self, recipe):
        def planned(**changes):
            found = plan(
                dataclasses.replace(recipe, verifiers=(Verifier(kind="code"),), **changes), TWO_CORES
            )
            return {stage.name: stage for stage in found.stages}

        base, selecting = planned(), planned(select=Select())
        assert list(selecting) == ["collect", "filter", "select", *list(base)[2:]]
        assert selecting["select"].seconds > 0.02 * base["train"].tokens / 300
        few, many = (planned(evaluate=Evaluate(samples=n))["evaluate"].seconds for n in (4, 40))
        assert base["evaluate"].seconds < few < many
        assert few - base["evaluate"].seconds > 4 * 8 * 0.025  # eight prompts, scored for each model

    def test_every_teacher_with_weights_takes_memory(self, recipe, tiny_teacher):
        more = dataclasses.replace(recipe, teachers=(Teacher(model=str(tiny_teacher), terms="apache-2.0"),))
        one, two = (
            {stage.name: stage.memory_bytes for stage in plan(each, TWO_CORES).stages}
            for each in (recipe, more)
        )
        weights = shape_of(describe(str(tiny_teacher))).parameters
        assert two["student"] - one["student"] == pytest.approx(4 * weights, abs=1)

    def test_terms_and_money(self, recipe):
        planned = plan(recipe, TWO_CORES)
        assert planned.verdict.allowed is True
        assert planned.dollars == 0
        assert planned.peak_memory_bytes == max(stage.memory_bytes for stage in planned.stages)

    def test_a_model_that_is_not_there(self, recipe):
        with pytest.raises(ModelNotFoundError):
            plan(dataclasses.replace(recipe, teacher=Teacher(model="nowhere/at-all")), TWO_CORES)

    def test_an_api_is_planned_without_asking_it(self, recipe, tiny_teacher):
        api = dataclasses.replace(
            recipe,
            teacher=Teacher(model="api:http://127.0.0.1:9/v1#m", price_in=1.0, price_out=1.0),
            student=Student(model=str(tiny_teacher)),
            objective=Objective(kind="cross_entropy"),
        )
        planned = plan(api, TWO_CORES)
        assert planned.verdict.allowed is None
        assert planned.dollars is not None
        assert planned.dollars > 0


CONFIG = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 320}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "x"}, "hidden_size cannot be 'x'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads cannot be 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers cannot be '2'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers cannot be -1"),
        ({"intermediate_size": [1]}, "intermediate_size cannot be"),
        ({"vocab_size": "x"}, "vocab_size cannot be 'x'"),
        ({"text_config": [1]}, "text_config is not a mapping"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_has_no_plan(change, message):
    student = Student(init="scratch", config=CONFIG | change)
    with pytest.raises(RecipeError, match=message):
        student_shape(student, None, vocab=None)


def test_the_machine_is_timed():
    machine = measure_machine(seconds=0.02)
    assert machine.float32_flops > 1e8
    assert machine.bytes_per_s > 1e8


class TestCommand:
    @pytest.fixture
    def recipe_file(self, tmp_path, tiny_teacher, questions, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "r.yaml").write_text(
            f"name: small\nteacher: {{model: '{tiny_teacher}', terms: apache-2.0}}\n"
            f"prompts: {{source: '{questions}', held_out: 8}}\nstudent: {{init: prune, layers: 2}}\n"
        )
        return tmp_path / "r.yaml"

    @pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"]])
    def test_it_prints_and_writes_nothing(self, recipe_file, tmp_path, command, capsys):
        assert main([command[0], "r.yaml", *command[1:]]) == 0
        text = capsys.readouterr().out
        assert "\ntotal " in text
        assert "Terms: Apache" in text
        assert max(map(len, text.splitlines())) <= 80
        assert list(tmp_path.iterdir()) == [recipe_file]

    def test_json(self, recipe_file, capsys):
        assert main(["plan", "r.yaml", "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert planned["seconds"] == pytest.approx(sum(stage["seconds"] for stage in planned["stages"]))

    @pytest.mark.parametrize(("host", "said"), [("example.com", True), ("127.0.0.1:1", False)])
    def test_a_missing_api_key_is_reported(self, recipe_file, questions, host, said, monkeypatch, capsys):
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        (recipe_file.parent / "api.yaml").write_text(
            "name: small\n"
            f"teacher: {{model: 'api:http://{host}/v1#m', api_key_env: NO_SUCH_KEY, terms: own}}\n"
            f"prompts: {{source: '{questions}', held_out: 8}}\nstudent: {{model: 'embedded:smollm2'}}\n"
            "objective: {kind: cross_entropy}\n"
        )
        assert main(["plan", "api.yaml"]) == 0
        assert ("NO_SUCH_KEY is not set" in capsys.readouterr().err) is said

    def test_refused_terms_are_one_document_of_json(self, recipe_file, capsys):
        assert main(["plan", "r.yaml", "--json", "--teacher.terms", "anthropic"]) == 3
        answer = json.loads(capsys.readouterr().out)
        assert answer["status"] == 3
        assert "may not train" in answer["error"]
        assert answer["seconds"] > 0
        assert answer["stages"]

    def test_terms_that_forbid_it_are_3_after_the_plan(self, recipe_file, capsys):
        assert main(["plan", "r.yaml", "--teacher.terms", "anthropic"]) == 3
        captured = capsys.readouterr()
        assert "\ntotal " in captured.out
        assert "may not train" in captured.err

    def test_unknown_terms_can_be_accepted(self, recipe_file, capsys):
        assert main(["plan", "r.yaml", "--teacher.terms", "unknown"]) == 3
        assert main(["plan", "r.yaml", "--teacher.terms", "unknown", "--accept-terms", "mine"]) == 0
        assert "Accepted by the recipe: mine" in capsys.readouterr().out

    def test_on_policy_alone_asks_for_held_out_answers_and_costs_samples(self, recipe_file):
        def planned(*overrides):
            found = plan(load_recipe(recipe_file, overrides), TWO_CORES)
            return {stage.name: stage for stage in found.stages}

        rounds = ("objective.kind=reverse_kl", "on_policy.rounds=10", "on_policy.max_tokens=20")
        both = planned(*rounds)
        assert list(both)[-2:] == ["on_policy", "evaluate"]
        assert both["on_policy"].seconds > 0
        twice = planned(*rounds, "on_policy.rounds=20")
        assert twice["on_policy"].tokens == pytest.approx(2 * both["on_policy"].tokens, rel=0.01)
        student = ("student={init: pretrained, model: 'embedded:smollm2'}", "train.epochs=0")
        alone = planned(*rounds, *student)
        assert "train" not in alone
        assert "control" not in alone
        assert alone["collect"].tokens < both["collect"].tokens


def test_the_speed_measurement_is_planned_as_it_is_done():
    """Counts the tokens of all passes of the real measurement."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model, passes = LlamaForCausalLM(config).eval(), []
    model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    measure_speed({"student": model}, torch.zeros(SPEED_TOKENS, dtype=torch.long))
    whole = [length for length in passes if length > 1]
    read, written = _speed_tokens()
    assert read == sum(whole)
    assert written == passes.count(1) + len(whole) / 2  # the prompt's own pass writes the first token
