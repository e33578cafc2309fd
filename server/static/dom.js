// @ts-check
// The page's parts by their selectors, and its texts in the reader's language. The page never builds markup from data:
// what it adds are copies of its own templates, with text put in as text, and answers, which server/markdown.py made safe.

/** @template {Element} [T=HTMLElement] @param {string} selector @param {ParentNode} [root] @returns {T} */
export const $ = (selector, root = document) => /** @type {T} */ (root.querySelector(selector));

/** @template {Element} [T=HTMLElement] @param {string} selector @param {ParentNode} [root] @returns {T[]} */
export const $$ = (selector, root = document) => /** @type {T[]} */ ([...root.querySelectorAll(selector)]);

/** A copy of what stands in a <template>. @param {string} id @returns {HTMLElement} */
export const copyOf = (id) => {
  const content = /** @type {HTMLTemplateElement} */ ($(`template#${id}`)).content;
  return /** @type {HTMLElement} */ (/** @type {Element} */ (content.firstElementChild).cloneNode(true));
};

/** What an error of this code, or an answer in this state, means to people; "" where there are no words. */
/** @param {string} key */
export const words = (key) => $(`[data-key="${CSS.escape(key)}"]`, $("#texts"))?.textContent ?? "";

/** Another text of the page, {name} replaced by `values.name`. @param {string} key @param {Record<string, string | number>} [values] */
export function text(key, values = {}) {
  const found = $(`[data-text="${CSS.escape(key)}"]`, $("#texts")).textContent ?? "";
  return found.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

export const isTouch = matchMedia("(pointer: coarse)").matches;

/** The conversation that is shown; "" is a new chat. */
export const conversation = () => document.body.dataset.conversation ?? "";

/** @param {EventTarget | null} target @param {string} selector @returns {HTMLElement | null} */
export const within = (target, selector) => (target instanceof Element ? target.closest(selector) : null);

let timer = 0;

/** A line at the foot of the page that goes by itself, later while it is pointed at. @param {string} what @param {() => void} [undo] */
export function toast(what, undo) {
  const line = $("#toast");
  const button = $("button", line);
  $(".what", line).textContent = what;
  line.hidden = false;
  button.hidden = !undo;
  button.onclick = () => {
    line.hidden = true;
    undo?.();
  };
  clearTimeout(timer);
  const leave = () => (line.matches(":hover, :focus-within") ? (timer = setTimeout(leave, 2000)) : (line.hidden = true));
  timer = setTimeout(leave, undo ? 15_000 : 4000);
}
