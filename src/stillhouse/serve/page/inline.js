/**
 * Parses inline Markdown: emphasis, code, links, formulas.
 *
 * The text comes from a model and is treated as hostile: it becomes text nodes and a few elements created here,
 * never HTML. Only http, https and mailto addresses become links. Nothing is fetched: an image becomes a link.
 */

import { formula, isFormula } from "./mathematics.js";

const SPECIAL = /[\\`*_~[!<$\n&h]/g;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPACE = /\s/;
const BARE_ADDRESS = /https?:\/\/[^\s<>"`|\\]+/iy;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" };
const MOST_OPENERS = 16; // beyond these, the earliest becomes plain text, which limits the nesting of elements

/** The address if it is safe as a link, else null. */
export function safeAddress(raw) {
  const text = raw.trim();
  if (!/^(https?:\/\/|mailto:)/i.test(text) || /[\u0000-\u0020\u007f]/.test(text)) return null;
  let url;
  try {
    url = new URL(text);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol) || url.username || url.password) {
    return null;
  }
  return url.href;
}

/**
 * @param {string} text
 * @param {{open?: boolean, links?: boolean, breaks?: boolean}} [options] open: more text may follow, so unclosed
 *   markup at the end is shown as if it were closed; breaks: `<br>` breaks a line (in table cells).
 * @returns {{nodes: Node[], settled: boolean}} settled: no markup is left unclosed
 */
export function inline(text, options = {}) {
  return new Inline(text, { open: false, links: true, breaks: false, ...options }).parse();
}

class Inline {
  constructor(text, options) {
    this.text = text;
    this.options = options;
    this.at = 0;
    this.plain = "";
    this.nodes = [];
    this.openers = [];
    this.settled = true;
    this.unmatchedTicks = new Set();
    this.brackets = null;
  }

