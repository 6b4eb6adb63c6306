"""The chat page in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")

from chat_page_actions import send_message, wait_for_answers, wait_until
from fake_chat import TORTURE, FakeChat
from playwright.sync_api import Page, expect

pytest_plugins = ["chat_browser"]
pytestmark = pytest.mark.slow

TOO_WIDE = """[
    ...[document.documentElement, ...document.querySelectorAll("main, dialog[open]")]
        .filter((el) => el.scrollWidth > el.clientWidth),
    ...[...document.querySelectorAll(".chat *")]
        .filter((el) => !el.closest("pre, .table, .visually-hidden, svg"))
        .filter((el) => el.getBoundingClientRect().right > 375.5),
].map((el) => el.outerHTML.slice(0, 80))"""
TO_END = "((m) => m.scrollHeight - m.scrollTop - m.clientHeight)(document.querySelector('main'))"
PHONE = {"viewport": {"width": 375, "height": 740}, "is_mobile": True, "has_touch": True}


def test_the_empty_page_says_what_it_is_and_offers_three_examples(page: Page, fake: FakeChat) -> None:
    empty = page.locator(".empty")
    expect(empty).to_contain_text("nothing leaves this machine")
    expect(empty).to_contain_text("kept only in this browser")
    expect(empty.locator("li button")).to_have_count(3)
    example = empty.locator("li button").first
    words = example.inner_text()
    example.click()
    wait_for_answers(page)
    assert fake.requests[0]["messages"] == [{"role": "user", "content": words}]
    expect(page.locator(".prompt .words")).to_have_text(words)


def test_a_model_of_another_server_is_not_said_to_stay_here(
    open_page: Callable[..., Page], fake: FakeChat
) -> None:
    fake.forwarded = {"teacher": "gpu.example:8000"}
    page = open_page()
    empty, hint = page.locator(".empty"), page.locator("#destinations")
    expect(empty).to_contain_text("nothing leaves this machine")
    expect(hint).to_have_text("")
    page.select_option("#model-0", "teacher")
    destination = "Messages to teacher are passed on to gpu.example:8000."
    expect(empty).to_contain_text(destination)
    expect(empty).not_to_contain_text("nothing leaves")
    send_message(page, "Hello.")
    expect(hint).to_have_text(destination)
    page.select_option("#model-0", "student")
    expect(hint).to_have_text("")
    page.click("#beside")
    expect(page.locator("#model-1")).to_have_value("teacher")
    expect(hint).to_have_text(destination)


def test_an_answer_streams_and_is_counted(page: Page, fake: FakeChat) -> None:
    send_message(page, "a slow answer", wait=False)
    prose = page.locator(".answer .prose").last
    expect(prose).to_contain_text("word3 ")
    assert "word399" not in prose.inner_text()  # it is shown before it has ended
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
    wait_for_answers(page)
    stats = page.locator(".stats")
    expect(stats).to_contain_text("400 tokens")
    assert re.search(r"[\d.]+ tokens/s · first token after \d\.\d\d s · prompt 3 tokens", stats.inner_text())
    assert fake.requests[0]["stream_options"] == {"include_usage": True}


def test_reasoning_is_folded_and_timed(page: Page) -> None:
    send_message(page, "think first", wait=False)
    thoughts = page.locator(".thoughts")
    expect(thoughts.locator("summary")).to_have_text("Thinking…")
    wait_for_answers(page)
    expect(thoughts.locator("summary")).to_have_text(re.compile(r"Thought for \d+ s"))
    expect(thoughts.locator("strong")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.locator("strong")).to_have_text("answer")
    expect(page.locator(".answer > .prose")).not_to_contain_text("weigh")


def test_model_system_prompt_and_sampling_are_sent(page: Page, fake: FakeChat) -> None:
    page.select_option("#model-0", "teacher")
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    for name, value in {"temperature": "0.3", "top_k": "40", "max_tokens": "3", "seed": "7"}.items():
        page.fill(f"#sampling-{name}", value)
    page.fill("#sampling-top_p", "3")
    expect(page.locator("#sampling-top_p")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#hint-top_p")).to_contain_text("It is not used")
    page.fill("#sampling-stop", "END\n###")
    page.keyboard.press("Escape")
    send_message(page, "hello")
    sent = fake.requests[0]
    assert sent["model"] == "teacher"
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    sampling = {"temperature": 0.3, "top_k": 40, "max_tokens": 3, "seed": 7, "stop": ["END", "###"]}
    assert {key: sent.get(key) for key in sampling} == sampling
    assert "top_p" not in sent
    expect(page.locator(".stats")).to_contain_text("cut off at max tokens")
    page.reload()
    page.click("#open-settings")
    expect(page.locator("#sampling-temperature")).to_have_value("0.3")
    page.click("#reset")
    page.keyboard.press("Escape")
    send_message(page, "again")
    assert not sampling.keys() & fake.requests[1].keys()


def test_stop_keeps_what_came_and_retry_keeps_both(page: Page, fake: FakeChat) -> None:
    send_message(page, "slow", wait=False)
    expect(page.locator(".answer .prose").last).to_contain_text("word5 ")
    page.keyboard.press("Escape")
    wait_for_answers(page)
    stopped = page.locator(".answer > .prose").inner_text()
    assert "word5" in stopped and "word399" not in stopped
    expect(page.locator(".stats")).to_contain_text("stopped by you")
    expect(page.locator(".stats")).to_contain_text("about ")
    page.click(".retry")
    wait_for_answers(page)
    expect(page.locator(".attempts")).to_have_text("2 of 2")
    expect(page.locator(".answer > .prose")).to_contain_text("word399")
    page.get_by_role("button", name="Earlier answer").click()
    expect(page.locator(".attempts")).to_have_text("1 of 2")
    assert page.locator(".answer > .prose").inner_text() == stopped
    assert [request["messages"] for request in fake.requests] == [[{"role": "user", "content": "slow"}]] * 2
    # The model continues from the attempt that is shown.
    send_message(page, "hello")
    assert fake.requests[-1]["messages"][1]["content"].split() == stopped.split()


def test_the_last_message_can_be_edited(page: Page, fake: FakeChat) -> None:
    send_message(page, "first")
    send_message(page, "secund")
    assert page.locator(".edit:visible").count() == 1
    page.locator(".edit:visible").click()
    field = page.get_by_label("Edit your message")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".edit:visible")).to_be_focused()
    page.keyboard.press("Enter")
    field.fill("second")
    page.keyboard.press("Enter")
    wait_for_answers(page)
    expect(page.locator(".prompt .words")).to_have_text(["first", "second"])
    assert [message["content"] for message in fake.requests[-1]["messages"]][::2] == ["first", "second"]
    assert len(fake.requests[-1]["messages"]) == 3


def test_answers_and_code_can_be_copied(open_page: Callable[..., Page], fake: FakeChat) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    send_message(page, "torture")
    page.get_by_role("button", name="Copy answer").click()
    expect(page.locator("#announcements")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == TORTURE
    page.get_by_role("button", name="Copy code").click()
    wait_until(page, lambda: page.evaluate("navigator.clipboard.readText()").startswith("def still"))
    assert "\n    return [part" in page.evaluate("navigator.clipboard.readText()")


def test_conversations_stay_in_the_browser(page: Page, fake: FakeChat, tmp_path: Path) -> None:
    send_message(page, "the first of all conversations that were ever held on this page")
    page.click("#new")
    send_message(page, "torture")
    titles = page.locator("#conversations .title")
    expect(titles).to_have_text(["torture", "the first of all conversations that were ever held"])
    expect(page.locator(".storage-note")).to_contain_text("kept only in this browser")
    page.reload()
    titles.last.click()
    expect(page.locator(".answer > .prose")).to_contain_text("student saw 1 messages")
    send_message(page, "more")
    assert [message["role"] for message in fake.requests[-1]["messages"]] == ["user", "assistant", "user"]

    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "export.json")
    exported = json.loads((tmp_path / "export.json").read_text())
    assert [len(conversation["turns"]) for conversation in exported["conversations"]] == [2, 1]
    assert exported["conversations"][1]["turns"][0]["answers"][0]["attempts"][0]["content"] == TORTURE

    page.get_by_role("button", name="Delete “torture”").click()
    page.click("#confirm-yes")
    expect(titles).to_have_count(1)
    page.click("#erase")
    page.get_by_role("button", name="Cancel").click()
    expect(titles).to_have_count(1)
    page.click("#erase")
    page.click("#confirm-yes")
    expect(titles).to_have_count(0)
    expect(page.locator(".empty")).to_be_visible()
    kept = page.evaluate("Object.keys(localStorage)")
    assert not [name for name in kept if "chat" in name]


def test_two_models_side_by_side(page: Page, fake: FakeChat) -> None:
    page.click("#beside")
    send_message(page, "slow", wait=False)
    answers = page.locator(".answer")
    for column in (0, 1):
        expect(answers.nth(column)).to_contain_text("word5 ")
    expect(page.locator(".answer.writing")).to_have_count(2)  # both at the same time
    page.click("#stop")
    wait_for_answers(page)
    send_message(page, "hello")
    left, right = answers.nth(2).bounding_box(), answers.nth(3).bounding_box()
    assert left and right and left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    send_message(page, "and now?")
    histories = {request["model"]: request["messages"] for request in fake.requests[-2:]}
    for model in ("student", "teacher"):
        assert histories[model][3]["content"].startswith(f"{model} saw")
    page.click("#swap")
    expect(page.locator("#model-0")).to_have_value("teacher")
    expect(answers.nth(2)).to_contain_text("teacher saw")
    send_message(page, "once more")
    history = next(request["messages"] for request in fake.requests[-2:] if request["model"] == "teacher")
    assert history[3]["content"].startswith("teacher saw")
    # One column alone can be retried, and the second column can be closed.
    page.locator(".retry:visible").last.click()
    wait_for_answers(page)
    assert fake.requests[-1]["model"] == "student"
    page.click("#beside")
    send_message(page, "alone")
    expect(page.locator(".turn").last.locator(".answer")).to_have_count(1)


def test_the_theme_follows_the_system_until_one_is_chosen(open_page: Callable[..., Page]) -> None:
    page = open_page(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert dark != light
    page.click("#theme")
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark
    page.click("#open-settings")
    expect(page.get_by_label("Dark", exact=True)).to_be_checked()
    page.get_by_label("Follow the system").check()
    assert page.evaluate(background) == light


def test_the_keyboard_does_everything(page: Page, fake: FakeChat) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    wait_for_answers(page)
    assert fake.requests[0]["messages"][0]["content"] == "line one\nline two"
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".empty")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()

    # Tab alone reaches every control and makes the focus visible; the first control skips the others.
    reached: list[str] = []
    while reached.count("send") < 2:
        page.keyboard.press("Tab")
        name, style, width = page.evaluate("""() => {
            const at = document.activeElement;
            const style = getComputedStyle(at.id === "prompt" ? at.closest(".field") : at);
            return [at.id || at.className || at.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
        }""")
        assert name == "BODY" or (style != "none" and width >= 1), name
        reached.append(name)
        assert len(reached) < 80
    assert reached[reached.index("BODY") + 1] == "skip"
    controls = {"new", "model-0", "beside", "open-settings", "theme", "open-help", "prompt", "send", "erase"}
    assert controls <= set(reached)
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.locator("#open-help").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#help")).to_contain_text("New conversation")
    page.keyboard.press("Escape")
    expect(page.locator("#open-help")).to_be_focused()


def test_a_phone_has_a_drawer_and_no_sideways_scroll(open_page: Callable[..., Page]) -> None:
    page = open_page(**PHONE)

    def fits() -> None:
        assert page.evaluate(TOO_WIDE) == []

    fits()
    send_message(page, "torture " + "x" * 200)
    fits()
    fields = page.locator("input:not([type=radio]), textarea, select")
    assert min(fields.evaluate_all("all => all.map((el) => parseFloat(getComputedStyle(el).fontSize))")) >= 16
    expect(page.locator("#sidebar")).to_be_hidden()
    page.tap("#open-drawer")
    expect(page.locator("#sidebar")).to_be_in_viewport()
    expect(page.locator("#close-drawer")).to_be_focused()
    fits()
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.locator("#open-drawer")).to_be_focused()
    page.tap("#beside")
    send_message(page, "hello")
    fits()
    page.tap("#open-settings")
    fits()


def test_hostile_text_stays_text(page: Page) -> None:
    send_message(page, "hostile")
    prose = page.locator(".answer > .prose")
    expect(prose).to_contain_text("<img src=x onerror=document.title='owned'>")
    assert prose.locator("img, script, svg:not(.icon), iframe, [onerror], [onload]").count() == 0
    links = prose.locator("a").evaluate_all(
        "all => all.map((a) => [a.getAttribute('href'), a.rel, a.target])"
    )
    allowed = ["https://tracker.example/pixel.png?leak=1", "https://example.org/a_b", "https://example.org/"]
    assert [href for href, *_ in links] == allowed  # the last is an address inside text that looks like a tag
    assert {(rel, target) for _, rel, target in links} == {("noopener noreferrer", "_blank")}
    expect(prose).to_contain_text("[a](javascript:alert(1))")
    assert "owned" not in page.title()
    # Also as a prompt, as the title of a conversation, and after a reload.
    send_message(page, "<img src=x onerror=document.title='owned'>")
    page.click("#new")
    send_message(page, "<img src=x onerror=document.title='owned'>")
    page.reload()
    page.locator("#conversations .title").first.click()
    expect(page.locator(".prompt .words")).to_contain_text("<img")
    assert page.locator("#conversations img, .prompt img").count() == 0
    assert "owned" not in page.title()


def test_the_page_asks_for_the_server_s_key(fake: FakeChat, browser: Any, address: str) -> None:
    fake.key = "sesame"
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    dialog = page.locator("#key")
    expect(dialog).to_contain_text("requires an API key")
    page.fill("#key-value", "wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("did not accept")
    page.fill("#key-value", "sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#model-0 option")).to_have_count(2)
    send_message(page, "hello")
    expect(page.locator(".answer > .prose")).to_contain_text("student saw 1")
    assert "sesame" in page.evaluate("JSON.stringify(sessionStorage)")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    expect(page.locator("#model-0 option")).to_have_count(2)
    # If a key is refused later, two columns ask for it once; the user may cancel.
    fake.key = "another"
    page.click("#beside")
    send_message(page, "hello again", wait=False)
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Cancel").click()
    wait_for_answers(page)
    expect(page.locator(".error")).to_have_count(2)
    expect(page.locator(".error").first).to_contain_text("requires an API key, and none was given")
    context.close()


def test_a_busy_server_shows_when_to_retry(page: Page) -> None:
    send_message(page, "busy")
    error = page.get_by_role("alert")
    expect(error).to_contain_text("Try again in 3 s")
    expect(error).to_contain_text("too many answers at once")
    expect(error).to_contain_text("You can try again now")
    error.get_by_role("button", name="Try again").click()
    wait_for_answers(page)
    expect(page.locator(".error")).to_have_count(0)
    expect(page.locator(".answer > .prose")).to_contain_text("student saw 1")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("cut", "The connection was lost before the answer ended. The text so far is kept."),
        ("fault", "The server reported an error: the model ran out of memory. The text so far is kept."),
    ],
)
def test_what_arrived_before_an_error_is_kept(page: Page, prompt: str, message: str) -> None:
    send_message(page, prompt)
    expect(page.locator(".error p")).to_have_text(message)
    expect(page.locator(".answer > .prose")).to_have_text("This much arrived")
    page.reload()
    page.locator("#conversations .title").first.click()
    expect(page.locator(".answer > .prose")).to_have_text("This much arrived")
    page.get_by_role("button", name="Try again").click()
    wait_for_answers(page)
    expect(page.locator(".attempts")).to_have_text("2 of 2")
    if prompt == "cut":
        expect(page.locator(".answer > .prose")).to_have_text("This much arrived and then the rest.")


def test_refusals_and_lost_connections_are_shown(page: Page, fake: FakeChat) -> None:
    send_message(page, "refuse")
    expect(page.locator(".error p")).to_have_text(
        "The server refused the request: the prompt is longer than the model's 2048 tokens."
    )
    send_message(page, "hello")
    # A message without an answer is not part of the history.
    assert fake.requests[-1]["messages"] == [{"role": "user", "content": "hello"}]
    page.route("**/v1/chat/completions", lambda route: route.abort())
    send_message(page, "anybody?")
    expect(page.locator(".turn").last.locator(".error p")).to_contain_text("cannot be reached")


def test_a_server_that_is_not_ready_can_be_asked_again(fake: FakeChat, browser: Any, address: str) -> None:
    fake.down = True
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("the model is still loading")
    fake.down = False
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    expect(page.locator("#notices")).to_be_empty()
    send_message(page, "hello")
    expect(page.locator(".answer > .prose")).to_contain_text("student saw 1")
    context.close()


FORBIDDEN = (
    "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('', 'SecurityError'); }});"
)
FULL = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };"


@pytest.mark.parametrize(
    ("script", "words"), [(FORBIDDEN, "does not let the page store"), (FULL, "storage is full")]
)
def test_without_storage_the_page_goes_on(open_page: Callable[..., Page], script: str, words: str) -> None:
    page = open_page(script=script)
    send_message(page, "hello")
    expect(page.locator("#notice-storage")).to_contain_text(words)
    expect(page.locator(".answer > .prose")).to_contain_text("student saw 1")
    page.click("#new")
    page.locator("#conversations .title").first.click()
    expect(page.locator(".answer > .prose")).to_contain_text("student saw 1")
    page.click("#theme")
    page.click("#erase")
    page.click("#confirm-yes")
    expect(page.locator("#conversations .title")).to_have_count(0)


def test_only_a_reader_at_the_end_is_taken_along(page: Page) -> None:
    send_message(page, "slow", wait=False)
    expect(page.locator(".answer > .prose")).to_contain_text("word150 ")
    assert page.evaluate("document.querySelector('main').scrollTop") > 0
    wait_until(page, lambda: page.evaluate(TO_END) < 48)
    page.hover("main")
    page.mouse.wheel(0, -400)
    expect(page.locator("#to-end")).to_be_visible()
    before = page.evaluate("document.querySelector('main').scrollTop")
    wait_for_answers(page)
    assert page.evaluate("document.querySelector('main').scrollTop") == before
    page.click("#to-end")
    wait_until(page, lambda: page.evaluate(TO_END) < 48)
    expect(page.locator("#to-end")).to_be_hidden()


def test_a_screen_reader_hears_the_finished_answer_only(page: Page) -> None:
    page.evaluate("""() => {
        window.heard = [];
        const spoken = document.querySelector("[aria-live=polite]");
        new MutationObserver(() => heard.push(spoken.textContent)).observe(spoken, {childList: true});
    }""")
    send_message(page, "slow")
    announcements = page.evaluate("heard")
    assert len(announcements) == 1 and announcements[0].startswith("student answered: word0 ")
    for landmark in ("banner", "main", "navigation"):
        expect(page.get_by_role(landmark)).to_have_count(1)


def test_reduced_motion_stands_still(open_page: Callable[..., Page]) -> None:
    page = open_page(reduced_motion="reduce")
    send_message(page, "think", wait=False)
    expect(page.locator(".thinking")).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0
    wait_for_answers(page)


def test_a_page_closed_while_writing_says_so_later(page: Page) -> None:
    send_message(page, "slow", wait=False)
    expect(page.locator(".answer > .prose")).to_contain_text("word9 ")
    page.reload()
    page.locator("#conversations .title").first.click()
    expect(page.locator(".error p")).to_contain_text(
        re.compile("(The page was closed|The connection was lost) .*The text so far is kept")
    )
    expect(page.locator(".answer > .prose")).to_contain_text("word9 ")


def test_an_answer_goes_on_while_another_conversation_is_read(page: Page) -> None:
    send_message(page, "slow", wait=False)
    expect(page.locator(".answer > .prose")).to_contain_text("word5 ")
    page.click("#new")
    send_message(page, "hello")
    page.locator("#conversations .title", has_text="slow").click()
    expect(page.locator("#stop")).to_be_visible()
    wait_for_answers(page)
    words = page.locator(".answer > .prose").inner_text().split()
    assert words == [f"word{number}" for number in range(400)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: Callable[..., Page], theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(color_scheme=theme, reduced_motion="reduce")

    def clean(state: str) -> None:
        violations = axe.run(page).response["violations"]
        serious = [
            (rule["id"], node["target"], node["failureSummary"])
            for rule in violations
            if rule["impact"] in {"serious", "critical"}
            for node in rule["nodes"]
        ]
        assert serious == [], state

    clean("empty")
    send_message(page, "think about torture")
    page.locator(".thoughts summary").click()
    clean("conversation")
    send_message(page, "refuse")
    clean("error")
    page.click("#beside")
    send_message(page, "hello distillation")
    clean("side by side")
    for panel in ("#open-settings", "#open-help", "#erase"):
        page.click(panel)
        clean(panel)
        page.keyboard.press("Escape")
    page.locator(".edit:visible").click()
    clean("editing")
