/**
 * Renders Markdown while it streams: each line is parsed once, into elements that then stay.
 *
 * The unfinished last line is drawn as a draft, which the next delta replaces, so that nothing flickers. Long
 * paragraphs and lines are settled from their beginning, so that the cost of an answer is linear in its length.
 *
 * Follows CommonMark and GitHub's tables where models do, and is lenient where they are: two spaces nest a list,
 * a fence in a list need not be indented, and the end of a line is a line break. Not supported: HTML, indented
 * code, underlined headings, reference links.
 */

import { directionOf } from "./direction.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";

const DEEPEST = 12; // nesting of quotes and list items; deeper marks are text
const LONG_LINE = 1000; // a longer line is parsed before it ends
const LONG_ROW = 4000; // a longer line is not a table row
const LONG_TEXT = 3000; // of a longer paragraph, all but the end is settled
const OPEN_TEXT = 1000; // the end of it that stays open
const CODE_PART = 2000; // characters of code laid out as one block

const FENCE = /^(\s*)(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+|$)(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])( +|$)(.*)$/;
const FORMULA = /(?:^|\n) *(\$\$|\\\[)/;
const DELIMITERS = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
/** A beginning of a line that could still become different blocks: it waits for the next character. */
const UNDECIDED = /^[\s>]*(?:[-+*_=~`#|:\s]*|`{3,}[^`]*|\|.*|\d{1,9}[.)]?\s*|[-*+] +\[[ xX]?\]?)$/;

export class Markdown {
  /** @param {Element} root the parent of the output @param {(code: string) => Node} [copyButton] for code blocks */
  constructor(root, copyButton) {
    this.copyButton = copyButton;
    this.stack = [{ kind: "root", el: root, list: null }];
    this.leaf = null;
    this.rest = "";
    this.midLine = false;
    this.draft = null;
  }

  /** Appends text. */
  write(text) {
    this.#removeDraft();
    const lines = text.replaceAll("\r", "").split("\n");
    lines[0] = this.rest + lines[0];
    this.rest = lines.pop();
    for (const line of lines) {
      this.#read(line);
      this.midLine = false;
    }
    if (this.midLine || this.rest.length > (/^\s*\|/.test(this.rest) ? LONG_ROW : LONG_LINE)) {
      this.#read(this.rest);
      this.midLine = true;
      this.rest = "";
    }
    this.#drawDraft();
  }

  /** Finishes: no more text follows. */
  finish() {
    this.#removeDraft();
    if (this.rest) this.#read(this.rest);
    this.rest = "";
    this.#closeTo(1);
  }

  #read(text) {
    if (this.midLine) this.#continueLine(text);
    else this.#parseLine(text);
    this.#settle();
  }

  /** Draws the unfinished line, until the next delta. */
  #drawDraft() {
    if (this.rest && !this.#isUndecided()) {
      this.draft = {
        nodes: [],
        stack: [...this.stack],
        lists: this.stack.map((container) => container.list),
        leaf: this.leaf,
        text: this.leaf?.text,
        length: this.leaf?.part?.length,
        part: this.leaf?.part,
      };
      this.#parseLine(this.rest);
    }
    if (this.leaf) this.#render(this.leaf, true);
  }

  #isUndecided() {
    if (this.leaf?.kind === "code") return /^[\s>]*[`~]+\s*$/.test(this.rest);
    if (this.leaf?.kind === "table" && /^\s*\|.*[^\s|:-]/.test(this.rest)) return false;
    return UNDECIDED.test(this.rest);
  }

  #removeDraft() {
    const { draft } = this;
    if (!draft) return;
    this.draft = null;
    for (const node of draft.nodes) node.remove();
    this.stack = draft.stack;
    draft.lists.forEach((list, index) => (this.stack[index].list = list));
    this.leaf = draft.leaf;
    if (!this.leaf) return;
    this.leaf.text = draft.text;
    this.leaf.part = draft.part;
    draft.part?.deleteData(draft.length, draft.part.length - draft.length);
  }

  /** Parses one line, or the beginning of a long one. */
  #parseLine(line) {
    const inCode = this.leaf?.kind === "code";
    const [matched, rest] = this.#matchContainers(inCode ? line : line.replaceAll("\t", "    "));
    const whole = matched === this.stack.length;
    if (inCode) {
      if (whole) return this.#codeLine(rest);
      this.#close();
    }
    if (!rest.trim()) return this.#blank(matched);
    const { leaf } = this;
    const inFormula = leaf?.kind === "text" && endsInFormula(leaf.text) && !FENCE.test(rest);
    if (inFormula || (leaf?.kind === "text" && !startsBlock(rest, whole))) {
      if (!inFormula && whole && this.#becomesTable(rest)) return undefined;
      leaf.text += `\n${rest.trimStart()}`;
      return undefined;
    }
    const row = rest.includes("|") && rest.length <= LONG_ROW;
    if (leaf?.kind === "table" && whole && row && !startsBlock(rest, whole)) {
      return this.#row(leaf, rest);
    }
    this.#closeTo(matched);
    return this.#open(rest);
  }

  /** Appends to a long line whose beginning is already parsed. */
  #continueLine(text) {
    if (!text) return;
    if (this.leaf?.kind === "code") this.#code(this.leaf, text);
    else if (this.leaf?.text !== undefined) this.leaf.text += text;
    else {
      this.#close();
      this.#paragraph(text);
    }
  }

  /** Returns how many open containers the line continues, and the rest of the line. */
  #matchContainers(line) {
    const blank = !line.trim();
    const inCode = this.leaf?.kind === "code";
    let rest = line;
    let matched = 1;
    for (; matched < this.stack.length; matched += 1) {
      const container = this.stack[matched];
      if (container.kind === "quote") {
        const mark = QUOTE.exec(rest);
        if (!mark) break;
        rest = rest.slice(mark[0].length);
      } else {
        const indent = rest.length - rest.trimStart().length;
        if (!blank && !inCode && indent < container.need) break;
        rest = rest.slice(Math.min(indent, container.offset));
      }
    }
    return [matched, rest];
  }

  #blank(matched) {
    this.#close();
    const quote = this.stack.findIndex((container, index) => index >= matched && container.kind === "quote");
    if (quote > 0) this.#closeTo(quote);
  }

  /** Opens what the line starts: containers, then one block. */
  #open(line) {
    let rest = line;
    while (this.stack.length < DEEPEST && !RULE.test(rest)) {
      const quote = QUOTE.exec(rest);
      const item = quote ? null : ITEM.exec(rest);
      if (quote) {
        const el = this.#add("blockquote");
        this.#push({ kind: "quote", el, group: { el } });
        rest = rest.slice(quote[0].length);
      } else if (item) {
        this.#item(item);
        rest = item[5];
      } else break;
    }
    const fence = FENCE.exec(rest);
    const heading = HEADING.exec(rest);
    if (fence) this.#openCode(fence);
    else if (heading) this.#heading(heading);
    else if (RULE.test(rest)) this.#add("hr");
    else if (rest.trim()) this.#paragraph(rest.trimStart());
  }

  #item([, indent, bullet, number, gap]) {
    const parent = this.stack.at(-1);
    const ordered = bullet === undefined;
    if (parent.list?.ordered !== ordered) {
      const el = this.#add(ordered ? "ol" : "ul");
      if (ordered && Number(number) !== 1) el.start = Number(number);
      parent.list = { el, ordered };
    }
    const mark = ordered ? number.length + 1 : 1;
    const offset = indent.length + mark + Math.min(Math.max(gap.length, 1), 4);
    this.#push({ kind: "item", el: this.#add("li", parent.list.el), group: parent.list, need: indent.length + 2, offset });
  }

  #push(container) {
    this.stack.push({ list: null, ...container });
  }

  #add(tag, parent) {
    const el = document.createElement(tag);
    const top = this.stack.at(-1);
    if (!parent) top.list = null;
    (parent ?? top.el).append(el);
    this.draft?.nodes.push(el);
    return el;
  }

  #paragraph(text) {
    const top = this.stack.at(-1);
    const task = top.kind === "item" && !top.el.firstChild && /^\[([ xX])\] +/.exec(text);
    const shown = task ? `${task[1] === " " ? "☐" : "☑"} ${text.slice(task[0].length)}` : text;
    this.leaf = { kind: "text", el: this.#add("p"), text: shown, settled: null };
  }

  #heading([, marks, text]) {
    // The page itself uses the first and second level.
    const el = this.#add(`h${Math.min(marks.length + 2, 6)}`);
    el.className = `level-${marks.length}`;
    this.leaf = { kind: "heading", el, text: text.replace(/\s+#+\s*$/, ""), settled: null };
  }

  #openCode([, indent, fence, info]) {
    const figure = this.#add("figure");
    figure.className = "code";
    const bar = figure.appendChild(document.createElement("figcaption"));
    const language = info.trim().split(/\s+/)[0].slice(0, 30);
    bar.appendChild(document.createElement("span")).textContent = language || "text";
    const pre = figure.appendChild(document.createElement("pre"));
    pre.tabIndex = 0;
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
    const code = pre.appendChild(document.createElement("code"));
    if (this.copyButton) bar.append(this.copyButton(() => code.textContent));
    this.leaf = { kind: "code", el: code, language: language.toLowerCase(), fence, indent: indent.length, part: null, empty: true };
  }

  #codeLine(line) {
    const { leaf } = this;
    const close = /^\s*(`{3,}|~{3,})\s*$/.exec(line);
    if (close && close[1][0] === leaf.fence[0] && close[1].length >= leaf.fence.length) {
      if (!this.draft) this.#close();
      return;
    }
    const indent = Math.min(leaf.indent, line.length - line.trimStart().length);
    this.#code(leaf, (leaf.part ? "\n" : "") + line.slice(indent));
  }

  #code(leaf, text) {
    let added = text;
    if (!leaf.part || (leaf.part.length > CODE_PART && !this.draft && added.startsWith("\n"))) {
      // The line break stays in the previous part, so that the parts joined are the code.
      if (leaf.part) {
        leaf.part.appendData("\n");
        added = added.slice(1);
      }
      const part = document.createElement("span");
      part.append((leaf.part = document.createTextNode("")));
      leaf.el.append(part);
      this.draft?.nodes.push(part);
    }
    leaf.part.appendData(added);
  }

  #becomesTable(rest) {
    const { leaf } = this;
    if (this.draft || !DELIMITERS.test(rest) || !/[|:]/.test(rest)) return false;
    const lines = leaf.text.split("\n");
    const head = cells(lines.pop());
    const marks = cells(rest);
    if (head.length !== marks.length || (leaf.settled && !lines.length)) return false;
    leaf.text = lines.join("\n");
    this.#close();
    if (!lines.length) leaf.el.remove();
    const scroller = this.#add("div");
    scroller.className = "table";
    scroller.tabIndex = 0;
    scroller.setAttribute("role", "region");
    scroller.setAttribute("aria-label", "Table");
    const table = scroller.appendChild(document.createElement("table"));
    if (directionOf(head.join(" ")) === "rtl") scroller.dir = "rtl";
    const align = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : ""));
    this.leaf = { kind: "table", align, el: table.createTHead() };
    this.#row(this.leaf, null, head);
    this.leaf.el = table.createTBody();
    return true;
  }

  #row(leaf, line, texts = cells(line)) {
    const row = document.createElement("tr");
    leaf.align.forEach((align, column) => {
      const cell = document.createElement(line === null ? "th" : "td");
      if (line === null) cell.scope = "col";
      if (align) cell.className = align;
      cell.append(...inline(texts[column] ?? "", { breaks: true, open: Boolean(this.draft) }).nodes);
      row.append(cell);
    });
    leaf.el.append(row);
    this.draft?.nodes.push(row);
  }

  #closeTo(count) {
    this.#close();
    this.stack.length = count;
  }

  #close() {
    if (this.leaf) this.#render(this.leaf, false);
    if (this.leaf?.kind === "code" && !this.draft) highlight(this.leaf.el, this.leaf.language);
    this.leaf = null;
  }

  /** Draws the part of a text that is not settled yet. */
  #render(leaf, open) {
    if (leaf.text === undefined) return;
    // The first row of a table looks like a paragraph until the second one arrives.
    const waits = open && !leaf.settled && /^\|[^\n]*$/.test(leaf.text) && leaf.text.length < LONG_LINE;
    removeUnsettled(leaf);
    leaf.el.hidden = waits;
    if (!waits) this.#direct(leaf.text);
    if (!waits) leaf.el.append(...inline(leaf.text, { open }).nodes);
  }

  /** Turns the lists and quotations around a text that is written from right to left; their first text decides. */
  #direct(text) {
    const direction = directionOf(text);
    if (!direction) return;
    for (const { group } of this.stack) {
      if (!group || group.direction) continue;
      group.direction = direction;
      if (direction === "rtl") group.el.dir = "rtl";
    }
  }

  /** Settles the beginning of a long text, which is then not parsed again. */
  #settle() {
    const { leaf } = this;
    while (leaf?.text?.length > LONG_TEXT) {
      const cut = cutAt(leaf.text, leaf.text.length > 2 * LONG_TEXT ? LONG_TEXT : leaf.text.length - OPEN_TEXT);
      removeUnsettled(leaf);
      leaf.el.append(...inline(leaf.text.slice(0, cut)).nodes);
      leaf.settled = leaf.el.lastChild;
      leaf.text = leaf.text.slice(cut);
    }
  }
}

/** Removes the part of a text that is not settled. */
function removeUnsettled(leaf) {
  while (leaf.el.lastChild !== leaf.settled) leaf.el.lastChild.remove();
}

/** Whether a line ends the paragraph before it. A number does so only if it looks like that of a list item. */
function startsBlock(rest, inParagraph) {
  const item = ITEM.exec(rest);
  if (item && !RULE.test(rest)) return !inParagraph || (item[5] !== "" && Number(item[3] ?? 1) < 100);
  return QUOTE.test(rest) || HEADING.test(rest) || RULE.test(rest) || FENCE.test(rest);
}

/** Whether a text ends inside a formula that began a line: a line with `+ b` or `> c` is then part of it. */
function endsInFormula(text) {
  let rest = text;
  for (let begin = FORMULA.exec(rest); begin; begin = FORMULA.exec(rest)) {
    const end = rest.indexOf(begin[1] === "$$" ? "$$" : "\\]", begin.index + begin[0].length);
    if (end < 0) return true;
    rest = rest.slice(end + 2);
  }
  return false;
}

/** An index before `most` where the text can be cut outside of any markup; if there is none, any index. */
function cutAt(text, most) {
  let at = most;
  for (let tries = 0; tries < 8; tries += 1) {
    const end = Math.max(text.lastIndexOf(" ", at - 1), text.lastIndexOf("\n", at - 1));
    if (end < most / 2) break;
    if (inline(text.slice(0, end + 1)).settled) return end + 1;
    at = end - 60;
  }
  const space = text.lastIndexOf(" ", most);
  if (space > most / 2) return space + 1;
  return /[\ud800-\udbff]/.test(text[most - 1]) ? most - 1 : most; // never inside a surrogate pair
}

/** The cells of a table row. */
function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim());
}
