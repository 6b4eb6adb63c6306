/** The chat page: what the person does, what the server says, and who is told. */

import { Api, ChatError } from "./api.js";
import { historyOf, mend, newAttempt, newConversation, swapColumns } from "./conversation.js";
import { askKey, confirmed, dialogOpen, prepareDialogs } from "./dialogs.js";
import { make, say } from "./dom.js";
import { SamplingForm } from "./settings.js";
import { Store } from "./store.js";
import { View, listConversations, notice, sends } from "./view.js";

const SAVE_EVERY = 2000; // milliseconds, while an answer is being written
const byId = (id) => document.getElementById(id);
const prompt = byId("prompt");
const narrow = matchMedia("(max-width: 56rem)");

const api = new Api(askKey);
const store = new Store((problem) => notice("storage", problem), changedElsewhere);
const settings = { sampling: {}, system: "", models: [], beside: false, ...store.settings() };
const view = new View({ retry, choose, edit, send });
/** @type {Map<string, {abort: AbortController, conversation: object}>} attempts that are being written */
const running = new Map();
let models = [];
let forwarded = new Map();
let current = newConversation(settings);

// --- asking ---------------------------------------------------------------------------------------------

/** Sends a prompt to the model of each column. */
function send(text) {
  const words = text.trim();
  if (!words || busy(current)) return;
  if (!models.length) {
    loadModels();
    return;
  }
  const turn = { prompt: words, answers: [] };
  current.turns.push(turn);
  current.updated = Date.now();
  prompt.value = "";
  fit();
  askAll(turn);
}

function edit(turn, text) {
  if (busy(current)) return;
  turn.prompt = text;
  turn.answers = [];
  askAll(turn);
}

function askAll(turn) {
  const columns = current.beside ? [0, 1] : [0];
  const conversation = current;
  const answers = columns.map((column) => begin(conversation, turn, column));
  view.turn(turn);
  finishing(conversation, answers.map((answer) => answer()));
  focusPrompt();
}

function retry(turn, column) {
  if (busy(current)) return;
  const answer = begin(current, turn, column);
  view.turn(turn);
  finishing(current, [answer()]);
  focusPrompt();
}

function choose(answer, shown) {
  answer.shown = shown;
  store.save(current);
}

/** Puts a new attempt in its place, and returns what fills it. */
function begin(conversation, turn, column) {
  const attempt = newAttempt(conversation.models[column]);
  const answer = (turn.answers[column] ??= { shown: 0, attempts: [] });
  answer.attempts = answer.attempts.filter(({ content, reasoning }) => content || reasoning);
  answer.shown = answer.attempts.push(attempt) - 1;
  const abort = new AbortController();
  running.set(attempt.id, { abort, conversation });
  return async () => {
    const body = { model: attempt.model, messages: historyOf(conversation, column), ...settings.sampling };
    try {
      await fill(attempt, body, abort.signal, conversation);
      attempt.state = "done";
    } catch (error) {
      failed(attempt, error);
    }
    running.delete(attempt.id);
    view.answerOf(attempt)?.settle();
    return attempt;
  };
}

async function fill(attempt, body, signal, conversation) {
  const start = performance.now();
  const since = (moment) => (performance.now() - moment) / 1000;
  let thinking = null;
  let saved = start;
  for await (const piece of api.chat(body, signal)) {
    if (piece.finish) attempt.finish = piece.finish;
    if (piece.usage) attempt.usage = piece.usage;
    if (!piece.content && !piece.reasoning) continue;
    attempt.first ??= since(start);
    attempt.pieces += 1;
    if (piece.reasoning) thinking ??= performance.now();
    if (thinking !== null && (piece.reasoning || !attempt.content)) attempt.thought = since(thinking);
    attempt.content += piece.content;
    attempt.reasoning += piece.reasoning;
    attempt.seconds = since(start);
    view.answerOf(attempt)?.add(attempt, piece);
    if (performance.now() - saved > SAVE_EVERY) {
      saved = performance.now();
      store.save(conversation);
    }
  }
}