  parse() {
    const { text } = this;
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at;
      const found = SPECIAL.exec(text);
      const next = found ? found.index : text.length;
      this.plain += text.slice(this.at, next);
      this.at = next;
      if (found) this.#special(found[0]);
    }
    this.#flush();
    if (this.openers.length) this.settled = false;
    if (this.options.open) this.#closeOpeners();
    return { nodes: this.nodes, settled: this.settled };
  }

  #special(character) {
    const isMarkup =
      character === "\\" ? this.#backslash()
      : character === "`" ? this.#code()
      : character === "\n" ? this.#lineBreak()
      : character === "[" ? this.#link(this.at, false)
      : character === "!" ? this.text[this.at + 1] === "[" && this.#link(this.at + 1, true)
      : character === "<" ? this.#angle()
      : character === "$" ? this.#dollars()
      : character === "&" ? this.#entity()
      : character === "h" ? this.#bareAddress()
      : this.#stars(character);
    if (!isMarkup) {
      this.plain += character;
      this.at += 1;
    }
  }

  #flush() {
    if (this.plain) this.nodes.push(document.createTextNode(this.plain));
    this.plain = "";
  }

  #push(node, end) {
    this.#flush();
    this.nodes.push(node);
    this.at = end;
    return true;
  }

  #backslash() {
    const next = this.text[this.at + 1];
    if (next === "(" || next === "[") return this.#formula(`\\${next}`, next === "(" ? "\\)" : "\\]");
    if (next === "\n") {
      this.at += 1;
      return true;
    }
    if (next === undefined || next >= "\u0080" || !PUNCTUATION.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  #formula(begin, end) {
    const from = this.at + begin.length;
    let to = this.text.indexOf(end, from);
    if (to < 0) {
      this.settled = false;
      if (!this.options.open) {
        this.plain += begin;
        this.at = from;
        return true;
      }
      to = this.text.length;
    }
    const source = this.text.slice(from, to).trim();
    const isOpen = to === this.text.length;
    const shown = isOpen || !source ? element("code", source) : formula(source, end === "\\]" || end === "$$");
    return this.#push(shown, Math.min(to + end.length, this.text.length));
  }

  #dollars() {
    if (this.text.startsWith("$$", this.at)) {
      const isClosed = this.text.indexOf("$$", this.at + 2) > 0;
      if (!isClosed) this.settled = false;
      return isClosed && this.#formula("$$", "$$");
    }
    // A single dollar is money, unless both dollars touch a formula and no digit follows.
    const pair = /\$(?=[^\s$])([^$\n]{0,300}?[^\s$\\])\$(?!\d)/y;
    pair.lastIndex = this.at;
    const match = pair.exec(this.text);
    return Boolean(match) && !/\w/.test(this.text[this.at - 1] ?? "")
      && isFormula(match[1], this.text.slice(pair.lastIndex, pair.lastIndex + 2)) && this.#formula("$", "$");
  }

  #code() {
    const ticks = /`+/y;
    ticks.lastIndex = this.at;
    const run = ticks.exec(this.text)[0];
    const from = this.at + run.length;
    const to = this.unmatchedTicks.has(run.length) ? -1 : closingTicks(this.text, from, run.length);
    if (to < 0) {
      this.settled = false;
      this.unmatchedTicks.add(run.length);
      if (!this.options.open) {
        this.plain += run;
        this.at = from;
        return true;
      }
    }
    let body = this.text.slice(from, to < 0 ? undefined : to).replaceAll("\n", " ");
    if (/^ .*\S.* $/.test(body)) body = body.slice(1, -1);
    const end = to < 0 ? this.text.length : to + run.length;
    if (body) return this.#push(element("code", body), end);
    this.at = end;
    return true;
  }

  #lineBreak() {
    this.plain = this.plain.replace(/ +$/, "");
    return this.#push(document.createElement("br"), this.at + 1);
  }

  #entity() {
    const found = /&(?:amp|lt|gt|quot|#39|nbsp);/y;
    found.lastIndex = this.at;
    const match = found.exec(this.text);
    if (!match) return false;
    this.plain += ENTITIES[match[0]];
    this.at += match[0].length;
    return true;
  }

  #angle() {
    const breaks = /<br\s*\/?>/iy;
    breaks.lastIndex = this.at;
    if (this.options.breaks && breaks.test(this.text)) {
      return this.#push(document.createElement("br"), breaks.lastIndex);
    }
    const address = /<((?:https?:\/\/|mailto:)[^\s<>]*)>/iy;
    address.lastIndex = this.at;
    const match = address.exec(this.text);
    const href = match && this.options.links && safeAddress(match[1]);
    return href ? this.#push(anchor(href, [document.createTextNode(match[1])]), address.lastIndex) : false;
  }

  #bareAddress() {
    if (!this.options.links || /\w/.test(this.text[this.at - 1] ?? "")) return false;
    BARE_ADDRESS.lastIndex = this.at;
    const match = BARE_ADDRESS.exec(this.text);
    if (!match) return false;
    const address = withoutPunctuation(match[0]);
    const href = safeAddress(address);
    return href ? this.#push(anchor(href, [document.createTextNode(address)]), this.at + address.length) : false;
  }

  /** A link, or an image as a link. `from` is the index of its bracket. */
  #link(from, isImage) {
    if (!this.options.links) return false;
    this.brackets ??= matchingBrackets(this.text);
    const to = this.brackets.get(from);
    if (to === undefined) {
      this.settled = false;
      return false;
    }
    if (this.text[to + 1] !== "(") return false;
    const target = destination(this.text, to + 2);
    const label = this.text.slice(from + 1, to);
    if (target === "open") {
      this.settled = false;
      if (!this.options.open) return false;
      this.plain += label;
      this.at = this.text.length;
      return true;
    }
    const href = target && safeAddress(target.address);
    if (!href) return false;
    const shown = isImage
      ? [document.createTextNode(`Image: ${label || new URL(href).hostname}`)]
      : inline(label || target.address, { links: false }).nodes;
    return this.#push(anchor(href, shown), target.end);
  }

  #stars(character) {
    const { text } = this;
    let end = this.at;
    while (text[end] === character) end += 1;
    const run = text.slice(this.at, end);
    const before = text[this.at - 1] ?? " ";
    const after = text[end] ?? " ";
    const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
    const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
    const inWord = character === "_";
    const mark = {
      character,
      count: run.length,
      length: run.length,
      opens: left && (!inWord || !right || PUNCTUATION.test(before)),
      closes: right && (!inWord || !left || PUNCTUATION.test(after)),
      early: SPACE.test(before) || PUNCTUATION.test(before),
    };
    this.#flush();
    this.at = end;
    const last = end === text.length && this.options.open;
    if (run.length > 3 || (character === "~" && run.length !== 2)) {
      this.plain += last && character === "~" ? "" : run;
      return true;
    }
    if (mark.closes) this.#wrap(mark);
    if (!mark.count) return true;
    // At the end of the text so far, a star may yet open or close something: it is held back.
    if (last && character !== "_") {
      this.settled = false;
      return true;
    }
    const shown = document.createTextNode(character.repeat(mark.count));
    if (mark.opens) {
      if (this.openers.length === MOST_OPENERS) this.openers.shift();
      this.openers.push({ ...mark, at: this.nodes.length, shown });
    }
    this.nodes.push(shown);
    return true;
  }

  /** Closes as many openers as the mark has characters for. */
  #wrap(mark) {
    while (mark.count) {
      const index = this.openers.findLastIndex((opener) => matches(opener, mark));
      if (index < 0) return;
      const opener = this.openers[index];
      this.openers.length = index + 1;
      const used = Math.min(2, opener.count, mark.count);
      this.#enclose(opener, used);
      mark.count -= used;
    }
  }

  #enclose(opener, used) {
    const tag = opener.character === "~" ? "del" : used === 2 ? "strong" : "em";
    const wrapped = document.createElement(tag);
    wrapped.append(...this.nodes.splice(opener.at + 1));
    opener.count -= used;
    opener.shown.data = opener.character.repeat(opener.count);
    if (!opener.count) {
      this.nodes.pop();
      this.openers.pop();
    }
    this.nodes.push(wrapped);
  }

  #closeOpeners() {
    while (this.openers.length) {
      const opener = this.openers.at(-1);
      if (!opener.early) {
        this.openers.pop();
        continue;
      }
      this.#enclose(opener, Math.min(2, opener.count));
    }
  }
}

function matches(opener, closer) {
  if (opener.character !== closer.character) return false;
  if (opener.character === "~") return true;
  // CommonMark's rule of three, so that `**a*b**` is bold around a star.
  const either = opener.closes || closer.opens;
  return !(either && (opener.length + closer.length) % 3 === 0 && (opener.length % 3 || closer.length % 3));
}

function closingTicks(text, from, length) {
  const ticks = /`+/g;
  ticks.lastIndex = from;
  for (let match = ticks.exec(text); match; match = ticks.exec(text)) {
    if (match[0].length === length) return match.index;
  }
  return -1;
}

