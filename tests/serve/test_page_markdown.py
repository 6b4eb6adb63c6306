"""The chat page's Markdown: compared with another implementation, cut anywhere, and at linear cost."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")

from fake_chat import HOSTILE, SHOWCASE, TORTURE
from playwright.sync_api import Page

pytest_plugins = ["chat_browser"]
pytestmark = pytest.mark.slow

IGNORED = {"div", "span", "figure", "thead", "tbody"}
DROPPED = {"figcaption", "button", "svg"}
# The page itself uses the first and second level.
RENAMED = {"s": "del", **{f"h{level}": f"h{min(level + 2, 6)}" for level in range(1, 7)}}
SAMPLES = {
    "paragraphs": "One\n\nTwo with *a*, __b__, ***c***, ~~d~~ and `e`.\n\n\n\nThree",
    "emphasis": "a*b*c snake_case_word **a *b* c** *a **b** c* 2 * 3 * 4 **open and * loose\n\n**a**b*c*",
    "code": "``a ` b`` and `` ` `` and ` x ` and `a\nb` and `open",
    "escapes": r"\*no\* \_no\_ \# \`no\` \\ 1\. &amp; &lt;b&gt;",
    "headings": "# One\n## Two ##\n### Three\ntext\n#not\n###### Six",
    "bullets": "- a\n- b\n  - c\n    - d\n- e\n\ntext\n\n* x\n* y",
    "numbers": "1. a\n2. b\n   1. c\n   2. d\n3. e\n\n7. seven\n8. eight",
    "mixed": "1. a\n   - b\n   - c\n2. d\n\n   more of d\n\n   ```py\n   x = 1\n     y = 2\n   ```\n3. e",
    "item of paragraphs": "- a\n\n  b\n\n- c",
    "fences": "```python\na = '<b>'\n\n  b\n```\nthen\n~~~\n```\n~~~\n````\n```\n````",
    "open fence": "```\nnever closed\n",
    "quotes": "> a\n> b\n>\n> - c\n> - d\n\n> > deep\n\nout",
    "lazy": "> a\nb\n\n- c\nd",
    "rules": "a\n\n---\n\n***\n\n_ _ _\n\nb",
    "links": "[a](https://e.org/a) [*b*](https://e.org/x_(y)) <https://e.org/z> [c](<https://e.org/d> 't')",
    "table": "| a | b | c |\n|:--|:-:|--:|\n| 1 | *2* | `3` |\n| 4 | 5 \\| 6 |\n\nafter",
    "bare table": "a | b\n--- | ---\n1 | 2",
    "table after text": "text\n\n| a |\n|---|\n| b |\n\n- x",
    "no table": "| a | b |\n| c | d |",
    "html": "<b>bold</b> <script>x</script>\n\n<div>\n*a*\n</div>",
    "numbers in text": "In the year\n1984. It was.\n\n42",
}


BITS = [
    *("*", "**", "_", "`", "```", "~~", "~~~", "\n", "\n\n", "- ", "+ ", "1. ", "12) ", "  ", "    ", "\t"),
    *(
        "> ",
        "# ",
        "|",
        "|--|--|\n",
        "---",
        ":",
        "[a](",
        "https://e.org",
        ")",
        "]",
        "![",
        "<br>",
        "<b>",
        "&amp;",
    ),
    *("$", "\\(", "\\", "word ", "a", "é", "🥃"),
]


class Tree(HTMLParser):
    """HTML as nested lists of elements, link targets and text."""

    def __init__(self, html: str, renamed: dict[str, str]) -> None:
        super().__init__()
        self.renamed = renamed
        self.tree: list[Any] = ["root"]
        self.open = [self.tree]
        self.dropped = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in DROPPED:
            self.dropped += 1
        if tag == "p" and self.open[-1][0] == "li":
            self.open[-1].append(
                ""
            )  # loose or tight is a matter of spacing, but the start of a paragraph is not
        if tag in IGNORED or self.dropped or (tag == "p" and self.open[-1][0] == "li"):
            return
        kept = "".join(f" {name}={value}" for name, value in attrs if name in {"href", "start"})
        node = [self.renamed.get(tag, tag) + kept]
        self.open[-1].append(node)
        if tag not in {"br", "hr"}:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if tag in DROPPED:
            self.dropped -= 1
        elif not self.dropped and self.open[-1][0].split()[0] == self.renamed.get(tag, tag):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.dropped:
            return
        in_pre = any(node[0] == "pre" for node in self.open)
        text = data if in_pre else re.sub(r"\s+", " ", data)
        last = self.open[-1][-1]
        if len(self.open[-1]) > 1 and isinstance(last, str) and last:
            self.open[-1][-1] = last + text
        elif in_pre or text.strip():
            self.open[-1].append(text)


def stripped(node: Any) -> Any:
    """Removes spaces at the edges of blocks and the line break after code, which have no meaning."""
    if isinstance(node, str):
        return node.strip()
    children = [stripped(child) for child in node[1:]]
    return [node[0], *(child for child in children if child)]


def rendered(page: Page, text: str, piece: int = 0) -> str:
    return page.evaluate(
        """async ([text, piece]) => {
            const { Markdown } = await import("/page/markdown.js");
            const root = document.createElement("div");
            const markdown = new Markdown(root);
            for (let at = 0; at < text.length; at += piece || text.length) {
                markdown.write(text.slice(at, at + (piece || text.length)));
            }
            markdown.finish();
            return root.innerHTML;
        }""",
        [text, piece],
    )


def test_it_reads_what_another_implementation_reads(page: Page) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    oracle = markdown_it.MarkdownIt("commonmark", {"breaks": True, "html": False})
    oracle.enable(["table", "strikethrough"])
    for name, text in SAMPLES.items():
        ours = stripped(Tree(rendered(page, text), {}).tree)
        theirs = stripped(Tree(oracle.render(text), RENAMED).tree)
        assert ours == theirs, name


@pytest.mark.parametrize("text", [TORTURE, HOSTILE, SHOWCASE, *SAMPLES.values()])
def test_it_does_not_matter_how_it_arrives(page: Page, text: str) -> None:
    whole = rendered(page, text)
    assert [rendered(page, text, piece) for piece in (1, 2, 3, 7, 50)] == [whole] * 5


def test_random_text_neither_fails_nor_depends_on_its_pieces(page: Page) -> None:
    differing = page.evaluate(
        """async (bits) => {
            const { Markdown } = await import("/page/markdown.js");
            let seed = 12345;
            const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
            const render = (pieces) => {
                const root = document.createElement("div");
                const markdown = new Markdown(root);
                for (const piece of pieces) markdown.write(piece);
                markdown.finish();
                return root.innerHTML;
            };
            const differing = [];
            for (let round = 0; round < 1500; round += 1) {
                const pieces = Array.from({ length: 3 + random(40) }, () => bits[random(bits.length)]);
                const text = pieces.join("");
                const whole = render([text]);
                if (render(pieces) !== whole || render(text.split("")) !== whole) differing.push(text);
            }
            return differing;
        }""",
        BITS,
    )
    assert differing == []


@pytest.mark.parametrize("text", [TORTURE, SHOWCASE])
def test_what_is_shown_stays_what_it_is(page: Page, text: str) -> None:
    """Blocks are only added at the end: none changes its kind, and none disappears."""
    changes = page.evaluate(
        """async (text) => {
            const { Markdown } = await import("/page/markdown.js");
            const root = document.createElement("div");
            const markdown = new Markdown(root);
            const changes = [];
            let before = [];
            for (const character of text) {
                markdown.write(character);
                const now = [...root.children].filter((el) => !el.hidden).map((el) => el.tagName);
                if (before.some((tag, at) => now[at] !== tag)) changes.push([before.join(), now.join()]);
                before = now;
            }
            return changes;
        }""",
        text,
    )
    assert changes == []


LONG = {
    "one line": "word and **more** words, `code`, and so on; ",
    "one paragraph": "a line of text with *stars*\n",
    "lines of code": "    x = 1  # a comment\n",
    "items": "- an item\n",
    "rows": "| a | b | c |\n",
    "stars": "*a **b _c ",
    "brackets": "[[[",
    "ticks": "` `` ``` ",
    "quotes": "> " * 5,
    "formulas": "\\(x $y ",
}
BEGINNINGS = {"lines of code": "```py\n", "rows": "| a | b | c |\n|---|---|---|\n"}


@pytest.mark.parametrize("kind", LONG)
def test_the_work_grows_with_the_length_only(page: Page, kind: str) -> None:
    """Counts nodes created while a text arrives: twice the text, about twice the nodes."""
    work = page.evaluate(
        """async ([begin, unit]) => {
            const { Markdown } = await import("/page/markdown.js");
            const real = { createElement: document.createElement, createTextNode: document.createTextNode };
            let count = 0;
            for (const [name, make] of Object.entries(real)) {
                document[name] = (...given) => { count += 1; return make.apply(document, given); };
            }
            const measured = [16_000, 32_000].map((length) => {
                count = 0;
                const markdown = new Markdown(document.createElement("div"));
                markdown.write(begin);
                const text = unit.repeat(length / unit.length);
                for (let at = 0; at < text.length; at += 40) markdown.write(text.slice(at, at + 40));
                markdown.finish();
                return count;
            });
            Object.assign(document, real);
            return measured;
        }""",
        [BEGINNINGS.get(kind, ""), LONG[kind]],
    )
    assert work[1] < 2.6 * work[0]
