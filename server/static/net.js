// @ts-check
// Asking the server, and its errors in the reader's words.

import { words } from "./dom.js";

/** What came instead of a reply; `again` says that another try may help. status: HTTP's, 0 when nothing came. */
/** @typedef {{code: string, message: string, status: number, again: boolean}} Failure */

/** The reply's JSON. Throws a Failure. @param {string} url @param {RequestInit} [init] @returns {Promise<any>} */
export async function get(url, init) {
  const reply = await fetch(url, init).catch(() => null);
  const data = await reply?.json().catch(() => null);
  if (reply?.status === 204 || (reply?.ok && data)) return data;
  // Without an error of ours there was no reply, or it is a proxy's own page.
  const { code, message } = data?.error ?? { code: "offline", message: "" };
  const again = !reply || reply.status >= 500 || [409, 429].includes(reply.status);
  throw { code, message: words(code) || message, status: reply?.status ?? 0, again };
}

/** @param {string} url @param {object} body @param {AbortSignal} [signal] @returns {Promise<any>} */
export function post(url, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return get(url, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** A change that could not be made, in words. @param {Failure} error */
export const why = (error) => (error.code === "offline" ? words("failed") : error.message);
