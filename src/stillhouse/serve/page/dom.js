/** Creates DOM elements, always without parsing HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [properties] `on…` adds a listener, a property is set, others become attributes
 * @param {...(Node|string|null|false)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** An icon that index.html defines. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button with an icon, labelled for screen readers. */
export function iconButton(name, label, onclick, properties = {}) {
  return make("button", { type: "button", className: "quiet", title: label, "aria-label": label, onclick, ...properties },
    icon(name));
}

/** A button that copies what `text` returns, and reports whether that worked. */
export function copyButton(text, what = "code") {
  const label = make("span", {}, "Copy");
  const button = make("button", { type: "button", className: "quiet", "aria-label": `Copy ${what}` }, icon("copy"), label);
  button.addEventListener("click", async () => {
    const copied = await copy(text());
    label.textContent = copied ? "Copied" : "Could not copy";
    setTimeout(() => (label.textContent = "Copy"), 1600);
    announce(label.textContent);
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

/** Browsers offer navigator.clipboard only over HTTPS or on localhost. */
function copyBySelection(text) {
  const field = make("textarea", { value: text, readOnly: true, className: "visually-hidden" });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return copied;
}

/** Announces a text to screen readers, without interrupting them. */
export function announce(text) {
  document.getElementById("announcements").textContent = text;
}
