"""The training loop against slow, obvious versions of itself, and its failures."""

import copy
import json
import signal as signals

import numpy as np
import pytest
import torch
from tiny_training import VOCABULARY, documents_of, gradients_of, llama, naive_loss_sum
from torch import nn

from stillhouse.distill.data.batch_schedule import Step
from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward.precision import WorkingCopy, compute_dtype
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.distill.targets.teacher_signal import OnlineSignal, cache_targets, open_targets
from stillhouse.distill.training.environment import memory_errors, uninterrupted
from stillhouse.distill.training.learner import Learner
from stillhouse.distill.training.loop import train
from stillhouse.errors import (
    ContextLengthError,
    EmptyCorpusError,
    NonFiniteLossError,
    OutOfMemoryError,
    RecipeError,
)
from stillhouse.recipe import Objective, Train

TEXT = Objective(kind="cross_entropy")
DOCUMENTS = documents_of((12, 5, 9, 20, 7, 7, 3, 16, 11, 8))
SETTINGS = Train(
    epochs=2, batch_tokens=40, micro_tokens=40, learning_rate=1e-2, dtype="float32", checkpoint_every=100
)


def hidden(teacher, documents=DOCUMENTS) -> OnlineSignal:
    """A teacher's signal without a file."""
    return OnlineSignal(teacher, documents, "float32")


@torch.no_grad()
def mean_kl(teacher, student) -> float:
    """Mean over the counted tokens of KL(teacher‖student), from both models' own logits."""
    values = []
    for document in DOCUMENTS:
        ids = torch.from_numpy(document.ids.astype(np.int64))[None]
        logp_TV, logq_TV = (
            torch.log_softmax(m(input_ids=ids).logits[0].double(), -1) for m in (teacher, student)
        )
        values.append((logp_TV.exp() * (logp_TV - logq_TV)).sum(-1)[:-1][document.loss[1:]])
    return torch.cat(values).mean().item()


def learner(model, documents=DOCUMENTS, signal=None, objective=TEXT, settings=SETTINGS) -> Learner:
    return Learner(model, documents, signal, objective, settings)


def gradient_of_step(model, settings=SETTINGS, documents=DOCUMENTS) -> tuple[float, dict[str, torch.Tensor]]:
    taught = learner(model, documents, settings=settings)
    step = Step(0, 0, tuple(range(len(documents))), sum(map(len, documents)))
    with taught.training():
        loss = sum(part.item() for _, part in taught.backward(step))
    return loss, gradients_of(model)


def run(model, directory, **changes):
    options = {"objective": TEXT, "settings": SETTINGS, "seed": 0, "signal": None, "documents": DOCUMENTS}
    options |= changes
    documents, teacher = options.pop("documents"), options.pop("signal")
    return train(model, documents, teacher, directory=directory, **options)


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_steps_gradient_is_that_of_the_mean_over_its_counted_tokens():
    model, oracle = llama(), llama()
    loss, gradients = gradient_of_step(model)
    expected = naive_loss_sum(oracle, DOCUMENTS) / sum(int(d.loss[1:].sum()) for d in DOCUMENTS)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for name, gradient in gradients_of(oracle).items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_tokens", [1, 20, 33])
