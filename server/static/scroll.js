// @ts-check
// The thread follows the answer that is being written, until its reader scrolls up.

import { $ } from "./dom.js";

const thread = $("#thread");
const latest = $("#latest");

let following = !location.search; // an address that names a message is read from there
let lastTop = 0;

export function toEnd() {
  following = latest.hidden = true;
  if ($("article", thread)) thread.scrollTop = thread.scrollHeight; // the welcome is read from its top
}

/** Call it after the text has grown. */
export const follow = () => following && toEnd();

/** Change the thread; what is at `selector` stays where it is seen. @param {string} selector @param {() => void} change */
export function keepingPlace(selector, change) {
  const top = () => $(selector)?.getBoundingClientRect().top;
  const before = top();
  change();
  const after = top();
  if (before !== undefined && after !== undefined) thread.scrollTop += after - before;
  else follow();
}

thread.addEventListener("scroll", () => {
  const gap = thread.scrollHeight - thread.clientHeight - thread.scrollTop;
  if (gap <= 8) following = true;
  else if (thread.scrollTop < lastTop) following = false; // the reader went up: let go
  latest.hidden = following;
  lastTop = thread.scrollTop;
}, { passive: true });
latest.onclick = toEnd;
const resized = new ResizeObserver(follow);
resized.observe(thread); // a keyboard opened, a phone was turned
resized.observe($(".column", thread)); // what is far above was laid out, and is taller than was thought
