// @ts-check
// The pages that stand in while the server is away or its model is loading: they look whether it is there, and go there.

const LOOK_MS = 2000;
const LOADING_MS = 500;

async function look() {
  const reply = await fetch("/health", { cache: "no-store" }).catch(() => null);
  if (reply?.ok) return location.reload();
  const bar = document.querySelector("progress"); // while the model is loading
  if (bar) bar.value = (await reply?.json().catch(() => null))?.progress ?? bar.value;
  setTimeout(look, bar ? LOADING_MS : LOOK_MS);
}

addEventListener("submit", (event) => {
  event.preventDefault();
  location.reload();
});
addEventListener("online", look);
setTimeout(look, LOADING_MS);