/** The index of the closing bracket of each opening one, found in one pass. */
function matchingBrackets(text) {
  const pairs = new Map();
  const open = [];
  for (let at = 0; at < text.length; at += 1) {
    const character = text[at];
    if (character === "\\") at += 1;
    else if (character === "[") open.push(at);
    else if (character === "]" && open.length) pairs.set(open.pop(), at);
  }
  return pairs;
}

/** The address in a link's parentheses, which open before `from`; "open" if the text ends before they close. */
function destination(text, from) {
  let depth = 0;
  let at = from;
  while (at < text.length && !(text[at] === ")" && depth === 0) && text[at] !== "\n") {
    if (text[at] === "(") depth += 1;
    else if (text[at] === ")") depth -= 1;
    at += 1;
  }
  if (at >= text.length) return "open";
  if (text[at] === "\n") return null;
  const inside = text.slice(from, at).trim();
  const parts = /^(?:<([^<>]*)>|(\S*))(?:\s+(?:"[^"]*"|'[^']*'|\([^)]*\)))?$/.exec(inside);
  return parts && { address: parts[1] ?? parts[2], end: at + 1 };
}

/** An address in running text, without the punctuation of the sentence around it. */
function withoutPunctuation(address) {
  let kept = address;
  for (;;) {
    if (/[.,;:!?'*_~\]}。，、；：！？）」』]$/u.test(kept)) kept = kept.slice(0, -1);
    else if (kept.endsWith(")") && kept.split(")").length > kept.split("(").length) kept = kept.slice(0, -1);
    else return kept;
  }
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function anchor(href, children) {
  const link = document.createElement("a");
  link.href = href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  link.referrerPolicy = "no-referrer";
  link.title = href;
  link.append(...children);
  return link;
}
