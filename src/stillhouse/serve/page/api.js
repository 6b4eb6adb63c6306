/** The server's OpenAI-compatible interface: its models, and a chat that arrives in pieces. */

const KEY = "stillhouse.key";

/** What went wrong, in words for the reader. `kind`: key, busy, refused, server, lost or stopped. */
export class ChatError extends Error {
  constructor(kind, message, { wait = null } = {}) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

export class Api {
  /** @param {(refused: boolean) => Promise<string|null>} askKey asks the person; null when they decline */
  constructor(askKey) {
    this.askKey = askKey;
    this.asking = null;
    this.key = remembered();
  }

  /**
   * The models' names, in the order of the server, and for those that it asks another server for, which one.
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
   * One answer, piece by piece.
   * @returns {AsyncGenerator<{content?: string, reasoning?: string, finish?: string, usage?: object}>}
   */
  async *chat(body, signal) {
    const sent = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await this.#fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(sent),
      signal,
    });
    let finished = false;
    for await (const data of events(response.body, signal)) {
      if (data === "[DONE]") return;
      const piece = read(data);
      finished ||= Boolean(piece.finish);
      yield piece;
    }
    if (!finished) throw lost();
  }

  async #fetch(path, options) {
    for (;;) {
      const used = this.key;
      const response = await this.#send(path, options, used);
      if (response.ok) return response;
      if (response.status !== 401) throw await refusal(response);
      // Two columns that need a key at once ask for it once.
      if (this.key !== used) continue;
      this.asking ??= this.askKey(Boolean(used)).finally(() => (this.asking = null));
      const given = await this.asking;
      if (!given) throw new ChatError("key", "This server wants an API key, and none was given.");
      this.#remember(given);
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

  #remember(key) {
    this.key = key;
    try {
      sessionStorage.setItem(KEY, key);
    } catch {
      // It is kept for as long as the page is open.
    }
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** The data of each server-sent event. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(() => {
        throw signal?.aborted ? new ChatError("stopped", "Stopped.") : lost();
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

function read(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ChatError("server", "The server sent something that is not an answer.");
  }
  if (chunk.error) throw new ChatError("server", `The server broke off: ${chunk.error.message ?? "it did not say why"}`);
  const choice = chunk.choices?.[0];
  return {
    content: choice?.delta?.content ?? "",
    reasoning: choice?.delta?.reasoning_content ?? "",
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  const message = error?.message ?? `it answered with status ${response.status}`;
  if (response.status === 429) {
    const wait = seconds(response.headers.get("Retry-After"));
    return new ChatError("busy", error?.message ?? "It has too much to do.", { wait });
  }
  if (response.status < 500) return new ChatError("refused", `The server refused this: ${message}`);
  return new ChatError("server", `The server failed: ${message}`);
}

/** Retry-After, which is a number of seconds or a date. */
function seconds(header) {
  if (!header) return null;
  const number = Number(header);
  const wait = Number.isFinite(number) ? number : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(0, Math.ceil(wait)) : null;
}

function lost() {
  return new ChatError("lost", "The connection was lost before the answer ended.");
}
