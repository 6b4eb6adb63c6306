/** The chat page: connects the user's actions, the server's answers, the store and the view. */

import { Api, ChatError } from "./api.js";
import { failUnfinished, historyOf, newAttempt, newConversation, swapColumns, titleOf } from "./conversation.js";
import { askForKey, askForName, askToConfirm, isDialogOpen, prepareDialogs } from "./dialogs.js";
import { announce, make } from "./dom.js";
import { SamplingForm } from "./settings.js";
import { Store } from "./store.js";
import { exportConversations, readConversations } from "./transfer.js";
import { View, isSendKey, listConversations, notice } from "./view.js";

const SAVE_EVERY = 2000; // milliseconds, while an answer is being written
const byId = (id) => document.getElementById(id);
const prompt = byId("prompt");
const narrow = matchMedia("(max-width: 56rem)");

const api = new Api(askForKey);
const store = new Store((problem) => notice("storage", problem), changedElsewhere);
const settings = { sampling: {}, system: "", models: [], beside: false, ...store.settings() };
const view = new View({ retry, showAttempt, edit, send });
/** @type {Map<string, {abort: AbortController, conversation: object}>} attempts that are being generated, by their id */
const running = new Map();
let models = [];
let forwarded = new Map();
let current = newConversation(settings);

// --- sending ---------------------------------------------------------------------------------------------

/** Sends a prompt to the model of each column. */
function send(text) {
  const message = text.trim();
  if (!message || isBusy(current)) return;
  if (!models.length) {
    loadModels();
    return;
  }
  const turn = { prompt: message, answers: [] };
  current.turns.push(turn);
  current.updated = Date.now();
  prompt.value = "";
  resizePrompt();
  sendToAll(turn);
}

function edit(turn, text) {
  if (isBusy(current)) return;
  turn.prompt = text;
  turn.answers = [];
  sendToAll(turn);
}

function sendToAll(turn) {
  const columns = current.beside ? [0, 1] : [0];
  const conversation = current;
  const starts = columns.map((column) => addAttempt(conversation, turn, column));
  view.turn(turn);
  awaitAnswers(conversation, starts.map((start) => start()));
  focusPrompt();
}

function retry(turn, column) {
  if (isBusy(current)) return;
  const start = addAttempt(current, turn, column);
  view.turn(turn);
  awaitAnswers(current, [start()]);
  focusPrompt();
}

function showAttempt(answer, shown) {
  answer.shown = shown;
  store.save(current);
}

/** Adds a new attempt to a turn, and returns a function that generates it. */
function addAttempt(conversation, turn, column) {
  const attempt = newAttempt(conversation.models[column]);
  const answer = (turn.answers[column] ??= { shown: 0, attempts: [] });
  answer.attempts = answer.attempts.filter(({ content, reasoning }) => content || reasoning);
  answer.shown = answer.attempts.push(attempt) - 1;
  const abort = new AbortController();
  running.set(attempt.id, { abort, conversation });
  return async () => {
    const body = { model: attempt.model, messages: historyOf(conversation, column), ...settings.sampling };
    try {
      await stream(attempt, body, abort.signal, conversation);
      attempt.state = "done";
    } catch (error) {
      markFailed(attempt, error);
    }
    running.delete(attempt.id);
    view.answerOf(attempt)?.settle();
    return attempt;
  };
}

async function stream(attempt, body, signal, conversation) {
  const start = performance.now();
  const secondsSince = (moment) => (performance.now() - moment) / 1000;
  let reasoningStart = null;
  let lastSave = start;
  for await (const delta of api.chat(body, signal)) {
    if (delta.finish) attempt.finish = delta.finish;
    if (delta.usage) attempt.usage = delta.usage;
    if (!delta.content && !delta.reasoning) continue;
    attempt.first ??= secondsSince(start);
    attempt.pieces += 1;
    if (delta.reasoning) reasoningStart ??= performance.now();
    if (reasoningStart !== null && (delta.reasoning || !attempt.content)) attempt.thought = secondsSince(reasoningStart);
    attempt.content += delta.content;
    attempt.reasoning += delta.reasoning;
    attempt.seconds = secondsSince(start);
    view.answerOf(attempt)?.add(attempt, delta);
    if (performance.now() - lastSave > SAVE_EVERY) {
      lastSave = performance.now();
      store.save(conversation);
    }
  }
}

