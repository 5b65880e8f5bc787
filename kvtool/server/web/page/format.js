// Numbers as people read them.

export const count = (value) => value.toLocaleString("en");

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  const scaled = value / 1000 ** power;
  return `${scaled >= 100 || power === 0 ? Math.round(scaled) : scaled.toPrecision(2)} ${units[power]}`;
}

export function seconds(value) {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${Number(value.toPrecision(3))} s`;
}

export const percent = (share) => `${Math.round(100 * share)} %`;

export function duration(value) {
  const found = [[86400, "d"], [3600, "h"], [60, "min"]].find(([unit]) => value >= unit);
  return found ? `${Math.floor(value / found[0])} ${found[1]}` : `${Math.max(0, Math.floor(value))} s`;
}

export const plural = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;
