/** The page's dialogs and panels. */

const byId = (id) => document.getElementById(id);

/** Makes every dialog close by its own buttons and by a click outside. */
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
    dialog.addEventListener("pointerdown", (event) => {
      if (event.target === dialog && isOutside(dialog, event)) dialog.close();
    });
  }
}

/** Whether a dialog is open. It then handles the keyboard. */
export function isDialogOpen() {
  return document.querySelector("dialog[open]") !== null;
}

/** Asks for the API key; null if the user cancels. */
export function askForKey(wasRefused) {
  const dialog = byId("key");
  const field = byId("key-value");
  byId("key-title").textContent = wasRefused ? "The server did not accept that key" : "This server requires an API key";
  field.value = "";
  return new Promise((resolve) => {
    let key = null;
    const form = dialog.querySelector("form");
    form.onsubmit = (event) => {
      event.preventDefault();
      key = field.value.trim() || null;
      dialog.close();
    };
    dialog.onclose = () => resolve(key);
    dialog.showModal();
    field.focus();
  });
}

/** Asks for confirmation; resolves to whether the user agreed. */
export function askToConfirm(title, text, buttonLabel) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = buttonLabel;
  return new Promise((resolve) => {
    let agreed = false;
    byId("confirm-yes").onclick = () => {
      agreed = true;
      dialog.close();
    };
    dialog.onclose = () => resolve(agreed);
    dialog.showModal();
  });
}

/** Asks for a conversation's name; null if the user cancels. */
export function askForName(name) {
  const dialog = byId("rename");
  const field = byId("rename-value");
  field.value = name;
  return new Promise((resolve) => {
    let chosen = null;
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      chosen = field.value.trim();
      dialog.close();
    };
    dialog.onclose = () => resolve(chosen);
    dialog.showModal();
    field.select();
  });
}

function isOutside(dialog, { clientX, clientY }) {
  const box = dialog.getBoundingClientRect();
  return clientX < box.left || clientX > box.right || clientY < box.top || clientY > box.bottom;
}
