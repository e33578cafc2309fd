// @ts-check
// The page is complete as the server sends it. This script sends a question, writes its answer while it comes, and keeps
// what is typed. It never builds markup from data: messages are clones of the page's templates, and text goes in as text.

/** @typedef {{status: string, reason?: string | null, error?: {code: string, message: string} | null, dropped?: number}} End */

/** @template {HTMLElement} T @param {string} selector @param {ParentNode} [root] @returns {T} */
const $ = (selector, root = document) => /** @type {T} */ (root.querySelector(selector));

/** @type {HTMLTextAreaElement} */ const box = $("#box");
/** @type {HTMLButtonElement} */ const send = $("#send");
const [thread, messages, problem, stop, latest, speech, chats] = ["thread", "messages", "problem", "stop", "latest", "speech", "chats"].map((id) => $(`#${id}`));
const isTouch = matchMedia("(pointer: coarse)").matches;

/** A text of the reader's language; "" where there is none. @param {string} key */
const words = (key) => $(`[data-key="${CSS.escape(key)}"]`, $("#texts"))?.textContent ?? "";

/** The reply, or what came instead: {code, message, again}, where `again` says that another try may help. */
/** @param {string} url @param {object} body @param {AbortSignal} [signal] @returns {Promise<any>} */
async function post(url, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch(url, { method: "POST", headers, body: JSON.stringify(body), signal }).catch(() => null);
  const data = await reply?.json().catch(() => null);
  if (reply?.status === 204 || (reply?.ok && data)) return data;
  // Without an error of ours there was no reply, or it is a proxy's own page.
  const { code, message } = data?.error ?? { code: "offline", message: "" };
  const again = !reply || reply.status >= 500 || [409, 429].includes(reply.status);
  throw { code, message: words(code) || message, again };
}

// --- what is typed -----------------------------------------------------------------------------------------------

let conversation = document.body.dataset.conversation ?? "";
/** The question of which nobody knows whether it arrived. Sent again with its key, the server stores it once. */
let asked = { text: "", key: "" };
let isSending = false;
let abort = new AbortController();

/** @param {string[]} parts */
const together = (...parts) => parts.filter((part) => part.trim()).join("\n\n");

/** localStorage, which may be forbidden or full: the page works, only a reload forgets. @param {object | null} [draft] */
function stored(draft) {
  const slot = `sparrow:${conversation}`;
  try {
    if (draft === undefined) return JSON.parse(localStorage.getItem(slot) ?? "null");
    if (draft) localStorage.setItem(slot, JSON.stringify(draft));
    else localStorage.removeItem(slot);
  } catch {
    return null;
  }
}

/** Keep what a reload would lose: the question on its way, and the box. */
function remember() {
  const draft = together(isSending ? asked.text : "", box.value);
  stored(draft ? { text: draft, key: draft === asked.text ? asked.key : "" } : null);
}

function recall() {
  asked = stored() ?? asked;
  const last = [...messages.querySelectorAll('[data-role="user"] .text')].pop()?.textContent;
  const didArrive = asked.key && asked.text === last;
  if (!didArrive && !box.value) box.value = asked.text;
  remember();
}

/** 128 random bits; crypto.randomUUID is missing where a phone opens http://192.168.… */
const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

// --- what is shown -----------------------------------------------------------------------------------------------

/** The answer that is listened to; `after`: number of the last event that is in `article` or in `pending`. */
/** @type {{article: HTMLElement, source: EventSource, after: number, pending: string, heard: number, spoken: number} | null} */
let live = null;
let timer = 0;
let lostTimer = 0;
let following = true;
let lastTop = 0;

const isBusy = () => $('#messages [aria-busy="true"]') !== null;

/** The stylesheet does the rest: which button there is, the welcome, the waiting sign follow from the messages. */
function refresh() {
  send.disabled = !box.value.trim();
  box.rows = Math.min(8, box.value.split("\n").length); // for browsers without field-sizing: content
}

function toEnd() {
  following = latest.hidden = true;
  if (messages.firstElementChild) thread.scrollTop = thread.scrollHeight; // the welcome is read from its top
}

/** @param {"user" | "assistant"} role @param {string} [content] */
function add(role, content = "") {
  messages.append(/** @type {HTMLTemplateElement} */ ($(`template#${role}`)).content.cloneNode(true));
  const article = /** @type {HTMLElement} */ (messages.lastElementChild);
  $(".text", article).textContent = content;
  return article;
}

/** @param {HTMLElement} note @param {string} [why] @param {boolean} [again] @param {boolean} [further] */
function explain(note, why = "", again = false, further = false) {
  $(".why", note).textContent = why;
  $(".retry", note).hidden = !again;
  for (const button of note.querySelectorAll(".continue")) /** @type {HTMLElement} */ (button).hidden = !further;
  note.hidden = !why;
}

