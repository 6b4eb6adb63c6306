"""The chat page's list of conversations: search, names, import, and the one that opens again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")

from chat_page_actions import send_message
from fake_chat import FakeChat
from playwright.sync_api import Page, expect

pytest_plugins = ["chat_browser"]
pytestmark = pytest.mark.slow


def test_search_finds_words_in_titles_prompts_and_answers(page: Page) -> None:
    expect(page.locator("#search")).to_be_hidden()
    send_message(page, "Über naïve cats")
    page.click("#new")
    send_message(page, "dogs")
    titles = page.locator("#conversations .title")
    page.fill("#search", "uber NAIVE")
    expect(titles).to_have_count(1)
    expect(titles.first).to_contain_text("Über naïve cats")
    page.fill("#search", "the last: dogs")  # words of an answer
    expect(titles).to_have_count(1)
    expect(page.locator("#conversations .excerpt")).to_contain_text("the last: dogs")
    page.fill("#search", "birds")
    expect(titles).to_have_count(0)
    expect(page.locator("#nothing-found")).to_be_visible()
    page.fill("#search", "")
    expect(titles).to_have_count(2)
    expect(page.locator("#nothing-found")).to_be_hidden()


def test_a_conversation_can_be_renamed(page: Page) -> None:
    send_message(page, "first words")
    page.get_by_role("button", name="Rename “first words”").click()
    page.fill("#rename-value", "  My <b>name</b> ")
    page.press("#rename-value", "Enter")
    title = page.locator("#conversations .title")
    expect(title).to_have_text("My <b>name</b>")
    page.reload()
    expect(title).to_have_text("My <b>name</b>")
    page.get_by_role("button", name="Rename").click()
    page.fill("#rename-value", "other")
    page.get_by_role("button", name="Cancel").click()
    expect(title).to_have_text("My <b>name</b>")
    page.get_by_role("button", name="Rename").click()
    page.fill("#rename-value", "")
    page.press("#rename-value", "Enter")
    expect(title).to_have_text("first words")


def test_an_export_comes_back_in_another_browser(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    send_message(page, "one")
    page.click("#new")
    send_message(page, "two")
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / "export.json"
    download.value.save_as(file)

    other = open_page()
    titles = other.locator("#conversations .title")
    other.set_input_files("#import-file", file)
    expect(titles).to_have_text(["two", "one"])
    expect(other.locator("#notices")).to_contain_text("2 conversations were imported")
    titles.last.click()
    expect(other.locator(".answer > .prose")).to_contain_text("student saw 1 messages")
    other.set_input_files("#import-file", file)
    expect(other.locator("#notices")).to_contain_text("are here already")
    expect(titles).to_have_count(2)
    send_message(other, "and more")  # it goes on here: the exported state comes in as a copy
    other.set_input_files("#import-file", file)
    expect(titles).to_have_count(3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "is not JSON"),
        ("[]", "not a file that this page exported"),
        (json.dumps({"format": "stillhouse conversations", "version": 2, "conversations": []}), "exported"),
        (
            json.dumps(
                {"format": "stillhouse conversations", "version": 1, "conversations": [{"id": "__proto__"}]}
            ),
            "damaged",
        ),
    ],
)
def test_another_file_is_refused(page: Page, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    page.set_input_files("#import-file", file)
    expect(page.locator("#notices")).to_contain_text(words)
    expect(page.locator("#conversations .title")).to_have_count(0)


def conversations(count: int = 1, **fields: object) -> str:
    """An exported file; ``fields`` are those of every attempt."""
    attempt = {"id": "a", "model": "m", "content": "x", "reasoning": "", "state": "done", "pieces": 1}
    answer = {"shown": 0, "attempts": [attempt | fields]}
    common = {"version": 1, "created": 1, "system": "", "models": ["student"], "beside": False}
    all_of_them = [
        {**common, "id": f"{i:x}", "updated": i, "turns": [{"prompt": f"<b>{i}</b>", "answers": [answer]}]}
        for i in range(1, count + 1)
    ]
    return json.dumps({"format": "stillhouse conversations", "version": 1, "conversations": all_of_them})


@pytest.mark.parametrize(
    "fields",
    [{"error": {}}, {"first": None}, {"seconds": "x"}, {"usage": {"completion_tokens": {}}}, {"state": "x"}],
    ids=str,
)
def test_a_damaged_answer_is_refused(page: Page, tmp_path: Path, fields: dict[str, object]) -> None:
    """Opening it would break the page."""
    file = tmp_path / "x.json"
    file.write_text(conversations(**fields))
    page.set_input_files("#import-file", file)
    expect(page.locator("#notices")).to_contain_text("damaged")


def test_of_many_conversations_the_latest_are_listed(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(conversations(450))
    page.set_input_files("#import-file", file)
    expect(page.locator("#notices")).to_contain_text("450 conversations were imported")
    titles = page.locator("#conversations .title")
    expect(titles).to_have_count(200)
    expect(titles.first).to_have_text("<b>450</b>")
    expect(page.locator("#conversations .more")).to_contain_text("250 more")
    page.fill("#search", "<b>1</b>")
    expect(titles).to_have_text(["<b>1</b>"])


def test_the_keyboard_stays_at_the_conversation(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(conversations(3))
    page.set_input_files("#import-file", file)
    titles = page.locator("#conversations .title")
    titles.nth(1).focus()
    page.keyboard.press("Enter")
    expect(titles.nth(1)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.type("named")
    page.keyboard.press("Enter")
    expect(titles.nth(1)).to_have_text("named")
    expect(page.get_by_role("button", name="Rename “named”")).to_be_focused()


def test_renaming_keeps_what_another_tab_added(page: Page) -> None:
    send_message(page, "first")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".turn")).to_have_count(1)
    page.get_by_role("button", name="Rename").click()
    send_message(other, "second")
    expect(page.locator(".turn")).to_have_count(2)
    page.fill("#rename-value", "named")
    page.press("#rename-value", "Enter")
    expect(page.locator("#conversations .title")).to_have_text("named")
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)


def test_the_excerpt_is_around_the_words(page: Page) -> None:
    """Decomposed, a Korean text is two or three times as long."""
    send_message(page, "제목 " * 9 + "한국어 문장 " * 60 + "wanted" + " 끝 문장" * 60)
    page.fill("#search", "WANTED")
    expect(page.locator("#conversations .excerpt")).to_contain_text("wanted")


def test_the_conversation_that_was_open_opens_again(page: Page) -> None:
    send_message(page, "remember me")
    page.reload()
    expect(page.locator(".prompt .words")).to_have_text("remember me")
    page.click("#new")
    page.reload()
    expect(page.locator(".empty")).to_be_visible()


def test_enter_that_ends_a_composition_does_not_send(page: Page, fake: FakeChat) -> None:
    """Safari reports the end of a composition before its Enter, which then has the key code 229 only."""
    page.fill("#prompt", "にほん")
    for code, composing in ((229, False), (13, True)):
        page.evaluate(
            """(codes) => document.getElementById("prompt").dispatchEvent(
                new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...codes }))""",
            {"keyCode": code, "isComposing": composing},
        )
    assert fake.requests == [] and page.input_value("#prompt") == "にほん"
    page.press("#prompt", "Enter")
    expect(page.locator(".turn")).to_have_count(1)
