// A question over what is chosen, answered with caches and without, side by side.

import { events, request } from "./api.js";
import { choice, onChoice } from "./documents.js";
import { count, plural, seconds } from "./format.js";

const form = document.getElementById("ask-form");
const question = document.getElementById("question");
const stop = document.getElementById("stop");
const verdict = document.getElementById("verdict");
const buttons = [...form.querySelectorAll("[type=submit]")];
const panes = { with: {}, without: {} };
const measured = {};

let model = "";
let running = null;
let done = () => {};

for (const [name, parts] of Object.entries(panes)) {
  const article = document.getElementById(name);
  parts.article = article;
  for (const part of ["first-token", "facts", "answer", "problem"]) {
    parts[part] = article.getElementsByClassName(part)[0];
  }
  parts.bar = article.querySelector("rect");
}

export function start(name, whenDone) {
  model = name;
  done = whenDone;
}

function body(isCached) {
  const names = choice().map((one) => one.name);
  const over = {};
  // One upload alone is a cached content; beside others it is a document as they are.
  if (names.length === 1 && choice()[0].isContent) over.cached_content = names[0];
  else if (names.length) over.documents = names;
  return {
    model, ...over, messages: [{ role: "user", content: question.value.trim() }],
    temperature: 0, stream: true, stream_options: { include_usage: true }, ...(isCached ? {} : { use_cache: false }),
  };
}

async function ask(name) {
  if (running) return;
  if (!question.value.trim()) {
    question.setCustomValidity("Type a question first.");
    question.reportValidity();
    return;
  }
  const pane = panes[name];
  const sent = body(name === "with");
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  running = new AbortController();
  busy(true);
  delete measured[name];
  clear(pane);
  pane["first-token"].textContent = "Waiting for the first token";
  let first = null;
  try {
    for await (const event of events(await request("v1/chat/completions", { method: "POST", body: sent, signal: running.signal }))) {
      const text = event.choices[0]?.delta.content;
      if (text) {
        if (first === null) {
          first = elapsed();
          measured[name] = { first, asked: asked(sent) };
          tell(pane, first);
        }
        pane.answer.append(text);
      }
      if (event.usage) facts(pane, event.usage, elapsed() - (first ?? 0));
    }
    if (first === null) pane["first-token"].textContent = "The model had nothing to say";
  } catch (error) {
    if (first === null) pane["first-token"].textContent = "";
    if (error.name === "AbortError") pane.facts.textContent = "Stopped.";
    else pane.problem.textContent = `✕ ${error.message}`;
  } finally {
    pane.answer.setAttribute("aria-busy", "false");
    running = null;
    busy(false);
    compare();
    done();
  }
}

/** What two answers must share to be compared. */
const asked = ({ use_cache, ...rest }) => JSON.stringify(rest);

function clear(pane) {
  pane.article.hidden = false;
  for (const part of ["facts", "answer", "problem"]) pane[part].textContent = "";
  pane.bar.setAttribute("width", 0);
  // While it grows, nothing of it is read aloud; then all of it, once.
  pane.answer.setAttribute("aria-busy", "true");
  verdict.textContent = "";
}

function tell(pane, first) {
  const time = Object.assign(document.createElement("strong"), { textContent: seconds(first) });
  pane["first-token"].replaceChildren(time, " to the first token");
}

function facts(pane, usage, time) {
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const speed = usage.completion_tokens > 1 && time > 0 ? `, ${((usage.completion_tokens - 1) / time).toFixed(1)} a second` : "";
  pane.facts.textContent =
    `${count(cached)} of ${plural(usage.prompt_tokens, "prompt token")} from caches · ` +
    `${plural(usage.completion_tokens, "token")} said${speed}`;
}

/** Bars of both panes are to one scale; a verdict is given only where both were asked the same. */
function compare() {
  const most = Math.max(...Object.values(measured).map((one) => one.first));
  for (const [name, { first }] of Object.entries(measured)) panes[name].bar.setAttribute("width", (100 * first) / most);
  const { with: a, without: b } = measured;
  if (!a || !b || a.asked !== b.asked) return;
  const times = Math.max(b.first / a.first, a.first / b.first).toPrecision(2);
  verdict.textContent = `With caches, the first token came ${Number(times)} times ${b.first >= a.first ? "sooner" : "later"}.`;
}

function busy(isBusy) {
  // Not `disabled`: that would take the focus away from the very button that was pressed.
  for (const button of buttons) button.setAttribute("aria-disabled", isBusy);
  stop.setAttribute("aria-disabled", !isBusy);
}

function tellChoice() {
  const labels = choice().map((one) => one.label);
  document.getElementById("chosen").textContent = labels.length
    ? `Over ${labels.join(", ")}.`
    : "Over no document. Choose some in the table, or ask the model alone.";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask(event.submitter?.dataset.pane ?? "with");
});
question.addEventListener("input", () => question.setCustomValidity(""));
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask("with");
});
stop.addEventListener("click", () => running?.abort());
onChoice(tellChoice);
tellChoice();
