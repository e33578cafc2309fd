// @ts-check
// The page that the service worker shows while the server is away: it looks whether the server is back, and goes there.

const LOOK_MS = 2000;

async function look() {
  const reply = await fetch("/health", { cache: "no-store" }).catch(() => null);
  if (reply?.ok) location.reload();
  else setTimeout(look, LOOK_MS);
}

addEventListener("submit", (event) => {
  event.preventDefault();
  location.reload();
});
addEventListener("online", look);
setTimeout(look, LOOK_MS);
