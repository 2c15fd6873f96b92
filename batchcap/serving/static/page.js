// Captions pictures that are dropped, pasted or chosen, copies captions, and eases forms. All pages work without it.
"use strict";

document.documentElement.classList.add("script");

// Requests at once: enough for the server to make a batch of them.
const AT_ONCE = 6;
const MOST_TRIES = 8;

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https the clipboard is out of reach but for this.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.dataset.label ?? button.textContent;
  button.dataset.label = label;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", () => copy(button.dataset.copy, button));
}

// What is left empty needs no place in the address.
document.querySelector("form.search")?.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (!value.trim()) formData.delete(name);
});
// The browser says what is wrong beside a field only if that is to be seen.
document.querySelector(".filters")?.addEventListener("invalid", (event) => {
  event.currentTarget.open = true;
}, true);
// A caption is one line.
document.querySelector(".edit textarea")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.isComposing) {
    event.preventDefault();
    event.currentTarget.form.requestSubmit();
  }
});

const form = document.getElementById("caption-form");
if (form) startCaptioning(form);

function startCaptioning(form) {
  const input = document.getElementById("files");
  const list = document.getElementById("captions");
  const template = document.getElementById("caption-card");
  const bar = document.getElementById("caption-bar");
  const status = document.getElementById("caption-status");
  const maxBytes = Number(form.dataset.maxBytes);
  const waiting = [];
  let running = 0;

  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("is-dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("is-dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("is-dragging");
    add(event.dataTransfer.files);
  });
  document.getElementById("copy-all").addEventListener("click", (event) => {
    const done = [...list.querySelectorAll('[data-state="done"]')];
    copy(done.map((card) => `${part(card, ".name")}\t${part(card, ".caption")}`).join("\n"), event.target);
  });
  document.getElementById("clear-all").addEventListener("click", () => {
    waiting.length = 0;
    for (const image of list.querySelectorAll("img[src]")) URL.revokeObjectURL(image.src);
    list.replaceChildren();
    report();
    input.focus();
  });

  function part(card, selector) {
    return card.querySelector(selector).textContent;
  }

  function add(files) {
    for (const file of files) {
      const card = template.content.firstElementChild.cloneNode(true);
      card.querySelector(".name").textContent = file.name;
      card.querySelector(".caption").textContent = "Waiting…";
      const image = card.querySelector("img");
      // What the browser can't show has no preview; it is captioned all the same.
      image.addEventListener("error", () => image.removeAttribute("src"));
      image.src = URL.createObjectURL(file);
      card.querySelector(".copy").addEventListener("click", (event) => copy(part(card, ".caption"), event.target));
      list.append(card);
      waiting.push({ file, card });
    }
    next();
  }

  function next() {
    while (running < AT_ONCE && waiting.length) {
      running += 1;
      caption(waiting.shift()).finally(() => {
        running -= 1;
        next();
      });
    }
    report();
  }

  async function caption({ file, card }) {
    if (file.size > maxBytes) {
      fail(card, `The file has more than ${Math.floor(maxBytes / 1e6)} MB.`);
      return;
    }
    try {
      const answer = await send(file);
      show(card, answer);
    } catch (error) {
      fail(card, error.message);
    }
  }

  async function send(file) {
    for (let tries = 1; ; tries += 1) {
      const body = new FormData();
      body.append("file", file);
      let response;
      try {
        response = await fetch("/caption", { method: "POST", body });
      } catch {
        throw new Error("The server doesn’t answer.");
      }
      if (response.status === 429 && tries < MOST_TRIES) {
        const seconds = Number(response.headers.get("Retry-After")) || 1;
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
        continue;
      }
      const answer = await response.json().catch(() => ({}));
      if (!response.ok) throw new Error(answer.error?.message ?? `The server says ${response.status}.`);
      return answer;
    }
  }

  function show(card, answer) {
    card.dataset.state = "done";
    card.querySelector(".caption").textContent = answer.caption;
    card.querySelector("img").alt = answer.caption;
    card.querySelector(".copy").hidden = false;
    if (answer.confidence !== null) {
      const confidence = card.querySelector(".confidence");
      confidence.hidden = false;
      confidence.querySelector("meter").value = answer.confidence;
      confidence.querySelector("span").textContent = `${Math.round(100 * answer.confidence)}% confidence`;
    }
  }

  function fail(card, message) {
    card.dataset.state = "failed";
    card.querySelector(".caption").textContent = message;
  }

  function report() {
    const cards = list.querySelectorAll(".card").length;
    const done = list.querySelectorAll('[data-state="done"]').length;
    const failed = list.querySelectorAll('[data-state="failed"]').length;
    bar.hidden = !cards;
    status.textContent = `${done} of ${cards} captioned${failed ? `, ${failed} failed` : ""}`;
  }
}