def test_accumulated_passes_give_the_gradient_of_one(micro_tokens):
    loss, gradients = gradient_of_step(llama())
    small = Train(micro_tokens=micro_tokens, dtype="float32")
    small_loss, small_gradients = gradient_of_step(llama(), settings=small)
    assert small_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(small_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learned", [1, 3, 5])
def test_exactly_the_marked_tokens_are_learned(learned):
    """One marked token: its probability rises, and the loss names that token and no neighbour."""
    ids = np.array([3, 14, 15, 9, 26, 5], dtype=np.int32)
    marks = np.arange(6) == learned
    model = llama()
    loss, _ = gradient_of_step(model, documents=[Document("one", ids, marks)])
    logits_TV = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    expected = -torch.log_softmax(logits_TV.double(), -1)[learned - 1, int(ids[learned])].item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_the_teachers_rows_stand_beside_the_students():
    """A student equal to its teacher has a divergence of zero only if every row meets its own."""
    model = llama()
    taught = learner(model, signal=hidden(llama()), objective=Objective(kind="forward_kl"))
    step = Step(0, 0, (4, 0, 7, 2), 0)
    with taught.training():
        parts = taught.backward(step)
    assert sum(part.item() for _, part in parts) == pytest.approx(0, abs=1e-5)


def test_training_follows_plain_adamw_on_the_naive_loss(tmp_path):
    """The whole loop against torch's own AdamW and clipping, in the order that the seed gives."""
    settings = Train(
        epochs=1,
        batch_tokens=30,
        micro_tokens=16,
        learning_rate=3e-3,
        schedule="constant",
        warmup=0.0,
        clip=0.5,
        weight_decay=0.1,
        dtype="float32",
    )
    model, oracle = llama(), llama()
    result = run(model, tmp_path, settings=settings)
    decayed = [p for p in oracle.parameters() if p.ndim == 2]
    others = [p for p in oracle.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.95),
        fused=False,
        foreach=False,
    )
    order = np.random.default_rng([0, 0]).permutation(len(DOCUMENTS))
    groups: list[list[Document]] = [[]]
    for index in order:
        if sum(map(len, groups[-1])) + len(DOCUMENTS[index]) > 30:
            groups.append([])
        groups[-1].append(DOCUMENTS[index])
    losses = []
    for group in groups:
        loss = naive_loss_sum(oracle, group) / sum(int(d.loss[1:].sum()) for d in group)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    assert result.losses == pytest.approx(losses, abs=1e-4)
    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_the_loss_falls_and_every_step_has_its_line(tmp_path):
    result = run(llama(), tmp_path, settings=Train(**vars(SETTINGS) | {"epochs": 12}))
    written = lines(tmp_path)
    assert [line["step"] for line in written] == list(range(1, result.steps + 1))
    assert [line["loss"] for line in written] == result.losses
    assert np.mean(result.losses[-4:]) < 0.7 * np.mean(result.losses[:4])
    assert sum(line["tokens"] for line in written) == result.tokens == 12 * sum(map(len, DOCUMENTS))
    assert sum(line["counted"] for line in written) == result.counted
    assert set(written[0]) == {
        *("step", "loss", "learning_rate", "grad_norm", "tokens", "counted"),
        *("tokens_per_s", "elapsed_s", "epoch"),
    }
    assert written[-1]["epoch"] == 11


def test_distilling_brings_the_student_to_the_teacher(tmp_path):
    teacher, student = llama(), llama()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    settings = Train(**vars(SETTINGS) | {"epochs": 15, "learning_rate": 3e-3})
    objective = Objective(kind="forward_kl")
    result = run(student, tmp_path, settings=settings, objective=objective, signal=hidden(teacher))
    assert result.losses[-1] < 0.3 * result.losses[0]


@pytest.mark.parametrize("targets", ["hidden", "topk", "sampled", "online"])
def test_cached_and_asked_targets_all_teach(tmp_path, targets):
    teacher, student = llama(), llama(initializer_range=0.1)
    objective = Objective(kind="forward_kl", targets=targets, top_k=32)
    cache_targets(teacher, DOCUMENTS, objective, tmp_path / "targets", seed=0, dtype="float32")
    signal = open_targets(tmp_path / "targets", DOCUMENTS, objective, teacher=teacher, dtype="float32")
    settings = Train(**vars(SETTINGS) | {"epochs": 6})
    before = mean_kl(teacher, student)
    run(student, tmp_path, settings=settings, objective=objective, signal=signal)
    assert mean_kl(teacher, student) < 0.7 * before


def test_the_control_reads_the_same_documents_in_the_same_order(tmp_path):
    ours, control = tmp_path / "ours", tmp_path / "control"
    run(llama(), ours, objective=Objective(kind="forward_kl"), signal=hidden(llama()))
    run(llama(), control, label="control")
    columns = ("tokens", "counted", "epoch", "learning_rate")
    assert [[line[c] for c in columns] for line in lines(ours)] == [
        [line[c] for c in columns] for line in lines(control)
    ]


def test_the_same_run_gives_the_same_student_bit_for_bit(tmp_path):
    students = [llama(attention_dropout=0.1) for _ in range(2)]
    for number, student in enumerate(students):
        torch.manual_seed(number)  # what was drawn before must not matter
        run(student, tmp_path / str(number))
    for one, other in zip(*(student.parameters() for student in students), strict=True):
        assert torch.equal(one, other)


def test_training_leaves_generators_and_modes_as_they_were(tmp_path):
    model = llama()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(model, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_embeddings_stay_and_the_rest_learns(tmp_path, tied):
    model = llama(tie_word_embeddings=tied)
    before = copy.deepcopy(model.state_dict())
    run(model, tmp_path, settings=Train(**vars(SETTINGS) | {"embeddings": False}))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "embed_tokens" not in name and "lm_head" not in name}


