// Four small charts of the last minutes, from the totals that the server tells now and then.

import { bytes, count, percent, seconds } from "./format.js";

const SPAN = 300;
const WIDTH = 300;
const HEIGHT = 90;
const parent = document.querySelector("#charts .charts");
const namespace = document.querySelector("svg").namespaceURI;
const samples = [];

const CHARTS = [
  {
    title: "Requests running", format: count, least: 4,
    series: [{ name: "", of: (sample) => sample.running }],
  },
  {
    title: "Time to first token", format: seconds, least: 0.05,
    series: [
      { name: "cached", of: (sample) => sample.first.cached },
      { name: "not cached", of: (sample) => sample.first.uncached },
    ],
  },
  {
    title: "Memory of caches", format: bytes, limit: (sample) => sample.memory.limit,
    series: [{ name: "", of: (sample) => sample.memory.used }],
  },
  {
    title: "Prompt tokens from caches", format: percent, limit: () => 1,
    series: [{ name: "", of: (sample) => sample.share }],
  },
].map((chart) => ({ ...chart, ...make(chart) }));

/** Takes in what /v1/stats says. Averages are over what happened since the last time. */
export function add(stats) {
  const time = performance.now() / 1000;
  const last = samples.at(-1)?.stats;
  const since = (of) => (last ? of(stats) - of(last) : 0);
  const first = Object.fromEntries(
    Object.keys(stats.time_to_first_token).map((kind) => {
      const answers = since((one) => one.time_to_first_token[kind].count);
      return [kind, answers > 0 ? since((one) => one.time_to_first_token[kind].seconds) / answers : null];
    }),
  );
  const tokens = since((one) => one.tokens.prompt);
  const share = tokens > 0 ? since((one) => one.tokens.cached) / tokens : null;
  samples.push({ time, stats, running: stats.running, memory: stats.memory, first, share });
  while (samples[0].time < time - SPAN) samples.shift();
  for (const chart of CHARTS) draw(chart, time);
}

function make({ title, series }) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.append(Object.assign(document.createElement("span"), { textContent: title }));
  const now = series.map(({ name }, index) => {
    const value = document.createElement("strong");
    if (!name) return value;
    const key = Object.assign(document.createElement("span"), { className: `key series-${index + 1}` });
    key.append(value, ` ${name}`);
    return value;
  });
  const values = document.createElement("span");
  values.className = "values";
  values.append(...now.map((value) => (value.parentElement ?? value)));
  caption.append(values);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const lines = [0, 0.5, 1].map((y) => `M0 ${y * HEIGHT}H${WIDTH}`).join("");
  const paths = series.map((_, index) => [
    shape("path", { class: `line series-${index + 1}` }),
    shape("path", { class: `dots series-${index + 1}` }),
  ]);
  svg.append(shape("path", { class: "grid", d: lines }), ...paths.flat());
  const [scale, ...ends] = ["scale", "", ""].map((name) => Object.assign(document.createElement("span"), { className: name }));
  const axis = document.createElement("p");
  axis.className = "axis";
  axis.setAttribute("aria-hidden", "true");
  ends[0].textContent = "5 min ago";
  ends[1].textContent = "now";
  axis.append(...ends);
  scale.setAttribute("aria-hidden", "true");
  figure.append(caption, scale, svg, axis);
  parent.append(figure);
  return { svg, scale, now, paths };
}

function draw({ title, format, series, least, limit, svg, scale, now, paths }, time) {
  const found = series.map(({ of }) => samples.map((sample) => [sample.time, of(sample)]).filter(([, y]) => y !== null));
  const highest = Math.max(0, ...found.flat().map(([, y]) => y));
  const most = limit ? limit(samples.at(-1)) : round(Math.max(least, highest));
  scale.textContent = format(most);
  const place = ([t, y]) => [WIDTH * (1 - (time - t) / SPAN), HEIGHT * (1 - Math.min(1, y / most))].map((v) => v.toFixed(1));
  found.forEach((points, index) => {
    const placed = points.map(place);
    const [line, dots] = paths[index];
    line.setAttribute("d", placed.map(([x, y], n) => `${n ? "L" : "M"}${x} ${y}`).join(""));
    // A line of no length has round or square ends: a mark that keeps its shape, however the chart is stretched.
    const marked = points.length === samples.length ? placed.slice(-1) : placed;
    dots.setAttribute("d", marked.map(([x, y]) => `M${x} ${y}h0`).join(""));
    now[index].textContent = points.length ? format(points.at(-1)[1]) : "–";
  });
  const told = series.map(({ name }, index) => {
    const values = found[index].map(([, y]) => y);
    if (!values.length) return `${name} none yet`.trim();
    return `${name} ${format(values.at(-1))} last, ${format(Math.min(...values))} to ${format(Math.max(...values))}`.trim();
  });
  svg.setAttribute("aria-label", `${title}: ${told.join("; ")}`);
}

/** The next of 1, 2 or 5 times a power of ten. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value * 0.999) * power;
}

function shape(name, attributes) {
  const element = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
