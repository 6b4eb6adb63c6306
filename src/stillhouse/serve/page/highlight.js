/**
 * Syntax colours for finished blocks of code, by highlight.js (`vendor/`), which is loaded with the first one.
 *
 * Its result is a text with marks; it becomes elements here, so that no code is ever parsed as HTML.
 */

// Some of its patterns take quadratic time: 30,000 characters in one line can freeze the page for seconds.
const LONGEST = 12_000; // characters of a block that gets colours
const LONGEST_LINE = 1000;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'" };

let loading = null;

/** Colours the code in `el`; its text stays the same. */
export async function highlight(el, language) {
  const text = el.textContent;
  if (!language || text.length > LONGEST || text.split("\n").some((line) => line.length > LONGEST_LINE)) return;
  try {
    loading ??= import("./vendor/highlight.min.js");
    const { default: highlighter } = await loading;
    if (!highlighter.getLanguage(language)) return;
    const { value } = highlighter.highlight(text, { language, ignoreIllegals: true });
    const block = document.createElement("span");
    block.append(...elementsOf(value));
    if (block.textContent === text && el.textContent === text) el.replaceChildren(block);
  } catch {
    // Without the file, code has no colours.
  }
}

/** The marks of highlight.js as elements: `<span class="hljs-…">`, `</span>` and text. */
function elementsOf(marked) {
  const open = [document.createElement("span")];
  for (const [, names, close, text] of marked.matchAll(/<span class="([^"<>]*)">|(<\/span>)|([^<]+)/g)) {
    if (names !== undefined) {
      const span = document.createElement("span");
      span.className = names;
      open.at(-1).append(span);
      open.push(span);
    } else if (close) open.pop();
    else open.at(-1).append(text.replace(/&(?:amp|lt|gt|quot|#x27);/g, (entity) => ENTITIES[entity]));
  }
  return open[0].childNodes;
}