def test_only_what_requires_a_gradient_learns(tmp_path):
    model = llama().requires_grad_(False)
    learning = model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    run(model, tmp_path)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["model.layers.0.mlp.up_proj.weight"]
    assert learning.requires_grad


def test_bfloat16_passes_keep_float32_masters_and_positions():
    model = llama()
    copy_ = WorkingCopy(model, torch.bfloat16)
    assert {p.dtype for p in copy_.module.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in copy_.module.buffers()} == {torch.float32}
    assert copy_.module.lm_head.weight is copy_.module.model.embed_tokens.weight
    with torch.no_grad():
        for master in copy_.masters.values():
            master += 1e-6  # below bfloat16's resolution: must survive in the master
    copy_.refresh()
    for name, master in copy_.masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(copy_.module.get_parameter(name), master.to(torch.bfloat16))


def test_bfloat16_gradients_are_added_up_in_float32():
    """1 + 2⁻⁹ (eight times over) stays 1 in bfloat16; in float32 it is 1.015625."""
    layer = nn.Linear(1, 1, bias=False)
    working = WorkingCopy(layer, torch.bfloat16)  # pyright: ignore[reportArgumentType]
    for value in [1.0] + [2.0**-9] * 8:
        working.module(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.item() == 1.015625


def test_bfloat16_training_comes_close_to_float32(tmp_path):
    """Within 2⁻⁷, twice bfloat16's rounding, at a rate at which small errors do not grow."""
    results = [
        run(
            llama(),
            tmp_path / dtype,
            settings=Train(**vars(SETTINGS) | {"dtype": dtype, "learning_rate": 1e-3}),
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert results[1].environment["dtype"] == "bfloat16"
    assert results[1].losses == pytest.approx(results[0].losses, rel=2**-7)


def test_the_wanted_compute_type_is_taken():
    cpu = torch.device("cpu")
    assert compute_dtype("float32", cpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16


def test_a_non_finite_loss_stops_before_the_step_and_names_the_documents(tmp_path):
    class Broken(OnlineSignal):
        def rows(self, requests, device):
            rows = super().rows(requests, device)
            broken = 3 in [index for index, _ in requests]
            return DenseRows(rows.hidden_ND * float("nan"), rows.head) if broken else rows

    model = llama()
    settings = Train(**vars(SETTINGS) | {"checkpoint_every": 1, "micro_tokens": 20})
    with pytest.raises(NonFiniteLossError, match=r"step \d+: .*doc-3\nhint: ") as caught:
        run(
            model,
            tmp_path,
            settings=settings,
            objective=Objective(),
            signal=Broken(llama(), DOCUMENTS, "float32"),
        )
    assert "doc-1" not in str(caught.value)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert len(lines(tmp_path)) == len(list((tmp_path / "checkpoints").glob("step-*")))


def test_a_non_finite_gradient_stops_before_the_step(tmp_path):
    model = llama()
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*gradient norm"):
        run(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_documents_is_an_error(tmp_path):
    with pytest.raises(EmptyCorpusError):
        run(llama(), tmp_path, documents=[])


def test_a_document_longer_than_the_students_context_is_refused(tmp_path):
    with pytest.raises(ContextLengthError, match="doc-3 has 20 tokens, and the student reads at most 16"):
        run(llama(max_position_embeddings=16), tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(RecipeError, match=f"train.device: '{device}' cannot be used"):
        run(llama(), tmp_path, settings=Train(**vars(SETTINGS) | {"device": device}))


def test_running_out_of_memory_says_what_to_lower():
    with pytest.raises(OutOfMemoryError) as caught, memory_errors(Train(micro_tokens=512)):
        torch.empty(2**60)
    assert "512" in str(caught.value)
    assert "micro_tokens" in (caught.value.hint or "")


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="shape") as caught, memory_errors(Train()):
        torch.zeros(2).view(3)
    assert not isinstance(caught.value, OutOfMemoryError)


def test_an_interrupt_waits_for_the_end_of_the_block():
    finished = []

    def press_and_finish():
        with uninterrupted():
            signals.raise_signal(signals.SIGINT)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        press_and_finish()
    assert finished
    assert signals.getsignal(signals.SIGINT) is signals.default_int_handler


def test_the_vocabulary_of_the_tests_is_what_they_assume():
    assert llama().config.vocab_size == VOCABULARY
