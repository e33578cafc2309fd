// @ts-check
// While somebody types, the server reads along, so that the first word of the answer comes at once when they send.
// It forgets what it has read; nothing here is needed for sending.

import { box, place } from "./box.js";
import { $, $$ } from "./dom.js";
import { isBusy } from "./thread.js";

const PAUSE_MS = 300;
const sign = $("#reading");
const savesData = () => /** @type {any} */ (navigator).connection?.saveData === true;
const isWanted = () => "readsDrafts" in document.body.dataset && !savesData();
let timer = 0;
let last = "";

async function read() {
  if (isBusy()) return wait(); // it is read when that answer has ended
  const text = box.value.trim();
  const body = JSON.stringify({ ...place(), text });
  const what = body + $$("#messages article").length; // the same words after another answer
  if (!text || what === last || !isWanted()) return;
  last = what;
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch("/drafts", { method: "POST", headers, body }).catch(() => null);
  if (!reply?.ok) last = "";
  sign.hidden = !reply?.ok || !box.value.trim() || isBusy();
}

function wait() {
  clearTimeout(timer);
  timer = setTimeout(read, PAUSE_MS);
  if (!box.value.trim() || isBusy()) sign.hidden = true;
}

box.addEventListener("input", wait);
document.addEventListener("asked", () => (sign.hidden = true));
if (box.value) wait(); // what a reload has kept
