import dataclasses
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from stillhouse.errors import RecipeError
from stillhouse.recipe import (
    Collect,
    Evaluate,
    Filter,
    Lora,
    Objective,
    Prompts,
    Recipe,
    Student,
    Teacher,
    Train,
)
from stillhouse.recipe.load import differing_keys, dump_recipe, load_recipe, parse_recipe, recipe_keys
from stillhouse.recipe.suggest import did_you_mean, nearest
from stillhouse.recipe.yaml_lines import dump_yaml, read_yaml

SMALL = (
    "name: first\nteacher: {model: embedded:smollm2}\nprompts: {source: package:mmlu}\nstudent: {model: m}\n"
)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, name="r.yaml", overrides=overrides)
    assert caught.value.exit_status == 2
    return str(caught.value)


class TestReading:
    def test_what_is_left_out_has_its_default(self):
        recipe = parse_recipe(SMALL)
        assert recipe == Recipe(
            name="first",
            teacher=Teacher(model="embedded:smollm2"),
            prompts=Prompts(source="package:mmlu"),
            student=Student(model="m"),
            collect=Collect(temperature=1.0, top_p=1.0),  # of local weights; an API has its own defaults
        )

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("1e-4", 1e-4),
            ("1E-4", 1e-4),
            ("5e-05", 5e-5),
            ("1", 1.0),
            (".5", 0.5),
            ("2.", 2.0),
            ("1_0.5", 10.5),
        ],
    )
    def test_numbers_that_yaml_1_1_reads_as_text(self, written, value):
        assert parse_recipe(SMALL, overrides=[f"train.learning_rate={written}"]).train.learning_rate == value

    def test_a_leading_zero_is_decimal_and_underscores_may_divide(self):
        assert parse_recipe(SMALL, overrides=["seed=010"]).seed == 10
        assert parse_recipe(SMALL, overrides=["train.tokens=1_000_000"]).train.tokens == 1_000_000

    @pytest.mark.parametrize("word", ["no", "on", "yes", "off", "y", "2024-01-01", "12:30:00"])
    def test_words_stay_words(self, word):
        text = SMALL.replace("name: first", f"name: first\nlicense: {word}")
        assert parse_recipe(text).license == word

    def test_no_is_not_false(self):
        assert 'r.yaml:5: filter.truncated: must be `true` or `false`, not "no"' in refused(
            SMALL + "filter: {truncated: no}\n"
        )

    def test_a_list_is_a_tuple(self):
        recipe = parse_recipe(SMALL + "train: {betas: [0.8, 0.9], trackers: [tensorboard]}\n")
        assert recipe.train.betas == (0.8, 0.9)
        assert recipe.train.trackers == ("tensorboard",)

    def test_anchors_and_merges(self):
        text = SMALL.replace(
            "student: {model: m}",
            "student:\n  <<: {model: m, template: teacher}\n  template: own\n  lora: {rank: &r 4, alpha: *r}",
        )
        student = parse_recipe(text).student
        assert (student.model, student.template) == ("m", "own")
        assert student.lora == Lora(rank=4, alpha=4.0)

    def test_a_files_errors(self, tmp_path):
        (tmp_path / "quickstart.yaml").write_text(SMALL)
        with pytest.raises(RecipeError) as caught:
            load_recipe(tmp_path / "quikstart.yaml")
        assert "quickstart.yaml" in str(caught.value.hint)
        with pytest.raises(RecipeError, match="is a directory, not a recipe"):
            load_recipe(tmp_path)
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(RecipeError, match="not UTF-8"):
            load_recipe(tmp_path / "binary.yaml")

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "r.yaml: the file is empty"),
            ("- a\n", "r.yaml:1: a recipe is a mapping"),
            ("name: [a\n", "r.yaml:2: not valid YAML"),
            ("name: a\nname: b\n", "r.yaml:2: name: duplicate key, first on line 1"),
            ("name: a\n---\nname: b\n", "r.yaml:2: not valid YAML"),
            ("name: &a [*a]\n", "r.yaml:1: a value that contains itself"),
            ("name: !!python/name:os.system\n", "r.yaml:1: the tag"),
            ("? [a]\n: b\n", "r.yaml:1: a key must be plain text"),
            ("name: !!int five\n", "r.yaml:1: `five` is not a int"),
            ("name: \x00\n", "r.yaml: not valid YAML"),
        ],
    )
    def test_what_is_not_a_recipe(self, text, complaint):
        assert complaint in refused(text)


