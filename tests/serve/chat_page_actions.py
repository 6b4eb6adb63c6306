"""Actions of a reader of the chat page."""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import Page, expect


def send_message(page: Page, text: str, *, wait: bool = True) -> None:
    """Sends a message, and waits until its answers are complete."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    if wait:
        wait_for_answers(page)


def wait_for_answers(page: Page) -> None:
    """Waits until no answer is being written."""
    expect(page.locator(".turn").first).to_be_attached()
    expect(page.locator("#stop")).to_be_hidden(timeout=30_000)


def wait_until(page: Page, holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until ``holds()``. The page's policy forbids Playwright's own wait, which evaluates a text."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        page.wait_for_timeout(50)
