// Reads Prometheus' text format, as far as the live page needs it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Return samples by metric name: [{labels, value}]. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, unescape(value)]));
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

/** Return the sum of a metric's samples, by one label or over all. */
export function sums(samples, name, label = null, where = {}) {
  const found = new Map();
  for (const { labels, value } of samples.get(name) ?? []) {
    if (Object.entries(where).some(([key, wanted]) => labels[key] !== wanted)) continue;
    const key = label === null ? "" : labels[label];
    found.set(key, (found.get(key) ?? 0) + value);
  }
  return found;
}

/** Return what a counter grew by; a restart begins anew at nought. */
export const growth = (before, now) => (now < before ? now : now - before);

const unescape = (value) => value.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
