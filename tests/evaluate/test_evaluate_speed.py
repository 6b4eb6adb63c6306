"""Speeds on a fake clock that only the models advance."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.evaluate.speed import measure_speed


class Clock:
    """A clock that advances ``cost(name, round)`` seconds with each pass of a model."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passes: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def attach(self, name: str, model: LlamaForCausalLM, cost) -> None:
        def moved(module, args, kwargs, output):
            self.passes.append((name, kwargs["input_ids"].shape[1]))
            self.now += cost(sum(n == name for n, _ in self.passes))

        model.register_forward_hook(moved, with_kwargs=True)


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=list(range(50)),  # every token would end an answer
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def test_rates_are_tokens_over_seconds_whatever_the_models_stop_tokens():
    clock, slow, fast = Clock(), tiny(), tiny()
    clock.attach("slow", slow, lambda _: 0.02)
    clock.attach("fast", fast, lambda _: 0.005)
    found = measure_speed({"slow": slow, "fast": fast}, torch.arange(10), new_tokens=4, rounds=3, clock=clock)
    assert found["slow"].generate.median == pytest.approx(4 / (4 * 0.02))
    assert found["fast"].generate.median == pytest.approx(4 / (4 * 0.005))
    assert found["fast"].score.median == pytest.approx(10 / 0.005)


def test_models_take_turns_and_one_token_is_written_at_a_time():
    clock, a, b = Clock(), tiny(), tiny()
    clock.attach("a", a, lambda _: 1.0)
    clock.attach("b", b, lambda _: 1.0)
    measure_speed({"a": a, "b": b}, torch.arange(10), new_tokens=3, rounds=2, clock=clock)
    turn = [10, 1, 1, 10]  # reads the prompt, writes two more tokens, scores the text
    assert clock.passes == [(name, n) for _ in range(3) for name in ("a", "b") for n in turn]


def test_the_first_round_does_not_count_and_the_range_is_of_the_others():
    clock, model = Clock(), tiny()
    # 5 passes a round: 4 writing, 1 reading. Round 0 is very slow; rounds 1 to 3 cost 1, 2 and 4 s a pass.
    seconds = [100.0, 1.0, 2.0, 4.0]
    clock.attach("m", model, lambda n: seconds[(n - 1) // 5])
    found = measure_speed({"m": model}, torch.arange(8), new_tokens=4, rounds=3, clock=clock)["m"].generate
    assert (found.low, found.median, found.high) == pytest.approx((1 / 4, 1 / 2, 1.0))
