// @ts-check
// The page is complete as the server sends it. This is where hands and keys meet what the other modules do.

import { ask, goOn, halt, retry } from "./ask.js";
import { box, recall, remember, size, stopEditing, typed } from "./box.js";
import { copyCode, copyMessage } from "./copy.js";
import { $, $$, isTouch, toast, within, words } from "./dom.js";
import "./drafts.js";
import { arrive, edit, editLast, remove, turn } from "./edit.js";
import { search, startSearch } from "./list.js";
import { aim } from "./menu.js";
import { toEnd } from "./scroll.js";
import { attend } from "./stream.js";
import { isBusy } from "./thread.js";

const thread = $("#thread");
const stop = $("#stop");

/** What a button inside a message does, by its class. @type {Record<string, (button: HTMLElement, article: HTMLElement) => void>} */
const tools = {
  retry: (_, article) => retry(article),
  regenerate: (_, article) => retry(article),
  continue: (_, article) => goOn(article),
  edit: (_, article) => edit(article),
  delete: (_, article) => remove(article),
  copy: copyMessage,
  "copy-code": copyCode,
};

thread.addEventListener("click", (event) => {
  const button = within(event.target, "button");
  const article = within(event.target, "article");
  const arrow = within(event.target, ".branches a");
  if (arrow) {
    event.preventDefault();
    turn(/** @type {HTMLAnchorElement} */ (arrow));
  } else if (button?.matches("#problem .retry")) ask();
  else if (button?.matches(".example")) ask(button.textContent?.trim(), box.value);
  else if (button && article) for (const name of button.classList) tools[name]?.(button, article);
  else if (article) touch(article);
});

/** On glass a message's tools come when it is touched. @param {HTMLElement} article */
function touch(article) {
  for (const other of $$(".touched", thread)) if (other !== article) other.classList.remove("touched");
  article.classList.toggle("touched");
}

/** @param {KeyboardEvent} event */
function keysOfTheBox(event) {
  if (event.key === "ArrowUp" && !box.value && !isBusy()) {
    event.preventDefault();
    return editLast();
  }
  if (event.key !== "Enter" || event.shiftKey) return;
  if (isTouch && !event.ctrlKey && !event.metaKey) return; // on glass Enter makes a line
  event.preventDefault();
  ask();
}

addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // an input method's Enter chooses a word (229: in Safari)
  if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey) {
    event.preventDefault();
    return startSearch();
  }
  if (event.key === "Escape") escape(event);
  if (event.target === box) keysOfTheBox(event);
});

/** Esc ends one thing at a time: what lies over the page (the browser does that), editing, searching, the answer. */
/** @param {KeyboardEvent} event */
function escape(event) {
  if ($$(":popover-open, dialog[open]").length) return;
  if (event.target === search) return search.value ? undefined : box.focus();
  if (typed.edits) return stopEditing();
  if (isBusy()) halt();
}

document.addEventListener("click", async ({ target }) => {
  const more = within(target, ".more");
  if (more) aim(more);
  if (within(target, ".cancel, .close")) /** @type {HTMLDialogElement | null} */ (within(target, "dialog"))?.close();
  if (!within(target, ".open-settings")) return;
  const settings = await import("./settings.js").catch(() => toast(words("failed")));
  settings?.open();
});

stop.onclick = ({ detail }) => detail < 2 && halt(); // the second click of a hasty double click on Send is no Stop
$("#editing .cancel").onclick = () => (stopEditing(), box.focus());
box.oninput = () => (remember(), size());
addEventListener("submit", (event) => {
  const form = /** @type {HTMLFormElement} */ (event.target);
  if (form.method === "dialog") return;
  event.preventDefault(); // "/?" would be the address that the form alone makes
  if (form === $("#ask")) ask();
  else if (form !== $("#find")) location.assign("/");
  else $("#list a")?.focus();
});
document.addEventListener("answered", () => {
  const at = document.activeElement;
  if ((at === stop || at === document.body) && !isTouch) box.focus(); // Stop is gone
});

// iOS lays its keyboard over the page; elsewhere 100dvh is right by itself.
const view = visualViewport;
if (view) view.onresize = () => view.scale === 1 && document.body.style.setProperty("--height", `${view.height}px`);
addEventListener("pageshow", (event) => event.persisted && location.reload());

attend();
recall();
if (!arrive()) toEnd();
if (!isTouch && !search.value) box.focus();
// Where the page comes from this machine or over https, it opens also while the server is away.
navigator.serviceWorker?.register(`/sw.js?v=${document.body.dataset.version}`).catch(() => {});
