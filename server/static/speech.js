// @ts-check
// A live region speaks the answer by whole sentences, not by tokens.

import { $ } from "./dom.js";

const speech = $("#speech");
const LETTER = /[\p{L}\p{N}]/u;
const SENTENCES = /^[^]*(?:[.!?…]["”'’)\]]*\s|[。！？]|\n)/;

/** @param {string} what */
export function say(what) {
  const words = what.trim().replace(/\s+/g, " ");
  if (words) speech.appendChild(document.createElement("p")).textContent = words;
}

export const silence = () => speech.replaceChildren();

/** What follows the first n letters. Letters, because marks like ** come and go while a block is written. */
/** @param {string} whole @param {number} n */
function behind(whole, n) {
  let at = 0;
  for (const sign of whole) {
    if (n <= 0) break;
    if (LETTER.test(sign)) n--;
    at += sign.length;
  }
  return whole.slice(at).replace(/^[^\p{L}\p{N}\s]+(?=\s|$)/u, ""); // the point that ended what was said
}

/** @param {string} what */
const letters = (what) => [...what].filter((sign) => LETTER.test(sign)).length;

/** Speaks one answer as it grows. `spoken`: letters of the open block that were said. */
export class Speaker {
  spoken = 0;

  /** What is there already is not news. @param {HTMLElement} open */
  constructor(open) {
    this.spoken = letters(open.textContent ?? "");
  }

  /** Blocks that were finished. @param {Iterable<Node>} blocks */
  settled(blocks) {
    for (const block of blocks) {
      const rest = behind(block.textContent ?? "", this.spoken);
      if (block instanceof Element || rest.trim()) {
        say(rest);
        this.spoken = 0;
      }
    }
  }

  /** The block that is being written. @param {string} whole */
  open(whole) {
    if (!/[.!?…。！？\n]/.test(whole)) return;
    const sentences = behind(whole, this.spoken).match(SENTENCES)?.[0] ?? "";
    if (!LETTER.test(sentences)) return;
    this.spoken += letters(sentences);
    say(sentences);
  }
}
