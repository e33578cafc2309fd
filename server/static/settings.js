// @ts-check
// The settings: how answers are chosen, here and everywhere; theme, language, reading along; files in and out.
// A change holds at once. An empty field takes what stands in it in grey: the default, else the model's official value.

import { NEW_SETTINGS, stored } from "./box.js";
import { $, $$, conversation, text } from "./dom.js";
import { refresh } from "./list.js";
import { get, post, why } from "./net.js";

/** @typedef {HTMLInputElement | HTMLTextAreaElement} Field */

const MOST_BYTES = 50_000_000; // as server/transfers.py
const dialog = /** @type {HTMLDialogElement} */ ($("#settings"));
const form = /** @type {HTMLFormElement} */ ($("form", dialog));
const fields = /** @type {Field[]} */ ($$("[data-kind]", form));
const saved = $(".saved", dialog);
const file = /** @type {HTMLInputElement} */ ($("#import-file"));
const result = $("#import-result");

/** @returns {"chat" | "default"} */
const scope = () => /** @type {any} */ (new FormData(form).get("scope"));

export function open() {
  if (!conversation()) for (const field of fields) field.dataset.chat = stored(undefined, NEW_SETTINGS)?.[field.name] ?? "";
  $("#chats:popover-open")?.hidePopover();
  fill();
  saved.textContent = "";
  dialog.showModal();
}

/** Each field shows what is chosen, and in grey what holds without. */
function fill() {
  for (const field of fields) {
    const { official = "", default: usual = "" } = field.dataset;
    field.value = field.dataset[scope()] ?? "";
    field.placeholder = (scope() === "chat" && usual) || official || "–";
    explain(field, "");
  }
}

/** @param {Field} field @param {string} what */
function explain(field, what) {
  const problem = $(".problem", /** @type {HTMLElement} */ (field.closest(".field")));
  problem.textContent = what;
  problem.hidden = !what;
  field.setAttribute("aria-invalid", String(!!what));
}

/** What is wrong with a number, in words; "" is nothing. @param {Field} field @param {string} given */
function wrong({ dataset: { kind, least, most, whole } }, given) {
  if (kind !== "number" || !given) return "";
  const n = Number(given);
  if (whole !== undefined && !Number.isInteger(n)) return text("whole_number");
  return n >= Number(least) && n <= Number(most) ? "" : text("out_of_range", { least: least ?? "", most: most ?? "" });
}

/** @param {Field} field */
async function save(field) {
  const isNumber = field.dataset.kind === "number";
  const given = isNumber ? field.value.trim().replace(",", ".") : field.value.trim();
  const where = scope();
  if (given === field.dataset[where]) return explain(field, "");
  const what = wrong(field, given);
  explain(field, what);
  if (what) return;
  try {
    await keep(where, { [field.name]: given === "" ? null : isNumber ? Number(given) : given });
    field.dataset[where] = given;
  } catch (/** @type {any} */ error) {
    explain(field, why(error));
  }
}

/** @param {"chat" | "default" | "page"} where @param {Record<string, unknown>} changes */
async function keep(where, changes) {
  saved.textContent = "";
  if (where !== "chat") await post("/preferences", changes);
  else if (conversation()) await post(`/conversations/${conversation()}`, { settings: changes });
  else stored(withoutNull({ ...stored(undefined, NEW_SETTINGS), ...changes }), NEW_SETTINGS);
  saved.textContent = text("saved");
}

/** @param {Record<string, unknown>} settings */
const withoutNull = (settings) => Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null));

/** What a reset puts into a field: nothing, or, in a chat, the official number that another default hides. */
/** @param {Field} field @param {string} where */
function official({ dataset }, where) {
  const isHidden = where === "chat" && dataset.kind === "number" && dataset.default && dataset.default !== dataset.official;
  return (isHidden && dataset.official) || "";
}

async function reset() {
  const where = scope();
  const values = fields.map((field) => [field.name, official(field, where)]);
  await keep(where, Object.fromEntries(values.map(([name, value]) => [name, value === "" ? null : Number(value)])));
  for (const field of fields) field.dataset[where] = official(field, where);
  fill();
}

/** How the page is. @param {HTMLInputElement | HTMLSelectElement} control */
async function choose(control) {
  const value = control.type === "checkbox" ? /** @type {HTMLInputElement} */ (control).checked : control.value;
  if (control.name === "theme") document.documentElement.dataset.theme = control.value;
  if (control.name === "reads_drafts") document.body.toggleAttribute("data-reads-drafts", Boolean(value));
  await keep("page", { [control.name]: value });
  if (control.name === "language") location.reload();
}

async function take() {
  const [chosen] = file.files ?? [];
  file.value = "";
  if (!chosen) return;
  if (chosen.size > MOST_BYTES) return show(text("import_too_large"));
  show(text("importing"));
  try {
    const headers = { "Content-Type": "application/json" };
    const { imported, skipped, problems } = await get("/import", { method: "POST", headers, body: chosen });
    show(text("imported", { n: imported, skipped }), problems);
    await refresh();
  } catch (/** @type {any} */ error) {
    show(why(error));
  }
}

/** @param {string} what @param {string[]} [problems] */
function show(what, problems = []) {
  const lines = [what, ...problems].map((line) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = line;
    return paragraph;
  });
  result.replaceChildren(...lines);
}

/** @param {Promise<void>} change */
const orSay = (change) => change.catch((error) => (saved.textContent = why(error)));

form.addEventListener("change", ({ target }) => {
  const control = /** @type {HTMLInputElement} */ (target);
  if (control.name === "scope") fill();
  else if (control.dataset.kind) save(control);
  else if (control !== file) orSay(choose(control));
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("keydown", (event) => {
  const { target } = event;
  if (event.key !== "Enter" || !(target instanceof HTMLInputElement) || !target.dataset.kind) return;
  event.preventDefault();
  save(target);
});
dialog.addEventListener("close", () => {
  for (const field of fields) save(field);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // beside it
});
$(".reset", form).onclick = () => orSay(reset());
$(".import", form).onclick = () => file.click();
file.onchange = take;
