/** The page's dialogs: questions that are answered once, and panels. */

const byId = (id) => document.getElementById(id);

/** Makes every dialog close by its own buttons and by a click beside it. */
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
    dialog.addEventListener("pointerdown", (event) => {
      if (event.target === dialog && outside(dialog, event)) dialog.close();
    });
  }
}

/** Whether a dialog is open, which then has the keys. */
export function dialogOpen() {
  return document.querySelector("dialog[open]") !== null;
}

/** The key that the person types, or null. */
export function askKey(refused) {
  const dialog = byId("key");
  const field = byId("key-value");
  byId("key-title").textContent = refused ? "The server did not accept that key" : "This server wants an API key";
  field.value = "";
  return new Promise((resolve) => {
    let given = null;
    const form = dialog.querySelector("form");
    form.onsubmit = (event) => {
      event.preventDefault();
      given = field.value.trim() || null;
      dialog.close();
    };
    dialog.onclose = () => resolve(given);
    dialog.showModal();
    field.focus();
  });
}

/** Whether the person wants it. */
export function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
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

function outside(dialog, { clientX, clientY }) {
  const box = dialog.getBoundingClientRect();
  return clientX < box.left || clientX > box.right || clientY < box.top || clientY > box.bottom;
}
