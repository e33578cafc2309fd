// @ts-check
// Copying a message's own text (an answer's Markdown, not what was made of it) and blocks of code.

import { $, text, toast } from "./dom.js";
import { say } from "./speech.js";

const DONE_MS = 1500;

/** @param {HTMLElement} button @param {HTMLElement} article */
export function copyMessage(button, article) {
  const isAnswer = article.dataset.role === "assistant";
  const source = isAnswer ? sourceOf(article) : Promise.resolve($(".text", article).textContent ?? "");
  return copy(button, source);
}

/** @param {HTMLElement} button */
export function copyCode(button) {
  const code = $("code", /** @type {HTMLElement} */ (button.closest(".code")));
  return copy(button, Promise.resolve((code.textContent ?? "").replace(/\n$/, "")));
}

/** @param {HTMLElement} article @returns {Promise<string>} */
async function sourceOf(article) {
  const reply = await fetch(`/messages/${article.dataset.id}/text`);
  if (!reply.ok) throw new Error(reply.statusText);
  return reply.text();
}

/** @param {HTMLElement} button @param {Promise<string>} source */
async function copy(button, source) {
  try {
    await write(source);
  } catch {
    return toast(text("copy_failed"));
  }
  say(text("copied"));
  const isDone = (/** @type {boolean} */ is) => {
    button.classList.toggle("done", is);
    $("use", button)?.setAttribute("href", is ? "#check-icon" : "#copy-icon");
  };
  isDone(true);
  setTimeout(isDone, DONE_MS, false);
}

/** Safari wants the promise inside the click, not what it will give. @param {Promise<string>} source */
async function write(source) {
  if (navigator.clipboard && "ClipboardItem" in window) {
    const blob = source.then((text) => new Blob([text], { type: "text/plain" }));
    return navigator.clipboard.write([new ClipboardItem({ "text/plain": blob })]);
  }
  writeOld(await source);
}

/** Where a phone opens http://192.168.… there is no navigator.clipboard. @param {string} text */
function writeOld(text) {
  const area = document.body.appendChild(document.createElement("textarea"));
  area.className = "unseen";
  area.value = text;
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  if (!isDone) throw new Error("refused");
}
