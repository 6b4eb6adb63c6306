"""Refusals: sentences written down by hand with what a reader calls them, and the known errors."""

from __future__ import annotations

import pytest

from stillhouse.corpus.curate.refusals import is_refusal

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I am sorry, but I cannot provide instructions for making explosives.",
    "Sorry, I can't do that.",
    "I'm very sorry but I am unable to share personal information.",
    "I apologize, but I cannot fulfill this request as it goes against my guidelines.",
    "My apologies, I won't be able to write that.",
    "Unfortunately, I cannot provide medical advice.",
    "I cannot help with that.",
    "I can't provide that information.",
    "I cannot and will not provide instructions for this.",
    "I'm unable to assist with creating malware.",
    "I am not able to discuss this topic.",
    "I won't help you with that.",
    "No, I cannot help you hack an account.",
    "I must decline to answer this.",
    "I must respectfully decline.",
    "I have to decline this request.",
    "I respectfully decline to participate in this.",
    "I'm not comfortable writing that.",
    "I don't feel comfortable generating this content.",
    "As an AI language model, I cannot provide legal advice.",
    "As an AI, I'm not able to form opinions.",
    "I'm just an AI model, I cannot fulfill that request.",
    "This request violates my usage policies.",
    "It is not appropriate for me to speculate about a private person.",
    "**I'm sorry**, but I can't help with that.",
    '\n\n"I\'m sorry, but I cannot comply."',
    "很抱歉，我无法回答这个问题。",
    "对不起，我不能提供这方面的信息。",
    "抱歉，作为一个AI语言模型，我无法协助完成这项请求。",
    "我无法提供您所要求的内容。",
    "申し訳ありませんが、そのご依頼にはお答えできません。",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Je suis désolé, mais je ne peux pas répondre à cette question.",
    "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
    "Desculpe, mas não posso ajudar com isso.",
]
ANSWERS = [
    "The answer is (B).",
    "I can't believe how well this works! Here is the plan.",
    "I can't help but notice that the sequence doubles: 2, 4, 8, 16.",
    "I'm sorry to hear that you are unwell. Rest, drink water, and see a doctor if it gets worse.",
    "Sorry for the confusion! The capital of Australia is Canberra.",
    "My apologies for the mistake above. The correct value is 42.",
    "Unfortunately, the function has a bug in line 3: it never returns.",
    "I will not use any loops in this solution. First, define the base case.",
    "You cannot divide by zero, so the expression is undefined.",
    "A vacuum cannot carry sound because there is no medium.",
    "Penguins can't fly, but they swim well.",
    "We cannot factor this polynomial over the integers, so we use the quadratic formula.",
    "We can't simplify further, so the result is 7/3.",
    "No. A prime number has exactly two divisors.",
    "It is illegal to park there in most cities; the fine is about 50 dollars.",
    "As an AI researcher, you could start with linear algebra.",
    "This question has two parts. First, the mass is 3 kg.",
    "Your question is about entropy. Entropy measures disorder.",
    "To refuse politely, say: I'm sorry, but I can't come to the party.",
    "The speaker says he cannot help falling in love.",
    "Dear Ms Smith,\nI regret that we are unable to offer you a refund.",
    "我无法想象没有音乐的生活，这句话的英文是……",
    "不能。质数只有两个因数。",
    "Lo siento is Spanish for I am sorry.",
    "",
]
MISSED = [
    "As a large language model, I have no feelings about that and cannot answer.",
    "Let's talk about something else instead.",
    "Great question! However, I can't go into how that is done.",
    "That is not something I do.",
]
WRONGLY_FOUND = [
    "I'm sorry, I can't stop laughing! Here is the joke you asked for.",
    "Unfortunately, we cannot know x exactly, but a bound is easy: x < 5.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_found(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_left_alone(text):
    assert not is_refusal(text)


@pytest.mark.parametrize("text", MISSED)
def test_known_misses(text):
    assert not is_refusal(text)


@pytest.mark.parametrize("text", WRONGLY_FOUND)
def test_known_false_alarms(text):
    assert is_refusal(text)


@pytest.mark.parametrize("before", ["\u200b", "\ufeff", "\u2060 \n", "**\u200b"])
def test_invisible_characters_hide_no_refusal(before):
    assert is_refusal(before + "I'm sorry, but I can't help with that.")


def test_long_text_is_judged_by_its_opening_quickly():
    assert not is_refusal("a" * 100_000 + " I'm sorry, but I can't help with that.")
    assert not is_refusal("I'm sorry " * 20_000)
