// The table of documents: sorted, filtered, chosen from. Rows are changed in place, so that focus stays where it is.

import { bytes, count, duration } from "./format.js";

const list = document.getElementById("list");
const body = list.querySelector("tbody");
const heads = [...list.querySelectorAll("thead th")];
const filter = document.getElementById("filter");
const said = document.getElementById("said");

const rows = new Map();
const chosen = new Set();
let order = { by: "label", down: false };

/**
 * Shows documents of {name, label, tokens, bytes: {variant: bytes} or null, hits, created, expires, remove}, times in
 * seconds since 1970. `remove` is there for those that may be removed.
 */
export function show(documents) {
  const there = new Set(documents.map((one) => one.name));
  for (const [name, row] of rows) {
    if (there.has(name)) continue;
    if (row.contains(document.activeElement)) list.focus();
    row.remove();
    rows.delete(name);
    if (chosen.delete(name)) changed();
  }
  for (const one of documents) {
    if (!rows.has(one.name)) rows.set(one.name, makeRow(one));
    fill(rows.get(one.name), one);
  }
  arrange();
  list.hidden = !rows.size;
  document.getElementById("filter-label").hidden = rows.size < 2;
  document.getElementById("empty").hidden = rows.size > 0;
}

/** What is chosen, in the order in which it was. */
export const choice = () => [...chosen].map((name) => rows.get(name).document);

export function onChoice(listener) {
  list.addEventListener("choice", listener);
}

const changed = () => list.dispatchEvent(new Event("choice"));

function makeRow({ name, label, remove }) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  const box = Object.assign(document.createElement("input"), { type: "checkbox" });
  const text = Object.assign(document.createElement("bdi"), { textContent: label });
  const wrap = document.createElement("label");
  wrap.append(box, text);
  head.append(wrap);
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(name);
    else chosen.delete(name);
    changed();
  });
  if (remove) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
    button.setAttribute("aria-label", `Remove ${label}`);
    button.addEventListener("click", remove);
    const note = document.createElement("small");
    note.append(document.createElement("span"), button);
    head.append(note);
  }
  row.append(head, ...heads.slice(1).map(() => document.createElement("td")));
  return row;
}

function fill(row, one) {
  const sizes = Object.entries(one.bytes ?? {});
  const now = Date.now() / 1000;
  const keys = {
    label: one.label,
    tokens: one.tokens,
    size: one.bytes ? sizes.reduce((sum, [, size]) => sum + size, 0) : null,
    variants: one.bytes ? sizes.length : null,
    hits: one.hits,
    age: one.created === null ? null : now - one.created,
  };
  const shown = {
    tokens: count, size: bytes, hits: count, age: duration,
    variants: () => sizes.map(([variant, size]) => `${variant} ${bytes(size)}`).join("\n"),
  };
  heads.slice(1).forEach((head, index) => {
    const key = head.firstElementChild.dataset.sort;
    put(row.cells[index + 1], keys[key] === null ? "–" : shown[key](keys[key]));
    row.cells[index + 1].dataset.value = keys[key] ?? "";
  });
  if (one.expires) put(row.querySelector("small span"), `uploaded, kept for ${duration(one.expires - now)}`);
  Object.assign(row, { document: one, keys });
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function arrange() {
  const { by, down } = order;
  const sorted = [...rows.values()].sort((a, b) => {
    const [x, y] = [a.keys[by], b.keys[by]];
    const byName = a.keys.label.localeCompare(b.keys.label, "en", { numeric: true });
    if (by === "label") return down ? -byName : byName;
    // What is not known comes last either way.
    if (x === null || y === null) return (x === null) - (y === null) || byName;
    return (down ? y - x : x - y) || byName;
  });
  const wanted = filter.value.trim().toLowerCase();
  for (const row of sorted) row.hidden = !row.keys.label.toLowerCase().includes(wanted);
  if (sorted.every((row, index) => body.rows[index] === row)) return;
  const focused = document.activeElement;
  body.append(...sorted);
  if (body.contains(focused)) focused.focus({ preventScroll: true });
}

for (const head of heads) {
  head.firstElementChild.addEventListener("click", () => {
    order = { by: head.firstElementChild.dataset.sort, down: head.getAttribute("aria-sort") === "ascending" };
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    arrange();
    said.textContent = `sorted by ${head.textContent}, ${head.getAttribute("aria-sort")}`;
  });
}

filter.addEventListener("input", () => {
  arrange();
  said.textContent = `${[...rows.values()].filter((row) => !row.hidden).length} of ${rows.size} documents shown`;
});