class TestComplaints:
    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("train: {epocs: 2}", "train.epocs: unknown key. Did you mean `train.epochs`?"),
            ("epochs: 2", "epochs: unknown key. Did you mean `train.epochs`?"),
            ("zzz: 2", "zzz: unknown key; known here: name, teacher"),
            ('train: {tokens: "5"}', 'train.tokens: must be a whole number, not "5"'),
            ("train: {tokens: 5.5}", "train.tokens: must be a whole number, not 5.5"),
            ("seed: true", "seed: must be a whole number, not true"),
            ("train: {clip: true}", "train.clip: must be a number, not true"),
            ("license: 5", "license: must be text, not 5"),
            ("train: 5", "train: must be a mapping of keys, not 5"),
            ("train: null", "train: must be a mapping of keys, not empty (null)"),
            ("train: {epochs: null}", "train.epochs: must be a number, not empty (null)"),
            ("train: {schedule: cosin}", 'not "cosin". Did you mean `cosine`?'),
            ("train: {trackers: [tensorbord]}", "train.trackers[0]: must be one of `trackio`, `tensorboard`"),
            ("train: {betas: [0.9]}", "train.betas"),
            ("train: {betas: [0.9, 1]}", "train.betas[1]: must be less than 1, not 1"),
            ("train: {micro_tokens: 0}", "train.micro_tokens: must be greater than 0, not 0"),
            ("train: {clip: .inf}", "train.clip: must be a finite number, not inf"),
            ("train: {clip: .nan}", "train.clip: must be a finite number, not nan"),
            (
                "train: {warmup: 0.8, decay: 0.3}",
                "train.decay: warmup (0.8) and decay (0.3) add up to more than 1",
            ),
            ("objective: {alpha: 1.5}", "objective.alpha: must be at most 1, not 1.5"),
            ("objective: {temperature: 0}", "objective.temperature: must be greater than 0, not 0"),
            ("collect: {temperature: -1}", "collect.temperature: must be at least 0, not -1"),
            ("collect: {max_cost: 1}", "collect.max_cost: needs teacher.price_in"),
            ("filter: {min_chars: 9, max_chars: 5}", "filter.max_chars: 5 is below min_chars (9)"),
            ("filter: {verifier: 'a:b'}", "filter.verifier: was replaced by `verifiers`"),
            ('accept_terms: ""', "accept_terms: must not be empty"),
        ],
    )
    def test_name_file_line_key_and_what_is_right(self, line, complaint):
        message = refused(SMALL + line + "\n")
        assert message.startswith("r.yaml:5: ")
        assert complaint in message

    def test_all_complaints_come_at_once_in_the_order_of_the_file(self):
        message = refused(SMALL + "train:\n  epochs: -1\n  clips: 1\nseed: x\n")
        assert [line.split(": ")[0] for line in message.splitlines()] == ["r.yaml:6", "r.yaml:7", "r.yaml:8"]

    def test_a_missing_key_is_named_where_its_section_begins(self):
        message = refused("name: a\nteacher:\n  system: x\nprompts: {source: s}\n")
        assert "r.yaml:2: teacher.model: missing" in message
        assert "r.yaml:1: student" not in message

    @pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "a b"])
    def test_the_name_is_a_directory(self, name):
        assert ": name: " in refused(SMALL.replace("name: first", f"name: '{name}'"))


