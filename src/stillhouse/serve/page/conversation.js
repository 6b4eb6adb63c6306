/**
 * The data of a conversation: turns, each with a prompt and one answer for each column.
 *
 * An answer keeps all its attempts. The model's history contains the attempt that is shown.
 *
 * These objects are stored and exported as JSON: renaming a field would lose the users' conversations.
 *
 * @typedef {{id: string, model: string, content: string, reasoning: string, state: "writing"|"done"|"stopped"|"failed",
 *   finish?: string, error?: {kind: string, message: string}, thought?: number, first?: number, seconds?: number,
 *   pieces: number, usage?: {prompt_tokens: number, completion_tokens: number, total_tokens: number}}} Attempt
 * @typedef {{shown: number, attempts: Attempt[]}} Answer
 * @typedef {{prompt: string, answers: (Answer|null)[]}} Turn
 * @typedef {{version: 1, id: string, created: number, updated: number, system: string, models: string[],
 *   beside: boolean, turns: Turn[], title?: string}} Conversation
 */

/** @returns {Conversation} */
export function newConversation({ system = "", models, beside = false }) {
  const now = Date.now();
  return { version: 1, id: uniqueId(), created: now, updated: now, system, models: [...models], beside, turns: [] };
}

/** @returns {Attempt} */
export function newAttempt(model) {
  return { id: uniqueId(), model, content: "", reasoning: "", state: "writing", pieces: 0 };
}

/** The attempt that a column shows in a turn. A column that was added later uses the first column's. */
export function shownAttempt(turn, column) {
  const answer = turn.answers[column] ?? turn.answers[0];
  return answer?.attempts[answer.shown];
}

/** The messages for a column's model, up to the last prompt. Turns without an answer are left out. */
export function historyOf(conversation, column) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const turn of conversation.turns.slice(0, -1)) {
    const content = shownAttempt(turn, column)?.content;
    if (content) messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content });
  }
  messages.push({ role: "user", content: conversation.turns.at(-1).prompt });
  return messages;
}

/** A conversation's title: the one that the user gave it, or the first words of its first prompt. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const words = (conversation.turns[0]?.prompt ?? "").trim().split(/\s+/).slice(0, 9).join(" ");
  return [...words].slice(0, 60).join("") || "New conversation";
}

/**
 * A line of the conversation around the first place that contains `words`; null if none does, "" if the title does.
 * Upper and lower case, accents and the kind of white space do not count.
 */
export function findIn(conversation, words) {
  const wanted = folded(words.trim());
  if (folded(titleOf(conversation)).includes(wanted)) return "";
  for (const turn of conversation.turns) {
    for (const text of [turn.prompt, ...turn.answers.flatMap((answer) => answer?.attempts ?? []).map(({ content }) => content)]) {
      const at = folded(text).indexOf(wanted);
      if (at >= 0) return excerpt(text, at);
    }
  }
  return null;
}

function folded(text) {
  return text.replace(/\s+/g, " ").normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
}

/** The words around what is at index `foldedAt` of the folded text, whose characters can be more or fewer. */
function excerpt(raw, foldedAt) {
  const text = raw.replace(/\s+/g, " ");
  let [at, end] = [0, text.length]; // the longest beginning whose folded form ends there
  while (at < end) {
    const middle = Math.ceil((at + end) / 2);
    if (folded(text.slice(0, middle)).length <= foldedAt) at = middle;
    else end = middle - 1;
  }
  const from = Math.max(0, Math.min(at, text.length - 40) - 8);
  return `${from ? "…" : ""}${[...text.slice(from)].slice(0, 80).join("")}`;
}

/** Swaps the two columns with their histories. */
export function swapColumns(conversation) {
  conversation.models.reverse();
  for (const turn of conversation.turns) {
    if (turn.answers.length > 1) turn.answers.reverse();
  }
}

/** Marks answers as failed that were still being written when the page was closed. */
export function failUnfinished(conversation) {
  for (const turn of conversation.turns) {
    for (const attempt of turn.answers.flatMap((answer) => answer?.attempts ?? [])) {
      if (attempt.state !== "writing") continue;
      attempt.state = "failed";
      attempt.error = { kind: "lost", message: "The page was closed while this was being written." };
    }
  }
}

/** Tokens per second after the first token; null if there were too few to measure. */
export function speedOf(attempt) {
  const tokens = attempt.usage?.completion_tokens ?? attempt.pieces;
  const seconds = attempt.seconds - attempt.first;
  return tokens > 1 && seconds > 0.05 ? (tokens - 1) / seconds : null;
}

export function uniqueId() {
  // Browsers offer crypto.randomUUID only over HTTPS or on localhost.
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
