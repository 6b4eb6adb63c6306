"""Who the suspect says it is: counted by a plain rule, shown, and never a p-value."""

import pytest

from stillhouse.errors import ApiError, UsageError
from stillhouse.models import Reply
from stillhouse.trace.detectors import identity
from stillhouse.trace.detectors.identity import QUESTIONS, vendors_named


def answering(say):
    def ask(requests):
        return [say(request) for request in requests]

    return ask


def reply(text):
    return Reply(text, None, "stop", 1, 1)


@pytest.mark.parametrize(
    ("language", "text", "claimed", "denied"),
    [
        ("en", "I'm ChatGPT, a large language model trained by OpenAI.", {"OpenAI"}, set()),
        ("en", "I am not ChatGPT. I am Claude 3.5, made by Anthropic.", {"Anthropic"}, {"OpenAI"}),
        ("en", "I'm GPT-4.1 and you can't change that.", set(), {"OpenAI"}),  # the rule errs; it is on show
        ("de", "Ich bin kein Modell von Google, sondern ein kleines.", set(), {"Google"}),
        ("de", "Ich bin Qwen, von Alibaba entwickelt.", {"Alibaba"}, set()),
        ("fr", "Je suis Le Chat, créé par Mistral AI.", {"Mistral"}, set()),
        ("fr", "Je ne suis pas Gemini.", set(), {"Google"}),
        ("es", "El modelo se llama Bruma y su meta es ayudar.", set(), set()),
        ("es", "Me llamo Llama 3, de Meta AI.", {"Meta"}, set()),
        ("pt", "Não sou o Copilot.", set(), {"Microsoft"}),
        ("zh", "我是通义千问，由阿里云开发。", {"Alibaba"}, set()),
        ("zh", "我不是ChatGPT。我是DeepSeek。", {"DeepSeek"}, {"OpenAI"}),
        ("ja", "私はGoogleが開発したGeminiです。OpenAIのモデルではありません。", {"Google"}, {"OpenAI"}),
        ("ko", "저는 OpenAI의 모델이 아닙니다. 저는 Kimi입니다.", {"Moonshot"}, {"OpenAI"}),
        ("ru", "Я не ChatGPT, я другая модель.", set(), {"OpenAI"}),
        ("ru", "Меня создала компания Яндекс.", {"Yandex"}, set()),
        ("ar", "أنا ChatGPT، نموذج من OpenAI.", {"OpenAI"}, set()),
        ("ar", "أنا لست Claude.", set(), {"Anthropic"}),
    ],
)
def test_claims_and_denials_are_told_apart(language, text, claimed, denied):
    assert vendors_named(text, language) == (claimed, denied)


def test_every_language_has_every_question_and_a_word_for_no():
    assert {"en", "de", "fr", "es", "zh", "ja", "ru", "ar"} <= set(QUESTIONS)
    assert {len(questions) for questions in QUESTIONS.values()} == {4}
    assert all(vendors_named("GPT-4", language) == ({"OpenAI"}, set()) for language in QUESTIONS)


def test_it_is_an_exhibit_with_a_base_rate_and_without_a_p_value():
    transcript = identity.observe(answering(lambda _: reply("ChatGPT, OpenAI")))
    finding = identity.judge(transcript, {})
    assert finding.level == "exhibit"
    assert finding.p_value is None and finding.e_value is None and finding.ran
    assert finding.value == finding.n == 40
    assert finding.effect["claims_OpenAI"] == 40
    assert finding.effect["base_rate"] == pytest.approx(0.259, abs=5e-4)
    assert finding.effect["base_rate_low"] < 0.12 and finding.effect["base_rate_high"] > 0.46
    assert "25.9%" in finding.null


def test_it_asks_in_the_languages_wanted_greedily_and_keeps_raw_answers():
    seen = []
    transcript = identity.observe(answering(lambda r: seen.append(r) or reply("  Hm.\n")), ["ja", "ar"])
    assert {request.sampling.temperature for request in seen} == {0.0}
    assert transcript["language"].to_pylist() == ["ja"] * 4 + ["ar"] * 4
    assert set(transcript["text"].to_pylist()) == {"  Hm.\n"}
    assert identity.judge(transcript, {}).value == 0
    with pytest.raises(UsageError, match="'tlh'"):
        identity.observe(answering(lambda _: reply("")), ["tlh"])


def test_failures_are_kept_and_said():
    def say(request):
        return ApiError("refused") if request.id.endswith("0") else reply("Claude.")

    transcript = identity.observe(answering(say), ["en"])
    assert transcript["error"].to_pylist() == ["refused", None, None, None]
    finding = identity.judge(transcript, {})
    assert finding.n == 3
    assert finding.assumptions[0].held is False
    silent = identity.judge(identity.observe(answering(lambda _: ApiError("no")), ["en"]), {})
    assert not silent.ran and "answered none" in silent.reason
