// Asks the server now and then what there is, and gives each part of the page its share.

import { Refused, json, request, token } from "./api.js";
import * as asking from "./ask.js";
import * as charts from "./charts.js";
import * as documents from "./documents.js";
import * as uploading from "./upload.js";

const DOCUMENTS_EVERY = 10_000;
const STATS_EVERY = 2_000;
const CONTENTS = "cachedContents/";
const access = document.getElementById("access");
const field = document.getElementById("token");
const problem = document.getElementById("problem");
const pause = document.getElementById("pause");

const absent = new Set();
let isKnown = false;
let needsToken = false;

async function model() {
  const [found] = (await json("v1/models")).data;
  document.getElementById("model").textContent = found.id;
  document.title = `${found.id} · kvtool serve-cache`;
  document.getElementById("about").textContent =
    `Answers over documents whose KV caches are ready. Context of ${found.max_model_len.toLocaleString("en")} tokens.`;
  asking.start(found.id, refresh);
  uploading.start(found.id, refresh);
}

/** What is at `path`, or null where the server has no such part, which is asked for once only. */
async function ifThere(path) {
  if (absent.has(path)) return null;
  try {
    return await json(path);
  } catch (error) {
    if (!(error instanceof Refused && error.isAbsent)) throw error;
    absent.add(path);
    return null;
  }
}

async function contents() {
  const found = [];
  let next = "";
  do {
    const page = await ifThere(`v1/cachedContents${next && `?pageToken=${encodeURIComponent(next)}`}`);
    if (!page) return null;
    found.push(...(page.cachedContents ?? []));
    next = page.nextPageToken ?? "";
  } while (next);
  return found;
}

async function list() {
  const [stored, uploaded] = await Promise.all([ifThere("v1/documents"), contents()]);
  document.getElementById("documents").hidden = !stored && !uploaded;
  uploading.allow(uploaded !== null);
  uploaded?.filter((one) => one.state === "PROCESSING").forEach(uploading.watch);
  const found = stored?.data ?? [];
  // Uploads are among the documents too, but under a name that says nothing, and before and after they can be asked.
  const active = (uploaded ?? []).filter((one) => one.state === "ACTIVE");
  documents.show([
    ...found.filter((one) => !one.name.startsWith(CONTENTS)).map((one) => ({ ...one, label: one.name })),
    ...active.map((one) => content(one, found.find(({ name }) => name === one.name))),
  ]);
}

function content(one, stored) {
  const label = one.displayName || one.name;
  return {
    name: one.name, label, isContent: true,
    tokens: stored?.tokens ?? one.usageMetadata?.totalTokenCount ?? null,
    bytes: stored?.bytes ?? null, hits: stored?.hits ?? null,
    created: one.createTime ? Date.parse(one.createTime) / 1000 : (stored?.created ?? null),
    expires: Date.parse(one.expireTime) / 1000,
    remove: async () => {
      if (!confirm(`Remove ${label} from the server?`)) return;
      await attempt("remove", () => request(`v1/${one.name}`, { method: "DELETE" }));
      await attempt("list", list);
    },
  };
}

async function stats() {
  const found = await ifThere("v1/stats");
  document.getElementById("charts").hidden = !found;
  if (found) charts.add(found);
}

/** Runs `part`; what goes wrong is said, until the same `name` goes well. */
async function attempt(name, part) {
  try {
    await part();
    if (problem.dataset.of === name) problem.textContent = "";
    return true;
  } catch (error) {
    problem.dataset.of = name;
    // Said once, not at every attempt: it is read aloud.
    if (problem.textContent !== `✕ ${error.message}`) problem.textContent = `✕ ${error.message}`;
    if (error.status === 401) access.open = needsToken = true;
    return false;
  }
}

const refresh = () => attempt("list", list);

async function begin() {
  isKnown = await attempt("model", model);
  if (isKnown) await Promise.all([refresh(), attempt("stats", stats)]);
}

function every(milliseconds, part) {
  setInterval(() => {
    if (!document.hidden && !needsToken) (isKnown ? part : begin)();
  }, milliseconds);
}

field.value = token.get();
document.getElementById("access-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(field.value.trim());
  needsToken = false;
  absent.clear();
  begin();
});
pause.addEventListener("click", () => {
  pause.setAttribute("aria-pressed", pause.getAttribute("aria-pressed") !== "true");
});

every(DOCUMENTS_EVERY, refresh);
every(STATS_EVERY, async () => {
  if (pause.getAttribute("aria-pressed") !== "true") await attempt("stats", stats);
});
begin();
