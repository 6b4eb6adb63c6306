/**
 * Formulas, typeset by KaTeX (`vendor/`), which is loaded when the first formula appears.
 *
 * A formula is shown as it is written until then, and stays so if KaTeX does not know it. It can neither fetch
 * anything nor become HTML: KaTeX builds elements, and its commands for links, images and classes are off.
 */

const LONGEST = 3000; // characters of a formula that is typeset
const DEEPEST = 200; // nested elements of a formula; a browser's layout crashes at some thousands
const KEPT = 1000; // typeset formulas that are kept for the next drawing: more than a paragraph has
const CURRENCY = /(?:^|[\s(])(?:R|US|A|AU|C|CA|HK|NZ|S|NT|MX)$/;
const OPTIONS = { throwOnError: true, strict: "ignore", trust: false, maxExpand: 200, maxSize: 20 };

let loading = null;
const kept = new Map();

/** An element with a formula's source, which is typeset as soon as it can be. */
export function formula(source, isDisplay) {
  const code = document.createElement("code");
  code.textContent = source;
  const el = document.createElement("span");
  el.className = isDisplay ? "math display" : "math";
  el.append(code);
  if (source.length <= LONGEST) typeset(el, source, isDisplay);
  return el;
}

/**
 * Whether a text between two single dollars is a formula, and not the words between two prices.
 *
 * @param {string} text what is between the dollars
 * @param {string} after what follows the second dollar
 */
export function isFormula(text, after) {
  if (CURRENCY.test(text) && /^\s?\d/.test(after)) return false; // "$10, so R$ 12"
  if (/\\[A-Za-z]|[\^_{}=<>≤≥≈]/.test(text)) return true;
  return !/\p{L}{2,}/u.test(text);
}

async function typeset(el, source, isDisplay) {
  try {
    const katex = await load();
    const key = `${isDisplay} ${source}`;
    if (!kept.has(key)) {
      const drawn = document.createElement("span");
      katex.render(source, drawn, { ...OPTIONS, displayMode: isDisplay });
      if (isDeeper(drawn, DEEPEST)) return;
      if (kept.size >= KEPT) kept.delete(kept.keys().next().value);
      kept.set(key, drawn);
    }
    el.replaceChildren(...kept.get(key).cloneNode(true).childNodes);
    el.dispatchEvent(new Event("grown", { bubbles: true }));
  } catch {
    // KaTeX does not know a command, or could not be loaded: the source stays.
  }
}

/** Whether elements are nested more than `most` levels below `root`. */
function isDeeper(root, most) {
  let level = [root];
  for (let depth = 0; level.length; depth += 1) {
    if (depth > most) return true;
    level = level.flatMap((el) => [...el.children]);
  }
  return false;
}

async function load() {
  loading ??= (async () => {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = "/page/vendor/katex.min.css";
    const ready = new Promise((resolve, reject) => {
      style.onload = resolve;
      style.onerror = reject;
    });
    document.head.append(style);
    await Promise.all([ready, import("./vendor/katex.min.js")]);
    return window.katex;
  })();
  return loading;
}
