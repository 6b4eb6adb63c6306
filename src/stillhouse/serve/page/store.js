/**
 * Keeps conversations and settings in this browser's localStorage, and nowhere else.
 *
 * Everything is in memory first: if the browser's storage is full or disabled, the page still works and shows a
 * notice.
 */

const CHAT = "stillhouse.chat.";
const SETTINGS = "stillhouse.settings";
const LAST = "stillhouse.last";

export class Store {
  /**
   * @param {(problem: string|null) => void} onProblem gets what is wrong with the storage, or null when it works
   * @param {(id: string|null) => void} onChange gets the conversation that another tab changed, or null for all
   */
  constructor(onProblem, onChange) {
    this.onProblem = onProblem;
    this.problem = null;
    this.chats = new Map();
    this.storage = openStorage();
    if (!this.storage) this.#report("This browser does not let the page store anything: conversations last until you close it.");
    for (const name of this.#names()) this.#load(name.slice(CHAT.length));
    addEventListener("storage", (event) => {
      if (event.key !== null && !event.key.startsWith(CHAT)) return;
      if (event.key === null) this.chats.clear();
      else this.#load(event.key.slice(CHAT.length));
      onChange(event.key?.slice(CHAT.length) ?? null);
    });
  }

  /** All conversations, most recent first. */
  conversations() {
    return [...this.chats.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.chats.get(id);
  }

  save(conversation) {
    this.chats.set(conversation.id, conversation);
    this.#write(CHAT + conversation.id, conversation);
  }

  remove(id) {
    this.chats.delete(id);
    this.storage?.removeItem(CHAT + id);
    if (this.storage) this.#report(null);
  }

  removeAll() {
    for (const id of [...this.chats.keys()]) this.remove(id);
    for (const name of this.#names()) this.storage.removeItem(name);
  }

  /** The saved settings, or an empty object. */
  settings() {
    return parseJson(this.storage?.getItem(SETTINGS)) ?? {};
  }

  saveSettings(settings) {
    this.#write(SETTINGS, settings);
  }

  /** The conversation that was open last, if it is still here. */
  last() {
    return this.chats.get(parseJson(this.storage?.getItem(LAST)));
  }

  /** Remembers which conversation is open; null for a new one. */
  saveLast(id) {
    this.#write(LAST, id);
  }

  #names() {
    const { storage } = this;
    return storage ? Object.keys(storage).filter((name) => name.startsWith(CHAT)) : [];
  }

  #load(id) {
    const conversation = parseJson(this.storage?.getItem(CHAT + id));
    if (conversation?.version === 1 && Array.isArray(conversation.turns)) this.chats.set(id, conversation);
    else this.chats.delete(id);
  }

  #write(name, value) {
    if (!this.storage) return;
    try {
      this.storage.setItem(name, JSON.stringify(value));
      this.#report(null);
    } catch {
      this.#report("This browser's storage is full: what you add now lasts until you close the page. "
        + "Export what you want to keep, then delete some conversations.");
    }
  }

  #report(problem) {
    if (problem === this.problem) return;
    this.problem = problem;
    this.onProblem(problem);
  }
}

function openStorage() {
  try {
    const storage = window.localStorage; // throws where the user disabled it
    storage.getItem(SETTINGS);
    return storage;
  } catch {
    return null;
  }
}

function parseJson(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}
