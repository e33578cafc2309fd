// @ts-check
// An answer while it is being written: server-sent events into its article, whatever happens to the connection.

import { $, text, words } from "./dom.js";
import { follow } from "./scroll.js";
import { Speaker, say } from "./speech.js";
import { dress, explain, messages, settle } from "./thread.js";

/** What changes in an answer: server/live.py says how. @typedef {{settled?: string, open?: string, tail?: string, text?: string}} Patch */
/** @typedef {{queue?: number, read?: number, left_s?: number | null, loading?: boolean}} Wait */

const FLUSH_MS = 30; // no animation frame: those stand still in a tab behind another
const SILENT_MS = 20_000;
const NOTHING = { settled: "", open: null, tail: null, text: "" };

/** One reader of one answer. `after`: number of the last event that is in the article, or about to be. */
class Listener {
  /** @param {HTMLElement} article @param {number} after */
  constructor(article, after) {
    this.article = article;
    this.after = after;
    this.heard = Date.now();
    this.settled = $(".settled", article);
    this.open = $(".open", article);
    this.speaker = new Speaker(this.open);
    /** What has come and is not shown yet. @type {{settled: string, open: string | null, tail: string | null, text: string}} */
    this.pending = { ...NOTHING };
    /** Ends of lines that are not shown yet. */
    this.held = "";
    this.hold();
    this.timer = 0;
    this.source = new EventSource(`/answers/${article.dataset.id}/events?after=${after}`);
    this.source.onopen = () => this.found();
    this.source.onerror = () => this.missed();
    this.on("delta", (patch) => this.take(patch));
    this.on("reset", (patch) => this.begin(patch));
    this.on("wait", (wait) => showWait(article, wait));
    this.on("end", (end) => this.end(end));
  }

  /** @param {string} name @param {(data: any) => void} act */
  on(name, act) {
    this.source.addEventListener(name, (event) => {
      const { lastEventId, data } = /** @type {MessageEvent} */ (event);
      this.heard = Date.now();
      if (lastEventId) this.after = Number(lastEventId) || this.after;
      act(JSON.parse(data));
    });
  }

  found() {
    clearTimeout(lost);
    lost = 0;
    explain($(".note", this.article));
  }

  /** A short gap mends itself unseen. A refusal (a proxy's 502) ends an EventSource for good: begin a new one. */
  missed() {
    lost ||= setTimeout(() => explain($(".note", this.article), words("lost")), 1200);
    if (this.source.readyState === EventSource.CLOSED) setTimeout(() => live === this && reconnect(), 2000);
  }

  /** @param {Patch} patch */
  take(patch) {
    const { pending } = this;
    pending.settled += patch.settled ?? "";
    if (patch.open !== undefined) [pending.open, pending.tail, pending.text] = [patch.open, null, ""];
    if (patch.tail !== undefined) [pending.tail, pending.text] = [patch.tail, ""];
    pending.text += patch.text ?? "";
    if (this.timer) return; // a fast model: 30 times a second is often enough
    this.flush();
    this.timer = setTimeout(() => this.flush(), FLUSH_MS);
  }

  /** The server goes on from what it had saved, which may be a little less than what was seen. @param {Patch} patch */
  begin(patch) {
    this.pending = { ...NOTHING };
    this.settled.innerHTML = patch.settled ?? "";
    this.open.innerHTML = patch.open ?? "";
    this.hold();
    dress(this.article);
    follow();
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = 0;
    const { settled, open, tail, text } = this.pending;
    this.pending = { ...NOTHING };
    if (settled) this.append(settled);
    if (open !== null) this.open.innerHTML = open;
    if (tail !== null) $(".tail", this.open).innerHTML = tail;
    if (open !== null || tail !== null) this.hold();
    if (text) this.write(text);
    this.speaker.open(this.open.textContent?.trimEnd() ?? "");
    follow();
  }

  /** The open block goes on. @param {string} text */
  write(text) {
    const tail = $(".tail", this.open) ?? this.open;
    if (tail.lastChild instanceof Text) tail.lastChild.appendData(this.held + text);
    else tail.append(this.held + text);
    this.hold();
  }

  /** A line of code that has no letter yet takes no room: the block would shrink at its end. */
  hold() {
    const last = $("pre .tail", this.open)?.lastChild;
    const data = last instanceof Text ? last.data : "";
    this.held = /\n*$/.exec(data)?.[0] ?? "";
    if (this.held) /** @type {Text} */ (last).data = data.slice(0, -this.held.length);
  }

  /** @param {string} html finished blocks */
  append(html) {
    const before = this.settled.childNodes.length;
    this.settled.insertAdjacentHTML("beforeend", html);
    this.speaker.settled([...this.settled.childNodes].slice(before));
    dress(this.article);
  }

  /** @param {import("./thread.js").End} end */
  end(end) {
    this.found();
    this.flush();
    this.speaker.settled([this.open]);
    this.close();
    live = null;
    say(settle(this.article, end));
    follow();
    document.dispatchEvent(new Event("answered"));
  }

  close() {
    clearTimeout(this.timer);
    this.source.close();
  }
}

/** @type {Listener | null} */
let live = null;
let lost = 0;

/** @param {HTMLElement} article @param {Wait} wait */
function showWait(article, { queue = 0, read = 1, left_s: left, loading = false }) {
  const parts = loading ? [text("waking")]
    : queue > 1 ? [text("queue", { n: queue })]
    : queue === 1 ? [text("queue_next")]
    : read < 1 ? [text("reading", { share: Math.floor(100 * read) })] : [];
  if (left && left >= 1) parts.push(text("left", { s: Math.round(left) }));
  const how = $(".how", article);
  // Seconds that go by are seen; spoken is what changes for the listener.
  const isNews = !how.textContent || ((queue > 0 || loading) && how.textContent.split(" · ")[0] !== parts[0]);
  if (how.textContent === parts.join(" · ")) return;
  how.textContent = parts.join(" · ");
  if (isNews) say(how.textContent);
}

export const listened = () => live?.article ?? null;

/** @param {HTMLElement} article @param {number} after number of the last event that the article shows */
export function listen(article, after) {
  live?.close();
  live = new Listener(article, after);
}

/** Listen to the answer that the page shows in the middle, if there is one. */
export function attend() {
  const unfinished = $('[aria-busy="true"]', messages);
  if (unfinished) return listen(unfinished, Number(unfinished.dataset.after));
  live?.close();
  live = null;
}

function reconnect() {
  if (!live) return;
  live.flush();
  live.close();
  live = new Listener(live.article, live.after);
}

// A lid was closed, a Wi-Fi went: the old connection may be dead without knowing it.
addEventListener("online", reconnect);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && live && Date.now() - live.heard > SILENT_MS) reconnect();
});