/** A line above the first message that the last answer's model saw. @param {number} dropped messages before it */
function showMemory(dropped) {
  const said = [...messages.querySelectorAll("article")].filter((article) => $(".text", article).textContent);
  $(".memory", messages)?.remove();
  if (dropped && said[dropped]) said[dropped].before(/** @type {HTMLTemplateElement} */ ($("template#memory")).content.cloneNode(true));
}

/** @param {HTMLElement} article @param {End} end */
function settle(article, { status, reason, error, dropped }) {
  const why = error && status === "error" ? words(error.code) || error.message : words(reason === "length" ? "length" : status);
  article.removeAttribute("aria-busy");
  const isCut = ["stopped", "interrupted"].includes(status);
  explain($(".note", article), why, isCut || status === "error", isCut);
  if (dropped !== undefined) showMemory(dropped);
  say(why);
  if (following) toEnd();
  if (document.activeElement === stop && !isTouch) box.focus(); // Stop is gone
}

function flush() {
  timer = 0;
  if (!live?.pending) return;
  const body = $(".text", live.article);
  const node = /** @type {Text} */ (body.firstChild ?? body.appendChild(new Text()));
  node.appendData(live.pending);
  live.pending = "";
  speak(node.data, false);
  if (following) toEnd();
}

/** Whole sentences for who listens, not tokens. @param {string} whole @param {boolean} isEnd */
function speak(whole, isEnd) {
  if (!live) return;
  const rest = whole.slice(live.spoken);
  const sentences = isEnd ? rest : rest.match(/^[^]*(?:[.!?…]["”')\]]*\s|[。！？]|\n)/)?.[0] ?? "";
  live.spoken += sentences.length;
  say(sentences);
}

/** @param {string} what */
function say(what) {
  if (what.trim()) speech.appendChild(document.createElement("p")).textContent = what.trim();
}

/** The conversation's line in the list goes to the top. @param {string} url @param {string} title */
function list(url, title) {
  let line = $(`#list a[href="${CSS.escape(url)}"]`)?.parentElement;
  if (!line) {
    line = document.createElement("li");
    const link = line.appendChild(document.createElement("a"));
    [link.href, link.dir, link.ariaCurrent, link.textContent] = [url, "auto", "page", title];
  }
  $("#list").prepend(line);
}

// --- an answer ---------------------------------------------------------------------------------------------------

function begin() {
  explain(problem);
  speech.replaceChildren();
  remember();
  refresh();
  toEnd();
}

/** @param {HTMLElement} article @param {number} after */
function listen(article, after) {
  const source = new EventSource(`/answers/${article.dataset.id}/events?after=${after}`);
  const body = $(".text", article);
  const mine = { article, source, after, pending: "", heard: Date.now(), spoken: body.textContent?.length ?? 0 };
  live = mine;
  const found = () => {
    clearTimeout(lostTimer);
    lostTimer = 0;
    explain($(".note", article));
  };
  source.onopen = found;
  source.onerror = () => {
    // A short gap mends itself unseen. A refusal (a proxy's 502) ends an EventSource for good: begin a new one.
    lostTimer ||= setTimeout(() => explain($(".note", article), words("lost")), 1200);
    if (source.readyState === EventSource.CLOSED) setTimeout(() => live === mine && reconnect(), 2000);
  };
  source.addEventListener("delta", (event) => {
    [mine.after, mine.heard] = [Number(event.lastEventId), Date.now()];
    mine.pending += JSON.parse(event.data).text;
    if (timer) return; // a fast model: 30 times a second is often enough
    flush();
    timer = setTimeout(flush, 30); // no animation frame: those stand still in a tab behind another
  });
  // The server was away and goes on from what it had saved, which may be a little less than what was seen.
  source.addEventListener("reset", (event) => {
    [mine.after, mine.heard] = [Number(event.lastEventId), Date.now()];
    mine.pending = "";
    body.textContent = JSON.parse(event.data).text;
    mine.spoken = Math.min(mine.spoken, body.textContent?.length ?? 0);
    if (following) toEnd();
  });
  source.addEventListener("end", (event) => {
    found();
    source.close();
    flush();
    speak(body.textContent ?? "", true);
    live = null;
    settle(article, JSON.parse(event.data));
  });
}

function reconnect() {
  if (!live) return;
  live.source.close();
  flush();
  listen(live.article, live.after);
}

/** Send a question; `rest` stays in the box. */
async function ask(text = box.value.trim(), rest = "") {
  if (!text || isBusy()) return;
  asked = { text, key: (text === asked.text && asked.key) || newKey() };
  isSending = true;
  abort = new AbortController();
  box.value = rest;
  const [question, answer] = [add("user", text), add("assistant")];
  begin();
  try {
    const reply = await post("/messages", { ...asked, conversation: conversation || undefined }, abort.signal);
    arrived(reply.conversation);
    const known = [...messages.querySelectorAll("article")].at(-3)?.dataset.id ?? "";
    if (known !== String(reply.parent ?? "")) return location.reload(); // another tab has gone on meanwhile
    answer.dataset.id = reply.answer;
    listen(answer, 0);
  } catch (/** @type {any} */ error) {
    isSending = false;
    messages.removeChild(question);
    messages.removeChild(answer);
    box.value = together(text, box.value);
    begin();
    if (!abort.signal.aborted) explain(problem, error.message, error.again);
  }
}

/** @param {{id: string, url: string, title: string}} where */
function arrived({ id, url, title }) {
  isSending = false;
  asked = { text: "", key: "" };
  stored(null); // under the old name: a new chat has its own from here on
  if (!conversation) {
    document.body.dataset.conversation = conversation = id;
    history.replaceState(null, "", url);
    document.title = `${title} · Sparrow`;
    $("#title").textContent = title;
  }
  remember();
  list(url, title);
}

/** Another answer in the place of one that was cut. @param {HTMLElement} article */
async function retry(article) {
  if (isBusy()) return;
  const body = $(".text", article);
  const before = body.textContent;
  article.setAttribute("aria-busy", "true");
  explain($(".note", article));
  body.replaceChildren();
  begin();
  try {
    article.dataset.id = (await post(`/answers/${article.dataset.id}/retry`, {})).answer;
    listen(article, 0);
  } catch (/** @type {any} */ error) {
    body.textContent = before;
    settle(article, { status: "error", error });
  }
}

/** A cut answer goes on behind its last word. @param {HTMLElement} article */
async function goOn(article) {
  if (isBusy()) return;
  article.setAttribute("aria-busy", "true");
  explain($(".note", article));
  begin();
  try {
    await post(`/answers/${article.dataset.id}/continue`, {});
    listen(article, 0);
  } catch (/** @type {any} */ error) {
    settle(article, { status: "error", error });
    $(".continue", article).hidden = !error.again;
  }
}

function halt() {
  if (!live) return abort.abort();
  const note = $(".note", live.article);
  post(`/answers/${live.article.dataset.id}/stop`, {}).catch(({ message }) => explain(note, message));
}

// --- hands and keys ----------------------------------------------------------------------------------------------

stop.onclick = ({ detail }) => detail < 2 && halt(); // the second click of a hasty double click on Send is no Stop
latest.onclick = toEnd;
box.oninput = () => (remember(), refresh());
addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // an input method's Enter chooses a word (229: in Safari)
  if (event.key === "Escape" && isBusy() && !chats.matches(":popover-open")) halt();
  if (event.key !== "Enter" || event.target !== box || event.shiftKey) return;
  if (isTouch && !event.ctrlKey && !event.metaKey) return; // on glass Enter makes a line
  event.preventDefault();
  ask();
});
thread.addEventListener("click", ({ target }) => {
  if (!(target instanceof HTMLElement)) return;
  if (target.matches("article .retry")) retry(/** @type {HTMLElement} */ (target.closest("article")));
  if (target.matches(".continue")) goOn(/** @type {HTMLElement} */ (target.closest("article")));
  if (target.matches("#problem .retry")) ask();
  if (target.matches(".example")) ask(target.textContent?.trim(), box.value);
});
thread.addEventListener("scroll", () => {
  const gap = thread.scrollHeight - thread.clientHeight - thread.scrollTop;
  if (gap <= 8) following = true;
  else if (thread.scrollTop < lastTop) following = false; // the reader went up: let go
  latest.hidden = following;
  lastTop = thread.scrollTop;
}, { passive: true });
new ResizeObserver(() => following && toEnd()).observe(thread); // a keyboard opened, a phone was turned
// iOS lays its keyboard over the page; elsewhere 100dvh is right by itself.
const view = visualViewport;
if (view) view.onresize = () => view.scale === 1 && document.body.style.setProperty("--height", `${view.height}px`);
// A lid was closed, a Wi-Fi went: the old connection may be dead without knowing it.
addEventListener("online", reconnect);
document.addEventListener("visibilitychange", () => !document.hidden && live && Date.now() - live.heard > 20_000 && reconnect());
addEventListener("pageshow", (event) => event.persisted && location.reload());
addEventListener("submit", (event) => {
  event.preventDefault(); // "/?" would be the address that the form alone makes
  if (event.target === $("#ask")) ask();
  else location.assign("/");
});

const unfinished = $('#messages [aria-busy="true"]');
if (unfinished) listen(unfinished, Number(unfinished.dataset.after));
recall();
refresh();
toEnd();
if (!isTouch) box.focus();
