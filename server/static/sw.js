// @ts-check
// The service worker: while the server is away, a page of the same look says so instead of the browser's own error.
// It keeps nothing of what was said: conversations are in one place, the server's.

const worker = /** @type {any} */ (self);
const version = new URL(worker.location.href).searchParams.get("v") ?? "";
const shell = ["/offline", ...["chat.css", "offline.js", "sparrow.svg"].map((name) => `/static/${version}/${name}`)];

async function keep() {
  const cache = await caches.open(version);
  await cache.addAll(shell);
  await worker.skipWaiting();
}

async function forget() {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name !== version).map((name) => caches.delete(name)));
  await worker.clients.claim();
}

worker.addEventListener("install", (/** @type {any} */ event) => event.waitUntil(keep()));
worker.addEventListener("activate", (/** @type {any} */ event) => event.waitUntil(forget()));
worker.addEventListener("fetch", (/** @type {any} */ event) => {
  const { request } = event;
  const isOpening = request.mode === "navigate" && request.method === "GET";
  const { pathname } = new URL(request.url);
  if (isOpening) event.respondWith(fetch(request).catch(() => caches.match("/offline")));
  else if (shell.includes(pathname)) event.respondWith(caches.match(pathname).then((kept) => kept ?? fetch(request)));
});
