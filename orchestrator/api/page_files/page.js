// Asks again for what changes by itself, and shows an explanation beside its question. The page works without.
"use strict";
const EVERY_MS = 2000;
const live = document.getElementById("live");

async function fetched(from) {
  const answer = await fetch(from, { headers: { "X-Requested-With": "page" }, signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.text();
}

async function again() {
  // Whoever is in the midst of it with the keyboard, or has marked text there, keeps what he sees.
  const busy = live.contains(document.activeElement) || live.contains(getSelection().anchorNode) && !getSelection().isCollapsed;
  if (!document.hidden && !busy) {
    try {
      live.innerHTML = await fetched(live.dataset.from);
    } catch {
      document.getElementById("stale").hidden = false;
    }
  }
  setTimeout(again, EVERY_MS);
}
setTimeout(again, EVERY_MS);

for (const form of document.querySelectorAll("form[data-into]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const into = document.getElementById(form.dataset.into);
    into.textContent = "…";
    try {
      into.innerHTML = await fetched(form.action + "?" + new URLSearchParams(new FormData(form)));
    } catch (error) {
      into.textContent = "No answer: " + error.message;
    }
  });
}
