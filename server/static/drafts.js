// @ts-check
// While somebody types, the server reads along, so that the first word of the answer comes at once when they send.
// It forgets what it has read; nothing here is needed for sending.

const PAUSE_MS = 300;

/** @type {HTMLTextAreaElement} */ const box = /** @type {any} */ (document.querySelector("#box"));
const savesData = () => /** @type {any} */ (navigator).connection?.saveData === true;
let timer = 0;
let last = "";

function read() {
  if (document.querySelector('#messages [aria-busy="true"]')) return wait(); // it is read when that answer has ended
  const conversation = document.body.dataset.conversation || undefined;
  const body = JSON.stringify({ conversation, text: box.value.trim() });
  const what = body + document.querySelectorAll("#messages article").length; // the same words after another answer
  if (!box.value.trim() || what === last || savesData()) return;
  last = what;
  fetch("/drafts", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => (last = ""));
}

function wait() {
  clearTimeout(timer);
  timer = setTimeout(read, PAUSE_MS);
}

box.addEventListener("input", wait);
if (box.value) wait(); // what a reload has kept