class TestRulesBetweenFields:
    @pytest.mark.parametrize(
        ("student", "complaint"),
        [
            ("{}", "student.model: missing"),
            ("{init: scratch}", "student.config: `init: scratch` needs `model_type`"),
            ("{init: scratch, config: {model_type: qwen3}, model: m}", "student.model: has no effect"),
            ("{model: m, config: {model_type: qwen3}}", "student.config: has no effect"),
            ("{model: m, tokenizer: t}", "student.tokenizer: has no effect"),
            ("{model: m, vocabulary: 4096}", "student.vocabulary: has no effect"),
            (
                "{init: scratch, config: {model_type: qwen3}, vocabulary: 4096, tokenizer: t}",
                "student.vocabulary: trains a tokenizer",
            ),
            ("{model: m, layers: 4}", "student.layers: has no effect with `init: pretrained`"),
            ("{init: prune}", "student: `init: prune` needs at least one of layers, keep"),
            ("{init: prune, layers: 2, keep: [0, 1]}", "student.keep: names the layers to keep"),
            ("{init: prune, keep: [1, 0]}", "student.keep: must list each layer once"),
            ("{init: prune, keep: [0, 0]}", "student.keep: must list each layer once"),
            ("{init: prune, keep: []}", "student.keep: must not be empty"),
        ],
    )
    def test_a_student_that_could_not_be_built(self, student, complaint):
        assert complaint in refused(SMALL.replace("{model: m}", student))

    @pytest.mark.parametrize(
        ("lines", "key"),
        [
            ("student: {model: m}", "objective.kind"),
            ("student: {init: prune, layers: 2}\nobjective: {kind: cross_entropy}", "student.model"),
            (
                "student: {init: scratch, config: {model_type: qwen3}}\nobjective: {kind: cross_entropy}",
                "student.tokenizer",
            ),
            (
                "student: {init: scratch, vocabulary: 4096, config: {model_type: qwen3}}\n"
                "objective: {kind: cross_entropy}",
                "student.vocabulary",
            ),
            ("student: {model: m, template: teacher}\nobjective: {kind: cross_entropy}", "student.template"),
        ],
    )
    def test_an_api_has_no_weights_to_compare_or_to_prune(self, lines, key):
        text = f"name: a\nteacher: {{model: 'api:http://127.0.0.1/v1#m'}}\nprompts: {{source: s}}\n{lines}\n"
        assert f": {key}: " in refused(text)

    @pytest.mark.parametrize(
        ("objective", "key"),
        [
            ("{kind: jsd, targets: sampled}", "objective.targets"),
            ("{kind: skew_forward_kl, alpha: 1}", "objective.alpha"),
            ("{kind: uld, targets: topk}", "objective.targets"),
            ("{align: spans, targets: sampled}", "objective.targets"),
            ("{kind: uld, loss_on: all}", "objective.loss_on"),
            ("{align: spans}\non_policy: {rounds: 2}", "on_policy"),
            ("{align: spans}\non_policy: {teacher: 0, reward: 1, off_policy: 0.5}", "on_policy"),
        ],
    )
    def test_an_objective_that_could_not_work(self, objective, key):
        assert f": {key}: " in refused(SMALL + f"objective: {objective}\n")


class TestOverrides:
    def test_they_win_over_the_file_and_later_ones_over_earlier(self):
        recipe = parse_recipe(SMALL + "train: {epochs: 3}\n", overrides=["train.epochs=4", "train.epochs=5"])
        assert recipe.train.epochs == 5.0

    @pytest.mark.parametrize("text", ["*.jsonl", "&a", "!x", "%x", "@home", "`x`"])
    def test_marks_of_yaml_at_the_start_are_text(self, text):
        assert parse_recipe(SMALL, overrides=[f"prompts.column={text}"]).prompts.column == text

    def test_they_make_the_sections_they_need(self):
        recipe = parse_recipe(SMALL, overrides=["student.lora.rank=8"])
        assert recipe.student.lora == Lora(rank=8)

    def test_they_may_be_lists_mappings_and_nothing(self):
        changed = ["train.betas=[0.5, 0.6]", "filter.near_duplicates=null", "filter.max_chars="]
        recipe = parse_recipe(SMALL, overrides=changed)
        assert recipe.train.betas == (0.5, 0.6)
        assert recipe.filter.near_duplicates is None
        assert recipe.filter.max_chars is None
        scratch = [
            "student.init=scratch",
            "student.model=null",
            "student.config={model_type: qwen3, hidden_size: 8}",
        ]
        assert parse_recipe(SMALL, overrides=scratch).student.config == {
            "model_type": "qwen3",
            "hidden_size": 8,
        }

    @pytest.mark.parametrize(
        ("override", "complaint"),
        [
            ("train.epocs=2", "--train.epocs: unknown key. Did you mean `train.epochs`?"),
            ("train.epochs=two", '--train.epochs: must be a number, not "two"'),
            ("train.epochs", "--train.epochs: an override is `--section.field value`"),
            ("train..epochs=1", "--train..epochs: an override is"),
            ("train.betas=[1", "--train.betas"),
            ("student.lora=3", "--student.lora: must be a mapping of keys, not 3"),
            ("trian.epochs=3", "--trian.epochs: trian: unknown key. Did you mean `train`?"),
        ],
    )
    def test_their_errors_name_them(self, override, complaint):
        assert complaint in refused(SMALL, override)


# A property over recipes of every kind: what is written is read back as it was.

TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\ufffe\uffff\u2028\u2029"),
    min_size=1,
    max_size=12,
)
TRICKY = st.sampled_from(
    ["no", "on", "1e-4", "null", "~", "0x1F", "1:30", "<<", "true", "- a", "a: b", "#x", "''"]
)
WORDS = TEXT | TRICKY
COUNT = st.integers(1, 10**9)
SHARE = st.floats(0, 1, exclude_min=True, exclude_max=True)
POSITIVE = st.floats(1e-12, 1e12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)

