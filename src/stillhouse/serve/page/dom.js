/** Elements, made without any HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [given] `on…` listen, properties are set, anything else is an attribute
 * @param {...(Node|string|null|false)} children
 */
export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** One of the drawings that index.html defines. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button with a drawing, named for those who do not see it. */
export function iconButton(name, label, onclick, given = {}) {
  return make("button", { type: "button", className: "quiet", title: label, "aria-label": label, onclick, ...given },
    icon(name));
}

/** A button that copies what `text` returns, and says whether it could. */
export function copyButton(text, what = "code") {
  const words = make("span", {}, "Copy");
  const button = make("button", { type: "button", className: "quiet", "aria-label": `Copy ${what}` }, icon("copy"), words);
  button.addEventListener("click", async () => {
    const done = await copy(text());
    words.textContent = done ? "Copied" : "Could not copy";
    setTimeout(() => (words.textContent = "Copy"), 1600);
    say(words.textContent);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

/** Over plain http from another machine there is no clipboard but this. */
function copyBySelection(text) {
  const field = make("textarea", { value: text, readOnly: true, className: "unseen" });
  const before = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

/** Tells a screen reader, when it has finished what it is saying. */
export function say(text) {
  document.getElementById("spoken").textContent = text;
}
