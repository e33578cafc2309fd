// @ts-check
// Changes of what was said: edit a question, move between the branches, delete a message and what follows from it.

import { startEditing, stopEditing } from "./box.js";
import { $, conversation, toast } from "./dom.js";
import { post, why } from "./net.js";
import { attend } from "./stream.js";
import { articles, isBusy, renew } from "./thread.js";

const confirm = /** @type {HTMLDialogElement} */ ($("#confirm"));

/** @param {HTMLElement} article */
export const edit = (article) => isBusy() || startEditing(article);

/** ↑ in an empty box. */
export function editLast() {
  const last = articles().filter((article) => article.dataset.role === "user").pop();
  if (last) edit(last);
}

/** Show the branch that the arrow points to; the conversation remembers it. @param {HTMLAnchorElement} arrow */
export async function turn(arrow) {
  const leaf = Number(new URL(arrow.href).searchParams.get("leaf"));
  const isForward = arrow.matches(":last-child");
  try {
    await post(`/conversations/${conversation()}`, { leaf });
  } catch (/** @type {any} */ error) {
    return toast(why(error));
  }
  stopEditing();
  const at = articles().findIndex((article) => article.contains(arrow));
  if (!(await renew(`#messages article:nth-of-type(${at + 1})`))) return location.reload();
  attend();
  const arrows = $(".branches", articles()[at]);
  const next = $(isForward ? ":last-child" : ":first-child", arrows);
  (next.matches("a") ? next : $("a", arrows)).focus(); // the keyboard stays where it was
}

/** @param {HTMLElement} article */
export function remove(article) {
  if (isBusy()) return;
  confirm.returnValue = "";
  confirm.onclose = async () => {
    if (confirm.returnValue !== "yes") return;
    try {
      await post(`/messages/${article.dataset.id}/delete`, {});
    } catch (/** @type {any} */ error) {
      return toast(why(error));
    }
    stopEditing();
    if (!(await renew())) return location.reload();
    $("#box").focus();
  };
  confirm.showModal();
}

/** The address names a message, as a search's results do: its branch is the one that is gone on with from here. */
/** @returns {boolean} whether it is shown */
export function arrive() {
  const leaf = new URLSearchParams(location.search).get("leaf");
  const found = leaf && $(`#messages article[data-id="${CSS.escape(leaf)}"]`);
  if (!found) return false;
  post(`/conversations/${conversation()}`, { leaf: Number(leaf) }).catch(() => {}); // then a reload says which it is
  history.replaceState(null, "", location.pathname);
  found.classList.add("found");
  found.scrollIntoView({ block: "center" });
  return true;
}
