/** Conversations as a file, and back. */

import { uniqueId } from "./conversation.js";
import { make } from "./dom.js";

const FORMAT = "stillhouse conversations";
const LARGEST = 50 * 2 ** 20; // bytes of a file that is read

/** Lets the user save all conversations. */
export function exportConversations(conversations) {
  const all = { format: FORMAT, version: 1, exported: new Date().toISOString(), conversations };
  const address = URL.createObjectURL(new Blob([JSON.stringify(all, null, 2)], { type: "application/json" }));
  make("a", { href: address, download: `stillhouse-conversations-${all.exported.slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/**
 * The conversations of an exported file that are not here yet.
 *
 * One that is here with other content (it went on after the export) comes in beside it, as a copy.
 *
 * @param {File} file @param {(id: string) => object|undefined} get the conversation that is here
 * @returns {Promise<object[]>}
 * @throws {Error} with a message for the user, if the file is no export
 */
export async function readConversations(file, get) {
  if (file.size > LARGEST) throw new Error(`${file.name} is larger than ${LARGEST / 2 ** 20} MB.`);
  let all;
  try {
    all = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON.`);
  }
  if (all?.format !== FORMAT || all.version !== 1 || !Array.isArray(all.conversations)) {
    throw new Error(`${file.name} is not a file that this page exported.`);
  }
  const read = all.conversations.map(cleaned).filter(Boolean);
  if (read.length < all.conversations.length) throw new Error(`${file.name} is damaged: a conversation has another form.`);
  if (new Set(read.map(({ id }) => id)).size < read.length) {
    throw new Error(`${file.name} is damaged: two conversations are the same one.`);
  }
  return read
    .filter((conversation) => JSON.stringify(get(conversation.id)) !== JSON.stringify(conversation))
    .map((conversation) => (get(conversation.id) ? { ...conversation, id: uniqueId() } : conversation));
}

const isText = (value) => typeof value === "string";
const isOptional = (isValid) => (value) => value === undefined || isValid(value);
const USAGE = { prompt_tokens: isOptional(Number.isFinite), completion_tokens: Number.isFinite };
const ERROR = { kind: isText, message: isText, wait: isOptional(Number.isFinite), at: isOptional(Number.isFinite) };
const ATTEMPT = {
  id: isText, model: isText, content: isText, reasoning: isText, pieces: Number.isFinite,
  state: (state) => ["writing", "done", "stopped", "failed"].includes(state),
  finish: isOptional(isText), error: isOptional((error) => has(error, ERROR)), usage: isOptional((usage) => has(usage, USAGE)),
  thought: isOptional(Number.isFinite), first: isOptional(Number.isFinite), seconds: isOptional(Number.isFinite),
};

/** Whether a value is an object whose fields have this form. */
function has(value, form) {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    && Object.entries(form).every(([name, isValid]) => isValid(Object.hasOwn(value, name) ? value[name] : undefined));
}

/** A conversation, if it has the form of one; null otherwise. Fields keep their order. */
function cleaned(raw) {
  const isAnswer = (answer) => answer === null || (Array.isArray(answer?.attempts) && Number.isInteger(answer.shown)
    && answer.attempts.every((attempt) => has(attempt, ATTEMPT)) && answer.attempts[answer.shown] !== undefined);
  const isTurn = (turn) => isText(turn?.prompt) && Array.isArray(turn.answers) && turn.answers.length <= 2
    && turn.answers.every(isAnswer);
  const good = raw?.version === 1 && isText(raw.id) && /^[0-9a-f]{1,64}$/.test(raw.id) && Number.isFinite(raw.created)
    && Number.isFinite(raw.updated) && isText(raw.system) && Array.isArray(raw.models) && raw.models.every(isText)
    && (raw.title === undefined || isText(raw.title)) && Array.isArray(raw.turns) && raw.turns.every(isTurn);
  return good ? raw : null;
}
