/** A client for the server's OpenAI-compatible API: lists models, streams chats. */

const KEY = "stillhouse.key";

/** An error with a message for the user. `kind`: key, busy, refused, server, lost or stopped. */
export class ChatError extends Error {
  constructor(kind, message, { wait = null } = {}) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

export class Api {
  /** @param {(wasRefused: boolean) => Promise<string|null>} askForKey asks the user; null if they cancel */
  constructor(askForKey) {
    this.askForKey = askForKey;
    this.pendingKey = null;
    this.key = savedKey();
  }

  /**
   * The models' names in the server's order, and the hosts that requests for forwarded models are passed on to.
   * @returns {Promise<{models: string[], forwarded: Map<string, string>}>}
   */
  async models() {
    const response = await this.#fetch("/v1/models", {});
    const { data } = await response.json().catch(() => ({}));
    if (!Array.isArray(data)) throw new ChatError("server", "The server's list of models could not be read.");
    const forwarded = data.filter((model) => model.forwarded_to).map((model) => [String(model.id), String(model.forwarded_to)]);
    return { models: data.map((model) => String(model.id)), forwarded: new Map(forwarded) };
  }

  /**
   * Streams one answer, delta by delta.
   * @returns {AsyncGenerator<{content?: string, reasoning?: string, finish?: string, usage?: object}>}
   */
  async *chat(body, signal) {
    const request = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await this.#fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
      signal,
    });
    let finished = false;
    for await (const data of events(response.body, signal)) {
      if (data === "[DONE]") return;
      const delta = parseChunk(data);
      finished ||= Boolean(delta.finish);
      yield delta;
    }
    if (!finished) throw connectionLost();
  }

  async #fetch(path, options) {
    for (;;) {
      const usedKey = this.key;
      const response = await this.#send(path, options, usedKey);
      if (response.ok) return response;
      if (response.status !== 401) throw await errorOf(response);
      // Two columns that need a key at the same time share one dialog.
      if (this.key !== usedKey) continue;
      this.pendingKey ??= this.askForKey(Boolean(usedKey)).finally(() => (this.pendingKey = null));
      const key = await this.pendingKey;
      if (!key) throw new ChatError("key", "This server requires an API key, and none was given.");
      this.#saveKey(key);
    }
  }

  async #send(path, options, key) {
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    try {
      return await fetch(path, { ...options, headers, cache: "no-store" });
    } catch {
      if (options.signal?.aborted) throw new ChatError("stopped", "Stopped.");
      throw new ChatError("lost", "The server cannot be reached. Is it still running?");
    }
  }

  #saveKey(key) {
    this.key = key;
    try {
      sessionStorage.setItem(KEY, key);
    } catch {
      // Without storage the key lasts until the page is closed.
    }
  }
}

function savedKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** Yields the data of each server-sent event. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(() => {
        throw signal?.aborted ? new ChatError("stopped", "Stopped.") : connectionLost();
      });
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseChunk(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ChatError("server", "The server sent an invalid answer.");
  }
  if (chunk.error) throw new ChatError("server", `The server reported an error: ${chunk.error.message ?? "no reason given"}`);
  const choice = chunk.choices?.[0];
  return {
    content: choice?.delta?.content ?? "",
    reasoning: choice?.delta?.reasoning_content ?? "",
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

async function errorOf(response) {
  const { error } = await response.json().catch(() => ({}));
  const message = error?.message ?? `status ${response.status}`;
  if (response.status === 429) {
    const wait = secondsOf(response.headers.get("Retry-After"));
    return new ChatError("busy", error?.message ?? "too many requests.", { wait });
  }
  if (response.status < 500) return new ChatError("refused", `The server refused the request: ${message}`);
  return new ChatError("server", `The server failed: ${message}`);
}

/** Parses Retry-After: a number of seconds or a date. */
function secondsOf(header) {
  if (!header) return null;
  const number = Number(header);
  const wait = Number.isFinite(number) ? number : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(0, Math.ceil(wait)) : null;
}

function connectionLost() {
  return new ChatError("lost", "The connection was lost before the answer ended.");
}