function failed(attempt, error) {
  const known = error instanceof ChatError ? error : new ChatError("server", "Something went wrong on this page.");
  attempt.state = known.kind === "stopped" ? "stopped" : "failed";
  if (attempt.state === "failed") {
    attempt.error = { kind: known.kind, message: known.message, wait: known.wait, at: Date.now() };
  }
}

async function finishing(conversation, answers) {
  store.save(conversation);
  refresh();
  const attempts = await Promise.all(answers);
  if (store.get(conversation.id)) store.save(conversation);
  refresh();
  if (conversation !== current) return;
  view.moved();
  const words = attempts.filter(({ content }) => content).map(({ model, content }) => `${model} answered: ${content.slice(0, 1000)}`);
  if (words.length) say(words.join("\n"));
}

function busy(conversation) {
  return [...running.values()].some((run) => run.conversation === conversation);
}

function stop(conversation) {
  for (const run of running.values()) {
    if (run.conversation === conversation) run.abort.abort();
  }
}

// --- conversations --------------------------------------------------------------------------------------

function open(conversation) {
  current = conversation;
  if (!busy(current)) mend(current);
  knownModels();
  byId("system").value = current.system;
  view.open(current);
  refresh();
  closeDrawer();
}

function startNew() {
  open(newConversation(settings));
  focusPrompt();
}

async function remove(id) {
  const yes = await confirmed("Delete this conversation?", "It is kept only in this browser and cannot be brought back.", "Delete");
  if (!yes) return;
  stop(store.get(id));
  store.remove(id);
  if (current.id === id) startNew();
  else refresh();
}

async function eraseAll() {
  const count = store.conversations().length;
  const which = count === 1 ? "The one conversation" : `All ${count} conversations`;
  const yes = await confirmed("Erase all conversations?",
    `${which} in this browser will be gone for good. Export them first if you may want them again.`, "Erase all");
  if (!yes) return;
  for (const { abort } of running.values()) abort.abort();
  store.removeAll();
  settings.system = "";
  store.saveSettings(settings);
  startNew();
  say("All conversations are erased.");
}

