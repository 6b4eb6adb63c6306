"""The same texts in transformers' and textseal's detectors: same pairs, same counts, and how p-values differ.

What can be matched: which pairs count, the counts, z, the Gamma tail, and one layer of a tournament after
the other. What cannot: their colours. transformers permutes the vocabulary with torch's generator, textseal
hashes to 13 bits, and neither is a stream that we promise to keep; so their colours are given to our detector
here. transformers' p-value is the normal approximation, textseal's is mid-p: half of the chance of the very
count less than the exact tail, and so a little smaller than a valid p-value may be.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkDetector,
    WatermarkingConfig,
)

from stillhouse.watermark import Detection, Mark, detection_from_scores, distinct_pairs, text_pairs
from stillhouse.watermark.pseudorandom import vocabulary_words, window_seeds

VOCABULARY = 300
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None,
        "pad_token_id": 0,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.4)).eval()


def generated(model, config: WatermarkingConfig | None) -> torch.Tensor:
    torch.manual_seed(0)
    prompt = torch.tensor([[7, 8, 9]])
    ids = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0, min_new_tokens=150,
        max_new_tokens=150, watermarking_config=config,
    )  # fmt: skip
    return ids[:, 3:]


@pytest.mark.parametrize(("scheme", "width"), [("lefthash", 1), ("selfhash", 3)])
@pytest.mark.parametrize("marked", [True, False])
def test_transformers_counts_the_same_pairs_and_the_same_green_ones(model, scheme, width, marked):
    config = WatermarkingConfig(greenlist_ratio=0.25, bias=3.0, seeding_scheme=scheme, context_width=width)
    ids = generated(model, config if marked else None)
    detector = WatermarkDetector(model.config, "cpu", config, ignore_repeated_ngrams=True)
    theirs = detector(ids, return_dict=True)
    inside = scheme == "selfhash"  # its hash takes in the token itself, so one token fewer before it
    pairs = distinct_pairs(text_pairs(ids.tolist(), width - inside))
    colours = [
        token in detector.processor._get_greenlist_ids(torch.tensor([*before, token][: len(before) + inside]))
        for before, token in zip(pairs.windows_NW.tolist(), pairs.tokens_N.tolist(), strict=True)
    ]
    ours = detection_from_scores(Mark(KEY, "kgw", width, gamma=0.25), np.array(colours, float))
    assert ours.pairs == theirs.num_tokens_scored[0]
    assert ours.mean * ours.pairs == pytest.approx(theirs.num_green_tokens[0])
    assert ours.z == pytest.approx(theirs.z_score[0])
    assert ours.p_value == pytest.approx(stats.binomtest(sum(colours), len(colours), 0.25, "greater").pvalue)
    assert (theirs.p_value[0] < 1e-6) == marked == (ours.p_value < 1e-6)
    if marked:  # the normal tail is too thin for a count of rare successes
        assert theirs.p_value[0] < ours.p_value
    else:
        assert theirs.p_value[0] == pytest.approx(ours.p_value, abs=0.06)


def test_a_tournament_is_that_of_transformers_given_the_same_scores():
    depth = 30
    processor = SynthIDTextWatermarkLogitsProcessor(
        3, list(range(1, depth + 1)), sampling_table_size=2**16, sampling_table_seed=0,
        context_history_size=8, device=torch.device("cpu"),
    )  # fmt: skip
    words_V = vocabulary_words(window_seeds(KEY, "tournament", np.array([[8, 9]]))[0], VOCABULARY)
    g_VD = np.array([[int(word) >> layer & 1 for layer in range(depth)] for word in words_V])
    logits_V = torch.from_numpy(np.random.default_rng(0).normal(size=VOCABULARY) * 2)
    theirs_V = processor.update_scores(logits_V[None], torch.from_numpy(g_VD)[None])[0].exp()
    ours_V = Mark(KEY, "tournament", depth=depth)([8, 9], logits_V.softmax(0).numpy())
    np.testing.assert_allclose(ours_V, theirs_V, atol=1e-12)


@pytest.fixture(scope="module")
def textseal():
    """Loads its detectors without the package's __init__, which imports much that they do not need."""
    spec = importlib.util.find_spec("textseal")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("textseal is not installed: pip install --no-deps textseal==0.0.5")
    root = next(iter(spec.submodule_search_locations))
    packages = {name: root + path for name, path in (("textseal", ""), ("textseal.posthoc", "/posthoc"))}
    for name, path in packages.items():
        package = types.ModuleType(name)
        package.__path__ = [path]
        sys.modules[name] = package
    yield importlib.import_module("textseal.posthoc.detector")
    for name in [name for name in sys.modules if name.partition(".")[0] == "textseal"]:
        del sys.modules[name]


class Numbers:
    """A tokenizer of texts that are numbers."""

    vocab_size = VOCABULARY
    add_special_tokens = True

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(map(int, text.split()))


def textseals(textseal, kind: str, ids: list[int]) -> tuple[list[float], float, Detection]:
    """Scores and p-value of textseal's detector, and ours from its colours of the same pairs."""
    settings = textseal.WatermarkArgs(
        secret_key=11, ngram=2, watermark_type=kind, gamma=GAMMA[kind], depth=30
    )
    detector = textseal.build_detector(Numbers(), settings)
    scores = detector.get_scores_by_t([" ".join(map(str, ids))], scoring_method="v2", seen_windows=set())[0]
    pairs = distinct_pairs(text_pairs([ids[1:]], 2))  # it leaves out the first token that could be scored
    own = [
        detector.score_tok(before, token)
        for before, token in zip(pairs.windows_NW.tolist(), pairs.tokens_N.tolist(), strict=True)
    ]
    mark = Mark(KEY, SCHEME[kind], 2, gamma=0.25, depth=30)
    assert own == scores
    return (
        scores,
        float(detector.get_pvalue(sum(scores), len(scores), 1e-200)),
        detection_from_scores(mark, np.array(own)),
    )


SCHEME = {"greenlist": "kgw", "gumbelmax": "gumbel", "synthid": "tournament"}
GAMMA = {"greenlist": 0.25, "gumbelmax": 0.5, "synthid": 0.5}


@pytest.mark.parametrize("kind", list(SCHEME))
@pytest.mark.parametrize("repetitive", [True, False])
def test_textseal_scores_the_same_pairs_and_its_p_value_is_ours_or_mid_p(textseal, kind, repetitive):
    rng = np.random.default_rng(2)
    ids = (
        rng.integers(0, VOCABULARY, 60).tolist() * 4
        if repetitive
        else rng.integers(0, VOCABULARY, 240).tolist()
    )
    scores, theirs, ours = textseals(textseal, kind, ids)
    assert ours.pairs == len(scores) == (60 if repetitive else 237)
    if kind == "gumbelmax":
        assert theirs == pytest.approx(ours.p_value, rel=1e-9)
    else:
        trials = len(scores) * (30 if kind == "synthid" else 1)
        of_this_count = stats.binom.pmf(round(sum(scores)), trials, GAMMA[kind])
        assert theirs == pytest.approx(ours.p_value - of_this_count / 2, rel=1e-6)
        assert theirs < ours.p_value