STUDENTS = st.one_of(
    st.builds(
        Student, model=WORDS, lora=st.none() | st.builds(Lora, rank=COUNT, alpha=POSITIVE, dropout=SHARE)
    ),
    st.builds(
        Student,
        init=st.just("scratch"),
        config=st.dictionaries(WORDS, JSON, max_size=4).map(lambda c: {**c, "model_type": "qwen3"}),
        tokenizer=st.none() | WORDS,
    ),
    st.builds(
        Student,
        init=st.just("prune"),
        keep=st.none() | st.sets(st.integers(0, 99), min_size=1).map(lambda s: tuple(sorted(s))),
        hidden=COUNT,
        heal=st.booleans(),
        template=st.sampled_from(["own", "teacher"]),
    ),
)
RECIPES = st.builds(
    Recipe,
    name=st.from_regex(r"[A-Za-z0-9_][\w.-]{0,10}", fullmatch=True),
    teacher=st.builds(
        Teacher,
        model=WORDS.filter(lambda t: not t.startswith("api:")),
        system=st.none() | WORDS,
        price_in=POSITIVE,
    ),
    prompts=st.builds(Prompts, source=WORDS, limit=st.none() | COUNT, held_out=st.integers(0, 100)),
    student=STUDENTS,
    collect=st.builds(Collect, temperature=POSITIVE, top_p=SHARE, max_total_tokens=st.none() | COUNT),
    filter=st.builds(Filter, near_duplicates=st.none() | SHARE, refusals=st.booleans()),
    objective=st.builds(Objective, kind=st.sampled_from(["jsd", "reverse_kl"]), beta=SHARE),
    train=st.builds(
        Train,
        learning_rate=POSITIVE,
        warmup=st.floats(0, 0.5),
        decay=st.floats(0, 0.5),
        betas=st.tuples(SHARE, SHARE),
        trackers=st.lists(st.sampled_from(["trackio", "tensorboard"]), max_size=2).map(tuple),
    ),
    evaluate=st.builds(Evaluate, confidence=st.floats(0.01, 0.9999)),
    seed=st.integers(0, 2**63 - 1),
    accept_terms=st.none() | WORDS,
)


class TestSaving:
    @settings(deadline=None)
    @given(RECIPES)
    def test_what_is_written_is_read_back(self, recipe):
        assert parse_recipe(dump_recipe(recipe)) == recipe

    @settings(deadline=None, max_examples=30)
    @given(RECIPES)
    def test_readers_of_yaml_1_1_see_the_same_words(self, recipe):
        assert yaml.safe_load(dump_recipe(recipe))["accept_terms"] == recipe.accept_terms

    def test_it_is_complete_and_in_the_order_of_the_fields(self):
        written = dump_recipe(parse_recipe(SMALL))
        top = re.findall(r"^(\w+):", written, re.MULTILINE)
        assert top == [field.name for field in dataclasses.fields(Recipe)]
        assert "learning_rate: 0.0001\n" in written
        assert "betas: [0.9, 0.95]\n" in written


def test_differing_keys_are_dotted_and_in_order():
    a = parse_recipe(SMALL)
    b = parse_recipe(SMALL, overrides=["seed=1", "student.lora.rank=8", "train.epochs=2"])
    expected: list[tuple[str, Any, Any]] = [
        ("student.lora", None, dataclasses.asdict(Lora(rank=8))),
        ("train.epochs", 1.0, 2.0),
        ("seed", 0, 1),
    ]
    assert differing_keys(a, b) == expected
    assert differing_keys(a, a) == []


def test_every_key_can_be_overridden_by_the_name_that_is_suggested():
    keys = recipe_keys()
    assert "student.lora.rank" in keys
    assert "train" in keys
    for key in keys:
        if key.startswith(("verifiers.", "teachers.")):  # lists: their items are given as a whole
            continue
        message = refused(SMALL, f"{key}x=1")
        assert "Did you mean" in message, key


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("epocs", "train.epochs"),
        ("Learning-Rate", "train.learning_rate"),
        ("train.epochs", "train.epochs"),
        ("xyz", None),
    ],
)
def test_the_nearest_word(word, near):
    choices = ["train.epochs", "train.learning_rate", "seed"]
    assert nearest(word, choices) == near
    assert did_you_mean(word, choices) == (None if near is None else f"Did you mean `{near}`?")