function exportAll() {
  const all = { format: "stillhouse conversations", version: 1, exported: new Date().toISOString(),
    conversations: store.conversations() };
  const address = URL.createObjectURL(new Blob([JSON.stringify(all, null, 2)], { type: "application/json" }));
  make("a", { href: address, download: `stillhouse-conversations-${all.exported.slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function changedElsewhere(id) {
  if (!busy(current) && (id === null || id === current.id)) {
    const there = store.get(current.id);
    if (there) open(there);
    else if (current.turns.length) startNew();
  }
  refresh();
}

/** Brings everything around the conversation up to date with it. */
function refresh() {
  const conversations = store.conversations();
  listConversations(conversations, current, { open: (id) => open(store.get(id)), remove });
  byId("export").disabled = byId("erase").disabled = conversations.length === 0;
  view.busy(busy(current));
  const { beside } = current;
  byId("beside").setAttribute("aria-pressed", String(beside));
  byId("second").hidden = byId("swap").hidden = !beside;
  document.body.classList.toggle("beside", beside);
  current.models.forEach((model, column) => (byId(`model-${column}`).value = model));
  if (models.length) view.goesTo(current.models.slice(0, beside ? 2 : 1), forwarded);
  // In the middle of an answer its model cannot change.
  for (const id of ["model-0", "model-1", "swap", "beside"]) byId(id).disabled = busy(current) || !models.length;
}

// --- models ---------------------------------------------------------------------------------------------

async function loadModels() {
  const again = make("button", { type: "button", onclick: loadModels }, "Try again");
  try {
    ({ models, forwarded } = await api.models());
    notice("models", models.length ? null : "The server has no model.");
  } catch (error) {
    notice("models", error.message, again);
  }
  for (const column of [0, 1]) {
    byId(`model-${column}`).replaceChildren(...models.map((model) => make("option", { value: model }, model)));
  }
  knownModels();
  refresh();
}

/** A conversation goes on with a model that the server has. */
function knownModels() {
  if (!models.length) return;
  current.models = [0, 1].map((column) =>
    models.includes(current.models[column]) ? current.models[column] : (models[column] ?? models[0]));
}

function modelsChanged() {
  current.models = [byId("model-0").value, byId("model-1").value];
  remember();
}

function toggleBeside() {
  current.beside = !current.beside;
  remember();
}

function swap() {
  swapColumns(current);
  view.open(current);
  remember();
}

/** The next conversation begins as this one is set. */
function remember() {
  Object.assign(settings, { models: current.models, beside: current.beside, system: current.system });
  store.saveSettings(settings);
  if (current.turns.length) store.save(current);
  refresh();
}

// --- the page around ------------------------------------------------------------------------------------

function openDrawer() {
  document.body.classList.add("drawer");
  drawerChanged();
  byId("close-drawer").focus();
}

function closeDrawer() {
  const was = document.body.classList.contains("drawer");
  document.body.classList.remove("drawer");
  drawerChanged();
  if (was) byId("open-drawer").focus();
}

function drawerChanged() {
  const out = document.body.classList.contains("drawer");
  byId("sidebar").inert = narrow.matches && !out;
  document.querySelector(".room").inert = narrow.matches && out;
  byId("backdrop").hidden = !(narrow.matches && out);
  byId("open-drawer").setAttribute("aria-expanded", String(out));
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try {
    if (theme) localStorage.setItem("stillhouse.theme", theme);
    else localStorage.removeItem("stillhouse.theme");
  } catch {
    // It holds until the page is closed.
  }
  for (const radio of document.getElementsByName("theme")) radio.checked = radio.value === theme;
}

function otherTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
}

/** Leads back to the message field, but not where that brings up a keyboard over the answer. */
function focusPrompt() {
  if (!matchMedia("(pointer: coarse)").matches) prompt.focus();
}

/** Lets the message field grow with its text where CSS cannot. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function keys(event) {
  if (dialogOpen()) return;
  if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    startNew();
  } else if (event.key === "Escape") {
    if (document.body.classList.contains("drawer")) closeDrawer();
    else stop(current);
  }
}

function listen() {
  const clicks = {
    new: startNew, export: exportAll, erase: eraseAll, swap, beside: toggleBeside, theme: otherTheme,
    stop: () => stop(current),
    "open-settings": () => byId("settings").showModal(),
    "open-help": () => byId("help").showModal(),
    "open-drawer": openDrawer, "close-drawer": closeDrawer, backdrop: closeDrawer,
  };
  for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send(prompt.value);
  });
  prompt.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    send(prompt.value);
  });
  prompt.addEventListener("input", fit);
  for (const column of [0, 1]) byId(`model-${column}`).addEventListener("change", modelsChanged);
  byId("system").addEventListener("input", () => {
    current.system = byId("system").value;
    view.system();
    remember();
  });
  for (const radio of document.getElementsByName("theme")) radio.addEventListener("change", () => setTheme(radio.value));
  document.addEventListener("keydown", keys);
  narrow.addEventListener("change", drawerChanged);
  addEventListener("pagehide", () => {
    for (const { conversation } of running.values()) store.save(conversation);
  });
}

function start() {
  if (/Mac|iPhone|iPad/.test(navigator.platform)) {
    for (const key of document.querySelectorAll(".command")) key.textContent = "Cmd";
  }
  const sampling = new SamplingForm(byId("sampling"), settings.sampling, (values) => {
    settings.sampling = values;
    store.saveSettings(settings);
  });
  byId("reset").addEventListener("click", () => sampling.reset());
  prepareDialogs();
  listen();
  setTheme(document.documentElement.dataset.theme ?? "");
  drawerChanged();
  open(current);
  focusPrompt();
  loadModels();
}

start();
