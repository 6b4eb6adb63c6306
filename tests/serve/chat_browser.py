"""Fixtures that open the chat page in a real Chromium, and checks that hold in every test.

Every page that the fixtures open sends requests to its own server only, violates no rule of the content
security policy, and writes no error to the console.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_chat import FakeChat, serving
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


@pytest.fixture(scope="module")  # while Playwright runs, its event loop counts as this thread's
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


@pytest.fixture
def fake() -> FakeChat:
    return FakeChat()


@pytest.fixture
def address(fake: FakeChat) -> Iterator[str]:
    with serving(fake) as url:
        yield url


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the page in a new browser profile: ``open_page(script=None, **context options)``."""
    contexts, problems = [], []

    def watch(page: Page) -> None:
        page.on("request", lambda request: check(request.url))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda message: complain(message.type, message.text))

    def check(url: str) -> None:
        if not url.startswith((address, f"blob:{address}")):
            problems.append(f"request to {url}")

    def complain(kind: str, text: str) -> None:
        # The browser itself logs failed requests; the page shows them to the reader.
        if kind in {"error", "warning"} and not text.startswith("Failed to load resource"):
            problems.append(f"console: {text}")

    def opened(script: str | None = None, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 760}, **options})
        context.set_default_timeout(15_000)
        context.on("page", watch)
        context.add_init_script(WATCH + (script or ""))
        contexts.append(context)
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#model-0 option", state="attached")
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            problems.extend(page.evaluate("window.violations ?? []"))
        context.close()
    assert problems == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()
