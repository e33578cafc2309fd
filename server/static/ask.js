// @ts-check
// Questions and answers: send, stop, go on, answer again.

import { NEW_SETTINGS, box, newKey, place, remember, size, startEditing, stopEditing, stored, together, typed } from "./box.js";
import { $, $$, conversation, text as wording, words } from "./dom.js";
import { list } from "./list.js";
import { post } from "./net.js";
import { toEnd } from "./scroll.js";
import { say, silence } from "./speech.js";
import { attend, listen, listened } from "./stream.js";
import { add, articles, explain, isBusy, renew, settle } from "./thread.js";

const AGAIN_MS = 2000;
const problem = $("#problem");
let abort = new AbortController();

function begin() {
  explain(problem);
  document.dispatchEvent(new Event("asked"));
  silence();
  remember();
  size();
  toEnd();
}

/** Send a question; `rest` stays in the box. */
export async function ask(text = box.value.trim(), rest = typed.kept) {
  if (!text || isBusy()) return;
  const { edits, asked } = typed;
  const isSame = text === asked.text && edits === asked.edits && asked.key;
  typed.asked = { text, edits, key: isSame ? asked.key : newKey() };
  typed.isSending = true;
  abort = new AbortController();
  stopEditing();
  box.value = rest;
  const edited = articles().findIndex((article) => edits && article.dataset.id === edits);
  const gone = edited < 0 ? [] : articles().slice(edited); // another branch begins here
  for (const article of gone) article.remove();
  const [question, answer] = [add("user", text), add("assistant")];
  begin();
  try {
    await arrived(await send(), question, answer);
  } catch (/** @type {any} */ error) {
    typed.isSending = false;
    question.remove();
    answer.remove();
    $("#messages").append(...gone);
    if (gone[0]) startEditing(gone[0], text);
    else box.value = together(text, box.value);
    begin();
    if (abort.signal.aborted) return;
    explain(problem, error.message, error.again);
    if (error.code === "offline") whenBack();
  }
}

/** Sent, again and again while the server goes down or comes up. @returns {Promise<any>} */
async function send() {
  const { text, key, edits } = typed.asked;
  const body = { text, key, ...place(edits) };
  for (;;) {
    try {
      return await post("/messages", body, abort.signal);
    } catch (/** @type {any} */ error) {
      if (error.status !== 503 || error.code === "store_busy" || abort.signal.aborted) throw error;
      explain(problem, words("starting"));
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

/** @param {any} reply @param {HTMLElement} question @param {HTMLElement} answer */
async function arrived(reply, question, answer) {
  const { edits } = typed.asked;
  typed.isSending = false;
  typed.asked = { text: "", key: "", edits: "" };
  stored(null); // under the old name: a new chat has its own from here on
  if (!conversation()) enter(reply.conversation);
  remember();
  list(reply.conversation.url, reply.conversation.title);
  explain(problem);
  const known = articles().at(-3)?.dataset.id ?? "";
  if (known !== String(reply.parent ?? "")) return location.reload(); // another tab has gone on meanwhile
  question.dataset.id = reply.question;
  answer.dataset.id = reply.answer;
  if (edits) await branch();
  else listen(answer, 0);
}

/** The server knows the arrows of a new branch; without them its answer is listened to all the same. */
async function branch() {
  await renew();
  attend();
  toEnd();
}

/** A new chat has become a conversation. @param {{id: string, url: string, title: string}} where */
function enter({ id, url, title }) {
  const chosen = stored(undefined, NEW_SETTINGS) ?? {};
  for (const field of $$("#settings [data-chat]")) field.dataset.chat = chosen[field.getAttribute("name") ?? ""] ?? "";
  stored(null, NEW_SETTINGS);
  document.body.dataset.conversation = id;
  history.replaceState(null, "", url);
  document.title = `${title} · ${$(".brand span").textContent}`;
  $("#title").textContent = title;
  $("#about").hidden = false;
  $("#about").ariaLabel = wording("about", { title });
}

/** Say so when the server answers again. What was typed waits in the box for its writer. */
async function whenBack() {
  const why = $(".why", problem);
  const isWaiting = () => !problem.hidden && why.textContent === words("offline");
  while (isWaiting()) {
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    const reply = await fetch("/health").catch(() => null);
    if (reply?.ok && isWaiting()) return explain(problem, words("back"), true);
  }
}

/** Another answer to the same question, in the place of this one. @param {HTMLElement} article */
export async function retry(article) {
  if (isBusy()) return;
  const blocks = [$(".settled", article), $(".open", article)];
  const before = blocks.map((block) => [...block.childNodes]);
  const after = articles().slice(articles().indexOf(article) + 1);
  const couldGoOn = !$(".continue", article).hidden;
  article.setAttribute("aria-busy", "true");
  explain($(".note", article));
  for (const block of blocks) block.replaceChildren();
  for (const other of after) other.remove(); // they stay with the other answer, a branch aside
  begin();
  try {
    article.dataset.id = (await post(`/answers/${article.dataset.id}/retry`, {})).answer;
    await branch();
  } catch (/** @type {any} */ error) {
    blocks.forEach((block, at) => block.replaceChildren(...before[at]));
    article.after(...after);
    article.removeAttribute("aria-busy");
    explain($(".note", article), error.message, true, couldGoOn);
    say(error.message);
  }
}

/** A cut answer goes on behind its last word. @param {HTMLElement} article */
export async function goOn(article) {
  if (isBusy()) return;
  article.setAttribute("aria-busy", "true");
  explain($(".note", article));
  begin();
  try {
    await post(`/answers/${article.dataset.id}/continue`, {});
    listen(article, 0);
  } catch (/** @type {any} */ error) {
    const isFull = error.code === "context_length_exceeded"; // there was too little to forget
    settle(article, { status: "error", error: isFull ? { code: "length", message: error.message } : error });
    $(".continue", article).hidden = !error.again;
  }
}

export function halt() {
  const article = listened();
  if (!article) return abort.abort();
  const note = $(".note", article);
  post(`/answers/${article.dataset.id}/stop`, {}).catch(({ message }) => explain(note, message));
}
