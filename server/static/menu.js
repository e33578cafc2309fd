// @ts-check
// What can be done with a whole conversation: rename, pin, export, delete, and take the deleting back.

import { $, $$, conversation, text, toast } from "./dom.js";
import { line, name, refresh, titleOf } from "./list.js";
import { post, why } from "./net.js";

const GONE = "sparrow:gone";
const menu = $("#menu");
const dialog = /** @type {HTMLDialogElement} */ ($("#rename"));
const field = /** @type {HTMLInputElement} */ ($("#new-title"));

let about = { id: "", title: "" };
/** The button that opened the menu. @type {HTMLElement | null} */
let opener = null;

/** Below its button, or above it where there is no room. @param {HTMLElement} button */
export function aim(button) {
  opener = button;
  const row = /** @type {HTMLElement | null} */ (button.closest("li"));
  const id = row?.dataset.id ?? conversation();
  about = { id, title: row ? titleOf(row) : ($("#title").textContent ?? "") };
  for (const link of $$("a", menu)) /** @type {HTMLAnchorElement} */ (link).href = `/c/${id}/export?form=${link.dataset.form}`;
  $('[data-do="pin"] span', menu).textContent = text(line(id)?.matches(".pinned") ? "unpin" : "pin");
  const { top, bottom, right } = button.getBoundingClientRect();
  const isLow = bottom > innerHeight * 0.6;
  menu.style.setProperty("--right", `${Math.max(8, innerWidth - Math.max(right, 250))}px`);
  menu.style.setProperty("--top", isLow ? "auto" : `${bottom + 4}px`);
  menu.style.setProperty("--bottom", isLow ? `${innerHeight - top + 4}px` : "auto");
}

/** @type {Record<string, () => void>} */
const actions = {
  rename() {
    field.value = about.title;
    explain("");
    dialog.showModal();
    field.select();
  },
  pin() {
    const pinned = !line(about.id)?.matches(".pinned");
    post(`/conversations/${about.id}`, { pinned }).then(() => refresh()).catch((error) => toast(why(error)));
  },
  async delete() {
    const { id, title } = about;
    try {
      await post(`/conversations/${id}/delete`, {});
    } catch (/** @type {any} */ error) {
      return toast(why(error));
    }
    line(id)?.remove();
    if (id !== conversation()) return offer(id, title);
    sessionStorage.setItem(GONE, JSON.stringify({ id, title }));
    location.assign("/");
  },
};

/** @param {string} id @param {string} title */
function offer(id, title) {
  toast(text("deleted", { title }), async () => {
    try {
      await post(`/conversations/${id}/restore`, {});
    } catch (/** @type {any} */ error) {
      return toast(error.code === "not_found" ? text("deleted_long_ago") : why(error));
    }
    await refresh();
    toast(text("restored", { title }));
    $("a", line(id))?.focus();
  });
}

/** @param {string} what */
function explain(what) {
  const problem = $(".problem", dialog);
  problem.textContent = what;
  problem.hidden = !what;
}

menu.addEventListener("click", ({ target }) => {
  const item = target instanceof Element ? target.closest("button, a") : null;
  if (!item) return;
  menu.hidePopover();
  opener?.focus();
  actions[/** @type {HTMLElement} */ (item).dataset.do ?? ""]?.();
});

$("form", dialog).addEventListener("submit", async (event) => {
  event.preventDefault();
  const title = field.value.trim();
  if (!title) return field.focus();
  try {
    await post(`/conversations/${about.id}`, { title });
  } catch (/** @type {any} */ error) {
    return explain(why(error));
  }
  dialog.close();
  const row = line(about.id);
  if (row) name(row, title);
  if (about.id !== conversation()) return;
  $("#title").textContent = title;
  document.title = `${title} · ${$(".brand span").textContent}`;
});

/** Deleting the conversation that was shown led here. */
function afterwards() {
  try {
    const gone = JSON.parse(sessionStorage.getItem(GONE) ?? "null");
    sessionStorage.removeItem(GONE);
    if (gone) offer(gone.id, gone.title);
  } catch {
    // Storage is forbidden: the deleting stays, only the way back is not offered.
  }
}

afterwards();
