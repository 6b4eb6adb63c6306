/** Draws the conversation: its turns, the empty page, the scroll position, notices and the sidebar's list. */

import { AnswerView } from "./answer-view.js";
import { findIn, titleOf } from "./conversation.js";
import { copyButton, icon, iconButton, make } from "./dom.js";

const NEAR = 48; // pixels from the end within which a reader counts as being at the end
const LISTED = 200; // conversations in the sidebar; more would slow down every answer, and search finds them
const EXAMPLES = [
  "Explain in three sentences why the sky is blue.",
  "Write a Python function that counts the vowels in a text, with two examples.",
  "A train leaves at 9:40 and arrives at 11:05. How long is the journey?",
];

export class View {
  /**
   * @param {{retry: (turn: object, column: number) => void, showAttempt: (answer: object, shown: number) => void,
   *   edit: (turn: object, prompt: string) => void, send: (prompt: string) => void}} actions
   */
  constructor(actions) {
    this.actions = actions;
    this.main = document.getElementById("main");
    this.turns = document.getElementById("turns");
    this.toEnd = document.getElementById("to-end");
    this.answers = new Map();
    this.following = true;
    this.frame = 0;
    this.main.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    this.toEnd.addEventListener("click", () => this.goToEnd());
    // Formulas were typeset: hundreds in one frame, so that their layout is measured once.
    this.turns.addEventListener("grown", () => {
      this.frame ||= requestAnimationFrame(() => {
        this.frame = 0;
        this.contentGrew();
      });
    });
    new ResizeObserver(() => this.contentGrew()).observe(this.main);
  }

  /** Shows a conversation from its beginning. */
  open(conversation) {
    this.conversation = conversation;
    this.answers.clear();
    this.turns.replaceChildren(...conversation.turns.map((turn) => this.#turn(turn)));
    this.system();
    if (!conversation.turns.length) this.turns.append(empty(this.actions.send));
    this.goToEnd();
  }

  /** Shows the system prompt, if there is one. */
  system() {
    this.turns.querySelector(".system")?.remove();
    const text = this.conversation.system.trim();
    if (!text) return;
    this.turns.prepend(make("details", { className: "system" },
      make("summary", {}, "System prompt"), make("p", { dir: "auto" }, text)));
  }

  /** Shows a turn that is new or has changed, and scrolls to the end. */
  turn(turn) {
    this.turns.querySelector(".empty")?.remove();
    const element = this.#turn(turn);
    const old = [...this.turns.querySelectorAll(".turn")].find((el) => el.turn === turn);
    if (old) old.replaceWith(element);
    else this.turns.append(element);
    this.goToEnd();
  }

  /** The view of an attempt's answer, if it is in the page. */
  answerOf(attempt) {
    return this.answers.get(attempt.id);
  }

  setBusy(busy) {
    this.turns.classList.toggle("busy", busy);
    document.getElementById("send").hidden = busy;
    document.getElementById("stop").hidden = !busy;
  }

  /** Shows where messages to these models go. Until this is called, the page promises nothing. */
  showDestinations(models, forwarded) {
    const remote = [...new Set(models)].filter((model) => forwarded.has(model));
    const destinations = remote.map((model) => `Messages to ${model} are passed on to ${forwarded.get(model)}.`).join(" ");
    document.getElementById("destinations").textContent = destinations;
    this.turns.querySelector(".promise")?.replaceChildren(promise(destinations));
  }

  goToEnd() {
    this.following = true;
    this.contentGrew();
  }

  /** Call when the content has grown: scrolls along if the reader was at the end, and not otherwise. */
  contentGrew() {
    if (this.following) this.main.scrollTop = this.main.scrollHeight;
    this.toEnd.hidden = this.following || this.#atEnd();
  }

  #onScroll() {
    this.following = this.#atEnd();
    this.toEnd.hidden = this.following;
  }

  #atEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.main;
    return scrollTop + clientHeight >= scrollHeight - NEAR;
  }

  #turn(turn) {
    const columns = turn.answers.map((answer, column) => answer && this.#answer(turn, answer, column));
    const element = make("section", { className: columns.length > 1 ? "turn beside" : "turn" },
      this.#prompt(turn), make("div", { className: "answers" }, ...columns));
    element.turn = turn;
    return element;
  }

  #answer(turn, answer, column) {
    const view = new AnswerView(answer, {
      retry: () => this.actions.retry(turn, column),
      showAttempt: (shown) => {
        this.actions.showAttempt(answer, shown);
        view.show();
        this.contentGrew();
      },
      contentGrew: () => this.contentGrew(),
    });
    for (const attempt of answer.attempts) this.answers.set(attempt.id, view);
    return view.el;
  }

