/** Draws one answer: its reasoning, text, error, statistics and buttons. */

import { speedOf } from "./conversation.js";
import { copyButton, icon, iconButton, make } from "./dom.js";
import { Markdown } from "./markdown.js";

export class AnswerView {
  /**
   * @param {import("./conversation.js").Answer} answer
   * @param {{retry: () => void, showAttempt: (shown: number) => void, contentGrew: () => void}} actions
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

  /** Draws the shown attempt from its beginning. */
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
    this.el.replaceChildren(make("h2", { className: "model-name" }, attempt.model), this.thoughts, this.prose, this.foot);
    this.#write();
    if (attempt.state === "writing") this.#markWriting();
    else this.settle();
  }

  /** Adds a delta to an attempt. If that is the one shown, it is drawn in the next frame. */
  add(attempt, { content, reasoning }) {
    if (attempt !== this.attempt) return;
    this.pending.content += content;
    this.pending.reasoning += reasoning;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.#write();
      this.#markWriting();
      this.actions.contentGrew();
    });
  }

  /** Finishes the answer: no more text follows. */
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
    this.actions.contentGrew();
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
    const text = thinking ? "Thinking…" : attempt.thought === undefined ? "Reasoning" : `Thought for ${duration(attempt.thought)}`;
    if (this.summary.textContent !== text) this.summary.textContent = text;
    this.thoughts.classList.toggle("thinking", thinking);
  }

  #markWriting() {
    const { attempt } = this;
    const isEmpty = !attempt.content && !attempt.reasoning;
    this.el.classList.add("writing");
    this.el.classList.toggle("waiting", isEmpty);
    this.el.setAttribute("aria-busy", "true");
    if (isEmpty) this.foot.replaceChildren(make("p", { className: "stats" }, "Reading the prompt…"));
    else if (this.foot.firstChild) this.foot.replaceChildren();
  }

  #error(attempt) {
    const { kind, wait, at } = attempt.error;
    const message = attempt.error.message.replace(/[^.!?…]$/, "$&.");
    const kept = attempt.content && kind !== "key" ? " The text so far is kept." : "";
    const paragraph = make("p", {}, message + kept);
    const box = make("div", { className: "error", role: "alert" }, paragraph);
    if (wait) this.#countDown(paragraph, message, at + wait * 1000);
    box.append(make("button", { type: "button", className: "last-only", onclick: this.actions.retry },
      icon("retry"), "Try again"));
    return box;
  }

  #countDown(paragraph, message, until) {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    paragraph.textContent = seconds > 0
      ? `The server is busy: ${message} Try again in ${duration(seconds)}.`
      : `The server was busy: ${message} You can try again now.`;
    // Stops when the error is removed. Only checked a second later, because it is not in the page yet at first.
    if (seconds > 0) setTimeout(() => paragraph.isConnected && this.#countDown(paragraph, message, until), 1000);
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
    statisticsOf(attempt).forEach((text, index) => stats.append(index ? " · " : "", make("span", {}, text)));
    tools.append(stats);
    return tools;
  }

  #attempts() {
    const { shown, attempts } = this.answer;
    const go = (step) => () => {
      this.actions.showAttempt(shown + step);
      this.el.querySelector(".attempts button:not([disabled])")?.focus();
    };
    return make("span", { className: "attempts", role: "group", "aria-label": "Answers to this message" },
      iconButton("left", "Earlier answer", go(-1), { disabled: shown === 0 }),
      make("span", {}, `${shown + 1} of ${attempts.length}`),
      iconButton("right", "Later answer", go(1), { disabled: shown === attempts.length - 1 }));
  }
}

/** The statistics of an attempt as texts. Without the server's count of tokens, deltas are counted. */
function statisticsOf(attempt) {
  const texts = [];
  if (attempt.state === "stopped") texts.push("stopped by you");
  if (attempt.finish === "length") texts.push("cut off at max tokens");
  if (attempt.first === undefined) return texts;
  const tokens = attempt.usage?.completion_tokens ?? attempt.pieces;
  texts.push(`${attempt.usage ? "" : "about "}${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}`);
  const speed = speedOf(attempt);
  if (speed !== null) texts.push(`${speed < 10 ? speed.toFixed(1) : Math.round(speed).toLocaleString("en")} tokens/s`);
  texts.push(`first token after ${attempt.first.toFixed(2)} s`);
  if (attempt.usage?.prompt_tokens) texts.push(`prompt ${attempt.usage.prompt_tokens.toLocaleString("en")} ${attempt.usage.prompt_tokens === 1 ? "token" : "tokens"}`);
  return texts;
}

function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
