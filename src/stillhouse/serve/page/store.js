/**
 * Conversations and settings, kept in this browser and nowhere else.
 *
 * Everything is in memory first: where the browser's storage is full or forbidden, the page goes on and says so.
 */

const CHAT = "stillhouse.chat.";
const SETTINGS = "stillhouse.settings";

export class Store {
  /**
   * @param {(problem: string|null) => void} onProblem what is wrong with the storage, or null when it works again
   * @param {(id: string|null) => void} onChange another tab changed this conversation, or all
   */
  constructor(onProblem, onChange) {
    this.onProblem = onProblem;
    this.problem = null;
    this.chats = new Map();
    this.area = area();
    if (!this.area) this.#say("This browser does not let the page store anything: conversations last until you close it.");
    for (const name of this.#names()) this.#load(name.slice(CHAT.length));
    addEventListener("storage", (event) => {
      if (event.key !== null && !event.key.startsWith(CHAT)) return;
      if (event.key === null) this.chats.clear();
      else this.#load(event.key.slice(CHAT.length));
      onChange(event.key?.slice(CHAT.length) ?? null);
    });
  }

  /** All conversations, the latest first. */
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
    this.area?.removeItem(CHAT + id);
    if (this.area) this.#say(null);
  }

  removeAll() {
    for (const id of [...this.chats.keys()]) this.remove(id);
    for (const name of this.#names()) this.area.removeItem(name);
  }

  /** What was set last, or an empty object. */
  settings() {
    return parsed(this.area?.getItem(SETTINGS)) ?? {};
  }

  saveSettings(settings) {
    this.#write(SETTINGS, settings);
  }

  #names() {
    const { area: kept } = this;
    return kept ? Object.keys(kept).filter((name) => name.startsWith(CHAT)) : [];
  }

  #load(id) {
    const conversation = parsed(this.area?.getItem(CHAT + id));
    if (conversation?.version === 1 && Array.isArray(conversation.turns)) this.chats.set(id, conversation);
    else this.chats.delete(id);
  }

  #write(name, value) {
    if (!this.area) return;
    try {
      this.area.setItem(name, JSON.stringify(value));
      this.#say(null);
    } catch {
      this.#say("This browser's storage is full: what you add now lasts until you close the page. "
        + "Export what you want to keep, then delete some conversations.");
    }
  }

  #say(problem) {
    if (problem === this.problem) return;
    this.problem = problem;
    this.onProblem(problem);
  }
}

function area() {
  try {
    const found = window.localStorage;
    found.getItem(SETTINGS);
    return found;
  } catch {
    return null;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}
