// Text files become cached contents; each is watched until it is prefilled.

import { Refused, json } from "./api.js";
import { count, percent } from "./format.js";

const EVERY = 400;
// What the server takes for a name.
const NAME = 128;
const KEPT = "3600s";
const part = document.getElementById("upload");
const drop = document.getElementById("drop");
const picker = document.getElementById("files");
const uploads = document.getElementById("uploads");
const said = document.getElementById("said");
const watched = new Set();

let model = "";
let done = () => {};

/** Uploads are for `name`, the server's model; `whenDone` is called after each. */
export function start(name, whenDone) {
  model = name;
  done = whenDone;
}

export function allow(isPossible) {
  part.hidden = !isPossible;
}

async function upload(file) {
  const item = add(file.name);
  try {
    const text = await decoded(file);
    item.tell("sending");
    const displayName = [...file.name].slice(0, NAME).join("");
    const body = { model, displayName, contents: [{ role: "user", parts: [{ text }] }], ttl: KEPT };
    const made = await json("v1/cachedContents", { method: "POST", body });
    watched.add(made.name);
    await follow(item, made);
  } catch (error) {
    item.fail(error.message);
  }
}

/** Shows how far one has come that another page, or this one before it was loaded anew, began. */
export function watch(content) {
  if (watched.has(content.name)) return;
  watched.add(content.name);
  const item = add(content.displayName || content.name);
  follow(item, content).catch((error) => item.fail(error.message));
}

async function follow(item, content) {
  while (content.state === "PROCESSING") {
    item.move(content.progress);
    await new Promise((after) => setTimeout(after, EVERY));
    content = await json(`v1/${content.name}`);
  }
  if (content.state === "FAILED") throw new Refused(500, content.error?.message ?? "It could not be prefilled.");
  item.finish(content.usageMetadata?.totalTokenCount);
  done();
}

async function decoded(file) {
  const text = await file.arrayBuffer();
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(text);
  } catch {
    throw new Refused(400, "This is not a text file in UTF-8.");
  }
}

function add(name) {
  const item = document.createElement("li");
  const label = Object.assign(document.createElement("bdi"), { textContent: name });
  const bar = document.createElement("progress");
  bar.setAttribute("aria-label", `Prefilling ${name}`);
  const state = document.createElement("span");
  item.append(label, bar, state);
  uploads.append(item);
  let quarter = 0;
  return {
    tell(text) {
      state.textContent = text;
    },
    move({ tokens = 0, tokensTotal = 0 } = {}) {
      if (!tokensTotal) return;
      Object.assign(bar, { value: tokens, max: tokensTotal });
      state.textContent = `${count(tokens)} of ${count(tokensTotal)} tokens`;
      // A screen reader that is told each step has no time for anything else.
      if (Math.floor((4 * tokens) / tokensTotal) > quarter) {
        quarter = Math.floor((4 * tokens) / tokensTotal);
        said.textContent = `${name}: ${percent(quarter / 4)} prefilled`;
      }
    },
    finish(tokens) {
      Object.assign(bar, { value: 1, max: 1 });
      item.className = "done";
      state.textContent = tokens ? `✓ ready, ${count(tokens)} tokens` : "✓ ready";
      said.textContent = `${name} is ready`;
    },
    fail(message) {
      bar.remove();
      item.className = "failed";
      state.textContent = `✕ ${message}`;
      said.textContent = `${name}: ${message}`;
    },
  };
}

picker.addEventListener("change", () => {
  for (const file of picker.files) upload(file);
  picker.value = "";
});

for (const name of ["dragover", "dragleave", "drop"]) {
  part.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") for (const file of event.dataTransfer.files) upload(file);
  });
}