function markFailed(attempt, error) {
  const known = error instanceof ChatError ? error : new ChatError("server", "Something went wrong on this page.");
  attempt.state = known.kind === "stopped" ? "stopped" : "failed";
  if (attempt.state === "failed") {
    attempt.error = { kind: known.kind, message: known.message, wait: known.wait, at: Date.now() };
  }
}

async function awaitAnswers(conversation, answers) {
  store.save(conversation);
  if (conversation === current) store.saveLast(conversation.id);
  refresh();
  const attempts = await Promise.all(answers);
  // It may have been deleted meanwhile.
  if (store.get(conversation.id)) store.save(conversation);
  refresh();
  if (conversation !== current) return;
  view.contentGrew();
  const announcements = attempts.filter(({ content }) => content).map(({ model, content }) => `${model} answered: ${content.slice(0, 1000)}`);
  if (announcements.length) announce(announcements.join("\n"));
}

function isBusy(conversation) {
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
  if (!isBusy(current)) failUnfinished(current);
  useKnownModels();
  byId("system").value = current.system;
  view.open(current);
  store.saveLast(current.turns.length ? current.id : null);
  refresh();
  closeDrawer();
}

function startNew() {
  open(newConversation(settings));
  focusPrompt();
}

async function rename(id) {
  const name = await askForName(titleOf(store.get(id)));
  const conversation = store.get(id); // another tab may have continued or deleted it meanwhile
  if (name === null || !conversation) return;
  conversation.title = name || undefined; // without a name it is called by its first words again
  store.save(conversation);
  refresh();
}

async function remove(id) {
  const agreed = await askToConfirm("Delete this conversation?", "It is kept only in this browser and cannot be restored.", "Delete");
  if (!agreed) return;
  stop(store.get(id));
  store.remove(id);
  if (current.id === id) startNew();
  else refresh();
}

async function eraseAll() {
  const count = store.conversations().length;
  const which = count === 1 ? "The only conversation" : `All ${count} conversations`;
  const agreed = await askToConfirm("Erase all conversations?",
    `${which} in this browser will be deleted permanently. Export first to keep a copy.`, "Erase all");
  if (!agreed) return;
  for (const { abort } of running.values()) abort.abort();
  store.removeAll();
  settings.system = "";
  store.saveSettings(settings);
  startNew();
  announce("All conversations were erased.");
}

async function importAll(file) {
  try {
    const read = await readConversations(file, (id) => store.get(id));
    for (const conversation of read) store.save(conversation);
    const count = read.length === 1 ? "1 conversation was" : `${read.length} conversations were`;
    notice("import", read.length ? `${count} imported.` : "All conversations of this file are here already.");
    refresh();
  } catch (error) {
    notice("import", error.message);
  }
}

function changedElsewhere(id) {
  if (!isBusy(current) && (id === null || id === current.id)) {
    const stored = store.get(current.id);
    if (stored) open(stored);
    else if (current.turns.length) startNew();
  }
  refresh();
}

/** Updates everything around the conversation. */
function refresh() {
  const conversations = store.conversations();
  listConversations(conversations, byId("search").value, current, { open: (id) => open(store.get(id)), rename, remove });
  byId("search").hidden = conversations.length === 0;
  byId("export").disabled = byId("erase").disabled = conversations.length === 0;
  view.setBusy(isBusy(current));
  const { beside } = current;
  byId("beside").setAttribute("aria-pressed", String(beside));
  byId("second").hidden = byId("swap").hidden = !beside;
  document.body.classList.toggle("beside", beside);
  current.models.forEach((model, column) => (byId(`model-${column}`).value = model));
  if (models.length) view.showDestinations(current.models.slice(0, beside ? 2 : 1), forwarded);
  // The model cannot change in the middle of an answer.
  for (const id of ["model-0", "model-1", "swap", "beside"]) byId(id).disabled = isBusy(current) || !models.length;
}

