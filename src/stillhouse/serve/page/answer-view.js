/** One answer as it is shown: thoughts, text, what went wrong, its numbers, and what can be done with it. */

import { speedOf } from "./conversation.js";
import { copyButton, icon, iconButton, make } from "./dom.js";
import { Markdown } from "./markdown.js";

export class AnswerView {
  /**
   * @param {import("./conversation.js").Answer} answer
   * @param {{retry: () => void, choose: (shown: number) => void, moved: () => void}} actions
   */
  constructor(answer, actions) {
    this.answer = answer;
    this.actions = actions;
    this.el = make("article", { className: "answer" });
    this.frame = 0;
    this.show();
  }

  get attempt() {
    return this.answer.attempts[this.answer.shown];
  }

  /** Draws the attempt that is to be seen, from its beginning. */
  show() {
    const { attempt } = this;
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.pending = { content: attempt.content, reasoning: attempt.reasoning };
    this.summary = make("summary");
    const thoughts = make("div", { className: "prose" });
    this.thoughts = make("details", { className: "thoughts", hidden: true }, this.summary, thoughts);
    this.prose = make("div", { className: "prose" });
    this.foot = make("footer");
    this.texts = {
      content: new Markdown(this.prose, copyButton),
      reasoning: new Markdown(thoughts, copyButton),
    };
    this.el.setAttribute("aria-label", `Answer of ${attempt.model}`);
    this.el.replaceChildren(make("h2", { className: "who" }, attempt.model), this.thoughts, this.prose, this.foot);
    this.#write();
    if (attempt.state === "writing") this.#waiting();
    else this.settle();
  }

  /** More of an attempt has come; it is drawn with the next frame, if it is this one that is seen. */
  add(attempt, { content, reasoning }) {
    if (attempt !== this.attempt) return;
    this.pending.content += content;
    this.pending.reasoning += reasoning;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.#write();
      this.#waiting();
      this.actions.moved();
    });
  }

  /** Nothing more comes. */
  settle() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.#write();
    this.texts.content.finish();
    this.texts.reasoning.finish();
    const { attempt } = this;
    this.el.classList.remove("writing", "waiting");
    this.el.setAttribute("aria-busy", "false");
    this.#heading();
    this.foot.replaceChildren();
    if (attempt.error) this.foot.append(this.#error(attempt));
    if (attempt.state !== "failed" || attempt.content) this.foot.append(this.#tools(attempt));
    this.actions.moved();
  }

  #write() {
    for (const kind of ["reasoning", "content"]) {
      if (this.pending[kind]) this.texts[kind].write(this.pending[kind]);
      this.pending[kind] = "";
    }
    if (this.attempt.reasoning) this.thoughts.hidden = false;
    this.#heading();
  }

  #heading() {
    const { attempt } = this;
    const thinking = attempt.state === "writing" && !attempt.content;
    const words = thinking ? "Thinking…" : attempt.thought === undefined ? "Thoughts" : `Thought for ${duration(attempt.thought)}`;
    if (this.summary.textContent !== words) this.summary.textContent = words;
    this.thoughts.classList.toggle("thinking", thinking);
  }

  #waiting() {
    const { attempt } = this;
    const nothing = !attempt.content && !attempt.reasoning;
    this.el.classList.add("writing");
    this.el.classList.toggle("waiting", nothing);
    this.el.setAttribute("aria-busy", "true");
    if (nothing) this.foot.replaceChildren(make("p", { className: "stats" }, "Reading the prompt…"));
    else if (this.foot.firstChild) this.foot.replaceChildren();
  }

  #error(attempt) {
    const { kind, wait, at } = attempt.error;
    const message = attempt.error.message.replace(/[^.!?…]$/, "$&.");
    const kept = attempt.content && kind !== "key" ? " What had arrived is kept." : "";
    const words = make("p", {}, message + kept);
    const box = make("div", { className: "error", role: "alert" }, words);
    if (wait) this.#countDown(words, message, at + wait * 1000);
    box.append(make("button", { type: "button", className: "last-only", onclick: this.actions.retry },
      icon("retry"), "Try again"));
    return box;
  }

  #countDown(words, message, until) {
    const left = Math.ceil((until - Date.now()) / 1000);
    words.textContent = left > 0
      ? `The server is busy: ${message} It asks to wait ${duration(left)}.`
      : `The server was busy: ${message} You can try again now.`;
    // The box is not in the page yet at the first call.
    if (left > 0) setTimeout(() => words.isConnected && this.#countDown(words, message, until), 1000);
  }

  #tools(attempt) {
    const { answer, actions } = this;
    const tools = make("div", { className: "answer-tools" });
    if (attempt.content) tools.append(copyButton(() => attempt.content, "answer"));
    if (!attempt.error) {
      tools.append(make("button", { type: "button", className: "quiet last-only retry", onclick: actions.retry },
        icon("retry"), "Try again"));
    }
    if (answer.attempts.length > 1) tools.append(this.#attempts());
    const stats = make("p", { className: "stats" });
    numbersOf(attempt).forEach((text, index) => stats.append(index ? " · " : "", make("span", {}, text)));
    tools.append(stats);
    return tools;
  }

  #attempts() {
    const { shown, attempts } = this.answer;
    const go = (step) => () => {
      this.actions.choose(shown + step);
      this.el.querySelector(".attempts button:not([disabled])")?.focus();
    };
    return make("span", { className: "attempts", role: "group", "aria-label": "Answers to this message" },
      iconButton("left", "Earlier answer", go(-1), { disabled: shown === 0 }),
      make("span", {}, `${shown + 1} of ${attempts.length}`),
      iconButton("right", "Later answer", go(1), { disabled: shown === attempts.length - 1 }));
  }
}

/** What was counted and timed, in words. Tokens that the server did not count are the pieces that came. */
function numbersOf(attempt) {
  const numbers = [];
  if (attempt.state === "stopped") numbers.push("stopped by you");
  if (attempt.finish === "length") numbers.push("cut at max tokens");
  if (attempt.first === undefined) return numbers;
  const tokens = attempt.usage?.completion_tokens ?? attempt.pieces;
  numbers.push(`${attempt.usage ? "" : "about "}${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}`);
  const speed = speedOf(attempt);
  if (speed !== null) numbers.push(`${speed < 10 ? speed.toFixed(1) : Math.round(speed).toLocaleString("en")} tokens/s`);
  numbers.push(`first token after ${attempt.first.toFixed(2)} s`);
  if (attempt.usage?.prompt_tokens) numbers.push(`prompt ${attempt.usage.prompt_tokens.toLocaleString("en")} tokens`);
  return numbers;
}

function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
