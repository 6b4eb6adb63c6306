"""Seconds to score delivered outputs and their resamples with a 1M-parameter suspect, against bare passes.

    python benchmarks/trace_scoring.py                  # 1,000 outputs x 4 resamples, 64 tokens each
    python benchmarks/trace_scoring.py --outputs 10000 --rounds 1

The suspect is a random Llama (4 layers of 128, vocabulary 1,024, float32); prompts have 24 to 40 tokens.
`bare` is the unavoidable work: the model's forward passes over the same texts, each after its prompt, in
batches of similar length, with logits and nothing else. `bare, prompts shared` are the passes of the scorer,
without scoring. `scored` is all of `PrefixScorer.token_logps`; `transcript` is `observe` on texts, with
tokenization and min-k%. The contestants take turns in one process, after a warm-up round on a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.models import Sampling
from stillhouse.trace.delivered_log import Delivered, Log
from stillhouse.trace.detectors.exchangeable.judge import judge
from stillhouse.trace.detectors.exchangeable.observe import observe
from stillhouse.trace.resample import Resamples
from stillhouse.trace.suspects.local import TorchSuspect
from stillhouse.trace.suspects.prefix_scoring import PASS_TOKENS, PrefixScorer

TOKENS, RESAMPLES, VOCABULARY = 64, 4, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--outputs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        suspect = make_suspect(Path(directory))
    rng = np.random.default_rng(0)
    ids = [
        (tuple(rng.integers(300, VOCABULARY, size=rng.integers(24, 41)).tolist()), own)
        for own in rng.integers(300, VOCABULARY, size=(arguments.outputs, RESAMPLES + 1, TOKENS)).tolist()
    ]
    jobs = [(prompt, tuple(text)) for prompt, texts in ids for text in texts]
    log, resamples = as_log(suspect, ids)
    model = suspect.weights.model
    scorer = PrefixScorer(model)
    contestants: dict[str, Callable[[int], object]] = {
        "bare": lambda n: bare(model, jobs[:n]),
        "bare, prompts shared": lambda n: without_scores(scorer, jobs[:n]),
        "scored": lambda n: scorer.token_logps(jobs[:n]),
        "transcript": lambda n: observe(suspect, first(log, n), resamples, scores=["loglik", "min_k"]),
    }
    for run in contestants.values():
        run(len(jobs) // 10)
    rounds = [
        {name: seconds(run, len(jobs)) for name, run in contestants.items()} for _ in range(arguments.rounds)
    ]
    result = {name: round(statistics.median(times[name] for times in rounds), 2) for name in contestants}
    for name in ("bare", "bare, prompts shared"):
        ratio = statistics.median(times["scored"] / times[name] for times in rounds)
        result[f"scored / {name}"] = round(ratio, 3)
    transcript = observe(suspect, log, resamples, scores=["loglik", "min_k"])
    result["judge"] = round(seconds(lambda _: judge(transcript, {}), 0), 2)
    result |= {"outputs": arguments.outputs, "parameters": model.num_parameters(), "load": os.getloadavg()[0]}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def make_suspect(directory: Path) -> TorchSuspect:
    """A random model with a byte-level tokenizer whose merged tokens are words of two letters and a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [f" {a}{b}" for a in letters for b in letters]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(words * 2, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    suspect = TorchSuspect(str(directory))
    suspect.weights.model.float()
    return suspect


def as_log(suspect: TorchSuspect, ids) -> tuple[Log, Resamples]:
    """The ids as text; the tokenizer gives it about as many tokens."""
    decode = suspect.weights.tokenizer.decode
    rows, texts = [], {}
    for number, (prompt, own) in enumerate(ids):
        outputs = [str(decode(text)) for text in own]
        prompt_turns = ({"role": "user", "content": str(decode(list(prompt[:-8])))},)
        rows.append(Delivered(str(number), prompt_turns, outputs[0], Sampling()))
        texts[str(number)] = outputs[1:]
    return Log(tuple(rows), {}, ""), Resamples(texts, ("",), 0, 0)


def first(log: Log, jobs: int) -> Log:
    return Log(log.rows[: jobs // (RESAMPLES + 1)], {}, "")


@torch.inference_mode()
def bare(model, jobs) -> None:
    """Forward passes over prompt and text, batched by length."""
    whole = sorted(((*prompt, *text) for prompt, text in jobs), key=len)
    start = 0
    while start < len(whole):
        batch = whole[start : start + PASS_TOKENS // len(whole[start])]
        width = len(batch[-1])
        ids_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in batch])
        assert model(ids_BT, use_cache=False).logits.shape[:2] == ids_BT.shape
        start += len(batch)


def without_scores(scorer: PrefixScorer, jobs) -> None:
    """The scorer's passes, with logits that are computed and not used."""
    original = scorer._label_logps

    def logits_only(hidden_NE, labels_N):
        for hidden_nE in hidden_NE.split(max(1, 2**20 // scorer.head.vocab_size)):
            scorer.head.logits(hidden_nE)
        return torch.zeros(len(labels_N))

    scorer._label_logps = logits_only  # type: ignore[method-assign]
    try:
        scorer.token_logps(jobs)
    finally:
        scorer._label_logps = original  # type: ignore[method-assign]


def seconds(run: Callable[[int], object], count: int) -> float:
    started = time.perf_counter()
    run(count)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
