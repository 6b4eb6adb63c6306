"""The chat page in a real browser on the real server, with real models and the real policy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("openai")

from chat_page_actions import send_message, wait_for_answers
from playwright.sync_api import Page, expect
from running_server import RunningServer

pytest_plugins = ["chat_browser"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tiny_teacher: Path) -> Iterator[RunningServer]:
    started = RunningServer("embedded:smollm2", f"tiny={tiny_teacher}")
    with closing(started.client):
        yield started
    assert started.stop()[0] == 0


@pytest.fixture
def address(running: RunningServer) -> str:
    """Replaces the fake server's address: `open_page` permits requests to this one only."""
    return running.address


def limit(page: Page, tokens: int) -> None:
    page.click("#open-settings")
    page.fill("#sampling-max_tokens", str(tokens))
    page.fill("#sampling-temperature", "0")
    page.keyboard.press("Escape")


def test_the_policy_is_the_server_s_and_nothing_breaks_it(open_page: Callable[..., Page]) -> None:
    page = open_page()
    expect(page.locator("#model-0 option")).to_have_text(["smollm2", "tiny"])
    reply = page.reload()
    assert reply
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_prompt_is_answered_to_the_end_and_counted(page: Page, running: RunningServer) -> None:
    limit(page, 24)
    send_message(page, "Name three colours.")
    shown = page.locator(".answer > .prose").inner_text()
    options = {"model": "smollm2", "messages": [{"role": "user", "content": "Name three colours."}]}
    whole = running.client.chat.completions.create(**options, max_tokens=24, temperature=0)
    # The page renders Markdown, so only the letters can be compared.
    assert re.findall(r"[a-z]+", shown) == re.findall(r"[a-z]+", whole.choices[0].message.content)
    assert whole.usage
    expect(page.locator(".stats")).to_contain_text(f"{whole.usage.completion_tokens} tokens")
    expect(page.locator(".stats")).to_contain_text(f"prompt {whole.usage.prompt_tokens} tokens")


def test_stop_ends_the_answer_on_the_server_too(page: Page, running: RunningServer) -> None:
    limit(page, 1500)
    send_message(page, "Write a very long story about the sea.", wait=False)
    expect(page.locator(".answer .prose").last).to_have_text(re.compile(r"\w+"))
    page.click("#stop")
    wait_for_answers(page)
    expect(page.locator(".stats")).to_contain_text("stopped by you")
    assert running.idle()


def test_both_models_answer_side_by_side(page: Page, running: RunningServer) -> None:
    limit(page, 12)
    page.click("#beside")
    send_message(page, "Hello.")
    answers = page.locator(".turn").last.locator(".answer")
    expect(answers).to_have_count(2)
    expect(page.locator(".error")).to_have_count(0)
    for column, name in enumerate(("smollm2", "tiny")):
        expect(page.locator(f"#model-{column}")).to_have_value(name)
        expect(answers.nth(column).locator(".stats")).to_contain_text(re.compile(r"\d+ tokens?"))
    assert running.idle()
