// @ts-check
// The messages that are shown: added, explained, and fetched anew after a change that only the server knows in full.

import { $, $$, conversation, copyOf, text, words } from "./dom.js";
import { keepingPlace } from "./scroll.js";

/** @typedef {{n_prompt: number, n_reused: number, n_completion: number, first_token_s: number, tokens_per_s: number}} Stats */
/** @typedef {{status: string, reason?: string | null, error?: {code: string, message: string} | null, dropped?: number, stats?: Stats | null}} End */

const N_AT_ONCE = 8;
const SLICE_MS = 8;
/** @param {() => void} act */
const later = (act) => ("requestIdleCallback" in window ? requestIdleCallback(act, { timeout: 500 }) : setTimeout(act, 30));

export const messages = $("#messages");
const gauge = $("#gauge");
const nContext = Number(gauge.getAttribute("aria-valuemax"));

export const isBusy = () => $('[aria-busy="true"]', messages) !== null;
export const articles = () => $$("article", messages);

/** @param {"user" | "assistant"} role @param {string} [content] */
export function add(role, content = "") {
  const article = copyOf(role);
  if (content) $(".text", article).textContent = content;
  dress(article);
  messages.append(article);
  return article;
}

/** @param {HTMLElement} note @param {string} [why] @param {boolean} [again] @param {boolean} [further] */
export function explain(note, why = "", again = false, further = false) {
  $(".why", note).textContent = why;
  $(".retry", note).hidden = !again;
  for (const button of $$(".continue", note)) button.hidden = !further;
  note.hidden = !why;
}

/** The messages that say anything. */
const said = () => articles().filter((article) => $(".text", article).textContent?.trim());

/** A line above the first message that the last answer's model saw. @param {number} dropped messages before it */
function showMemory(dropped) {
  $(".memory", messages)?.remove();
  if (dropped) said()[dropped]?.before(copyOf("memory"));
}

/** @param {number} used tokens */
function showGauge(used) {
  const share = Math.min(100, Math.floor((100 * used) / nContext));
  gauge.hidden = !used;
  gauge.setAttribute("aria-valuenow", String(used));
  const [n, all] = [used, nContext].map((number) => number.toLocaleString("en-US"));
  gauge.setAttribute("aria-valuetext", text("gauge", { used: n, n: all }));
  gauge.title = text("gauge", { used: n, n: all });
  $(".used", gauge).setAttribute("stroke-dasharray", `${share} 100`);
  $("span", gauge).textContent = `${share} %`;
}

/** A half goes up, as in templates/_texts.html: a reload changes no figure. @param {number} n @param {number} digits */
const rounded = (n, digits) => (Math.floor(n * 10 ** digits + 0.5) / 10 ** digits).toFixed(digits);

/** @param {HTMLElement} article @param {Stats} stats */
function showNumbers(article, stats) {
  const line = $(".numbers", article);
  const speed = stats.tokens_per_s;
  line.hidden = !stats.n_completion;
  $("summary", line).textContent = text("speed", { n: rounded(speed, speed < 10 ? 1 : 0) });
  const first = rounded(stats.first_token_s, stats.first_token_s < 1 ? 2 : 1);
  $("p", line).textContent = text("numbers", { n: stats.n_completion, first, reused: stats.n_reused, prompt: stats.n_prompt });
}

/** The answer is over; the note below it says why, where that is not plain. Returns what the note says. */
/** @param {HTMLElement} article @param {End} end */
export function settle(article, { status, reason, error, dropped, stats }) {
  const used = stats ? stats.n_prompt + stats.n_completion : 0;
  const canForget = said().length - (dropped ?? 0) > 2; // more than the question and this answer
  const limit = used < nContext ? "limit" : canForget ? "full" : "length";
  const why = error && status === "error" ? words(error.code) || error.message : words(reason === "length" ? limit : reason === "time" ? "time" : status);
  article.removeAttribute("aria-busy");
  const isCut = ["stopped", "interrupted"].includes(status);
  explain($(".note", article), why, isCut || status === "error", isCut || (["length", "time"].includes(reason) && limit !== "length"));
  if (dropped !== undefined) showMemory(dropped);
  if (stats) {
    showNumbers(article, stats);
    showGauge(used);
  }
  dress(article);
  return why;
}

/** What the script adds to a message: what can be done with it, and with its code. @param {HTMLElement} article */
export function dress(article) {
  const old = $(".tools", article);
  if (!old.querySelector(".copy")) {
    const tools = copyOf(`${article.dataset.role}-tools`);
    tools.prepend(...$$(".branches", old));
    tools.append(...$$(".numbers", old));
    old.replaceWith(tools);
  }
  for (const code of $$(".settled .code:not(:has(.copy-code))", article)) {
    const button = document.createElement("button");
    [button.type, button.className, button.textContent] = ["button", "copy-code", text("copy_code")];
    code.append(button);
  }
}

/** The last messages at once, those above when there is time. */
function dressAll() {
  const todo = articles().reverse();
  for (const article of todo.splice(0, N_AT_ONCE)) dress(article);
  const some = () => {
    const until = performance.now() + SLICE_MS;
    while (todo.length && performance.now() < until) dress(/** @type {HTMLElement} */ (todo.shift()));
    if (todo.length) later(some);
  };
  if (todo.length) later(some);
}

/** The conversation as the server has it now; whoever calls listens to its answer, if one is being written. */
/** @param {string} [anchor] what stays where it is seen @returns {Promise<boolean>} false: the server is away */
export async function renew(anchor = "") {
  const reply = await fetch(`/c/${conversation()}`).catch(() => null);
  if (!reply?.ok) return false;
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  keepingPlace(anchor || "#messages", () => messages.replaceChildren(...$("#messages", page).childNodes));
  showGauge(Number($("#gauge", page).getAttribute("aria-valuenow")));
  dressAll();
  return true;
}

dressAll();