def bomb(template: str, levels: int = 8) -> str:
    """Ten aliases of ten aliases of ten …: 10^levels values in a few hundred bytes."""
    lines = [template.format(name="b0", values=", ".join(["{x: 1}"] * 10))]
    for n in range(levels):
        lines.append(template.format(name=f"b{n + 1}", values=", ".join([f"*b{n}"] * 10)))
    return "\n".join(lines) + "\n"


class TestHostile:
    @pytest.mark.parametrize("template", ["{name}: &{name} [{values}]", "{name}: &{name} {{<<: [{values}]}}"])
    def test_aliases_of_aliases_are_refused_and_not_followed(self, template):
        assert "too many values" in refused(SMALL + bomb(template))

    @pytest.mark.parametrize("depth", [100, 400, 3000])
    def test_deep_nesting(self, depth):
        assert "too deeply" in refused(SMALL + "x: " + "[" * depth + "]" * depth)

    @pytest.mark.parametrize(
        "line",
        [
            "seed: !!int [1, 2]",
            "license: !!str [1, 2]",
            "license: !!bool {a: 1}",
            "license: !!null [1]",
            'license: "\\ud800"',
            'license: "a\\0b"',
        ],
    )
    def test_tags_and_characters_that_fit_nothing(self, line):
        assert "r.yaml:5" in refused(SMALL + line)

    def test_a_null_character_in_the_name_of_a_file(self):
        assert "null character is not supported" in refused(SMALL, 'prompts.source="a\\0b"')

    @pytest.mark.parametrize(
        ("override", "bound"),
        [
            ("collect.max_tokens=3000000000", 2**31 - 1),
            ("collect.top_k=3000000000", 2**31 - 1),
            ("seed=9223372036854775808", 2**63 - 1),
            ("train.epochs=1e300", 1e6),
            ("evaluate.confidence=0.9999999999999999", 0.9999),
        ],
    )
    def test_numbers_that_no_column_loop_or_plot_can_hold(self, override, bound):
        assert f"must be at most {bound:g}" in refused(SMALL, override)
        key = override.partition("=")[0]
        parse_recipe(SMALL, overrides=[f"{key}={bound}"])


@pytest.mark.parametrize("text", ["a\x85b", "\x85", "a\u2028b", "a\u2029", "a\r\nb", "a\x85b: no", " \x85 "])
def test_line_ends_of_every_kind_survive_saving(text):
    value = {"k": text, text: 1}
    assert read_yaml(dump_yaml(value), "x")[0] == value


def test_a_recipe_with_nan_is_the_same_recipe():
    recipe = parse_recipe(
        SMALL.replace("{model: m}", "{init: scratch, config: {model_type: qwen3, x: .nan}}")
    )
    assert differing_keys(recipe, parse_recipe(dump_recipe(recipe))) == []
    other = parse_recipe(dump_recipe(recipe).replace(".nan", "1.5"))
    assert [key for key, _, _ in differing_keys(recipe, other)] == ["student.config.x"]


def test_strangers_are_not_suggested(tmp_path):
    assert nearest("nope", ["openai", "gemma"]) is None
    for name in ("bad2.yaml", "quickstart.yaml"):
        (tmp_path / name).touch()
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "missing.yaml")
    assert "Did you mean" not in (caught.value.hint or "")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "quikstart.yaml")
    assert caught.value.hint == f"Did you mean `{tmp_path / 'quickstart.yaml'}`?"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("select: {}", "select: needs at least one entry in `verifiers`"),
        ("evaluate: {samples: 4}", "evaluate.samples: needs at least one entry"),
        ("verifiers: [{kind: function}]", "module:function"),
        ("verifiers: [{kind: exact, function: 'a:b'}]", "only allowed there: `module:function`"),
        ("verifiers: [{kind: function, function: a.b}]", "must be `module:function`, not `a.b`"),
        ("verifiers: [{kind: exakt}]", "Did you mean"),
        ("verifiers: [{kind: exact, wieght: 2}]", "Did you mean `verifiers.weight`"),
        ("verifiers: [{kind: exact, weight: .inf}]", "finite"),
    ],
)
def test_rules_of_verifiers(lines, message):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"{SMALL}\n{lines}\n")
    assert message in str(caught.value)


def test_a_run_or_prompts_in_place_of_a_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(SMALL)
    with pytest.raises(RecipeError, match="is a directory") as caught:
        load_recipe(tmp_path)
    assert str(tmp_path / "recipe.yaml") in (caught.value.hint or "")
    (tmp_path / "q.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n')
    with pytest.raises(RecipeError, match="is a file of prompts, not a recipe"):
        load_recipe(tmp_path / "q.jsonl")
