// @ts-check
// The list of conversations: search in all that was said, and its order.

import { $, $$, conversation, copyOf, text, toast } from "./dom.js";
import { get, why } from "./net.js";

/** `message`: the one that says what was searched for; it may stand in a branch that is not shown. */
/** @typedef {{id: string, url: string, title: string, pinned: boolean, message?: number, snippet?: [string, boolean][]}} Entry */

const TYPING_MS = 150;
const list_ = $("#list");
const chats = $("#chats");
const more = $("#more-chats");
const none = $("#no-chats");
const emptyText = none.textContent ?? "";
export const search = /** @type {HTMLInputElement} */ ($("#search"));

let timer = 0;
let asking = new AbortController();

/** @param {Entry} entry */
function row({ id, url, title, pinned, message, snippet }) {
  const line = copyOf("row");
  line.dataset.id = id;
  line.classList.toggle("pinned", pinned);
  const link = /** @type {HTMLAnchorElement} */ ($("a", line));
  link.href = message ? `${url}?leaf=${message}` : url;
  if (id === conversation()) link.ariaCurrent = "page";
  name(line, title);
  if (snippet?.length) link.append(passage(snippet));
  return line;
}

/** @param {[string, boolean][]} snippet */
function passage(snippet) {
  const line = document.createElement("span");
  line.className = "snippet";
  for (const [part, isMatch] of snippet) {
    if (isMatch) line.appendChild(document.createElement("mark")).textContent = part;
    else line.append(part);
  }
  return line;
}

/** @param {HTMLElement} line */
export const titleOf = (line) => $("a", line).firstChild?.textContent?.trim() ?? "";

/** @param {HTMLElement} line @param {string} title */
export function name(line, title) {
  $("a", line).firstChild?.remove();
  $("a", line).prepend(title);
  $(".more", line).ariaLabel = text("about", { title });
}

/** @param {string} id */
export const line = (id) => $(`li[data-id="${CSS.escape(id)}"]`, list_);

/** What there is, or what is searched for, as the server has it. @param {string} [before] the page after this cursor */
export async function refresh(before = "") {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const q = search.value.trim();
  try {
    const found = await get(`/conversations?${new URLSearchParams({ q, before })}`, { signal });
    if (!before) list_.replaceChildren();
    list_.append(...found.conversations.map(row));
    more.hidden = !found.more;
    more.dataset.before = found.before ?? "";
    none.textContent = q ? text("nothing_found") : emptyText;
  } catch (/** @type {any} */ error) {
    if (!signal.aborted) toast(why(error));
  }
}

/** The conversation's line goes to the top, below those that are pinned. @param {string} url @param {string} title */
export function list(url, title) {
  if (search.value) return;
  const id = url.slice(url.lastIndexOf("/") + 1);
  const found = line(id) ?? row({ id, url, title, pinned: false });
  if (found.matches(".pinned")) return;
  const pinned = $$(".pinned", list_).pop();
  if (pinned) pinned.after(found);
  else list_.prepend(found);
}

/** Ctrl+K. On a phone the list comes in first. */
export function startSearch() {
  if (getComputedStyle(chats).display === "none") chats.showPopover();
  search.focus();
  search.select();
}

search.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(refresh, TYPING_MS);
});
more.onclick = () => refresh(more.dataset.before);

/** Arrow keys go from the search through what it found. */
chats.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.target instanceof HTMLButtonElement) return;
  const stops = [search, ...$$("a", list_)];
  const next = stops[stops.indexOf(/** @type {HTMLElement} */ (event.target)) + step];
  next?.focus();
  if (next) event.preventDefault();
});
