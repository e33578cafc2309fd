// @ts-check
// What is typed, and what of it a reload, a lost connection or a server that went away must not take.

import { $, conversation } from "./dom.js";

/** A question on its way. With the same key the server stores it once, however often it is sent. */
/** @typedef {{text: string, key: string, edits: string}} Question */

export const box = /** @type {HTMLTextAreaElement} */ ($("#box"));
const send = /** @type {HTMLButtonElement} */ ($("#send"));
const banner = $("#editing");

/**
 * asked: the question of which nobody knows whether it arrived. edits: id of the message that is being edited, "" is
 * none; kept: what stood in the box before that.
 */
export const typed = { /** @type {Question} */ asked: { text: "", key: "", edits: "" }, isSending: false, edits: "", kept: "" };

/** @param {string[]} parts */
export const together = (...parts) => parts.filter((part) => part.trim()).join("\n\n");

/** localStorage, which may be forbidden or full: the page works, only a reload forgets. @param {object | null} [value] */
export function stored(value, slot = `sparrow:${conversation()}`) {
  try {
    if (value === undefined) return JSON.parse(localStorage.getItem(slot) ?? "null");
    if (value) localStorage.setItem(slot, JSON.stringify(value));
    else localStorage.removeItem(slot);
  } catch {
    return null;
  }
}

/** Keep what a reload would lose: the question on its way, what is edited, and the box. */
export function remember() {
  const { asked, isSending, edits, kept } = typed;
  const isEditing = isSending && asked.edits;
  const text = isEditing ? asked.text : together(isSending ? asked.text : "", box.value);
  const draft = { text, key: text === asked.text ? asked.key : "", edits: isEditing || edits, kept: isEditing ? box.value : kept };
  stored(text || draft.kept ? draft : null);
}

/** Settings that were chosen for a chat that does not exist yet. */
export const NEW_SETTINGS = "sparrow:new settings";

/** Where what is typed goes: into a conversation, in the place of an earlier message, or into a new chat. */
export function place(edits = typed.edits) {
  if (conversation()) return { conversation: conversation(), edits: edits ? Number(edits) : undefined };
  return { settings: stored(undefined, NEW_SETTINGS) ?? undefined };
}

/** @param {string} id */
const question = (id) => (id ? $(`#messages article[data-role="user"][data-id="${CSS.escape(id)}"]`) : null);

export function recall() {
  const saved = stored();
  if (!saved) return size();
  typed.asked = { text: saved.text, key: saved.key, edits: saved.edits };
  const last = [...document.querySelectorAll('#messages article[data-role="user"] .text')].pop()?.textContent;
  const didArrive = saved.key && saved.text === last;
  const edited = question(saved.edits);
  if (box.value) return size(); // the browser has kept it itself
  if (didArrive) box.value = saved.kept ?? "";
  else if (edited) {
    box.value = saved.kept ?? "";
    startEditing(edited, saved.text);
  } else box.value = together(saved.kept ?? "", saved.text);
  remember();
  size();
}

/** The stylesheet does the rest: which button there is, the welcome, the waiting sign follow from the messages. */
export function size() {
  send.disabled = !box.value.trim();
  box.rows = Math.min(8, box.value.split("\n").length); // for browsers without field-sizing: content
}

/** The message's text goes into the box; sent, it begins another branch. @param {HTMLElement} article @param {string} [text] */
export function startEditing(article, text = $(".text", article).textContent ?? "") {
  if (!typed.edits) typed.kept = box.value;
  mark(article);
  typed.edits = article.dataset.id ?? "";
  box.value = text;
  banner.hidden = false;
  remember();
  size();
  box.focus();
  box.setSelectionRange(text.length, text.length);
}

/** The box is as it was before; what it was edited to is given up, or on its way. */
export function stopEditing() {
  if (!typed.edits) return;
  mark(null);
  box.value = typed.kept;
  typed.edits = typed.kept = "";
  banner.hidden = true;
  remember();
  size();
}

/** @param {HTMLElement | null} article */
function mark(article) {
  $("#messages .edited")?.classList.remove("edited");
  article?.classList.add("edited");
}

/** 128 random bits; crypto.randomUUID is missing where a phone opens http://192.168.… */
export const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");