// --- models ---------------------------------------------------------------------------------------------

async function loadModels() {
  const retryButton = make("button", { type: "button", onclick: loadModels }, "Try again");
  try {
    ({ models, forwarded } = await api.models());
    notice("models", models.length ? null : "The server has no model.");
  } catch (error) {
    notice("models", error.message, retryButton);
  }
  for (const column of [0, 1]) {
    byId(`model-${column}`).replaceChildren(...models.map((model) => make("option", { value: model }, model)));
  }
  useKnownModels();
  refresh();
}

/** Replaces models of the conversation that the server does not have. */
function useKnownModels() {
  if (!models.length) return;
  current.models = [0, 1].map((column) =>
    models.includes(current.models[column]) ? current.models[column] : (models[column] ?? models[0]));
}

function modelsChanged() {
  current.models = [byId("model-0").value, byId("model-1").value];
  saveSettings();
}

function toggleBeside() {
  current.beside = !current.beside;
  saveSettings();
}

function swap() {
  swapColumns(current);
  view.open(current);
  saveSettings();
}

/** Saves the conversation's settings; the next new conversation starts with them. */
function saveSettings() {
  Object.assign(settings, { models: current.models, beside: current.beside, system: current.system });
  store.saveSettings(settings);
  if (current.turns.length) store.save(current);
  refresh();
}

// --- the rest of the page ------------------------------------------------------------------------------------

function openDrawer() {
  document.body.classList.add("drawer");
  drawerChanged();
  byId("close-drawer").focus();
}

function closeDrawer() {
  const wasOpen = document.body.classList.contains("drawer");
  document.body.classList.remove("drawer");
  drawerChanged();
  if (wasOpen) byId("open-drawer").focus();
}

function drawerChanged() {
  const isOpen = document.body.classList.contains("drawer");
  byId("sidebar").inert = narrow.matches && !isOpen;
  document.querySelector(".chat").inert = narrow.matches && isOpen;
  byId("backdrop").hidden = !(narrow.matches && isOpen);
  byId("open-drawer").setAttribute("aria-expanded", String(isOpen));
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try {
    if (theme) localStorage.setItem("stillhouse.theme", theme);
    else localStorage.removeItem("stillhouse.theme");
  } catch {
    // Without storage the theme lasts until the page is closed.
  }
  for (const radio of document.getElementsByName("theme")) radio.checked = radio.value === theme;
}

function toggleTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
}

/** Focuses the message field, except on touch screens, where a keyboard would cover the answer. */
function focusPrompt() {
  if (!matchMedia("(pointer: coarse)").matches) prompt.focus();
}

/** Grows the message field with its text in browsers without `field-sizing`. */
function resizePrompt() {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function onKeydown(event) {
  if (isDialogOpen()) return;
  if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    startNew();
  } else if (event.key === "Escape") {
    if (document.body.classList.contains("drawer")) closeDrawer();
    else stop(current);
  }
}

function addListeners() {
  const clicks = {
    new: startNew, export: () => exportConversations(store.conversations()), import: () => byId("import-file").click(), erase: eraseAll, swap, beside: toggleBeside, theme: toggleTheme,
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
    if (!isSendKey(event)) return;
    event.preventDefault();
    send(prompt.value);
  });
  prompt.addEventListener("input", resizePrompt);
  byId("search").addEventListener("input", refresh);
  byId("import-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) await importAll(file);
    event.target.value = ""; // the same file can be chosen again
  });
  for (const column of [0, 1]) byId(`model-${column}`).addEventListener("change", modelsChanged);
  byId("system").addEventListener("input", () => {
    current.system = byId("system").value;
    view.system();
    saveSettings();
  });
  for (const radio of document.getElementsByName("theme")) radio.addEventListener("change", () => setTheme(radio.value));
  document.addEventListener("keydown", onKeydown);
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
  addListeners();
  setTheme(document.documentElement.dataset.theme ?? "");
  drawerChanged();
  open(store.last() ?? current);
  focusPrompt();
  loadModels();
}

start();
