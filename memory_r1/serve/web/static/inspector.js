// What makes the pages quicker to use; all of them work without it.
"use strict";

const asDate = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
document.documentElement.classList.add("js");

// Moments in the reader's own form; their title keeps the exact one.
function localTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (!isNaN(moment)) time.textContent = asDate.format(moment);
  }
}

// Load a page and take over the parts that change.
let loading = null;
async function refresh(url) {
  loading?.abort();
  const mine = (loading = new AbortController());
  try {
    const reply = await fetch(url, { signal: mine.signal });
    if (reply.redirected) return location.assign(url);
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const came = page.getElementById("live");
    if (!came) return location.assign(url);
    localTimes(page);
    document.getElementById("live").replaceWith(document.adoptNode(came));
    const status = document.getElementById("status");
    const told = page.getElementById("status");
    if (status && told && status.textContent !== told.textContent) {
      status.replaceChildren(...document.adoptNode(told).childNodes);
    }
  } catch (error) {
    if (error.name !== "AbortError") console.warn(error.message); // the next try may do
  }
}

// Forms that show what they find while they are filled in.
for (const form of document.querySelectorAll("form[data-live]")) {
  let timer = 0;
  const show = (wait) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const asked = [...new FormData(form)].filter(([, value]) => value !== "");
      const url = form.getAttribute("action") + "?" + new URLSearchParams(asked);
      history.replaceState(null, "", url);
      refresh(url);
    }, wait);
  };
  form.addEventListener("input", () => show(150));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    show(0);
  });
}

// The slider says which moment it stands on.
for (const shown of document.querySelectorAll("output[data-shows]")) {
  const slider = document.getElementById(shown.dataset.shows);
  const exact = document.querySelector("[data-utc]");
  const tell = () => {
    const moment = new Date(slider.value * 1000);
    shown.textContent = asDate.format(moment);
    shown.title = moment.toISOString();
    slider.setAttribute("aria-valuetext", shown.textContent);
    if (exact) exact.value = moment.toISOString().slice(0, 19);
  };
  slider.addEventListener("input", tell);
  slider.setAttribute("aria-valuetext", shown.textContent.trim());
}

// What is still growing is looked at again, while somebody looks.
async function watch() {
  const growing = document.querySelector("[data-refresh]");
  if (!growing) return;
  if (!document.hidden) await refresh(location.href);
  setTimeout(watch, growing.dataset.refresh * 1000);
}
const growing = document.querySelector("[data-refresh]");
if (growing) setTimeout(watch, growing.dataset.refresh * 1000);

// Keys.
const keys = document.getElementById("keys");
const button = document.getElementById("show-keys");
button.hidden = false;
button.addEventListener("click", () => keys.showModal());

function move(by) {
  const items = [...document.querySelectorAll("[data-item]")];
  if (!items.length) return;
  const here = items.findIndex((item) => item.contains(document.activeElement));
  const next = items[here < 0 ? (by > 0 ? 0 : items.length - 1) : here + by];
  (next?.matches("[tabindex]") ? next : next?.querySelector("a, button"))?.focus();
}

function undo() {
  const item = document.activeElement.closest("[data-item]");
  const form = item?.querySelector("form[data-undo]") ?? (item?.closest(".items") ? null : document.querySelector("form[data-undo]"));
  if (form && confirm(form.dataset.undo)) form.requestSubmit();
}

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select");
  if (event.key === "Escape" && field) return field.blur();
  if (field || keys.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const acts = {
    "/": () => {
      const search = document.querySelector("[data-search]");
      search?.focus();
      search?.select();
    },
    j: () => move(1),
    k: () => move(-1),
    // The arrows scroll, unless the reader is going through a list.
    ...(document.activeElement.closest("[data-item]") && {
      ArrowDown: () => move(1),
      ArrowUp: () => move(-1),
    }),
    u: undo,
    "?": () => keys.showModal(),
  };
  if (!(event.key in acts)) return;
  event.preventDefault();
  acts[event.key]();
});

localTimes(document);
