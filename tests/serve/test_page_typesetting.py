"""What the chat page typesets: formulas (and no prices), code, and text from right to left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")

from playwright.sync_api import Page, expect

pytest_plugins = ["chat_browser"]
pytestmark = pytest.mark.slow

WRITE = """async (text) => {
    const { Markdown } = await import("/page/markdown.js");
    const root = document.createElement("div");
    root.className = "prose";
    root.id = "written";
    document.getElementById("written")?.remove();
    document.getElementById("turns").append(root);
    const markdown = new Markdown(root);
    for (let at = 0; at < text.length; at += 5) markdown.write(text.slice(at, at + 5));
    markdown.finish();
}"""


def write(page: Page, text: str) -> Any:
    page.evaluate(WRITE, text)
    return page.locator("#written")


FORMULAS = {
    r"The roots are \(x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}\).": r"x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}",
    r"\[ \int_0^1 x^2\,dx = \tfrac13 \]": r"\int_0^1 x^2\,dx = \tfrac13",
    "$$\\begin{pmatrix}1&0\\\\0&1\\end{pmatrix}$$": "\\begin{pmatrix}1&0\\\\0&1\\end{pmatrix}",
    "so $a_1 * b_2$ grows": "a_1 * b_2",
    "for $n > 0$, and": "n > 0",
    "with $x$ apples": "x",
    "it is $17$.": "17",
}


def test_formulas_are_typeset_and_carry_their_source(page: Page) -> None:
    """The source is what KaTeX's MathML says that it drew, which is also what a screen reader gets."""
    for text, source in FORMULAS.items():
        written = write(page, text)
        expect(written.locator("math annotation")).to_have_text(source)
        assert written.locator(".katex-html").bounding_box()["width"] > 5
    page.evaluate("document.fonts.ready.then(() => 0)")
    families = page.evaluate(
        "[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family.replaceAll('\"', ''))"
    )
    assert "KaTeX_Math" in families and "KaTeX_Main" in families


@pytest.mark.parametrize(
    "text",
    [
        "$$\na\n+ b\n- c\n> d\n$$\n\n- item",
        "\\[\na\n+ b\n- c\n> d\n\\]\n\n- item",
        "$$a$$\n\\[\nb\n- c\n\\]\n\n- item",
    ],
)
def test_lines_of_a_formula_are_no_list(page: Page, text: str) -> None:
    written = write(page, text)
    expect(written.locator(".katex").last).to_be_visible()
    assert "c" in written.locator("annotation").last.text_content()
    assert written.locator("li").all_inner_texts() == ["item"]
    assert written.locator("blockquote").count() == 0


def test_dollars_in_code_do_not_hide_a_list(page: Page) -> None:
    written = write(page, "`$$` is the shell's number:\n- item\n\n```\n$$\n```\n- more")
    assert written.locator("li").all_inner_texts() == ["item", "more"]


def test_formulas_run_from_left_to_right_in_arabic(page: Page) -> None:
    written = write(page, r"هذا نص \(a + b = c\) وبعده `x + y`.")
    expect(written.locator(".katex")).to_have_count(1)
    first, last = (written.get_by_text(letter, exact=True).last.bounding_box() for letter in "ac")
    assert first["x"] < last["x"]
    assert written.locator("code").evaluate("el => getComputedStyle(el).direction") == "ltr"


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and then $10, so R$ 12,29",
        "$20 for one, $35 for two",
        "$5-$10",
        "100$ and 200$",
        "US$ 5 or $6 and US$ 7",
        "the variables $HOME and $PATH are set",
        "from $5 to about 10$ each",
    ],
)
def test_money_is_no_mathematics(page: Page, text: str) -> None:
    written = write(page, text)
    assert written.inner_text() == text
    assert written.locator("code, .math").count() == 0


@pytest.mark.parametrize("source", [r"\notacommand{x}", r"\def\a{\a\a}\a", r"\frac{1}", "x" * 2990 + r"\x"])
def test_what_is_no_formula_stays_as_it_is_written(page: Page, source: str) -> None:
    written = write(page, rf"\(y\) \({source}\)")
    expect(written.locator(".katex")).to_have_count(1)
    assert source in written.inner_text()


