/**
 * What a conversation is: turns, each a prompt and an answer of each column.
 *
 * An answer keeps all its attempts; the one shown is the one that its model sees as its own history.
 *
 * @typedef {{id: string, model: string, content: string, reasoning: string, state: "writing"|"done"|"stopped"|"failed",
 *   finish?: string, error?: {kind: string, message: string}, thought?: number, first?: number, seconds?: number,
 *   pieces: number, usage?: {prompt_tokens: number, completion_tokens: number, total_tokens: number}}} Attempt
 * @typedef {{shown: number, attempts: Attempt[]}} Answer
 * @typedef {{prompt: string, answers: (Answer|null)[]}} Turn
 * @typedef {{version: 1, id: string, created: number, updated: number, system: string, models: string[],
 *   beside: boolean, turns: Turn[]}} Conversation
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

/** The attempt that a column shows in a turn; a column that was not there yet goes by the first one's. */
export function shownAttempt(turn, column) {
  const answer = turn.answers[column] ?? turn.answers[0];
  return answer?.attempts[answer.shown];
}

/** What a column's model is sent in order to answer the last turn. Turns without an answer are left out. */
export function historyOf(conversation, column) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const turn of conversation.turns.slice(0, -1)) {
    const content = shownAttempt(turn, column)?.content;
    if (content) messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content });
  }
  messages.push({ role: "user", content: conversation.turns.at(-1).prompt });
  return messages;
}

/** The first words of the first prompt. */
export function titleOf(conversation) {
  const words = (conversation.turns[0]?.prompt ?? "").trim().split(/\s+/).slice(0, 9).join(" ");
  return [...words].slice(0, 60).join("") || "New conversation";
}

/** The left column becomes the right one, with its history. */
export function swapColumns(conversation) {
  conversation.models.reverse();
  for (const turn of conversation.turns) {
    if (turn.answers.length > 1) turn.answers.reverse();
  }
}

/** Answers that were being written when the page was closed are not any more. */
export function mend(conversation) {
  for (const turn of conversation.turns) {
    for (const attempt of turn.answers.flatMap((answer) => answer?.attempts ?? [])) {
      if (attempt.state !== "writing") continue;
      attempt.state = "failed";
      attempt.error = { kind: "lost", message: "The page was closed while this was being written." };
    }
  }
}

/** Tokens a second after the first token, or null where too little came to say. */
export function speedOf(attempt) {
  const tokens = attempt.usage?.completion_tokens ?? attempt.pieces;
  const writing = attempt.seconds - attempt.first;
  return tokens > 1 && writing > 0.05 ? (tokens - 1) / writing : null;
}

function uniqueId() {
  // Over plain http from another machine there is no randomUUID.
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
