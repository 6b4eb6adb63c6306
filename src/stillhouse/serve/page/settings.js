/** The form for sampling parameters. */

import { make } from "./dom.js";

/** An empty field is not sent, so all defaults are the server's. */
const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: "any", hint: "0 always picks the likeliest token" },
  { name: "top_p", label: "Top p", min: 0.001, max: 1, step: "any", hint: "only the likeliest tokens that together have this probability" },
  { name: "top_k", label: "Top k", min: 0, max: 1_000_000, step: 1, hint: "only this many of the likeliest tokens; 0 for all" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: "any", hint: "no token less likely than this fraction of the likeliest" },
  { name: "max_tokens", label: "Max tokens", min: 1, step: 1, hint: "the length at which an answer is cut off" },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, hint: "the same seed gives the same answer" },
];

export class SamplingForm {
  /** @param {Element} root @param {object} values the saved values @param {(values: object) => void} onChange */
  constructor(root, values, onChange) {
    this.values = { ...values };
    this.onChange = onChange;
    this.inputs = new Map();
    for (const field of FIELDS) root.append(this.#numberField(field));
    root.append(this.#stopField());
    this.#show();
  }

  reset() {
    this.values = {};
    this.#show();
    this.onChange(this.values);
  }

  #numberField({ name, label, hint, ...limits }) {
    const input = make("input", {
      id: `sampling-${name}`, type: "number", placeholder: "default", inputMode: limits.step === 1 ? "numeric" : "decimal",
      "aria-describedby": `hint-${name}`, ...limits,
    });
    const hintElement = make("p", { className: "hint", id: `hint-${name}` }, hint);
    input.addEventListener("input", () => {
      const valid = input.checkValidity();
      input.setAttribute("aria-invalid", String(!valid));
      hintElement.textContent = valid ? hint : `${input.validationMessage} It is not used.`;
      this.#set(name, valid && input.value !== "" ? input.valueAsNumber : undefined);
    });
    this.inputs.set(name, input);
    return make("div", {}, make("label", { htmlFor: input.id }, label), input, hintElement);
  }

  #stopField() {
    const input = make("textarea", {
      id: "sampling-stop", rows: 2, placeholder: "default", spellcheck: false, "aria-describedby": "hint-stop",
    });
    input.addEventListener("input", () => {
      const stops = input.value.split("\n").filter((line) => line !== "");
      this.#set("stop", stops.length ? stops : undefined);
    });
    this.inputs.set("stop", input);
    const hint = make("p", { className: "hint", id: "hint-stop" }, "an answer ends before any of these; one per line");
    return make("div", { className: "whole" }, make("label", { htmlFor: input.id }, "Stop sequences"), input, hint);
  }

  #set(name, value) {
    if (value === undefined) delete this.values[name];
    else this.values[name] = value;
    this.onChange(this.values);
  }

  #show() {
    for (const [name, input] of this.inputs) {
      const value = this.values[name];
      input.value = Array.isArray(value) ? value.join("\n") : (value ?? "");
      input.removeAttribute("aria-invalid");
    }
    for (const { name, hint } of FIELDS) {
      this.inputs.get(name).parentElement.querySelector(".hint").textContent = hint;
    }
  }
}