@pytest.mark.parametrize("source", ["x_" + "{y_" * 300 + "z" + "}" * 300, r"\sqrt" * 300 + " x"])
def test_a_formula_cannot_crash_the_page(page: Page, source: str) -> None:
    """Chromium crashes when it lays these out, so they stay as they are written."""
    written = write(page, rf"\({source}\) \(y\)")
    expect(written.locator(".katex")).to_have_count(1)
    assert source in written.inner_text()


@pytest.mark.parametrize(
    "source",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\url{https://tracker.example/}",
        r"\includegraphics{https://tracker.example/a.png}",
        r"\htmlClass{app}{x}",
        r"\htmlStyle{position: fixed}{x}",
        r"\rule{99999em}{99999em}",
    ],
)
def test_a_formula_reaches_nothing_outside_itself(page: Page, source: str) -> None:
    """The fixture fails if anything is fetched from elsewhere or breaks the content security policy."""
    written = write(page, rf"\({source}\)")
    expect(written.locator(".katex")).to_have_count(1)
    assert written.locator("a, img, .app").count() == 0
    assert written.bounding_box()["height"] < 20_000
    assert written.evaluate(
        "el => [...el.querySelectorAll('*')].every((e) => getComputedStyle(e).position !== 'fixed')"
    )


PYTHON = "def f(x):\n    # <b>half</b> & \"more\"\n    return x / 2  # 'a'\n"


def test_finished_code_has_colours_and_the_same_text(page: Page) -> None:
    written = write(page, f"```python\n{PYTHON}```\n")
    expect(written.locator(".hljs-keyword").first).to_have_text("def")
    assert written.locator("code").text_content() == PYTHON.rstrip("\n")
    assert written.locator("b").count() == 0
    colours = written.locator(".hljs-keyword, .hljs-comment").evaluate_all(
        "all => all.map((el) => getComputedStyle(el).color)"
    )
    assert len(set(colours)) >= 2
    written = write(page, "```nolanguage\nx = 1\n```\n\n```\nplain\n```\n")
    page.wait_for_timeout(50)
    assert written.locator("[class^=hljs]").count() == 0


def test_code_that_would_freeze_the_page_has_no_colours(page: Page) -> None:
    """30,000 dollars take highlight.js seconds as Java, its time growing with their square."""
    for code in ("$" * 11_000, "int x = 1;\n" * 1200):
        written = write(page, f"```java\n{code}\n```\n\n```java\nint y;\n```\n")
        expect(written.locator(".hljs-type")).to_have_count(1)


ARABIC = "- أولاً\n- ثانياً\n\n1. واحد\n2. اثنان\n\n> اقتباس\n\n| الاسم | القيمة |\n|---|---|\n| أ | ١ |\n"


def test_lists_quotations_and_tables_run_from_right_to_left(page: Page) -> None:
    written = write(page, f"{ARABIC}\n- left\n- to right\n\n> quote\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    directions = written.locator(":scope > :is(ul, ol, blockquote, .table)").evaluate_all(
        "all => all.map((el) => getComputedStyle(el).direction)"
    )
    assert directions == ["rtl"] * 4 + ["ltr"] * 3
    quote = written.locator("blockquote").first
    assert quote.evaluate("el => getComputedStyle(el).borderRightWidth") == "3px"
    first, second = (cell["x"] for cell in (c.bounding_box() for c in written.locator("th").all()[:2]))
    assert first > second, "the first column is on the right"


def test_a_wide_table_shows_that_it_scrolls(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 500, "height": 700})
    row = "|" + " a long cell of words |" * 12
    written = write(page, f"{row}\n{'|---' * 12}|\n{row}\n")
    table = written.locator(".table")
    assert table.evaluate("el => el.scrollWidth > el.clientWidth")
    attachments = table.evaluate("el => getComputedStyle(el).backgroundAttachment")
    assert attachments == "local, local, scroll, scroll"