  #prompt(turn) {
    const text = make("p", { className: "words", dir: "auto" }, turn.prompt);
    const box = make("div", { className: "prompt" }, make("h2", { className: "visually-hidden" }, "You"), text);
    const edit = make("button", { type: "button", className: "quiet last-only edit", onclick: () => this.#edit(turn, box) },
      icon("edit"), "Edit");
    box.append(make("div", { className: "prompt-tools" }, edit, copyButton(() => turn.prompt, "message")));
    return box;
  }

  #edit(turn, box) {
    const field = make("textarea", { value: turn.prompt, rows: Math.min(12, turn.prompt.split("\n").length + 1),
      "aria-label": "Edit your message" });
    const cancel = () => {
      form.replaceWith(box);
      box.querySelector(".edit").focus();
    };
    const form = make("form", { className: "prompt editing", onsubmit: (event) => {
      event.preventDefault();
      const prompt = field.value.trim();
      if (prompt) this.actions.edit(turn, prompt);
    } }, field, make("div", { className: "choices" },
      make("button", { type: "button", className: "quiet", onclick: cancel }, "Cancel"),
      make("button", { type: "submit", className: "main" }, "Ask again")));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (isSendKey(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    box.replaceWith(form);
    field.focus();
  }
}

/**
 * Whether a key pressed in a text field sends it. Enter also ends the composition of a character: Safari then has
 * finished composing already, and tells it only by the key code 229.
 */
export function isSendKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

/** Shows a notice above the conversation; a null text removes it. */
export function notice(name, text, ...more) {
  document.getElementById(`notice-${name}`)?.remove();
  if (text === null) return;
  const close = iconButton("close", "Dismiss", () => notice(name, null));
  const box = make("div", { className: "notice", id: `notice-${name}`, role: "alert" }, make("p", {}, text), ...more, close);
  document.getElementById("notices").append(box);
}

/** Draws the sidebar's list of the conversations that contain `words`. */
export function listConversations(conversations, words, current, { open, rename, remove }) {
  const found = conversations
    .map((conversation) => ({ conversation, excerpt: words.trim() ? findIn(conversation, words) : "" }))
    .filter(({ excerpt }) => excerpt !== null);
  document.getElementById("nothing-found").hidden = found.length > 0 || !words.trim();
  const list = document.getElementById("conversations");
  const focused = focusIn(list);
  list.replaceChildren(...found.slice(0, LISTED).map(({ conversation, excerpt }) => {
    const title = titleOf(conversation);
    const isCurrent = conversation.id === current.id;
    return make("li", { id: `conversation-${conversation.id}` },
      make("button", { type: "button", className: "title", title, ...(isCurrent && { "aria-current": "true" }),
        onclick: () => open(conversation.id) },
        make("span", { dir: "auto" }, title), excerpt && make("span", { className: "excerpt", dir: "auto" }, excerpt)),
      iconButton("edit", `Rename “${title}”`, () => rename(conversation.id)),
      iconButton("trash", `Delete “${title}”`, () => remove(conversation.id)));
  }));
  if (found.length > LISTED) {
    const more = (found.length - LISTED).toLocaleString("en");
    list.append(make("li", { className: "more" }, `${more} more: search for their words.`));
  }
  if (focused) document.getElementById(focused.id)?.children[focused.index]?.focus();
}

/** The item of the list that has the keyboard's focus, and which of its buttons; null if none has it. */
function focusIn(list) {
  const item = document.activeElement?.closest("li");
  if (!item || item.parentElement !== list) return null;
  return { id: item.id, index: [...item.children].findIndex((el) => el.contains(document.activeElement)) };
}

/** What the empty page promises about the user's data. */
function promise(destinations) {
  if (destinations) {
    return `${destinations} This page cannot tell what that server does with them. Conversations are kept only in this browser.`;
  }
  const isLocal = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  const privacy = isLocal
    ? "It runs here, and nothing leaves this machine"
    : `Your messages go to ${location.hostname}, which serves this page, and nowhere else`;
  return `This is a chat with your own model. ${privacy}: no account, no telemetry, and conversations are kept only in this `
    + "browser.";
}

function empty(send) {
  return make("div", { className: "empty" },
    make("img", { src: "/page/icon.svg", alt: "", width: 56, height: 56 }),
    make("h2", {}, "Chat with your models"),
    make("p", { className: "promise" }),
    make("ul", { "aria-label": "Examples" }, ...EXAMPLES.map((example) => make("li", {},
      make("button", { type: "button", onclick: () => send(example) }, example)))));
}
