/** The conversation as it is shown: turns, the empty page, where the reader is, notices, the list at the side. */

import { AnswerView } from "./answer-view.js";
import { titleOf } from "./conversation.js";
import { copyButton, icon, iconButton, make } from "./dom.js";

const NEAR = 48; // pixels from the end at which a reader counts as being there
const EXAMPLES = [
  "Explain in three sentences why the sky is blue.",
  "Write a Python function that counts the vowels in a text, with two examples.",
  "A train leaves at 9:40 and arrives at 11:05. How long is the journey?",
];

export class View {
  /**
   * @param {{retry: (turn: object, column: number) => void, choose: (answer: object, shown: number) => void,
   *   edit: (turn: object, prompt: string) => void, send: (prompt: string) => void}} actions
   */
  constructor(actions) {
    this.actions = actions;
    this.main = document.getElementById("main");
    this.turns = document.getElementById("turns");
    this.toEnd = document.getElementById("to-end");
    this.answers = new Map();
    this.following = true;
    this.main.addEventListener("scroll", () => this.#look(), { passive: true });
    this.toEnd.addEventListener("click", () => this.goToEnd());
    new ResizeObserver(() => this.moved()).observe(this.main);
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

  /** Shows the system prompt, or that there is none. */
  system() {
    this.turns.querySelector(".system")?.remove();
    const text = this.conversation.system.trim();
    if (!text) return;
    this.turns.prepend(make("details", { className: "system" },
      make("summary", {}, "System prompt"), make("p", { dir: "auto" }, text)));
  }

  /** Shows a turn that is new, or has changed, at the end. */
  turn(turn) {
    this.turns.querySelector(".empty")?.remove();
    const made = this.#turn(turn);
    const old = [...this.turns.querySelectorAll(".turn")].find((el) => el.turn === turn);
    if (old) old.replaceWith(made);
    else this.turns.append(made);
    this.goToEnd();
  }

  /** The view of an attempt's answer, if it is in the page. */
  answerOf(attempt) {
    return this.answers.get(attempt.id);
  }

  busy(busy) {
    this.turns.classList.toggle("busy", busy);
    document.getElementById("send").hidden = busy;
    document.getElementById("stop").hidden = !busy;
  }

  /** Says where the words for these models go; before it is known, nothing is promised. */
  goesTo(models, forwarded) {
    const away = [...new Set(models)].filter((model) => forwarded.has(model));
    const where = away.map((model) => `What you write to ${model} goes on to ${forwarded.get(model)}.`).join(" ");
    document.getElementById("goes-to").textContent = where;
    this.turns.querySelector(".promise")?.replaceChildren(promise(where));
  }

  goToEnd() {
    this.following = true;
    this.moved();
  }

  /** The page has grown: a reader who was at its end stays there, any other is left alone. */
  moved() {
    if (this.following) this.main.scrollTop = this.main.scrollHeight;
    this.toEnd.hidden = this.following || this.#atEnd();
  }

  #look() {
    this.following = this.#atEnd();
    this.toEnd.hidden = this.following;
  }

  #atEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.main;
    return scrollTop + clientHeight >= scrollHeight - NEAR;
  }

  #turn(turn) {
    const columns = turn.answers.map((answer, column) => answer && this.#answer(turn, answer, column));
    const beside = columns.length > 1;
    const made = make("section", { className: beside ? "turn beside" : "turn" },
      this.#prompt(turn), make("div", { className: "answers" }, ...columns));
    made.turn = turn;
    return made;
  }

  #answer(turn, answer, column) {
    const view = new AnswerView(answer, {
      retry: () => this.actions.retry(turn, column),
      choose: (shown) => {
        this.actions.choose(answer, shown);
        view.show();
        this.moved();
      },
      moved: () => this.moved(),
    });
    for (const attempt of answer.attempts) this.answers.set(attempt.id, view);
    return view.el;
  }

  #prompt(turn) {
    const text = make("p", { className: "words", dir: "auto" }, turn.prompt);
    const box = make("div", { className: "prompt" }, make("h2", { className: "unseen" }, "You"), text);
    const edit = make("button", { type: "button", className: "quiet last-only edit", onclick: () => this.#edit(turn, box) },
      icon("edit"), "Edit");
    box.append(make("div", { className: "prompt-tools" }, edit, copyButton(() => turn.prompt, "message")));
    return box;
  }

  #edit(turn, box) {
    const field = make("textarea", { value: turn.prompt, rows: Math.min(12, turn.prompt.split("\n").length + 1),
      "aria-label": "Edit your message" });
    const leave = () => {
      form.replaceWith(box);
      box.querySelector(".edit").focus();
    };
    const form = make("form", { className: "prompt editing", onsubmit: (event) => {
      event.preventDefault();
      const prompt = field.value.trim();
      if (prompt) this.actions.edit(turn, prompt);
    } }, field, make("div", { className: "choices" },
      make("button", { type: "button", className: "quiet", onclick: leave }, "Cancel"),
      make("button", { type: "submit", className: "main" }, "Ask again")));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      } else if (sends(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    box.replaceWith(form);
    field.focus();
  }
}

/** Whether a key pressed in a field means to send what is in it. */
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/** Shows, or with null takes away, a notice above the conversation. */
export function notice(name, text, ...more) {
  document.getElementById(`notice-${name}`)?.remove();
  if (text === null) return;
  const close = iconButton("close", "Dismiss", () => notice(name, null));
  const box = make("div", { className: "notice", id: `notice-${name}`, role: "alert" }, make("p", {}, text), ...more, close);
  document.getElementById("notices").append(box);
}

/** The list of conversations at the side. */
export function listConversations(conversations, current, { open, remove }) {
  const list = document.getElementById("conversations");
  list.replaceChildren(...conversations.map((conversation) => {
    const title = titleOf(conversation);
    const here = conversation.id === current.id;
    return make("li", {},
      make("button", { type: "button", className: "title", title, dir: "auto", ...(here && { "aria-current": "true" }),
        onclick: () => open(conversation.id) }, title),
      iconButton("trash", `Delete “${title}”`, () => remove(conversation.id)));
  }));
}

function promise(where) {
  if (where) {
    return `${where} What happens to it there is not for this page to say. Conversations are kept only in this browser.`;
  }
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  const kept = here
    ? "It runs here, and nothing leaves this machine"
    : `What you write goes to ${location.hostname}, which serves this page, and nowhere else`;
  return `This is a chat with a model of your own. ${kept}: no account, no telemetry, and conversations are kept only in `
    + "this browser.";
}

function empty(send) {
  return make("div", { className: "empty" },
    make("img", { src: "/page/icon.svg", alt: "", width: 56, height: 56 }),
    make("h2", {}, "Ask what you have distilled"),
    make("p", { className: "promise" }),
    make("ul", { "aria-label": "Examples" }, ...EXAMPLES.map((example) => make("li", {},
      make("button", { type: "button", onclick: () => send(example) }, example)))));
}
